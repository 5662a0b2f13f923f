"""The portable body of NsaCompressAttentionInfer, in standard operators."""

from __future__ import annotations

from ..attention import COMPRESSED_LENGTHS
from ..attention_bodies import ATTEND, CONSTANTS, PAGED, SHAPES, pages_checked
from ..compress_attention import BLOCK_CONSTANTS, BLOCKS
from .contract import OP_TYPE

# Each turn computes one sequence.
BODY = f"""
{OP_TYPE} <scale_value, head_num, key_value_head_num, select_block_size, select_block_count, page_block_size,
compress_block_size, compress_stride>
(query, key, value, actual_cmp_seq_kvlen, block_table) => (attention_out, topk_indices) {{
    {CONSTANTS}
    {BLOCK_CONSTANTS}
    never = Constant <value = bool[1] {{0}}> ()
    {SHAPES}
    {PAGED.replace("LENGTHS", COMPRESSED_LENGTHS)}
    lengths_column = Unsqueeze (lengths, one_row)
    column_begins = Mul (columns, page)
    columns_read = Less (column_begins, lengths_column)
    {pages_checked("columns_read")}
    page_less = Sub (page_row, one_row)
    two = Constant <value_int = 2> ()

    turns = Squeeze (batch, zero_row)
    out_32, topk_indices = Loop (turns, always, no_out, no_topk) <body = one_sequence (
            int64 b, bool go, float[r, n, v] out_before, int32[r, g, k] topk_before)
        => (bool go_on, float[s, n, v] out_after, int32[s, g, k] topk_after) {{
        go_on = Identity (go)
        b_row = Unsqueeze (b, zero_row)
        query_rows = Gather <axis = 0> (query, b_row)
        tokens = Gather (lengths, b_row)
        tokens_up = Add (tokens, page_less)
        pages_count = Div (tokens_up, page_row)
        table_row = Gather <axis = 0> (pages, b)
        own_pages = Slice (table_row, zero_row, pages_count)
        key_pages = Gather <axis = 0> (key, own_pages)
        value_pages = Gather <axis = 0> (value, own_pages)
        in_pages = Mul (pages_count, page_row)
        keys_shape = Concat <axis = 0> (in_pages, key_rest)
        values_shape = Concat <axis = 0> (in_pages, value_rest)
        keys_16 = Reshape <allowzero = 1> (key_pages, keys_shape)
        values_16 = Reshape <allowzero = 1> (value_pages, values_shape)
        own_tokens_stop = Squeeze (tokens, zero_row)
        own_tokens = Range (zero, own_tokens_stop, one)
        keys = Gather <axis = 0> (keys_16, own_tokens)
        values = Gather <axis = 0> (values_16, own_tokens)
        masked = Identity (never)
        {ATTEND}
        last_token = Sub (tokens, one_row)
        last_begin = Mul (last_token, stride)
        last_end = Add (last_begin, compress)
        last_up = Add (last_end, select_less)
        blocks_or_none = Div (last_up, select)
        blocks = Max (blocks_or_none, one_row)
        two_before = Sub (blocks, two)
        blocks_stop = Squeeze (blocks, zero_row)
        all_blocks = Range (zero, blocks_stop, one)
        is_first = Equal (all_blocks, zero)
        is_last = GreaterOrEqual (all_blocks, two_before)
        forced = Or (is_first, is_last)
        {BLOCKS}
        out_after = Concat <axis = 0> (out_before, out_rows)
        topk_after = Concat <axis = 0> (topk_before, topk_rows)
    }}>
    attention_out = CastLike (out_32, query)
}}
"""
