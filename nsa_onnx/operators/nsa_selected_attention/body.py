"""The portable body of NsaSelectedAttention, in standard operators."""

from __future__ import annotations

from ..attention_bodies import prefix_sums
from ..selected_bodies import ATTENTION, BLOCKS_FIT, SELECTION, SHAPES_FIT
from .contract import OP_TYPE

BODY = f"""
{OP_TYPE} <scale_value, head_num, select_block_size, select_block_count, causal>
(query, key, value, topk_indices, actual_seq_qlen, actual_seq_kvlen) => (attention_out) {{
    {SELECTION}
    query_shape = Shape (query)
    key_shape = Shape (key)
    value_shape = Shape (value)
    topk_shape = Shape (topk_indices)
    kv_lengths_shape = Shape (actual_seq_kvlen)
    given_shapes = Concat <axis = 0> (query_shape, key_shape, value_shape, topk_shape, kv_lengths_shape)
    key_tokens = Shape <start = 0, end = 1> (key)
    q_lengths_shape = Shape (actual_seq_qlen)
    wanted_shapes = Concat <axis = 0> (
        query_rows, heads, head_dim, key_tokens, kv_heads, head_dim, key_tokens, kv_heads, value_dim,
        query_rows, kv_heads, count, q_lengths_shape)
    {SHAPES_FIT}

    # Whether the lengths are prefix sums that end in T1 and T2. Nothing is computed from them before that is known.
    {prefix_sums("actual_seq_qlen", "q", "query_rows")}
    {prefix_sums("actual_seq_kvlen", "kv", "key_tokens")}

    # Each row's sequence: as many begin at this row or before it, less one.
    batch = Shape (q_begins)
    starts = ConstantOfShape <value = int64[1] {{1}}> (batch)
    query_rows_1 = Add (query_rows, one_row)
    no_starts = ConstantOfShape <value = int64[1] {{0}}> (query_rows_1)
    placed = ScatterElements <axis = 0, reduction = "add"> (no_starts, q_begins, starts)
    started_1 = CumSum (placed, zero)
    started = Slice (started_1, zero_row, query_rows)
    sequence = Sub (started, one)
    query_lengths = Gather (kv_lengths, sequence)
    row_lengths = Concat <axis = 0> (query_lengths, added_row)
    query_kv_begins = Gather (kv_begins, sequence)
    row_kv_begins = Concat <axis = 0> (query_kv_begins, added_row)
    query_begins = Gather (q_begins, sequence)
    row_begins = Concat <axis = 0> (query_begins, added_row)
    {BLOCKS_FIT}

    # A unit is a block. The last one of a sequence may be shorter than the others, a missing one has no token.
    unit = Identity (select)
    until_end = Sub (pair_lengths, begins)
    sizes_there = Min (until_end, select)
    is_missing = Less (topk, zero)
    sizes = Where (is_missing, zero, sizes_there)
    all_rows_scalar = Squeeze (all_rows, zero_row)
    row_numbers = Range (zero, all_rows_scalar, one)
    positions = Sub (row_numbers, row_begins)
    positions_seen = Add (positions, one)
    pair_positions = Unsqueeze (positions_seen, one_and_two)
    until_position = Sub (pair_positions, begins)
    sizes_until = Min (until_position, sizes)
    sizes_causal = Max (sizes_until, zero)
    causal_number = Constant <value_int: int = @causal> ()
    is_causal = Cast <to = 9> (causal_number)
    seen = Where (is_causal, sizes_causal, sizes)
    seen_count = ReduceSum (seen, two_row)
    sees_any = Greater (seen_count, zero)
    read = Where (sees_any, seen, sizes)
    pair_kv_begins = Unsqueeze (row_kv_begins, one_and_two)
    places = Add (pair_kv_begins, begins)

    # One row more, of zeros, for the tokens that are not read.
    key_rows = Mul (key_tokens, kv_heads)
    nowhere = Squeeze (key_rows, zero_row)
    keys_shape = Concat <axis = 0> (key_rows, head_dim)
    keys_given = Reshape <allowzero = 1> (key, keys_shape)
    zero_key_shape = Concat <axis = 0> (one_row, head_dim)
    zero_key = ConstantOfShape <value = float[1] {{0.0}}> (zero_key_shape)
    keys_float = Cast <to = 1> (keys_given)
    keys = Concat <axis = 0> (keys_float, zero_key)
    values_shape = Concat <axis = 0> (key_rows, value_dim)
    values_given = Reshape <allowzero = 1> (value, values_shape)
    zero_value_shape = Concat <axis = 0> (one_row, value_dim)
    zero_value = ConstantOfShape <value = float[1] {{0.0}}> (zero_value_shape)
    values_float = Cast <to = 1> (values_given)
    values = Concat <axis = 0> (values_float, zero_value)
    {ATTENTION}
}}
"""
