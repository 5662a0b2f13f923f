"""The call of NsaCompressInfer that ``nsa-onnx doctor`` makes."""

from __future__ import annotations

import numpy as np

from ..base import Example
from ..windows import BLOCK, SEQ, STRIDE
from .contract import PAGE

_LENGTHS = (1024, 100, 31, 512)  # the first and the last complete a window
_BATCH, _PAGES = len(_LENGTHS), 16  # of each sequence

EXAMPLE = Example(
    {BLOCK: 32, STRIDE: 16, PAGE: 64},
    {"input": (_BATCH * _PAGES, 64, 4, 128), "weight": (32, 4), "cache": (8, 4, 128)},
    {
        "slot_mapping": np.array([5, -1, -1, 2], np.int32),
        SEQ: np.array(_LENGTHS, np.int64),
        "block_table": np.arange(_BATCH * _PAGES, dtype=np.int32)[::-1].reshape(_BATCH, _PAGES).copy(),
    },
)
