"""The call of NsaSelectedAttentionInfer that ``nsa-onnx doctor`` makes."""

from __future__ import annotations

import numpy as np

from ..attention import COUNT, HEADS, KEY_LENGTHS, KV_HEADS, PAGE, SCALE, SELECT
from ..base import Example

_LENGTHS = (1024, 100, 512, 65)
_BATCH, _PAGES, _PAGE, _BLOCK, _COUNT = len(_LENGTHS), 8, 128, 64, 16


def _blocks() -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """The last blocks of each sequence, -1 where there are no more."""
    topk = np.full((_BATCH, 1, _COUNT), -1, np.int32)
    for b, length in enumerate(_LENGTHS):
        last = range(-(-length // _BLOCK) - 1, -1, -1)[:_COUNT]
        topk[b, 0, : len(last)] = last
    return topk


EXAMPLE = Example(
    {SCALE: 192**-0.5, HEADS: 16, KV_HEADS: 1, SELECT: _BLOCK, COUNT: _COUNT, PAGE: _PAGE},
    {
        "query": (_BATCH, 16, 192),
        "key": (_BATCH * _PAGES, _PAGE, 1, 192),
        "value": (_BATCH * _PAGES, _PAGE, 1, 128),
    },
    {
        "topk_indices": _blocks(),
        KEY_LENGTHS: np.array(_LENGTHS, np.int64),
        "block_table": np.arange(_BATCH * _PAGES, dtype=np.int32)[::-1].reshape(_BATCH, _PAGES).copy(),
    },
)
