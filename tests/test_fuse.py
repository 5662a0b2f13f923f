"""nsa-onnx fuse: what torch exports is found and replaced, what only looks like it stays, nothing else changes."""

from __future__ import annotations

import contextlib
import sys
import time

import nsa_models as models
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
    TOKENS,
    WINDOWS,
    data,
    export,
    fused_to_one_node,
    gathered,
    op_types,
    run,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import nsa_onnx
from nsa_onnx.cli import main
from nsa_onnx.fuse import candidates, fuse
from nsa_onnx.fuse.meaning import Meaning
from nsa_onnx.recognise import search
from nsa_onnx.recognise.call import Call
from nsa_onnx.recognise.operators import OPERATORS
from nsa_onnx.recognise.positions import Budget, RefusalError, dense
from nsa_onnx.recognise.results import UnprovenError
from nsa_onnx.recognise.segments import segments
from nsa_onnx.recognise.terms import X, root


def same_results(before, after, block=BLOCK, stride=STRIDE, seq=(TOKENS,), dtype=HALF):
    """Both run; the one with our node gives the contract's bits, the other at most one unit in the last place off."""
    x, w = data(seq[-1], dtype, block)
    (old,), (new,) = run(before, x=x, w=w), run(after, x=x, w=w)
    assert oracle.same_bits(new, oracle.compress_exact(x, w, block, stride, seq))
    # Where large terms cancel, the order of float32 additions shows in more places.
    wide = oracle.compress_float64(np.abs(x), w, block, stride, seq)
    apart = np.abs(old.astype(np.float64) - new.astype(np.float64))
    assert np.all((apart <= wide * 2.0**-18) | (apart <= np.spacing(np.abs(new)).astype(np.float64)))


# --------------------------------------------------------------------------------------------------
# What torch exports


def unfold(x, w):
    return (x.unfold(0, BLOCK, STRIDE) * w.t()[None, :, None, :]).sum(-1)


def index(x, w):
    starts = torch.arange(0, x.shape[0] - BLOCK + 1, STRIDE)
    return (x[starts[:, None] + torch.arange(BLOCK)] * w[None, :, :, None]).sum(1)


def einsum(x, w):
    return torch.einsum("indj,jn->ind", x.unfold(0, BLOCK, STRIDE), w)


def matmul(x, w):
    return torch.matmul(x.unfold(0, BLOCK, STRIDE), w.t()[None, :, :, None]).squeeze(-1)


def conv1d(x, w):
    kernel = w.t().repeat_interleave(DIM, 0)[:, None, :]
    channels = x.reshape(x.shape[0], HEADS * DIM).t()[None]
    y = torch.nn.functional.conv1d(channels, kernel, stride=STRIDE, groups=HEADS * DIM)
    return y[0].t().reshape(-1, HEADS, DIM)


def conv1d_expanded(x, w):
    kernel = w.t()[:, None, :].expand(HEADS, DIM, BLOCK).reshape(HEADS * DIM, 1, BLOCK)
    channels = x.permute(1, 2, 0).reshape(1, HEADS * DIM, x.shape[0])
    y = torch.nn.functional.conv1d(channels, kernel, stride=STRIDE, groups=HEADS * DIM)
    return y.reshape(HEADS, DIM, -1).permute(2, 0, 1)


def conv1d_channels_in_batch(x, w):
    return torch.nn.functional.conv1d(x.permute(2, 1, 0), w.t()[:, None, :], stride=STRIDE, groups=HEADS).permute(
        2, 1, 0
    )


def conv2d(x, w):
    kernel = w.t()[:, None, :, None]
    return torch.nn.functional.conv2d(x.permute(1, 0, 2)[None], kernel, stride=(STRIDE, 1), groups=HEADS)[0].permute(
        1, 0, 2
    )


FORMS = [unfold, index, einsum, matmul, conv1d, conv1d_expanded, conv1d_channels_in_batch, conv2d]


class Module(torch.nn.Module):
    """A form on a whole sequence or on segments, in float32 or in the inputs' type."""

    def __init__(self, form, ends=None, wide=True):
        super().__init__()
        self.form, self.ends, self.wide = form, ends, wide

    def forward(self, x, w):
        parts, begin = [], 0
        for end in self.ends or (None,):
            part = x[begin:end] if self.ends else x
            y = self.form(part.float(), w.float()) if self.wide else self.form(part, w)
            parts.append(y.to(x.dtype))
            begin = end
        return torch.cat(parts) if self.ends else parts[0]


class Learned(torch.nn.Module):
    """The convolution as people write it: its weight is a parameter, repeated for each channel of a head."""

    def __init__(self, wide):
        super().__init__()
        self.conv = torch.nn.Conv1d(HEADS * DIM, HEADS * DIM, BLOCK, STRIDE, groups=HEADS * DIM, bias=False)
        w = torch.from_numpy(data()[1].astype(np.float32))
        with torch.no_grad():
            self.conv.weight.copy_(w.t().repeat_interleave(DIM, 0)[:, None, :])
        if not wide:
            self.conv.half()

    def forward(self, x):
        y = self.conv(x.to(self.conv.weight.dtype).reshape(TOKENS, HEADS * DIM).t()[None])
        return y[0].t().reshape(-1, HEADS, DIM).to(x.dtype)


@EXPORTERS
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_what_torch_exports_is_fused_and_computes_the_same(form, dynamo):
    model = export(Module(form), dynamo)
    result = fused_to_one_node(model)
    assert result.fused[0].actual_seq_len == (TOKENS,)
    assert (result.fused[0].compress_block_size, result.fused[0].compress_stride) == (BLOCK, STRIDE)
    assert result.model.graph.output == model.graph.output
    assert result.model.graph.input == model.graph.input
    same_results(model, result.model)


@EXPORTERS
@pytest.mark.parametrize("form", [unfold, einsum, conv2d], ids=lambda form: form.__name__)
def test_segments_become_one_node_with_their_lengths(form, dynamo):
    model = export(Module(form, ends=(40, TOKENS)), dynamo)
    result = fused_to_one_node(model)
    assert result.fused[0].actual_seq_len == (40, TOKENS)
    same_results(model, result.model, seq=(40, TOKENS))


@EXPORTERS
@pytest.mark.parametrize("form", [index, conv2d], ids=lambda form: form.__name__)
def test_a_sequence_of_any_length_stays_one(form, dynamo):
    model = export(Module(form), dynamo, dynamic=True)
    result = fuse(model)
    assert op_types(result.model) == ["Shape", "Gather", "NsaCompress"]
    for tokens in (2 * BLOCK, TOKENS, 333):
        same_results(model, result.model, seq=(tokens,))
    if form is index:  # a convolution that is shorter than its kernel is an error
        x, w = data(BLOCK - 1)
        assert run(result.model, x=x, w=w)[0].shape == run(model, x=x, w=w)[0].shape == (0, HEADS, DIM)


@EXPORTERS
@pytest.mark.parametrize("wide", [True, False], ids=["float32", "float16"])
def test_a_learned_convolution_gets_its_weight_folded_back(wide, dynamo):
    x, w = data()
    model = export(Learned(wide), dynamo, inputs=(torch.from_numpy(x),))
    result = fused_to_one_node(model)
    weight, _ = result.model.graph.initializer
    assert np.array_equal(numpy_helper.to_array(weight), w)
    (new,), (old,) = run(result.model, x=x), run(model, x=x)
    assert oracle.same_bits(new, oracle.compress_exact(x, w, BLOCK, STRIDE, (TOKENS,)))
    assert oracle.ulp_distance(new, old) <= 1


def test_bfloat16_is_fused():
    model = export(Module(unfold), False, dtype=torch.bfloat16)
    same_results(model, fused_to_one_node(model).model, dtype=BFLOAT16)


@pytest.mark.parametrize("form", [einsum, matmul, conv2d], ids=lambda form: form.__name__)
def test_one_operator_in_float16_rounds_once_and_is_fused(form):
    model = export(Module(form, wide=False), False)
    same_results(model, fused_to_one_node(model).model)


def test_rounded_products_are_left_unless_that_is_allowed():
    model = export(Module(index, wide=False), False)
    (left,) = fuse(model).left
    assert "rounded to float16 before they are summed: --allow-rounding accepts that" in left.reason
    result = fused_to_one_node(model, allow_rounding=True)
    x, w = data()
    assert oracle.same_bits(run(result.model, x=x, w=w)[0], oracle.compress_exact(x, w, BLOCK, STRIDE, (TOKENS,)))


# --------------------------------------------------------------------------------------------------
# Written by hand: what is near it


def convolution(attributes="", w="float16[32, 2]", kernel="w32", *, constants=(), bias=""):
    """The convolution that has the heads for channels, in float32."""
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float16[112, 2, 16] x, {w} w) => (float16[R, 2, 16] y) {{
            x32 = Cast <to = 1> (x)
            w32 = Cast <to = 1> (w)
            xt = Transpose <perm = [2, 1, 0]> (x32)
            wt = Transpose <perm = [1, 0]> ({kernel})
            k = Unsqueeze (wt, one)
            c = Conv <group = 2, kernel_shape = [32], strides = [16] {attributes}> (xt, k{bias})
            ct = Transpose <perm = [2, 1, 0]> (c)
            y = Cast <to = 10> (ct)
        }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants)
    return model


def shifted_one():
    windows = WINDOWS.copy()
    windows[2, 5] += 1
    return gathered(windows)


def two_results(first, second):
    """Two results of windows, one after the other."""
    body = """
        w3 = Unsqueeze (w32, last)
        p0 = Mul (windows, w3)
        s0 = ReduceSum <keepdims = 0> (p0, one)
        y0 = Cast <to = 10> (s0)
        windows_1 = Gather <axis = 0> (x32, at_1)
        p1 = Mul (windows_1, w3)
        s1 = ReduceSum <keepdims = 0> (p1, one)
        y1 = Cast <to = 10> (s1)
        y = Concat <axis = 0> (y0, y1)
    """
    return gathered(
        np.array(first)[:, None] + np.arange(BLOCK),
        body,
        constants={"at_1": np.array(second)[:, None] + np.arange(BLOCK)},
    )


SUMMED = "sums = ReduceSum <keepdims = 0> (products, one)\n y = Cast <to = 10> (sums)"
PRODUCTS = "w3 = Unsqueeze (w32, last)\n products = Mul (windows, w3)\n"
PER_WINDOW = np.ones((6, 1, 1, 1), np.float32)
PER_CHANNEL = np.ones((32, 2, 16), np.float16)
PER_CHANNEL[3, 1, 7] = 2

NEAR_MISSES = {
    "one index is off by one": (shifted_one, "do not form windows"),
    "all windows are late by one": (
        lambda: gathered(WINDOWS[:-1] + 1),
        None,
    ),  # legal: a first segment without a window
    "the last window is missing": (lambda: gathered(WINDOWS[:-1]), None),  # legal: a last segment without a window
    "the last three windows are missing": (lambda: gathered(WINDOWS[:-3]), "leave out tokens"),
    "the tail as one more window": (lambda: gathered(np.vstack([WINDOWS[:-1], WINDOWS[-1:] - 7])), "segments"),
    "windows backwards": (lambda: gathered(WINDOWS[::-1]), "not in the order"),
    "tokens of a window backwards": (lambda: gathered(WINDOWS[:, ::-1]), None),  # legal: another order of the weight
    "a token twice": (lambda: gathered(np.minimum(WINDOWS, WINDOWS[:, :1] + 30)), "not consecutive"),
    "dilation": (lambda: gathered(np.arange(0, 48, 16)[:, None] + 2 * np.arange(BLOCK)), "not consecutive"),
    "stride 24": (lambda: gathered(np.arange(0, 81, 24)[:, None] + np.arange(BLOCK)), "multiple of 16, got 24"),
    "stride beyond the block": (lambda: gathered(np.arange(0, 81, 40)[:, None] + np.arange(BLOCK)), "compress_stride"),
    "relu in between": (
        lambda: gathered(body=PRODUCTS + f"p = Relu (products)\n {SUMMED.replace('(products', '(p')}"),
        "",
    ),
    "a weight per window": (
        lambda: gathered(
            body=f"w3 = Unsqueeze (w32, last)\n w4 = Mul (w3, each)\n products = Mul (windows, w4)\n {SUMMED}",
            constants={"each": PER_WINDOW},
        ),
        "weight",
    ),
    "sum over the heads": (
        lambda: gathered(body=PRODUCTS + "sums = ReduceSum <keepdims = 0> (products, two)\n y = Cast <to = 10> (sums)"),
        "",
    ),
    "mean": (lambda: gathered(body=PRODUCTS + SUMMED.replace("ReduceSum", "ReduceMean")), ""),
    "the result stays in float32": (
        lambda: gathered(body=PRODUCTS + "y32 = ReduceSum <keepdims = 0> (products, one)", output="y32"),
        "stays in float32",
    ),
    "the result is of another type": (
        lambda: gathered(body=PRODUCTS + SUMMED.replace("10", "16")),
        "the result stays in float32",
    ),
    "float64": (
        lambda: gathered(
            body=f"""wide = Cast <to = 11> (windows)
            w64 = Cast <to = 11> (w32)
            w3 = Unsqueeze (w64, last)
            products = Mul (wide, w3)
            {SUMMED}"""
        ),
        "float64",
    ),
    "rounded twice": (
        lambda: gathered(
            body=PRODUCTS
            + "p = Cast <to = 10> (products)\n q = Cast <to = 1> (p)\n"
            + SUMMED.replace("(products", "(q")
        ),
        "rounded to float16 before",
    ),
    "an extra consumer of the products": (
        lambda: gathered(body=PRODUCTS + SUMMED, more="extra = Neg (products)"),
        "'products', which it is computed from, is also used elsewhere",
    ),
    "tokens that lose bits first": (
        lambda: gathered(
            body=PRODUCTS.replace("(windows", "(wide") + SUMMED,
            before="short = Cast <to = 16> (windows)\n wide = Cast <to = 1> (short)",
        ),
        "a Cast before the product that loses bits",
    ),
    "heads exchanged in the second part": (
        lambda: gathered(
            WINDOWS[:3],
            body=PRODUCTS.replace("windows", "h") + SUMMED,
            before="""later = Gather <axis = 0> (x32, at_1)
                exchanged = Gather <axis = 2> (later, heads)
                h = Concat <axis = 0> (windows, exchanged)""",
            constants={"heads": [1, 0], "at_1": WINDOWS[3:]},
        ),
        "",
    ),
    "heads exchanged": (
        lambda: gathered(
            body=PRODUCTS.replace("windows", "h") + SUMMED,
            before="h = Gather <axis = 2> (windows, heads)",
            constants={"heads": [1, 0]},
        ),
        "same head",
    ),
    "channels backwards": (
        lambda: gathered(
            body=PRODUCTS.replace("windows", "h") + SUMMED,
            before="h = Gather <axis = 3> (windows, channels)",
            constants={"channels": list(range(16))[::-1]},
        ),
        "same channel",
    ),
    "a weight per window that is an input": (
        lambda: gathered(w="float16[6, 32, 2, 1]", body=f"products = Mul (windows, w32)\n {SUMMED}"),
        "depends on the window",
    ),
    "float32 models": (
        lambda: gathered(x="float[112, 2, 16]", w="float[32, 2]", body=PRODUCTS + SUMMED),
        "float16 or bfloat16, got float32",
    ),
    "two types": (lambda: gathered(w="bfloat16[32, 2]"), "weight must have the dtype of input"),
    "overlapping segments": (lambda: two_results([0, 16], [24, 40, 56, 72, 80]), "segments"),
    "segments in the wrong order": (lambda: two_results([40, 56], [0]), "not in the order"),
    "an unknown number of tokens": (lambda: gathered(x="float16[T, 2, 16]"), "number of windows is fixed"),
    "a flag that is none": (lambda: gathered(body=PRODUCTS + SUMMED.replace("= 0", "= 2")), "neither 0 nor 1"),
    "padding": (lambda: convolution(", pads = [8, 8]"), "pads the sequence"),
    "auto padding": (lambda: convolution(', auto_pad = "SAME_UPPER"'), "pads the sequence"),
    "dilated convolution": (lambda: convolution(", dilations = [2]"), "not consecutive"),
    "bias": (lambda: convolution(bias=", b", constants=[("b", np.ones(2, np.float32))]), "bias"),
    "a weight per channel": (
        lambda: gathered(
            body=f"w3 = Cast <to = 1> (each)\n products = Mul (windows, w3)\n {SUMMED}", constants={"each": PER_CHANNEL}
        ),
        "differs between channels",
    ),
    "a weight per channel that is an input": (
        lambda: gathered(w="float16[32, 2, 16]", body=f"products = Mul (windows, w32)\n {SUMMED}"),
        "depends on the channel",
    ),
}


@pytest.mark.parametrize("name", [name for name, (_, reason) in NEAR_MISSES.items() if reason is not None])
def test_what_is_only_near_it_stays_as_it_is(name):
    make, reason = NEAR_MISSES[name]
    model = make()
    result = fuse(model)
    assert not any(candidate.output == "y" for candidate in result.fused)
    if not result.fused:
        assert result.model == model
    if reason:
        assert any(reason in candidate.reason for candidate in result.left), result.left


@pytest.mark.parametrize("name", [name for name, (_, reason) in NEAR_MISSES.items() if reason is None])
def test_what_looks_odd_but_is_the_same_is_fused(name):
    model = NEAR_MISSES[name][0]()
    result = fuse(model)
    assert [candidate.output for candidate in result.fused] == ["y"]
    x, w = data()
    assert oracle.ulp_distance(run(model, x=x, w=w)[0], run(result.model, x=x, w=w)[0]) <= 1


def ranged(start=0, short=BLOCK - 1, step=STRIDE):
    """The gathered form for any number of tokens T: windows from ``start`` to before T - ``short``."""
    before = """shape = Shape <start = 0, end = 1> (x)
        t = Squeeze (shape)
        limit = Sub (t, short)
        starts = Range (start, limit, step)
        column = Unsqueeze (starts, one)
        places = Add (column, offsets)
        from_places = Gather <axis = 0> (x32, places)"""
    constants = {"start": start, "short": short, "step": step, "offsets": np.arange(BLOCK)}
    body = PRODUCTS.replace("(windows", "(from_places") + SUMMED
    return gathered(x="float16[T, 2, 16]", before=before, body=body, constants=constants)


def test_open_lengths_are_fused_only_if_all_windows_are_there():
    assert fuse(ranged()).fused
    for wrong in ({"short": 30}, {"short": 32}, {"short": 47}, {"start": 16}, {"start": 16, "short": 15}):
        result = fuse(ranged(**wrong))
        assert not result.fused, wrong
        assert result.left
    (left,) = fuse(ranged(step=24)).left
    assert left.reason == "compress_stride must be a multiple of 16, got 24"


# --------------------------------------------------------------------------------------------------
# The weight


def test_a_weight_in_another_layout_is_brought_into_ours():
    transposed = gathered(
        w="float16[2, 32]", body="wt = Transpose <perm = [1, 0]> (w32)\n" + PRODUCTS.replace("w32", "wt") + SUMMED
    )
    result = fuse(transposed)
    assert op_types(result.model) == ["Transpose", "NsaCompress"]
    x, w = data()
    feeds = {"x": x, "w": np.ascontiguousarray(w.T)}
    want = oracle.compress_exact(x, w, BLOCK, STRIDE, (TOKENS,))
    assert oracle.same_bits(run(result.model, **feeds)[0], want)


def test_one_weight_for_all_heads_is_spread():
    model = gathered(w="float16[32, 1]")
    result = fuse(model)
    assert op_types(result.model) == ["Reshape", "Gather", "NsaCompress"]
    x, w = data()
    got = run(result.model, x=x, w=w[:, :1])[0]
    assert oracle.same_bits(got, oracle.compress_exact(x, np.repeat(w[:, :1], 2, 1), BLOCK, STRIDE, (TOKENS,)))
    assert oracle.ulp_distance(got, run(model, x=x, w=w[:, :1])[0]) <= 1


def learned(values):
    """The gathered form with a float32 constant for a weight."""
    return gathered(
        body=f"w3 = Unsqueeze (constant, last)\n products = Mul (windows, w3)\n {SUMMED}",
        constants={"constant": values},
    )


def test_a_float32_weight_is_fused_only_if_it_is_one_of_16_bits():
    x, w = data()
    exact = learned(w.astype(np.float32))
    result = fuse(exact)
    assert result.fused
    want = oracle.compress_exact(x, w, BLOCK, STRIDE, (TOKENS,))
    assert oracle.same_bits(run(result.model, x=x, w=w)[0], want)
    inexact = fuse(learned(np.nextafter(w.astype(np.float32), 2)))
    assert not inexact.fused
    assert "weight must have the dtype of input, float16, got float32" in inexact.left[0].reason


# --------------------------------------------------------------------------------------------------
# The rest of the graph


def test_nothing_else_changes():
    model = gathered(more="x_again = Neg (x32)\n y_again = Relu (y)\n idle = Identity (at)")
    for name in ("x_again", "y_again"):
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.output[2].type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.initializer.append(numpy_helper.from_array(np.array([5]), "unused_before"))
    model.doc_string = "kept"
    before = onnx.ModelProto.FromString(model.SerializeToString())
    result = fuse(model).model
    assert model == before  # the argument stays
    assert op_types(result) == ["Cast", "NsaCompress", "Neg", "Relu", "Identity"]
    assert [node for node in result.graph.node if node.domain == ""] == [
        node for node in model.graph.node if node.output[0] in ("x32", "x_again", "y_again", "idle")
    ]
    assert {tensor.name for tensor in result.graph.initializer} == {"at", "unused_before", "y_actual_seq_len"}
    assert (result.graph.input, result.graph.output) == (model.graph.input, model.graph.output)
    assert [(entry.domain, entry.version) for entry in result.opset_import] == [("", 18), ("nsa_onnx", 1)]
    assert (result.ir_version, result.doc_string) == (model.ir_version, "kept")


def test_two_compressions_of_one_input_are_both_fused():
    more = """windows_1 = Gather <axis = 0> (x32, at)
        q = Mul (windows_1, w3)
        t = ReduceSum <keepdims = 0> (q, one)
        z = Cast <to = 10> (t)"""
    model = gathered(more=more)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT16, None))
    result = fuse(model)
    assert [candidate.output for candidate in result.fused] == ["y", "z"]
    assert op_types(result.model) == ["NsaCompress", "NsaCompress"]
    assert fuse(result.model).model == result.model  # there is nothing left to do


def test_names_that_are_taken_are_not_used_again():
    model = gathered(more="y_actual_seq_len = Identity (x)")
    result = fuse(model).model
    assert [node.input[2] for node in result.graph.node if node.op_type == "NsaCompress"] == ["y_actual_seq_len_1"]


def test_batches_become_segments():
    model = export(
        Batches(), True, inputs=(torch.zeros(3, TOKENS, HEADS, DIM).half(), torch.zeros(BLOCK, HEADS).half())
    )
    result = fuse(model)
    assert op_types(result.model) == ["Reshape", "NsaCompress", "Reshape"]
    assert result.fused[0].actual_seq_len == (TOKENS, 2 * TOKENS, 3 * TOKENS)
    x, w = data(3 * TOKENS)
    (got,) = run(result.model, x=x.reshape(3, TOKENS, HEADS, DIM), w=w)
    want = oracle.compress_exact(x, w, BLOCK, STRIDE, result.fused[0].actual_seq_len)
    assert oracle.same_bits(got, want.reshape(got.shape))


class Batches(torch.nn.Module):
    def forward(self, x, w):
        return torch.einsum("bindj,jn->bind", x.float().unfold(1, BLOCK, STRIDE), w.float()).to(x.dtype)


def in_a_branch(inner):
    """The model's graph as one branch of an If; what it reads comes from outside."""
    graph = onnx.GraphProto()
    graph.CopyFrom(inner.graph)
    inputs = list(graph.input)
    del graph.input[:]
    graph.name = "then"
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y_else"])],
        "else",
        [],
        [helper.make_tensor_value_info("y_else", TensorProto.FLOAT16, None)],
    )
    node = helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=graph, else_branch=other)
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    outer = helper.make_graph(
        [node], "outer", [flag, *inputs], [helper.make_tensor_value_info("y", TensorProto.FLOAT16, None)]
    )
    return helper.make_model(outer, opset_imports=inner.opset_import, ir_version=9)


def test_branches_are_fused_too():
    inner = gathered()
    inner.graph.node[-1].output[0] = inner.graph.output[0].name = "y_then"
    model = in_a_branch(inner)
    result = fuse(model)
    assert result.fused[0].place == "graph > then of 'choice'"
    (branch,) = (a.g for a in result.model.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in branch.node] == ["NsaCompress"]
    x, w = data()
    (got,) = run(result.model, flag=np.array(True), x=x, w=w)
    assert oracle.same_bits(got, oracle.compress_exact(x, w, BLOCK, STRIDE, (TOKENS,)))


def test_a_constant_that_a_run_may_replace_is_no_constant():
    model = gathered()
    model.graph.input.append(helper.make_tensor_value_info("at", TensorProto.INT64, [6, 32]))
    assert not fuse(model).fused


def test_an_inner_name_hides_an_outer_constant():
    inner = gathered()
    at = inner.graph.initializer[0]
    assert at.name == "at"
    inner.graph.node.insert(0, helper.make_node("Add", ["at_outside", "shift"], ["at"]))
    inner.graph.node[-1].output[0] = inner.graph.output[0].name = "y_then"
    outside = onnx.TensorProto()
    outside.CopyFrom(at)
    del inner.graph.initializer[0]
    model = in_a_branch(inner)
    model.graph.initializer.append(outside)
    outside.name = "at_outside"
    model.graph.initializer.append(outside)
    model.graph.input.append(helper.make_tensor_value_info("shift", TensorProto.INT64, [1]))
    assert not fuse(model).fused


def test_a_model_of_another_version_of_our_domain_is_refused():
    model = gathered()
    model.opset_import.add(domain="nsa_onnx", version=2)
    with pytest.raises(ValueError, match="nsa_onnx version 2"):
        fuse(model)


# --------------------------------------------------------------------------------------------------
# candidates: cheap, and safe on any model


def test_candidates_name_node_form_and_reason():
    model = gathered()
    model.graph.node[-1].name = "last_cast"
    (fusable,) = candidates(model)
    assert (fusable.name, fusable.output, fusable.place, fusable.reason) == ("last_cast", "y", "graph", "")
    assert fusable.form == "windows times weight, summed"
    (left,) = candidates(NEAR_MISSES["stride 24"][0]())
    assert (left.name, left.output) == ("y", "y")
    assert left.reason == "compress_stride must be a multiple of 16, got 24"


def test_other_models_have_no_candidates():
    x, w = torch.randn(64, 256).half(), torch.randn(256, 256).half()

    class Attention(torch.nn.Module):
        def forward(self, x, w):
            q, k, v = ((x @ w).reshape(64, 4, 64).permute(1, 0, 2) for _ in range(3))
            scores = torch.softmax(q.float() @ k.float().transpose(1, 2), -1).half()
            return (scores @ v).permute(1, 0, 2).reshape(64, 256) * torch.cat([x[:, 128:], x[:, :128]], 1)

    class Images(torch.nn.Module):
        def forward(self, x, w):
            images = x.reshape(1, 16, 32, 32)
            return torch.nn.functional.conv2d(
                images, w.reshape(-1)[: 16 * 49].reshape(16, 1, 7, 7), stride=2, groups=16
            )

    for module in (Attention(), Images()):
        assert candidates(export(module, False, inputs=(x, w))) == ()
    assert candidates(models.compress([40, 100])) == ()
    assert candidates(onnx.ModelProto()) == ()


def hostile():
    big = [2**20, 2**20]
    yield (
        "huge expand",
        gathered(
            body="e = Expand (windows, size)\n" + PRODUCTS.replace("(windows", "(e") + SUMMED,
            constants={"size": [2**20, 2**20, 2, 16]},
        ),
    )
    yield (
        "huge range",
        gathered(
            np.array([0]),
            body="""r = Range (z, n, o)
        more = Gather <axis = 0> (x32, r)
        """
            + PRODUCTS.replace("(windows", "(more")
            + SUMMED,
            constants={"z": np.array(0), "n": np.array(2**62), "o": np.array(1)},
        ),
    )
    yield (
        "huge shape",
        gathered(
            body="c = ConstantOfShape (size)\n more = Gather <axis = 0> (x32, c)\n"
            + PRODUCTS.replace("(windows", "(more")
            + SUMMED,
            constants={"size": big},
        ),
    )
    yield "huge conv", convolution(", dilations = [4611686018427387904]")
    yield "huge input", gathered(x="float16[4611686018427387904, 2, 16]")
    yield "negative dims", gathered(x="float16[-5, 2, 16]")
    chain = "s0 = Identity (windows)\n" + "\n".join(
        f"r{k} = Reshape (s{k}, flat)\n s{k + 1} = Reshape (r{k}, deep)" for k in range(300)
    )
    yield (
        "many reshapes",
        gathered(
            np.tile(WINDOWS, (100, 1)),
            body=chain + "\n" + PRODUCTS.replace("(windows", "(s300") + SUMMED,
            constants={"flat": [-1], "deep": [600, 32, 2, 16]},
        ),
    )
    doubling = "c0 = Identity (windows)\n" + "\n".join(f"c{k + 1} = Concat <axis = 0> (c{k}, c{k})" for k in range(60))
    yield "doubling", gathered(body=doubling + "\n" + PRODUCTS.replace("(windows", "(c60") + SUMMED)
    cycle = gathered()
    cycle.graph.node[2].input[0] = "products"
    yield "a cycle", cycle
    twice = gathered()
    twice.graph.node.insert(0, helper.make_node("Identity", ["x"], ["windows"]))
    yield "a value made twice", twice
    broken = gathered()
    broken.graph.initializer[0].raw_data = b"123"
    yield "a broken constant", broken
    rank = gathered(
        body="u = Unsqueeze (windows, many)\n" + PRODUCTS.replace("(windows", "(u") + SUMMED,
        constants={"many": list(range(60))},
    )
    yield "rank 64", rank
    headless = gathered()
    del headless.graph.node[3].input[:]
    yield "a node without inputs", headless
    nowhere = gathered()
    del nowhere.graph.node[4].output[:]
    yield "a node without outputs", nowhere
    wild = gathered()
    for node in wild.graph.node:
        for attribute in node.attribute:
            attribute.i, attribute.type = -(2**63), onnx.AttributeProto.INT
    yield "wild attributes", wild


@pytest.mark.parametrize(("name", "model"), list(hostile()), ids=lambda value: value if isinstance(value, str) else "")
def test_a_hostile_model_is_neither_fused_nor_costly(name, model):
    started = time.process_time()
    assert not any(candidate.reason == "" for candidate in candidates(model)), name
    result = fuse(model)
    assert not result.fused
    assert time.process_time() - started < 10


def test_mutated_models_are_an_answer_or_a_clean_error():
    generator = np.random.default_rng(1)
    sources = [gathered().SerializeToString(), convolution().SerializeToString()]
    read = 0
    for k in range(400):
        mutated = bytearray(sources[k % 2])
        for place in generator.integers(0, len(mutated), generator.integers(1, 4)):
            mutated[place] = generator.integers(0, 256)
        try:
            model = onnx.ModelProto.FromString(bytes(mutated))
        except Exception:  # protobuf's own class
            continue
        read += 1
        candidates(model)
        with contextlib.suppress(ValueError):
            fuse(model)
    assert read > 50


def test_what_costs_too_much_is_said_to_be_incomplete(monkeypatch):
    monkeypatch.setattr(search, "Budget", lambda: Budget(visits=3))
    result = fuse(gathered())
    assert not result.complete
    assert not result.fused


def test_long_sequences_are_proven_in_little_memory_and_time():
    started = time.process_time()
    windows = np.arange(0, 65536 - 128 + 1, 16)[:, None] + np.arange(128)
    model = gathered(windows, x="float16[65536, 4, 128]", w="float16[128, 4]")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (candidate,) = candidates(model)
    assert candidate.reason == ""
    assert time.process_time() - started < 5


# --------------------------------------------------------------------------------------------------
# The algebra behind the proof


@st.composite
def movements(draw, shape):
    """A node that moves the elements of x of this shape, and its constant inputs."""
    rank = len(shape)
    kinds = ["Reshape", "Unsqueeze", "Expand", "Squeeze"]
    kinds += ["Transpose", "Slice", "Gather", "Concat", "Tile", "Flatten"] if rank else []
    kind = draw(st.sampled_from(kinds))
    axis = draw(st.integers(0, rank - 1)) if rank else 0
    constants, attributes = {}, {}
    if kind == "Transpose":
        attributes["perm"] = draw(st.permutations(range(rank)))
    elif kind == "Reshape":
        size = int(np.prod(shape))
        part = draw(st.sampled_from([divisor for divisor in range(1, size + 1) if size % divisor == 0] or [1]))
        constants["shape"] = draw(st.sampled_from([[part, size // part], [1, -1, part], [size], [*shape[:1], -1, 1]]))
    elif kind == "Slice":
        step = draw(st.sampled_from([1, 2, -1]))
        length = shape[axis]
        start, end = draw(st.sampled_from([(0, 2**31), (0, 1), (-1, 2**40), (-2, length)]))
        constants = {"starts": [end if step < 0 else start], "ends": [-(2**40) if step < 0 else end]}
        constants |= {"axes": [axis - rank], "steps": [step]}
    elif kind == "Gather":
        index = st.integers(-shape[axis], shape[axis] - 1)
        constants["indices"] = draw(st.one_of(index, st.lists(index, min_size=1, max_size=3)))
        attributes["axis"] = axis
    elif kind == "Squeeze":
        ones = [place for place in range(rank) if shape[place] == 1]
        constants = {"axes": ones[:1]} if ones and draw(st.booleans()) else {}
    elif kind == "Unsqueeze":
        constants["axes"] = draw(st.sampled_from([[axis], [0, -1], [rank]]))
    elif kind == "Expand":
        constants["shape"] = draw(st.sampled_from([[2, *(1 for _ in shape)], [1]]))
    elif kind == "Tile":
        constants["repeats"] = [2 if other == axis else 1 for other in range(rank)]
    elif kind == "Flatten":
        attributes["axis"] = draw(st.integers(0, rank))
    elif kind == "Concat":
        attributes["axis"] = axis
    inputs = ["x", *(["x"] if kind == "Concat" else []), *constants]
    return helper.make_node(kind, inputs, ["y"], **attributes), constants


@given(st.data())
def test_each_movement_takes_the_elements_that_onnx_takes(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=3))
    x = np.arange(np.prod(shape)).reshape(shape)
    followed = root(X, shape, TensorProto.FLOAT16)
    for _ in range(data.draw(st.integers(1, 4))):
        node, inputs = data.draw(movements(x.shape))
        constants = {name: np.array(value, np.int64) for name, value in inputs.items()}
        model = helper.make_model(
            helper.make_graph(
                [node],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.INT64, None)],
                [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
                [numpy_helper.from_array(value, name) for name, value in constants.items()],
            ),
            opset_imports=[helper.make_opsetid("", 18)],
        )
        (x,) = ReferenceEvaluator(model).run(None, {"x": x})
        given_values = [followed if name == "x" else constants[name] for name in node.input]
        try:
            followed = OPERATORS[node.op_type](Call(node, given_values))
        except RefusalError:  # a Reshape across a Transpose is no longer one step per axis
            assert node.op_type in ("Reshape", "Flatten", "Concat", "Gather", "Slice", "Tile")
            return
        assert followed.shape == x.shape
        assert np.array_equal(np.broadcast_to(dense(followed.factors[X]), x.shape), x)


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=5),
    st.sampled_from([16, 32, 64]),
    st.sampled_from([16, 32, 64]),
)
def test_windows_of_segments_are_recognised_as_segments(lengths, block, stride):
    stride = min(stride, block)
    ends = np.cumsum(lengths).tolist()
    starts = oracle.window_starts(ends, block, stride)
    if not starts:
        with pytest.raises(UnprovenError):
            segments(starts, ends[-1], block)
        return
    try:
        found_stride, found = segments(starts, ends[-1], block)
    except UnprovenError:
        # Segments without a window next to one another leave a gap as long as a window: refused, never guessed.
        assert sum(length < block for length in lengths) >= 1
        return
    assert oracle.window_starts(found, block, found_stride) == starts
    nsa_onnx.compressed_length(found, block, found_stride)  # prefix sums of the contract
    assert found[-1] == ends[-1]


@given(st.lists(st.integers(0, 150), max_size=6, unique=True), st.integers(32, 200))
def test_windows_anywhere_are_segments_only_if_segments_give_them(starts, tokens):
    starts = [start for start in starts if start + 32 <= tokens]
    try:
        stride, ends = segments(starts, tokens, 32)
    except UnprovenError:
        return
    assert oracle.window_starts(ends, 32, stride) == starts


# --------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def saved(tmp_path):
    def save(model, name="model.onnx"):
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return save


def command(capsys, *arguments):
    status = main(["fuse", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command_writes_and_tells(capsys, saved, tmp_path):
    out = tmp_path / "out.onnx"
    status, text, _ = command(capsys, saved(gathered()), "-o", out, "--verify")
    assert status == 0
    means, ran, fused, wrote = text.splitlines()
    assert wrote == f"wrote {out}"
    assert fused == "fused 'y' (windows times weight, summed): block 32, stride 16, 1 segment"
    assert means.startswith("means 'y': equal")
    assert ran.startswith("ran   'y': equal")
    assert op_types(onnx.load(out)) == ["NsaCompress"]


def test_the_command_says_what_it_left(capsys, saved, tmp_path):
    out = tmp_path / "out.onnx"
    status, text, _ = command(capsys, saved(NEAR_MISSES["stride 24"][0]()), "-o", out)
    assert status == 0
    assert "left  'y' (windows times weight, summed): compress_stride must be a multiple of 16, got 24" in text
    assert "nothing to fuse" in text
    status, text, _ = command(capsys, saved(models.compress([40, 100])), "-o", out)
    assert (status, text) == (
        0,
        f"nothing to fuse: no compression was found in standard operators\nwrote {out}\n",
    )
    assert op_types(onnx.load(out)) == ["NsaCompress"]


def test_the_command_fails_cleanly(capsys, saved, tmp_path):
    out = tmp_path / "out.onnx"
    other = gathered()
    other.opset_import.add(domain="nsa_onnx", version=2)
    status, _, err = command(capsys, saved(other), "-o", out)
    assert (status, len(err.splitlines())) == (1, 1)
    (tmp_path / "text.onnx").write_bytes(b"no model")
    status, _, err = command(capsys, tmp_path / "text.onnx", "-o", out)
    assert (status, len(err.splitlines())) == (2, 1)
    assert not out.exists()


def test_indices_and_weights_in_external_files_are_read(capsys, tmp_path):
    model = learned(data()[1].astype(np.float32))
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data.bin", size_threshold=0)
    status, text, _ = command(capsys, path, "-o", out, "--verify")
    assert (status, "'y': equal" in text) == (0, True)
    assert op_types(onnx.load(out, load_external_data=False)) == ["Cast", "NsaCompress"]  # the Cast was idle before
    outside = onnx.load(path, load_external_data=False)
    for tensor in outside.graph.initializer:
        tensor.external_data[0].value = "../data.bin"
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "model.onnx"
    path.write_bytes(outside.SerializeToString())
    assert not fuse(outside, folder=path.parent).fused
    assert not fuse(outside).fused


def test_a_result_with_new_errors_is_not_written(capsys, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("nsa_onnx.recognise.segments.segments", lambda starts, tokens, block: (16, (64, 32)))
    monkeypatch.setattr("nsa_onnx.recognise.proof._check_contract", lambda *_: None)
    out = tmp_path / "out.onnx"
    status, _, err = command(capsys, saved(gathered()), "-o", out)
    assert (status, "errors that the model has not" in err, out.exists()) == (1, True, False)


def test_a_model_with_other_errors_is_fused_all_the_same(capsys, saved, tmp_path):
    model = gathered(more="other = nsa_onnx.NsaCompress <compress_block_size = 32, compress_stride = 16> (x, w, seq)")
    model.graph.initializer.append(models.lengths([50, 40]))
    model.opset_import.add(domain="nsa_onnx", version=1)
    assert not nsa_onnx.check(model).ok
    status, text, _ = command(capsys, saved(model), "-o", tmp_path / "out.onnx")
    assert (status, text.startswith("fused 'y'")) == (0, True)


def test_without_onnxruntime_nothing_is_said_to_be_verified(capsys, saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    out = tmp_path / "out.onnx"
    status, text, err = command(capsys, saved(gathered()), "-o", out, "--verify")
    assert (status, text, out.exists()) == (2, "", False)
    assert err.startswith("nsa-onnx: --verify: onnxruntime cannot be imported") and len(err.splitlines()) == 1


def test_a_wrong_result_is_not_written(capsys, saved, tmp_path, monkeypatch):
    """Were the proof ever wrong, --verify would say so."""
    monkeypatch.setattr("nsa_onnx.recognise.proof._weight_places", lambda *_: np.arange(64).reshape(2, 32).T)
    out = tmp_path / "out.onnx"
    status, text, err = command(capsys, saved(gathered()), "-o", out, "--verify")
    assert (status, "the two models were compared, and they differ" in err) == (1, True)
    assert "means 'y': DIFFERENT" in text
    assert not out.exists()


@pytest.mark.parametrize("front", ["Add", "Sub"])
def test_verify_goes_by_what_the_file_means_not_by_what_a_runtime_drops(capsys, saved, tmp_path, front):
    """onnxruntime does not round between a float16 Add and the Cast after it; the file does."""
    model = gathered(x="float16[112, 2, 16]", before="")
    (cast,) = (node for node in model.graph.node if list(node.output) == ["x32"])
    cast.input[0] = "moved"
    model.graph.node.insert(0, helper.make_node(front, ["x", "shift"], ["moved"]))
    model.graph.input.append(helper.make_tensor_value_info("shift", TensorProto.FLOAT16, [112, 2, 16]))
    status, text, err = command(capsys, saved(model), "-o", tmp_path / "out.onnx", "--verify")
    assert (status, err) == (0, "")
    assert "means 'y': equal" in text
    assert op_types(onnx.load(tmp_path / "out.onnx")) == [front, "NsaCompress"]


def test_verify_computes_only_what_was_replaced():
    """Not what comes before it: a model of any size is compared at the cost of its compressions."""
    model = gathered()
    result = fuse(model)
    (one,) = result.replacements
    given = {"x": data()[0], "w": data()[1]}
    both = [Meaning(graph, 18, given).value("y") for graph in (one.found.graph, one.after)]
    want = oracle.compress_float64(*data(), BLOCK, STRIDE, (TOKENS,))
    assert all(oracle.ulp_distance(value, want.astype(np.float16)) == 0 for value in both)
    with pytest.raises(ValueError, match="neither computed from what was given nor a constant"):
        Meaning(one.after, 18, {"x": data()[0]}).value("y")


def test_a_comparison_that_is_too_large_is_refused(capsys, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("nsa_onnx.fuse.meaning.MAX_ELEMENTS", 1000)
    out = tmp_path / "out.onnx"
    status, _, err = command(capsys, saved(gathered()), "-o", out, "--verify")
    assert (status, "too large to be compared" in err, out.exists()) == (1, True, False)
