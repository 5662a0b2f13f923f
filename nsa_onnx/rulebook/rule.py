"""The class `Rule`, the `rule` decorator that makes one, and `finding` and `note`, which make what it reports."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from operator import attrgetter

from onnx import NodeProto

from ..analysis import Analysis, NsaNode
from ..graph.scopes import Scope
from ..graph.walk import node_name, text
from ..operators import OPERATORS
from ..operators.base import Lengths, Operator
from ..operators.facts import NodeFacts
from ..operators.model_text import RuleExample
from .finding import Finding, Severity

WIDTH = 118
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
    rule_id: str,
    title: str,
    *,
    documentation: str = "",
    example: str | None = None,
    accepted: str | None = None,
    hint: str = "",
    severity: Severity = Severity.ERROR,
) -> Callable[[Check], Rule]:
    """Make a rule of a function (arguments: `Rule`). Findings get id, severity and, if they have none, the hint.

    Without a documentation it is the function's docstring; without examples they are those of the operators.
    """
    shown = _shown(rule_id)

    def make(check: Check) -> Rule:
        def stamped(model: Analysis) -> Iterator[Finding]:
            for found in check(model):
                argument = text(found.argument)
                yield replace(found, rule=rule_id, severity=severity, argument=argument, hint=found.hint or hint)

        return Rule(
            rule_id,
            title,
            severity,
            _filled(documentation) if documentation else inspect.cleandoc(check.__doc__ or ""),
            shown.triggers if example is None else example,
            shown.accepted if accepted is None else accepted,
            hint,
            stamped,
        )

    return make


def _filled(documentation: str) -> str:
    """With lines that fit a page, whatever names stand in it."""
    paragraphs = inspect.cleandoc(documentation).split("\n\n")
    return "\n\n".join(
        one if all(len(line) <= WIDTH for line in one.splitlines()) else textwrap.fill(" ".join(one.split()), WIDTH)
        for one in paragraphs
    )


def _shown(rule_id: str) -> RuleExample:
    """The models that operators have for a rule: the first of each kind."""
    found = [one for operator in OPERATORS.values() if (one := operator.rule_examples.get(rule_id)) is not None]
    return RuleExample(*(next(filter(None, map(attrgetter(kind), found)), "") for kind in RuleExample._fields))


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


def ours(nodes: Iterable[NsaNode]) -> Iterator[tuple[NsaNode, Operator, NodeFacts]]:
    """Those that are nodes of our operators, with the operator and what is known of the node."""
    return ((node, OPERATORS[node.op_type], node.facts) for node in nodes if node.facts is not None)


def sound(nodes: Iterable[NsaNode]) -> Iterator[NsaNode]:
    """The nodes that break no row of the error table: what is said of others would follow from that."""
    return (node for node in nodes if not node.violations and not node.unreadable)


# How many nodes a value is followed back through.
_FOLLOWED = 4096


def made_by(scope: Scope, name: str, through: Container[str]) -> tuple[Scope, str] | None:
    """Where a value comes from, followed back through the first inputs of nodes of these types: its scope and name.

    None where the model does not say, or it is nothing (an input that is left out).
    """
    for _ in range(_FOLLOWED):  # a cycle ends here
        home = scope.home(name)
        made = None if home is None else home.producer(name)
        if home is None or made is None:
            return None
        if made.op_type not in through:
            return home, name
        name, scope = made.input[0] if made.input else "", home
    return None


# --------------------------------------------------------------------------------------------------
# Operators in a rule's words


def op_types(holds: Callable[[Operator], bool]) -> list[str]:
    """The operators of which something holds."""
    return [op_type for op_type, operator in OPERATORS.items() if holds(operator)]


def taking(lengths: Lengths) -> list[str]:
    """The operators that take lengths in this form."""
    return op_types(lambda operator: any(one.lengths is lengths for one in operator.inputs))
