"""export() accepts no graph that has lost something: each way to update a cache is right or refused, on both routes."""

import copy
import sys
import warnings

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch_cases import BLOCK, DIM, HEADS, PAGE, STRIDE, decode_arguments, randn, run_onnx, same

import nsa_onnx
from nsa_onnx import exporters
from nsa_onnx.exporters import observe
from nsa_onnx.exporters.observe import UnexportableError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*legacy TorchScript:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*has no input for"),
]

WEIGHT = randn(BLOCK, HEADS, seed=1)
TOKENS = HEADS, DIM


def compress(pages, slots, table, cache, lengths=(64, 80)):
    return nsa_onnx.nsa_compress_infer(
        pages, WEIGHT, slots, BLOCK, STRIDE, PAGE, block_table=table, actual_seq_len=list(lengths), cache=cache
    )


class Step(torch.nn.Module):
    """Writes the newest token of two sequences into their pages, then compresses the windows they complete."""

    def __init__(self, write):
        super().__init__()
        self.write = write
        self.eval()

    def forward(self, pages, slots, table, cache, tok, where):
        self.write(pages, tok, where)
        compress(pages, slots, table, cache)


def arguments():
    pages, slots, table, cache = decode_arguments()
    return pages, slots, table, cache, randn(2, *TOKENS, seed=5), torch.tensor([2 * PAGE + 63, 3 * PAGE + 15])


def write_each(pages, tok, where):
    for i in range(2):
        pages[where[i] // PAGE, where[i] % PAGE].copy_(tok[i])


WRITES = {
    "view.index_copy_": lambda pages, tok, where: pages.view(-1, *TOKENS).index_copy_(0, where, tok),
    "view[...] =": lambda pages, tok, where: pages.view(-1, *TOKENS).__setitem__(where, tok),
    "pages[...] =": lambda pages, tok, where: pages.__setitem__((where // PAGE, where % PAGE), tok),
    "index_put_": lambda pages, tok, where: pages.index_put_((where // PAGE, where % PAGE), tok),
    "flatten.index_put_": lambda pages, tok, where: pages.flatten(0, 1).index_put_((where,), tok),
    "view.scatter_": lambda pages, tok, where: pages.view(-1, *TOKENS).scatter_(
        0, where[:, None, None].expand(2, *TOKENS), tok
    ),
    "view.masked_fill_": lambda pages, tok, where: pages.view(-1, *TOKENS).masked_fill_(
        torch.arange(4 * PAGE)[:, None, None] == where[0], 2.0
    ),
    "select.copy_": write_each,
    "slice =": lambda pages, tok, where: pages.__setitem__((3, slice(15, 16)), tok[1:]),
    "slice +=": lambda pages, tok, where: pages[1:3].add_(1),
    "unbind.add_": lambda pages, tok, where: [page.add_(1) for page in pages.unbind(0)],
    "chunk.mul_": lambda pages, tok, where: pages.chunk(2)[1].mul_(2),
    "narrow.copy_": lambda pages, tok, where: pages.narrow(0, 1, 2).copy_(pages.narrow(0, 0, 2).clone()),
    "transpose.fill_": lambda pages, tok, where: pages.transpose(0, 1)[:, 2].fill_(1.0),
    "diagonal.zero_": lambda pages, tok, where: pages.view(-1, HEADS * DIM).diagonal().zero_(),
    "as_strided.fill_": lambda pages, tok, where: pages.as_strided((PAGE,), (1,)).fill_(1.0),
    "detach.fill_": lambda pages, tok, where: pages.detach()[0].fill_(1.0),
    ".data =": lambda pages, tok, where: pages.data.view(-1, *TOKENS).__setitem__(where, tok),
}
# The legacy exporter follows these; what torch's dynamo exporter cannot convert it refuses by itself.
LEGACY_FOLLOWS = {"pages[...] =", "index_put_", "select.copy_", "slice =", "slice +="}
DYNAMO_REFUSES = {"diagonal.zero_", "as_strided.fill_", ".data ="}


def assert_graph_is_model(path, model, args):
    """The graph's outputs are eager's results, then what eager updates, in the order of the arguments."""
    proto = onnx.load(path)
    names = observe.leaf_names(model, args, {})
    given = dict(zip(names, observe.leaves((args, {})), strict=True))
    outputs = run_onnx(proto, *[given[value.name] for value in proto.graph.input])
    args = copy.deepcopy(args)
    before = observe.leaves((copy.deepcopy(args), {}))
    with torch.no_grad():
        returned = [leaf for leaf in observe.leaves(copy.deepcopy(model)(*args)) if leaf is not None]
    changed = [now for now, was in zip(observe.leaves((args, {})), before, strict=True) if not torch.equal(now, was)]
    changed = [tensor for tensor in changed if not any(tensor is leaf for leaf in returned)]
    assert len(outputs) >= len(returned) + len(changed) > 0
    assert all(same(a, b) for a, b in zip(outputs, [*returned, *changed], strict=False))


@pytest.mark.parametrize("write", WRITES)
def test_a_write_is_in_the_legacy_graph_or_the_graph_is_refused(write, tmp_path):
    model, args = Step(WRITES[write]), arguments()
    path = tmp_path / "model.onnx"
    if write in LEGACY_FOLLOWS:
        exporters.export(model, args, path, dynamo=False)
        assert_graph_is_model(path, model, args)
        return
    with pytest.raises(RuntimeError, match=r"does not compute what the model does.*output 'pages_out' .*dynamo=True"):
        exporters.export(model, args, path, dynamo=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", WRITES)
def test_a_write_is_in_the_dynamo_graph_or_the_graph_is_refused(write, tmp_path):
    model, args = Step(WRITES[write]), arguments()
    path = tmp_path / "model.onnx"
    if write in DYNAMO_REFUSES:
        with pytest.raises(torch.onnx.OnnxExporterError):
            exporters.export(model, args, path)
        assert not list(tmp_path.iterdir())
        return
    exporters.export(model, args, path, verify=True)
    assert_graph_is_model(path, model, args)


def test_the_message_says_which_output_where_and_by_how_much(tmp_path):
    with pytest.raises(RuntimeError) as refused:
        exporters.export(Step(WRITES["view.index_copy_"]), arguments(), tmp_path / "m.onnx", dynamo=False)
    message = str(refused.value)
    pages, _, _, _, tok, where = arguments()
    apart = (pages.view(-1, *TOKENS)[where].double() - tok.double()).abs()
    assert f"differs in {int((apart > 0).sum())} of {pages.numel()} elements, by up to {apart.max():.3g}" in message
    assert "(pages after its update)" in message
    assert "verify=False" in message


def test_an_example_of_zeros_does_not_hide_a_lost_write(tmp_path):
    args = tuple(torch.zeros_like(a) if a.dtype == torch.float16 else a for a in arguments())
    with pytest.raises(RuntimeError, match=r"with random values in pages, cache, tok, output 'pages_out'"):
        exporters.export(Step(WRITES["view.index_copy_"]), args, tmp_path / "m.onnx", dynamo=False)


def test_without_verification_the_lost_inputs_are_said(tmp_path):
    with pytest.warns(UserWarning, match="has no input for tok, where: nothing in the graph depends on it"):
        result = exporters.export(
            Step(WRITES["view.index_copy_"]), arguments(), tmp_path / "m.onnx", dynamo=False, verify=False
        )
    assert result.lost_inputs == ("tok", "where")


def test_a_lost_input_that_matters_below_the_bound_is_found(tmp_path):
    """The graph depends on it by less than floats may differ; the model does, so there is no doubt."""

    class Whisper(torch.nn.Module):
        def forward(self, x, tiny):
            y = x.clone()
            y.view(-1, 16).index_add_(0, torch.tensor([3]), tiny * 2.0**-18)
            z = nsa_onnx.nsa_compress(y.half(), WEIGHT, BLOCK, STRIDE, actual_seq_len=[64])
            return z.float().sum() + y.sin()

    with pytest.raises(RuntimeError, match="has lost the input 'tiny' on which the model's results depend"):
        exporters.export(Whisper(), (torch.rand(64, 2, 16), torch.rand(1, 16)), tmp_path / "m.onnx", dynamo=False)


def test_an_input_that_the_model_ignores_may_go(tmp_path):
    class Ignores(torch.nn.Module):
        def forward(self, x, unused):
            return nsa_onnx.nsa_compress(x, WEIGHT, BLOCK, STRIDE, actual_seq_len=[64])

    args = randn(64, *TOKENS), torch.arange(3)
    with pytest.warns(UserWarning, match="has no input for unused"):
        result = exporters.export(Ignores(), args, tmp_path / "m.onnx", dynamo=False)
    assert result.lost_inputs == ("unused",)


# --------------------------------------------------------------------------------------------------
# Where the updated tensors live


class Holder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hold()
        self.eval()


class InBuffer(Holder):
    def hold(self):
        self.register_buffer("kv", randn(5, *TOKENS, seed=2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, pages, slots, table, tok):
        self.steps += 1
        self.kv[slots.long()] = tok
        return compress(pages, slots, table, self.kv) + self.steps


class Replaced(Holder):
    def hold(self):
        self.register_buffer("kv", randn(5, *TOKENS, seed=2))

    def forward(self, pages, slots, table, tok):
        self.kv = compress(pages, slots, table, self.kv.clone())
        return self.kv[0] * 2


class InParameter(Holder):
    def hold(self):
        self.kv = torch.nn.Parameter(randn(5, *TOKENS, seed=2), requires_grad=False)

    def forward(self, pages, slots, table, tok):
        return compress(pages, slots, table, self.kv)[1:3] * 2


class InAttribute(Holder):
    def hold(self):
        self.kv = randn(5, *TOKENS, seed=2)

    def forward(self, pages, slots, table, tok):
        return compress(pages, slots, table, self.kv) * 2


class InList(Holder):
    def hold(self):
        self.layers = [randn(5, *TOKENS, seed=2), randn(5, *TOKENS, seed=3)]

    def forward(self, pages, slots, table, tok):
        return sum(compress(pages, slots, table, kv) * 2 for kv in self.layers)


class TwoViews(Holder):
    def hold(self):
        both = torch.stack([randn(5, *TOKENS, seed=2)] * 2)
        self.register_buffer("both", both)
        self.register_buffer("first", both[0])

    def forward(self, pages, slots, table, tok):
        compress(pages, slots, table, self.first)
        return self.both * 2


class TwoNames(Holder):
    def hold(self):
        self.register_buffer("one", randn(5, *TOKENS, seed=2))
        self.register_buffer("other", self.one)

    def forward(self, pages, slots, table, tok):
        compress(pages, slots, table, self.one)
        return self.other * 2


def held(model):
    return {name: tensor.clone() for name, tensor in [*model.named_buffers(), *model.named_parameters()]}


def step_arguments():
    pages, slots, table, _, tok, _ = arguments()
    return pages, slots, table, tok


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("kind", [InBuffer, Replaced, InParameter])
def test_what_the_model_holds_is_handed_out_and_stays_as_it_was(kind, dynamo, tmp_path):
    model, args = kind(), step_arguments()
    before, given = held(model), copy.deepcopy(args)
    result = exporters.export(model, args, tmp_path / "m.onnx", dynamo=dynamo, verify=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in held(model).items())
    assert all(torch.equal(a, b) for a, b in zip(args, given, strict=True))
    proto = onnx.load(result.path)
    feeds = dict(zip(("pages", "slots", "table", "tok"), args, strict=True))
    got = run_onnx(proto, *[feeds[value.name] for value in proto.graph.input])
    with torch.no_grad():
        returned = model(*args)
    assert same(got[0], returned)
    outputs = [output.name for output in proto.graph.output]
    assert set(result.mutated.values()) == set(before)
    assert all(same(got[outputs.index(name)], held(model)[source]) for name, source in result.mutated.items())


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (InAttribute, r"updates kv .*neither an argument nor a buffer.*register_buffer"),
        (InList, r"updates layers .*neither an argument nor a buffer.*register_buffer"),
        (TwoViews, r"(both and first|first and both) share memory that the model updates"),
    ],
)
def test_what_no_graph_can_hand_out_is_refused(kind, message, dynamo, tmp_path):
    model = kind()
    kept = copy.deepcopy(model)
    with pytest.raises(UnexportableError, match=message):
        exporters.export(model, step_arguments(), tmp_path / "m.onnx", dynamo=dynamo)
    assert not list(tmp_path.iterdir())
    assert torch.equal(model(*step_arguments()), kept(*step_arguments()))


def test_a_buffer_of_two_names(tmp_path):
    """One tensor object: the trace knows that; torch.export does not, and fails without a word on the buffers."""
    exporters.export(TwoNames(), step_arguments(), tmp_path / "m.onnx", dynamo=False)
    with pytest.raises(UnexportableError, match="one and other share memory"):
        exporters.export(TwoNames(), step_arguments(), tmp_path / "m.onnx")


class Pair(torch.nn.Module):
    def forward(self, pages, slots, table, one, other):
        compress(pages, slots, table, one)
        return other * 2


@pytest.mark.parametrize("dynamo", [True, False])
def test_one_tensor_as_two_arguments_is_refused(dynamo, tmp_path):
    pages, slots, table, cache, _, _ = arguments()
    for other in (cache, cache[1:]):
        with pytest.raises(UnexportableError, match="one and other share memory"):
            exporters.export(Pair(), (pages, slots, table, cache, other), tmp_path / "m.onnx", dynamo=dynamo)


@pytest.mark.parametrize("dynamo", [True, False])
def test_slices_of_one_pool_are_two_tensors(dynamo, tmp_path):
    """As servers hold their caches; next to each other, and between each other."""
    pages, slots, table, _, _, _ = arguments()
    pool = randn(2, 5, *TOKENS, seed=2)
    between = randn(5, 2, *TOKENS, seed=2)
    for one, other in (pool, between.unbind(1)):
        result = exporters.export(
            Pair(), (pages, slots, table, one, other), tmp_path / "m.onnx", dynamo=dynamo, verify=True
        )
        assert list(result.mutated.values()) == ["one"]


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("how", ["list", "kwargs", "replaced"])
def test_caches_in_structures(how, dynamo, tmp_path):
    class Structured(torch.nn.Module):
        def forward(self, pages, slots, table, caches):
            if how == "replaced":
                caches["k"] = compress(pages, slots, table, caches["k"]) + 1
                return caches["k"].float().sum()
            for cache in caches:
                compress(pages, slots, table, cache)
            return caches[0], caches[0][1:3]

    pages, slots, table, cache, _, _ = arguments()
    caches = {"k": cache} if how == "replaced" else [cache, cache.flip(0)]
    args, kwargs = (pages, slots, table), {"caches": caches}
    if how != "kwargs":
        args, kwargs = (*args, caches, {}), {}
        args = args[:4]
    result = exporters.export(Structured(), args, tmp_path / "m.onnx", kwargs=kwargs, dynamo=dynamo, verify=True)
    names = [output.name for output in onnx.load(result.path).graph.output]
    got = dict(zip(names, run_onnx(onnx.load(result.path), pages, slots, table, *observe.leaves(caches)), strict=True))
    wanted = [compress(pages, slots, table, leaf.clone()) for leaf in observe.leaves(caches)]
    assert len(result.mutated) == len(wanted)
    assert all(same(got[name], want) for name, want in zip(result.mutated, wanted, strict=True))


@pytest.mark.parametrize("dynamo", [True, False])
def test_one_result_returned_twice(dynamo, tmp_path):
    class Twice(torch.nn.Module):
        def forward(self, pages, slots, table, cache, tok, where):
            updated = compress(pages, slots, table, cache)
            return updated, updated, None, tok + where.sum()

    args = arguments()
    result = exporters.export(Twice(), args, tmp_path / "m.onnx", dynamo=dynamo, verify=True)
    assert list(result.mutated.values()) == ["cache"]


# --------------------------------------------------------------------------------------------------
# What is compared how


def scaled(factor):
    """A change of the written graph: the last float output is off by a factor."""

    def change(proto):
        output = proto.graph.output[-1]
        (node,) = [node for node in proto.graph.node if output.name in node.output]
        node.output[list(node.output).index(output.name)] = "true_value"
        dtype = {1: np.float32, 10: np.float16}[output.type.tensor_type.elem_type]
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor, dtype), "factor"))
        proto.graph.node.append(onnx.helper.make_node("Mul", ["true_value", "factor"], [output.name]))

    return change


def flipped_bit(proto):
    """One bit of the compression weight."""
    (weight,) = [tensor for tensor in proto.graph.initializer if tensor.dims == [BLOCK, HEADS]]
    raw = bytearray(weight.raw_data)
    raw[0] ^= 1
    weight.raw_data = bytes(raw)


class Prefill(torch.nn.Module):
    def __init__(self, rounded):
        super().__init__()
        self.rounded = rounded

    def forward(self, x):
        y = nsa_onnx.nsa_compress(x, WEIGHT, BLOCK, STRIDE, actual_seq_len=[100])
        return y.float().flatten(1).softmax(-1) if self.rounded else y.transpose(0, 1).reshape(-1)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(
    ("rounded", "change", "refused"),
    [
        (False, lambda proto: None, False),
        (False, flipped_bit, True),
        (True, scaled(1 + 2.0**-14), False),
        (True, scaled(1 + 2.0**-4), True),
    ],
)
def test_our_nodes_are_compared_bit_for_bit_and_sums_within_a_bound(
    rounded, change, refused, dynamo, tmp_path, monkeypatch
):
    def changed(model, *args):
        proto = onnx_ir_to_proto(model, *args)
        change(proto)
        return proto

    onnx_ir_to_proto = onnx_ir.to_proto
    monkeypatch.setattr(onnx_ir, "to_proto", changed)
    call = Prefill(rounded), (randn(100, *TOKENS),), tmp_path / "m.onnx"
    if refused:
        with pytest.raises(RuntimeError, match="does not compute what the model does"):
            exporters.export(*call, dynamo=dynamo, verify=True)
        assert not list(tmp_path.iterdir())
        exporters.export(*call, dynamo=dynamo, verify=False)
    else:
        exporters.export(*call, dynamo=dynamo, verify=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_deep_healthy_model_is_not_refused(dtype, tmp_path):
    """24 layers in which everything is rounded to the type, and compressed K/V in 16 bits."""

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(24))
            self.eval()

        def forward(self, x):
            for layer in self.layers:
                hidden = torch.nn.functional.layer_norm(x.float(), (32,))
                x = x + layer(hidden).to(dtype).float().tanh().to(dtype).to(x.dtype)
            half = dtype if dtype is not torch.float32 else torch.float16
            y = x.to(half).view(-1, *TOKENS)
            return x, nsa_onnx.nsa_compress(y, WEIGHT.to(half), BLOCK, STRIDE, actual_seq_len=[64])

    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    exporters.export(Deep(), (x,), tmp_path / "m.onnx", verify=True)
    exporters.export(Deep(), (x,), tmp_path / "m.onnx", dynamo=False)


@pytest.mark.parametrize("dynamo", [True, False])
def test_a_tie_that_falls_the_other_way_is_a_warning(dynamo, tmp_path):
    class Argmax(torch.nn.Module):
        def forward(self, x):
            y = nsa_onnx.nsa_compress(x, WEIGHT, BLOCK, STRIDE, actual_seq_len=[100])
            chances = y.float().flatten(1).softmax(-1)
            # The second is larger by less than a rounding of the sum may be in another order.
            return torch.stack([chances.sum(-1), torch.full_like(chances[:, 0], 1.0 + 2.0**-20)], -1).argmax(-1)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        exporters.export(Argmax(), (randn(100, *TOKENS),), tmp_path / "m.onnx", dynamo=dynamo, verify=True)
    assert not [str(w.message) for w in said if "does not compute" in str(w.message)]


class Chosen(torch.nn.Module):
    """Rows of a table, chosen by two sums of the same numbers in another order: by their roundings."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.register_buffer("table", torch.tensor([[0.0], [1.0]]))

    def forward(self, x, y):
        back = x.flip(-1)
        chosen = self.table[((x * x).sum(-1) > (back * back).sum(-1)).long()]
        traced = torch.compiler.is_exporting() or torch.jit.is_tracing()
        return chosen, self.table[(y.sum(-1) > 0).long()] * (self.factor if traced else 1.0)


@pytest.mark.parametrize("dynamo", [True, False])
def test_what_rounded_scores_select_is_a_warning_if_the_model_is_as_sensitive(dynamo, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 1000, generator=generator), torch.randn(64, 10, generator=generator)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        exporters.export(Chosen(), (x, y), tmp_path / "m.onnx", dynamo=dynamo, verify=True)
    assert len([w for w in said if "depends on what is selected by rounded scores" in str(w.message)]) <= 1
    with pytest.raises(RuntimeError, match=r"does not compute what the model does.* by up to 1: at \[\d+, 0\] it is 2"):
        exporters.export(Chosen(2.0), (x, y), tmp_path / "n.onnx", dynamo=dynamo, verify=True)


def test_other_arguments_are_compared_as_well(tmp_path):
    """The example has one segment; the trace has frozen that."""

    class Frozen(torch.nn.Module):
        def forward(self, x):
            return nsa_onnx.nsa_compress(x, WEIGHT, BLOCK, STRIDE, actual_seq_len=[64]) * int(x[0, 0, 0] > 0)

    positive = randn(64, *TOKENS).abs()
    exporters.export(Frozen(), (positive,), tmp_path / "m.onnx", dynamo=False)
    with pytest.raises(RuntimeError, match=r"on arguments 1 of verify, output"):
        exporters.export(Frozen(), (positive,), tmp_path / "n.onnx", dynamo=False, verify=[(positive,), (-positive,)])
    with pytest.raises(TypeError, match="verify must be True, False or a list of tuples"):
        exporters.export(Frozen(), (positive,), tmp_path / "n.onnx", verify=positive)


class Random(torch.nn.Module):
    def forward(self, x):
        y = torch.nn.functional.dropout(x, 0.5, training=True)
        return nsa_onnx.nsa_compress(y, WEIGHT, BLOCK, STRIDE, actual_seq_len=[100])


@pytest.mark.parametrize("dynamo", [True, False])
def test_a_model_that_is_not_deterministic_is_called_that(dynamo, tmp_path):
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match=r"another result each time .*model\.eval\(\).*verify=False"):
        exporters.export(Random(), (randn(100, *TOKENS),), tmp_path / "m.onnx", dynamo=dynamo, verify=True)
    torch.set_rng_state(state)


def test_the_legacy_exporters_mode_is_the_one_that_is_compared(tmp_path):
    """It exports as eval(); the model stays in training."""

    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = torch.nn.BatchNorm1d(32), torch.nn.Dropout()

        def forward(self, x):
            y = self.drop(self.norm(x.flatten(1).float())).half().view(-1, *TOKENS)
            return nsa_onnx.nsa_compress(y, WEIGHT, BLOCK, STRIDE, actual_seq_len=[100])

    model = Normed()
    result = exporters.export(model, (randn(100, *TOKENS),), tmp_path / "m.onnx", dynamo=False)
    assert result.mutated == {}
    assert all(module.training for module in model.modules())
    assert int(model.norm.num_batches_tracked) == 0


# --------------------------------------------------------------------------------------------------
# Where it cannot be told


def test_the_legacy_route_without_onnxruntime_is_an_error_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model, args = Step(WRITES["pages[...] ="]), arguments()
    with pytest.raises(RuntimeError, match=r"cannot be verified: onnxruntime cannot be imported.*verify=False"):
        exporters.export(model, args, tmp_path / "m.onnx", dynamo=False)
    with pytest.raises(RuntimeError, match=r"cannot be verified: onnxruntime cannot be imported"):
        exporters.export(model, args, tmp_path / "m.onnx", verify=True)
    assert not list(tmp_path.iterdir())
    exporters.export(model, args, tmp_path / "m.onnx", dynamo=False, verify=False)
    exporters.export(model, args, tmp_path / "m.onnx")


def test_a_graph_that_onnxruntime_does_not_run_is_refused(tmp_path):
    """It has no float16 ScatterND that adds."""
    model = Step(lambda pages, tok, where: pages.view(-1, *TOKENS).index_add_(0, where, tok))
    with pytest.raises(RuntimeError, match=r"cannot be verified, nothing is written: onnxruntime .*ScatterND"):
        exporters.export(model, arguments(), tmp_path / "m.onnx", verify=True)
    assert not list(tmp_path.iterdir())


def test_an_exported_program_is_compared_too(tmp_path):
    class Returned(torch.nn.Module):
        def forward(self, pages, slots, table, cache):
            return compress(pages, slots, table, cache)

    program = torch.export.export(Returned(), arguments()[:4])
    assert exporters.export(program, (), tmp_path / "m.onnx", verify=True).mutated
