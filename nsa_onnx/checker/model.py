"""A model as the rules see it: its scopes, its NSA nodes and what is known of them. Trusts nothing in the file."""

from __future__ import annotations

import math
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx.numpy_helper
import onnx.serialization
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto

from .. import spec
from ..functions import constant_tensor, nodes_below, standard_opset, subgraphs
from ..graph.external import external_bytes
from ..graph.folding import MAX_ELEMENTS, Array, Folder, runs
from ..graph.wire import MAX_UNSCANNED_BYTES, WireError, scan
from ..schema import (
    INPUT_NAMES,
    Integers,
    NodeFacts,
    TensorFacts,
    attribute_value,
    elements,
    integer_values,
    observing,
    tensor_facts,
    violations,
)

# Protobuf cannot hold more in one message, so a larger file is no model.
MAX_FILE_BYTES = 2**31 - 1
# Initializers up to here may matter to shape inference; larger ones are weights, which it need not see.
SMALL_BYTES = 64 * 2**10
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
# Of one kind of mistake, as many are reported per node, then their number: a batch has thousands of lengths.
MAX_ALIKE = 8


# Operators that propagate nothing and whose results are no longer than their inputs.
_NO_LONGER = frozenset({"Identity", "Neg", "Constant", spec.COMPRESS_OP, spec.INFER_OP})
_INDEX_INPUTS = frozenset({"actual_seq_len", "slot_mapping", "block_table"})

# A node's domain and operator.
Op = tuple[str, str]


class UnreadableModelError(ValueError):
    """The file cannot be read as an ONNX model. The message names the file and says why."""


def load(path: Path) -> ModelProto:
    """The model without its external data.

    Raises:
        UnreadableModelError: no such file, not a regular file, too large, or not an ONNX model.

    A valid model takes twice its file while it is read, weights inside the file included; one whose messages would
    take much more is refused before.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise UnreadableModelError(f"{path}: not a file")
        if info.st_size > MAX_FILE_BYTES:
            raise UnreadableModelError(f"{path}: {info.st_size} bytes, a model is at most {MAX_FILE_BYTES}")
        if info.st_size > MAX_UNSCANNED_BYTES:
            _require_frugal(path, info.st_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some formats are "experimental", which is none of the user's business
            return onnx.load(path, load_external_data=False)
    except UnreadableModelError:
        raise
    except OSError as error:
        raise UnreadableModelError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # onnx has a parser per file type, each with exceptions of its own
        raise UnreadableModelError(f"{path}: not an ONNX model ({type(error).__name__})") from error


def _require_frugal(path: Path, size: int) -> None:
    """Refuse a large file that is no model, or takes many times its size in memory."""
    kind = onnx.serialization.registry.get_format_from_file_extension(path.suffix)
    if kind not in (None, "protobuf"):
        raise UnreadableModelError(f"{path}: {size} bytes of text, a model as text is at most {MAX_UNSCANNED_BYTES}")
    with path.open("rb", buffering=0) as file:
        try:
            scan(file, size)
        except WireError as error:
            raise UnreadableModelError(f"{path}: not an ONNX model ({error})") from error


@dataclass
class Scope:
    """The nodes of one graph or function, with what names mean there.

    Attributes:
        place: for people: ``graph``, ``graph > then_branch of 'if'``, ``function local.Step``.
        position: which node of ``parent`` holds this graph.
        inputs, outputs: their names.
        types, declared: of its values; ``declared`` is only what the model says, without what is inferred.
        producers: the node that makes a value; None where several claim to.
        names: all that stand for a value here.
    """

    place: str
    nodes: Sequence[NodeProto]
    imports: Mapping[str, int]
    parent: Scope | None = None
    is_function: bool = False
    position: int = 0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    types: dict[str, TypeProto] = field(default_factory=dict)
    declared: dict[str, TypeProto] = field(default_factory=dict)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    producers: dict[str, NodeProto | None] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def chain(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def type_of(self, name: str) -> TypeProto | None:
        return next((scope.types[name] for scope in self.chain() if name in scope.types), None)

    def home(self, name: str) -> Scope | None:
        """The scope that gives a name its meaning here: an inner name hides an outer one."""
        return next((scope for scope in self.chain() if name in scope.names), None)

    def constant(self, name: str) -> TensorProto | None:
        """The tensor that a name stands for in every run."""
        home = self.home(name)
        return None if home is None else home.constants.get(name)

    def in_function(self) -> bool:
        return any(scope.is_function for scope in self.chain())

    def knows(self, name: str) -> bool:
        return self.home(name) is not None


@dataclass(frozen=True)
class NsaNode:
    """A node of our domain.

    Attributes:
        position: among the nodes of its graph.
        facts: what is known of it; None if its operator is none of ours.
        violations: what is certainly wrong with it, as far as the error table goes.
        unreadable: constant index inputs that cannot be read, with the reason.
    """

    proto: NodeProto
    name: str
    scope: Scope
    position: int
    facts: NodeFacts | None = None
    violations: tuple[spec.Violation, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def op_type(self) -> str:
        return text(self.proto.op_type)


@dataclass(frozen=True)
class Model:
    """What the rules look at.

    Attributes:
        proto: the model, as it is in the file.
        scopes: all graphs and functions, the main graph first.
        nodes: the nodes of our domain, in all of them.
        inferred: what onnx infers for the values of the main graph when nothing but its inputs is declared.
        observed: (node's name, operator, what is wrong) of our nodes as onnx met them, in functions once per call.
        inference_error: why onnx could not infer; empty if it could.
        target: what the model is meant for.
    """

    proto: ModelProto
    scopes: tuple[Scope, ...]
    nodes: tuple[NsaNode, ...]
    inferred: Mapping[str, TypeProto]
    observed: Sequence[tuple[str, str, spec.Violation]]
    inference_error: str
    target: str


def read(proto: ModelProto, folder: Path | None, target: str = "cpu") -> Model:
    """Look at a model. ``folder`` is where its external data may be; without it, none is read."""
    light = without_weights(proto, folder)
    inferred, seen, error = _infer(light)
    scopes = tuple(_scopes(proto, inferred))
    values = Folder(lambda tensor: _constant_array(tensor, folder))
    computed = {} if error else _computed(scopes[0], values)
    if computed:
        # Once more, with what nodes compute from constants as constants: T' and shapes then follow from them.
        again, seen_again, error_again = _infer(_with_constants(light, computed))
        if not error_again:
            inferred, seen = {**inferred, **again}, seen_again
            _add_types(scopes[0], again)
    observed = [(name, facts.op_type, violation) for name, facts in seen for violation in _without_flood(facts)]
    nodes: list[NsaNode] = []
    for scope in scopes:
        for index, node in enumerate(scope.nodes):
            if node.domain == spec.DOMAIN:
                nodes.append(_nsa_node(node, index, scope, folder, values))
    return Model(proto, scopes, tuple(nodes), inferred, observed, error, target)


# --------------------------------------------------------------------------------------------------
# Scopes


def _scopes(proto: ModelProto, inferred: Mapping[str, TypeProto]) -> Iterator[Scope]:
    main = _graph_scope(proto.graph, "graph", _imports(proto), None, proto.ir_version)
    _add_types(main, inferred)
    yield from _with_subgraphs(main, proto.ir_version)
    for function in proto.functions:
        # The bodies of our own operators hold standard operators only; a rule looks at them.
        place = f"function {text(function.domain)}.{text(function.name)}"
        scope = Scope(place, function.node, _imports(function), is_function=True)
        scope.inputs, scope.outputs = tuple(function.input), tuple(function.output)
        scope.names.update(function.input)
        _add_nodes(scope)
        yield from _with_subgraphs(scope, proto.ir_version)


def _add_types(scope: Scope, inferred: Mapping[str, TypeProto]) -> None:
    for name, type_proto in inferred.items():
        scope.types[name] = merged_type(type_proto, scope.types.get(name))


def _with_subgraphs(top: Scope, ir_version: int) -> Iterator[Scope]:
    pending = [top]
    while pending:
        scope = pending.pop()
        yield scope
        for index, node in enumerate(scope.nodes):
            for graph in subgraphs(node):
                place = f"{scope.place} > {graph.name or 'subgraph'} of {node_name(node, index)!r}"
                inner = _graph_scope(graph, place, scope.imports, scope, ir_version)
                inner.position = index
                pending.append(inner)


def _graph_scope(
    graph: GraphProto, place: str, imports: Mapping[str, int], parent: Scope | None, ir_version: int
) -> Scope:
    scope = Scope(place, graph.node, imports, parent)
    scope.inputs = tuple(value.name for value in graph.input)
    scope.outputs = tuple(value.name for value in graph.output)
    for value in (*graph.value_info, *graph.output, *graph.input):
        if value.HasField("type"):
            scope.types[value.name] = scope.declared[value.name] = value.type
    inputs = set(scope.inputs)
    scope.names.update(inputs)
    for tensor in graph.initializer:
        scope.names.add(tensor.name)
        # From IR version 4 on, an initializer of an input is a default that a run may replace.
        if tensor.name not in inputs or ir_version < 4:
            scope.constants[tensor.name] = tensor
            scope.types.setdefault(tensor.name, _tensor_type(tensor))
    scope.names.update(sparse.values.name for sparse in graph.sparse_initializer)
    _add_nodes(scope)
    return scope


def _add_nodes(scope: Scope) -> None:
    for node in scope.nodes:
        for name in node.output:
            scope.producers[name] = None if name in scope.producers else node
        scope.names.update(name for name in node.output if name)
        tensor = constant_tensor(node)
        if tensor is not None:
            scope.constants[node.output[0]] = tensor
            scope.types.setdefault(node.output[0], _tensor_type(tensor))


def _tensor_type(tensor: TensorProto) -> TypeProto:
    result = TypeProto()
    result.tensor_type.elem_type = tensor.data_type
    result.tensor_type.shape.SetInParent()
    for dim in tensor.dims:
        result.tensor_type.shape.dim.add().dim_value = dim
    return result


def merged_type(first: TypeProto, second: TypeProto | None) -> TypeProto:
    """What two types say together of a tensor; where they disagree, the first."""
    if second is None or not first.HasField("tensor_type") or not second.HasField("tensor_type"):
        return first
    result = TypeProto()
    result.CopyFrom(first)
    tensor, other = result.tensor_type, second.tensor_type
    tensor.elem_type = tensor.elem_type or other.elem_type
    if not tensor.HasField("shape"):
        if other.HasField("shape"):
            tensor.shape.CopyFrom(other.shape)
    elif len(tensor.shape.dim) == len(other.shape.dim):
        for dim, other_dim in zip(tensor.shape.dim, other.shape.dim, strict=True):
            if not dim.HasField("dim_value") and other_dim.HasField("dim_value"):
                dim.CopyFrom(other_dim)
    return result


def _imports(owner: ModelProto | FunctionProto) -> dict[str, int]:
    imports = {entry.domain: entry.version for entry in owner.opset_import}
    version = standard_opset(owner.opset_import)
    return imports if version is None else {**imports, "": version}


# --------------------------------------------------------------------------------------------------
# Nodes


def text(value: str | bytes) -> str:
    """A name from a model. Protobuf gives one that is not UTF-8 as bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def node_name(node: NodeProto, index: int) -> str:
    return text(node.name) or f"#{index}"


def _without_flood(facts: NodeFacts) -> list[spec.Violation]:
    """The violations, those alike summed up beyond the first few."""
    counts: Counter[str] = Counter()
    kept: list[spec.Violation] = []
    for violation in violations(facts):
        counts[violation.row.id] += 1
        if counts[violation.row.id] <= MAX_ALIKE:
            kept.append(violation)
    rows = {violation.row.id: violation.row for violation in kept}
    for row_id, count in counts.items():
        if count > MAX_ALIKE:
            row = replace(rows[row_id], message=f"{rows[row_id].argument}: {{}} more like these")
            kept.append(spec.Violation(row, (count - MAX_ALIKE,)))
    return kept


def _nsa_node(node: NodeProto, index: int, scope: Scope, folder: Path | None, values: Folder) -> NsaNode:
    name = node_name(node, index)
    if node.op_type not in INPUT_NAMES:
        return NsaNode(node, name, scope, index)
    inputs: dict[str, TensorFacts] = {}
    constants: dict[str, Integers] = {}
    unreadable: dict[str, str] = {}
    for formal, value in zip(INPUT_NAMES[node.op_type], node.input, strict=False):
        if not value:
            continue
        inputs[formal] = tensor_facts(scope.type_of(value))
        tensor = scope.constant(value)
        if tensor is None:
            _fold(formal, values.value(scope, value), inputs, constants)
        else:
            _read_constant(formal, value, tensor, folder, inputs, constants, unreadable)
    attributes = {attribute.name: attribute_value(attribute) for attribute in node.attribute}
    facts = NodeFacts(node.op_type, attributes, inputs, constants)
    return NsaNode(node, name, scope, index, facts, tuple(_without_flood(facts)), unreadable)


def _read_constant(
    formal: str,
    name: str,
    tensor: TensorProto,
    folder: Path | None,
    inputs: Mapping[str, TensorFacts],
    constants: dict[str, Integers],
    unreadable: dict[str, str],
) -> None:
    """Add the values of a constant index input, or why there are none."""
    if inputs[formal].dtype is None:
        unreadable[formal] = f"{name!r} has no element type"
    elif inputs[formal].dtype in ("int32", "int64"):
        try:
            values = integer_values(tensor, external_bytes(tensor, folder))
        except ValueError as error:
            unreadable[formal] = str(error)
            return
        if values is not None:
            constants[formal] = values
        elif tensor.data_location != TensorProto.EXTERNAL:
            unreadable[formal] = f"the data of {name!r} does not fit its shape {list(tensor.dims)}"


def _fold(formal: str, value: Array | None, inputs: dict[str, TensorFacts], constants: dict[str, Integers]) -> None:
    """Add what nodes make of constants for an index input, and its type and shape where the model leaves them open."""
    if value is None or formal not in _INDEX_INPUTS:
        return
    known = inputs[formal]
    inputs[formal] = TensorFacts(known.dtype or str(value.dtype), value.shape if known.shape is None else known.shape)
    if inputs[formal].dtype == str(value.dtype) and value.dtype.name in ("int32", "int64"):
        constants[formal] = value.astype(np.int64)


def _constant_array(tensor: TensorProto, folder: Path | None) -> Array | None:
    """The values of a constant in their own type; None for large ones, other types and those that cannot be read."""
    inside = embedded(tensor, folder)
    if len(inside.int32_data) > MAX_ELEMENTS or len(inside.int64_data) > MAX_ELEMENTS:
        return None
    if inside.HasField("raw_data") and len(inside.raw_data) > 8 * MAX_ELEMENTS:
        return None
    values = integer_values(inside)
    return values.astype(np.int32) if values is not None and inside.data_type == TensorProto.INT32 else values


def embedded(tensor: TensorProto, folder: Path | None) -> TensorProto:
    """The tensor, with its data inside if that is a few integers in the model's folder: lengths, a table."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    small = all(dim >= 0 for dim in tensor.dims) and 8 * elements(tensor.dims) <= SMALL_BYTES
    if not small or tensor.data_type not in (TensorProto.INT64, TensorProto.INT32):
        return tensor
    try:
        data = external_bytes(tensor, folder)
    except ValueError:  # told by a rule
        data = None
    if data is None:
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=data)


# --------------------------------------------------------------------------------------------------
# Inference


def _infer(light: ModelProto) -> tuple[dict[str, TypeProto], Sequence[tuple[str, NodeFacts]], str]:
    """Types of the main graph's values from its inputs alone, what was seen of our nodes, and what went wrong."""
    if function_calls(light) > MAX_FUNCTION_CALLS:
        return {}, (), f"functions call one another more than {MAX_FUNCTION_CALLS} times"
    if inferred_dims(light) > MAX_INFERRED_DIMS:
        return {}, (), f"the shapes of its values may have more than {MAX_INFERRED_DIMS} dims in all"
    error = ""
    # Data propagation sees lengths that functions compute from constants, but is the less robust of the two.
    for data_prop in (True, False) if propagates_safely(light) else (False,):
        with observing() as observed:
            try:
                graph = onnx.shape_inference.infer_shapes(light, data_prop=data_prop).graph
            except Exception as failure:  # whatever a broken model makes onnx raise
                error = error or (str(failure).splitlines() or [type(failure).__name__])[0]
                continue
        values = (*graph.output, *graph.value_info)
        return {value.name: value.type for value in values if value.HasField("type")}, observed, ""
    return {}, (), error


def _computed(main: Scope, values: Folder) -> dict[str, Array]:
    """The few integers each that nodes of the main graph compute from constants: lengths, shapes, axes."""
    found: dict[str, Array] = {}
    for node in main.nodes:
        results = [name for name in node.output if name]
        if not runs(node) or not all(_few_integers(main.types.get(name)) for name in results):
            continue
        arrays = {name: values.value(main, name) for name in results}
        if all(array is not None and array.dtype.name in ("int32", "int64") for array in arrays.values()):
            found.update((name, array) for name, array in arrays.items() if array is not None)
    return found


def _few_integers(type_proto: TypeProto | None) -> bool:
    """Whether a value of this type may be small and of integers, as far as its type tells."""
    facts = tensor_facts(type_proto)
    few = all(dim is None or dim * 8 <= SMALL_BYTES for dim in facts.dims(1))
    return facts.dtype in (None, "int32", "int64") and facts.rank() in (None, 0, 1) and few


def _with_constants(light: ModelProto, constants: Mapping[str, Array]) -> ModelProto:
    """The model with values of its main graph given, and without the nodes that compute them."""
    result = ModelProto(ir_version=light.ir_version, opset_import=light.opset_import, functions=light.functions)
    result.graph.CopyFrom(light.graph)
    nodes = [node for node in light.graph.node if not any(name in constants for name in node.output)]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    for name, array in constants.items():
        result.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return result


def without_weights(proto: ModelProto, folder: Path | None) -> ModelProto:
    """The model with large initializers as inputs and nothing declared of what its nodes compute."""
    light = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    graph, source = light.graph, proto.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    inputs = {value.name for value in source.input}
    for tensor in source.initializer:
        if tensor.name in inputs:
            continue
        inside = embedded(tensor, folder)
        if inside.data_location != TensorProto.EXTERNAL and inside.ByteSize() <= SMALL_BYTES:
            graph.initializer.append(inside)
        else:
            graph.input.add(name=tensor.name, type=_tensor_type(tensor))
    graph.output.extend(ValueInfoProto(name=value.name) for value in source.output)
    return light


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


def propagates_safely(proto: ModelProto, types: Mapping[str, TypeProto] | None = None) -> bool:
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
        costs[key] = _propagated(functions[key].node, {}, {}, costs)
    return _propagated(proto.graph.node, sizes, inferred, costs)[1] <= MAX_PROPAGATED


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
        elif node.op_type not in _propagating_ops() | _NO_LONGER:
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


def inferred_dims(proto: ModelProto) -> float:
    """A bound of the dims that onnx infers without data propagation, of all values together. No function may recur."""
    constants = {tensor.name: _size(tensor.dims) for tensor in proto.graph.initializer if tensor.data_type in _INTEGERS}
    functions = {(function.domain, function.name): function for function in proto.functions}
    costs: dict[Op, tuple[float, float]] = {}
    for key in _calls_by_function(proto):
        costs[key] = _dims(functions[key].node, functions[key].value_info, {}, {}, costs, of_function=True)
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    ranks = {tensor.name: float(len(tensor.dims)) for tensor in proto.graph.initializer}
    return _dims(proto.graph.node, values, ranks, constants, costs, of_function=False)[1]


_INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32})


def _dims(
    nodes: Iterable[NodeProto],
    values: Iterable[ValueInfoProto],
    ranks: dict[str, float],
    constants: dict[str, float],
    costs: Mapping[Op, tuple[float, float]],
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
        elif node.domain == spec.DOMAIN or node.op_type in ("Shape", "Size"):
            rank = 4.0
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
