"""What a rule is and how one is made: the `rule` decorator, `row_rule` for rows of the error table, `finding`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ... import spec
from ...graph.walk import text
from ..model import Model, NsaNode
from ..report import Finding, Severity

Check = Callable[[Model], Iterator[Finding]]

TARGETS = ("cpu", "cann", "cann-aclnn", "atc")
"""What a model can be meant for: cpu, and on Ascend our kernels, the vendor's operators in onnxruntime, ATC."""


@dataclass(frozen=True)
class Rule:
    """A rule of the checker.

    Attributes:
        id: stable; never reused or renumbered.
        title: what must hold, in a few words.
        severity: of all of its findings.
        documentation: what it looks for and why; its function's docstring.
        example: a model that it has a finding for, in ONNX's text format (``onnx.parser.parse_model`` reads it);
            empty if no model alone triggers it.
        accepted: a model just inside the bound, of which it says nothing.
        hint: the way out; empty where the message says it. Findings may have one that fits better.
        targets: what a model must be meant for, so that the rule looks at it.
        check: gives its findings.
    """

    id: str
    title: str
    severity: Severity
    documentation: str
    example: str
    accepted: str
    hint: str
    targets: tuple[str, ...]
    check: Check


REGISTERED: dict[str, Rule] = {}
"""All rules by id, as their modules are imported."""

RULE_OF_ROW: dict[str, str] = {}
"""Which rule reports a row of the error table."""


def rule(
    rule_id: str,
    title: str,
    *,
    example: str,
    accepted: str,
    hint: str = "",
    severity: Severity = Severity.ERROR,
    targets: tuple[str, ...] = TARGETS,
) -> Callable[[Check], Check]:
    """Register a rule (arguments: `Rule`). Its findings get id, severity and, if they have none, the hint from here."""

    def register(check: Check) -> Check:
        def stamped(model: Model) -> Iterator[Finding]:
            for found in check(model):
                argument = text(found.argument)
                yield replace(found, rule=rule_id, severity=severity, argument=argument, hint=found.hint or hint)

        if rule_id in REGISTERED:
            raise ValueError(f"{rule_id} is taken by {REGISTERED[rule_id].title!r}")
        documentation = inspect.cleandoc(check.__doc__ or "")
        REGISTERED[rule_id] = Rule(rule_id, title, severity, documentation, example, accepted, hint, targets, stamped)
        return check

    return register


def row_rule(
    rule_id: str, title: str, documentation: str, rows: Sequence[str], *, example: str, accepted: str, hint: str = ""
) -> None:
    """Register a rule that reports rows of the error table, on every node they apply to."""

    def check(model: Model) -> Iterator[Finding]:
        for node in model.nodes:
            for violation in node.violations:
                if violation.row.id in rows:
                    yield finding(node, violation.message, violation.row.argument)
        yield from observed_violations(model, rows)

    check.__doc__ = documentation
    rule(rule_id, title, example=example, accepted=accepted, hint=hint)(check)
    RULE_OF_ROW.update(dict.fromkeys(rows, rule_id))


def observed_violations(model: Model, rows: Sequence[str]) -> Iterator[Finding]:
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


def finding(node: NsaNode, message: str, argument: str = "", hint: str = "") -> Finding:
    """A finding about a node of ours. The rule's id and severity are filled in by `rule`."""
    return Finding("", Severity.ERROR, message, node.name, node.op_type, argument, node.scope.place, hint)


def note(
    message: str, *, node: str = "", op_type: str = "", argument: str = "", place: str = "", hint: str = ""
) -> Finding:
    """A finding about the model, or about a node that is not ours."""
    return Finding("", Severity.ERROR, message, node, op_type, argument, place, hint)


def connected(node: NsaNode, name: str) -> bool:
    """Whether an input of the schema is connected."""
    return node.facts is not None and name in node.facts.inputs


def of_type(model: Model, op_type: str) -> Iterator[NsaNode]:
    """The nodes of one of our operators."""
    return (node for node in model.nodes if node.facts is not None and node.op_type == op_type)


def sound(nodes: Iterator[NsaNode]) -> Iterator[NsaNode]:
    """The nodes that break no row of the error table: what is said of others would follow from that."""
    return (node for node in nodes if not node.violations and not node.unreadable)


COMPRESS, INFER = spec.COMPRESS_OP, spec.INFER_OP
