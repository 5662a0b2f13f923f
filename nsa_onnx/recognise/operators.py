"""All ONNX operators that the proof follows: on `Terms`, on constant integers, and on shapes.

For any other operator, or other use of one, `RefusalError` is raised: the proof stops and the graph stays as it is.
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
