"""Independent references: what the operators compute, written from their documentation alone, without nsa_onnx.

Two references per operator. `*_float64` accumulates in float64 and returns float64, for comparisons that bound the
rounding. `*_exact` follows the contract to the bit: float32 products summed in the order j = 0, 1, 2, ..., one
rounding to nearest even at the end.
"""

from __future__ import annotations

import numpy as np


def window_starts(prefix_sums, block, stride):
    """First token of every window, segment by segment."""
    starts, begin = [], 0
    for end in prefix_sums:
        starts.extend(range(begin, end - block + 1, stride))
        begin = end
    return starts


def _weighted(tokens, weight, accumulator):
    """tokens [block, N, D], weight [block, N] -> [N, D] in the accumulator's type."""
    total = np.zeros(tokens.shape[1:], accumulator)
    with np.errstate(all="ignore"):
        for j in range(tokens.shape[0]):
            total = total + tokens[j].astype(accumulator) * weight[j].astype(accumulator)[:, None]
    return total


def _compress(x, w, block, stride, prefix_sums, accumulator):
    rows = [_weighted(x[s : s + block], w, accumulator) for s in window_starts(prefix_sums, block, stride)]
    return np.stack(rows) if rows else np.zeros((0, *x.shape[1:]), accumulator)


def compress_float64(x, w, block, stride, prefix_sums):
    return _compress(x, w, block, stride, prefix_sums, np.float64)


def compress_exact(x, w, block, stride, prefix_sums):
    with np.errstate(all="ignore"):
        return _compress(x, w, block, stride, prefix_sums, np.float32).astype(x.dtype)


def _infer(x, w, slots, block, stride, page, table, lengths, cache, accumulator):
    out = cache.copy()
    pages_each = x.shape[0] // max(len(lengths), 1)
    for b, length in enumerate(lengths):
        if length < block or (length - block) % stride:
            continue
        tokens = []
        for t in range(length - block, length):
            page_id = b * pages_each + t // page if table is None else table[b, t // page]
            tokens.append(x[page_id, t % page])
        with np.errstate(all="ignore"):
            out[slots[b]] = _weighted(np.stack(tokens), w, accumulator).astype(out.dtype)
    return out


def infer_float64(x, w, slots, block, stride, page, table, lengths, cache):
    return _infer(x, w, slots, block, stride, page, table, lengths, cache.astype(np.float64), np.float64)


def infer_exact(x, w, slots, block, stride, page, table, lengths, cache):
    return _infer(x, w, slots, block, stride, page, table, lengths, cache, np.float32)


def same_bits(a, b):
    """Equal shape and bits; any NaN equals any NaN (its payload is not part of the contract)."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    nan = np.isnan(a.astype(np.float32)) & np.isnan(b.astype(np.float32))
    return bool(np.all((a.view(np.uint16) == b.view(np.uint16)) | nan))


def ulp_distance(a, b):
    """Largest distance in units in the last place of a 16-bit float type; NaN against NaN is 0."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape and a.dtype == b.dtype

    def ordered(v):
        bits = v.view(np.uint16).astype(np.int64)
        return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)

    nan_a, nan_b = np.isnan(a.astype(np.float32)), np.isnan(b.astype(np.float32))
    if not np.array_equal(nan_a, nan_b):
        return 1 << 16
    distance = np.where(nan_a, 0, np.abs(ordered(a) - ordered(b)))
    return int(distance.max(initial=0))
