"""Calls of NsaCompressAttention to show it by: the one of ``nsa-onnx doctor``, and any other size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from ..attention import BLOCK_LENGTHS, COMPRESSED_LENGTHS, COUNT, HEADS, QUERY_LENGTHS, SCALE, SELECT
from ..base import Example
from ..windows import BLOCK, STRIDE, window_count
from .contract import block_count


def example(
    lengths: Sequence[int],
    heads: int,
    kv_heads: int,
    dim: int,
    value_dim: int,
    block: int,
    stride: int,
    select: int,
    count: int,
) -> Example:
    """Sequences of these lengths whose tokens are queries, keys and values alike."""
    compressed = [window_count(length, block, stride) for length in lengths]
    blocks = [block_count(length, stride, select) for length in compressed]
    indices = {QUERY_LENGTHS: lengths, COMPRESSED_LENGTHS: compressed, BLOCK_LENGTHS: blocks}
    shapes = {
        "query": (sum(lengths), heads, dim),
        "key": (sum(compressed), kv_heads, dim),
        "value": (sum(compressed), kv_heads, value_dim),
    }
    return Example(
        {SCALE: dim**-0.5, HEADS: heads, BLOCK: block, STRIDE: stride, SELECT: select, COUNT: count},
        shapes,
        {name: np.array([*accumulate(steps)], np.int64) for name, steps in indices.items()},
    )


# Each sequence has four blocks at least: the vendor's operator on Ascend takes no other.
EXAMPLE = example((256, 300), 8, 2, 64, 64, 32, 16, 64, 4)
