"""Weighted sums of windows in NumPy, with the bits of the native kernels: what computes where these are missing.

float32 accumulation in the order j = 0, 1, 2, ..., one rounding to nearest even, one NaN for all (ort_ext/cpu/ has the
same in C++). Elements are bit patterns in uint16, as NumPy has no bfloat16 of its own. One thing differs: in a thread
that flushes subnormal numbers to zero (torch.set_flush_denormal), so do these sums of bfloat16.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.native import Buffer

Bits = npt.NDArray[np.uint16]
Indices = npt.NDArray[np.int64]

_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0}
# Elements that are summed at once: with what is gathered for them, they take 1.3 MB, about a core's own cache.
_CHUNK = 2**17


def in_memory(buffer: Buffer, dtype: npt.DTypeLike = np.uint16) -> npt.NDArray[Any]:
    """The array that a buffer stands for; it shares its memory."""
    kind = np.dtype(dtype)
    size = math.prod(buffer.shape)
    if not size:  # its address may be anything
        return np.empty(buffer.shape, kind)
    memory = (ctypes.c_char * (size * kind.itemsize)).from_address(buffer.address)
    values: npt.NDArray[Any] = np.frombuffer(memoryview(memory), kind)
    return values.reshape(buffer.shape)


def weighted_sums(dtype: str, values: Bits, weight: Bits, token: Callable[[slice, int], Indices], output: Bits) -> None:
    """``output[i] = sum_j values[token(i, j)] * weight[j]``.

    Args:
        values: ``[tokens, N, D]``.
        weight: ``[block, N]``.
        token: the j-th tokens of some windows. They have been checked.
        output: ``[windows, N, D]``.
    """
    if not output.size:
        return
    windows, heads, dim = output.shape
    weights = _to_float(dtype, weight)[:, :, np.newaxis]
    step = min(windows, max(1, _CHUNK // (heads * dim)))
    gathered = np.empty((step, heads, dim), np.uint16)
    products, sums = np.empty(gathered.shape, np.float32), np.empty(gathered.shape, np.float32)
    with np.errstate(all="ignore"):
        for begin in range(0, windows, step):
            chunk = slice(begin, min(begin + step, windows))
            size = chunk.stop - begin
            bits, product, total = gathered[:size], products[:size], sums[:size]
            total.fill(0)
            for j in range(len(weight)):
                # "clip" never clips here. It is the mode in which take() writes without a copy.
                np.take(values, token(chunk, j), axis=0, out=bits, mode="clip")
                _to_float(dtype, bits, product)
                product *= weights[j]
                total += product
            output[chunk] = _to_bits(dtype, total)


def _to_float(dtype: str, bits: Bits, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    result = np.empty(bits.shape, np.float32) if out is None else out
    if dtype == "float16":
        np.copyto(result, bits.view(np.float16))
    else:
        np.left_shift(bits, 16, out=result.view(np.uint32), dtype=np.uint32)
    return result


def _to_bits(dtype: str, values: npt.NDArray[np.float32]) -> Bits:
    if dtype == "float16":
        result = values.astype(np.float16).view(np.uint16)
    else:
        bits = values.view(np.uint32)
        result = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    result[np.isnan(values)] = _NAN[dtype]
    return result
