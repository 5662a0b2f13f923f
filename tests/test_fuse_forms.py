"""nsa-onnx fuse on forms that people write: pooling of windows, a position bias, and what cannot be the operator."""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnx.parser
import oracle
import pytest
import torch
from fuse_models import (
    BFLOAT16,
    BLOCK,
    DIM,
    EXPORTERS,
    HALF,
    HEADS,
    STRIDE,
    data,
    export,
    fused_to_one_node,
    op_types,
    run,
)
from onnx import numpy_helper
from torch.nn import functional

import nsa_onnx
from nsa_onnx.analysis import analyse
from nsa_onnx.cli import main
from nsa_onnx.fuse import candidates, fuse, rewrite
from nsa_onnx.fuse.compare import compare
from nsa_onnx.recognise.graph import rebuilt
from nsa_onnx.recognise.search import Search

TOKENS = 128
STARTS = torch.arange(0, TOKENS - BLOCK + 1, STRIDE)
INDICES = STARTS[:, None] + torch.arange(BLOCK)


class Form(torch.nn.Module):
    """A function as a module; what it is given here are its parameters."""

    def __init__(self, function, *parameters):
        super().__init__()
        self.function = function
        self.constants = torch.nn.ParameterList([torch.nn.Parameter(p) for p in parameters])

    def forward(self, *inputs):
        return self.function(*inputs, *self.constants)


def tokens(dtype=HALF, shape=(TOKENS, HEADS, DIM)):
    return np.random.default_rng(11).standard_normal(shape).astype(np.float32).astype(dtype)


def tensor(array):
    torch_types = {HALF: torch.float16, BFLOAT16: torch.bfloat16}
    return torch.from_numpy(array.astype(np.float32)).to(torch_types.get(array.dtype, torch.float32))


def exported(function, dynamo, *inputs, parameters=()):
    return export(Form(function, *map(tensor, parameters)), dynamo, inputs=tuple(map(tensor, inputs)))


# --------------------------------------------------------------------------------------------------
# Pooling: every token counts 1 / block


def in_blocks(x):
    return x.view(TOKENS // BLOCK, BLOCK, HEADS, DIM).mean(1)


def of_indices(x):
    return x[INDICES].mean(1)


def unfolded(x):
    return x.unfold(0, BLOCK, STRIDE).mean(-1)


def average_pool(x):
    channels = x.reshape(TOKENS, HEADS * DIM).t()[None]
    return functional.avg_pool1d(channels, BLOCK, STRIDE)[0].t().reshape(-1, HEADS, DIM)


def divided(x):
    return (x.float()[INDICES].sum(1) / BLOCK).to(x.dtype)


def scaled_after(x):
    return (x.float()[INDICES].sum(1) * (1 / BLOCK)).to(x.dtype)


def scaled_before(x):
    return (x.float()[INDICES] * (1 / BLOCK)).sum(1).to(x.dtype)


def in_float32(x):
    return x.float().unfold(0, BLOCK, STRIDE).mean(-1).to(x.dtype)


@EXPORTERS
@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
@pytest.mark.parametrize(
    "form", [in_blocks, of_indices, unfolded, average_pool, divided, scaled_after, scaled_before, in_float32]
)
def test_pooling_is_the_node_with_equal_weights(form, dtype, dynamo):
    x = tokens(dtype)
    model = exported(form, dynamo, x)
    result = fused_to_one_node(model)
    stride = BLOCK if form is in_blocks else STRIDE
    assert (result.fused[0].compress_block_size, result.fused[0].compress_stride) == (BLOCK, stride)
    weight = np.full((BLOCK, HEADS), 1 / BLOCK, np.float32).astype(dtype)
    (got,) = run(result.model, x=x)
    assert oracle.same_bits(got, oracle.compress_exact(x, weight, BLOCK, stride, (TOKENS,)))
    if dtype == HALF:  # torch's own mean: another order of the same float32 sum
        assert oracle.ulp_distance(got, form(torch.from_numpy(x)).numpy()) <= 1


@EXPORTERS
@pytest.mark.parametrize("blocks", [lambda x: x.shape[0] // BLOCK, lambda x: -1], ids=["divided", "-1"])
def test_blocks_of_a_sequence_of_any_length_are_pooled(blocks, dynamo):
    form = Form(lambda x: x.view(blocks(x), BLOCK, HEADS, DIM).mean(1))
    example = torch.from_numpy(tokens())
    if dynamo:
        shapes = {"inputs": ({0: BLOCK * torch.export.Dim("blocks", min=2, max=64)},)}
        model = torch.onnx.export(form, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False).model_proto
    else:
        model = export(form, False, inputs=(example,), dynamic=True)
    result = fuse(model)
    assert op_types(result.model)[-3:] == ["Shape", "Gather", "NsaCompress"]
    for count in (64, 160):
        x = tokens(shape=(count, HEADS, DIM))
        weight = np.full((BLOCK, HEADS), 1 / BLOCK, np.float16)
        (got,) = run(result.model, **{result.model.graph.input[0].name: x})
        assert oracle.same_bits(got, oracle.compress_exact(x, weight, BLOCK, BLOCK, (count,)))


@EXPORTERS
def test_each_part_of_a_batch_is_a_segment_and_keeps_its_own_windows(dynamo):
    x = tokens(shape=(3, TOKENS, HEADS, DIM))
    model = exported(lambda x: x.view(3, TOKENS // BLOCK, BLOCK, HEADS, DIM).mean(dim=2), dynamo, x)
    result = fuse(model)
    assert op_types(result.model) == ["Reshape", "NsaCompress", "Reshape"]
    weight = np.full((BLOCK, HEADS), 1 / BLOCK, np.float16)
    want = oracle.compress_exact(x.reshape(-1, HEADS, DIM), weight, BLOCK, BLOCK, (3 * TOKENS,))
    assert oracle.same_bits(run(result.model, x=x)[0], want.reshape(3, -1, HEADS, DIM))


@EXPORTERS
@pytest.mark.parametrize(("channels", "heads"), [(64, 1), (512, 2)])
def test_tokens_without_heads_are_pooled_too(channels, heads, dynamo):
    x = tokens(shape=(2, TOKENS, channels))
    model = exported(lambda x: x.view(2, TOKENS // BLOCK, BLOCK, channels).mean(dim=2), dynamo, x)
    result = fuse(model)
    assert op_types(result.model) == ["Reshape", "NsaCompress", "Reshape"]
    weight = np.full((BLOCK, heads), 1 / BLOCK, np.float16)
    want = oracle.compress_exact(x.reshape(-1, heads, channels // heads), weight, BLOCK, BLOCK, (2 * TOKENS,))
    assert oracle.same_bits(run(result.model, x=x)[0], want.reshape(2, -1, channels))


@EXPORTERS
def test_a_result_with_the_heads_first_is_transposed_back(dynamo):
    x = tokens()
    model = exported(lambda x: x.transpose(0, 1).unfold(1, BLOCK, STRIDE).mean(-1), dynamo, x)
    result = fuse(model)
    assert op_types(result.model) == ["NsaCompress", "Reshape", "Transpose"]
    weight = np.full((BLOCK, HEADS), 1 / BLOCK, np.float16)
    want = oracle.compress_exact(x, weight, BLOCK, STRIDE, (TOKENS,))
    assert oracle.same_bits(run(result.model, x=x)[0], want.transpose(1, 0, 2))


def test_a_result_that_others_read_before_it_is_transposed_is_replaced_itself():
    x = tokens()
    model = exported(lambda x: (of_indices(x).transpose(0, 1), of_indices(x) + 1), False, x)
    result = fuse(model)
    assert [candidate.reason for candidate in result.left] == []
    assert "ReduceMean" not in op_types(result.model)


def test_a_sum_that_is_rounded_before_it_is_divided_keeps_its_division():
    """In float16 the sum is rounded, and may overflow, before the division: a weight of 1, and the Div stays."""
    x = tokens()
    model = exported(lambda x: x[INDICES].sum(1) / BLOCK, False, x)
    result = fuse(model)
    assert sorted(op_types(result.model)) == ["Constant", "Div", "NsaCompress"]
    (weight,) = (numpy_helper.to_array(t) for t in result.model.graph.initializer if t.data_type == 10 and t.dims)
    assert (weight == 1).all()
    x = np.full_like(x, 4096)
    assert np.isinf(run(result.model, x=x)[0]).all()


def test_a_block_that_is_no_power_of_two_rounds_the_weight():
    x = tokens(shape=(144, HEADS, DIM))
    model = exported(lambda x: x.view(3, 48, HEADS, DIM).mean(1), False, x)
    (left,) = fuse(model).left
    assert left.reason == "the weight 1/48 is not a float16 value and is rounded: --allow-rounding accepts that"
    result = fused_to_one_node(model, allow_rounding=True)
    weight = np.full((48, HEADS), 1 / 48, np.float16)
    assert oracle.same_bits(run(result.model, x=x)[0], oracle.compress_exact(x, weight, 48, 48, (144,)))


@EXPORTERS
def test_the_mean_of_weighted_windows_has_the_weights_divided(dynamo):
    x = tokens()
    _, w = data()
    model = exported(
        lambda x, w: (x.float()[INDICES] * w.float()[None, :, :, None]).mean(1).half(), dynamo, x, parameters=[w]
    )
    result = fused_to_one_node(model)
    assert oracle.same_bits(
        run(result.model, x=x)[0], oracle.compress_exact(x, w / np.float16(BLOCK), BLOCK, STRIDE, (TOKENS,))
    )
    small = np.full_like(w, 2.0**-20)  # divided by 32 it is not a float16 any more
    model = exported(
        lambda x, w: (x.float()[INDICES] * w.float()[None, :, :, None]).mean(1).half(), dynamo, x, parameters=[small]
    )
    (left,) = fuse(model).left
    assert left.reason.startswith("the weight times 1/32 is not made of float16 values and is rounded")


def test_a_weight_that_is_an_input_is_divided_when_the_model_runs():
    x, (_, w) = tokens(), data()
    model = exported(lambda x, w: (x.float()[INDICES] * w.float()[None, :, :, None]).mean(1).half(), False, x, w)
    (left,) = fuse(model).left
    assert left.reason.startswith("the weight is no constant of the file, and times 1/32 it may have to be rounded")
    result = fuse(model, allow_rounding=True)
    assert op_types(result.model) == ["Mul", "NsaCompress"]
    want = oracle.compress_exact(x, w / np.float16(BLOCK), BLOCK, STRIDE, (TOKENS,))
    assert oracle.same_bits(run(result.model, x=x, w=w)[0], want)


# --------------------------------------------------------------------------------------------------
# A position bias inside the window


def near(got, x, w, bias, stride=STRIDE):
    """Two roundings to float16 beside the sum of (x + bias) * w in float64."""
    starts = range(0, TOKENS - BLOCK + 1, stride)
    windows = np.stack([x[start : start + BLOCK] for start in starts]).astype(np.float64)
    want = ((windows + bias) * w[:, :, None].astype(np.float64)).sum(1)
    return np.all(np.abs(got.astype(np.float64) - want) <= 2.0**-10 * np.abs(want) + 2.0**-9)


@EXPORTERS
@pytest.mark.parametrize("wide", [True, False], ids=["float32", "float16"])
def test_a_position_bias_becomes_an_addition_after_the_node(wide, dynamo):
    x, (_, w) = tokens(), data()
    bias = tokens(shape=(BLOCK, HEADS, DIM))

    def form(x, w, bias):
        x, w, bias = (x.float(), w.float(), bias.float()) if wide else (x, w, bias)
        return ((x[INDICES] + bias) * w[None, :, :, None]).sum(1).half()

    model = exported(form, dynamo, x, parameters=[w, bias])
    (left,) = fuse(model).left
    assert left.reason.startswith("a position bias is added to the tokens: NsaCompress(x) + sum(bias * weight)")
    result = fuse(model, allow_rounding=True)
    assert not result.left
    assert op_types(result.model).count("NsaCompress") == 1
    assert (result.fused[0].compress_block_size, result.fused[0].compress_stride) == (BLOCK, STRIDE)
    assert not any(op in op_types(result.model) for op in ("GatherND", "Concat", "Split"))  # no windows are made
    (got,) = run(result.model, x=x)
    assert near(got, x, w, bias)
    assert got.shape == form(torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(bias)).shape


@EXPORTERS
def test_a_bias_for_all_heads_with_a_mean_of_windows_from_rolled_blocks(dynamo):
    """Windows put together from shifted halves, one bias and one weight for all heads, and a mean."""
    x, w = tokens(shape=(1, TOKENS, HEADS, DIM)), data(heads=1)[1][:, 0]
    bias = tokens(shape=(BLOCK, DIM))

    def form(x, w, bias):
        x = x.transpose(1, 2)
        count = (TOKENS - BLOCK) // STRIDE + 1
        halves = [
            torch.roll(x, -STRIDE * k, 2)[:, :, : count * STRIDE].reshape(1, HEADS, count, STRIDE, DIM) for k in (0, 1)
        ]
        windows = torch.cat(halves, 3) + bias
        return (windows * w[:, None]).mean(-2).transpose(1, 2)

    model = exported(form, dynamo, x, parameters=[w, bias])
    assert "a position bias" in fuse(model).left[0].reason
    result = fuse(model, allow_rounding=True)
    assert [(one.compress_block_size, one.compress_stride) for one in result.fused] == [(BLOCK, STRIDE)]
    scaled = np.repeat((w / np.float16(BLOCK))[:, None], HEADS, 1)
    assert near(run(result.model, x=x)[0][0], x[0], scaled, bias[:, None, :])


def test_a_bias_that_depends_on_the_window_stays():
    x, (_, w) = tokens(), data()
    bias = tokens(shape=(len(STARTS), BLOCK, HEADS, DIM))
    model = exported(
        lambda x, w, bias: ((x[INDICES] + bias) * w[None, :, :, None]).sum(1), False, x, parameters=[w, bias]
    )
    result = fuse(model, allow_rounding=True)
    assert not result.fused
    assert "the position bias depends on the window" in result.left[0].reason


def test_what_is_added_to_all_tokens_before_the_windows_is_not_taken_apart():
    x, (_, w) = tokens(), data()
    model = exported(
        lambda x, w, bias: ((x + bias).float()[INDICES] * w.float()[None, :, :, None]).sum(1).half(),
        False,
        x,
        parameters=[w, tokens(shape=(TOKENS, 1, 1))],
    )
    assert op_types(fuse(model).model) == ["Add", "NsaCompress"]


# --------------------------------------------------------------------------------------------------
# What it cannot be, said so that one can act on it


def one_reason(model, allow_rounding=False):
    result = fuse(model, allow_rounding=allow_rounding)
    assert not result.fused, result.fused
    reasons = {candidate.reason for candidate in result.left}
    assert len(reasons) == 1, reasons
    return reasons.pop()


@EXPORTERS
def test_a_stride_of_8_is_named_and_not_fused_over_copied_windows(dynamo):
    starts = torch.arange(0, TOKENS - BLOCK + 1, 8)[:, None] + torch.arange(BLOCK)
    x, (_, w) = tokens(), data()
    for form in (
        lambda x, w: (x.float()[starts] * w.float()[None, :, :, None]).sum(1).half(),
        lambda x, w: torch.einsum("indj,jn->ind", x.float().unfold(0, BLOCK, 8), w.float()).half(),
        lambda x, w: x[starts].mean(1) + 0 * w[0, 0],
    ):
        reason = one_reason(exported(form, dynamo, x, w), allow_rounding=True)
        assert reason == "compress_stride must be a multiple of 16, got 8"


@EXPORTERS
def test_a_block_of_8_is_named(dynamo):
    x = tokens()
    reason = one_reason(exported(lambda x: x.view(16, 8, HEADS, DIM).mean(1), dynamo, x))
    assert reason == "compress_block_size must be a multiple of 16, got 8"


@EXPORTERS
def test_a_model_in_float32_is_named(dynamo):
    reason = one_reason(exported(in_blocks, dynamo, tokens(np.dtype(np.float32))))
    assert reason.startswith("input must be float16 or bfloat16, got float32")


DENSE = "a dense projection over the window, not one weight per token and head"


@EXPORTERS
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_that_mixes_channels_is_called_dense(bias, dynamo):
    conv = torch.nn.Conv1d(HEADS * DIM, HEADS * DIM, BLOCK, STRIDE, groups=HEADS, bias=bias).half()

    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv

        def forward(self, x):
            return self.conv(x.reshape(TOKENS, HEADS * DIM).t()[None])[0].t().reshape(-1, HEADS, DIM)

    model = export(Mixing(), dynamo, inputs=(torch.from_numpy(tokens()),))
    assert one_reason(model) == DENSE


@EXPORTERS
def test_a_projection_of_windows_is_called_dense(dynamo):
    x, w = tokens(), tokens(shape=(HEADS, BLOCK, DIM, DIM))
    model = exported(
        lambda x, w: torch.einsum("injd,njde->ine", x[INDICES].transpose(1, 2), w), dynamo, x, parameters=[w]
    )
    assert one_reason(model) == DENSE


def test_means_of_something_else_are_no_candidates():
    x = torch.randn(8, 64, 128).half()

    def normal(x):
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).half()

    for form in (
        normal,
        lambda x: functional.layer_norm(x, (128,)),
        lambda x: x.mean(1),  # a classifier's pooling: the whole sequence
        lambda x: x.mean(-1),
        lambda x: x.sum((1, 2)),
        lambda x: x.reshape(8, 64, 2, 64).mean(2),  # a few tokens at a time
        lambda x: functional.adaptive_avg_pool2d(x.reshape(1, 64, 32, 32), 1),
        lambda x: functional.avg_pool2d(x.reshape(1, 64, 32, 32), 4),
    ):
        assert candidates(export(Form(form), False, inputs=(x,)), allow_rounding=True) == ()


def test_the_checker_warns_of_pooling_too():
    report = nsa_onnx.check(exported(in_blocks, False, tokens()))
    assert [finding.rule for finding in report.findings] == ["NSA028"]


# --------------------------------------------------------------------------------------------------
# Cost, and hostile files


def parsed(body, constants=(), x="float16[128, 2, 16]"):
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 18]>
        g ({x} x) => (float16[R, 2, 16] y) {{ {body} }}""")
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants)
    return model


BLOCKS = ("shape", np.array([4, 32, 2, 16]))
AXIS = ("one", np.array([1]))


def hostile():
    pool = "c = Reshape (x, wide)\n p = AveragePool <{}> (c)\n y = Reshape (p, narrow)"
    shapes = [("wide", np.array([1, 32, 128])), ("narrow", np.array([-1, 2, 16]))]
    for name, attributes in {
        "a huge kernel": "kernel_shape = [4611686018427387904]",
        "a kernel of none": "kernel_shape = [0]",
        "no kernel": "ceil_mode = 0",
        "negative strides": "kernel_shape = [32], strides = [-32]",
        "huge dilations": "kernel_shape = [32], dilations = [4611686018427387904]",
        "two kernels": "kernel_shape = [32, 32]",
    }.items():
        yield name, parsed(pool.format(attributes), shapes)
    yield "axes out of range", parsed("y = ReduceMean <keepdims = 0> (x, nine)", [("nine", np.array([9]))])
    yield (
        "a mean of nothing",
        parsed("y = ReduceMean <keepdims = 0> (x, one)", [AXIS], x="float16[128, 0, 2, 16]"),
    )
    chain = "\n".join(f"s{k + 1} = Mul (s{k}, third)" for k in range(5000))
    body = f"s0 = Reshape (x, shape)\n {chain}\n y = ReduceMean <keepdims = 0> (s5000, one)"
    yield "thousands of constants", parsed(body, [BLOCKS, AXIS, ("third", np.float16(1 / 3))])
    for name, number in (("infinity", np.inf), ("nan", np.nan), ("zero", 0)):
        body = "s = Reshape (x, shape)\n m = Mul (s, c)\n y = ReduceMean <keepdims = 0> (m, one)"
        yield f"times {name}", parsed(body, [BLOCKS, AXIS, ("c", np.float16(number))])
    body = "s = Reshape (x, shape)\n m = Div (s, c)\n y = ReduceMean <keepdims = 0> (m, one)"
    yield "divided by zero", parsed(body, [BLOCKS, AXIS, ("c", np.float16(0))])
    adds = "\n".join(f"a{k + 1} = Add (a{k}, pe)" for k in range(2000))
    body = f"a0 = Reshape (x, shape)\n {adds}\n y = ReduceMean <keepdims = 0> (a2000, one)"
    yield "thousands of biases", parsed(body, [BLOCKS, AXIS, ("pe", np.zeros((32, 2, 16), np.float16))])
    doubled = "\n".join(f"d{k + 1} = Add (d{k}, d{k})" for k in range(2000))
    body = f"d0 = Reshape (x, shape)\n {doubled}\n y = ReduceMean <keepdims = 0> (d2000, one)"
    yield "doubled again and again", parsed(body, [BLOCKS, AXIS])
    body = "z = ReduceSum <keepdims = 0> (x, one)\n s = Add (x, y)\n y = ReduceMean <keepdims = 0> (s, one)"
    yield "a cycle", parsed(body, [AXIS])
    scatter = 's = ScatterElements <axis = 0, reduction = "add"> (zeros, at, at)\n c = CumSum (s, zero)\n'
    body = scatter + "w = Gather <axis = 0> (x, c)\n y = ReduceMean <keepdims = 0> (w, one)"
    far = [("zeros", np.zeros(4, np.int64)), ("at", np.array([2**62, 1])), ("zero", np.array(0)), AXIS]
    yield "indices far outside", parsed(body, far)

    for op_type in ("ReduceMean", "AveragePool", "MatMul", "Conv", "Einsum", "Mul"):
        for around in ("Gather", "Cast", "Identity", "Concat", "Mul", "Div", "Add"):
            model = parsed(f"s = Reshape (x, shape)\n z = {around} (s, s)\n y = {op_type} (z, z)", [BLOCKS])
            del model.graph.node[1].input[1:]
            yield f"{op_type} of {around} with one input", model
            model = onnx.ModelProto.FromString(model.SerializeToString())
            del model.graph.node[1].input[:]
            yield f"{op_type} of {around} without inputs", model
            model = onnx.ModelProto.FromString(model.SerializeToString())
            del model.graph.node[2].input[:]
            yield f"{op_type} without inputs after {around}", model


@pytest.mark.parametrize(("name", "model"), list(hostile()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_hostile_model_is_neither_fused_nor_costly(name, model):
    started = time.process_time()
    assert not fuse(model, allow_rounding=True).fused
    assert time.process_time() - started < 10


def layers(count):
    """Normalisation and attention, as often as wanted: 21 nodes, and nothing that is the operator."""
    layer = """
        m{0} = ReduceMean (x{0}, last)
        d{0} = Sub (x{0}, m{0})
        p{0} = Mul (d{0}, d{0})
        v{0} = ReduceMean (p{0}, last)
        s{0} = Sqrt (v{0})
        n{0} = Div (d{0}, s{0})
        g{0} = Mul (n{0}, gain)
        l{0} = MatMul (g{0}, square)
        b{0} = Add (l{0}, gain)
        r{0} = Reshape (b{0}, heads)
        q{0} = Transpose <perm = [0, 2, 1, 3]> (r{0})
        t{0} = Transpose <perm = [0, 1, 3, 2]> (q{0})
        c{0} = Mul (q{0}, quarter)
        a{0} = MatMul (c{0}, t{0})
        f{0} = Softmax <axis = -1> (a{0})
        o{0} = MatMul (f{0}, q{0})
        u{0} = Transpose <perm = [0, 2, 1, 3]> (o{0})
        w{0} = Reshape (u{0}, flat)
        e{0} = Mul (w{0}, quarter)
        h{0} = Add (x{0}, e{0})
        x{1} = Identity (h{0})
    """
    body = "x0 = Identity (x)\n" + "".join(layer.format(k, k + 1) for k in range(count)) + f"y = Identity (x{count})"
    constants = [
        ("last", np.array([-1])),
        ("heads", np.array([1, 64, 4, 32])),
        ("flat", np.array([1, 64, 128])),
        ("gain", np.ones(128, np.float16)),
        ("square", np.ones((128, 128), np.float16)),
        ("quarter", np.float16(0.25)),
    ]
    return parsed(body, constants, x="float16[1, 64, 128]")


def test_a_model_of_many_layers_is_searched_in_less_than_a_tenth_of_a_millisecond_a_node():
    model = layers(500)
    seen = analyse(model)
    started = time.process_time()
    assert seen.search() == Search()
    assert (time.process_time() - started) / len(model.graph.node) < 1e-4


# --------------------------------------------------------------------------------------------------
# What a file means


@EXPORTERS
@pytest.mark.parametrize("form", [in_blocks, of_indices, unfolded, average_pool, divided, scaled_before, in_float32])
def test_both_files_mean_the_same(form, dynamo, tmp_path):
    model = exported(form, dynamo, tokens())
    result = fuse(model)
    comparison = compare(model, result.model, result.replacements, tmp_path)
    assert [(one.name, one.replaced, one.equal) for one in comparison.differences] == [
        ("y", True, True),
        ("y", False, True),
    ]


def test_a_bias_means_the_same_up_to_rounding_and_not_another_one(tmp_path):
    x, (_, w) = tokens(), data()
    bias = 100 * tokens(shape=(BLOCK, HEADS, DIM))
    model = exported(
        lambda x, w, bias: ((x[INDICES] + bias) * w[None, :, :, None]).sum(1), False, x, parameters=[w, bias]
    )
    result = fuse(model, allow_rounding=True)
    assert compare(model, result.model, result.replacements, tmp_path).equal
    for node in result.model.graph.node:
        if node.op_type == "Add":  # break it: the bias twice, the windows never
            node.input[0] = node.input[1]
    broken = [rewrite.Replacement(one.found, rebuilt(one.after, result.model.graph)) for one in result.replacements]
    assert not compare(model, result.model, broken, tmp_path).differences[0].equal


def test_a_model_that_onnxruntime_cannot_run_is_compared_by_its_meaning(tmp_path, capsys):
    """onnxruntime has no ReduceMean of bfloat16 on the CPU: only the fused model runs."""
    onnx.save(exported(in_blocks, False, tokens(BFLOAT16)), tmp_path / "model.onnx")
    assert main(["fuse", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "out.onnx"), "--verify"]) == 0
    means, ran, *_ = capsys.readouterr().out.splitlines()
    assert means.startswith("means 'y': equal")
    assert ran.startswith("ran   nothing of the model as it was: it cannot be run (")
