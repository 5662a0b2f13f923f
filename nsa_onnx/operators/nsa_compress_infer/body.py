"""The portable body of NsaCompressInfer, in standard operators."""

from __future__ import annotations

from ..bodies import WEIGHTED_SUM, WINDOW_CONSTANTS
from .contract import OP_TYPE

BODY = f"""
{OP_TYPE} <compress_block_size, compress_stride, page_block_size>
(input, weight, slot_mapping, cache, actual_seq_len, block_table) => (cache_out) {{
    {WINDOW_CONSTANTS}
    page = Constant <value_int: int = @page_block_size> ()
    block_num = Shape <start = 0, end = 1> (input)
    input_page = Shape <start = 1, end = 2> (input)
    max_pages = Shape <start = 1, end = 2> (block_table)
    batch = Shape (actual_seq_len)
    slot_batch = Shape (slot_mapping)
    table_batch = Shape <start = 0, end = 1> (block_table)

    same_page = Equal (input_page, page)
    same_slot_batch = Equal (slot_batch, batch)
    same_table_batch = Equal (table_batch, batch)
    same = Concat <axis = 0> (same_page, same_slot_batch, same_table_batch)
    longest = Mul (max_pages, page)
    too_short = Less (actual_seq_len, zero)
    too_long = Greater (actual_seq_len, longest)
    different = Not (same)
    wrong_lengths = Concat <axis = 0> (different, too_short, too_long)
    wrong_lengths_numbers = Cast <to = 7> (wrong_lengths)
    wrong_lengths_count = ReduceSum <keepdims = 0> (wrong_lengths_numbers)
    check_actual_seq_len = Gather (zero_row, wrong_lengths_count)

    # The sequences that write; of the others nothing but the length is looked at.
    lengths = Add (actual_seq_len, check_actual_seq_len)
    firsts = Sub (lengths, block)
    shorter = Less (firsts, zero)
    long_enough = Not (shorter)
    firsts_positive = Max (firsts, zero)
    rest = Mod (firsts_positive, stride)
    on_stride = Equal (rest, zero)
    complete = And (long_enough, on_stride)
    writers_matrix = NonZero (complete)
    writers = Squeeze (writers_matrix, zero_row)

    slots_32 = Gather (slot_mapping, writers)
    slots_unchecked = Cast <to = 7> (slots_32)
    slot_count = Shape <start = 0, end = 1> (cache)
    slot_below = Less (slots_unchecked, zero)
    slot_inside = Less (slots_unchecked, slot_count)
    slot_above = Not (slot_inside)
    # Each slot equals itself, and must equal no other.
    slots_column = Unsqueeze (slots_unchecked, one_row)
    slots_equal = Equal (slots_column, slots_unchecked)
    slots_equal_numbers = Cast <to = 7> (slots_equal)
    slots_equal_count = ReduceSum <keepdims = 0> (slots_equal_numbers)
    slots_size = Size (slots_unchecked)
    slots_distinct = Equal (slots_equal_count, slots_size)
    slots_double_scalar = Not (slots_distinct)
    slots_double = Unsqueeze (slots_double_scalar, zero_row)
    wrong_slots = Concat <axis = 0> (slot_below, slot_above, slots_double)
    wrong_slots_numbers = Cast <to = 7> (wrong_slots)
    wrong_slots_count = ReduceSum <keepdims = 0> (wrong_slots_numbers)
    check_slot_mapping = Gather (zero_row, wrong_slots_count)
    slots = Add (slots_unchecked, check_slot_mapping)

    # Tokens of every window, and where they lie: [compress_block_size, writers].
    starts = Gather (firsts, writers)
    positions = Add (offsets, starts)
    logical_pages = Div (positions, page)
    in_page = Mod (positions, page)
    table_rows = Gather <axis = 0> (block_table, writers)
    table_columns = Transpose <perm = [1, 0]> (table_rows)
    pages_32 = GatherElements <axis = 0> (table_columns, logical_pages)
    pages_unchecked = Cast <to = 7> (pages_32)
    page_below = Less (pages_unchecked, zero)
    page_inside = Less (pages_unchecked, block_num)
    page_above = Not (page_inside)
    wrong_pages = Or (page_below, page_above)
    wrong_pages_numbers = Cast <to = 7> (wrong_pages)
    wrong_pages_count = ReduceSum <keepdims = 0> (wrong_pages_numbers)
    check_block_table = Gather (zero_row, wrong_pages_count)
    pages = Add (pages_unchecked, check_block_table)
    page_tokens = Mul (pages, page)
    all_tokens = Add (page_tokens, in_page)

    token_count = Mul (block_num, page)
    input_dims = Shape <start = 2> (input)
    values_shape = Concat <axis = 0> (token_count, input_dims)
    values = Reshape <allowzero = 1> (input, values_shape)
    {WEIGHTED_SUM}
    written = CastLike (sum, cache)
    slot_indices = Unsqueeze (slots, one_row)
    cache_out = ScatterND (cache, slot_indices, written)
}}
"""

# What an absent block_table stands for: sequence b owns the pages b*P .. (b+1)*P-1, P = block_num / B.
DEFAULT_TABLE = """
table (input, slot_mapping) => (block_table) {
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    zero_row = Constant <value_ints = [0]> ()
    one_row = Constant <value_ints = [1]> ()
    block_num = Shape <start = 0, end = 1> (input)
    batch = Shape (slot_mapping)
    batch_positive = Max (batch, one_row)
    left_over = Mod (block_num, batch_positive)
    check_block_num = Gather (zero_row, left_over)
    pages_each_unchecked = Div (block_num, batch_positive)
    pages_each = Add (pages_each_unchecked, check_block_num)
    used = Mul (batch, pages_each)
    used_scalar = Squeeze (used, zero_row)
    pages = Range (zero, used_scalar, one)
    shape = Concat <axis = 0> (batch, pages_each)
    pages_32 = Cast <to = 6> (pages)
    block_table = Reshape <allowzero = 1> (pages_32, shape)
}
"""
