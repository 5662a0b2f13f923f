"""A quick look at shapes and equations that decides which products and sums are worth a proof.

A model of many layers has thousands of matrix products, and means in its normalisations. None of them is a weighted
sum of windows, and their shapes show it. What is excluded here is not reported either.
"""

from __future__ import annotations

import math

from onnx import AttributeProto, NodeProto

from .graph import Graph
from .loops import WINDOW_LOOP
from .positions import Budget
from .roots import added_to, data_inputs, moves
from .terms import LEAST_SUMMED, LEAST_WINDOW

# A window of this many tokens is far beyond the contract.
_MOST_SUMMED = 1024
# Movements between windows and what is done with them.
_NEARBY = 12


def is_dense(graph: Graph, node: NodeProto) -> bool:
    """Whether a product has a matrix for its weight, by shapes and equation alone."""
    if node.op_type == "MatMul":
        sizes = _matrix_sizes(graph, node)
        return sizes is not None and 1 not in (sizes[0], sizes[2])
    if node.op_type == "Einsum":
        return _is_dense_einsum(node)
    shape = graph.dims(node.input[1]) if node.op_type == "Conv" else None
    return shape is not None and len(shape) > 2 and shape[1] is not None and shape[1] > 1


def looks_like_windows(graph: Graph, node: NodeProto, budget: Budget) -> bool:
    """Whether a person would take a dense product for the compression."""
    if node.op_type != "Conv":
        return _reads_windows(graph, node, budget)
    numbers = {a.name: list(a.ints) for a in node.attribute if a.type == AttributeProto.INTS}
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    kernel = [dim or 0 for dim in (graph.dims(node.input[1]) or ())[2:]]
    wide = max(kernel, default=0) >= LEAST_WINDOW
    return group > 1 and wide and max(numbers.get("strides", []), default=1) > 1


def worth_trying(graph: Graph, node: NodeProto, budget: Budget) -> bool:
    """Whether a product that is not dense, or a sum, may be the compression, or look like it."""
    if node.op_type == "MatMul":
        sizes = _matrix_sizes(graph, node)
        return sizes is None or sizes[1] is None or LEAST_SUMMED <= sizes[1] <= _MOST_SUMMED
    if node.op_type == "Conv":
        kernel = (graph.dims(node.input[1]) or (None,))[2:]
        return None in kernel or not kernel or math.prod(dim or 0 for dim in kernel) >= LEAST_SUMMED
    if node.op_type == "Mul":
        return str(node.input[0]) != str(node.input[1])
    return node.op_type in ("Einsum", WINDOW_LOOP, "AveragePool") or _is_moved(graph, node.input[0], budget)


def _matrix_sizes(graph: Graph, node: NodeProto) -> tuple[int | None, int | None, int | None] | None:
    """Rows, what is summed over, and columns of a matrix product; None if the ranks are not known."""
    first, second = (graph.dims(name) for name in node.input[:2])
    if not first or not second:
        return None
    return first[-2] if len(first) > 1 else 1, first[-1], second[-1] if len(second) > 1 else 1


def _is_dense_einsum(node: NodeProto) -> bool:
    """Whether each operand has an axis in the result that the other has not."""
    text = next((a.s for a in node.attribute if a.name == "equation" and a.type == AttributeProto.STRING), b"")
    left, arrow, out = text.replace(b" ", b"").partition(b"->")
    operands = left.split(b",")
    if not arrow or len(operands) != 2:
        return False
    first, second = (set(operand) & set(out) for operand in operands)
    return bool(first - second) and bool(second - first)


def _reads_windows(graph: Graph, node: NodeProto, budget: Budget) -> bool:
    """Whether an operand has just been gathered at constant places in windows.

    A Concat says nothing: caches and rotary embeddings are put together before products, too.
    """
    pending = list(node.input[:2])
    for _ in range(_NEARBY):
        if not pending:
            break
        budget.visit()
        maker = graph.producer(pending.pop(0))
        if maker is None or not moves(graph, maker):
            continue
        gathers = maker.op_type in ("Gather", "GatherND") and len(maker.input) > 1
        index = graph.constant(maker.input[1]) if gathers else None
        if index is not None and len(index.dims) > 1:
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
            name = next(iter(data_inputs(graph, maker)), "")
            continue
        pair = added_to(graph, maker, budget)
        if pair is None:
            return False
        name = pair[0]
    return True
