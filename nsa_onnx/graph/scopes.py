"""Scopes: the graphs and functions of a model, and what each name means in each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from .outline import Outline, Step, below, steps
from .tensors import tensor_type
from .walk import constant_tensor, node_name, standard_opset, text


class Scope:
    """The nodes of one graph or function, with what names mean there.

    Attributes:
        place: for people: ``graph``, ``graph > then_branch of 'if'``, ``function local.Step``.
        graph: the graph or function itself.
        steps: its nodes as they were read.
        imports: versions by domain.
        position: which node of ``parent`` holds this graph.
        inputs, outputs: their names.
        declared: types of its values as the model says.
        constants: the tensors that stand for a value in every run.
        names: all that stand for a value here.
    """

    def __init__(
        self,
        place: str,
        graph: GraphProto | FunctionProto,
        steps: Sequence[Step],
        imports: Mapping[str, int],
        ir_version: int,
        parent: Scope | None = None,
        position: int = 0,
    ) -> None:
        self.place, self.graph, self.steps, self.imports, self.ir_version = place, graph, steps, imports, ir_version
        self.parent, self.position = parent, position
        self.declared: dict[str, TypeProto] = {}
        self.constants: dict[str, TensorProto] = {}
        self.names: set[str] = set()
        self._inferred: list[Mapping[str, TypeProto]] = []
        self._types: dict[str, TypeProto | None] = {}
        if isinstance(graph, FunctionProto):
            self.inputs, self.outputs = tuple(graph.input), tuple(graph.output)
        else:
            self.inputs = tuple(value.name for value in graph.input)
            self.outputs = tuple(value.name for value in graph.output)
            self._declare(graph)
        self.names.update(self.inputs)
        for step in steps:
            self.names.update(step.outputs)
            if step.op[1] == "Constant" and (tensor := constant_tensor(step.node)) is not None:
                self.constants[step.outputs[0]] = tensor
        self.names.discard("")

    def _declare(self, graph: GraphProto) -> None:
        for value in (*graph.value_info, *graph.output, *graph.input):
            if value.HasField("type"):
                self.declared[value.name] = value.type
        inputs = set(self.inputs)
        for tensor in graph.initializer:
            self.names.add(tensor.name)
            # From IR version 4 on, an initializer of an input is a default that a run may replace.
            if tensor.name not in inputs or self.ir_version < 4:
                self.constants[tensor.name] = tensor
        self.names.update(sparse.values.name for sparse in graph.sparse_initializer)

    @property
    def nodes(self) -> Any:
        """Protobuf's own list of the nodes, for those who change it. Scopes of before the change are void."""
        return self.graph.node

    @property
    def is_function(self) -> bool:
        return isinstance(self.graph, FunctionProto)

    def chain(self) -> Iterator[Scope]:
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def home(self, name: str) -> Scope | None:
        """The scope that gives a name its meaning here: an inner name hides an outer one."""
        scope: Scope | None = self
        while scope is not None and name not in scope.names:
            scope = scope.parent
        return scope

    def knows(self, name: str) -> bool:
        return self.home(name) is not None

    def in_function(self) -> bool:
        return any(scope.is_function for scope in self.chain())

    def constant(self, name: str) -> TensorProto | None:
        """The tensor that a name stands for in every run."""
        home = self.home(name)
        return None if home is None else home.constants.get(name)

    # ----------------------------------------------------------------------------------------------
    # Types

    def add_inferred(self, types: Mapping[str, TypeProto]) -> None:
        """Types that inference has found, better than those of before."""
        self._inferred.insert(0, types)
        self._types.clear()

    def inferred_type(self, name: str) -> TypeProto | None:
        """What inference says of a value of this scope, nothing that the model declares."""
        return next((types[name] for types in self._inferred if name in types), None)

    def type_of(self, name: str) -> TypeProto | None:
        """What inference and the model together say of a value, here or further out."""
        return next((found for scope in self.chain() if (found := scope._own_type(name)) is not None), None)

    def _own_type(self, name: str) -> TypeProto | None:
        if name not in self._types:
            known = self.declared.get(name)
            if known is None and name in self.constants:
                known = tensor_type(self.constants[name])
            for types in reversed(self._inferred):
                if name in types:
                    known = merged_type(types[name], known)
            self._types[name] = known
        return self._types[name]

    # ----------------------------------------------------------------------------------------------
    # Edges

    @cached_property
    def producers(self) -> Mapping[str, int | None]:
        """Which node makes a value; None where several claim to."""
        made: dict[str, int | None] = {}
        for index, step in enumerate(self.steps):
            for name in step.outputs:
                made[name] = None if name in made else index
        made.pop("", None)
        return made

    def producer(self, name: str) -> NodeProto | None:
        """The node that makes a value of this scope."""
        index = self.producers.get(name)
        return None if index is None else self.steps[index].node

    @cached_property
    def consumers(self) -> Mapping[str, Sequence[int]]:
        """The nodes that have a value for an input, as often as they have it."""
        return consumers(self.steps)

    @cached_property
    def captured(self) -> Set[str]:
        """Names that graphs within the nodes use."""
        return names_within(self.steps)

    def with_graph(self, graph: GraphProto) -> Scope:
        """Another graph in the place of this one, with what is known of the values of both."""
        new = Scope(self.place, graph, steps(graph.node), self.imports, self.ir_version, self.parent, self.position)
        new._inferred = list(self._inferred)
        return new


def consumers(nodes: Sequence[Step]) -> Mapping[str, Sequence[int]]:
    """By value, the nodes that have it for an input, as often as they have it."""
    users: dict[str, list[int]] = {}
    for index, step in enumerate(nodes):
        for name in step.inputs:
            users.setdefault(name, []).append(index)
    users.pop("", None)
    return users


def names_within(nodes: Iterable[Step]) -> Set[str]:
    """Names that the graphs within the nodes use, however deep, their own included: one too many does no harm."""
    used: set[str] = set()
    for step in below(nodes):
        for graph, inner in step.graphs:
            used.update(value.name for value in graph.output)
            for one in inner:
                used.update(one.inputs)
    return used


def scopes(proto: ModelProto, outline: Outline) -> Iterator[Scope]:
    """All graphs and functions, the main graph first, each before what is in it."""
    yield from _with_inner(Scope("graph", proto.graph, outline.main, _imports(proto), proto.ir_version))
    for function, inner in outline.functions:
        # The bodies of our own operators hold standard operators only; a rule looks at them.
        place = f"function {text(function.domain)}.{text(function.name)}"
        yield from _with_inner(Scope(place, function, inner, _imports(function), proto.ir_version))


def _with_inner(top: Scope) -> Iterator[Scope]:
    pending = [top]
    while pending:
        scope = pending.pop()
        yield scope
        for index, step in enumerate(scope.steps):
            for graph, inner in step.graphs:
                place = f"{scope.place} > {graph.name or 'subgraph'} of {node_name(step.node, index)!r}"
                pending.append(Scope(place, graph, inner, scope.imports, scope.ir_version, scope, index))


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
