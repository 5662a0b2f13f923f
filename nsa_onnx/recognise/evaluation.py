"""Follows all values between the roots (where tokens and weight come from) and a result, operator by operator."""

from __future__ import annotations

from collections.abc import Mapping

from ..graph.walk import is_standard
from .call import Call, Numbers, Value
from .graph import Graph
from .loops import WINDOW_LOOP
from .operators import OPERATORS, split
from .positions import Budget, RefusalError
from .results import Roots
from .terms import BIAS, Terms, W, X, root

# Inputs that must be followed: of a Conv's bias only that it is there counts, and a loop starts from 0.
_FOLLOWED = {"Conv": 2, WINDOW_LOOP: 4}

Values = dict[str, Value | RefusalError]


def evaluate(graph: Graph, final: str, roots: Roots, budget: Budget) -> Values:
    """What each value on the way is made of, or why that is not known."""
    values: Values = {}
    for role, known in ((X, roots.x), (W, roots.w), (BIAS, roots.bias)):
        if known is None:
            continue
        try:
            if known.name in values:
                raise RefusalError("the input, the weight and the bias are not all different tensors")
            values[known.name] = root(role, known.shape, known.dtype)
        except RefusalError as refusal:
            values[known.name] = refusal
    for index in sorted(_needed(graph, final, values, budget)):
        node = graph.nodes[index]
        inputs = [_input(graph, name, values) for name in node.input]
        try:
            for value in inputs[: _FOLLOWED.get(node.op_type)]:
                if isinstance(value, RefusalError):
                    raise value
            call = Call(node, [Numbers(()) if isinstance(value, RefusalError) else value for value in inputs])
            results = split(call) if node.op_type == "Split" else [OPERATORS[node.op_type](call)]
        except RefusalError as refusal:
            refusal.windows |= any(isinstance(value, Terms) and value.windows > 1 for value in inputs)
            values.update((name, refusal) for name in node.output)
            continue
        except (ArithmeticError, LookupError, TypeError, ValueError):  # what no valid model holds
            values.update((name, RefusalError(f"{node.op_type} that makes no sense")) for name in node.output)
            continue
        values.update(zip(node.output, results, strict=False))
    return values


def _input(graph: Graph, name: str, values: Mapping[str, Value | RefusalError]) -> Value | RefusalError | None:
    if not name:
        return None
    if name in values:
        return values[name]
    numbers = graph.integers(name)
    if numbers is not None:
        return numbers
    scalar = graph.scalar(name)
    return scalar if scalar is not None else RefusalError(f"{name!r} is neither constant nor followed")


def _needed(graph: Graph, final: str, known: Mapping[str, object], budget: Budget) -> set[int]:
    """Nodes between the known values and the result."""
    nodes: set[int] = set()
    pending = [final]
    while pending:
        name = pending.pop()
        index = graph.producers.get(name)
        if name in known or graph.constant(name) is not None or index is None or index in nodes:
            continue
        node = graph.nodes[index]
        if not is_standard(node) or (node.op_type not in OPERATORS and node.op_type != "Split"):
            continue
        budget.visit()
        nodes.add(index)
        pending.extend(node.input)
    return nodes
