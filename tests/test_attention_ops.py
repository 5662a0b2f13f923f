"""The torch ops of the attention stages: values, fake kernels, torch's rules, errors, export."""

import re
import warnings
from pathlib import Path

import attention_cases as cases
import nsa_models
import onnx
import pytest
import torch
from torch_cases import DTYPES, nsa_nodes, randn, run_onnx, same, to_numpy, value_dims

import nsa_onnx
from nsa_onnx import exporters

NAMES = list(cases.CALLS)
KINDS = ("list", "tensor", "mixed")


def eager_on_arrays(name, args, keywords):
    """What the eager call gives for the same arrays, in NumPy: the other way to the kernel."""
    as_array = [to_numpy(value) if isinstance(value, torch.Tensor) else value for value in args]
    given = {key: to_numpy(value) if isinstance(value, torch.Tensor) else value for key, value in keywords.items()}
    return cases.results(getattr(nsa_onnx, name)(*as_array, **given))


# --------------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("name", NAMES)
def test_an_array_is_refused_by_its_name(name):
    args, keywords = cases.CALLS[name]()
    for index, wrong in enumerate(("query", "key", "value")):
        given = [to_numpy(one) if place == index else one for place, one in enumerate(args)]
        with pytest.raises(TypeError, match=f"^{wrong} must be a torch tensor, got ndarray .*from_numpy"):
            getattr(exporters, name)(*given, **keywords)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_an_op_gives_the_eager_calls_bits(name, dtype, kind):
    args, keywords = cases.CALLS[name](dtype)
    got = cases.results(getattr(exporters, name)(*args, **cases.with_lengths(keywords, kind)))
    want = eager_on_arrays(name, args, keywords)
    assert len(got) == len(want)
    assert all(same(a, b) for a, b in zip(got, want, strict=True))
    assert got[0].abs().sum() > 0
    through_eager = cases.results(getattr(nsa_onnx, name)(*args, **keywords))
    assert all(same(a, b) for a, b in zip(through_eager, got, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_an_op_takes_any_strides(name):
    args, keywords = cases.CALLS[name]()
    want = cases.results(getattr(exporters, name)(*args, **keywords))

    def strided(value):
        return torch.stack([value, value], -1)[..., 0] if isinstance(value, torch.Tensor) else value

    args, keywords = [strided(value) for value in args], {key: strided(value) for key, value in keywords.items()}
    assert not args[0].is_contiguous()
    got = cases.results(getattr(exporters, name)(*args, **keywords))
    assert all(same(a, b) for a, b in zip(got, want, strict=True))


def test_numpy_numbers_and_ints_are_taken():
    args, keywords = cases.select_attention()
    want = exporters.nsa_select_attention(*args, **keywords)
    query, key, value, topk, scale, *rest = args
    numbers = torch.tensor(scale).numpy()[()], *(torch.tensor(number).numpy()[()] for number in rest)
    assert same(exporters.nsa_select_attention(query, key, value, topk, *numbers, **keywords | {"causal": 1}), want)
    whole = exporters.nsa_select_attention(query, key, value, topk, 1, *rest, **keywords)
    assert same(whole, exporters.nsa_select_attention(query, key, value, topk, 1.0, *rest, **keywords))


# --------------------------------------------------------------------------------------------------
# torch's rules


@pytest.mark.parametrize("overload", ["default", "tensor"])
@pytest.mark.parametrize("name", [*NAMES, "nsa_compress_attention_softmax", "nsa_select_attention_softmax"])
def test_opcheck(name, overload):
    args, keywords = cases.CALLS[name.removesuffix("_softmax")](torch.bfloat16)
    keywords = cases.with_lengths(keywords, "list" if overload == "default" else "tensor")
    keywords |= {"causal": 1} if "causal" in keywords else {}
    torch.library.opcheck(getattr(getattr(torch.ops.nsa_onnx, name), overload), args, keywords)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("infer")])
def test_a_backward_pass_through_a_decode_step_is_refused(name):
    (query, *args), keywords = cases.CALLS[name]()
    out, *_ = cases.results(getattr(exporters, name)(query.requires_grad_(), *args, **keywords))
    assert out.requires_grad
    with pytest.raises(NotImplementedError, match=rf"{name} has no gradient: .*torch\.no_grad\(\)"):
        out.sum().backward()


@pytest.mark.parametrize("kind", ["list", "mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_call_is_eagers(name, kind):
    args, keywords = cases.CALLS[name]()
    keywords = cases.with_lengths(keywords, kind)
    function = getattr(exporters, name)
    torch._dynamo.reset()
    got = cases.results(torch.compile(function, backend="aot_eager", fullgraph=True)(*args, **keywords))
    assert all(same(a, b) for a, b in zip(got, cases.results(function(*args, **keywords)), strict=True))


# --------------------------------------------------------------------------------------------------
# Gradients of the prefill stages


def attended(query, keys, values, hidden):
    """One row ``[N1, D]`` over keys ``[N1, L, D]``, differentiable, in float64."""
    logits = torch.einsum("hd,hld->hl", query, keys) * cases.SCALE
    logits = logits.masked_fill(hidden, torch.finfo(torch.float32).min)
    return torch.einsum("hl,hlv->hv", logits.softmax(-1), values)


def by_query_head(tensor):
    """``[L, N2, D]`` as ``[N1, L, D]``."""
    return tensor.repeat_interleave(cases.HEADS // cases.KV_HEADS, 1).transpose(0, 1)


def compress_reference(query, key, value, keywords):
    rows = []
    for start, end, tokens in ((0, 16, slice(0, 5)), (16, 40, slice(5, 11))):
        keys, values = by_query_head(key[tokens]), by_query_head(value[tokens])
        hidden = keywords["atten_mask"][: end - start, : keys.shape[1]]
        rows += [attended(query[start + i], keys, values, hidden[i]) for i in range(end - start)]
    return torch.stack(rows)


def select_reference(query, key, value, topk):
    rows = []
    for start, end, first, count in ((0, 16, 0, 80), (16, 40, 80, 120)):
        for t in range(start, end):
            groups = []
            for group in range(cases.KV_HEADS):
                blocks = [block for block in topk[t, group].tolist() if block >= 0]
                tokens = torch.tensor([p for b in blocks for p in range(b * 64, min(b * 64 + 64, count))]).long()
                heads = slice(2 * group, 2 * group + 2)
                keys, values = (one[first + tokens, group].expand(2, -1, -1) for one in (key, value))
                groups.append(attended(query[t, heads], keys, values, tokens > t - start))
            rows.append(torch.cat(groups))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["list", "tensor"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["nsa_compress_attention", "nsa_select_attention"])
def test_gradients_match_float64(name, dtype, kind):
    (query, key, value, *args), keywords = cases.CALLS[name](dtype)
    keywords = cases.with_lengths(keywords, kind)
    if name == "nsa_compress_attention":
        keywords["atten_mask"][3] = True  # a row that sees nothing
    operands = [one.clone().requires_grad_() for one in (query, key, value)]
    out, *_ = cases.results(getattr(exporters, name)(*operands, *args, **keywords))
    grad = randn(*out.shape, dtype=dtype, seed=9)
    got = torch.autograd.grad(out, operands, grad)
    doubles = [one.double().requires_grad_() for one in (query, key, value)]
    last = keywords if name == "nsa_compress_attention" else args[0]
    reference = (compress_reference if name == "nsa_compress_attention" else select_reference)(*doubles, last)
    want = torch.autograd.grad(reference, doubles, grad.double())
    half_ulp = torch.finfo(dtype).eps / 2
    torch.testing.assert_close(out.double(), reference.detach(), rtol=1.01 * half_ulp, atol=1e-5)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=1.01 * half_ulp, atol=2e-5)


@pytest.mark.parametrize("name", ["nsa_compress_attention", "nsa_select_attention"])
def test_compiled_gradients_are_eagers_and_have_none_themselves(name):
    (query, *args), keywords = cases.CALLS[name]()

    def loss(query):
        return cases.results(getattr(exporters, name)(query, *args, **keywords))[0].float().square().sum()

    query.requires_grad_()
    (want,) = torch.autograd.grad(loss(query), query)
    torch._dynamo.reset()
    (got,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(query), query)
    assert same(got, want)
    assert want.abs().sum() > 0
    (first,) = torch.autograd.grad(loss(query), query, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"{name}_grad has no gradient"):
        first.sum().backward()


# --------------------------------------------------------------------------------------------------
# Errors

ERRORS = [
    (
        "nsa_compress_attention",
        {"query": torch.zeros(40, 4, 32)},
        TypeError,
        "key must have the dtype of query, float32",
    ),
    ("nsa_compress_attention", {"topk_mask": torch.zeros(24, 2)}, TypeError, "topk_mask must be bool, got float32"),
    ("nsa_compress_attention", {"head_num": 6}, RuntimeError, "head_num"),
    ("nsa_compress_attention", {"select_block_size": 40}, RuntimeError, "select_block_size must be a multiple of 16"),
    ("nsa_compress_attention", {"actual_seq_qlen": [16, 39]}, RuntimeError, r"must equal T1 = 40, got 39"),
    ("nsa_compress_attention", {"actual_seq_qlen": None}, TypeError, "actual_seq_qlen must be .* got NoneType"),
    (
        "nsa_compress_attention",
        {"actual_seq_qlen": torch.tensor([40])},
        RuntimeError,
        "must have B = 1 elements, got 2",
    ),
    (
        "nsa_compress_attention",
        {"actual_seq_qlen": torch.tensor([16, 40]).int()},
        TypeError,
        "must be int64, got int32",
    ),
    ("nsa_compress_attention", {"actual_sel_seq_kvlen": [2, 5]}, RuntimeError, "so it has 2 blocks, got 3"),
    (
        "nsa_compress_attention",
        {"atten_mask": torch.ones(24, 5).bool()},
        RuntimeError,
        r"atten_mask.shape\[1\] must be >= 6",
    ),
    ("nsa_compress_attention_infer", {"block_table": None}, TypeError, "block_table must be .* got NoneType"),
    ("nsa_compress_attention_infer", {"actual_cmp_seq_kvlen": [129, 0]}, RuntimeError, r"must be <= 128 .*got 129"),
    ("nsa_compress_attention_infer", {"actual_cmp_seq_kvlen": [1]}, RuntimeError, "must have B = 2 elements, got 1"),
    ("nsa_select_attention", {"causal": 2}, RuntimeError, "causal must be 0 or 1, got 2"),
    ("nsa_select_attention", {"causal": 0.5}, TypeError, "causal must be a bool or an int, got float"),
    (
        "nsa_select_attention",
        {"scale_value": float("nan")},
        RuntimeError,
        "scale_value must be a finite float32, got nan",
    ),
    (
        "nsa_select_attention_infer",
        {"page_block_size": 128},
        RuntimeError,
        r"key.shape\[1\] must equal page_block_size",
    ),
    (
        "nsa_select_attention_infer",
        {"topk_indices": torch.zeros(2, 2, 2).long()},
        TypeError,
        "topk_indices must be int32",
    ),
]


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(("name", "change", "error", "message"), ERRORS)
def test_the_contracts_errors(name, change, error, message, fake):
    args, keywords = cases.CALLS[name]()
    operator = next(one for one in exporters.operators.OPERATORS if one.name == name)
    call = dict(zip(operator.parameters, args, strict=False)) | keywords | change
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with mode if fake else torch.no_grad(), pytest.raises(error, match=message):
        getattr(exporters, name)(**call)


def test_a_block_that_is_not_there_is_named():
    (query, key, value, topk, *rest), keywords = cases.select_attention()
    topk[20, 1, 2] = 7
    with pytest.raises(RuntimeError, match=r"topk_indices\[20, 1, 2\] must be in \[-1, 2\) .*got 7"):
        exporters.nsa_select_attention(query, key, value, topk, *rest, **keywords)


@pytest.mark.parametrize("name", ["value", "block_table", "actual_seq_kvlen"])
def test_tensors_on_different_devices_are_refused(name):
    args, keywords = cases.select_attention_infer()
    names = ("query", "key", "value", "topk_indices")
    call = dict(zip(names, args, strict=False)) | cases.with_lengths(keywords, "tensor")
    call[name] = call[name].to("meta")
    with pytest.raises(RuntimeError, match=f"{name} must be on the device of query, cpu, got meta"):
        exporters.nsa_select_attention_infer(*(call.pop(one) for one in names), *args[4:], **call)


# --------------------------------------------------------------------------------------------------
# Export


class Layer(torch.nn.Module):
    """Attention to compressed tokens, then to the blocks that it selects: a prefill's two sparse branches."""

    def forward(self, query, compressed, values, key, value, lengths, mask):
        tokens = {"actual_seq_qlen": [24, query.shape[0]]}
        blocks = {"actual_cmp_seq_kvlen": lengths, "actual_sel_seq_kvlen": torch.stack([lengths[0], lengths[1]])}
        coarse, topk = nsa_onnx.exporters.nsa_compress_attention(
            *(query, compressed, values, 0.25, 4, 16, 16, 16, 2), atten_mask=mask, **tokens, **blocks
        )
        keys = {"actual_seq_kvlen": [key.shape[0] // 2, key.shape[0]]}
        fine = nsa_onnx.exporters.nsa_select_attention(
            *(query, key, value, topk, 0.25, 4, 16, 2), causal=True, **tokens, **keys
        )
        return coarse, topk, fine

    @staticmethod
    def arguments(tokens=40):
        """Two sequences of 4 blocks of one compressed token."""
        query, key, value = randn(tokens, 4, 32), randn(128, 2, 32, seed=1), randn(128, 2, 16, seed=2)
        compressed = randn(8, 2, 32, seed=3), randn(8, 2, 16, seed=4)
        return query, *compressed, key, value, torch.tensor([4, 8]), randn(tokens - 10, 4, seed=5) > 0.5


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*legacy TorchScript", DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


@pytest.mark.parametrize("dynamo", [True, False])
def test_a_layer_with_lengths_of_all_kinds(dynamo, tmp_path):
    names = ["query", "compressed", "values", "key", "value", "lengths", "mask"]
    tokens = torch.export.Dim("tokens", min=35, max=1000)
    shapes = {"query": {0: tokens}, **dict.fromkeys(names[1:6]), "mask": {0: tokens - 10}}
    axes = {"dynamic_axes": {"query": {0: "tokens"}, "mask": {0: "rows"}}}
    options = {"dynamic_shapes": shapes} if dynamo else axes | {"input_names": names}
    model, path = Layer().eval(), tmp_path / "layer.onnx"
    exporters.export(model, Layer.arguments(), path, dynamo=dynamo, verify=[Layer.arguments(64)], **options)
    proto = onnx.load(path)
    first, second = nsa_nodes(proto)
    assert [first.op_type, second.op_type] == ["NsaCompressAttention", "NsaSelectedAttention"]
    assert first.input[6] == "mask"
    assert value_dims(proto, first.output[1])[1:] == [2, 2]
    assert {a.name: onnx.helper.get_attribute_value(a) for a in second.attribute}["causal"] == 1
    for size in (40, 64):
        arguments = Layer.arguments(size)
        got = run_onnx(proto, *arguments)
        assert all(same(a, b) for a, b in zip(got, model(*arguments), strict=True))


class Step(torch.nn.Module):
    """A decode step: the blocks that the compressed tokens of two sequences select, then attention to those."""

    def forward(self, query, compressed, values, key, value, table, lengths):
        compress, select = exporters.nsa_compress_attention_infer, exporters.nsa_select_attention_infer
        sizes = 0.25, 4, 2, 64, 3, 64
        coarse, topk = compress(
            *(query, compressed, values, *sizes, 32, 16), block_table=table, actual_cmp_seq_kvlen=(lengths - 16) // 16
        )
        fine = select(query, key, value, topk, *sizes, block_table=table, actual_seq_kvlen=lengths)
        return coarse, topk, fine

    @staticmethod
    def arguments():
        (query, key, value, *_), keywords = cases.compress_attention_infer()
        return query, key, value, key.flip(0), value.flip(0), keywords["block_table"], torch.tensor([125, 48])


@pytest.mark.parametrize("dynamo", [True, False])
def test_a_decode_step_in_portable_form(dynamo, tmp_path):
    model, path = Step().eval(), tmp_path / "step.onnx"
    exporters.export(model, Step.arguments(), path, dynamo=dynamo, portable=True)
    proto, arguments = onnx.load(path), Step.arguments()
    assert [node.op_type for node in nsa_nodes(proto)] == ["NsaCompressAttentionInfer", "NsaSelectedAttentionInfer"]
    want = model(*arguments)
    assert all(same(a, b) for a, b in zip(run_onnx(proto, *arguments), want, strict=True))
    feeds = {value.name: to_numpy(tensor) for value, tensor in zip(proto.graph.input, arguments, strict=True)}
    for got, result in zip(nsa_models.run_ort(proto, feeds), want, strict=True):  # without our library
        torch.testing.assert_close(torch.from_numpy(got), result, rtol=2e-3, atol=2e-3)


@pytest.fixture
def documented():
    text = (Path(__file__).parents[1] / "docs" / "export.md").read_text("utf-8")
    (code,) = re.findall(r"## A layer with attention.*?```python\n(.*?)```", text, re.DOTALL)
    found = {}
    exec(code, found)
    return found


@pytest.mark.parametrize("dynamo", [True, False])
def test_the_layer_of_the_documentation_serves_batches_of_any_lengths(documented, dynamo, tmp_path):
    def arguments(ends):
        tokens = ends[-1]
        return *(randn(tokens, heads, 64, seed=heads) for heads in (4, 2, 2)), randn(32, 2, seed=5), torch.tensor(ends)

    model, path = documented["Prefill"]().eval(), tmp_path / "prefill.onnx"
    if dynamo:
        tokens, batch = torch.export.Dim("tokens"), torch.export.Dim("batch")
        sizes = {"dynamic_shapes": ({0: tokens}, {0: tokens}, {0: tokens}, None, {0: batch})}
    else:
        names = ["q", "k", "v", "weight", "ends"]
        axes = {"q": {0: "T"}, "k": {0: "T"}, "v": {0: "T"}, "ends": {0: "B"}}
        sizes = {"input_names": names, "dynamic_axes": axes}
    exporters.export(model, arguments([100, 300]), path, dynamo=dynamo, **sizes)
    proto = onnx.load(path)
    for ends in ([100, 300], [20, 110, 250], [5]):
        given = arguments(ends)
        assert all(same(a, b) for a, b in zip(run_onnx(proto, *given), model(*given), strict=True))


@pytest.mark.parametrize("dynamo", [True, False])
def test_the_decode_step_of_the_documentation(documented, dynamo, tmp_path):
    table, compressed = torch.tensor([[3, 1, 0], [2, 5, -1]]).int(), torch.tensor([[2], [1]]).int()
    tokens = randn(6, 64, 2, 64), randn(6, 64, 2, 64, seed=1)
    caches = torch.zeros(192, 2, 64).half(), torch.zeros(192, 2, 64).half()
    slots = torch.tensor([2 * 64 + (176 - 32) // 16, -1]).int()
    arguments = randn(2, 4, 64), *tokens, *caches, randn(32, 2), slots, torch.tensor([176, 20]), table, compressed
    model, path = documented["Decode"]().eval(), tmp_path / "decode.onnx"
    result = exporters.export(model, arguments, path, dynamo=dynamo)
    assert result.mutated == {"ck_out": "ck", "cv_out": "cv"}
    got = run_onnx(onnx.load(path), *(one.clone() for one in arguments))
    want = [*model(*arguments), *caches]  # which are now updated
    assert caches[0][slots[0]].abs().sum() > 0
    assert all(same(a, b) for a, b in zip(got, want, strict=True))
