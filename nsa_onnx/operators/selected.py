"""What the two selected attentions have in common: words of the documentation, samples, the float64 reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..graph.tensors import Integers
from .attention import COUNT, SCALE, SELECT
from .attention_reference import softmax
from .attention_sampling import Heads, most_rows
from .base import Attributes, Exact, Input
from .compression import HOST
from .facts import NodeFacts
from .numbers import Floats

BLOCKS_TEXT = (
    "A sequence's tokens make blocks of `select_block_size`, the last one with what is left. Query head `h` attends "
    "with the key/value head `h // G`, `G = N1 / N2`. In `topk_indices`, an entry of -1 is skipped and a block that "
    "stands twice counts twice; a row without any block gives 0. The order of the blocks does not matter but for "
    "rounding."
)
# Products in the reference of one run: less than a second.
_MOST_WORK = 2**31


def topk_input(rows: str) -> Input:
    """The input of selected blocks, with the name of its first dim."""
    text = (
        f"`[{rows}, N2, select_block_count]`: the blocks of each row and key/value head, by their numbers in the row's "
        f"own sequence: `-1 .. ceil(L / select_block_size) - 1`. {HOST}"
    )
    return Input("topk_indices", "tensor(int32)", text, agrees=(SELECT, COUNT))


# --------------------------------------------------------------------------------------------------
# The reference


def attended(query: Floats, key: Floats, value: Floats, attributes: Attributes, hidden: npt.NDArray[np.bool_]) -> Exact:
    """What the heads of one group make of their tokens: ``[G, D]``, ``[n, D]`` and ``[n, Dv]`` to ``[G, Dv]``.

    Args:
        hidden: ``[n]``, true where a token is not seen.
    """
    if not len(key):
        nothing = np.zeros((len(query), value.shape[1]))
        return Exact(nothing, nothing)
    sizes = np.abs(query) @ np.abs(key).T
    unseen = np.broadcast_to(hidden, sizes.shape)
    return softmax(query @ key.T, sizes, query.shape[1], attributes[SCALE], unseen).weighted(value)


def tokens_of(blocks: Integers, length: int, select_block_size: int) -> Integers:
    """The tokens of a row's blocks in the order of its blocks, one for each time that it counts."""
    ranges = [range(b * select_block_size, min((b + 1) * select_block_size, length)) for b in blocks.tolist() if b >= 0]
    tokens: Integers = np.array([token for one in ranges for token in one], np.int64)
    return tokens


# --------------------------------------------------------------------------------------------------
# Samples


def heads_of(facts: NodeFacts, attributes: Attributes) -> Heads:
    """`Heads.of` a node, whose blocks may tell N2 as well."""
    heads, told = Heads.of(facts, attributes), facts.tensor("topk_indices").dim(1)
    return heads if told is None else replace(heads, kv=told)


def rows_run(attributes: Attributes, heads: Heads) -> int:
    """Rows that are run at most."""
    values = heads.query * (heads.dim + heads.value_dim)
    products: int = values * attributes[SELECT] * attributes[COUNT]
    return min(most_rows(values), max(1, _MOST_WORK // products))


def some_blocks(lengths: Integers, own: Integers, kv_heads: int, attributes: Attributes) -> Integers:
    """Blocks of rows, ``[rows, N2, k]``: first their own one, then any or none.

    Args:
        lengths: ``[rows]``, tokens of each row's sequence.
        own: ``[rows]``, a token that each row should see.
    """
    generator = np.random.default_rng(1)
    select, count = attributes[SELECT], attributes[COUNT]
    blocks = -(-lengths // select)[:, None, None]
    topk: Integers = np.floor(generator.random((len(lengths), kv_heads, count)) * (blocks + 1)).astype(np.int64) - 1
    topk[:, :, 0] = np.minimum(own // select, blocks.ravel() - 1)[:, None]
    return topk
