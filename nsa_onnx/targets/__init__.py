"""The targets: places where a model may run. Each has its limits, rules and fixes. To add one, see CONTRIBUTING.md."""

from __future__ import annotations

from . import aclnn, atc, cann, cpu, portable
from .base import Target

__all__ = ["TARGETS", "Target"]

TARGETS: dict[str, Target] = {
    target.name: target for target in (cpu.TARGET, portable.TARGET, cann.TARGET, aclnn.TARGET, atc.TARGET)
}
"""All targets by name; the first is what a model is meant for if nothing is said."""
