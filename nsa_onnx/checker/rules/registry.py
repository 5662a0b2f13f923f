"""The list of rules for all targets. `general` adds a rule, `row_rule` adds one that reports rows of the error tables.

The modules of this folder fill it when they are imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...analysis import Analysis
from ...rulebook.finding import Finding
from ...rulebook.rule import Check, Rule, finding, note, rule, sound
from ...targets import TARGETS

REGISTERED: dict[str, Rule] = {}
"""The rules for all targets, by id."""

RULE_OF_ROW: dict[str, str] = {}
"""Which rule reports a row of the error table."""


def general(rule_id: str, title: str, **more: Any) -> Callable[[Check], Rule]:
    """`rulebook.rule.rule`, for all targets."""

    def register(check: Check) -> Rule:
        if rule_id in REGISTERED:
            raise ValueError(f"{rule_id} is taken by {REGISTERED[rule_id].title!r}")
        REGISTERED[rule_id] = rule(rule_id, title, **more)(check)
        return REGISTERED[rule_id]

    return register


def row_rule(
    rule_id: str, title: str, documentation: str, rows: Sequence[str], *, example: str, accepted: str, hint: str = ""
) -> None:
    """Register a rule that reports rows of the error table, on every node they apply to."""

    def check(model: Analysis) -> Iterator[Finding]:
        for node in model.nodes:
            for violation in node.violations:
                if violation.row.id in rows:
                    yield finding(node, violation.message, violation.row.argument)
        for node in sound(model.nodes):  # what the target forbids, and the contract not
            for violation in TARGETS[model.target].violations(node):
                if violation.row.id in rows:
                    yield finding(node, violation.message, violation.row.argument)
        yield from observed_violations(model, rows)

    check.__doc__ = documentation
    general(rule_id, title, example=example, accepted=accepted, hint=hint)(check)
    RULE_OF_ROW.update(dict.fromkeys(rows, rule_id))


def observed_violations(model: Analysis, rows: Sequence[str]) -> Iterator[Finding]:
    """What only inference can know: nodes in functions with what a call gives them, computed constants."""
    seen = {(node.op_type, violation.row.id, violation.values) for node in model.nodes for violation in node.violations}
    for name, op_type, violation in model.observed:
        if violation.row.id in rows and (key := (op_type, violation.row.id, violation.values)) not in seen:
            seen.add(key)
            # onnx names a node "node <op type>[<domain>] (<name>)", without the brackets if it has no name.
            same = [n for n in model.nodes if n.op_type == op_type and name.endswith(f"({n.proto.name})")]
            same = same or [n for n in model.nodes if n.op_type == op_type and not n.proto.name]
            if len(same) == 1:
                yield finding(same[0], violation.message, violation.row.argument)
            else:
                yield note(violation.message, node=name, op_type=op_type, argument=violation.row.argument)
