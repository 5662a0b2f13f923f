"""What a contract is made of: arrays without data, the rows of an error table, and violations of them.

An operator's contract says what the operator takes and refuses (`contract.py` in its folder). It and everything that
it imports need the standard library only: ``cmake/generate_spec_header.py`` loads them when the build is configured,
where nothing else is installed.

Shapes are tuples of ints. A dim that is not known (None) passes every check that needs it, as shape inference wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from .hints import Hint

DOMAIN = "nsa_onnx"
OPSET_VERSION = 1
DTYPES = ("float16", "bfloat16")

Dim = int | None
Shape = Sequence[Dim]
Error = type[TypeError] | type[RuntimeError]


@dataclass(frozen=True)
class Array:
    """What the contract sees of an array: no data. ``dtype`` is NumPy's name for the type."""

    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Row:
    """One row of an error table.

    Attributes:
        message: has one ``{}`` per value, in order.
        rule: the rule of ``nsa-onnx check`` that reports it.
    """

    id: str
    error: Error
    argument: str
    message: str
    rule: str = ""


Rows = Mapping[str, Row]


def table(*rows: tuple[str, Error, str, str] | tuple[str, Error, str, str, str]) -> dict[str, Row]:
    """An error table: rows by id. Their order is the order in which errors win."""
    return {row[0]: Row(*row) for row in rows}


@dataclass(frozen=True)
class Violation:
    """A row of the table that the input breaks, with the values of its message.

    ``hint`` is the way out, where a habit explains the mistake.
    """

    row: Row
    values: tuple[object, ...]
    hint: Hint | None = None

    @property
    def message(self) -> str:
        text = self.row.message.format(*self.values)
        return text if self.hint is None else text + self.hint.ending

    def throw(self) -> NoReturn:
        raise self.row.error(self.message)


Violations = Iterator[Violation]


def raise_first(violations: Violations) -> None:
    """Raise the first violation: TypeError or RuntimeError, as its row says."""
    for violation in violations:
        violation.throw()


@dataclass(frozen=True)
class Contract:
    """The part of an operator that C++ knows as well: its name, its error table and its numbers.

    Attributes:
        limits: a frozen dataclass of ints.
        constants: further numbers, by the name that they have in Python.
    """

    op_type: str
    rows: Rows
    limits: object
    constants: Mapping[str, int | Sequence[int]] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------
# Kinds of arguments


def is_int(value: object) -> bool:
    """An int of the contract: Python's or NumPy's; a bool is none. Symbolic ints of torch count."""
    if isinstance(value, (int, float)):  # Dynamo, which traces this, cannot go through their bases
        return not isinstance(value, (bool, float))
    # NumPy and torch are not imported for this question: an object that is one of theirs has done so.
    return any(
        (base.__module__, base.__qualname__) in (("numpy", "integer"), ("torch", "SymInt"))
        for base in type(value).__mro__
    )


def is_float(value: object) -> bool:
    """A float of the contract: Python's or NumPy's."""
    if isinstance(value, (int, float)):
        return isinstance(value, float)
    return any((base.__module__, base.__qualname__) == ("numpy", "floating") for base in type(value).__mro__)


def plural(number: int, noun: str) -> str:
    """``1 token``, ``2 tokens``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], verb: str = "") -> str:
    """``A, B and C``; with a verb, ``A takes`` and ``A and B take``."""
    joined = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"{joined} {verb}{'' if names[1:] else 's'}" if verb else joined


def kind(value: object) -> str:
    """The kind of an argument, for messages."""
    return type(value).__name__


def wrong_sequence(value: object) -> str | None:
    """None for a tuple or list of ints; else what it is."""
    if not isinstance(value, (tuple, list)):
        return kind(value)
    for index, element in enumerate(value):
        if not is_int(element):
            return f"{kind(element)} at index {index}"
    return None
