"""The portable body of NsaCompress, in standard operators."""

from __future__ import annotations

from ..bodies import WEIGHTED_SUM, WINDOW_CONSTANTS
from .contract import OP_TYPE

BODY = f"""
{OP_TYPE} <compress_block_size, compress_stride> (input, weight, actual_seq_len) => (output) {{
    {WINDOW_CONSTANTS}
    last = Constant <value_ints = [-1]> ()

    # Whether the lengths are prefix sums that end in T. Nothing is computed from them before that is known.
    ends_but_last = Slice (actual_seq_len, zero_row, last)
    ends_before = Concat <axis = 0> (zero_row, ends_but_last)
    decreasing = Less (actual_seq_len, ends_before)
    not_positive = Less (actual_seq_len, one)
    end = Gather (actual_seq_len, last)
    size = Shape <start = 0, end = 1> (input)
    ends_in_t = Equal (end, size)
    ends_elsewhere = Not (ends_in_t)
    wrong = Concat <axis = 0> (decreasing, not_positive, ends_elsewhere)
    wrong_numbers = Cast <to = 7> (wrong)
    wrong_count = ReduceSum <keepdims = 0> (wrong_numbers)
    check_actual_seq_len = Gather (zero_row, wrong_count)
    ends = Add (actual_seq_len, check_actual_seq_len)
    begins = Add (ends_before, check_actual_seq_len)
    lengths = Sub (ends, begins)

    # Windows of each segment. The division never sees a negative number, where runtimes differ.
    beyond = Sub (lengths, block)
    reach = Add (beyond, stride)
    reach_positive = Max (reach, zero)
    counts = Div (reach_positive, stride)
    row_ends = CumSum (counts, zero)
    row_begins = Sub (row_ends, counts)

    # Row i of a segment starts at begin + (i - row_begin) * stride = i * stride + base: the bases' differences,
    # placed at each segment's first row and summed up, give every row its segment's base.
    row_tokens = Mul (row_begins, stride)
    bases = Sub (begins, row_tokens)
    bases_but_last = Slice (bases, zero_row, last)
    bases_before = Concat <axis = 0> (zero_row, bases_but_last)
    steps = Sub (bases, bases_before)
    row_count = Gather (row_ends, last)
    row_count_1 = Add (row_count, one_row)
    no_steps = ConstantOfShape <value = int64[1] {{0}}> (row_count_1)
    placed = ScatterElements <axis = 0, reduction = "add"> (no_steps, row_begins, steps)
    base_of_row_1 = CumSum (placed, zero)
    base_of_row = Slice (base_of_row_1, zero_row, row_count)
    row_count_scalar = Squeeze (row_count, zero_row)
    rows = Range (zero, row_count_scalar, one)
    rows_stride = Mul (rows, stride)
    starts = Add (rows_stride, base_of_row)

    all_tokens = Add (offsets, starts)
    values = Identity (input)
    {WEIGHTED_SUM}
    output = CastLike (sum, input)
}}
"""
