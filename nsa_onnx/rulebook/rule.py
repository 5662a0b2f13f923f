"""The class `Rule`, the `rule` decorator that makes one, and `finding` and `note`, which make what it reports."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from onnx import NodeProto

from .. import spec
from ..analysis import Analysis, NsaNode
from ..graph.scopes import Scope
from ..graph.walk import node_name, text
from .finding import Finding, Severity

Check = Callable[[Analysis], Iterator[Finding]]


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
        check: gives its findings.
        rows: ids of the rows of an error table that it reports.
        targets: names of the targets that a model must be meant for, so that the rule looks at it; the list of rules
            fills them in (`checker.rules.RULES`).
    """

    id: str
    title: str
    severity: Severity
    documentation: str
    example: str
    accepted: str
    hint: str
    check: Check
    rows: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


def rule(
    rule_id: str, title: str, *, example: str, accepted: str, hint: str = "", severity: Severity = Severity.ERROR
) -> Callable[[Check], Rule]:
    """Make a rule of a function (arguments: `Rule`). Findings get id, severity and, if they have none, the hint."""

    def make(check: Check) -> Rule:
        def stamped(model: Analysis) -> Iterator[Finding]:
            for found in check(model):
                argument = text(found.argument)
                yield replace(found, rule=rule_id, severity=severity, argument=argument, hint=found.hint or hint)

        documentation = inspect.cleandoc(check.__doc__ or "")
        return Rule(rule_id, title, severity, documentation, example, accepted, hint, stamped)

    return make


def finding(node: NsaNode, message: str, argument: str = "", hint: str = "") -> Finding:
    """A finding about a node of ours. The rule's id and severity are filled in by `rule`."""
    return Finding("", Severity.ERROR, message, node.name, node.op_type, argument, node.scope.place, hint)


def note(
    message: str, *, node: str = "", op_type: str = "", argument: str = "", place: str = "", hint: str = ""
) -> Finding:
    """A finding about the model, or about a node that is not ours."""
    return Finding("", Severity.ERROR, message, node, op_type, argument, place, hint)


def of_node(scope: Scope, index: int, node: NodeProto, message: str) -> Finding:
    """A finding about a node that is not ours, the one at ``index`` of its graph."""
    return note(message, node=node_name(node, index), op_type=text(node.op_type), place=scope.place)


def connected(node: NsaNode, name: str) -> bool:
    """Whether an input of the schema is connected."""
    return node.facts is not None and name in node.facts.inputs


def of_type(model: Analysis, op_type: str) -> Iterator[NsaNode]:
    """The nodes of one of our operators."""
    return (node for node in model.nodes if node.facts is not None and node.op_type == op_type)


def sound(nodes: Iterable[NsaNode]) -> Iterator[NsaNode]:
    """The nodes that break no row of the error table: what is said of others would follow from that."""
    return (node for node in nodes if not node.violations and not node.unreadable)


COMPRESS, INFER = spec.COMPRESS_OP, spec.INFER_OP
