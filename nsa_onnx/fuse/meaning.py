"""What nodes compute by definition: each in float64, then rounded once to the type of its result.

A runtime may keep more or less precision between two nodes than the file says. So a replaced computation is compared
by this, from the tensors that it starts from to its result. Nodes before and after it are not computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto, helper

from ..graph.reference import evaluate
from ..graph.walk import captured
from ..operators import OPERATORS
from ..operators.contract import DOMAIN
from ..recognise.graph import Graph, loaded
from ..recognise.precision import EXACT, numpy_type

Array = npt.NDArray[Any]

# Elements of one value, and of all values that are made; 8 bytes each.
MAX_ELEMENTS = 2**26
MAX_TOTAL = 2**28
MAX_NODES = 100_000


class Meaning:
    """The values of one graph, computed from given ones.

    Args:
        graph: its nodes and constants.
        opset: version of the standard operators.
        given: values by name; what they are computed from is not looked at.
    """

    def __init__(self, graph: Graph, opset: int, given: Mapping[str, Array]) -> None:
        self._graph, self._opset = graph, opset
        self._known: dict[str, Array] = dict(given)
        self._left = MAX_TOTAL

    def value(self, name: str) -> Array:
        """A value.

        Raises:
            ValueError: it cannot be computed, with the reason.
        """
        order = self._needed(name)
        if len(order) > MAX_NODES:
            raise ValueError(f"{name!r} is made by more than {MAX_NODES} nodes")
        for index in order:
            node = self._graph.proto.node[index]
            inputs = {source: self._read(source) for source in node.input if source}
            inputs.update((source, self._read(source)) for source in captured(node) if self._has(source))
            for output, made in zip(node.output, self._run(node, inputs), strict=False):
                self._keep(output, made)
        return self._read(name)

    def _needed(self, name: str) -> list[int]:
        """Nodes between the given values and this one, in the graph's order."""
        nodes: set[int] = set()
        pending = [name]
        while pending:
            index = self._graph.producers.get(current := pending.pop())
            if current in self._known or index is None or index in nodes or self._graph.constant(current) is not None:
                continue
            nodes.add(index)
            node = self._graph.proto.node[index]
            pending.extend((*node.input, *captured(node)))
        return sorted(nodes)

    def _has(self, name: str) -> bool:
        """Whether a name is a value of this graph: a subgraph's own names are not."""
        return bool(name) and (name in self._known or self._graph.constant(name) is not None)

    def _read(self, name: str) -> Array:
        if name not in self._known:
            tensor = self._graph.constant(name)
            array = None if tensor is None else loaded(tensor, self._graph.folder)
            if array is None:
                raise ValueError(f"{name!r} is neither computed from what was given nor a constant that can be read")
            self._keep(name, array)
        return self._known[name]

    def _keep(self, name: str, array: Array) -> None:
        self._left -= array.size
        if array.size > MAX_ELEMENTS or self._left < 0:
            raise ValueError(f"{name!r} has {array.size} elements: too large to be compared, shorter inputs are not")
        self._known[name] = array

    def _run(self, node: NodeProto, inputs: Mapping[str, Array]) -> Sequence[Array]:
        wide = {name: array.astype(np.float64) if _is_float(array) else array for name, array in inputs.items()}
        if node.op_type == "AveragePool":
            results: Sequence[Any] = [_average_pool(node, wide[node.input[0]])]
        else:
            try:
                results = _ours(node, wide) if node.domain == DOMAIN else _standard(node, wide, self._opset)
            except Exception as error:  # whatever the reference implementations raise
                raise ValueError(
                    f"{node.op_type} {node.name!r} cannot be computed ({' '.join(str(error).split())[:200]})"
                ) from error
        dtype = _result_type(node, inputs)
        arrays = [np.asarray(result) for result in results]
        with np.errstate(all="ignore"):
            return [array.astype(dtype) if dtype is not None and _is_float(array) else array for array in arrays]


def _is_float(array: Array) -> bool:
    return any(array.dtype == numpy_type(dtype) for dtype in EXACT)


def _result_type(node: NodeProto, inputs: Mapping[str, Array]) -> npt.DTypeLike | None:
    """The type that a node rounds to: what it casts to, else that of its first float input."""
    to = _attribute(node, "to")
    if node.op_type == "Cast" and to in EXACT:
        return numpy_type(to)
    names = list(node.input[1:2]) if node.op_type == "CastLike" else [*node.input, *inputs]
    return next((inputs[name].dtype for name in names if name in inputs and _is_float(inputs[name])), None)


def _standard(node: NodeProto, inputs: Mapping[str, Array], opset: int) -> Sequence[Any]:
    """A standard node by onnx's reference implementation, not yet rounded."""
    copy = NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in EXACT:
            attribute.i = TensorProto.DOUBLE
    return evaluate(copy, inputs, opset)


def _ours(node: NodeProto, inputs: Mapping[str, Array]) -> Sequence[Any]:
    """A node of ours by the operator's own reference."""
    operator = OPERATORS[node.op_type]
    values = {formal: inputs[name] for formal, name in zip(operator.input_names, node.input, strict=False) if name}
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return [exact.values for exact in operator.reference(values, attributes)]


def _attribute(node: NodeProto, name: str) -> Any:
    return next((helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name), None)


def _average_pool(node: NodeProto, x: Array) -> Array:
    """Without padding, which is not fused. onnx's implementation takes a Python step for each window."""
    kernel = _attribute(node, "kernel_shape")
    steps = _attribute(node, "strides") or [1] * len(kernel)
    dilations = _attribute(node, "dilations") or [1] * len(kernel)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    space = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=space)
    picked: Any = (..., *(slice(None, None, step) for step in steps), *(slice(None, None, d) for d in dilations))
    mean: Array = windows[picked].mean(axis=tuple(range(-len(kernel), 0)))
    return mean
