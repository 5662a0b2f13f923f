"""The form of a function: what it computes, apart from how it is written.

Tools that rewrite models reorder nodes, rename values, merge equal constants, drop Identity nodes and write a Constant
in another way. Two functions of one form compute the same, node by node. Nothing is proven beyond that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx.numpy_helper
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto, helper

from .walk import is_standard, nodes_below

# Bytes of a constant. Those of our bodies have one element or two.
_MAX_BYTES = 4096
# Deeper graphs within graphs are not looked at.
_MAX_DEPTH = 4


class _UnknownFormError(ValueError):
    """The function holds what has no form here: nodes of other domains, names without a value, large constants."""


@dataclass(frozen=True)
class Form:
    """The form of a function.

    Attributes:
        signature: how many inputs it has, and its attributes' names.
        outputs: a digest each of what they are computed from.
        nodes: digests of all that is computed, for the outputs or not.
    """

    signature: tuple[int, tuple[str, ...]]
    outputs: tuple[str, ...]
    nodes: frozenset[str]

    def holds(self, other: Form) -> bool:
        """Whether the other function computes the same, and nothing else."""
        return self.signature == other.signature and self.outputs == other.outputs and other.nodes <= self.nodes


def form_of(function: FunctionProto, *, max_nodes: int) -> Form | None:
    """The form; None for a function with more nodes, or with some that have no form."""
    if function.attribute_proto or sum(1 for _ in _first(nodes_below(function.node), max_nodes + 1)) > max_nodes:
        return None
    seen: set[str] = set()
    try:
        values = {name: _digest("input", str(index)) for index, name in enumerate(function.input)}
        values = _computed(function.node, values, seen, 0)
        outputs = tuple(values[name] for name in function.output)
    except (KeyError, _UnknownFormError):
        return None
    return Form((len(function.input), tuple(sorted(map(str, function.attribute)))), outputs, frozenset(seen))


def _first(nodes: Iterable[NodeProto], count: int) -> Iterable[NodeProto]:
    return (node for _, node in zip(range(count), nodes, strict=False))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()


def _computed(nodes: Sequence[NodeProto], outer: Mapping[str, str], seen: set[str], depth: int) -> dict[str, str]:
    """Digests by name of the values that there are after the nodes. KeyError: a name without a value."""
    values = {**outer, "": ""}
    for node in nodes:
        if not is_standard(node):
            raise _UnknownFormError
        if node.op_type == "Identity" and len(node.input) == 1 and len(node.output) == 1:
            _name(values, node.output[0], values[node.input[0]])
            continue
        attributes = [_attribute(one, values, seen, depth) for one in node.attribute]
        inputs = list(node.input)
        while inputs and not inputs[-1]:  # left out either way
            inputs.pop()
        whole = _digest(node.op_type, *sorted(attributes), "inputs", *(values[name] for name in inputs))
        seen.add(whole)
        for index, name in enumerate(node.output):
            if name:
                _name(values, name, _digest(whole, str(index)))
    return values


def _name(values: dict[str, str], name: str, digest: str) -> None:
    if name in values:  # for which no runtime promises anything
        raise _UnknownFormError
    values[name] = digest


def _attribute(attribute: AttributeProto, values: Mapping[str, str], seen: set[str], depth: int) -> str:
    if attribute.ref_attr_name:
        return _digest("reference", attribute.name, attribute.ref_attr_name)
    if attribute.HasField("g"):
        return _digest("graph", attribute.name, _graph(attribute.g, values, seen, depth + 1))
    if attribute.HasField("t"):
        name = "" if attribute.name == "value" else attribute.name  # a Constant's, however it is spelled
        return _digest("tensor", name, _tensor(attribute.t))
    if attribute.name in _SPELLINGS:
        return _digest("tensor", "", _tensor(_SPELLINGS[attribute.name](attribute)))
    if attribute.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.STRING):
        return _digest("plain", attribute.name, str(attribute.type), repr(helper.get_attribute_value(attribute)))
    raise _UnknownFormError


_SPELLINGS = {
    "value_ints": lambda one: TensorProto(data_type=TensorProto.INT64, dims=[len(one.ints)], int64_data=one.ints),
    "value_float": lambda one: TensorProto(data_type=TensorProto.FLOAT, float_data=[one.f]),
    "value_floats": lambda one: TensorProto(data_type=TensorProto.FLOAT, dims=[len(one.floats)], float_data=one.floats),
    "value_int": lambda one: TensorProto(data_type=TensorProto.INT64, int64_data=[one.i]),
}
"""A Constant's attributes, as the tensor that each stands for."""


def _tensor(tensor: TensorProto) -> str:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.ByteSize() > _MAX_BYTES:
        raise _UnknownFormError
    try:
        array = onnx.numpy_helper.to_array(tensor)
    except Exception as error:  # whatever a broken tensor makes onnx raise
        raise _UnknownFormError from error
    return _digest(str(tensor.data_type), str(array.shape), array.tobytes().hex())


def _graph(graph: GraphProto, outer: Mapping[str, str], seen: set[str], depth: int) -> str:
    if depth > _MAX_DEPTH or graph.sparse_initializer:
        raise _UnknownFormError
    values = {**outer}
    for index, value in enumerate(graph.input):
        _name(values, value.name, _digest("inner input", str(depth), str(index)))
    for tensor in graph.initializer:
        constant = _digest("Constant", _digest("tensor", "", _tensor(tensor)), "inputs")
        seen.add(constant)
        _name(values, tensor.name, _digest(constant, "0"))
    values = _computed(graph.node, values, seen, depth)
    return _digest(str(len(graph.input)), *(values[value.name] for value in graph.output))
