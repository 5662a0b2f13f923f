"""The ONNX operators that the proof follows, each on `Terms`, on constant integers, and on shapes.

What is not here, or not in the way it is here, raises `RefusalError`: the proof then stops, the graph stays.
"""

from __future__ import annotations

from collections.abc import Callable

from .arithmetic import ADDS, PRODUCTS, SCALES, SUMS
from .call import Call, Value
from .integers import FOLDS
from .movements import MOVEMENTS, split

__all__ = ["ADDS", "MOVEMENTS", "OPERATORS", "PRODUCTS", "SCALES", "SUMS", "split"]

OPERATORS: dict[str, Callable[[Call], Value]] = {**MOVEMENTS, **PRODUCTS, **SUMS, **SCALES, **ADDS, **FOLDS}
"""All that is followed, beside Split, which has several outputs (`split`)."""
