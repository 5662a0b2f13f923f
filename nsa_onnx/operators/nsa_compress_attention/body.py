"""The portable body of NsaCompressAttention, in standard operators."""

from __future__ import annotations

from ..attention_bodies import ATTEND, CONSTANTS, SHAPES, check, prefix_sums
from ..compress_attention import BLOCK_CONSTANTS, BLOCKS
from .contract import OP_TYPE

# Each turn computes at most 128 rows of one sequence. The outputs grow by them: copying what is there costs less than
# the rows' logits do, up to some 100 000 rows.
BODY = f"""
{OP_TYPE} <scale_value, head_num, compress_block_size, compress_stride, select_block_size, select_block_count>
(query, key, value, actual_seq_qlen, actual_cmp_seq_kvlen, actual_sel_seq_kvlen, atten_mask, topk_mask)
=> (attention_out, topk_indices) {{
    {CONSTANTS}
    {BLOCK_CONSTANTS}
    tile = Constant <value_int = 128> ()
    tile_less = Constant <value_int = 127> ()

    {SHAPES}
    query_size = Shape <start = 0, end = 1> (query)
    key_size = Shape <start = 0, end = 1> (key)
    {prefix_sums("actual_seq_qlen", "q", "query_size")}
    {prefix_sums("actual_cmp_seq_kvlen", "c", "key_size")}
    {prefix_sums("actual_sel_seq_kvlen", "s", None)}
    batch = Shape (q_ends)
    c_batch = Shape (c_ends)
    s_batch = Shape (s_ends)
    c_batch_same = Equal (c_batch, batch)
    c_batch_differs = Not (c_batch_same)
    s_batch_same = Equal (s_batch, batch)
    s_batch_differs = Not (s_batch_same)
    c_strides = Mul (c_lengths, stride)
    c_strides_more = Add (c_strides, select_less)
    s_wanted = Div (c_strides_more, select)
    {check("batch", "c_batch_differs", "s_batch_differs")}
    s_checked = Add (s_lengths, check_batch)
    s_same = Equal (s_checked, s_wanted)
    s_differs = Not (s_same)
    q_longest = ReduceMax <keepdims = 1> (q_lengths)
    c_longest = ReduceMax <keepdims = 1> (c_lengths)
    s_longest = ReduceMax <keepdims = 1> (s_lengths)
    {check("actual_sel_seq_kvlen", "s_differs", part="_blocks")}
    atten_least = Concat <axis = 0> (q_longest, c_longest)
    atten_shape = Shape (atten_mask)
    atten_small = Less (atten_shape, atten_least)
    {check("atten_mask", "atten_small")}
    topk_least = Concat <axis = 0> (q_longest, s_longest)
    topk_shape = Shape (topk_mask)
    topk_small = Less (topk_shape, topk_least)
    {check("topk_mask", "topk_small")}

    # Tiles of the sequences, one sequence after the other.
    checked_blocks = Add (check_atten_mask, check_topk_mask)
    checked = Add (checked_blocks, check_actual_sel_seq_kvlen_blocks)
    q_checked = Add (q_lengths, checked)
    q_more = Add (q_checked, tile_less)
    tile_counts = Div (q_more, tile)
    tile_ends = CumSum (tile_counts, zero)
    tile_begins = Sub (tile_ends, tile_counts)
    tiles = Gather (tile_ends, minus_one)
    out_32, topk_indices = Loop (tiles, always, no_out, no_topk) <body = one_tile (
            int64 t, bool go, float[r, n, v] out_before, int32[r, g, k] topk_before)
        => (bool go_on, float[s, n, v] out_after, int32[s, g, k] topk_after) {{
        go_on = Identity (go)
        not_after = LessOrEqual (tile_ends, t)
        not_after_numbers = Cast <to = 7> (not_after)
        b = ReduceSum <keepdims = 1> (not_after_numbers)
        q_begin = Gather (q_begins, b)
        q_stop = Gather (q_ends, b)
        first_tile = Gather (tile_begins, b)
        turn = Sub (t, first_tile)
        row_begin = Mul (turn, tile)
        row_most = Add (row_begin, tile)
        q_length = Sub (q_stop, q_begin)
        row_stop = Min (row_most, q_length)
        row_begin_scalar = Squeeze (row_begin, zero_row)
        row_stop_scalar = Squeeze (row_stop, zero_row)
        rows = Range (row_begin_scalar, row_stop_scalar, one)
        query_ids = Add (rows, q_begin)
        query_rows = Gather <axis = 0> (query, query_ids)

        tokens = Gather (c_lengths, b)
        blocks = Gather (s_lengths, b)
        c_begin = Gather (c_begins, b)
        columns_stop = Squeeze (tokens, zero_row)
        columns = Range (zero, columns_stop, one)
        key_ids = Add (columns, c_begin)
        keys = Gather <axis = 0> (key, key_ids)
        values = Gather <axis = 0> (value, key_ids)
        atten_rows = Gather <axis = 0> (atten_mask, rows)
        atten_part = Gather <axis = 1> (atten_rows, columns)
        row_count = Shape (rows)
        added_column_shape = Concat <axis = 0> (row_count, one_row)
        added_column = ConstantOfShape <value = bool[1] {{0}}> (added_column_shape)
        masked = Concat <axis = 1> (atten_part, added_column)
        {ATTEND}
        topk_mask_rows = Gather <axis = 0> (topk_mask, rows)
        block_columns_stop = Squeeze (blocks, zero_row)
        block_columns = Range (zero, block_columns_stop, one)
        forced_part = Gather <axis = 1> (topk_mask_rows, block_columns)
        forced = Unsqueeze (forced_part, one_row)
        {BLOCKS}
        out_after = Concat <axis = 0> (out_before, out_rows)
        topk_after = Concat <axis = 0> (topk_before, topk_rows)
    }}>
    attention_out = CastLike (out_32, query)
}}
"""


def default_mask(name: str, columns: str) -> str:
    """What an absent mask stands for, of nothing: as large as the longest sequences.

    Args:
        columns: the prefix sums in what its columns count.
    """

    def longest(of: str, argument: str, tokens: str) -> str:
        # They are not checked yet: no mask may be larger than the tokens there are.
        return f"""
    {of}_most = Shape <start = 0, end = 1> ({tokens})
    {of}_but_last = Slice ({argument}, {name}_zero, {name}_last)
    {of}_before = Concat <axis = 0> ({name}_zero, {of}_but_last)
    {of}_lengths = Sub ({argument}, {of}_before)
    {of}_max = ReduceMax <keepdims = 1> ({of}_lengths)
    {of}_positive = Max ({of}_max, {name}_zero)
    {of} = Min ({of}_positive, {of}_most)
"""

    return f"""
mask (query, key, actual_seq_qlen, {columns}) => ({name}) {{
    {name}_zero = Constant <value_ints = [0]> ()
    {name}_last = Constant <value_ints = [-1]> ()
    {longest(f"{name}_rows", "actual_seq_qlen", "query")}
    {longest(f"{name}_columns", columns, "key")}
    {name}_shape = Concat <axis = 0> ({name}_rows, {name}_columns)
    {name} = ConstantOfShape <value = bool[1] {{0}}> ({name}_shape)
}}
"""
