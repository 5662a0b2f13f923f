"""Scopes: the graphs and functions of a model, with what names mean in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from .tensors import tensor_type
from .walk import constant_tensor, node_name, standard_opset, subgraphs, text


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


def scopes(proto: ModelProto, inferred: Mapping[str, TypeProto]) -> Iterator[Scope]:
    main = _graph_scope(proto.graph, "graph", _imports(proto), None, proto.ir_version)
    add_types(main, inferred)
    yield from _with_subgraphs(main, proto.ir_version)
    for function in proto.functions:
        # The bodies of our own operators hold standard operators only; a rule looks at them.
        place = f"function {text(function.domain)}.{text(function.name)}"
        scope = Scope(place, function.node, _imports(function), is_function=True)
        scope.inputs, scope.outputs = tuple(function.input), tuple(function.output)
        scope.names.update(function.input)
        _add_nodes(scope)
        yield from _with_subgraphs(scope, proto.ir_version)


def add_types(scope: Scope, inferred: Mapping[str, TypeProto]) -> None:
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
            scope.types.setdefault(tensor.name, tensor_type(tensor))
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
            scope.types.setdefault(node.output[0], tensor_type(tensor))


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
