"""The rules: each a small function with a stable id, a severity, its documentation and an example that triggers it.

To add a rule, decorate a function with `registry.rule` in the module of its theme; ids are never reused or renumbered.
`docs/rules.md` is generated from here.
"""

from __future__ import annotations

from ..model import Model
from ..report import Finding
from . import bodies, caches, contract, empty, fusion, running, shapes, targets, usage
from .registry import REGISTERED, RULE_OF_ROW, TARGETS, Rule

__all__ = [
    "RULES",
    "RULE_OF_ROW",
    "TARGETS",
    "Rule",
    "bodies",
    "caches",
    "contract",
    "empty",
    "fusion",
    "run",
    "running",
    "shapes",
    "targets",
    "usage",
]

RULES: dict[str, Rule] = dict(sorted(REGISTERED.items()))
"""All rules by id, in the order in which they report."""


def run(model: Model) -> tuple[Finding, ...]:
    """What the rules for the model's target find, in their order."""
    rules = (rule for rule in RULES.values() if model.target in rule.targets)
    return tuple(finding for rule in rules for finding in rule.check(model))
