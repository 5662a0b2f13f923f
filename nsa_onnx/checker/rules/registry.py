"""The list of rules for all targets. `general` adds a rule, `row_rule` adds one that reports rows of the error tables.

The modules of this folder fill it when they are imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from ...analysis import Analysis
from ...graph.inference import is_shown_as
from ...operators import OPERATORS
from ...operators.contract import Rows, Violation
from ...operators.facts import NODE_ROWS
from ...rulebook.finding import Finding
from ...rulebook.rule import Check, Rule, finding, note, rule, sound
from ...targets import TARGETS

REGISTERED: dict[str, Rule] = {}
"""The rules for all targets, by id."""


def rule_of_row(tables: Iterable[Rows]) -> dict[str, str]:
    """Which rule reports a row of an error table, by the row's id."""
    found: dict[str, str] = {}
    for row in chain.from_iterable(rows.values() for rows in tables):
        if found.setdefault(row.id, row.rule) != row.rule:
            raise ValueError(f"row {row.id!r} is reported by {found[row.id]} and by {row.rule}")
    return found


RULE_OF_ROW = rule_of_row((NODE_ROWS, *(operator.contract.rows for operator in OPERATORS.values())))


def general(rule_id: str, title: str, **more: Any) -> Callable[[Check], Rule]:
    """`rulebook.rule.rule`, for all targets."""

    def register(check: Check) -> Rule:
        if rule_id in REGISTERED:
            raise ValueError(f"{rule_id} is taken by {REGISTERED[rule_id].title!r}")
        REGISTERED[rule_id] = rule(rule_id, title, **more)(check)
        return REGISTERED[rule_id]

    return register


def reports(rule_id: str, violation: Violation) -> bool:
    """Whether a rule is the one for the row that is broken."""
    return RULE_OF_ROW.get(violation.row.id) == rule_id


def row_rule(rule_id: str, title: str, documentation: str, *, hint: str = "") -> None:
    """Register a rule that reports its rows of the error tables, on every node they apply to."""
    general(rule_id, title, documentation=documentation, hint=hint)(lambda model: broken_rows(model, rule_id))


def broken_rows(model: Analysis, rule_id: str) -> Iterator[Finding]:
    """The rows of the error tables that a rule reports, where nodes break them."""
    broken = ((node, node.violations) for node in model.nodes)
    # What the target forbids, and the contract not.
    refused = ((node, TARGETS[model.target].violations(node)) for node in sound(model.nodes))
    for node, violations in chain(broken, refused):
        for violation in violations:
            if reports(rule_id, violation):
                yield finding(node, violation.message, violation.row.argument)
    yield from _observed(model, rule_id)


def _observed(model: Analysis, rule_id: str) -> Iterator[Finding]:
    """What only inference can know: nodes in functions with what a call gives them, computed constants."""
    seen = {(node.op_type, violation.row.id, violation.values) for node in model.nodes for violation in node.violations}
    for name, op_type, violation in model.observed:
        if reports(rule_id, violation) and (key := (op_type, violation.row.id, violation.values)) not in seen:
            seen.add(key)
            same = [n for n in model.nodes if n.op_type == op_type and is_shown_as(name, n.proto.name)]
            same = same or [n for n in model.nodes if n.op_type == op_type and not n.proto.name]
            match same:
                case [node]:
                    yield finding(node, violation.message, violation.row.argument)
                case _:
                    yield note(violation.message, node=name, op_type=op_type, argument=violation.row.argument)
