"""What a check found, and how it is printed: findings, the report, text and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


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


@dataclass(frozen=True)
class Report:
    """The outcome of `nsa_onnx.check`.

    Attributes:
        model: path of the model; empty if it was checked in memory.
        target: what it was checked for.
        nodes: names of the NsaCompress and NsaCompressInfer nodes that were looked at, functions' included.
        findings: what is wrong, in the order of the rules; empty if the model is right.
    """

    model: str
    target: str
    nodes: tuple[str, ...]
    findings: tuple[Finding, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.findings)

    def to_text(self) -> str:
        """For people: one line per finding and one in the end."""
        lines = [_line(finding) for finding in self.findings]
        counts = ", ".join(_plural(self.count(severity), severity.value) for severity in Severity)
        verdict = "ok" if self.ok else counts
        lines.append(f"{_clean(self.model) or 'model'}: {verdict} ({_plural(len(self.nodes), 'NSA node')} checked)")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """A summary and entries of level, source (the rule), message and nodes, as lint reports have them."""
        failing = list(dict.fromkeys(finding.node for finding in self.findings if finding.node))
        return {
            "model": self.model,
            "target": self.target,
            "summary": {
                "ok": self.ok,
                "errors": self.count(Severity.ERROR),
                "warnings": self.count(Severity.WARNING),
                "passing": [name for name in self.nodes if name not in failing],
                "failing": failing,
            },
            "entries": [
                {
                    "level": finding.severity.value,
                    "source": finding.rule,
                    "message": finding.message,
                    "nodes": [finding.node] if finding.node else [],
                    "op_type": finding.op_type,
                    "argument": finding.argument,
                    "place": finding.place,
                }
                for finding in self.findings
            ],
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _line(finding: Finding) -> str:
    where = ""
    if finding.node:
        inside = f", in {finding.place}" if finding.place not in ("", "graph") else ""
        where = f" {finding.op_type or 'node'} {finding.node!r}{inside}:"
    return _clean(f"{finding.severity.value} {finding.rule}{where} {finding.message}")


def _clean(text: str) -> str:
    """Names come from the model: nothing in them may steer a terminal or forge a line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
