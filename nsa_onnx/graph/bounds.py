"""What onnx's inference would cost, found before it is run: it has no bounds of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import onnx.defs
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from .tensors import elements
from .walk import constant_tensor, nodes_below, subgraphs, text

# onnx infers a function anew for every call, so nested calls can multiply without bound.
MAX_FUNCTION_CALLS = 10_000
# Entries of onnx's data propagation, of 140 bytes each. A few dozen Concats of Concats would fill the memory.
MAX_PROPAGATED = 1_000_000
# Elements that the shape of a value may have where constants or shapes make it.
MAX_RANK = 1000
# Dims that onnx infers in all: 100 bytes each. Gather(x, x) doubles the rank of x, and nothing in onnx bounds it.
MAX_INFERRED_DIMS = 4_000_000

# Operators that make as many dims as one of their inputs has elements, and those that make as many as all have dims.
_RANK_FROM_VALUES = frozenset(
    {"Reshape", "Expand", "Unsqueeze", "ConstantOfShape", "Col2Im", "MaxUnpool", "AffineGrid"}
)
_RANK_FROM_RANKS = frozenset({"Gather", "GatherND", "OneHot", "Unsqueeze", "ConcatFromSequence", "StringSplit"})
# Operators that propagate nothing and whose results are no longer than their inputs.
_NO_LONGER = frozenset({"Identity", "Neg", "Constant"})

# A node's domain and operator.
Op = tuple[str, str]
# Operators with schemas of the caller's, which propagate nothing and make no tensor longer than their inputs; with
# the rank of what they make.
Own = Mapping[Op, int]


def function_calls(proto: ModelProto) -> float:
    """How often functions are called in all, calls within calls counted each time; infinite if they recur."""
    totals = _calls_by_function(proto)
    return sum(totals.get(key, 0) for key in _all_ops(proto.graph.node))


def _calls_by_function(proto: ModelProto) -> dict[Op, float]:
    """Calls that one call of each function makes, itself included. Those that are called come first."""
    called: dict[Op, list[Op]] = {}
    for function in proto.functions:
        called[(function.domain, function.name)] = _all_ops(function.node)
    totals: dict[Op, float] = {}
    open_: set[Op] = set()
    pending: list[tuple[Op, bool]] = [(key, False) for key in called]
    while pending:
        key, done = pending.pop()
        inner = [other for other in called[key] if other in called]
        if done:
            open_.discard(key)
            totals[key] = 1 + sum(totals.get(other, math.inf) for other in inner)
        elif key not in totals and key not in open_:
            open_.add(key)
            pending.append((key, True))
            pending.extend((other, False) for other in set(inner) if other not in totals)
    return totals


def propagates_safely(proto: ModelProto, own: Own, types: Mapping[str, TypeProto] | None = None) -> bool:
    """Whether onnx's data propagation is bounded in a model that nobody vouches for. Functions must not recur.

    It makes an entry for each element of every tensor of rank 1 that has a static size, whatever its type. So all
    sizes have to be known before: from inputs and constants, by operators that make no tensor longer than its inputs,
    and from inference without it.

    Args:
        types: what is inferred for values of the main graph without data propagation, from its inputs alone.
    """
    sizes = {tensor.name: _size(tensor.dims) for tensor in proto.graph.initializer}
    for value in proto.graph.input:
        sizes[value.name] = _size([dim.dim_value for dim in value.type.tensor_type.shape.dim])
    inferred = {name: _entries(type_proto) for name, type_proto in (types or {}).items()}
    for value in proto.graph.value_info:
        # A declared rank stays: where another is inferred, onnx stops at the node. A declared dim may be replaced.
        if value.type.tensor_type.HasField("shape") and len(value.type.tensor_type.shape.dim) != 1:
            inferred[value.name] = 1.0
    functions = {(function.domain, function.name): function for function in proto.functions}
    costs: dict[Op, tuple[float, float]] = {}
    for key in _calls_by_function(proto):
        costs[key] = _propagated(functions[key].node, {}, {}, costs, own)
    return _propagated(proto.graph.node, sizes, inferred, costs, own)[1] <= MAX_PROPAGATED


def _entries(type_proto: TypeProto) -> float:
    """Entries that data propagation makes for a value of this type; infinite if that is not known.

    A dim with a name stays what it is; one without may be found by propagation, as may a rank.
    """
    shape = type_proto.tensor_type.shape
    if not type_proto.tensor_type.HasField("shape"):
        return math.inf
    if len(shape.dim) != 1 or (shape.dim[0].dim_param and not text(shape.dim[0].dim_param).startswith("unk__")):
        return 1.0
    return float(max(1, shape.dim[0].dim_value)) if shape.dim[0].HasField("dim_value") else math.inf


def _propagated(
    nodes: Iterable[NodeProto],
    sizes: dict[str, float],
    inferred: Mapping[str, float],
    costs: Mapping[Op, tuple[float, float]],
    own: Own,
) -> tuple[float, float]:
    """Bounds of the most entries that one value of the nodes gets, and of all values together.

    Args:
        sizes: elements of values that may have more than one, infinite if unknown; gets those that the nodes make.
        inferred: entries of values of the nodes, but for those in their subgraphs, where more is known of them.
        costs: result for each function with inputs of one element; the work grows with them at most in proportion.
    """
    largest = total = 1.0
    pending = [iter(nodes)]
    while pending:
        node = next(pending[-1], None)
        if node is None:
            pending.pop()
            continue
        tensor = constant_tensor(node)
        inputs = [sizes.get(name, 1.0) for name in node.input]
        size = sum(inputs) if node.op_type == "Concat" else max(inputs, default=1.0)
        cost = max(size, sum(inputs))
        if (node.domain, node.op_type) in costs:
            factor, each = costs[(node.domain, node.op_type)]
            size, cost = size * factor, size * each
        elif tensor is not None:
            size = cost = _size(tensor.dims)
        elif node.op_type in _RANK_FROM_VALUES and MAX_RANK < max(inputs, default=0) < math.inf:
            size = cost = math.inf  # data would become a shape that inference alone does not make
        elif node.op_type in ("Shape", "Size"):
            size = cost = float(MAX_RANK)  # whatever the input's size, of which nothing is read
        elif (node.domain, node.op_type) not in own and node.op_type not in _propagating_ops() | _NO_LONGER:
            size, cost = math.inf, 0.0
        for name in node.output:
            known = inferred.get(name, math.inf) if len(pending) == 1 else math.inf
            sizes[name] = max(min(size, known), sizes.get(name, 1.0))
        largest, total = max(largest, cost), total + cost
        for graph in subgraphs(node):
            sizes.update((value.name, math.inf) for value in graph.input)
            for constant in graph.initializer:
                sizes[constant.name] = max(_size(constant.dims), sizes.get(constant.name, 1.0))
            pending.append(iter(graph.node))
    return largest, total


def inferred_dims(proto: ModelProto, own: Own) -> float:
    """A bound of the dims that onnx infers without data propagation, of all values together. No function may recur."""
    constants = {tensor.name: _size(tensor.dims) for tensor in proto.graph.initializer if tensor.data_type in _INTEGERS}
    functions = {(function.domain, function.name): function for function in proto.functions}
    costs: dict[Op, tuple[float, float]] = {}
    for key in _calls_by_function(proto):
        costs[key] = _dims(functions[key].node, functions[key].value_info, {}, {}, costs, own, of_function=True)
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    ranks = {tensor.name: float(len(tensor.dims)) for tensor in proto.graph.initializer}
    return _dims(proto.graph.node, values, ranks, constants, costs, own, of_function=False)[1]


_INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32})


def _dims(
    nodes: Iterable[NodeProto],
    values: Iterable[ValueInfoProto],
    ranks: dict[str, float],
    constants: dict[str, float],
    costs: Mapping[Op, tuple[float, float]],
    own: Own,
    *,
    of_function: bool,
) -> tuple[float, float]:
    """Bounds of the highest rank of the nodes' values, and of the dims of all of them.

    Args:
        values: what is declared.
        ranks, constants: ranks of values, and elements of those that are constants; get what the nodes make.
        costs: result for each function with inputs of one dim; the work grows with them at most in proportion.
    """

    def declare(declared: Iterable[ValueInfoProto]) -> None:
        for value in declared:
            rank = float(len(value.type.tensor_type.shape.dim))
            ranks[value.name] = max(rank, ranks.get(value.name, 1.0))

    declare(values)
    highest = total = 1.0
    for node in nodes_below(nodes):
        inputs = [max(1.0, ranks.get(name, 1.0)) for name in node.input]
        rank = sum(inputs) if node.op_type in _RANK_FROM_RANKS else max(inputs, default=1.0)
        if node.op_type == "Gather" and not of_function and len(inputs) == 2 and inputs[1] < 2:
            rank -= 1  # a scalar or a list of indices adds no dim; what a caller gives may have more
        lengths = [float(len(attribute.ints)) for attribute in node.attribute]
        if node.op_type in _RANK_FROM_VALUES:
            lengths += [constants.get(name, 0.0) for name in node.input]
        tensor = constant_tensor(node)
        if (node.domain, node.op_type) in costs:
            factor, each = costs[(node.domain, node.op_type)]
            given = max(inputs + [constants.get(name, 0.0) for name in node.input], default=1.0)
            rank, total = given * factor, total + given * each
        elif tensor is not None:
            rank = max(1.0, float(len(tensor.dims)))
            constants[node.output[0]] = _size(tensor.dims)
        elif (node.domain, node.op_type) in own:
            rank = float(own[(node.domain, node.op_type)])
        elif node.op_type in ("Shape", "Size"):
            rank = 1.0
        else:
            rank = max(rank, *lengths, 1.0)
        inner = subgraphs(node)
        if inner:
            rank = max(rank, highest) + 1
        highest, total = max(highest, rank), total + rank * max(1, len(node.output))
        for name in node.output:
            ranks[name] = max(rank, ranks.get(name, 1.0))
        for graph in inner:
            declare((*graph.input, *graph.value_info, *graph.output))
            for value in graph.input:
                ranks[value.name] = max(rank, ranks[value.name])
            for constant in graph.initializer:
                ranks[constant.name] = max(float(len(constant.dims)), ranks.get(constant.name, 1.0))
                constants[constant.name] = _size(constant.dims)
    return highest, total


def _size(dims: Iterable[int]) -> float:
    """Elements, dims of 0 and unknown ones counted for 1: Gather can take such a dim away."""
    return elements(max(1, dim) for dim in dims)


@cache
def _propagating_ops() -> frozenset[str]:
    schemas = onnx.defs.get_all_schemas_with_history()
    return frozenset(schema.name for schema in schemas if schema.has_data_propagation_function)


def _all_ops(nodes: Sequence[Any]) -> list[Op]:
    found: list[Op] = []
    pending = list(nodes)
    while pending:
        node = pending.pop()
        found.append((node.domain, node.op_type))
        for graph in subgraphs(node):
            pending.extend(graph.node)
    return found
