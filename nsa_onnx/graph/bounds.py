"""Estimates what onnx's shape inference would cost before it is run: onnx itself sets no limit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

import onnx.defs
from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, TypeProto, ValueInfoProto

from .outline import Op, Outline, Step, below
from .tensors import elements
from .walk import constant_tensor, text

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

# Operators with schemas of the caller's, which propagate nothing and make no tensor longer than their inputs; with
# the rank of what they make.
Own = Mapping[Op, int]


def function_calls(outline: Outline) -> float:
    """How often functions are called in all, calls within calls counted each time; infinite if they recur."""
    if not outline.functions:
        return 0
    totals = _calls_by_function(outline)
    return sum(totals.get(step.op, 0) for step in below(outline.main))


def _by_op(outline: Outline) -> dict[Op, tuple[FunctionProto, Sequence[Step]]]:
    return {(function.domain, function.name): (function, inner) for function, inner in outline.functions}


def _calls_by_function(outline: Outline) -> dict[Op, float]:
    """Calls that one call of each function makes, itself included. Those that are called come first."""
    functions = _by_op(outline)
    called = {key: [step.op for step in below(inner) if step.op in functions] for key, (_, inner) in functions.items()}
    totals: dict[Op, float] = {}
    open_: set[Op] = set()
    pending: list[tuple[Op, bool]] = [(key, False) for key in called]
    while pending:
        key, done = pending.pop()
        inner = called[key]
        if done:
            open_.discard(key)
            totals[key] = 1 + sum(totals.get(other, math.inf) for other in inner)
        elif key not in totals and key not in open_:
            open_.add(key)
            pending.append((key, True))
            pending.extend((other, False) for other in set(inner) if other not in totals)
    return totals


def propagates_safely(
    proto: ModelProto, outline: Outline, own: Own, types: Mapping[str, TypeProto] | None = None
) -> bool:
    """Whether onnx's data propagation is bounded in a model that nobody vouches for. Functions must not recur.

    It makes an entry for each element of every tensor of rank 1 that has a static size, whatever its type. So all
    sizes have to be known before: from inputs and constants, by operators that make no tensor longer than its inputs,
    and from inference without it.

    Args:
        outline: of the model.
        own: operators of the caller's.
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
    functions = _by_op(outline)
    costs: dict[Op, tuple[float, float]] = {}
    for key in _calls_by_function(outline):
        costs[key] = _propagated(functions[key][1], {}, {}, costs, own)
    return _propagated(outline.main, sizes, inferred, costs, own)[1] <= MAX_PROPAGATED


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
    steps: Iterable[Step],
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
    bounded = _propagating_ops() | _NO_LONGER
    get = sizes.get
    pending = [iter(steps)]
    while pending:
        step = next(pending[-1], None)
        if step is None:
            pending.pop()
            continue
        op = step.op
        op_type = op[1]
        largest_input, all_inputs = 1.0, 0.0
        for name in step.inputs:
            one = get(name, 1.0)
            all_inputs += one
            if one > largest_input:
                largest_input = one
        size = all_inputs if op_type == "Concat" else largest_input
        cost = max(size, all_inputs)
        tensor = constant_tensor(step.node) if op_type == "Constant" else None
        if op in costs:
            factor, each = costs[op]
            size, cost = size * factor, size * each
        elif tensor is not None:
            size = cost = _size(tensor.dims)
        elif op_type in _RANK_FROM_VALUES and MAX_RANK < largest_input < math.inf:
            size = cost = math.inf  # data would become a shape that inference alone does not make
        elif op_type in ("Shape", "Size"):
            size = cost = float(MAX_RANK)  # whatever the input's size, of which nothing is read
        elif op_type not in bounded and op not in own:
            size, cost = math.inf, 0.0
        for name in step.outputs:
            known = inferred.get(name, math.inf) if len(pending) == 1 else math.inf
            sizes[name] = max(min(size, known), get(name, 1.0))
        largest, total = max(largest, cost), total + cost
        for graph, inner in step.graphs:
            sizes.update((value.name, math.inf) for value in graph.input)
            for constant in graph.initializer:
                sizes[constant.name] = max(_size(constant.dims), get(constant.name, 1.0))
            pending.append(iter(inner))
    return largest, total


def inferred_dims(proto: ModelProto, outline: Outline, own: Own) -> float:
    """A bound of the dims that onnx infers without data propagation, of all values together. No function may recur.

    Args:
        outline: of the model.
        own: operators of the caller's.
    """
    main = _Ranks(own, {})
    functions = _by_op(outline)
    for key in _calls_by_function(outline):
        inner = _Ranks(own, main.costs, of_function=True)
        function, steps = functions[key]
        main.costs[key] = inner.run(steps, function.value_info)
    for tensor in proto.graph.initializer:
        main.ranks[tensor.name] = float(len(tensor.dims))
        if tensor.data_type in _INTEGERS:
            main.constants[tensor.name] = _size(tensor.dims)
    return main.run(outline.main, (*proto.graph.input, *proto.graph.value_info, *proto.graph.output))[1]


_INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32})


class _Ranks:
    """Ranks of the values of a graph or function, and of what is in its nodes.

    Attributes:
        costs: what `run` says of each function with inputs of one dim; the work grows with them at most in proportion.
        ranks, constants: ranks of values, and elements of those that are constants.
    """

    def __init__(self, own: Own, costs: dict[Op, tuple[float, float]], *, of_function: bool = False) -> None:
        self._own, self.costs, self._of_function = own, costs, of_function
        self.ranks: dict[str, float] = {}
        self.constants: dict[str, float] = {}

    def run(self, steps: Iterable[Step], values: Iterable[ValueInfoProto]) -> tuple[float, float]:
        """Bounds of the highest rank of the nodes' values, and of the dims of all of them. ``values`` are declared."""
        self._declare(values)
        ranks = self.ranks
        highest = total = 1.0
        for step in below(steps):
            if step.op in self.costs:
                factor, each = self.costs[step.op]
                given = max(1.0, *(ranks.get(n, 1.0) for n in step.inputs), self._longest_constant(step))
                rank, total = given * factor, total + given * each
            else:
                rank = self._rank(step)
            if step.graphs:
                rank = max(rank, highest) + 1
            if rank > highest:
                highest = rank
            total += rank * (len(step.outputs) or 1)
            for name in step.outputs:
                if rank > ranks.get(name, 0.0):
                    ranks[name] = rank
            for graph, _ in step.graphs:
                self._enter(graph, rank)
        return highest, total

    def _rank(self, step: Step) -> float:
        """A bound of the rank of what a node makes, at least 1."""
        op_type = step.op[1]
        if op_type == "Constant" and (tensor := constant_tensor(step.node)) is not None:
            self.constants[step.outputs[0]] = _size(tensor.dims)
            return max(1.0, float(len(tensor.dims)))
        if step.op in self._own:
            return float(self._own[step.op])
        if op_type in ("Shape", "Size"):
            return 1.0
        highest, total, last = 1.0, 0.0, 1.0
        for name in step.inputs:
            last = self.ranks.get(name) or 1.0
            total += last
            if last > highest:
                highest = last
        if op_type in _RANK_FROM_RANKS:
            highest = max(1.0, total)
            if op_type == "Gather" and not self._of_function and len(step.inputs) == 2 and last < 2:
                highest = max(1.0, total - 1)  # a scalar or a list adds no dim; what a caller gives may have more
        if op_type in _RANK_FROM_VALUES:
            highest = max(highest, self._longest_constant(step))
        return max(highest, step.ints) if step.ints else highest

    def _longest_constant(self, step: Step) -> float:
        return max((self.constants.get(name, 0.0) for name in step.inputs), default=0.0)

    def _declare(self, values: Iterable[ValueInfoProto]) -> None:
        for value in values:
            rank = float(len(value.type.tensor_type.shape.dim))
            self.ranks[value.name] = max(rank, self.ranks.get(value.name, 1.0))

    def _enter(self, graph: GraphProto, rank: float) -> None:
        """What is known of a graph's values before its nodes; ``rank`` is of the node that holds it."""
        self._declare((*graph.input, *graph.value_info, *graph.output))
        for value in graph.input:
            self.ranks[value.name] = max(rank, self.ranks[value.name])
        for constant in graph.initializer:
            self.ranks[constant.name] = max(float(len(constant.dims)), self.ranks.get(constant.name, 1.0))
            self.constants[constant.name] = _size(constant.dims)


def _size(dims: Iterable[int]) -> float:
    """Elements, dims of 0 and unknown ones counted for 1: Gather can take such a dim away."""
    return elements(max(1, dim) for dim in dims)


@cache
def _propagating_ops() -> frozenset[str]:
    schemas = onnx.defs.get_all_schemas_with_history()
    return frozenset(schema.name for schema in schemas if schema.has_data_propagation_function)
