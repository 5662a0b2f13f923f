"""Puts nodes of ours in the place of proven compressions, and changes nothing else."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from ..graph.walk import captured, standard_opset, with_subgraphs
from ..operators.contract import DOMAIN, OPSET_VERSION
from ..operators.windows import BLOCK, SEQ, STRIDE
from ..recognise.graph import Graph, rebuilt, weight_values
from ..recognise.pattern import Found
from ..recognise.positions import Dim, Dynamic, Integers
from ..recognise.precision import FLOAT, rounded_to
from ..recognise.proof import scaled_weight
from ..recognise.results import Compression, OwnBody, Root


class FreshNames:
    """Names that no value, initializer or node of the model has."""

    def __init__(self, model: ModelProto) -> None:
        self._taken: set[str] = set()
        for graph in with_subgraphs(model.graph):
            self._taken.update(value.name for value in (*graph.input, *graph.output, *graph.initializer))
            for node in graph.node:
                self._taken.update((node.name, *node.input, *node.output))

    def fresh(self, base: str) -> str:
        """``base``, or ``base`` with a number."""
        name, number = base, 0
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name


@dataclass(frozen=True)
class Replacement:
    """One place of both models.

    Attributes:
        found: where it was, and what it was proven to be.
        after: the graph that has the node.
    """

    found: Found
    after: Graph


def replace_all(
    before: ModelProto, after: ModelProto, found: Sequence[Found], folder: Path | None
) -> list[Replacement]:
    """Replace, in ``after``, what was found in ``before``, of which it must be a copy.

    Opsets stay as they are, but for our domain, which is imported.
    """
    if not found:
        return []
    names = FreshNames(after)
    graphs = zip(with_subgraphs(before.graph), with_subgraphs(after.graph), strict=True)
    copies = {id(old): new for old, new in graphs}
    by_graph: dict[int, list[Found]] = {}
    for one in found:
        by_graph.setdefault(id(one.graph.proto), []).append(one)
    for key, group in by_graph.items():
        _replace_in(copies[key], group, names, folder, opset(after))
    if all(entry.domain != DOMAIN for entry in after.opset_import):
        after.opset_import.add(domain=DOMAIN, version=OPSET_VERSION)
    made = {key: rebuilt(group[0].graph, copies[key]) for key, group in by_graph.items()}
    return [Replacement(one, made[id(one.graph.proto)]) for one in found]


def opset(model: ModelProto) -> int:
    return standard_opset(model.opset_import) or 0


def _replace_in(
    graph: GraphProto, found: Sequence[Found], names: FreshNames, folder: Path | None, version: int
) -> None:
    at = {one.graph.producers[one.value]: one for one in found}
    nodes: list[NodeProto] = []
    dead: set[str] = set()
    for index, node in enumerate(graph.node):
        if index in at:
            own = at[index].own_body
            if own is not None:
                nodes.append(_own_node(at[index], own, names))
            else:
                nodes.extend(_Builder(graph, names, at[index], folder, version).build())
            dead.update(node.input)
        else:
            nodes.append(node)
    kept, candidates = _without_dead(graph, nodes, dead)
    _keep(graph.node, kept)
    for values in (graph.initializer, graph.value_info):
        living = [value for value in values if value.name not in candidates]
        if len(living) != len(values):
            _keep(values, living)


def _keep(container: Any, messages: Sequence[Any]) -> None:
    """Make these what a container of protobuf holds; they may be its own."""
    copies = [deepcopy(message) for message in messages]
    del container[:]
    container.extend(copies)


def _without_dead(graph: GraphProto, nodes: Sequence[NodeProto], dead: set[str]) -> tuple[list[NodeProto], set[str]]:
    """Nodes without those that only the replaced ones needed, and the names that nothing uses any more."""
    uses: Counter[str] = Counter(value.name for value in graph.output)
    producers: dict[str, NodeProto] = {}
    for node in nodes:
        for name in (*node.input, *captured(node)):
            uses[name] += 1
        for name in node.output:
            producers[name] = node
    inputs = {value.name for value in graph.input}
    gone: set[str] = set()
    removed: set[int] = set()
    pending = list(dead)
    while pending:
        name = pending.pop()
        if uses[name] or not name or name in gone or name in inputs:
            continue
        producer = producers.get(name)
        if producer is None:
            gone.add(name)
            continue
        if any(uses[output] for output in producer.output) or id(producer) in removed:
            continue
        removed.add(id(producer))
        gone.update(producer.output)
        for source in (*producer.input, *captured(producer)):
            uses[source] -= 1
            pending.append(source)
    return [node for node in nodes if id(node) not in removed], gone


def _own_node(found: Found, own: OwnBody, names: FreshNames) -> NodeProto:
    """The node whose body was in the graph."""
    name = names.fresh(f"{found.name}_{own.operator.op_type}")
    node = helper.make_node(own.operator.op_type, own.inputs, [found.value], name=name, domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in own.attributes.items())
    return node


class _Builder:
    """The nodes that take the place of one value's."""

    def __init__(self, graph: GraphProto, names: FreshNames, found: Found, folder: Path | None, version: int):
        assert found.compression is not None
        self._graph, self._names, self._found, self._folder = graph, names, found, folder
        self._version = version
        self._compression: Compression = found.compression
        self._nodes: list[NodeProto] = []

    def build(self) -> list[NodeProto]:
        it = self._compression
        heads_and_dim = (it.heads, it.dim)
        x = it.roots.x.name
        if it.roots.x.shape[1:] != heads_and_dim:
            x = self._node("Reshape", "tokens", [x, self._integers("tokens_shape", [-1, *heads_and_dim])])
        weight = self._weight()
        lengths = self._lengths(x)
        op_type, window = it.operator.op_type, {BLOCK: it.block, STRIDE: it.stride}
        result = self._node(op_type, _snake(op_type), [x, weight, lengths], domain=DOMAIN, **window)
        result = self._with_bias(result, weight)
        if it.has_own_shape:
            result = self._node("Reshape", "in_shape", [result, self._integers("shape", _reshape_target(it.shape))])
        if it.order is not None:
            self._node("Transpose", "in_order", [result], perm=list(it.order))
        self._nodes[-1].output[0] = self._found.value
        return self._nodes

    def _with_bias(self, result: str, weight: str) -> str:
        """The weighted sum of the position bias added, and the type that the value has."""
        it = self._compression
        dtype = it.roots.x.dtype
        if it.bias_places is not None and it.roots.bias is not None:
            column = self._node("Reshape", "weight_column", [weight, self._integers("column", [it.block, it.heads, 1])])
            products = self._node(
                "Mul", "bias_products", [self._float(self._bias(it.bias_places)), self._float(column)]
            )
            result = self._node("Add", "biased", [self._float(result), self._summed(products)])
            dtype = FLOAT
        return result if dtype == it.dtype else self._node("Cast", "in_type", [result], to=it.dtype)

    def _bias(self, places: Integers) -> str:
        """The bias as [block, N, D]."""
        assert self._compression.roots.bias is not None
        name = self._compression.roots.bias.name
        shape = list(places.shape)
        size = math.prod(dim for dim in self._compression.roots.bias.shape if not isinstance(dim, Dynamic))
        if size == places.size and np.array_equal(places.reshape(-1), np.arange(places.size)):
            return self._node("Reshape", "bias", [name, self._integers("bias_shape", shape)])
        flat = self._node("Reshape", "bias_flat", [name, self._integers("bias_shape", [-1])])
        indices = self._integers("bias_places", places.reshape(-1).tolist(), shape)
        return self._node("Gather", "bias", [flat, indices], axis=0)

    def _float(self, name: str) -> str:
        return self._node("Cast", "float32", [name], to=FLOAT)

    def _summed(self, products: str) -> str:
        """The sum over the first axis."""
        if self._version < 13:
            return self._node("ReduceSum", "bias_sum", [products], axes=[0], keepdims=0)
        return self._node("ReduceSum", "bias_sum", [products, self._integers("tokens_axis", [0])], keepdims=0)

    def _lengths(self, x: str) -> str:
        it = self._compression
        if it.lengths is not None:
            return self._integers(SEQ, list(it.lengths))
        shape = self._node("Shape", "tokens_shape", [x])
        return self._node("Gather", SEQ, [shape, self._integers("first", [0])])

    def _weight(self) -> str:
        """The weight as [block, N] of the input's type: as it is, reshaped, or as a new constant."""
        it = self._compression
        w, places, dtype = it.roots.w, it.weight_places, it.roots.x.dtype
        if w is None or places is None:
            return self._new_constant("weight", rounded_to(np.full((it.block, it.heads), float(it.scale)), dtype))
        if it.scale == 1 and w.dtype == dtype and (moved := self._moved_weight(w, places)) is not None:
            return moved
        numbers = weight_values(self._found.graph.constant(w.name), self._folder)
        if numbers is not None:
            return self._new_constant("weight", rounded_to(scaled_weight(numbers, it.scale)[places], dtype))
        weight = self._moved_weight(w, places)
        if weight is None:
            flat = self._node("Reshape", "weight_flat", [w.name, self._integers("weight_shape", [-1])])
            indices = self._integers("weight_places", places.reshape(-1).tolist(), list(places.shape))
            weight = self._node("Gather", "weight", [flat, indices], axis=0)
        if it.scale == 1:
            return weight
        name = self._new_constant("scale", rounded_to(np.array(float(it.scale)), dtype))
        return self._node("Mul", "weight_scaled", [weight, name])

    def _moved_weight(self, w: Root, places: Integers) -> str | None:
        """The whole root as [block, N], if it only has to be reshaped or transposed."""
        shape = places.shape
        counted: Integers = np.arange(places.size, dtype=np.int64)
        if math.prod(dim for dim in w.shape if not isinstance(dim, Dynamic)) != places.size:
            return None
        if np.array_equal(places.reshape(-1), counted):
            if w.shape == shape:
                return w.name
            return self._node("Reshape", "weight", [w.name, self._integers("weight_shape", list(shape))])
        if np.array_equal(places.T.reshape(-1), counted):
            name = w.name
            if w.shape != shape[::-1]:
                name = self._node("Reshape", "weight_rows", [name, self._integers("weight_shape", list(shape[::-1]))])
            return self._node("Transpose", "weight", [name], perm=[1, 0])
        return None

    def _new_constant(self, what: str, numbers: npt.NDArray[np.generic]) -> str:
        """An initializer of the input's type."""
        name = self._names.fresh(f"{self._found.value}_{what}")
        raw = np.ascontiguousarray(numbers).tobytes()
        dtype = self._compression.roots.x.dtype
        self._graph.initializer.append(TensorProto(name=name, data_type=dtype, dims=numbers.shape, raw_data=raw))
        return name

    def _integers(self, what: str, values: Sequence[int], shape: Sequence[int] | None = None) -> str:
        name = self._names.fresh(f"{self._found.value}_{what}")
        dims = [len(values)] if shape is None else shape
        self._graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, dims, values))
        return name

    def _node(self, op_type: str, what: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = self._names.fresh(f"{self._found.value}_{what}")
        node = self._names.fresh(f"{self._found.name}_{what}")
        self._nodes.append(helper.make_node(op_type, list(inputs), [output], name=node, **attributes))
        return output


def _snake(op_type: str) -> str:
    """As part of a value's name, ``nsa_compress``."""
    return re.sub("(?<=.)[A-Z]", lambda found: f"_{found[0]}", op_type).lower()


def _reshape_target(shape: Sequence[Dim]) -> list[int]:
    return [-1 if isinstance(dim, Dynamic) else dim for dim in shape]
