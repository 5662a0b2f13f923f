"""torch.ops.nsa_onnx: the reference's bits, torch's rules for ops, gradients, and error messages."""

import numpy as np
import oracle
import pytest
import torch
from torch_cases import BLOCK, DIM, DTYPES, HEADS, PAGE, STRIDE, decode_arguments, randn, same, to_numpy

import nsa_onnx
from nsa_onnx import exporters
from nsa_onnx.exporters.operators import OPERATORS

SEQ = [40, 40, 100, 164]  # an empty segment among them
ROWS = 6
OVERLOADS = ("default", "tensor")


def lengths(values, overload):
    return torch.tensor(values) if overload == "tensor" else list(values)


def op(name, overload):
    return getattr(getattr(torch.ops.nsa_onnx, name), overload)


def compress_arguments(dtype=torch.float16, **options):
    x, w = randn(SEQ[-1], HEADS, DIM, dtype=dtype), randn(BLOCK, HEADS, dtype=dtype, seed=1)
    return tuple(tensor.requires_grad_(**options) if options else tensor for tensor in (x, w))


def infer_call(dtype=torch.float16, overload="default", values=(64, 80)):
    x, slots, table, cache = decode_arguments(dtype)
    w = randn(BLOCK, HEADS, dtype=dtype, seed=2)
    keywords = {"block_table": table, "actual_seq_len": lengths(values, overload), "cache": cache}
    return (x, w, slots, BLOCK, STRIDE, PAGE), keywords


def infer_oracle(args, keywords):
    x, w, slots, *sizes = (to_numpy(a) if isinstance(a, torch.Tensor) else a for a in args)
    table = to_numpy(keywords["block_table"])
    return oracle.infer_exact(x, w, slots, *sizes, table, list(keywords["actual_seq_len"]), to_numpy(keywords["cache"]))


# --------------------------------------------------------------------------------------------------
# Values


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compress_gives_the_oracles_bits(dtype, overload):
    x, w = compress_arguments(dtype)
    y = op("nsa_compress", overload)(x, w, BLOCK, STRIDE, actual_seq_len=lengths(SEQ, overload))
    assert y.shape == (ROWS, HEADS, DIM)
    assert same(y, oracle.compress_exact(to_numpy(x), to_numpy(w), BLOCK, STRIDE, SEQ))


def test_compress_takes_any_strides():
    x, w = compress_arguments()
    strange_x = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strange_w = torch.cat([w, w])[::2].flip(0).flip(0)[:BLOCK]
    dense_w = strange_w.contiguous()
    y = torch.ops.nsa_onnx.nsa_compress(strange_x, strange_w, BLOCK, STRIDE, actual_seq_len=SEQ)
    assert same(y, torch.ops.nsa_onnx.nsa_compress(x, dense_w, BLOCK, STRIDE, actual_seq_len=SEQ))


@pytest.mark.parametrize("overload", OVERLOADS)
def test_a_sequence_shorter_than_a_window_gives_no_row(overload):
    x = randn(20, HEADS, DIM)
    y = exporters.nsa_compress(x, randn(BLOCK, HEADS), BLOCK, STRIDE, actual_seq_len=lengths([20], overload))
    assert y.shape == (0, HEADS, DIM)


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infer_as_a_function_leaves_its_cache_alone(dtype, overload):
    args, keywords = infer_call(dtype, overload)
    before = keywords["cache"].clone()
    new = op("nsa_compress_infer", overload)(*args, **keywords)
    assert same(new, infer_oracle(args, keywords))
    assert not same(new, before)
    assert same(keywords["cache"], before)


@pytest.mark.parametrize("overload", OVERLOADS)
def test_infer_in_place_returns_the_updated_cache_itself(overload):
    args, keywords = infer_call(overload=overload)
    expected = infer_oracle(args, keywords)
    cache = keywords["cache"]
    version = cache._version
    assert op("nsa_compress_infer_", overload)(*args, **keywords) is cache
    assert same(cache, expected)
    assert cache._version > version


def test_only_the_written_slots_of_a_strided_cache_are_touched():
    args, keywords = infer_call(values=(64, 81))  # only the first sequence writes
    expected = infer_oracle(args, keywords)
    big = torch.full((5, 3, HEADS, DIM), torch.nan, dtype=torch.float16)
    big[:, 1] = keywords["cache"]
    before = big.clone()
    torch.ops.nsa_onnx.nsa_compress_infer_(*args, **{**keywords, "cache": big[:, 1]})
    assert same(big[:, 1], expected)
    changed = (big.view(torch.uint16) != before.view(torch.uint16)).flatten(2).any(-1).nonzero().tolist()
    assert changed == [[3, 1]]


@pytest.mark.parametrize("strided", [False, True])
def test_a_bad_index_leaves_the_cache_as_it_was(strided):
    args, keywords = infer_call()
    keywords["block_table"][1, 0] = 7  # the second sequence's: the first one is fine
    cache = torch.stack([keywords["cache"]] * 2, 1)[:, 0] if strided else keywords["cache"]
    before = cache.clone()
    with pytest.raises(RuntimeError, match=r"block_table\[1, 0\] must be in \[0, 4\), got 7"):
        exporters.nsa_compress_infer(*args, **{**keywords, "cache": cache})
    assert same(cache, before)


@pytest.mark.parametrize("view", [False, True])
def test_a_leaf_that_wants_a_gradient_is_refused_before_it_changes(view):
    args, keywords = infer_call()
    before = keywords["cache"].clone()
    leaf = keywords["cache"].requires_grad_()
    with pytest.raises(RuntimeError, match="cache must not be a leaf tensor that requires a gradient"):
        exporters.nsa_compress_infer(*args, **{**keywords, "cache": leaf[:] if view else leaf})
    assert same(leaf.detach(), before)
    with torch.no_grad():
        exporters.nsa_compress_infer(*args, **keywords)
    assert not same(leaf.detach(), before)


def test_a_cache_that_overlaps_itself_is_refused():
    args, keywords = infer_call()
    cache = keywords["cache"][:1].clone()
    before = cache.clone()
    with pytest.raises(RuntimeError, match=r"cache must not overlap itself: .* got strides \(0, "):
        exporters.nsa_compress_infer(*args, **{**keywords, "cache": cache.expand(5, -1, -1)})
    assert same(cache, before)


def test_a_cache_in_the_memory_of_the_pages_is_refused():
    args, keywords = infer_call()
    pages, cache = args[0].clone(), keywords["cache"]
    inside = pages.view(-1)[: cache.numel()].view(cache.shape)
    with pytest.raises(RuntimeError, match=r"cache must not overlap input: .* got views of the same memory"):
        exporters.nsa_compress_infer(pages, *args[1:], **{**keywords, "cache": inside})
    assert same(pages, args[0])


@pytest.mark.parametrize("name", ["weight", "slot_mapping", "block_table", "actual_seq_len", "cache"])
def test_tensors_on_different_devices_are_refused(name):
    """torch runs the fake kernel if one tensor is a meta tensor: its result would be memory that nobody wrote."""
    (x, w, slots, *sizes), keywords = infer_call(overload="tensor")
    call = {"weight": w, "slot_mapping": slots, **keywords}
    call[name] = call[name].to("meta")
    with pytest.raises(RuntimeError, match=f"{name} must be on the device of input, cpu, got meta"):
        exporters.nsa_compress_infer(x, call.pop("weight"), call.pop("slot_mapping"), *sizes, **call)
    if name == "weight":
        with pytest.raises(RuntimeError, match="weight must be on the device of input, cpu, got meta"):
            exporters.nsa_compress(x[:, 0], w.to("meta"), BLOCK, STRIDE, actual_seq_len=[len(x)])


def test_the_eager_calls_go_through_the_ops():
    x, w = compress_arguments(requires_grad=True)
    assert nsa_onnx.nsa_compress(x, w, np.int64(BLOCK), STRIDE, actual_seq_len=SEQ).requires_grad
    args, keywords = infer_call()
    assert nsa_onnx.nsa_compress_infer(*args, **keywords) is keywords["cache"]
    assert isinstance(nsa_onnx.nsa_compress(to_numpy(x), to_numpy(w), BLOCK, STRIDE, actual_seq_len=SEQ), np.ndarray)


def test_every_operator_has_its_torch_side_and_its_public_function():
    assert [operator.node for operator in OPERATORS] == list(nsa_onnx.operators.OPERATORS.values())
    assert {operator.name: operator.function for operator in OPERATORS}.items() <= vars(exporters).items()
    assert {operator.name for operator in OPERATORS} <= set(exporters.__all__)


# --------------------------------------------------------------------------------------------------
# torch's rules


def opcheck(name, overload, args, keywords):
    torch.library.opcheck(op(name, overload), args, keywords)


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_compress(overload, requires_grad):
    x, w = compress_arguments(requires_grad=requires_grad)
    opcheck("nsa_compress", overload, (x, w, BLOCK, STRIDE), {"actual_seq_len": lengths(SEQ, overload)})


@pytest.mark.parametrize("overload", OVERLOADS)
def test_opcheck_gradient_ops(overload):
    x, w = compress_arguments(torch.bfloat16, requires_grad=True)
    grad = randn(ROWS, HEADS, DIM, dtype=torch.bfloat16, seed=3).requires_grad_()
    seq = {"actual_seq_len": lengths(SEQ, overload)}
    opcheck("nsa_compress_grad_input", overload, (grad, w, BLOCK, STRIDE, SEQ[-1]), seq)
    opcheck("nsa_compress_grad_weight", overload, (grad, x, BLOCK, STRIDE), seq)


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("name", ["nsa_compress_infer", "nsa_compress_infer_"])
def test_opcheck_infer(name, overload):
    args, keywords = infer_call(torch.bfloat16, overload)
    opcheck(name, overload, args, keywords)


# --------------------------------------------------------------------------------------------------
# Gradients


def reference(x, w):
    """NsaCompress in float64, differentiable."""
    starts = oracle.window_starts(SEQ, BLOCK, STRIDE)
    return torch.stack([(x[s : s + BLOCK] * w[:, :, None]).sum(0) for s in starts])


def gradients(function, x, w, grad, second):
    """First derivatives, and those of a number made of them."""
    x, w, grad = (tensor.detach().clone().requires_grad_() for tensor in (x, w, grad))
    first = torch.autograd.grad(function(x, w), (x, w), grad, create_graph=True)
    mixed = (first[0] * second[0]).sum() + (first[1] * second[1]).sum()
    return *first, *torch.autograd.grad(mixed, (x, w, grad))


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_both_orders_match_float64(dtype, overload):
    x, w = compress_arguments(dtype)
    grad, second = randn(ROWS, HEADS, DIM, dtype=dtype, seed=3), compress_arguments(dtype)

    def compress(x, w):
        return exporters.nsa_compress(x, w, BLOCK, STRIDE, actual_seq_len=lengths(SEQ, overload))

    got = gradients(compress, x, w, grad, second)
    doubles = [tensor.double() for tensor in (x, w, grad)]
    want = gradients(reference, *doubles, [tensor.double() for tensor in second])
    half_ulp = torch.finfo(dtype).eps / 2
    # Of the first order only the result is rounded to 16 bits. Before the second, the first one is.
    for g, r in zip(got[:2], want[:2], strict=True):
        assert g.dtype == dtype
        torch.testing.assert_close(g.double(), r, rtol=1.01 * half_ulp, atol=1e-5)
    for g, r in zip(got[2:], want[2:], strict=True):
        torch.testing.assert_close(g.double(), r, rtol=4 * half_ulp, atol=8 * half_ulp * r.abs().max().item())


def test_only_the_asked_for_gradient_is_computed():
    for wanted in (0, 1):
        x, w = compress_arguments()
        (x, w)[wanted].requires_grad_()
        nsa_onnx.nsa_compress(x, w, BLOCK, STRIDE, actual_seq_len=SEQ).sum().backward()
        assert [tensor.grad is not None for tensor in (x, w)] == [wanted == 0, wanted == 1]


@pytest.mark.parametrize("overload", OVERLOADS)
def test_compiled_gradients_are_eagers(overload):
    x, w = compress_arguments(requires_grad=True)
    seq = lengths(SEQ, overload)

    def loss(x, w):
        return exporters.nsa_compress(x, w, BLOCK, STRIDE, actual_seq_len=seq).float().square().sum()

    want = torch.autograd.grad(loss(x, w), (x, w))
    got = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(x, w), (x, w))
    assert all(same(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("overload", OVERLOADS)
@pytest.mark.parametrize("name", ["nsa_compress_infer", "nsa_compress_infer_"])
@pytest.mark.parametrize("which", ["input", "weight", "cache"])
def test_a_backward_through_a_decode_step_raises(name, overload, which):
    args, keywords = infer_call(overload=overload)
    leaf = {"input": args[0], "weight": args[1], "cache": keywords["cache"]}[which].requires_grad_()
    if which == "cache":
        keywords["cache"] = leaf * 1  # torch forbids updating a leaf in place
    cache = op(name, overload)(*args, **keywords)
    assert cache.requires_grad
    with pytest.raises(NotImplementedError, match=r"has no gradient.*torch\.no_grad"):
        cache.sum().backward()


# --------------------------------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": randn(SEQ[-1], HEADS, DIM).float()}, TypeError, "weight must have the dtype of input, float32"),
        ({"weight": randn(BLOCK, HEADS, 1)}, RuntimeError, "weight must have rank 2"),
        ({"compress_block_size": 24}, RuntimeError, r"weight.shape\[0\] must equal compress_block_size = 24"),
        ({"compress_stride": 48}, RuntimeError, r"compress_stride must be in \[16, compress_block_size = 32\], got 48"),
        ({"actual_seq_len": [40, 39, 164]}, RuntimeError, r"actual_seq_len\[1\] must be >= .* 40, got 39"),
        ({"actual_seq_len": []}, RuntimeError, "actual_seq_len must have at least 1 element"),
        ({"actual_seq_len": torch.tensor([163])}, RuntimeError, "must equal T = 164, got 163"),
        ({"actual_seq_len": torch.tensor([164], dtype=torch.int32)}, TypeError, "must be int64, got int32"),
        ({"actual_seq_len": torch.tensor(164)}, RuntimeError, r"must have rank 1 \[B\], got rank 0"),
        ({"actual_seq_len": None}, TypeError, "tuple or list of ints, got NoneType"),
        ({"actual_seq_len": [164.0]}, TypeError, "tuple or list of ints, got float at index 0"),
    ],
)
@pytest.mark.parametrize("fake", [False, True])
def test_compress_refuses_what_the_contract_refuses(change, error, message, fake):
    x, w = compress_arguments()
    call = {"input": x, "weight": w, "compress_block_size": BLOCK, "compress_stride": STRIDE, "actual_seq_len": SEQ}
    call |= change
    if fake and isinstance(change.get("actual_seq_len"), torch.Tensor) and "T =" in message:
        return  # the data of a fake tensor is not known
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with mode if fake else torch.no_grad(), pytest.raises(error, match=message):
        exporters.nsa_compress(**call)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"slot_mapping": torch.zeros(2, dtype=torch.int64)}, TypeError, "slot_mapping must be int32, got int64"),
        ({"page_block_size": 32}, RuntimeError, "page_block_size must be 64 or 128, got 32"),
        ({"actual_seq_len": [64]}, RuntimeError, "actual_seq_len must have B = 2 elements, got 1"),
        ({"actual_seq_len": torch.tensor([64])}, RuntimeError, "actual_seq_len must have B = 2 elements, got 1"),
        ({"cache": randn(5, HEADS, 32)}, RuntimeError, r"cache.shape\[2\] must equal D = 16, got 32"),
        ({"actual_seq_len": None}, TypeError, "tuple or list of ints, got NoneType"),
    ],
)
@pytest.mark.parametrize("fake", [False, True])
def test_infer_refuses_what_the_contract_refuses(change, error, message, fake):
    args, keywords = infer_call()
    names = ("input", "weight", "slot_mapping", "compress_block_size", "compress_stride", "page_block_size")
    call = dict(zip(names, args, strict=True)) | keywords | change
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with mode if fake else torch.no_grad(), pytest.raises(error, match=message):
        exporters.nsa_compress_infer(**call)
