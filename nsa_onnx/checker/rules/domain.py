"""Rule NSA045: nodes with the names of our operators in another domain, where nothing defines them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ...analysis import Analysis
from ...graph.walk import node_name, text
from ...operators import OPERATORS
from ...operators.contract import DOMAIN
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import note
from .registry import general


@general(
    "NSA045",
    "our operators are called in our domain",
    severity=Severity.WARNING,
    hint=f"give the node, and the model's opset_import, the domain {DOMAIN}; name an operator of your own otherwise",
)
def _elsewhere(model: Analysis) -> Iterator[Finding]:
    """A node with the name of one of our operators is in domain nsa_onnx, or calls a function of the model.

    In any other domain the node is not ours: nothing here has checked it, and our library does not run it. Often the
    domain was written by hand, or a tool has changed it.
    """
    functions = model.outline.bodies()
    found = defaultdict(list)
    for scope in model.scopes:
        for index, step in enumerate(scope.steps):
            domain, op_type = step.op
            if op_type in OPERATORS and domain != DOMAIN and step.op not in functions:
                found[step.op].append((scope, index, step.node))
    for (domain, op_type), nodes in found.items():
        scope, index, node = nodes[0]
        where = f"the domain is {text(domain)!r}" if domain else "it has no domain, which is that of standard operators"
        more = f" ({len(nodes) - 1} more like it)" if len(nodes) > 1 else ""
        yield note(
            f"{where}; {op_type} is an operator of {DOMAIN!r}{more}",
            node=node_name(node, index),
            op_type=op_type,
            argument="domain",
            place=scope.place,
        )
