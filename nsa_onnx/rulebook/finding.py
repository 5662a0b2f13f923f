"""A finding: one thing that a rule found wrong, and how severe it is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Severity(str, Enum):
    """How bad a finding is: an error will not run or gives a wrong result, a warning may."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        rule: the rule's stable id, ``NSA006``.
        severity: error or warning.
        message: what is wrong, with argument, value and bound.
        node: the node's name, ``#3`` for the fourth node of its graph if it has none, empty if no node is meant.
        op_type: the node's operator.
        argument: the input, attribute or output that the message is about, if it is about one.
        place: where the node is: ``graph``, ``graph > then_branch of 'if'``, ``function local.Step``.
        hint: the way out, if there is one.
    """

    rule: str
    severity: Severity
    message: str
    node: str = ""
    op_type: str = ""
    argument: str = ""
    place: str = ""
    hint: str = ""
