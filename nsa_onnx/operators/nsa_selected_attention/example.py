"""The call of NsaSelectedAttention that ``nsa-onnx doctor`` makes."""

from __future__ import annotations

import numpy as np

from ..attention import CAUSAL, COUNT, HEADS, KEY_LENGTHS, QUERY_LENGTHS, SCALE, SELECT
from ..base import Example

# Two sequences of whole blocks, as the vendor's operator on Ascend takes them.
_ENDS = (128, 320)
_BLOCK, _COUNT = 64, 2


def _blocks() -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Of each token its own block and the one before; of the first block the one behind, which causal hides."""
    topk = np.empty((_ENDS[-1], 1, _COUNT), np.int32)
    begin = 0
    for end in _ENDS:
        for t in range(begin, end):
            own = (t - begin) // _BLOCK
            topk[t, 0] = own, abs(own - 1)
        begin = end
    return topk


EXAMPLE = Example(
    {SCALE: 192**-0.5, HEADS: 16, SELECT: _BLOCK, COUNT: _COUNT, CAUSAL: 1},
    {"query": (_ENDS[-1], 16, 192), "key": (_ENDS[-1], 1, 192), "value": (_ENDS[-1], 1, 128)},
    {
        "topk_indices": _blocks(),
        QUERY_LENGTHS: np.array(_ENDS, np.int64),
        KEY_LENGTHS: np.array(_ENDS, np.int64),
    },
)
