"""Large arrays for the benchmarks, which every contender finds in the same condition."""

from __future__ import annotations

import mmap
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_HUGE = 1 << 21
# Random tokens that are repeated to fill an input: drawing as many as are read would take minutes. A prime, so
# that no window and no page sees the same tokens at the same place.
_PERIOD = 4099


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any], huge: bool = True) -> Any:
    """An array in memory of its own, from a page boundary on, with huge pages where the system gives them, or without.

    onnxruntime and torch align as well (to 64 bytes); numpy does not.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    memory = mmap.mmap(-1, size + 2 * _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has none
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    begin = -np.frombuffer(memory, np.uint8).ctypes.data % _HUGE
    return np.frombuffer(memory, np.uint8, max(size, 1), begin)[:size].view(dtype).reshape(shape)


def _draw(seed: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


class Tokens:
    """The random input of a case, ``[tokens, heads, dim]``: equal in every process that asks for it."""

    def __init__(self, heads: int, dim: int, dtype: str, seed: int = 0) -> None:
        self.period = _draw(seed, (_PERIOD, heads, dim), DTYPES[dtype])

    def fill(self, count: int) -> Any:
        """The first `count` tokens as an array."""
        array = aligned_empty((count, *self.period.shape[1:]), self.period.dtype)
        for begin in range(0, count, _PERIOD):
            end = min(begin + _PERIOD, count)
            array[begin:end] = self.period[: end - begin]
        return array

    def window(self, begin: int, count: int) -> Any:
        """Tokens begin .. begin + count - 1, without the array."""
        return self.period[np.arange(begin, begin + count) % _PERIOD]


def weights(block: int, heads: int, dtype: str) -> Any:
    """The random weights ``[block, heads]`` of a case."""
    return _draw(1, (block, heads), DTYPES[dtype])


def expected_rows(tokens: Tokens, weight: Any, stride: int, rows: list[int]) -> Any:
    """Rows of NsaCompress's output over one segment, float32 before the last rounding; NumPy only."""
    result = []
    for row in rows:
        window = tokens.window(row * stride, len(weight)).astype(np.float32)
        total = np.zeros(window.shape[1:], np.float32)
        for token, factor in zip(window, weight.astype(np.float32), strict=True):
            total += token * factor[:, None]
        result.append(total)
    return np.stack(result)
