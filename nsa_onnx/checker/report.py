"""What a check of one model found: findings and runs of nodes, as text and as JSON.

The formats for several models and for other programs (SARIF, JUnit, GitHub) are in `formats`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..console import clean, path_text, to_json
from ..operators.contract import plural
from ..rulebook.finding import Finding, Severity


@dataclass(frozen=True)
class NodeRun:
    """What running one node on generated input has shown.

    Attributes:
        node, op_type, place: as in `Finding`.
        ulps: the largest difference from the float64 reference, in units in the last place of the output's type; None
            if the node was not run.
        note: the sizes that it ran with, or why it was not run.
    """

    node: str
    op_type: str
    place: str
    ulps: int | None
    note: str


@dataclass(frozen=True)
class Report:
    """The outcome of `nsa_onnx.check`.

    Attributes:
        model: path of the model; empty if it was checked in memory.
        target: what it was checked for.
        nodes: names of the nodes of our operators that were looked at, functions' included.
        findings: what is wrong, in the order of the rules; empty if the model is right.
        runs: what running the nodes has shown; empty if that was not asked for.
    """

    model: str
    target: str
    nodes: tuple[str, ...]
    findings: tuple[Finding, ...] = field(default=())
    runs: tuple[NodeRun, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def count(self, severity: Severity | str) -> int:
        """How many findings are of a severity, ``error`` or ``warning``. ValueError for another one."""
        wanted = Severity(severity)
        return sum(finding.severity is wanted for finding in self.findings)

    def fails(self, fail_on: Severity | str = Severity.WARNING) -> bool:
        """Whether something was found that is at least as bad as ``fail_on``. ValueError if that is no severity."""
        mildest = Severity(fail_on)
        return self.count(Severity.ERROR) > 0 or (mildest is Severity.WARNING and not self.ok)

    def to_text(self, *, color: bool = False) -> str:
        """For people: per finding a line, and one with the hint if there is one; per run a line; one in the end."""
        lines = [line for finding in self.findings for line in finding_lines(finding, color)]
        lines += [run_line(run) for run in self.runs]
        return "\n".join([*lines, self.summary(color=color)])

    def summary(self, *, color: bool = False) -> str:
        """The last line of the text: the model, how many errors and warnings, how many nodes were looked at."""
        counts = ", ".join(plural(self.count(severity), severity.value) for severity in Severity)
        verdict = paint("ok", _GREEN, color) if self.ok else paint(counts, _worst(self), color)
        return f"{path_text(self.model) or 'model'}: {verdict} ({plural(len(self.nodes), 'NSA node')} checked)"

    def to_dict(self) -> dict[str, Any]:
        """A summary and entries of level, source (the rule), message and nodes, as lint reports have them."""
        failing = list(dict.fromkeys(finding.node for finding in self.findings if finding.node))
        data: dict[str, Any] = {
            "model": self.model,
            "target": self.target,
            "summary": {
                "ok": self.ok,
                "errors": self.count(Severity.ERROR),
                "warnings": self.count(Severity.WARNING),
                "nodes": len(self.nodes),
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
                    "hint": finding.hint,
                }
                for finding in self.findings
            ],
        }
        if self.runs:
            data["runs"] = [asdict(run) for run in self.runs]
        return data

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return to_json(self.to_dict())


# --------------------------------------------------------------------------------------------------
# Text

_RED, _YELLOW, _GREEN, _BOLD, _DIM = "1;31", "1;33", "32", "1", "2"
_COLORS = {Severity.ERROR: _RED, Severity.WARNING: _YELLOW}


def paint(text: str, code: str, color: bool) -> str:
    """The text in a terminal's colour (an SGR code), or as it is."""
    return f"\x1b[{code}m{text}\x1b[0m" if color else text


def _worst(report: Report) -> str:
    return _RED if report.count(Severity.ERROR) else _YELLOW


def where(finding: Finding | NodeRun) -> str:
    """The node and where it is; empty if no node is meant."""
    if not finding.node:
        return ""
    inside = f", in {finding.place}" if finding.place not in ("", "graph") else ""
    return clean(f"{finding.op_type or 'node'} {finding.node!r}{inside}")


def finding_lines(finding: Finding, color: bool = False) -> list[str]:
    """The finding, and its hint on a line of its own."""
    node = where(finding)
    about = f" {paint(node, _BOLD, color)}:" if node else ""
    level = paint(finding.severity.value, _COLORS[finding.severity], color)
    lines = [f"{level} {clean(finding.rule)}{about} {clean(finding.message)}"]
    if finding.hint:
        lines.append(paint(f"    hint: {clean(finding.hint)}", _DIM, color))
    return lines


def run_line(run: NodeRun) -> str:
    """What came of running a node."""
    if run.ulps is None:
        return f"not run {where(run)}: {clean(run.note)}"
    return f"ran {where(run)}: largest difference {run.ulps} ulp ({clean(run.note)})"
