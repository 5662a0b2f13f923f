"""The kernels in NumPy, for where the native library is missing, against the native ones: the same bits and errors."""

import tracemalloc
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_eager import compress_calls, infer_calls
from test_eager_errors import ALL_ROWS, OPS, _call

import nsa_onnx
from nsa_onnx.runtime import native


@contextmanager
def without_library():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "is_here", lambda: False)
        patch.setattr(native, "call", lambda *_: pytest.fail("the library is called"))
        yield


def any_bits(array, seed):
    """Every bit pattern is likely: NaN of all kinds, infinities, subnormals."""
    return np.random.default_rng(seed).integers(0, 2**16, array.shape, np.uint16).view(array.dtype)


def equal(a, b):
    """To the bit, that of NaN included."""
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a.view(np.uint16), b.view(np.uint16))


def message(op, arguments):
    with pytest.raises((TypeError, RuntimeError)) as raised:
        _call(op, arguments, "numpy")
    return type(raised.value), str(raised.value)


@pytest.mark.parametrize(("op", "row"), ALL_ROWS, ids=lambda v: v)
def test_each_row_of_the_error_table_has_the_same_words(op, row):
    _, base, cases, _ = OPS[op]
    wanted = message(op, {**base(), **cases[row][0]})
    with without_library():
        assert message(op, {**base(), **cases[row][0]}) == wanted


@pytest.mark.parametrize(
    ("op", "changed"),
    [
        ("compress", {"actual_seq_len": [0, 64]}),  # a leading 0
        ("compress", {"actual_seq_len": [40, 24]}),  # lengths, not prefix sums
        ("compress", {"actual_seq_len": [40, 64, 10, 70]}),
        ("compress", {"weight": np.ones((16, 2), np.float16)}),
        ("compress", {"weight": np.ones((32, 1), np.float16)}),
        ("compress", {"weight": np.ones((2, 32), np.float16)}),  # transposed
        ("compress", {"weight": np.ones((3, 32), np.float16)}),
        ("compress", {"weight": np.ones((1, 32), np.float16)}),
        ("compress", {"compress_stride": 0}),
        ("compress", {"compress_block_size": 0, "weight": np.ones((0, 2), np.float16)}),
        ("infer", {"actual_seq_len": [100, 200]}),  # prefix sums, not lengths
        ("infer", {"actual_seq_len": [-1, 80]}),
        ("infer", {"actual_seq_len": [300, 129]}),
        ("infer", {"actual_seq_len": [48, 80, 80]}),
        ("infer", {"block_table": np.zeros((1, 2), np.int32)}),
        ("infer", {"weight": np.ones((2, 32), np.float16)}),
        ("infer", {"weight": np.ones((32, 3), np.float16)}),
        ("infer", {"weight": np.ones((48, 2), np.float16)}),
        ("infer", {"cache": np.ones((3, 3, 32), np.float16)}),
        ("infer", {"cache": np.ones((3, 2, 48), np.float16)}),
        ("infer", {"slot_mapping": np.array([3, 3], np.int32)}),
        ("infer", {"slot_mapping": np.array([2, 2], np.int32), "block_table": np.array([[9, 9], [9, 9]], np.int32)}),
        ("infer", {"block_table": np.array([[-1, 1], [2, 3]], np.int32)}),
        ("infer", {"block_table": np.array([[0, -1], [-1, 3]], np.int32)}),
        ("infer", {"block_table": None, "actual_seq_len": [129, 80]}),
    ],
)
def test_hints_and_the_first_of_several_errors_are_the_same(op, changed):
    wanted = message(op, {**OPS[op][1](), **changed})
    with without_library():
        assert message(op, {**OPS[op][1](), **changed}) == wanted


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_each_rounding_is_the_librarys(dtype):
    """Sums next to halfway between two results, subnormal ones, and those at the edge of infinity."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(1, 128, 512)
    x = np.zeros((16, 128, 512), dtype)
    x[0], x[1] = every, every[:, :, ::-1]
    w = np.zeros((16, 128), dtype)
    w[0], w[1] = dtype(0.5), np.linspace(-1, 1, 128).astype(dtype)
    for part in (x[:, :, :256], x[:, :, 256:]):
        wanted = nsa_onnx.nsa_compress(part, w, 16, 16, actual_seq_len=[16])
        with without_library():
            assert equal(nsa_onnx.nsa_compress(part, w, 16, 16, actual_seq_len=[16]), wanted)


def test_a_step_without_sequences_writes_nothing():
    arguments = {**OPS["infer"][1](), "slot_mapping": np.zeros(0, np.int32), "block_table": None, "actual_seq_len": []}
    with without_library():
        assert (_call("infer", arguments, "numpy") == 7).all()


def test_memory_does_not_grow_with_the_windows():
    x, w = np.ones((2**15, 4, 64), np.float16), np.ones((128, 4), np.float16)
    peaks = []
    for tokens in (2**11, 2**15):  # the latter in four parts
        tracemalloc.start()
        with without_library():
            output = nsa_onnx.nsa_compress(x[:tokens], w, 128, 16, actual_seq_len=[tokens])
        peaks.append(tracemalloc.get_traced_memory()[1] - 2 * output.nbytes)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**21


def test_no_element_gives_an_empty_result_whatever_the_length():
    x = np.empty((2**40, 2, 0), np.float16)
    with without_library():
        got = nsa_onnx.nsa_compress(x, np.ones((16, 2), np.float16), 16, 16, actual_seq_len=[2**40])
    assert got.shape == (2**36, 2, 0)


@given(compress_calls(), st.none() | st.integers(0, 2**32))
def test_prefill_gives_the_bits_of_the_library(call, seed):
    x, w, block, stride, ends = call
    if seed is not None:
        x, w = any_bits(x, seed), any_bits(w, seed + 1)
    wanted = nsa_onnx.nsa_compress(x, w, block, stride, actual_seq_len=ends)
    with without_library():
        got = nsa_onnx.nsa_compress(x, w, block, stride, actual_seq_len=ends)
    assert equal(got, wanted)


@given(infer_calls(), st.none() | st.integers(0, 2**32))
def test_decode_gives_the_bits_of_the_library(call, seed):
    x, w, slots, *sizes, table, lengths, cache = call
    if seed is not None:
        x, w, cache = any_bits(x, seed), any_bits(w, seed + 1), any_bits(cache, seed + 2)
    caches = cache, cache.copy()
    nsa_onnx.nsa_compress_infer(x, w, slots, *sizes, block_table=table, actual_seq_len=lengths, cache=caches[0])
    with without_library():
        nsa_onnx.nsa_compress_infer(x, w, slots, *sizes, block_table=table, actual_seq_len=lengths, cache=caches[1])
    assert equal(*caches)
