"""What a target is, and how its limits are written down. Needs the standard library only.

A target's limits stand in the target's own module, also where the contract has the same number today.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..operators.contract import Row, Violation, Violations, listed

if TYPE_CHECKING:
    from ..analysis import NsaNode
    from ..operators.facts import NodeFacts
    from ..rulebook.rule import Rule
    from .preparing import Prepare


@dataclass(frozen=True)
class Limit:
    """Something that a target does not take of a node that is right.

    Attributes:
        rows: ids of the rows that it may break. Where the contract bounds the same number, the id is the contract's,
            and the rule for that row reports both.
        find: the rows that a node breaks, from what is known of it.
    """

    rows: tuple[str, ...]
    find: Callable[[NodeFacts], Violations]


Limits = Mapping[str, Sequence[Limit]]
"""Limits by operator."""


@dataclass(frozen=True)
class Target:
    """What a model can be meant for.

    Attributes:
        name: what ``--target`` takes.
        title: what it is, for docs/rules.md.
        limits: of each of our operators that it has, what it does not take, which may be nothing. None if it has all
            of them and takes what their contracts take.
        rules: the rules that hold for it, beyond those for all targets.
        prepare: makes a model ready for it; None if there is nothing to do.
        options: flags of ``prepare``: name and help.
        missing: why it does not have operators of ours, where that is worth telling.
    """

    name: str
    title: str
    limits: Limits | None = None
    rules: tuple[Rule, ...] = ()
    prepare: Prepare | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def violations(self, node: NsaNode) -> Violations:
        """What it does not take of a node that breaks no row of the contract."""
        return violations(self.limits or {}, node)

    def lacks(self, op_type: str) -> str:
        """That it does not have one of our operators; empty if it does."""
        return lacks(self.limits, op_type, self.missing)


def lacks(limits: Limits | None, op_type: str, missing: Mapping[str, str]) -> str:
    """Of a target with such limits: that it does not have an operator, and why. Empty if it does."""
    if limits is None or op_type in limits:
        return ""
    why = f" ({missing[op_type]})" if op_type in missing else ""
    return f"the target does not have the operator {op_type}{why}, only {listed(list(limits))}"


def violations(limits: Limits, node: NsaNode) -> Violations:
    """What the limits do not allow of a node that breaks no row of the contract."""
    if node.facts is not None:
        for limit in limits.get(node.op_type, ()):
            yield from limit.find(node.facts)


# --------------------------------------------------------------------------------------------------
# Bounds of one number


@dataclass(frozen=True)
class Number:
    """A number of a node: an attribute, or a dim of an input.

    Attributes:
        argument: the attribute or input.
        axis: of the input; None for an attribute.
        name: what people call the dim.
    """

    argument: str
    axis: int | None = None
    name: str = ""

    def of(self, facts: NodeFacts) -> int | None:
        """Its value; None if that is not known."""
        return facts.integer(self.argument) if self.axis is None else facts.tensor(self.argument).dim(self.axis)

    def __str__(self) -> str:
        return f"{self.argument}: {self.name}" if self.name else self.argument


def bound(row: str, number: Number, accepts: Callable[[int], bool], must: str, whose: str) -> Limit:
    """A limit on one number. The message says what it must be, for whose operator."""
    made = Row(row, RuntimeError, number.argument, f"{number} must be {must} for {whose}, got {{}}")

    def find(facts: NodeFacts) -> Violations:
        value = number.of(facts)
        if value is not None and not accepts(value):
            yield Violation(made, (value,))

    return Limit((row,), find)


def at_most(row: str, number: Number, most: int, whose: str) -> Limit:
    return bound(row, number, lambda value: value <= most, f"<= {most}", whose)


def multiple(row: str, number: Number, of: int, whose: str) -> Limit:
    return bound(row, number, lambda value: value % of == 0, f"a multiple of {of}", whose)


def one_of(row: str, number: Number, choices: Sequence[int], whose: str) -> Limit:
    return bound(row, number, lambda value: value in choices, " or ".join(map(str, choices)), whose)


def types(row: str, argument: str, choices: Sequence[str], whose: str) -> Limit:
    """A limit on the element type of an input."""
    made = Row(row, TypeError, argument, f"{argument} must be {' or '.join(choices)} for {whose}, got {{}}")

    def find(facts: NodeFacts) -> Violations:
        dtype = facts.tensor(argument).dtype
        if dtype is not None and dtype not in choices:
            yield Violation(made, (dtype,))

    return Limit((row,), find)
