"""Target ``atc``: CANN's converter with our parser plugin, which calls the vendor's operators directly.

What the converter's parser does not take is in docs/ascend.md, with sources; `atc_rewriting` makes a model ready.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..analysis import Analysis
from ..graph.walk import subgraphs, text
from ..operators.model_text import model
from ..operators.nsa_compress.rule_examples import compress
from ..rulebook.finding import Finding
from ..rulebook.rule import note, of_node, rule
from . import vendor, vendor_rules
from .atc_rewriting import prepare_atc
from .base import Target
from .vendor_rules import PREPARE


def _after(domain: str) -> str:
    return compress(after=[f"z = {domain}Neg (y)"]).replace('["" :', '["ai.onnx" :' if domain else '["" :')


@rule(
    "NSA037",
    "ATC: every node has a domain",
    example=_after(""),
    accepted=_after("ai.onnx."),
    hint=f"write ai.onnx into the standard nodes' domain: {PREPARE}",
)
def _domains(model: Analysis) -> Iterator[Finding]:
    """ATC rejects nodes without a domain in a model that imports several domains, E16005: every model with our nodes.

    A Constant is taken either way.
    """
    imported = {entry.domain or "ai.onnx" for entry in model.proto.opset_import}
    if len(imported) < 2:
        return
    without = [
        (scope, index, node)
        for scope in model.scopes
        if not scope.in_function()
        for index, node in enumerate(scope.nodes)
        if not node.domain and node.op_type != "Constant"
    ]
    if without:
        message = f"has no domain in a model that imports {len(imported)} (E16005)"
        more = f"; {len(without) - 1} more nodes like it" if len(without) > 1 else ""
        yield of_node(*without[0], message + more)


_FUNCTION = '<domain: "f", opset_import: ["" : 18]>\nF (a) => (b)\n{\n    b = Neg (a)\n}\n'


@rule(
    "NSA039",
    "ATC: no local functions",
    example=compress() + _FUNCTION,
    accepted=compress(),
    hint=f"inline them, and drop the portable bodies of our operators: {PREPARE}",
)
def _functions(model: Analysis) -> Iterator[Finding]:
    """ATC's parser does not read model-local functions. Our operators need no body there, the plugin knows them."""
    if model.proto.functions:
        names = [f"{text(function.domain)}.{text(function.name)}" for function in model.proto.functions[:8]]
        more = ", ..." if len(model.proto.functions) > len(names) else ""
        yield note(f"the model holds local functions: {', '.join(names)}{more}")


def _inner(loop: bool) -> str:
    if loop:
        body = "body = g (int64 i, bool c) => (bool d, float16[2] r) { d = Identity (c) r = Neg (x) }"
        node = f'y = Loop (trips, "") <{body}>'
        return model(["float16[2] x", "int64 trips"], ["float16[trips, 2] y"], [node], imports="")
    branch = "{}_branch = g{} () => (float16[2] {}) {{ {} = Neg (x) }}"
    branches = ",\n      ".join(branch.format(kind, kind, kind, kind) for kind in ("then", "else"))
    return model(["float16[2] x", "bool go"], ["float16[2] y"], [f"y = If (go) <{branches}>"], imports="")


@rule(
    "NSA040",
    "ATC: no subgraphs but the branches of If",
    example=_inner(loop=True),
    accepted=_inner(loop=False),
    hint="unroll it, or serve the model with onnxruntime-cann",
)
def _subgraphs(model: Analysis) -> Iterator[Finding]:
    """Of the operators with subgraphs (Loop, Scan, ...), ATC's parser reads If only."""
    for scope in model.scopes:
        for index, node in enumerate(scope.nodes):
            if not scope.in_function() and node.op_type != "If" and subgraphs(node):
                yield of_node(scope, index, node, "holds a graph, which ATC's parser does not read")


def _two(second: str) -> str:
    return model(["float16[2] x"], ["float16[2] y"], ["[a] t = Neg (x)", f"[{second}] y = Neg (t)"], imports="")


@rule(
    "NSA041",
    "ATC: nodes have names of their own",
    example=_two("a"),
    accepted=_two("b"),
    hint=PREPARE,
)
def _names(model: Analysis) -> Iterator[Finding]:
    """In one graph, ATC refuses two nodes of one name, and a node with the name of an input (E19009)."""
    for scope in model.scopes:
        if scope.in_function():
            continue
        counts = Counter(text(node.name) for node in scope.nodes if node.name)
        counts.update(text(name) for name in scope.inputs)
        for index, node in enumerate(scope.nodes):
            count = counts.pop(text(node.name), 0)
            if count > 1:
                yield of_node(scope, index, node, f"{count} nodes or inputs have this name (E19009)")


TARGET = Target(
    "atc",
    "CANN's converter with our parser plugin, so the vendor's operators, called directly.",
    vendor.GRAPH_LIMITS,
    (*vendor_rules.DIRECT_RULES, *vendor_rules.RULES, _domains, _functions, _subgraphs, _names),
    prepare_atc,
    {"converter_only": "OUT need not load in onnxruntime"},
    vendor.NO_GRAPH,
)
