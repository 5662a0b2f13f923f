"""The selected attentions, eager, natively and in NumPy: within the bounds of two float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import selected_cases as cases
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nsa_onnx
from nsa_onnx.operators import OPERATORS, attention_numpy, selected_numpy
from nsa_onnx.operators.attention_numpy import row_tiles
from nsa_onnx.runtime import native

KERNELS = ("native", "numpy")
CALLS = {cases.PrefillCall: "nsa_select_attention", cases.DecodeCall: "nsa_select_attention_infer"}
NODES = {cases.PrefillCall: "NsaSelectedAttention", cases.DecodeCall: "NsaSelectedAttentionInfer"}
ORACLES = {cases.PrefillCall: cases.prefill, cases.DecodeCall: cases.decode}


def run(call, kernel="native"):
    with pytest.MonkeyPatch.context() as patch:
        if kernel != "native":
            patch.setattr(native, "has", lambda _: False)
        if kernel == "numpy, row by row":
            patch.setattr(attention_numpy, "_MOST_LOGITS", 1)
        return getattr(nsa_onnx, CALLS[type(call)])(**call.arguments)


def check(call, kernel="native"):
    """The result, which is within the bounds of the tests' oracle and of the operator's own reference."""
    got = run(call, kernel)
    wanted, bound = ORACLES[type(call)](call)
    assert got.dtype == call.query.dtype and got.shape == wanted.shape
    assert cases.off(got, wanted, bound) <= 0
    assert own_reference(call).judge("attention_out", got.astype(np.float64), got.dtype.name).problem == ""
    return got


def own_reference(call):
    operator = OPERATORS[NODES[type(call)]]
    arguments = call.arguments
    values = {name: np.asarray(arguments[name]) for name in operator.input_names}
    values |= {name: np.nan_to_num(values[name].astype(np.float64)) for name in operator.float_inputs}
    (exact,) = operator.reference(values, {name: arguments[name] for name in operator.attribute_names})
    return exact


@st.composite
def prefill_calls(draw):
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    key_lengths = draw(st.lists(st.integers(0, 150), min_size=len(lengths), max_size=len(lengths)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return cases.prefill_call(rng, lengths, key_lengths, causal=draw(st.booleans()), **sizes(draw))


@st.composite
def decode_calls(draw):
    lengths = draw(st.lists(st.integers(0, 300), max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return cases.decode_call(rng, lengths, page=16 * draw(st.integers(1, 5)), **sizes(draw))


def sizes(draw):
    kv_heads, dim = draw(st.integers(1, 3)), 16 * draw(st.integers(1, 5))
    return {
        "heads": kv_heads * draw(st.sampled_from([1, 2, 3, 5, 16])),
        "kv_heads": kv_heads,
        "dim": dim,
        "value_dim": 16 * draw(st.integers(1, dim // 16)),
        "select": 16 * draw(st.integers(1, 8)),
        "count": draw(st.integers(1, 6)),
        "dtype": draw(st.sampled_from(sorted(cases.DTYPES))),
        "scale": draw(st.sampled_from([None, 0.0, 1.0, -0.3, 3])),
    }


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("lengths", "key_lengths"),
    [([0], [0]), ([3], [0]), ([0], [40]), ([0, 0, 2], [0, 7, 20]), ([1, 0, 0], [1, 0, 30]), ([0, 4, 0], [5, 0, 5])],
)
def test_empty_sequences_in_front_between_and_behind(lengths, key_lengths, kernel):
    for causal in (False, True):
        check(cases.prefill_call(np.random.default_rng(1), lengths, key_lengths, causal=causal), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_a_decode_step_without_a_token(lengths, kernel):
    for spare in (0, 1):  # without a page as well
        got = check(cases.decode_call(np.random.default_rng(2), lengths, spare=spare), kernel)
        assert not got.any()


def small(causal=False, rows=4, tokens=40, **own):
    call = cases.prefill_call(np.random.default_rng(3), [rows], [tokens], heads=2, kv_heads=1, causal=causal, **own)
    call.topk[:] = [0, 2, -1]
    return call


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_without_any_block_is_zero(kernel):
    call = small()
    call.topk[1] = -1
    got = check(call, kernel)
    assert not got[1].any() and got[0].any()
    assert not np.signbit(got[1].astype(np.float32)).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_heads_of_which_no_row_has_a_block_are_zero(kernel):
    call = cases.prefill_call(np.random.default_rng(3), [2], [40])
    call.topk[:, 0], call.topk[:, 1] = -1, [0, 2, -1]
    got = check(call, kernel)
    assert not got[:, :2].any() and got[:, 2:].any()


@pytest.mark.parametrize(
    ("asked", "tiles"),
    [
        ((3, 10, 2**20), [(3, 5), (5, 7), (7, 9), (9, 10)]),
        ((0, 3, 2**22), [(0, 1), (1, 2), (2, 3)]),
        ((0, 2**21 + 1, 1), [(0, 2**21), (2**21, 2**21 + 1)]),
        ((0, 9, 0), [(0, 9)]),
        ((4, 4, 1), []),
    ],
)
def test_numpy_computes_two_million_logits_at_once(asked, tiles):
    assert [(tile.start, tile.stop) for tile in row_tiles(*asked)] == tiles


def test_numpy_gathers_two_million_numbers_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(selected_numpy, "row_tiles", lambda *given: asked.append(given) or row_tiles(*given))
    run(small(), "numpy")
    assert asked == [(0, 4, 3 * 16 * (32 + 16))]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_block_that_stands_twice_counts_twice(kernel):
    once, twice = small(), small()
    once.topk[:], twice.topk[:] = [0, 1, -1], [0, 1, 0]
    first, second = check(once, kernel), check(twice, kernel)
    assert not np.array_equal(first, second)
    once.topk[:], twice.topk[:] = [1, -1, -1], [1, 1, 1]
    assert np.allclose(check(once, kernel).astype(float), check(twice, kernel).astype(float), atol=1e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_causal_row_that_sees_none_of_its_tokens_is_their_mean(kernel):
    call = small(causal=True)
    call.topk[2] = [1, 2, 1]  # tokens 16 to 31 twice and 32 to 39; row 2 sees 0 to 2
    got = check(call, kernel).astype(np.float64)
    values = call.value[:, 0].astype(np.float64)
    assert np.allclose(got[2], (2 * values[16:32].sum(0) + values[32:].sum(0)) / 40, atol=1e-3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_causal_row_is_what_it_was_before_later_tokens_came(kernel):
    call = small(causal=True, rows=40)
    before = run(call, kernel)
    call.key[20:], call.value[20:] = np.nan, np.inf
    after = run(call, kernel)
    assert np.array_equal(before[:20], after[:20])
    assert np.isnan(after[32:].astype(np.float32)).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_stays_in_the_rows_and_heads_that_read_it(kernel):
    call = cases.prefill_call(np.random.default_rng(4), [6], [64], heads=4, kv_heads=2, count=2)
    call.topk[:] = [0, 1]
    call.topk[3] = [2, 3]
    clean = run(call, kernel)
    call.key[40, 1] = np.nan  # read by row 3 alone, in group 1
    call.query[5, 0, 0] = np.nan
    got = run(call, kernel)
    touched = np.zeros(got.shape[:2], bool)
    touched[3, 2:] = touched[5, 0] = True
    assert np.isnan(got[touched].astype(np.float32)).all()
    assert np.array_equal(got[~touched].view(np.uint16), clean[~touched].view(np.uint16))
    call.key[40, 1], call.query[5, 0, 0], call.value[40, 1, 3] = 0, 0, np.nan
    channels = np.isnan(run(call, kernel).astype(np.float32))
    assert channels[3, 2:, 3].all() and channels.sum() == 2


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_any_strides_and_torch_tensors_give_the_dense_result(dtype, kernel):
    rng = np.random.default_rng(5)
    for call in (cases.prefill_call(rng, [7, 9], [50, 60], dtype=dtype), cases.decode_call(rng, [90, 33], dtype=dtype)):
        wanted = check(call, kernel)
        arrays = {name: value for name, value in vars(call).items() if isinstance(value, np.ndarray)}
        for name, value in arrays.items():
            setattr(call, name, np.ascontiguousarray(value.T).T)
        assert np.array_equal(run(call, kernel), wanted)
        for name, value in arrays.items():
            setattr(call, name, np.repeat(value, 2, axis=-1)[..., ::2])
        assert np.array_equal(run(call, kernel), wanted)
        for name, value in arrays.items():
            setattr(call, name, cases.tensor(np.ascontiguousarray(value.T)).permute(*range(value.ndim)[::-1]))
        made = run(call, kernel)
        assert isinstance(made, torch.Tensor) and made.dtype == call.query.dtype
        assert np.array_equal(cases.from_tensor(made), wanted)


def test_the_inputs_stay_as_they_are_and_nothing_is_shared():
    call = small()
    before = [array.copy() for array in (call.query, call.key, call.value, call.topk)]
    got = run(call)
    assert not any(np.shares_memory(got, array) for array in (call.query, call.key, call.value))
    for was, array in zip(before, (call.query, call.key, call.value, call.topk), strict=True):
        assert np.array_equal(was, array)


def test_numbers_may_be_numpy_s():
    call = small()
    arguments = call.arguments
    same = {name: np.int64(arguments[name]) for name in ("head_num", "select_block_size", "select_block_count")}
    got = nsa_onnx.nsa_select_attention(
        **{**arguments, **same, "causal": np.int32(0), "scale_value": np.float32(call.scale)}
    )
    assert np.array_equal(got, run(call))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(
    ("dim", "value_dim", "heads", "kv_heads"), [(192, 128, 16, 1), (512, 512, 3, 3), (16, 16, 128, 1)]
)
def test_the_sizes_of_models_and_the_largest(dtype, dim, value_dim, heads, kv_heads, kernel):
    own = {"dim": dim, "value_dim": value_dim, "heads": heads, "kv_heads": kv_heads, "dtype": dtype}
    rng = np.random.default_rng(0)
    check(cases.prefill_call(rng, [2, 0, 3], [70, 3, 200], select=64, count=16, causal=True, **own), kernel)
    check(cases.decode_call(rng, [129, 64, 0, 1], select=64, count=16, page=128, **own), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("count", [1, 128])
def test_the_most_blocks_of_the_most_tokens(count, kernel):
    rng = np.random.default_rng(count)
    check(cases.prefill_call(rng, [2], [3000], select=128, count=count, heads=2, kv_heads=1), kernel)
    check(cases.decode_call(rng, [3000], select=128, count=count, heads=2, kv_heads=1, page=1024), kernel)


@settings(max_examples=60)
@given(prefill_calls() | decode_calls(), st.sampled_from((*KERNELS, "numpy, row by row")))
def test_any_call_is_within_the_bound_of_both_references(call, kernel):
    check(call, kernel)


@pytest.mark.parametrize(
    ("blocks", "length", "wrong"),
    [
        *(([-1], 0, False), ([0], 0, True), ([-2], 64, True), ([0, -1], 64, False), ([0, 1], 64, True)),
        *(([1], 65, False), ([2], 65, True), ([0, 1, 2], 192, False), ([0, -2, 3], 192, True)),
    ],
)
def test_numpy_sees_blocks_that_a_sequence_does_not_have(blocks, length, wrong):
    rows = np.array([[[-1] * len(blocks)], [blocks]], np.int32)
    assert selected_numpy.wrong_blocks(rows, np.array([0, length]), 64) is wrong
