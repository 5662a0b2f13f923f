"""What the portable bodies of the attention stages have in common, in ONNX's text format.

The parts stand in the body of a Loop, whose turns compute a few query rows each: no turn holds more than these rows'
logits. Dims of 0, on which runtimes differ, do not occur there: one token more than the sequence has is attended to
(`ATTEND`), and k blocks more than it has are ranked (`BLOCKS`). Numbers are float32, as in the kernels.
"""

from __future__ import annotations

CONSTANTS = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    minus_one = Constant <value_int = -1> ()
    zero_row = Constant <value_ints = [0]> ()
    one_row = Constant <value_ints = [1]> ()
    three_row = Constant <value_ints = [3]> ()
    minus_row = Constant <value_ints = [-1]> ()
    lowest = Constant <value = float {-3.4028234663852886e38}> ()
    infinity = Constant <value = float {inf}> ()
    minus_infinity = Constant <value = float[1] {-inf}> ()
    no_logit = Constant <value = float[1] {0.0}> ()
    always = Constant <value = bool {1}> ()
    scale = Constant <value_float: float = @scale_value> ()
    heads_scalar = Constant <value_int: int = @head_num> ()
    heads = Unsqueeze (heads_scalar, zero_row)
    select = Constant <value_int: int = @select_block_size> ()
    count_scalar = Constant <value_int: int = @select_block_count> ()
    count = Unsqueeze (count_scalar, zero_row)
"""
"""Constants of all stages."""


def check(argument: str, *wrong: str, part: str = "") -> str:
    """``check_<argument>``, a row of one 0, where none of the rows ``wrong`` of bools has a true one.

    Otherwise the node fails, and its name says what is wrong. What is computed from the argument adds it, so that
    nothing is computed from a wrong one. ``part`` tells several checks of one argument apart.
    """
    name = f"{argument}{part}"
    return f"""
    {name}_wrong = Concat <axis = 0> ({", ".join(wrong)})
    {name}_wrong_numbers = Cast <to = 7> ({name}_wrong)
    {name}_wrong_count = ReduceSum <keepdims = 0> ({name}_wrong_numbers)
    check_{name} = Gather (zero_row, {name}_wrong_count)
"""


SHAPES = f"""
    query_rest = Shape <start = 1> (query)
    key_rest = Shape <start = -2> (key)
    value_rest = Shape <start = -2> (value)
    kv_heads = Shape <start = -2, end = -1> (key)
    dim = Shape <start = -1> (key)
    value_dim = Shape <start = -1> (value)
    key_tokens = Shape <end = -1> (key)
    value_tokens = Shape <end = -1> (value)
    no_heads = Less (kv_heads, one_row)
    divisor = Max (kv_heads, one_row)
    left_over = Mod (heads, divisor)
    heads_left = Greater (left_over, zero_row)
    heads_and_dim = Concat <axis = 0> (heads, dim)
    query_same = Equal (query_rest, heads_and_dim)
    query_differs = Not (query_same)
    value_same = Equal (value_tokens, key_tokens)
    value_differs = Not (value_same)
    {check("query", "query_differs", "no_heads", "heads_left", "value_differs")}
    heads_checked = Add (heads, check_query)
    group = Div (heads_checked, divisor)
    grouped_shape = Concat <axis = 0> (minus_row, kv_heads, group, dim)
    rows_shape = Concat <axis = 0> (minus_row, heads, value_dim)
    one_key_shape = Concat <axis = 0> (one_row, key_rest)
    one_key = ConstantOfShape <value = float[1] {{0.0}}> (one_key_shape)
    one_value_shape = Concat <axis = 0> (one_row, value_rest)
    one_value = ConstantOfShape <value = float[1] {{0.0}}> (one_value_shape)
    no_out_shape = Concat <axis = 0> (zero_row, heads, value_dim)
    no_out = ConstantOfShape <value = float[1] {{0.0}}> (no_out_shape)
    no_topk_shape = Concat <axis = 0> (zero_row, kv_heads, count)
    no_topk = ConstantOfShape <value = int32[1] {{0}}> (no_topk_shape)
"""
"""Dims of query ``[rows, N1, D]``, key ``[..., N2, D]`` and value ``[..., N2, Dv]``, checked against one another: N2
(``kv_heads``), G (``group``) and the shapes that `ATTEND` and the outputs need."""


def prefix_sums(argument: str, short: str, total: str | None) -> str:
    """``<short>_begins``, ``<short>_ends`` and ``<short>_lengths`` of sequences, checked.

    Args:
        total: what the last one must equal, ``[1]``; None if anything may be.
    """
    return f"""
    {short}_but_last = Slice ({argument}, zero_row, minus_row)
    {short}_before = Concat <axis = 0> (zero_row, {short}_but_last)
    {short}_decreasing = Less ({argument}, {short}_before)
    {short}_end = Gather ({argument}, minus_row)
    {short}_end_right = Equal ({short}_end, {total or f"{short}_end"})
    {short}_end_wrong = Not ({short}_end_right)
    {check(argument, f"{short}_decreasing", f"{short}_end_wrong")}
    {short}_ends = Add ({argument}, check_{argument})
    {short}_begins = Add ({short}_before, check_{argument})
    {short}_lengths = Sub ({short}_ends, {short}_begins)
"""


PAGED = f"""
    page = Constant <value_int: int = @page_block_size> ()
    page_row = Unsqueeze (page, zero_row)
    wanted_kv_heads_scalar = Constant <value_int: int = @key_value_head_num> ()
    wanted_kv_heads = Unsqueeze (wanted_kv_heads_scalar, zero_row)
    kv_heads_given = Shape <start = 2, end = 3> (key)
    kv_heads_same = Equal (kv_heads_given, wanted_kv_heads)
    kv_heads_differ = Not (kv_heads_same)
    page_given = Shape <start = 1, end = 2> (key)
    page_same = Equal (page_given, page_row)
    page_differs = Not (page_same)
    batch = Shape <start = 0, end = 1> (query)
    table_batch = Shape <start = 0, end = 1> (block_table)
    table_same = Equal (table_batch, batch)
    table_differs = Not (table_same)
    lengths_batch = Shape (LENGTHS)
    lengths_same = Equal (lengths_batch, batch)
    lengths_differ = Not (lengths_same)
    block_num = Shape <start = 0, end = 1> (key)
    most_pages = Shape <start = 1, end = 2> (block_table)
    longest = Mul (most_pages, page_row)
    too_short = Less (LENGTHS, zero_row)
    too_long = Greater (LENGTHS, longest)
    {check("LENGTHS", "page_differs", "kv_heads_differ", "table_differs", "lengths_differ", "too_short", "too_long")}
    lengths = Add (LENGTHS, check_LENGTHS)
    table = Cast <to = 7> (block_table)
    columns_scalar = Squeeze (most_pages, zero_row)
    columns = Range (zero, columns_scalar, one)
    page_below = Less (table, zero)
    page_above = GreaterOrEqual (table, block_num)
    page_outside = Or (page_below, page_above)
"""
"""What a step over pages needs, with the name of its lengths for LENGTHS: ``lengths``, checked; ``table [B, P]`` as
int64, which entries are no pages (``page_outside``), and the numbers of its ``columns``."""


def pages_checked(read: str) -> str:
    """``pages``, the table, where no entry that is ``read`` (``[B, P]``) is wrong."""
    return f"""
    wrong_pages = And (page_outside, {read})
    wrong_pages_row = Reshape <allowzero = 0> (wrong_pages, minus_row)
    {check("block_table", "wrong_pages_row")}
    pages = Add (table, check_block_table)
"""


# Expects query_rows [r, N1, D], keys [L, N2, D] and values [L, N2, Dv], tokens (L, a row of one), masked [r, L + 1]
# (or what broadcasts to it); gives chances [N2, G, r, L + 1] and out_rows [r, N1, Dv].
ATTEND = """
    keys_32 = Cast <to = 1> (keys)
    keys_more = Concat <axis = 0> (keys_32, one_key)
    keys_by_head = Transpose <perm = [1, 2, 0]> (keys_more)
    keys_of_group = Unsqueeze (keys_by_head, one_row)
    values_32 = Cast <to = 1> (values)
    values_more = Concat <axis = 0> (values_32, one_value)
    values_by_head = Transpose <perm = [1, 0, 2]> (values_more)
    values_of_group = Unsqueeze (values_by_head, one_row)
    query_32 = Cast <to = 1> (query_rows)
    query_grouped = Reshape (query_32, grouped_shape)
    query_by_head = Transpose <perm = [1, 2, 0, 3]> (query_grouped)
    products = MatMul (query_by_head, keys_of_group)
    scaled = Mul (products, scale)
    masked_logits = Where (masked, lowest, scaled)
    tokens_scalar = Squeeze (tokens, zero_row)
    tokens_more = Add (tokens_scalar, one)
    positions = Range (zero, tokens_more, one)
    is_added = Equal (positions, tokens)
    no_tokens = Equal (tokens, zero_row)
    added_logit = Where (no_tokens, no_logit, minus_infinity)
    logits = Where (is_added, added_logit, masked_logits)
    chances = Softmax <axis = -1> (logits)
    sums = MatMul (chances, values_of_group)
    sums_by_row = Transpose <perm = [2, 0, 1, 3]> (sums)
    out_rows = Reshape (sums_by_row, rows_shape)
"""
"""Rows of queries over the tokens of one sequence."""
