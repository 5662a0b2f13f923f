"""The contract of NsaCompress: limits, T', the row plan and the error table. Needs the standard library only.

Source: the documentation of ``mindspore.ops.nsa_compress`` (T' and the table's 23 rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..contract import Array, Contract, Dim, Shape, Violation, Violations, kind, raise_first, table
from ..hints import HINTS, Hint
from ..windows import (
    ARRAY,
    BLOCK,
    DIM_ROWS,
    INPUT_DTYPE_ROW,
    SEQ,
    SEQ_KIND_ROW,
    STRIDE,
    WEIGHT_RANK_ROW,
    WINDOW_KIND_ROWS,
    WindowLimits,
    dim_violations,
    input_dtype_violations,
    row_plan,
    seq_kind_violations,
    window_kind_violations,
    window_violations,
)

OP_TYPE = "NsaCompress"
LIMITS = WindowLimits(min_heads=1, max_heads=128, min_block=16, max_block=128)
ATTRIBUTES = (BLOCK, STRIDE)

# The order decides which error wins.
ROWS = table(
    ("input_kind", TypeError, "input", f"input {ARRAY}", "NSA006"),
    ("weight_kind", TypeError, "weight", f"weight {ARRAY}", "NSA006"),
    ("weight_dtype", TypeError, "weight", "weight must have the dtype of input, {}, got {}", "NSA006"),
    INPUT_DTYPE_ROW,
    *WINDOW_KIND_ROWS,
    SEQ_KIND_ROW,
    ("input_rank", RuntimeError, "input", "input must have rank 3 [T, N, D], got rank {}", "NSA007"),
    WEIGHT_RANK_ROW,
    *DIM_ROWS,
    ("seq_empty", RuntimeError, SEQ, f"{SEQ} must have at least 1 element, got {{}}", "NSA015"),
    ("seq_decreasing", RuntimeError, SEQ, f"{SEQ}[{{}}] must be >= the element before it, {{}}, got {{}}", "NSA015"),
    ("seq_positive", RuntimeError, SEQ, f"{SEQ}[{{}}] must be >= 1, got {{}}", "NSA015"),
    ("seq_last", RuntimeError, SEQ, f"{SEQ}[{{}}], the last element, must equal T = {{}}, got {{}}", "NSA015"),
)
CONTRACT = Contract(OP_TYPE, ROWS, LIMITS)


def type_violations(
    input: object, weight: object, compress_block_size: object, compress_stride: object, actual_seq_len: object
) -> Violations:
    """Rows 1 to 7. Arrays come as `Array`; anything else in their place is not an array."""
    if not isinstance(input, Array):
        yield Violation(ROWS["input_kind"], (kind(input),))
    if not isinstance(weight, Array):
        yield Violation(ROWS["weight_kind"], (kind(weight),))
    if isinstance(input, Array) and isinstance(weight, Array) and weight.dtype != input.dtype:
        yield Violation(ROWS["weight_dtype"], (input.dtype, weight.dtype))
    if isinstance(input, Array):
        yield from input_dtype_violations(ROWS, input)
    yield from window_kind_violations(ROWS, compress_block_size, compress_stride)
    yield from seq_kind_violations(ROWS, actual_seq_len)


def shape_violations(
    input_shape: Shape, weight_shape: Shape, compress_block_size: int, compress_stride: int
) -> Violations:
    """Rows 8 to 19."""
    if len(input_shape) != 3:
        yield Violation(ROWS["input_rank"], (len(input_shape),))
    if len(weight_shape) != 2:
        yield Violation(ROWS["weight_rank"], (len(weight_shape),))
    if len(input_shape) == 3 and len(weight_shape) == 2:
        yield from dim_violations(ROWS, LIMITS, input_shape[1:], weight_shape, compress_block_size, compress_stride)


def prefix_sum_violations(actual_seq_len: Sequence[int], tokens: Dim) -> Violations:
    """Rows 20 to 23: prefix sums of the segment lengths, the last one equal to ``tokens``."""
    if not len(actual_seq_len):
        yield Violation(ROWS["seq_empty"], (0,))
        return
    for index in range(1, len(actual_seq_len)):
        if actual_seq_len[index] < actual_seq_len[index - 1]:
            yield Violation(
                ROWS["seq_decreasing"],
                (index, actual_seq_len[index - 1], actual_seq_len[index]),
                _habit(actual_seq_len, tokens),
            )
            break
    for index, end in enumerate(actual_seq_len):
        if end < 1:
            yield Violation(ROWS["seq_positive"], (index, end), _habit(actual_seq_len, tokens))
            break
    last = len(actual_seq_len) - 1
    if tokens is not None and actual_seq_len[last] != tokens:
        yield Violation(ROWS["seq_last"], (last, tokens, actual_seq_len[last]), _habit(actual_seq_len, tokens))


def _habit(actual_seq_len: Sequence[int], tokens: Dim) -> Hint | None:
    """The habit that explains wrong prefix sums, if one does. C++ has the same in plan/."""
    if len(actual_seq_len) < 2 or min(actual_seq_len) < 0:
        return None
    rises = all(end <= following for end, following in pairwise(actual_seq_len))
    if rises and tokens in (None, actual_seq_len[-1]):  # then only the first can be wrong: 0
        return HINTS["leading_zero"]
    return HINTS["lengths"] if sum(actual_seq_len) == tokens else None


def check(
    input: object, weight: object, compress_block_size: int, compress_stride: int, actual_seq_len: Sequence[int]
) -> None:
    """Raise the first of the 23 rows that the call breaks, in the order of the table."""
    raise_first(type_violations(input, weight, compress_block_size, compress_stride, actual_seq_len))
    assert isinstance(input, Array) and isinstance(weight, Array)  # row 1 and 2 have passed
    raise_first(shape_violations(input.shape, weight.shape, compress_block_size, compress_stride))
    raise_first(prefix_sum_violations(actual_seq_len, input.shape[0]))


def compressed_length(actual_seq_len: Sequence[int], compress_block_size: int, compress_stride: int) -> int:
    """T', the number of output rows of NsaCompress.

    Args:
        actual_seq_len: prefix sums of the segment lengths, in tokens.
        compress_block_size: window length, in tokens.
        compress_stride: distance of two windows' starts, in tokens.

    Raises:
        TypeError, RuntimeError: as `nsa_onnx.nsa_compress`, for these three arguments.

    >>> compressed_length([40, 60], 32, 16)  # segments of 40 and 20 tokens: one window, none
    1
    """
    raise_first(window_kind_violations(ROWS, compress_block_size, compress_stride))
    raise_first(seq_kind_violations(ROWS, actual_seq_len))
    raise_first(window_violations(ROWS, LIMITS, compress_block_size, compress_stride))
    raise_first(prefix_sum_violations(actual_seq_len, None))
    return planned_rows(actual_seq_len, compress_block_size, compress_stride)


def planned_rows(actual_seq_len: Sequence[int], compress_block_size: int, compress_stride: int) -> int:
    """T' of lengths that have been checked."""
    return sum(run.rows for run in row_plan(actual_seq_len, compress_block_size, compress_stride))
