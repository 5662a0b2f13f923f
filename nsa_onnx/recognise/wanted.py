"""The operator that windows of tokens, weighted and summed, are proven to be."""

from __future__ import annotations

from ..operators import OPERATORS
from ..operators.base import Pattern
from ..operators.windows import WindowLimits

WINDOWS = next(operator for operator in OPERATORS.values() if operator.pattern is Pattern.WEIGHTED_WINDOWS)
assert isinstance(WINDOWS.contract.limits, WindowLimits)
LIMITS: WindowLimits = WINDOWS.contract.limits
