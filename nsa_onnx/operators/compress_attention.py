"""What the nodes and the bodies of the two compress-attention stages have in common."""

from __future__ import annotations

from .attention import COUNT, SELECT
from .base import Output
from .windows import BLOCK, STRIDE

WINDOW = (BLOCK, STRIDE)
"""What a stage and the compression that made its keys and values agree in."""

SCORES_TEXT = """    score[s] = sum over the heads of a group and i = 0 .. m + n - 2 of
               min(i + 1, n, m + n - 1 - i) * P[m * (s + 1) - i]

with `m = select_block_size / compress_stride` and `n = compress_block_size / compress_stride`, rounded down; `P` beyond
the sequence's tokens is 0. So block `s` counts the compressed tokens `m * s - n + 2 .. m * (s + 1)`, one later than
windows and blocks overlap: Ascend's kernels do so. `topk_indices` has the `select_block_count` blocks of highest score,
highest first, equal ones by ascending index, -1 where there are no more. A score that is NaN counts as infinite."""


def topk_indices(rows: str, key_axis: int) -> Output:
    """The second output: ``rows`` is what query's first dim is called, ``key_axis`` where N2 is in key."""
    return Output(
        "topk_indices",
        "tensor(int32)",
        f"`[{rows}, N2, k]`: for each query token and key/value head, the blocks of highest score.",
        dims=((("query", 0),), (("key", key_axis), ("value", key_axis)), ()),
        agrees=(SELECT, COUNT),
    )


BLOCK_CONSTANTS = """
    compress = Constant <value_int: int = @compress_block_size> ()
    stride = Constant <value_int: int = @compress_stride> ()
    per_block = Div (select, stride)
    per_window = Div (compress, stride)
    reach_more = Add (per_block, per_window)
    reach_count = Sub (reach_more, one)
    reach = Range (zero, reach_count, one)
    reach_next = Add (reach, one)
    reach_left = Sub (reach_count, reach)
    pairs_ahead = Min (reach_next, reach_left)
    pairs = Min (pairs_ahead, per_window)
    pairs_32 = Cast <to = 1> (pairs)
    weights = Unsqueeze (pairs_32, one_row)
    select_less = Sub (select, one)
"""
"""m, n and the weights of the compressed tokens of a block, min(i + 1, n, m + n - 1 - i): ``[m + n - 1, 1]``."""

# Expects chances [N2, G, r, L + 1] and tokens, as ATTEND has them, blocks (S, a row of one) and forced (what broadcasts
# to [r, N2, S]); gives topk_rows [r, N2, k].
BLOCKS = """
    of_group = ReduceSum <keepdims = 0> (chances, one_row)
    blocks_scalar = Squeeze (blocks, zero_row)
    block_ids = Range (zero, blocks_scalar, one)
    block_next = Add (block_ids, one)
    block_ends = Mul (block_next, per_block)
    block_ends_column = Unsqueeze (block_ends, one_row)
    counted = Sub (block_ends_column, reach)
    counted_from = GreaterOrEqual (counted, zero)
    counted_to = Less (counted, tokens)
    is_token = And (counted_from, counted_to)
    counted_or_added = Where (is_token, counted, tokens)
    met = Gather <axis = 2> (of_group, counted_or_added)
    scores_column = MatMul (met, weights)
    scores_by_head = Squeeze (scores_column, three_row)
    scores = Transpose <perm = [1, 0, 2]> (scores_by_head)
    undefined = IsNaN (scores)
    highest = Or (undefined, forced)
    ranked = Where (highest, infinity, scores)
    rows_and_heads = Shape <start = 0, end = 2> (scores)
    added_shape = Concat <axis = 0> (rows_and_heads, count)
    added = ConstantOfShape <value = float[1] {-inf}> (added_shape)
    candidates = Concat <axis = 2> (ranked, added)
    best_scores, best = TopK <axis = -1> (candidates, count)
    is_block = Less (best, blocks)
    best_or_none = Where (is_block, best, minus_one)
    topk_rows = Cast <to = 6> (best_or_none)
"""
"""Scores of the blocks, and the k best."""
