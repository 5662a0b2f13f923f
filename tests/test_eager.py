"""The eager calls give the reference's bits: both types, any strides, any segments, any tables."""

import ml_dtypes
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nsa_onnx
from nsa_onnx.operators import arrays

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
BLOCKS = st.sampled_from(range(16, 129, 16))


def _random(rng, shape, dtype):
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


@st.composite
def compress_calls(draw):
    block = draw(BLOCKS)
    stride = draw(st.sampled_from(range(16, block + 1, 16)))
    interesting = [0, 1, block - 1, block, block + 1, block + stride - 1, block + stride, 3 * block + 5]
    lengths = draw(st.lists(st.sampled_from(interesting) | st.integers(0, 300), min_size=1, max_size=6))
    lengths[0] = max(lengths[0], 1)
    heads, dim = draw(st.sampled_from([1, 2, 3, 7])), draw(st.sampled_from([16, 32, 48, 112]))
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    prefix_sums = [int(end) for end in np.cumsum(lengths)]
    return (
        _random(rng, (prefix_sums[-1], heads, dim), dtype),
        _random(rng, (block, heads), dtype),
        block,
        stride,
        prefix_sums,
    )


@given(compress_calls())
def test_compress_equals_the_oracle_to_the_bit(call):
    x, w, block, stride, prefix_sums = call
    got = nsa_onnx.nsa_compress(x, w, block, stride, actual_seq_len=prefix_sums)
    assert oracle.same_bits(got, oracle.compress_exact(x, w, block, stride, prefix_sums))
    assert len(got) == nsa_onnx.compressed_length(prefix_sums, block, stride)


@given(compress_calls())
def test_compress_stays_within_the_rounding_bound_of_float64(call):
    x, w, block, stride, prefix_sums = call
    got = nsa_onnx.nsa_compress(x, w, block, stride, actual_seq_len=prefix_sums).astype(np.float64)
    wanted = oracle.compress_float64(x, w, block, stride, prefix_sums)
    size = oracle.compress_float64(np.abs(x), np.abs(w), block, stride, prefix_sums)
    # block additions in float32, each at most half an ulp of a partial sum, then one rounding to 16 bits
    accumulation = block * 2.0**-24 * size
    unit = 2.0**-11 if x.dtype == np.float16 else 2.0**-8
    assert np.all(np.abs(got - wanted) <= accumulation + unit * (np.abs(wanted) + accumulation) + 2.0**-25)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_no_window_gives_an_empty_result(dtype):
    got = nsa_onnx.nsa_compress(np.ones((20, 2, 16), dtype), np.ones((32, 2), dtype), 32, 16, actual_seq_len=(15, 20))
    assert got.shape == (0, 2, 16)
    assert got.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_stay_in_their_window_head_and_dim(dtype, special):
    rng = np.random.default_rng(0)
    x, w = _random(rng, (96, 3, 32), dtype), _random(rng, (32, 3), dtype)
    clean = nsa_onnx.nsa_compress(x, w, 32, 16, actual_seq_len=[96])
    x[50, 1, 7] = special  # token 50 is in the windows that start at 32 and 48
    got = nsa_onnx.nsa_compress(x, w, 32, 16, actual_seq_len=[96])
    touched = np.zeros(got.shape, bool)
    touched[[2, 3], 1, 7] = True
    assert not np.isfinite(got.astype(np.float32))[touched].any()
    assert oracle.same_bits(got[~touched], clean[~touched])
    assert oracle.same_bits(got, oracle.compress_exact(x, w, 32, 16, [96]))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_any_strides_give_the_dense_result(dtype):
    rng = np.random.default_rng(1)
    dense_x, dense_w = _random(rng, (80, 2, 32), dtype), _random(rng, (32, 2), dtype)
    expected = nsa_onnx.nsa_compress(dense_x, dense_w, 32, 16, actual_seq_len=[80])
    transposed = np.ascontiguousarray(dense_x.transpose(1, 2, 0)).transpose(2, 0, 1)
    reversed_w = np.ascontiguousarray(dense_w[::-1])[::-1]
    assert oracle.same_bits(nsa_onnx.nsa_compress(transposed, reversed_w, 32, 16, actual_seq_len=[80]), expected)
    wide = np.repeat(dense_x, 2, axis=2)
    assert oracle.same_bits(nsa_onnx.nsa_compress(wide[..., ::2], dense_w, 32, 16, actual_seq_len=[80]), expected)


def _tensor(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_torch_tensors_of_any_strides_give_the_same_bits(dtype):
    rng = np.random.default_rng(2)
    x, w = _random(rng, (80, 2, 32), dtype), _random(rng, (32, 2), dtype)
    expected = oracle.compress_exact(x, w, 32, 16, [10, 80])
    got = nsa_onnx.nsa_compress(_tensor(x), _tensor(w), 32, 16, actual_seq_len=[10, 80])
    assert isinstance(got, torch.Tensor)
    assert oracle.same_bits(_array(got), expected)
    strided = _tensor(x).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    got = nsa_onnx.nsa_compress(strided, _tensor(w).t().contiguous().t(), 32, 16, actual_seq_len=[10, 80])
    assert oracle.same_bits(_array(got), expected)


@pytest.mark.parametrize(
    ("unfit", "words"),
    [
        (torch.ones(32, 1, 16, dtype=torch.float16, device="meta"), "must be a CPU tensor, got device meta"),
        (
            torch.ones(32, 1, 16, dtype=torch.float16, requires_grad=True),
            "requires a gradient: import nsa_onnx.exporters, which brings the differentiable op, "
            "or pass a detached tensor",
        ),
    ],
)
def test_a_tensor_that_numpy_cannot_compute_on_is_refused(unfit, words, monkeypatch):
    monkeypatch.setattr(arrays, "_torch_ops", {})
    with pytest.raises(RuntimeError, match=f"^input {words}$"):
        nsa_onnx.nsa_compress(unfit, torch.ones(16, 1, dtype=torch.float16), 16, 16, actual_seq_len=[32])


def test_where_gradients_are_off_a_tensor_is_its_values(monkeypatch):
    monkeypatch.setattr(arrays, "_torch_ops", {})
    x, w = torch.ones(32, 1, 16, dtype=torch.float16, requires_grad=True), torch.ones(16, 1, dtype=torch.float16)
    with torch.no_grad():
        got = nsa_onnx.nsa_compress(x, w, 16, 16, actual_seq_len=[32])
    assert bool((got == 16).all()) and got.shape == (2, 1, 16)


@pytest.mark.parametrize(
    ("value", "fits"), [(-(2**63), True), (2**63 - 1, True), (-(2**63) - 1, False), (2**63, False)]
)
def test_what_an_int64_can_hold(value, fits):
    assert arrays.fits_int64(16, value, 16) is fits
    assert (arrays.to_int64([16, value]) is not None) is fits


@st.composite
def infer_calls(draw):
    block = draw(st.sampled_from(range(16, 113, 16)))
    stride = draw(st.sampled_from(range(16, block + 1, 16)))
    page = draw(st.sampled_from([64, 128]))
    batch, max_pages = draw(st.integers(0, 5)), draw(st.integers(1, 4))
    with_table = batch == 0 or draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    block_num = draw(st.integers(1, 6)) if with_table else batch * max_pages
    triggering = list(range(block, max_pages * page + 1, stride))
    length = st.sampled_from(triggering) | st.integers(0, max_pages * page) if triggering else st.integers(0, page)
    lengths = draw(st.lists(length, min_size=batch, max_size=batch))
    heads, dim = draw(st.sampled_from([1, 2, 5])), draw(st.sampled_from([16, 32, 80]))
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    slots = batch + draw(st.integers(1, 4))
    slot_mapping = rng.permutation(slots)[:batch].astype(np.int32)
    table = rng.integers(0, block_num, (batch, max_pages)).astype(np.int32) if with_table else None
    for b, n in enumerate(lengths):
        if n < block or (n - block) % stride:
            slot_mapping[b] = draw(st.sampled_from([-1, 2**31 - 1, -(2**31)]))  # garbage where nothing is written
            if table is not None:
                table[b] = -1
        elif table is not None:
            table[b, : (n - block) // page] = -7  # pages before the window are not read
            table[b, (n - 1) // page + 1 :] = 2**31 - 1
    x = _random(rng, (block_num, page, heads, dim), dtype)
    w = _random(rng, (block, heads), dtype)
    cache = _random(rng, (slots, heads, dim), dtype)
    return x, w, slot_mapping, block, stride, page, table, lengths, cache


@given(infer_calls())
def test_infer_equals_the_oracle_and_accepts_garbage_in_rows_that_do_not_write(call):
    x, w, slot_mapping, block, stride, page, table, lengths, cache = call
    expected = oracle.infer_exact(x, w, slot_mapping, block, stride, page, table, lengths, cache)
    got = nsa_onnx.nsa_compress_infer(
        x, w, slot_mapping, block, stride, page, block_table=table, actual_seq_len=lengths, cache=cache
    )
    assert got is cache, "in place, and returned"
    assert oracle.same_bits(cache, expected)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_infer_writes_through_a_strided_cache_and_nowhere_else(dtype, library):
    rng = np.random.default_rng(3)
    x, w = _random(rng, (2, 64, 2, 16), dtype), _random(rng, (32, 2), dtype)
    storage = _random(rng, (8, 2, 32), dtype)
    before = storage.copy()
    slots = np.array([2, -1], np.int32)
    expected = oracle.infer_exact(x, w, slots, 32, 16, 64, None, [48, 33], before[::2, :, ::2])
    arrays = [x, w, slots, storage]
    if library == "torch":
        arrays = [_tensor(a) for a in arrays]
    view = arrays[3][::2, :, ::2]
    got = nsa_onnx.nsa_compress_infer(*arrays[:3], 32, 16, 64, actual_seq_len=[48, 33], cache=view)
    assert got is view
    assert oracle.same_bits(storage[::2, :, ::2], expected)
    storage[::2, :, ::2] = before[::2, :, ::2]
    assert oracle.same_bits(storage, before), "bytes between the view's elements stay"


def _at_odd_address(array):
    """The same values where no element is aligned."""
    memory = np.frombuffer(bytearray(array.nbytes + 1), np.uint8)
    moved = np.frombuffer(memory, array.dtype, array.size, offset=1 - memory.ctypes.data % 2).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_arrays_at_odd_addresses_give_the_same_bits(library):
    rng = np.random.default_rng(5)
    move = _at_odd_address if library == "numpy" else (lambda array: _tensor(_at_odd_address(array)))
    x, w = _random(rng, (80, 2, 16), np.float16), _random(rng, (32, 2), np.float16)
    got = nsa_onnx.nsa_compress(move(x), move(w), 32, 16, actual_seq_len=[80])
    got = got if library == "numpy" else _array(got)
    assert oracle.same_bits(got, oracle.compress_exact(x, w, 32, 16, [80]))

    x, cache = _random(rng, (2, 64, 2, 16), np.float16), _random(rng, (3, 2, 16), np.float16)
    slots, table = np.array([2, 0], np.int32), np.array([[1], [0]], np.int32)
    moved = move(cache)
    nsa_onnx.nsa_compress_infer(
        *(move(x), move(w), move(slots), 32, 16, 64),
        **{"block_table": move(table), "actual_seq_len": [48, 32], "cache": moved},
    )
    expected = oracle.infer_exact(x, w, slots, 32, 16, 64, table, [48, 32], cache)
    assert oracle.same_bits(moved if library == "numpy" else _array(moved), expected)


def test_decode_step_by_step_equals_compressing_the_whole_sequence():
    rng = np.random.default_rng(4)
    block, stride, page, tokens = 48, 16, 64, 200
    x, w = _random(rng, (tokens, 2, 32), np.float16), _random(rng, (block, 2), np.float16)
    pages = np.zeros((4, page, 2, 32), np.float16)
    table = np.array([[2, 0, 3, 1]], np.int32)
    cache = np.zeros((nsa_onnx.compressed_length([tokens], block, stride), 2, 32), np.float16)
    for t in range(tokens):
        pages[table[0, t // page], t % page] = x[t]
        slot = np.array([(t + 1 - block) // stride], np.int32)
        nsa_onnx.nsa_compress_infer(
            pages, w, slot, block, stride, page, block_table=table, actual_seq_len=[t + 1], cache=cache
        )
    assert oracle.same_bits(cache, nsa_onnx.nsa_compress(x, w, block, stride, actual_seq_len=[tokens]))


def test_compressed_length_is_the_documented_sum():
    assert nsa_onnx.compressed_length([40, 60], 32, 16) == 1
    assert nsa_onnx.compressed_length((31,), 32, 16) == 0
    assert nsa_onnx.compressed_length([32, 32, 64, 111], 32, 16) == 1 + 0 + 1 + 1
    with pytest.raises(RuntimeError, match="compress_stride must be in"):
        nsa_onnx.compressed_length([64], 32, 48)
    with pytest.raises(RuntimeError, match=r"actual_seq_len\[1\]"):
        nsa_onnx.compressed_length([64, 63], 32, 16)
    with pytest.raises(TypeError, match="actual_seq_len"):
        nsa_onnx.compressed_length(64, 32, 16)
