"""What the NumPy kernels of the two selected attentions have in common: some rows, each with blocks of its own.

A row is a query token. Its tokens are gathered, as those of another row are others: some rows are computed at once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .attention_numpy import LOWEST, row_tiles, softmax
from .bits import Bits, to_bits, to_float

Integers = npt.NDArray[np.int64]


def wrong_blocks(topk: npt.NDArray[np.int32], lengths: Integers, select_block_size: int) -> bool:
    """Whether there is a block that the sequence of its row, of ``lengths[row]`` tokens, does not have."""
    blocks = -(-lengths // select_block_size)[:, np.newaxis, np.newaxis]
    return bool(((topk < -1) | (topk >= blocks)).any())


def attend(
    dtype: str,
    query: Bits,
    key: Bits,
    value: Bits,
    topk: npt.NDArray[np.int32],
    scale: float,
    select_block_size: int,
    lengths: Integers,
    place: Callable[[slice, Integers], Integers],
    output: Bits,
    positions: Integers | None = None,
) -> None:
    """Every row attends to the tokens of its blocks, which have been checked.

    Args:
        query: ``[rows, N1, D]``.
        key, value: ``[tokens, N2, D]`` and ``[tokens, N2, Dv]``.
        topk: ``[rows, N2, k]``.
        lengths: ``[rows]``, tokens of each row's sequence.
        place: where tokens of these rows' sequences, ``[rows, n]``, lie in ``key``.
        output: ``[rows, N1, Dv]``.
        positions: ``[rows]``, the last token that each row sees, if it does not see all.
    """
    rows, heads, _ = query.shape
    kv_heads, dims = key.shape[1], key.shape[2] + value.shape[2]
    group = heads // kv_heads
    lengths = lengths[:, np.newaxis]
    offsets = np.arange(select_block_size, dtype=np.int64)
    for chunk in row_tiles(0, rows, topk.shape[2] * select_block_size * dims):
        for g in range(kv_heads):
            blocks = topk[chunk, g].astype(np.int64)
            tokens = (blocks[..., np.newaxis] * select_block_size + offsets).reshape(len(blocks), -1)
            read = (tokens >= 0) & (tokens < lengths[chunk])
            seen = read
            if positions is not None:
                seen = read & (tokens <= positions[chunk, np.newaxis])
                # A row that sees none of its tokens weighs all of them alike; other rows read only what they see.
                read = np.where(seen.any(1, keepdims=True), seen, read)
            used = read.any(0)
            heads_of_group = slice(g * group, (g + 1) * group)
            if not used.any():
                output[chunk, heads_of_group] = 0
                continue
            tokens, read, seen = tokens[:, used], read[:, used], seen[:, used]
            where = read * place(chunk, read * tokens)  # where nothing is read, the first token of all
            keys, values = key[where, g], value[where, g]
            values[~read] = 0  # what is not read weighs nothing, whatever lies there
            queries, keys, values = (to_float(dtype, bits) for bits in (query[chunk, heads_of_group], keys, values))
            with np.errstate(all="ignore"):
                logits = np.matmul(queries, keys.swapaxes(1, 2))
                logits *= np.float32(scale)
                np.copyto(logits, LOWEST, where=~seen[:, np.newaxis])
                np.copyto(logits, -np.inf, where=~read[:, np.newaxis])
                sums = np.matmul(softmax(logits), values)
            sums[~read.any(1)] = 0
            output[chunk, heads_of_group] = to_bits(dtype, sums)
