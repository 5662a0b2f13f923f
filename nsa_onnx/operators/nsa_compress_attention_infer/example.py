"""Calls of NsaCompressAttentionInfer to show it by: the one of ``nsa-onnx doctor``, and any other size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..attention import COMPRESSED_LENGTHS, COUNT, HEADS, KV_HEADS, PAGE, SCALE, SELECT
from ..base import Example
from ..windows import BLOCK, STRIDE


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
    page: int,
) -> Example:
    """Sequences of these lengths in compressed tokens, whose pages lie one after the other."""
    pages = -(-max(lengths) // page)
    table = np.arange(len(lengths) * pages, dtype=np.int32).reshape(len(lengths), pages)
    attributes = {
        SCALE: dim**-0.5,
        HEADS: heads,
        KV_HEADS: kv_heads,
        SELECT: select,
        COUNT: count,
        PAGE: page,
        BLOCK: block,
        STRIDE: stride,
    }
    shapes = {
        "query": (len(lengths), heads, dim),
        "key": (table.size, page, kv_heads, dim),
        "value": (table.size, page, kv_heads, value_dim),
    }
    return Example(attributes, shapes, {COMPRESSED_LENGTHS: np.array(lengths, np.int64), "block_table": table})


# Each sequence has four blocks at least: the vendor's operator on Ascend takes no other.
EXAMPLE = example((200, 13, 33), 8, 2, 64, 64, 32, 16, 64, 4, 64)
