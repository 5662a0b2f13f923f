"""Finds where the tokens, the weight and the bias of a sum may come from: values that hold all their elements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from ..graph.walk import is_standard
from .graph import Graph
from .loops import WINDOW_LOOP
from .operators import MOVEMENTS, PRODUCTS, SCALES, SUMS
from .positions import Budget, Dynamic
from .precision import FLOAT, SHORT
from .results import Root

# Roots that are tried for one sum.
_MAX_ROOTS = 6
# Products whose first input is the tokens.
_FIXED = ("Conv", WINDOW_LOOP)


def scales(graph: Graph, node: NodeProto) -> bool:
    """Whether a node multiplies all of a tensor by one constant, or divides it through one."""
    return _scaled_input(graph, node) is not None


def _scaled_input(graph: Graph, node: NodeProto) -> str | None:
    if not is_standard(node) or node.op_type not in SCALES or len(node.input) != 2:
        return None
    first, second = node.input
    if graph.scalar(second) is not None:
        return str(first)
    return str(second) if node.op_type == "Mul" and graph.scalar(first) is not None else None


def multiplies(graph: Graph, node: NodeProto) -> bool:
    """Whether a node multiplies two tensors."""
    product = is_standard(node) and node.op_type in PRODUCTS and len(node.input) >= 2 and len(node.output) == 1
    return product and not scales(graph, node)


def sums(node: NodeProto) -> bool:
    """Whether a node sums or averages elements of one tensor."""
    return is_standard(node) and node.op_type in SUMS and len(node.input) > 0 and len(node.output) == 1


def moves(graph: Graph, node: NodeProto) -> bool:
    """Whether a node makes each element of its result from one element of its data."""
    return is_standard(node) and (node.op_type in MOVEMENTS or node.op_type == "Split" or scales(graph, node))


def data_inputs(graph: Graph, node: NodeProto) -> Sequence[str]:
    """The inputs that are moved, scaled or summed."""
    if node.op_type == "Concat":
        return list(node.input)
    scaled = _scaled_input(graph, node)
    return list(node.input[:1]) if scaled is None else [scaled]


@dataclass(frozen=True)
class Operands:
    """The two sides of products, or the one of sums.

    Attributes:
        x: values that make the tokens.
        w: values that make the weight; empty for sums without one.
    """

    x: tuple[str, ...]
    w: tuple[str, ...] = ()


def operands(graph: Graph, bases: set[int], budget: Budget) -> list[Operands]:
    """Which values may be the tokens and which the weight, the likelier way first."""
    first: list[str] = []
    second: list[str] = []
    for index in sorted(bases):
        node = graph.nodes[index]
        if sums(node):
            first.append(node.input[0])
            continue
        a, b = node.input[0], node.input[1]
        if node.op_type not in _FIXED and _is_smaller(graph, a, b, budget):
            a, b = b, a
        first.append(a)
        second.append(b)
    if not second:
        return [Operands(tuple(first))]
    both = [Operands(tuple(first), tuple(second))]
    if all(graph.nodes[index].op_type not in _FIXED for index in bases):
        both.append(Operands(tuple(second), tuple(first)))
    return both


def _is_smaller(graph: Graph, first: str, second: str, budget: Budget) -> bool:
    """Whether the first of two operands is rather the weight, or the bias, of the second."""
    mine, other = _size(graph, first, budget), _size(graph, second, budget)
    return mine < other


def _size(graph: Graph, name: str, budget: Budget) -> tuple[bool, float]:
    """Whether an operand comes from anything but constants, and the elements that it is moved from."""
    total, varies = 0.0, False
    for leaf in _ancestors(graph, [name], budget, adds=False)[1]:
        varies = varies or graph.constant(leaf) is None
        known = graph.root(leaf)
        if known is None or any(isinstance(dim, Dynamic) for dim in known.shape):
            total = math.inf
            continue
        total += math.prod(dim for dim in known.shape if not isinstance(dim, Dynamic))
    return varies, total


def added_to(graph: Graph, node: NodeProto, budget: Budget) -> tuple[str, str] | None:
    """The tokens and the bias of an Add whose one side is rather the bias of the other."""
    if not is_standard(node) or node.op_type != "Add" or len(node.input) != 2:
        return None
    first, second = node.input
    if _is_smaller(graph, second, first, budget):
        return first, second
    return (second, first) if _is_smaller(graph, first, second, budget) else None


def _ancestors(
    graph: Graph, names: Iterable[str], budget: Budget, *, adds: bool
) -> tuple[dict[str, Sequence[str]], list[str]]:
    """What values are moved from: inputs of each moved value, and the values that are not moved from others."""
    edges: dict[str, Sequence[str]] = {}
    leaves: list[str] = []
    pending = list(dict.fromkeys(names))
    seen = set(pending)
    while pending:
        budget.visit()
        name = pending.pop()
        node = graph.producer(name)
        sources: Sequence[str] = ()
        if node is not None and graph.constant(name) is None:
            if moves(graph, node):
                sources = [source for source in data_inputs(graph, node) if source]
            elif adds and (added := added_to(graph, node, budget)) is not None:
                sources = added[:1]
        if not sources:
            leaves.append(name)
            continue
        edges[name] = sources
        for source in sources:
            if source not in seen:
                seen.add(source)
                pending.append(source)
    return edges, leaves


def biases(graph: Graph, names: Sequence[str], budget: Budget) -> list[str]:
    """Values that all biases on the way to these values come from, farthest first; none if nothing is added."""
    edges, _ = _ancestors(graph, names, budget, adds=True)
    added: list[str] = []
    for name in edges:
        node = graph.producer(name)
        pair = None if node is None or moves(graph, node) else added_to(graph, node, budget)
        if pair is not None:
            added.append(pair[1])
    return dominators(graph, list(dict.fromkeys(added)), budget) if added else []


def dominators(graph: Graph, names: Sequence[str], budget: Budget, *, adds: bool = False) -> list[str]:
    """The values through which every way from the leaves to the operands leads, farthest first.

    Args:
        names: the operands.
        adds: whether ways lead through what has a bias added, too.
    """
    edges, leaves = _ancestors(graph, names, budget, adds=adds)
    ordered = [*leaves, *sorted(edges, key=lambda name: graph.producers[name])]
    at = {name: position for position, name in enumerate(ordered)}
    reach = [0] * len(ordered)
    for name, sources in edges.items():
        for source in sources:
            reach[at[source]] = max(reach[at[source]], at[name])
    for name in names:
        reach[at[name]] = len(ordered)
    result: list[str] = []
    farthest = len(leaves) - 1  # all ways start at the leaves
    for position, name in enumerate(ordered):
        if farthest <= position:
            result.append(name)
        farthest = max(farthest, reach[position])
    return result


def known_roots(graph: Graph, names: Sequence[str]) -> list[Root]:
    """Those whose type is known; of 16 bits if there are such."""
    known = [found for name in names if (found := graph.root(name)) is not None]
    short = [found for found in known if found.dtype in SHORT]
    # A float32 constant may be a 16-bit weight that an exporter has folded: its numbers tell.
    constant = [found for found in known if found.dtype == FLOAT and graph.constant(found.name) is not None]
    return (short or constant or known)[:_MAX_ROOTS]
