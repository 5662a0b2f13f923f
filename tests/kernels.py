"""The native kernels on NumPy arrays, for tests: any instruction set, any number of threads."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from nsa_onnx.operators.nsa_compress import call as prefill
from nsa_onnx.operators.nsa_compress_infer import call as decode
from nsa_onnx.runtime import native

DTYPES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
LIBRARY = native._library()
_ARRAY, _INT, _LENGTHS = ctypes.POINTER(native._Array), ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)
_END = (_INT, ctypes.c_char_p, _INT)
LIBRARY.nsa_compress.argtypes = [ctypes.c_int, _ARRAY, _ARRAY, _INT, _INT, _LENGTHS, _INT, _ARRAY, *_END]
LIBRARY.nsa_compress_infer.argtypes = [
    *(ctypes.c_int, _ARRAY, _ARRAY, _ARRAY, _INT, _INT, _INT, _ARRAY, _LENGTHS, _INT, _ARRAY),
    *_END,
]
LIBRARY.nsa_set_cpu_target.argtypes = [ctypes.c_char_p, ctypes.c_char_p, _INT]
TARGETS = LIBRARY.nsa_cpu_targets().decode().split(",")


def buffer(array):
    assert array.flags.c_contiguous
    return native.Buffer(array.ctypes.data, array.shape)


@contextlib.contextmanager
def target(name: str) -> Iterator[None]:
    """Kernels run on instruction set `name` inside the block."""
    assert LIBRARY.nsa_set_cpu_target(name.encode(), None, 0) == 0
    try:
        yield
    finally:
        assert LIBRARY.nsa_set_cpu_target(b"auto", None, 0) == 0


def compress(x, w, stride, seq, threads=1):
    """NsaCompress; the output's rows come from a count of their own, not from the library's."""
    block = len(w)
    segments = np.diff([0, *seq])
    rows = sum(max(0, 1 + (int(length) - block) // stride) for length in segments)
    out = np.full((rows, *x.shape[1:]), 7, x.dtype)
    prefill.kernel(x.dtype.name, buffer(x), buffer(w), block, stride, np.array(seq), buffer(out), threads)
    return out


def infer(x, w, slots, stride, table, lengths, cache, threads=1):
    """NsaCompressInfer on a copy of `cache`."""
    out = cache.copy()
    slots = np.asarray(slots, np.int32)
    table = None if table is None else np.ascontiguousarray(table, dtype=np.int32)
    pages = None if table is None else buffer(table)
    decode.kernel(
        *(x.dtype.name, buffer(x), buffer(w), buffer(slots), len(w), stride, x.shape[1]),
        *(pages, np.array(lengths), buffer(out), threads),
    )
    return out


def bits(array):
    return array.view(np.uint16)
