"""A graph as the search sees it: which nodes make and use each value, what is constant, which types are known."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, TypeProto, numpy_helper

from ..graph.external import inside
from ..graph.outline import Step, steps
from ..graph.scopes import Scope, consumers, names_within
from ..graph.tensors import elements, integer_values
from ..graph.walk import is_standard
from .call import Scalar
from .loops import window_loop
from .positions import MAX_ELEMENTS, Dim, Dynamic, Integers
from .precision import FLOAT, SHORT
from .results import Root

# No tensor of a compression has more dims; a shape of a million is not looked at.
MAX_RANK = 64


class Graph:
    """A scope as fusion sees it.

    Attributes:
        scope: what names mean in it.
        proto: the graph itself.
        steps, nodes: its nodes; the loops of our bodies as `WINDOW_LOOP`.
        outputs: of the graph.
        folder: of the external data; without it, none is read.
    """

    def __init__(self, scope: Scope, folder: Path | None) -> None:
        assert isinstance(scope.graph, GraphProto)
        self.scope, self.folder = scope, folder
        self.proto: GraphProto = scope.graph
        self.place = scope.place
        self.outputs = set(scope.outputs)
        self._integers: dict[str, Integers | None] = {}
        self._scalars: dict[str, Scalar | None] = {}
        self.steps = _with_stand_ins(scope)
        self.nodes: Sequence[NodeProto] = [step.node for step in self.steps]

    @cached_property
    def producers(self) -> Mapping[str, int]:
        """Which node makes a value; nothing for one that is made twice."""
        return {name: index for name, index in self.scope.producers.items() if index is not None}

    @cached_property
    def is_sound(self) -> bool:
        """Whether no value is made twice."""
        made, inputs = self.scope.producers, set(self.scope.inputs)
        return len(self.producers) == len(made) and inputs.isdisjoint(made)

    @cached_property
    def consumers(self) -> Mapping[str, Sequence[int]]:
        """The nodes of this graph that have a value for an input, as often as they have it."""
        if self.steps is self.scope.steps:
            return self.scope.consumers
        return consumers(self.steps)

    @cached_property
    def _captured(self) -> Container[str]:
        return self.scope.captured if self.steps is self.scope.steps else names_within(self.steps)

    def producer(self, name: str) -> NodeProto | None:
        index = self.producers.get(name)
        return None if index is None else self.nodes[index]

    def is_final(self, name: str) -> bool:
        """Whether a value is used in any other way than by one node of this graph."""
        return len(self.consumers.get(name, ())) != 1 or name in self.outputs or name in self._captured

    def constant(self, name: str) -> TensorProto | None:
        """The tensor that a name stands for in every run."""
        return self.scope.constant(name)

    def _type(self, name: str) -> TypeProto | None:
        """What is inferred of a value; what is declared where nothing is."""
        home = self.scope.home(name)
        return None if home is None else home.inferred_type(name) or home.declared.get(name)

    def integers(self, name: str) -> Integers | None:
        """A constant's integers."""
        if name not in self._integers:
            tensor = self.constant(name)
            small = tensor is not None and all(d >= 0 for d in tensor.dims) and elements(tensor.dims) <= MAX_ELEMENTS
            self._integers[name] = integer_values(inside(tensor, self.folder)) if tensor is not None and small else None
        return self._integers[name]

    def scalar(self, name: str) -> Scalar | None:
        """A constant of one element that is no integer."""
        if name not in self._scalars:
            tensor = self.constant(name)
            self._scalars[name] = None if tensor is None else _scalar(tensor, self.folder)
        return self._scalars[name]

    def dims(self, name: str) -> tuple[int | None, ...] | None:
        """A value's shape, None for what is open; None if the rank is not known, or is none of a tensor's."""
        tensor = self.constant(name)
        if tensor is not None:
            return tuple(tensor.dims) if len(tensor.dims) <= MAX_RANK else None
        known = self._type(name)
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
        type_proto = self._type(name)
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


def graphs(scopes: Iterable[Scope], folder: Path | None) -> Iterator[Graph]:
    """The main graph and all graphs within. Functions are left out.

    Args:
        folder: of the external data; without it, none is read.
    """
    return (Graph(scope, folder) for scope in scopes if not scope.in_function())


def rebuilt(graph: Graph, proto: GraphProto) -> Graph:
    """Another graph in the place of this one."""
    return Graph(graph.scope.with_graph(proto), graph.folder)


def _with_stand_ins(scope: Scope) -> Sequence[Step]:
    """The nodes, with stand-ins for the loops of our bodies that always run, and start from 0."""
    stand_ins = {}
    for index, step in enumerate(scope.steps):
        stand_in = window_loop(step.node) if step.op[1] == "Loop" else None
        if stand_in is not None and _starts_at_zero(stand_in, scope):
            stand_ins[index] = stand_in
    if not stand_ins:
        return scope.steps
    return [steps([stand_ins[k]])[0] if k in stand_ins else step for k, step in enumerate(scope.steps)]


def _starts_at_zero(stand_in: NodeProto, scope: Scope) -> bool:
    go, first = stand_in.input[-2:]
    caster = scope.producer(go)
    if caster is not None and is_standard(caster) and caster.op_type == "Cast":  # of a number to a condition
        go = caster.input[0]
    always = scope.constant(go)
    if go and (always is None or not _all(always, 1)):
        return False
    known, maker = scope.constant(first), scope.producer(first)
    if known is not None:
        return _all(known, 0)
    if maker is None or not is_standard(maker) or maker.op_type != "ConstantOfShape":
        return False
    return all(attribute.name == "value" and _all(attribute.t, 0) for attribute in maker.attribute)


def _all(tensor: TensorProto, number: int) -> bool:
    array = loaded(tensor, None)
    return array is not None and bool((array == number).all())


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
