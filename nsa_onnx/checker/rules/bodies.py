"""NSA020 and NSA026: the portable bodies of our operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, TensorProto

from ... import spec
from ...analysis import Analysis
from ...graph.walk import is_standard, standard_opset
from ...operators import OPERATORS
from ...operators.bodies import MIN_OPSET
from ...operators.schema import SCHEMAS
from ...rulebook.examples import STANDARD_OPSET, compress
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import note
from .registry import general


def _with_body(opset: int) -> str:
    # Short, and so not the true body: NSA026 says so, too.
    return compress() + (
        f'<domain: "{spec.DOMAIN}", opset_import: ["" : {opset}]>\n'
        f"{spec.COMPRESS_OP} <compress_block_size, compress_stride> (input, weight, actual_seq_len) => (output)\n"
        "{\n    output = Neg (input)\n}\n"
    )


def _bodies(model: Analysis) -> Iterator[FunctionProto]:
    return (f for f in model.proto.functions if f.domain == spec.DOMAIN and f.name in SCHEMAS)


def _place(function: FunctionProto) -> str:
    return f"function {function.domain}.{function.name}"


@general(
    "NSA020",
    "a portable body has the model's opset",
    example=_with_body(STANDARD_OPSET - 1),
    accepted=_with_body(STANDARD_OPSET),
    hint="nsa-onnx expand writes the bodies anew, for the model's opset",
)
def _opset(model: Analysis) -> Iterator[Finding]:
    """The portable body of an operator imports the same version of the standard operators as the model.

    Runtimes put the body in the node's place, where the model's version decides what its operators mean.
    """
    wanted = standard_opset(model.proto.opset_import)
    for function in _bodies(model):
        got = standard_opset(function.opset_import)
        if got != wanted:
            message = f"the portable body of {function.name} imports opset {got}, the model imports {wanted}"
            yield note(message, place=_place(function))


@general(
    "NSA026",
    "a portable body is ours",
    severity=Severity.WARNING,
    example=_with_body(STANDARD_OPSET),
    accepted=compress(),
    hint="nsa-onnx expand puts in the body of this version",
)
def _ours(model: Analysis) -> Iterator[Finding]:
    """The portable body of an operator is what `nsa-onnx expand` writes, up to the names of its values.

    Another body may be of another version of nsa_onnx, or anybody's: a runtime without our library computes what it
    says, and one with our library does not. This is not proven wrong, but nothing here has checked that it is right.
    """
    for function in _bodies(model):
        opset = standard_opset(function.opset_import)
        if opset is None or opset < MIN_OPSET:
            message = f"the portable body of {function.name} imports opset {opset}, ours need at least {MIN_OPSET}"
            yield note(message, place=_place(function))
        elif not _same_function(OPERATORS[function.name].body(opset), function):
            yield note(f"the portable body of {function.name} differs from ours", place=_place(function))


# --------------------------------------------------------------------------------------------------
# Equality up to names


class _Names:
    """Which name of theirs stands for which of ours. Both ways: two of ours must not become one."""

    def __init__(self) -> None:
        self._theirs = {"": ""}
        self._ours = {"": ""}

    def same(self, ours: Sequence[str], theirs: Sequence[str]) -> bool:
        if len(ours) != len(theirs):
            return False
        return all(
            self._theirs.setdefault(mine, other) == other and self._ours.setdefault(other, mine) == mine
            for mine, other in zip(ours, theirs, strict=True)
        )


def _same_function(ours: FunctionProto, theirs: FunctionProto) -> bool:
    names = _Names()
    return (
        sorted(ours.attribute) == sorted(map(str, theirs.attribute))
        and not theirs.attribute_proto
        and names.same(ours.input, theirs.input)
        and _same_nodes(ours.node, theirs.node, names)
        and names.same(ours.output, theirs.output)
    )


def _same_nodes(ours: Sequence[NodeProto], theirs: Sequence[NodeProto], names: _Names) -> bool:
    # As deep as our own body: theirs is followed only where it has the same nodes.
    return len(ours) == len(theirs) and all(
        mine.op_type == other.op_type
        and is_standard(other)
        and names.same(mine.input, other.input)
        and _same_attributes(mine, other, names)
        and names.same(mine.output, other.output)
        for mine, other in zip(ours, theirs, strict=True)
    )


def _same_attributes(ours: NodeProto, theirs: NodeProto, names: _Names) -> bool:
    given = {attribute.name: attribute for attribute in theirs.attribute}
    return len(given) == len(ours.attribute) and all(
        mine.name in given and _same_attribute(mine, given[mine.name], names) for mine in ours.attribute
    )


def _same_attribute(ours: AttributeProto, theirs: AttributeProto, names: _Names) -> bool:
    if ours.HasField("g"):
        return theirs.HasField("g") and _same_graph(ours.g, theirs.g, names)
    if theirs.HasField("g") or theirs.graphs or theirs.tensors or theirs.strings:
        return False
    scalars = ("type", "ref_attr_name", "i", "f", "s", "ints", "floats")
    same = all(getattr(ours, name) == getattr(theirs, name) for name in scalars)
    return same and ours.HasField("t") == theirs.HasField("t") and _same_tensor(ours.t, theirs.t)


def _same_graph(ours: GraphProto, theirs: GraphProto, names: _Names) -> bool:
    return (
        not theirs.initializer
        and not theirs.sparse_initializer
        and names.same([value.name for value in ours.input], [value.name for value in theirs.input])
        and _same_nodes(ours.node, theirs.node, names)
        and names.same([value.name for value in ours.output], [value.name for value in theirs.output])
    )


def _same_tensor(ours: TensorProto, theirs: TensorProto) -> bool:
    return ours.data_type == theirs.data_type and ours.dims == theirs.dims and _element(ours) == _element(theirs)


def _element(tensor: TensorProto) -> bytes:
    """The one element that the tensors of our bodies have, however it is stored."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    for values, dtype in ((tensor.int64_data, "<i8"), (tensor.float_data, "<f4")):
        if len(values) == 1:
            return np.array(values, dtype).tobytes()
    return b""
