"""Finds the segments of a sequence that give the windows which a graph takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..operators.windows import ALIGNMENT, row_plan, window_violations
from .positions import Axis, Dim, Dynamic, Steps, merge
from .results import Root, UnprovenError
from .terms import X
from .wanted import LIMITS, WINDOWS


def segments_of(
    lead: Sequence[Axis], first: int, token: int, x: Root, block: int
) -> tuple[int, tuple[int, ...] | None, Dim]:
    """Stride, prefix sums and T from where the windows start."""
    moving = [axis for axis in lead if isinstance(axis, Steps) or len(axis) != 1]
    if any(isinstance(axis, Steps) for axis in moving):
        (axis,) = moving if len(moving) == 1 else (None,)
        if not isinstance(axis, Steps) or axis.step % token or axis.step < token or first:
            raise UnprovenError("windows of unknown number that do not start at 0, one stride apart", X)
        stride = axis.step // token
        if axis.length != Dynamic(block - 1, stride):
            raise UnprovenError("the number of windows is not that of the sequence's length", X)
        return stride, None, Dynamic()
    if any(isinstance(dim, Dynamic) for dim in x.shape):
        raise UnprovenError("the number of windows is fixed, that of the tokens is not", X)
    size = math.prod(dim for dim in x.shape if not isinstance(dim, Dynamic))
    if size % token:
        raise UnprovenError("the input does not hold whole tokens of this many heads and channels", X)
    starts = merge(lead)
    if (starts % token).any():
        raise UnprovenError("windows do not start at a token", X)
    at: list[int] = (starts // token + first).tolist()
    stride, lengths = segments(at, size // token, block)
    return stride, lengths, size // token


def segments(starts: Sequence[int], tokens: int, block: int) -> tuple[int, tuple[int, ...]]:
    """Stride and prefix sums that give just these windows, in this order.

    Args:
        starts: first token of each window.
        tokens: T.
        block: tokens in a window.

    Raises:
        UnprovenError: there are none within the contract.
    """
    if not starts:
        raise UnprovenError("no windows: any stride would do", X)
    steps = np.diff(np.array(starts, np.int64))
    if (steps <= 0).any():
        raise UnprovenError("windows are not in the order of the tokens", X)
    legal = range(ALIGNMENT, block + 1, ALIGNMENT)
    smallest = int(steps.min()) if len(steps) else 0
    if len(steps) > 1 and (steps == smallest).all() and smallest not in legal:
        violation = next(window_violations(WINDOWS.contract.rows, LIMITS, block, smallest))
        raise UnprovenError(violation.message)
    found: list[tuple[int, int, tuple[int, ...]]] = []
    for stride in legal:
        lengths = _prefix_sums(starts, tokens, block, stride)
        if lengths is None:
            continue
        plan = row_plan(lengths, block, stride)  # the contract has the last word
        if [run.first_token + k * stride for run in plan for k in range(run.rows)] == list(starts):
            found.append((len(lengths), stride, lengths))
    if found:
        _, stride, lengths = min(found)
        return stride, lengths
    block_violation = next(window_violations(WINDOWS.contract.rows, LIMITS, block, ALIGNMENT), None)
    if block_violation is not None:
        raise UnprovenError(block_violation.message)
    raise UnprovenError(
        "no segments give these windows (they overlap between segments, or leave out tokens that fill a window)", X
    )


def _prefix_sums(starts: Sequence[int], tokens: int, block: int, stride: int) -> tuple[int, ...] | None:
    """Segments' ends, greedily: one per run of windows, and one per gap, which must be too short for a window."""
    ends: list[int] = []
    last = 0

    def close(gap_end: int) -> bool:
        nonlocal last
        if not 0 <= gap_end - last < block:
            return False
        if gap_end > last:
            ends.append(gap_end)
        last = gap_end
        return True

    index = 0
    while index < len(starts):
        if not close(starts[index]):
            return None
        count = 1
        while index + count < len(starts) and starts[index + count] - starts[index + count - 1] == stride:
            count += 1
        following = starts[index + count] if index + count < len(starts) else tokens
        longest = starts[index] + count * stride + block - 1  # one token more would fill another window
        last = min(following, longest)
        if last < starts[index] + (count - 1) * stride + block:
            return None
        ends.append(last)
        index += count
    return tuple(ends) if close(tokens) else None
