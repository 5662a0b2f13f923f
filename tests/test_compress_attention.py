"""The compress attentions, eager, natively and in NumPy: within the bounds of two float64 references."""

from __future__ import annotations

import tracemalloc

import compress_cases as cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from selected_cases import from_tensor, tensor

import nsa_onnx
from nsa_onnx.operators import OPERATORS, attention_numpy
from nsa_onnx.runtime import native

KERNELS = ("native", "numpy")
DTYPES = pytest.mark.parametrize("dtype", cases.DTYPES)
EACH = pytest.mark.parametrize("kernel", KERNELS)


def run(call, kernel="native"):
    with pytest.MonkeyPatch.context() as patch:
        if kernel != "native":
            patch.setattr(native, "has", lambda _: False)
        if kernel == "numpy, row by row":
            patch.setattr(attention_numpy, "_MOST_LOGITS", 1)
        return getattr(nsa_onnx, call.name)(**call.arguments)


def reference(call):
    """By the operator's own reference; what is not read may be NaN."""
    operator, arguments = OPERATORS[call.op_type], call.arguments
    values = {name: np.asarray(arguments[name]) for name in operator.input_names if arguments[name] is not None}
    values |= {name: np.nan_to_num(values[name].astype(np.float64)) for name in operator.float_inputs}
    return operator.reference(values, {name: arguments[name] for name in operator.attribute_names})


def judge(call, out, topk):
    exact, ranked = reference(call)
    assert (out.dtype, topk.dtype) == (call.query.dtype, np.int32)
    assert exact.judge("attention_out", out.astype(np.float64), out.dtype.name).problem == ""
    assert ranked.judge("topk_indices", topk.astype(np.float64), "int32").problem == ""


def check(call, kernel="native"):
    """The outputs, which are right by the operator's own reference."""
    out, topk = run(call, kernel)
    judge(call, out, topk)
    return out, topk


@st.composite
def prefill_calls(draw):
    lengths = draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    compressed = draw(st.lists(st.integers(0, 40), min_size=len(lengths), max_size=len(lengths)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    masks = draw(st.tuples(st.booleans(), st.booleans()))
    return cases.prefill_call(rng, lengths, compressed, masks=masks, larger=draw(st.integers(0, 2)), **parts(draw))


@st.composite
def decode_calls(draw):
    lengths = draw(st.lists(st.integers(0, 60), max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    page, spare = 16 * draw(st.integers(1, 5)), draw(st.integers(0, 1))
    return cases.decode_call(rng, lengths, page=page, spare=spare, **parts(draw))


def parts(draw):
    kv_heads, dim = draw(st.integers(1, 3)), 16 * draw(st.integers(1, 4))
    stride = 16 * draw(st.integers(1, 4))
    select = stride * draw(st.integers(1, 128 // stride))
    return {
        "heads": kv_heads * draw(st.sampled_from([1, 2, 5])),
        "kv_heads": kv_heads,
        "dim": dim,
        "value_dim": 16 * draw(st.integers(1, dim // 16)),
        "sizes": (16 * draw(st.integers(stride // 16, select // 16)), stride, select),
        "count": draw(st.integers(1, 6)),
        "dtype": draw(st.sampled_from(sorted(cases.DTYPES))),
        "scale": draw(st.sampled_from([None, 0.0, 1.0, -0.3, 3])),
    }


@EACH
@pytest.mark.parametrize("sizes", [(16, 16, 16), (32, 32, 64), (128, 16, 128), (48, 32, 64), (112, 64, 128)])
def test_any_windows_and_blocks(sizes, kernel):
    rng = np.random.default_rng(1)
    check(cases.prefill_call(rng, [3, 2], [50, 7], sizes=sizes, count=128), kernel)
    check(cases.decode_call(rng, [50, 7, 1, 0], sizes=sizes, count=128), kernel)


@EACH
@pytest.mark.parametrize(
    ("lengths", "compressed"),
    [([0], [0]), ([3], [0]), ([0], [40]), ([0, 0, 2], [0, 7, 20]), ([1, 0, 0], [1, 0, 30]), ([0, 4, 0], [5, 0, 5])],
)
def test_empty_sequences_in_front_between_and_behind(lengths, compressed, kernel):
    for masks in ((False, False), (True, True)):
        call = cases.prefill_call(np.random.default_rng(1), lengths, compressed, masks=masks)
        out, topk = check(call, kernel)
        row = 0
        for length, tokens in zip(lengths, compressed, strict=True):
            if not tokens:
                assert not out[row : row + length].any() and (topk[row : row + length] == -1).all()
            row += length


@EACH
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_a_decode_step_without_a_token_selects_the_first_block(lengths, kernel):
    for spare in (0, 1):  # without a page as well
        out, topk = check(cases.decode_call(np.random.default_rng(2), lengths, spare=spare), kernel)
        assert not out.any() and (topk == [0, -1, -1]).all()


@EACH
def test_a_row_that_sees_nothing_is_the_mean_of_all_and_its_blocks_go_by_their_tokens(kernel):
    call = cases.prefill_call(np.random.default_rng(3), [2], [33], masks=(True, False), count=9)
    call.atten_mask[0], call.atten_mask[1] = True, False
    out, topk = check(call, kernel)
    mean = call.value.astype(np.float64).mean(0).repeat(2, 0)
    assert np.allclose(out[0].astype(np.float64), mean, atol=2e-3)
    # Blocks 0 to 6 count 8 tokens, of which block 7 has 7 (29 .. 32 once and twice), block 8 none.
    assert (topk[0] == [0, 1, 2, 3, 4, 5, 6, 7, 8]).all()


@EACH
def test_equal_scores_come_by_ascending_index(kernel):
    for call in (
        cases.prefill_call(np.random.default_rng(4), [3], [64], count=6, scale=0.0),
        cases.decode_call(np.random.default_rng(4), [128, 65], count=6, scale=0.0),
    ):
        _, topk = check(call, kernel)
        wanted = [0, 1, 2, 3, 4, 5] if len(topk) == 3 else None
        assert wanted is None or (topk == wanted).all()
        if wanted is None:
            assert (topk[0] == [0, 31, 32, 1, 2, 3]).all() and (topk[1] == [0, 15, 16, 1, 2, 3]).all()


@EACH
def test_blocks_that_are_always_selected_come_first(kernel):
    call = cases.prefill_call(np.random.default_rng(5), [4], [40], masks=(False, True), count=4)
    call.topk_mask[:] = False
    call.topk_mask[1, [2, 9]] = call.topk_mask[2] = True
    _, topk = check(call, kernel)
    assert (topk[1, :, :2] == [2, 9]).all() and (topk[2] == [0, 1, 2, 3]).all()


@EACH
def test_nan_stays_in_its_rows_and_counts_as_infinite(kernel):
    call = cases.prefill_call(np.random.default_rng(6), [6], [40], masks=(True, False), count=4)
    call.atten_mask[:] = False
    call.atten_mask[:3, 20] = True
    clean_out, clean_topk = run(call, kernel)
    call.key[20, 1] = np.nan  # seen by rows 3 to 5, in group 1
    call.query[0, 0, 0] = np.nan
    out, topk = run(call, kernel)
    rows = np.zeros(out.shape[:2], bool)
    rows[3:, 2:] = rows[0, 0] = True
    groups = np.zeros(topk.shape[:2], bool)
    groups[3:, 1] = groups[0, 0] = True
    assert np.isnan(out[rows].astype(np.float32)).all()
    assert np.array_equal(out[~rows].view(np.uint16), clean_out[~rows].view(np.uint16))
    assert (topk[groups] == [0, 1, 2, 3]).all()
    assert np.array_equal(topk[~groups], clean_topk[~groups])


@EACH
@DTYPES
def test_any_strides_and_torch_tensors_give_the_dense_result(dtype, kernel):
    rng = np.random.default_rng(7)
    for call in (
        cases.prefill_call(rng, [7, 9], [30, 40], masks=(True, True), dtype=dtype),
        cases.decode_call(rng, [90, 33], dtype=dtype),
    ):
        wanted = check(call, kernel)
        arrays = {name: value for name, value in vars(call).items() if isinstance(value, np.ndarray)}
        for change in (
            lambda value: np.ascontiguousarray(value.T).T,
            lambda value: np.repeat(value, 2, axis=-1)[..., ::2],
            lambda value: np.ascontiguousarray(value[::-1])[::-1],
        ):
            for name, value in arrays.items():
                setattr(call, name, change(value))
            assert all(map(np.array_equal, run(call, kernel), wanted))
        for name, value in arrays.items():
            setattr(call, name, tensor(np.ascontiguousarray(value.T)).permute(*range(value.ndim)[::-1]))
        out, topk = run(call, kernel)
        assert (out.dtype, topk.dtype) == (call.query.dtype, torch.int32)
        assert np.array_equal(from_tensor(out), wanted[0]) and np.array_equal(topk.numpy(), wanted[1])


def test_the_inputs_stay_as_they_are_and_nothing_is_shared():
    call = cases.prefill_call(np.random.default_rng(8), [4], [20], masks=(True, True))
    given = [value for value in vars(call).values() if isinstance(value, np.ndarray)]
    before = [value.copy() for value in given]
    out, topk = run(call)
    assert not any(np.shares_memory(result, value) for result in (out, topk) for value in given)
    assert all(map(np.array_equal, given, before))


def test_numbers_may_be_numpy_s():
    call = cases.prefill_call(np.random.default_rng(9), [4], [20])
    arguments = call.arguments
    names = ("head_num", "compress_block_size", "compress_stride", "select_block_size", "select_block_count")
    same = {name: np.int32(arguments[name]) for name in names} | {"scale_value": np.float64(call.scale)}
    lengths = {name: tuple(map(np.int64, arguments[name])) for name in arguments if name.startswith("actual")}
    got = nsa_onnx.nsa_compress_attention(**{**arguments, **same, **lengths})
    assert all(map(np.array_equal, got, run(call)))


def test_numpy_s_memory_does_not_grow_with_rows_times_tokens():
    peaks = []
    for rows in (256, 4096):
        call = cases.prefill_call(np.random.default_rng(10), [rows], [1000], heads=8, kv_heads=1, dim=16)
        tracemalloc.start()
        out, topk = run(call, "numpy")
        peaks.append(tracemalloc.get_traced_memory()[1] - out.nbytes - topk.nbytes)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**22


@EACH
@DTYPES
@pytest.mark.parametrize(
    ("dim", "value_dim", "heads", "kv_heads"), [(192, 128, 16, 1), (512, 512, 3, 3), (16, 16, 128, 1)]
)
def test_the_sizes_of_models_and_the_largest(dtype, dim, value_dim, heads, kv_heads, kernel):
    own = {"dim": dim, "value_dim": value_dim, "heads": heads, "kv_heads": kv_heads, "dtype": dtype}
    rng = np.random.default_rng(0)
    masks = (True, True)
    check(cases.prefill_call(rng, [2, 0, 3], [70, 3, 200], count=16, masks=masks, **own), kernel)
    check(cases.decode_call(rng, [129, 64, 0, 1], count=16, page=128, **own), kernel)


@settings(max_examples=40)
@given(prefill_calls() | decode_calls())
def test_the_two_references_agree(call):
    out, topk, scores = call.oracle()
    exact, ranked = reference(call)
    assert np.allclose(exact.values, out, rtol=1e-11, atol=1e-13)
    assert ranked.values.shape == topk.shape
    for (row, g), found in scores.items():
        assert np.allclose(ranked.scores[row, g, : len(found)], found, rtol=1e-11, atol=1e-13)
        assert (ranked.scores[row, g, len(found) :] == -np.inf).all()
    assert ranked.judge("topk_indices", topk.astype(np.float64), "int32").problem == ""


@settings(max_examples=60)
@given(prefill_calls() | decode_calls(), st.sampled_from((*KERNELS, "numpy, row by row")))
def test_any_call_is_within_the_bound(call, kernel):
    check(call, kernel)


@given(prefill_calls() | decode_calls())
@settings(max_examples=20)
def test_the_bound_is_that_of_float32(call):
    """Otherwise everything would be within it."""
    exact, ranked = reference(call)
    if exact.values.size:
        size = np.abs(call.query.astype(np.float64)).max() * np.abs(np.nan_to_num(call.key.astype(np.float64))).max()
        logit = abs(call.scale) * size * call.query.shape[2]
        assert exact.slack.max() <= 2.0**-13 * (1 + logit)
        assert ranked.slack.max(initial=0) <= 2.0**-10 * (1 + logit)
