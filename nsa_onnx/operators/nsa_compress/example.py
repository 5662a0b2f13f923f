"""Calls of NsaCompress to show it by: the one of ``nsa-onnx doctor``, and any other size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..base import Example
from ..windows import BLOCK, SEQ, STRIDE


def example(block: int, stride: int, ends: Sequence[int], heads: int, dim: int) -> Example:
    """Segments that end at these prefix sums."""
    shapes = {"input": (ends[-1], heads, dim), "weight": (block, heads)}
    return Example({BLOCK: block, STRIDE: stride}, shapes, {SEQ: np.array(ends, np.int64)})


# The middle segment is shorter than a window.
EXAMPLE = example(32, 16, (1000, 1010, 4096), 4, 128)
