"""A graph of a model as fusion sees it: who makes and who uses its values, what is constant, which types are known."""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper

from ..graph.external import inside
from ..graph.tensors import elements, integer_values
from ..graph.walk import constant_tensor, is_standard, subgraphs
from .call import Scalar
from .loops import window_loop
from .positions import MAX_ELEMENTS, Dim, Dynamic, Integers
from .precision import FLOAT, SHORT
from .results import Root

# No tensor of a compression has more dims; a shape of a million is not looked at.
MAX_RANK = 64


@dataclass
class Graph:
    """One graph of a model: who makes and who uses its values, what is constant, and what types are known."""

    proto: GraphProto
    place: str
    constants: Mapping[str, TensorProto | None]
    types: Mapping[str, TypeProto]
    producers: dict[str, int] = field(default_factory=dict)
    consumers: dict[str, list[int]] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    outputs: set[str] = field(default_factory=set)
    folded: dict[str, Integers | None] = field(default_factory=dict)
    scalars: dict[str, Scalar | None] = field(default_factory=dict)
    is_sound: bool = True
    folder: Path | None = None
    view: Sequence[NodeProto] = ()

    @property
    def nodes(self) -> Sequence[NodeProto]:
        """The graph's nodes; the loops of our bodies as `WINDOW_LOOP`."""
        return self.view

    def producer(self, name: str) -> NodeProto | None:
        index = self.producers.get(name)
        return None if index is None else self.nodes[index]

    def is_final(self, name: str) -> bool:
        """Whether a value is used in any other way than by one node of this graph."""
        return self.uses[name] != 1 or name in self.outputs or len(self.consumers.get(name, ())) != 1

    def constant(self, name: str) -> TensorProto | None:
        """The tensor that a name stands for in every run."""
        return self.constants.get(name)

    def integers(self, name: str) -> Integers | None:
        """A constant's integers."""
        if name not in self.folded:
            tensor = self.constant(name)
            small = tensor is not None and all(d >= 0 for d in tensor.dims) and elements(tensor.dims) <= MAX_ELEMENTS
            self.folded[name] = integer_values(inside(tensor, self.folder)) if tensor is not None and small else None
        return self.folded[name]

    def scalar(self, name: str) -> Scalar | None:
        """A constant of one element that is no integer."""
        if name not in self.scalars:
            tensor = self.constant(name)
            self.scalars[name] = None if tensor is None else _scalar(tensor, self.folder)
        return self.scalars[name]

    def dims(self, name: str) -> tuple[int | None, ...] | None:
        """A value's shape, None for what is open; None if the rank is not known, or is none of a tensor's."""
        tensor = self.constant(name)
        if tensor is not None:
            return tuple(tensor.dims) if len(tensor.dims) <= MAX_RANK else None
        known = self.types.get(name)
        if known is None or not known.tensor_type.HasField("shape") or len(known.tensor_type.shape.dim) > MAX_RANK:
            return None
        return tuple(int(dim.dim_value) if dim.HasField("dim_value") else None for dim in known.tensor_type.shape.dim)

    def root(self, name: str) -> Root | None:
        """A value as a root, if its type and shape are known well enough."""
        tensor = self.constant(name)
        if tensor is not None:
            if len(tensor.dims) > MAX_RANK:
                return None
            return Root(name, tuple(tensor.dims), tensor.data_type) if all(d >= 0 for d in tensor.dims) else None
        type_proto = self.types.get(name)
        if type_proto is None or not type_proto.tensor_type.HasField("shape"):
            return None
        if len(type_proto.tensor_type.shape.dim) > MAX_RANK:
            return None
        shape: list[Dim] = []
        for dim in type_proto.tensor_type.shape.dim:
            known = dim.HasField("dim_value") and dim.dim_value >= 0
            shape.append(int(dim.dim_value) if known else Dynamic())
        if sum(isinstance(dim, Dynamic) for dim in shape) > 1:
            return None
        return Root(name, tuple(shape), type_proto.tensor_type.elem_type)


def graphs(model: ModelProto, types: Mapping[str, TypeProto], folder: Path | None) -> Iterator[Graph]:
    """The main graph and all subgraphs of nodes, with what names mean in each. Functions are left out.

    Args:
        types: of the main graph's values, as they were inferred.
        folder: of the external data; without it, none is read.
    """
    nothing: Mapping[str, TensorProto | None] = {}
    pending = [(model.graph, "graph", nothing, types)]
    while pending:
        proto, place, outer_constants, outer_types = pending.pop()
        graph = _graph(proto, place, outer_constants, outer_types, model.ir_version)
        graph.folder = folder
        yield graph
        for index, node in enumerate(proto.node):
            for inner in subgraphs(node):
                name = node.name or f"#{index}"
                pending.append(
                    (inner, f"{place} > {inner.name or 'subgraph'} of {name!r}", graph.constants, graph.types)
                )


def rebuilt(graph: Graph, proto: GraphProto, ir_version: int) -> Graph:
    """Another graph in the place of this one."""
    assert isinstance(graph.constants, ChainMap) and isinstance(graph.types, ChainMap)
    new = _graph(proto, graph.place, graph.constants.parents, graph.types.parents, ir_version)
    new.folder = graph.folder
    return new


def _graph(
    proto: GraphProto,
    place: str,
    outer_constants: Mapping[str, TensorProto | None],
    outer_types: Mapping[str, TypeProto],
    ir_version: int,
) -> Graph:
    own: dict[str, TensorProto | None] = {}
    own_types: dict[str, TypeProto] = {}
    constants, types = ChainMap(own, outer_constants), ChainMap(own_types, outer_types)  # type: ignore[arg-type]
    inputs = {value.name for value in proto.input}
    made = [*inputs, *(name for node in proto.node for name in node.output if name)]
    own.update(dict.fromkeys(made))  # an inner name hides an outer one
    for value in (*proto.value_info, *proto.output, *proto.input):
        if value.HasField("type") and (place != "graph" or value.name not in types):
            own_types[value.name] = value.type
    for tensor in proto.initializer:
        if tensor.name not in inputs or ir_version < 4:
            own[tensor.name] = tensor
    graph = Graph(proto, place, constants, types, outputs={value.name for value in proto.output})
    graph.is_sound = len(set(made)) == len(made)
    for node in proto.node:
        tensor_value = constant_tensor(node)
        if tensor_value is not None:
            own[node.output[0]] = tensor_value
    graph.view = _view(proto, constants)
    for index, node in enumerate(graph.view):
        for name in node.output:
            if name:
                graph.producers[name] = index
        for name in node.input:
            if name:
                graph.uses[name] += 1
                graph.consumers.setdefault(name, []).append(index)
        for name in captured(node):
            graph.uses[name] += 2  # never the only use
    return graph


def _view(proto: GraphProto, constants: Mapping[str, TensorProto | None]) -> Sequence[NodeProto]:
    """The nodes, with stand-ins for the loops of our bodies that always run, and start from 0."""
    stand_ins = {k: stand_in for k, node in enumerate(proto.node) if (stand_in := window_loop(node)) is not None}
    nodes: Sequence[NodeProto] = proto.node
    if not stand_ins:
        return nodes
    producers = {name: node for node in proto.node for name in node.output}
    sound = {k for k, stand_in in stand_ins.items() if _starts_at_zero(stand_in, producers, constants)}
    return [stand_ins[k] if k in sound else node for k, node in enumerate(nodes)]


def _starts_at_zero(
    stand_in: NodeProto, producers: Mapping[str, NodeProto], constants: Mapping[str, TensorProto | None]
) -> bool:
    go, first = stand_in.input[-2:]
    caster = producers.get(go)
    if caster is not None and is_standard(caster) and caster.op_type == "Cast":  # of a number to a condition
        go = caster.input[0]
    always = constants.get(go)
    if go and (always is None or not _all(always, 1)):
        return False
    known, maker = constants.get(first), producers.get(first)
    if known is not None:
        return _all(known, 0)
    if maker is None or not is_standard(maker) or maker.op_type != "ConstantOfShape":
        return False
    return all(attribute.name == "value" and _all(attribute.t, 0) for attribute in maker.attribute)


def _all(tensor: TensorProto, number: int) -> bool:
    array = loaded(tensor, None)
    return array is not None and bool((array == number).all())


def captured(node: NodeProto) -> Iterator[str]:
    """Names that the node's subgraphs use, their own included: one too many does no harm."""
    pending = list(subgraphs(node))
    while pending:
        graph = pending.pop()
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from inner.input
            pending.extend(subgraphs(inner))


def _scalar(tensor: TensorProto, folder: Path | None) -> Scalar | None:
    if len(tensor.dims) > MAX_RANK or any(dim != 1 for dim in tensor.dims):
        return None
    numbers = weight_values(tensor, folder)
    if numbers is None or numbers.size != 1:
        return None
    number = float(numbers[0])
    return Scalar(Fraction(number) if math.isfinite(number) else None, tensor.data_type, len(tensor.dims))


def weight_values(tensor: TensorProto | None, folder: Path | None) -> npt.NDArray[np.generic] | None:
    """A constant weight's numbers, flat; None if they are not in the file or make no sense."""
    if tensor is None or tensor.data_type not in (FLOAT, *SHORT):
        return None
    array = loaded(tensor, folder)
    return None if array is None else array.reshape(-1)


def loaded(tensor: TensorProto, folder: Path | None) -> npt.NDArray[np.generic] | None:
    """A constant's elements; None if they are not in the file, too many, or make no sense."""
    if any(dim < 0 for dim in tensor.dims) or elements(tensor.dims) > MAX_ELEMENTS:
        return None
    tensor = inside(tensor, folder)
    if tensor.data_location == TensorProto.EXTERNAL:
        return None
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except Exception:  # a malformed tensor: onnx and NumPy have their own errors for that
        return None
