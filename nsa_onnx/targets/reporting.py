"""Makes rules that report a model which breaks the limits of a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..analysis import Analysis
from ..rulebook.finding import Finding
from ..rulebook.rule import Rule, finding, rule, sound
from .base import Limits, violations


def limit_rule(
    rule_id: str,
    title: str,
    documentation: str,
    limits: Limits,
    rows: Sequence[str],
    *,
    example: str,
    accepted: str,
    hint: str,
) -> Rule:
    """A rule on nodes that break one of these rows."""

    def check(model: Analysis) -> Iterator[Finding]:
        for node in sound(model.nodes):
            for violation in violations(limits, node):
                if violation.row.id in rows:
                    yield finding(node, violation.message, violation.row.argument)

    check.__doc__ = documentation
    made = rule(rule_id, title, example=example, accepted=accepted, hint=hint)(check)
    return replace(made, rows=tuple(rows))
