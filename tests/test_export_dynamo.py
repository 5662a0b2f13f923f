"""torch.export and torch.onnx.export(dynamo=True): the same programs, nodes and bits for every kind of lengths."""

import onnx
import onnx.numpy_helper
import pytest
import torch
from onnx.shape_inference import infer_shapes
from torch.export import Dim
from torch_cases import (
    BLOCK,
    DIM,
    DTYPES,
    HEADS,
    PAGE,
    STRIDE,
    decode_arguments,
    nsa_nodes,
    randn,
    run_onnx,
    same,
    value_dims,
)

import nsa_onnx
from nsa_onnx import exporters
from nsa_onnx.exporters import dynamo

pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning"),  # torch's own, on its treespecs
]


class Model(torch.nn.Module):
    def __init__(self, dtype=torch.float16):
        super().__init__()
        self.weight = torch.nn.Parameter(randn(BLOCK, HEADS, dtype=dtype, seed=1))
        self.eval()


class Constant(Model):
    """Lengths are constants of the program."""

    def forward(self, x):
        return nsa_onnx.nsa_compress(x, self.weight, BLOCK, STRIDE, actual_seq_len=[40, 100])


class Symbolic(Model):
    """Lengths are computed from a shape: two segments, the first of 40 tokens."""

    def forward(self, x):
        return nsa_onnx.nsa_compress(x, self.weight, BLOCK, STRIDE, actual_seq_len=[40, x.shape[0]])


class LengthsTensor(Model):
    """Lengths are an input."""

    def forward(self, x, lengths):
        return exporters.nsa_compress(x, self.weight, BLOCK, STRIDE, actual_seq_len=lengths)


class Decode(Model):
    """A step over a cache that is given and returned; without a table the pages are in order."""

    def forward(self, x, slots, cache, lengths, table=None):
        return exporters.nsa_compress_infer(
            x, self.weight, slots, BLOCK, STRIDE, PAGE, block_table=table, actual_seq_len=lengths, cache=cache
        )


SEQ = torch.tensor([40, 100])
LONGER = torch.tensor([33, 33, 150])
# torch.export (not torch.onnx.export) refuses a T' that may be 1, as it does with every derived dim.
TOKENS, BATCH = Dim("tokens", min=72), Dim("batch", min=1)
DYNAMIC = {Symbolic: {"x": {0: TOKENS}}, LengthsTensor: {"x": {0: TOKENS}, "lengths": {0: BATCH}}}


def tokens(count, dtype=torch.float16, seed=0):
    return randn(count, HEADS, DIM, dtype=dtype, seed=seed)


def arguments(kind, count=100, lengths=SEQ, dtype=torch.float16):
    return (tokens(count, dtype), lengths) if kind is LengthsTensor else (tokens(count, dtype),)


def calls(kind, dtype=torch.float16):
    """Arguments as exported, and of other sizes where they may differ."""
    yield arguments(kind, dtype=dtype)
    if kind is not Constant:
        yield arguments(kind, 150, LONGER, dtype)
        yield arguments(kind, 72, torch.tensor([20, 72]), dtype)


def to_onnx(model, args, **options):
    return torch.onnx.export(model, args, dynamo=True, verbose=False, **options).model_proto


# --------------------------------------------------------------------------------------------------
# torch.export


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", [Constant, Symbolic, LengthsTensor])
def test_an_exported_program_computes_what_eager_does_at_other_sizes_too(kind, strict):
    model = kind()
    program = torch.export.export(model, arguments(kind), dynamic_shapes=DYNAMIC.get(kind), strict=strict)
    for run in (program.module(), program.run_decompositions().module()):
        assert all(same(run(*args), model(*args)) for args in calls(kind))


@pytest.mark.parametrize("strict", [False, True])
def test_constant_lengths_and_dynamic_tokens_are_an_error_that_says_what_to_do(strict):
    with pytest.raises(Exception, match=r"(?s)T = input.shape.0. is dynamic, but .* the constant 100: .*int64 tensor"):
        torch.export.export(Constant(), (tokens(100),), dynamic_shapes={"x": {0: TOKENS}}, strict=strict)


def test_constant_lengths_make_tokens_static_that_only_may_be_dynamic():
    program = torch.export.export(Constant(), (tokens(100),), dynamic_shapes={"x": {0: Dim.AUTO}})
    (x,) = (node for node in program.graph.nodes if node.name == "x")
    assert x.meta["val"].shape[0] == 100


def test_a_batch_of_another_size_than_the_constant_lengths_is_an_error():
    class ConstantDecode(Model):
        def forward(self, x, slots, cache):
            return nsa_onnx.nsa_compress_infer(
                x, self.weight, slots, BLOCK, STRIDE, PAGE, actual_seq_len=[64, 80], cache=cache
            )

    x, slots, _, cache = decode_arguments()
    with pytest.raises(RuntimeError, match=r"B = slot_mapping.shape.0. is dynamic, but .*constant 2"):
        torch.export.export(ConstantDecode(), (x, slots, cache), dynamic_shapes=({}, {0: BATCH}, {}))


def test_unbacked_rows_can_be_used_further_on():
    class Further(LengthsTensor):
        def forward(self, x, lengths):
            y = super().forward(x, lengths)
            return (y.flatten(1).float() @ y.flatten(1).float().T).softmax(-1)

    args = arguments(LengthsTensor)
    program = torch.export.export(Further(), args, dynamic_shapes=DYNAMIC[LengthsTensor])
    other = arguments(LengthsTensor, 150, LONGER)
    torch.testing.assert_close(program.module()(*other), Further()(*other))


# --------------------------------------------------------------------------------------------------
# torch.onnx.export


@pytest.fixture(
    scope="module", params=[(kind, dtype) for kind in (Constant, Symbolic, LengthsTensor) for dtype in DTYPES]
)
def exported(request):
    kind, dtype = request.param
    shapes = {Symbolic: {"x": {0: "T"}}, LengthsTensor: {"x": {0: "T"}, "lengths": {0: "B"}}}
    model = kind(dtype)
    return kind, dtype, model, to_onnx(model, arguments(kind, dtype=dtype), dynamic_shapes=shapes.get(kind))


def test_onnxruntime_computes_eagers_bits(exported):
    kind, dtype, model, proto = exported
    few = [arguments(kind, count, torch.tensor([count]), dtype) for count in (41, 56, 72) if kind is not Constant]
    for args in (*calls(kind, dtype), *few):
        assert same(run_onnx(proto, *args)[0], model(*args))


def test_the_node_is_exactly_the_documented_one(exported):
    kind, _, _, proto = exported
    (node,) = nsa_nodes(proto)
    assert (node.op_type, len(node.output), node.input[:2]) == ("NsaCompress", 1, ["x", "weight"])
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    assert attributes == {"compress_block_size": BLOCK, "compress_stride": STRIDE}
    assert {opset.domain: opset.version for opset in proto.opset_import}["nsa_onnx"] == 1
    assert not proto.functions
    (lengths,) = node.input[2:]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    if kind is Constant:
        assert (constants[lengths].dtype, constants[lengths].tolist()) == ("int64", [40, 100])
    if kind is LengthsTensor:
        assert lengths == "lengths"


def test_the_declared_shapes_are_right(exported):
    kind, _, _, proto = exported
    (node,) = nsa_nodes(proto)
    rows, *rest = value_dims(proto, node.output[0])
    assert rest == [HEADS, DIM]
    assert rows == 3 if kind is Constant else isinstance(rows, str)
    if kind is Symbolic:
        assert "T" in rows
    onnx.checker.check_model(infer_shapes(proto, strict_mode=True), full_check=True, check_custom_domain=True)
    assert nsa_onnx.check(proto).ok


def test_the_explicit_table_gives_the_same_graph(exported):
    kind, dtype, model, proto = exported
    if kind is not Constant or dtype is not torch.float16:
        return  # once is enough
    table = exporters.onnx_translation_table()
    assert set(table) >= {torch.ops.nsa_onnx.nsa_compress.default, torch.ops.nsa_onnx.nsa_compress_infer.tensor}
    again = to_onnx(model, arguments(kind), custom_translation_table=table)
    assert [node.SerializeToString() for node in nsa_nodes(again)] == [
        node.SerializeToString() for node in nsa_nodes(proto)
    ]


@pytest.mark.parametrize("opset", [18, 19, 21, 22, 23, 24])
def test_every_opset(opset):
    model, args = Symbolic(), arguments(Symbolic)
    proto = to_onnx(model, args, dynamic_shapes={"x": {0: "T"}}, opset_version=opset)
    assert {entry.domain: entry.version for entry in proto.opset_import} == {"": opset, "nsa_onnx": 1}
    if opset <= 23:  # what this onnxruntime runs
        other = (tokens(150),)
        assert same(run_onnx(proto, *other)[0], model(*other))


@pytest.mark.parametrize("kind", [Constant, Symbolic])
def test_without_the_optimizer(kind):
    model = kind()
    proto = to_onnx(model, arguments(kind), optimize=False)
    assert len(nsa_nodes(proto)) == 1
    assert same(run_onnx(proto, *arguments(kind))[0], model(*arguments(kind)))


def test_an_exported_program_can_be_translated():
    model = LengthsTensor()
    program = torch.export.export(model, arguments(LengthsTensor), dynamic_shapes=DYNAMIC[LengthsTensor], strict=True)
    other = arguments(LengthsTensor, 150, LONGER)
    assert same(run_onnx(to_onnx(program, ()), *other)[0], model(*other))


@pytest.mark.parametrize("with_table", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decode_step_with_a_lengths_tensor_serves_other_batches_and_lengths(dtype, with_table):
    model = Decode(dtype)
    x, slots, table, cache = decode_arguments(dtype)
    args = (x, slots, cache.clone(), torch.tensor([64, 80]), table)[: 4 + with_table]
    shapes = ({0: "pages"}, {0: "B"}, {0: "slots"}, {0: "B"}, {0: "B"})[: 4 + with_table]
    proto = to_onnx(model, args, dynamic_shapes=shapes)
    (node,) = nsa_nodes(proto)
    assert node.op_type == "NsaCompressInfer"
    assert list(node.input) == ["x", "weight", "slots", "cache", "lengths", "table"][: 5 + with_table]
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    assert attributes == {"compress_block_size": BLOCK, "compress_stride": STRIDE, "page_block_size": PAGE}
    assert value_dims(proto, node.output[0]) == ["slots", HEADS, DIM]
    for lengths in ([96, 33], [20], [128, 112, 64]):
        batch = len(lengths)
        pages, cache = (randn(*shape, HEADS, DIM, dtype=dtype, seed=5) for shape in ((2 * batch, PAGE), (9,)))
        table = torch.arange(2 * batch, dtype=torch.int32).flip(0).reshape(batch, 2)
        step = (pages, torch.arange(batch, dtype=torch.int32) + 2, cache, torch.tensor(lengths), table)[
            : 4 + with_table
        ]
        (got,) = run_onnx(proto, *step)  # before eager, which updates the cache
        assert same(got, model(*step))


def test_missing_lengths_are_named():
    table = exporters.onnx_translation_table()
    with pytest.raises(TypeError, match="actual_seq_len is missing: NsaCompress needs it"):
        table[torch.ops.nsa_onnx.nsa_compress.default]("x", "w", 32, 16)
    with pytest.raises(TypeError, match="actual_seq_len is missing: NsaCompressInfer needs it"):
        table[torch.ops.nsa_onnx.nsa_compress_infer.default]("x", "w", "slots", 32, 16, 64, cache="cache")


def test_registering_twice_is_harmless(recwarn):
    dynamo.register()
    assert not recwarn
