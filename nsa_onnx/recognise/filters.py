"""Which products and sums are worth a proof: a look at shapes and equations, before anything is followed.

A model of many layers has thousands of matrix products, and means of its normalisations. None of them is a weighted
sum of windows, and their shapes say so. What is turned away here is not reported either.
"""

from __future__ import annotations

import math

from onnx import AttributeProto, NodeProto

from .graph import Graph
from .loops import WINDOW_LOOP
from .positions import Budget
from .roots import added_to, data_inputs, moves, sums
from .terms import LEAST_SUMMED, LEAST_WINDOW

# A window of this many tokens is far beyond the contract.
_MOST_SUMMED = 1024
# Movements between windows and what is done with them.
_NEARBY = 12


def worth_trying(graph: Graph, node: NodeProto, budget: Budget) -> bool:
    """Whether a product or a sum may be the compression, or look like it."""
    if node.op_type == "MatMul":
        return _matmul(graph, node, budget)
    if node.op_type == "Einsum":
        return not _is_dense_einsum(node) or _reads_windows(graph, node, budget)
    if node.op_type == "Conv":
        return _conv(graph, node)
    if node.op_type == "Mul":
        return str(node.input[0]) != str(node.input[1])
    return node.op_type in (WINDOW_LOOP, "AveragePool") or (sums(node) and _is_moved(graph, node.input[0], budget))


def _matmul(graph: Graph, node: NodeProto, budget: Budget) -> bool:
    """A weight has one column, or one row: with more, the product is a projection."""
    shapes = [graph.dims(name) for name in node.input[:2]]
    first, second = shapes
    if first is None or second is None or not first or not second:
        return True
    summed, rows = first[-1], first[-2] if len(first) > 1 else 1
    columns = second[-1] if len(second) > 1 else 1
    if 1 in (rows, columns):
        return summed is None or LEAST_SUMMED <= summed <= _MOST_SUMMED
    return _reads_windows(graph, node, budget)


def _is_dense_einsum(node: NodeProto) -> bool:
    """Whether each operand has an axis in the result that the other has not."""
    text = next((a.s for a in node.attribute if a.name == "equation" and a.type == AttributeProto.STRING), b"")
    left, arrow, out = text.replace(b" ", b"").partition(b"->")
    operands = left.split(b",")
    if not arrow or len(operands) != 2:
        return False
    first, second = (set(operand) & set(out) for operand in operands)
    return bool(first - second) and bool(second - first)


def _conv(graph: Graph, node: NodeProto) -> bool:
    """One weight per token and channel, or what looks like that: groups, and windows of many tokens."""
    shape = graph.dims(node.input[1])
    if shape is None or len(shape) < 3 or None in shape:
        return True
    known = [dim for dim in shape if dim is not None]
    numbers = {a.name: list(a.ints) for a in node.attribute if a.type == AttributeProto.INTS}
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    if known[1] == 1:
        return math.prod(known[2:]) >= LEAST_SUMMED
    return group > 1 and max(known[2:]) >= LEAST_WINDOW and max(numbers.get("strides", []), default=1) > 1


def _reads_windows(graph: Graph, node: NodeProto, budget: Budget) -> bool:
    """Whether an operand has just been gathered in windows, or put together from slices."""
    pending = list(node.input[:2])
    for _ in range(_NEARBY):
        if not pending:
            break
        budget.visit()
        maker = graph.producer(pending.pop(0))
        if maker is None or not moves(graph, maker):
            continue
        index = graph.dims(maker.input[1]) if maker.op_type in ("Gather", "GatherND") and len(maker.input) > 1 else None
        if maker.op_type == "Concat" or (index is not None and len(index) > 1):
            return True
        pending.extend(data_inputs(graph, maker))
    return False


def _is_moved(graph: Graph, name: str, budget: Budget) -> bool:
    """Whether a value has been moved: the axes of what has not are no windows."""
    for _ in range(_NEARBY):
        budget.visit()
        maker = graph.producer(name)
        if maker is None:
            return False
        if moves(graph, maker):
            if maker.op_type not in ("Cast", "Identity", "Mul", "Div"):
                return True
            (name,) = data_inputs(graph, maker)
            continue
        pair = added_to(graph, maker, budget)
        if pair is None:
            return False
        name = pair[0]
    return True
