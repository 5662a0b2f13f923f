"""Finds our own portable bodies where a tool has put them in the place of the nodes that called them.

A body is compared with the graph node by node, backwards from its result: operators, attributes and order of inputs
must be the same, names need not. Tools that inline also compute what is constant. Where the graph has a constant, that
part of the body is computed from the known shapes and must be equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, NodeProto, TensorProto, helper

from ..graph.reference import evaluate
from ..graph.walk import is_standard
from ..operators import OPERATORS
from ..operators.base import Operator
from ..operators.expand import DEFAULT_OPSET
from .graph import Graph, loaded
from .loops import WINDOW_LOOP, window_loop
from .positions import Budget, Dynamic
from .results import OwnBody

# Nodes from the loop to a body's result, at most.
_MAX_TAIL = 3
# Values that are looked at to compare one body: a body has some 150.
_MAX_STEPS = 10_000
# Sizes of windows and pages beyond this are none.
_MAX_SIZE = 2**16
# Elements of a constant that is compared.
_MAX_COMPARED = 2**16

Array = npt.NDArray[Any]


class _Body:
    """A body with its loop as one node."""

    def __init__(self, operator: Operator) -> None:
        function = operator.body(DEFAULT_OPSET)
        nodes = [window_loop(node) or node for node in function.node]
        self.operator = operator
        self.inputs: Sequence[str] = list(function.input)
        self.output = str(function.output[0])
        self.producers: Mapping[str, NodeProto] = {name: node for node in nodes for name in node.output}


@cache
def _bodies() -> tuple[_Body, ...]:
    return tuple(map(_Body, OPERATORS.values()))


def own_body(graph: Graph, index: int, budget: Budget) -> tuple[str, OwnBody] | None:
    """The result, and the node, of the body that a loop belongs to."""
    name = str(graph.nodes[index].output[0])
    for _ in range(_MAX_TAIL):
        consumers = graph.consumers.get(name, [])
        if len(consumers) != 1 or len(graph.nodes[consumers[0]].output) != 1:
            return None
        name = str(graph.nodes[consumers[0]].output[0])
        for template in _bodies():
            match = _Match(template, graph, budget)
            if match.values(template.output, name) and (found := match.result()) is not None:
                return name, found
    return None


class _Match:
    """One body beside one graph."""

    def __init__(self, template: _Body, graph: Graph, budget: Budget) -> None:
        self._template, self._graph, self._budget = template, graph, budget
        self._inputs: dict[str, str] = {}
        self._attributes: dict[str, int] = {}
        self._same: set[tuple[str, str]] = set()
        self._folded: list[tuple[str, str]] = []
        self._computed: dict[str, Array | None] = {}
        self._left = _MAX_STEPS

    def values(self, mine: str, theirs: str) -> bool:
        """Whether a value of the body may be one of the graph; what is constant is checked at the end."""
        self._budget.visit()
        self._left -= 1
        mine, theirs = self._without_identity(mine), self._same_value(theirs)
        if self._left < 0 or (mine, theirs) in self._same:
            return self._left >= 0
        if mine in self._template.inputs:
            fits = self._inputs.setdefault(mine, theirs) == theirs
        elif self._graph.constant(theirs) is not None:
            self._folded.append((mine, theirs))
            fits = self._attribute(mine, theirs)
        else:
            fits = self._nodes(self._template.producers[mine], self._graph.producer(theirs), theirs)
        if fits:
            self._same.add((mine, theirs))
        return fits

    def _without_identity(self, name: str) -> str:
        node = self._template.producers.get(name)
        return self._without_identity(node.input[0]) if node is not None and node.op_type == "Identity" else name

    def _same_value(self, name: str) -> str:
        for _ in range(_MAX_TAIL):
            node = self._graph.producer(name)
            if node is None or not is_standard(node) or node.op_type != "Identity" or len(node.input) != 1:
                break
            name = str(node.input[0])
        return name

    def _attribute(self, mine: str, theirs: str) -> bool:
        """A constant that is an attribute of the node tells it."""
        name = _attribute_name(self._template.producers.get(mine))
        if name is None:
            return True
        numbers = self._graph.integers(theirs)
        if numbers is None or numbers.shape != () or not 0 < numbers.item() < _MAX_SIZE:
            return False
        return self._attributes.setdefault(name, int(numbers.item())) == int(numbers.item())

    def _nodes(self, mine: NodeProto, theirs: NodeProto | None, name: str) -> bool:
        if theirs is None or not is_standard(theirs):
            return False
        if mine.op_type == "CastLike" and theirs.op_type == "Cast":
            return self.values(mine.input[0], theirs.input[0])  # the type: the node's output has its input's
        alike = mine.op_type == theirs.op_type and _attributes(mine) == _attributes(theirs)
        state = dict(self._inputs), dict(self._attributes), set(self._same), list(self._folded)
        pairs = list(zip(mine.input, theirs.input, strict=False))
        if alike and len(mine.input) == len(theirs.input) and all(self.values(a, b) for a, b in pairs):
            return True
        if mine.op_type != "Add":
            return False
        # A check whose outcome is known adds 0: tools leave that out.
        self._inputs, self._attributes, self._same, self._folded = state
        self._folded.append((mine.input[1], ""))
        return self.values(mine.input[0], name)

    def result(self) -> OwnBody | None:
        """The node, if the constants are right, too."""
        names = [self._inputs.get(formal) for formal in self._template.inputs]
        bound = [name for name in names if name is not None]
        operator = self._template.operator
        if len(bound) != len(names) or set(self._attributes) != set(operator.attribute_names):
            return None
        for mine, theirs in self._folded:
            computed = self._compute(mine)
            if computed is None or not self._equals(computed, theirs):
                return None
        return OwnBody(operator, tuple(self._inputs[name] for name in operator.input_names), self._attributes)

    def _equals(self, computed: Array, theirs: str) -> bool:
        if not theirs:
            return not computed.any()
        tensor = self._graph.constant(theirs)
        if tensor is None or any(not 0 <= dim <= _MAX_COMPARED for dim in tensor.dims):
            return False
        array = loaded(tensor, self._graph.folder)
        return array is not None and array.shape == computed.shape and np.array_equal(array, computed)

    def _compute(self, mine: str) -> Array | None:
        """A value of the body from attributes and known shapes; None if it takes more than that."""
        if mine not in self._computed:
            self._computed[mine] = None
            self._computed[mine] = self._computed_now(self._without_identity(mine))
        return self._computed[mine]

    def _computed_now(self, mine: str) -> Array | None:
        node = self._template.producers.get(mine)
        if node is None:
            return None
        name = _attribute_name(node)
        if name is not None:
            return np.array(self._attributes[name]) if name in self._attributes else None
        if node.op_type == "Shape":
            return self._shape(node, self._without_identity(node.input[0]))
        inputs = [self._compute(source) for source in node.input]
        arrays = [array for array in inputs if array is not None]
        if len(arrays) != len(inputs) or node.op_type == WINDOW_LOOP:
            return None
        return _evaluated(node, arrays)

    def _shape(self, node: NodeProto, source: str) -> Array | None:
        """Shape of an input whose type is known, or of what is reshaped to known dims."""
        maker = self._template.producers.get(source)
        if source in self._inputs:
            known = self._graph.root(self._inputs[source])
            shape = None if known is None else known.shape
        elif maker is not None and maker.op_type == "Reshape":
            computed = self._compute(maker.input[1])
            shape = None if computed is None else tuple(computed.tolist())
        else:
            return None
        if shape is None:
            return None
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        dims = shape[ends.get("start", 0) : ends.get("end", len(shape))]
        static = [dim for dim in dims if not isinstance(dim, Dynamic)]
        return np.array(static, np.int64) if len(static) == len(dims) else None


def _attribute_name(node: NodeProto | None) -> str | None:
    """Of the node's attribute that a Constant of the body stands for."""
    if node is None or node.op_type != "Constant":
        return None
    return next((str(a.ref_attr_name) for a in node.attribute if a.ref_attr_name), None)


def _attributes(node: NodeProto) -> dict[str, object]:
    """What a node says."""
    return {
        a.name: _fill(a.t) if a.type == AttributeProto.TENSOR else helper.get_attribute_value(a)
        for a in node.attribute
        if not a.ref_attr_name and a.type != AttributeProto.GRAPH
    }


def _fill(tensor: TensorProto) -> object:
    """The one element of what ConstantOfShape repeats."""
    array = loaded(tensor, None) if list(tensor.dims) == [1] else None
    return None if array is None else (str(array.dtype), array.tolist())


def _evaluated(node: NodeProto, inputs: Sequence[Array]) -> Array | None:
    """A node of a body on small constants."""
    try:
        (result,) = evaluate(node, dict(zip(node.input, inputs, strict=True)), DEFAULT_OPSET)
    except Exception:  # shapes that the body would refuse
        return None
    return np.asarray(result)
