"""Weighted sums of windows in NumPy, with the bits of the native kernels: what computes where these are missing.

float32 accumulation in the order j = 0, 1, 2, ..., one rounding to nearest even, one NaN for all (ort_ext/cpu/ has the
same in C++). Elements are bit patterns in uint16, as NumPy has no bfloat16 of its own. One thing differs: in a thread
that flushes subnormal numbers to zero (torch.set_flush_denormal), so do these sums of bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .bits import Bits, to_bits, to_float

Indices = npt.NDArray[np.int64]

# Elements that are summed at once: with what is gathered for them, they take 1.3 MB, about a core's own cache.
_CHUNK = 2**17


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
    weights = to_float(dtype, weight)[:, :, np.newaxis]
    step = min(windows, _CHUNK // (heads * dim))  # at most 128 heads of 256
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
                to_float(dtype, bits, product)
                product *= weights[j]
                total += product
            output[chunk] = to_bits(dtype, total)
