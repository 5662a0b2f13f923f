"""What the attention stages' NumPy kernels have in common: where the native library is missing, these compute.

Numbers are float32 and sums are NumPy's, so a result is within the contract's bound of the float64 reference, but
need not have the native kernels' bits. Nothing here is as large as all queries times all keys: the kernels call it
for some rows at a time (`row_tiles`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .bits import Bits, to_float

Float32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

LOWEST = np.finfo(np.float32).min
"""What a masked logit becomes: a row that sees nothing is then uniform."""

# Logits that are computed at once: 8 MB, which a core's cache and a small machine's memory both take.
_MOST_LOGITS = 2**21


def row_tiles(begin: int, end: int, logits_of_a_row: int) -> Iterator[slice]:
    """Rows ``begin .. end - 1`` in pieces with few logits."""
    step = max(1, _MOST_LOGITS // max(1, logits_of_a_row))
    for first in range(begin, end, step):
        yield slice(first, min(first + step, end))


def softmax(logits: Float32) -> Float32:
    """Over the last axis, which is not empty, in place."""
    logits -= logits.max(-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(-1, keepdims=True)
    return logits


def probabilities(query: Float32, keys: Float32, scale: float, hidden: Mask | None = None) -> Float32:
    """The softmax of scaled products.

    Args:
        query: ``[rows, N1, D]``.
        keys: ``[N2, D, L]``, L >= 1.
        hidden: ``[rows, L]``, true where a key is not seen.

    Returns:
        ``[N2, rows, G, L]``.
    """
    rows, heads, dim = query.shape
    kv_heads, _, tokens = keys.shape
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, dim).swapaxes(0, 1)
    products: Float32 = np.matmul(grouped.reshape(kv_heads, -1, dim), keys)
    products *= np.float32(scale)
    logits: Float32 = products.reshape(kv_heads, rows, heads // kv_heads, tokens)
    if hidden is not None:
        np.copyto(logits, LOWEST, where=hidden[:, np.newaxis])
    return softmax(logits)


def attended(chances: Float32, values: Float32) -> Float32:
    """Values weighted by `probabilities`: ``values [N2, L, Dv]`` to ``[rows, N1, Dv]``."""
    kv_heads, rows, group, tokens = chances.shape
    sums: Float32 = np.matmul(chances.reshape(kv_heads, rows * group, tokens), values)
    heads: Float32 = sums.reshape(kv_heads, rows, group, -1).swapaxes(0, 1).reshape(rows, kv_heads * group, -1)
    return heads


def keys_and_values(dtype: str, key: Bits, value: Bits) -> tuple[Float32, Float32]:
    """One sequence's tokens ``[L, N2, D]`` and ``[L, N2, Dv]`` as `probabilities` and `attended` take them."""
    keys = np.ascontiguousarray(to_float(dtype, key).transpose(1, 2, 0))
    return keys, np.ascontiguousarray(to_float(dtype, value).swapaxes(0, 1))


def block_scores(chances: Float32, blocks: int, per_block: int, per_window: int) -> Float32:
    """The scores of the blocks that tokens are selected by: ``[N2, rows, G, L]`` to ``[rows, N2, blocks]``.

    Block s counts the compressed tokens ``m * (s + 1) - i`` for i = 0 .. m + n - 2, weighted by how many pairs of a
    stride in the block and one in the window there are: ``min(i + 1, n, m + n - 1 - i)``.

    Args:
        per_block: m, strides in a block.
        per_window: n, strides in a window.
    """
    m, n = per_block, per_window
    reach, tokens = m + n, chances.shape[-1]
    # With a zero wherever a block reaches beyond the tokens.
    padded = np.zeros((*chances.shape[:2], reach + tokens + reach), np.float32)
    padded[..., reach : reach + tokens] = chances.sum(2)
    scores = np.zeros((*chances.shape[:2], blocks), np.float32)
    rising = np.arange(1, reach, dtype=np.float32)
    for i, weight in enumerate(np.minimum(np.minimum(rising, rising[::-1]), np.float32(n))):
        first = reach + m - i
        scores += weight * padded[..., first : first + m * blocks : m]
    by_row: Float32 = scores.swapaxes(0, 1)
    return by_row


def attend_rows(
    query: Float32,
    keys: Float32,
    values: Float32,
    scale: float,
    blocks: int,
    sizes: tuple[int, int],
    hidden: Mask | None = None,
) -> tuple[Float32, Float32]:
    """What the compress attentions compute of some rows: ``[rows, N1, Dv]`` and the scores ``[rows, N2, blocks]``.

    Args:
        query, keys, scale, hidden: as of `probabilities`.
        values: as of `attended`.
        blocks, sizes: as of `block_scores`.
    """
    with np.errstate(all="ignore"):
        chances = probabilities(query, keys, scale, hidden)
        return attended(chances, values), block_scores(chances, blocks, *sizes)


def top_blocks(scores: Float32, count: int) -> npt.NDArray[np.int32]:
    """The ``count`` highest of each row, equal ones by ascending index, NaN as infinity; -1 where there are no more."""
    order = np.argsort(-np.where(np.isnan(scores), np.inf, scores), axis=-1, kind="stable")[..., :count]
    result = np.full((*scores.shape[:-1], count), -1, np.int32)
    result[..., : order.shape[-1]] = order
    return result


class Pages:
    """The tokens of sequences in pages."""

    def __init__(self, pages: Bits, block_table: npt.NDArray[np.int32]) -> None:
        """``pages`` are ``[block_num, page, N2, D]``; the table's entries that are read have been checked."""
        self._pages, self._table = pages, block_table

    def tokens(self, sequence: int, positions: npt.NDArray[np.int64]) -> Bits:
        """``[len(positions), N2, D]``."""
        page = self._pages.shape[1]
        found: Bits = self._pages[self._table[sequence, positions // page], positions % page]
        return found
