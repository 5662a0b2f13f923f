"""The rules. Each is a small function with a stable id, a severity, documentation and an example that breaks it.

To add a rule for all targets, decorate a function with `registry.general` in the module of its subject. The rules of
one target are in that target's module in `nsa_onnx.targets`. Ids are never reused or renumbered. `docs/rules.md` is
generated from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...analysis import Analysis
from ...rulebook.finding import Finding
from ...rulebook.rule import Rule
from ...targets import TARGETS
from . import bodies, caches, contract, domain, empty, fusion, running, shapes, stages, usage
from .registry import REGISTERED, RULE_OF_ROW

__all__ = [
    "RULES",
    "RULE_OF_ROW",
    "TARGETS",
    "Rule",
    "bodies",
    "caches",
    "contract",
    "domain",
    "empty",
    "fusion",
    "run",
    "running",
    "shapes",
    "stages",
    "usage",
]


def _all_rules() -> Iterator[Rule]:
    """The rules for all targets, then those of single ones, each once."""
    yield from (replace(rule, targets=tuple(TARGETS)) for rule in REGISTERED.values())
    of_targets = {rule.id: rule for target in TARGETS.values() for rule in target.rules}
    for rule in of_targets.values():
        if rule.id in REGISTERED:
            raise ValueError(f"{rule.id} is taken by {REGISTERED[rule.id].title!r}")
        holders = [target for target in TARGETS.values() if rule.id in [one.id for one in target.rules]]
        if any(one is not rule for target in holders for one in target.rules if one.id == rule.id):
            raise ValueError(f"{rule.id} is two rules of targets")
        RULE_OF_ROW.update(dict.fromkeys(rule.rows, rule.id))
        yield replace(rule, targets=tuple(target.name for target in holders))


RULES: dict[str, Rule] = {rule.id: rule for rule in sorted(_all_rules(), key=lambda rule: rule.id)}
"""All rules by id, in the order in which they report."""


def run(model: Analysis) -> tuple[Finding, ...]:
    """What the rules for the model's target find, in their order."""
    rules = (rule for rule in RULES.values() if model.target in rule.targets)
    return tuple(finding for rule in rules for finding in rule.check(model))
