"""The portable body of NsaSelectedAttentionInfer, in standard operators."""

from __future__ import annotations

from ..attention_bodies import check
from ..selected_bodies import ATTENTION_IN_PAGES, BLOCKS_FIT, SELECTION, SHAPES_FIT
from ..windows import ALIGNMENT
from .contract import OP_TYPE

BODY = f"""
{OP_TYPE} <scale_value, head_num, key_value_head_num, select_block_size, select_block_count, page_block_size>
(query, key, value, topk_indices, actual_seq_kvlen, block_table) => (attention_out) {{
    {SELECTION}
    kv_heads_given = Constant <value_int: int = @key_value_head_num> ()
    kv_heads_row = Unsqueeze (kv_heads_given, zero_row)
    page = Constant <value_int: int = @page_block_size> ()
    page_row = Unsqueeze (page, zero_row)
    query_shape = Shape (query)
    key_shape = Shape (key)
    value_shape = Shape (value)
    topk_shape = Shape (topk_indices)
    lengths_shape = Shape (actual_seq_kvlen)
    table_shape = Shape (block_table)
    given_shapes = Concat <axis = 0> (query_shape, key_shape, value_shape, topk_shape, lengths_shape, table_shape)
    block_num = Shape <start = 0, end = 1> (key)
    max_pages = Shape <start = 1, end = 2> (block_table)
    wanted_shapes = Concat <axis = 0> (
        query_rows, heads, head_dim, block_num, page_row, kv_heads_row, head_dim,
        block_num, page_row, kv_heads_row, value_dim, query_rows, kv_heads_row, count,
        query_rows, query_rows, max_pages)
    {SHAPES_FIT}

    longest = Mul (max_pages, page)
    too_short = Less (actual_seq_kvlen, zero)
    too_long = Greater (actual_seq_kvlen, longest)
    {check("actual_seq_kvlen", "too_short", "too_long")}
    lengths = Add (actual_seq_kvlen, check_actual_seq_kvlen)
    row_lengths = Concat <axis = 0> (lengths, added_row)
    {BLOCKS_FIT}

    # A unit is {ALIGNMENT} tokens, of which the last ones of a sequence may be missing.
    unit = Constant <value_int = {ALIGNMENT}> ()
    unit_begins = Range (zero, select, unit)
    begins_column = Unsqueeze (begins, three_row)
    unit_tokens_blocks = Add (begins_column, unit_begins)
    units_of_block = Div (select_row, unit)
    units_given = Mul (count, units_of_block)
    units_shape = Concat <axis = 0> (all_rows, kv_heads, units_given)
    unit_tokens = Reshape <allowzero = 1> (unit_tokens_blocks, units_shape)
    until_end = Sub (pair_lengths, unit_tokens)
    sizes_most = Min (until_end, unit)
    sizes_there = Max (sizes_most, zero)
    unit_missing = Less (unit_tokens, zero)
    sizes_all = Where (unit_missing, zero, sizes_there)
    is_needed = Greater (sizes_all, zero)

    # Where the page of each unit lies: entry b * P + p of the table; one entry more for units without tokens.
    table_size = Mul (query_rows, max_pages)
    table_64 = Cast <to = 7> (block_table)
    table_flat = Reshape <allowzero = 1> (table_64, table_size)
    table_more = Concat <axis = 0> (table_flat, zero_row)
    all_rows_scalar = Squeeze (all_rows, zero_row)
    row_numbers = Range (zero, all_rows_scalar, one)
    row_entries = Mul (row_numbers, max_pages)
    pair_entries = Unsqueeze (row_entries, one_and_two)
    tokens_positive_or_0 = Max (unit_tokens, zero)
    page_numbers = Div (tokens_positive_or_0, page)
    in_page = Mod (tokens_positive_or_0, page)
    entries_all = Add (pair_entries, page_numbers)
    entries = Where (is_needed, entries_all, table_size)
    pages_unchecked = Gather (table_more, entries)
    page_below = Less (pages_unchecked, zero)
    page_inside = Less (pages_unchecked, block_num)
    page_above = Not (page_inside)
    page_outside = Or (page_below, page_above)
    wrong_pages = And (page_outside, is_needed)
    wrong_pages_row = Reshape <allowzero = 0> (wrong_pages, minus_row)
    {check("block_table", "wrong_pages_row")}
    pages = Add (pages_unchecked, check_block_table)
    pages_tokens = Mul (pages, page)
    places_all_units = Add (pages_tokens, in_page)

    # Without a page there is nothing to gather, not even for tokens that are not read: then there is no unit.
    page_tokens = Mul (block_num, page)
    any_token = Min (page_tokens, one_row)
    units_end = Mul (units_given, any_token)
    places = Slice (places_all_units, zero_row, units_end, two_row)
    read = Slice (sizes_all, zero_row, units_end, two_row)
    seen = Identity (read)
    key_rows = Mul (page_tokens, kv_heads)
    keys_shape = Concat <axis = 0> (key_rows, head_dim)
    keys = Reshape <allowzero = 1> (key, keys_shape)
    values_shape = Concat <axis = 0> (key_rows, value_dim)
    values = Reshape <allowzero = 1> (value, values_shape)
    {ATTENTION_IN_PAGES}
}}
"""
