"""What the portable bodies of the two selected attentions have in common (`bodies` says what a body is).

A row is a query token; a pair is a row and a key/value head, whose G query heads attend to the same tokens. A loop
gathers the tokens of a few rows per turn, so that memory does not grow with rows times tokens. The last turn is filled
up with rows that select nothing, and there is always one: then every turn gives an output of one shape.

Selected tokens are told by units: `unit` consecutive tokens, which lie one after the other in `key` as well. That is a
selected block where the sequences are whole, and 16 tokens, which never cross a page, where they are in pages.
"""

from __future__ import annotations

from .attention_bodies import CONSTANTS, check

# Tokens gathered in one turn, for all of its pairs: 12 MB of keys in float32 for D = 192. Fewer leave threads idle and
# cost turns, more leave the caches.
_TOKENS_PER_TURN = 2**14

# Sizes as vectors of one element; turn_rows, the rows of one turn; turns; rows_added, which fill up the last turn; and
# topk_unchecked [rows, N2, k] with the blocks of all turns' rows. "rows" are those of all turns from here on.
SELECTION = f"""
    {CONSTANTS}
    two_row = Constant <value_ints = [2]> ()
    one_and_two = Constant <value_ints = [1, 2]> ()
    select_row = Unsqueeze (select, zero_row)
    query_rows = Shape <start = 0, end = 1> (query)
    head_dim = Shape <start = 2, end = 3> (query)
    kv_heads = Shape <start = -2, end = -1> (key)
    value_dim = Shape <start = -1> (value)
    kv_heads_positive = Max (kv_heads, one_row)
    group = Div (heads, kv_heads_positive)
    group_left = Mod (heads, kv_heads_positive)

    token_count = Mul (count, select_row)
    tokens_of_row = Mul (token_count, kv_heads_positive)
    tokens_positive = Max (tokens_of_row, one_row)
    tokens_of_turn = Constant <value_ints = [{_TOKENS_PER_TURN}]> ()
    turn_rows_most = Div (tokens_of_turn, tokens_positive)
    query_rows_positive = Max (query_rows, one_row)
    turn_rows_some = Min (turn_rows_most, query_rows_positive)
    turn_rows = Max (turn_rows_some, one_row)
    turn_rows_less = Sub (turn_rows, one_row)
    query_rows_more = Add (query_rows_positive, turn_rows_less)
    turns_row = Div (query_rows_more, turn_rows)
    turns = Squeeze (turns_row, zero_row)
    all_rows = Mul (turns_row, turn_rows)
    rows_added = Sub (all_rows, query_rows)
    added_row = ConstantOfShape <value = int64[1] {{0}}> (rows_added)

    topk_given = Cast <to = 7> (topk_indices)
    added_topk_shape = Concat <axis = 0> (rows_added, kv_heads, count)
    added_topk = ConstantOfShape <value = int64[1] {{-1}}> (added_topk_shape)
    topk_unchecked = Concat <axis = 0> (topk_given, added_topk)
"""

# Wrong shapes must not be broadcast. Expects given_shapes and wanted_shapes, dims one after the other.
SHAPES_FIT = f"""
    dims_fit = Equal (given_shapes, wanted_shapes)
    dims_differ = Not (dims_fit)
    no_kv_heads = Less (kv_heads, one_row)
    group_differs = Greater (group_left, zero_row)
    {check("shapes", "dims_differ", "no_kv_heads", "group_differs")}
"""

# The blocks must be those of their sequence. Expects row_lengths [rows], the tokens of each row's sequence, checked;
# gives topk and begins, the first token of each block in its sequence, both [rows, N2, k].
BLOCKS_FIT = f"""
    pair_lengths = Unsqueeze (row_lengths, one_and_two)
    select_less = Sub (select, one)
    pair_lengths_more = Add (pair_lengths, select_less)
    block_counts = Div (pair_lengths_more, select)
    block_below = Less (topk_unchecked, minus_one)
    block_inside = Less (topk_unchecked, block_counts)
    block_above = Not (block_inside)
    wrong_blocks = Or (block_below, block_above)
    wrong_blocks_row = Reshape (wrong_blocks, minus_row)
    {check("topk_indices", "wrong_blocks_row")}
    topk_inside = Add (topk_unchecked, check_topk_indices)
    topk = Add (topk_inside, check_shapes)
    begins = Mul (topk, select)
"""

# Expects, [rows, N2, units] each: places, where the first token of a unit lies among all tokens; seen, of how many of
# the unit's tokens the logits count; read, how many weigh anything. The two differ where a row sees none of its tokens.
# And unit, keys and values, [tokens * N2, D or Dv] of any type; NOWHERE is a row of them for what is not read.
_LOOP = """
    # A token's row in keys and values, which are [tokens * N2, D or Dv].
    kv_heads_scalar = Squeeze (kv_heads, zero_row)
    heads_index = Range (zero, kv_heads_scalar, one)
    heads_column = Unsqueeze (heads_index, one_row)
    places_first = Mul (places, kv_heads)
    places_of_heads = Add (places_first, heads_column)
    offsets = Range (zero, unit, one)
    offsets_of_heads = Mul (offsets, kv_heads)

    units = Shape <start = 2, end = 3> (places)
    pairs = Mul (turn_rows, kv_heads)
    turns_shape = Concat <axis = 0> (turns_row, pairs, units, one_row)
    places_turns = Reshape <allowzero = 1> (places_of_heads, turns_shape)
    seen_turns = Reshape <allowzero = 1> (seen, turns_shape)
    read_turns = Reshape <allowzero = 1> (read, turns_shape)
    added_query_shape = Concat <axis = 0> (rows_added, heads, head_dim)
    added_query_32 = ConstantOfShape <value = float[1] {0.0}> (added_query_shape)
    added_query = CastLike (added_query_32, query)
    query_rows_all = Concat <axis = 0> (query, added_query)
    query_shape_turns = Concat <axis = 0> (turns_row, pairs, group, head_dim)
    query_turns = Reshape <allowzero = 1> (query_rows_all, query_shape_turns)
    unit_row = Unsqueeze (unit, zero_row)
    tokens = Mul (units, unit_row)
    index_shape = Concat <axis = 0> (pairs, tokens)
    row_shape = Concat <axis = 0> (pairs, one_row, tokens)

    no_value = Constant <value = float {0.0}> ()
    sums_turns = Loop (turns, always) <body = some_rows (int64 i, bool go)
        => (bool go_on, float[p, g, d] sums) {
        go_on = Identity (go)
        places_i = Gather <axis = 0> (places_turns, i)
        seen_i = Gather <axis = 0> (seen_turns, i)
        read_i = Gather <axis = 0> (read_turns, i)
        is_seen_units = Less (offsets, seen_i)
        is_read_units = Less (offsets, read_i)
        places_all = Add (places_i, offsets_of_heads)
        index_units = Where (is_read_units, places_all, NOWHERE)
        index = Reshape <allowzero = 1> (index_units, index_shape)
        query_i = Gather <axis = 0> (query_turns, i)
        query_32 = Cast <to = 1> (query_i)
        query_columns = Transpose <perm = [0, 2, 1]> (query_32)
        keys_16 = Gather <axis = 0> (keys, index)
        keys_32 = Cast <to = 1> (keys_16)
        products = MatMul (keys_32, query_columns)
        products_rows = Transpose <perm = [0, 2, 1]> (products)
        scaled = Mul (products_rows, scale)
        # What is not read weighs nothing; where no token is seen, all weigh the same.
        is_seen = Reshape <allowzero = 1> (is_seen_units, row_shape)
        is_read = Reshape <allowzero = 1> (is_read_units, row_shape)
        unseen = Where (is_read, lowest, minus_infinity)
        logits = Where (is_seen, scaled, unseen)
        WEIGHTS
        values_16 = Gather <axis = 0> (values, index)
        values_32 = Cast <to = 1> (values_16)
        VALUES
        sums_any = MatMul (weights, values_i)
        read_count = ReduceSum (read_i, one_and_two)
        is_any = Greater (read_count, zero)
        sums = Where (is_any, sums_any, no_value)
    }>
    out_shape = Concat <axis = 0> (all_rows, heads, value_dim)
    sums_rows = Reshape <allowzero = 1> (sums_turns, out_shape)
    sums_query = Slice (sums_rows, zero_row, query_rows)
    attention_out = CastLike (sums_query, query)
"""

# The loop and the output, where the row `nowhere` of keys and values is 0.
ATTENTION = (
    _LOOP.replace("WEIGHTS", "weights = Softmax <axis = -1> (logits)")
    .replace("VALUES", "values_i = Identity (values_32)")
    .replace("NOWHERE", "nowhere")
)

# The same where that row is the first, which may hold anything, and where there may be no unit. A softmax over nothing
# is an error in some runtimes: it gets one logit more, which weighs nothing.
ATTENTION_IN_PAGES = (
    _LOOP.replace("NOWHERE", "zero")
    .replace(
        "WEIGHTS",
        """one_more_shape = Concat <axis = 0> (pairs, group, one_row)
        one_more = Expand (minus_infinity, one_more_shape)
        logits_more = Concat <axis = 2> (logits, one_more)
        weights_more = Softmax <axis = -1> (logits_more)
        weights = Slice (weights_more, zero_row, tokens, two_row)""",
    )
    .replace(
        "VALUES",
        """column_shape = Concat <axis = 0> (pairs, tokens, one_row)
        is_read_column = Reshape <allowzero = 1> (is_read_units, column_shape)
        values_i = Where (is_read_column, values_32, no_value)""",
    )
)
