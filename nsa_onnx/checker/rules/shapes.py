"""Rules NSA018, NSA019 and NSA021: declared types and shapes against those computed from the inputs."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TypeProto

from ...analysis import Analysis, NsaNode
from ...graph.scopes import merged_type
from ...graph.tensors import dtype_name
from ...operators.base import Operator
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import finding, note, ours
from .contract import _import
from .registry import general


@general(
    "NSA018",
    "declared types and shapes are the inferred ones",
    hint="nsa-onnx infer-shapes writes the shapes anew, once the wrong declaration is gone",
)
def _shapes(model: Analysis) -> Iterator[Finding]:
    """What the model declares of a value agrees with what its inputs make of it; T' is computed anew.

    A runtime believes declared shapes when it plans memory; a wrong one fails there, or later.
    """
    main = {name: node for node in model.nodes if node.scope is model.scopes[0] for name in node.proto.output}
    graph = model.proto.graph
    reported: set[str] = set()
    for value in (*graph.output, *graph.value_info):
        inferred = model.inferred.get(value.name)
        difference = _difference(value.type, inferred) if inferred is not None else ""
        if difference:
            reported.add(value.name)
            node = main.get(value.name)
            message = f"{value.name!r} {difference}"
            yield finding(node, message, "output") if node else note(message)
    # What onnx does not see: constants of an outer graph, and lengths that it cannot compute.
    for node, operator, facts in ours(model.nodes):
        types = [] if node.violations else operator.output_types(facts, _input_types(node, operator))
        for name, inferred in zip(node.proto.output, types, strict=False):
            declared = node.scope.declared.get(name)
            if declared is None or (name in reported and node is main.get(name)):
                continue
            if difference := _difference(declared, inferred):
                yield finding(node, f"{name!r} {difference}", "output")


def _input_types(node: NsaNode, operator: Operator) -> dict[str, TypeProto]:
    types: dict[str, TypeProto] = {}
    for formal, name in zip(operator.input_names, node.proto.input, strict=False):
        if (known := node.scope.type_of(name)) is not None:
            types[formal] = merged_type(known, None)
    return types


def _difference(declared: TypeProto, inferred: TypeProto) -> str:
    """In which way two types cannot both hold; empty if they can."""
    mine, other = declared.tensor_type, inferred.tensor_type
    types = dtype_name(mine.elem_type), dtype_name(other.elem_type)
    if None not in types and types[0] != types[1]:
        return f"is declared as {types[0]}, inferred is {types[1]}"
    if not mine.HasField("shape") or not other.HasField("shape"):
        return ""
    if len(mine.shape.dim) != len(other.shape.dim):
        return f"is declared with rank {len(mine.shape.dim)}, inferred with rank {len(other.shape.dim)}"
    for axis, dim in enumerate(mine.shape.dim):
        other_dim = other.shape.dim[axis]
        both = dim.HasField("dim_value") and other_dim.HasField("dim_value")
        if both and dim.dim_value != other_dim.dim_value:
            return f"is declared with dim {axis} = {dim.dim_value}, inferred is {other_dim.dim_value}"
    return ""


@general(
    "NSA019",
    "dims are not negative",
    hint="give an unknown dim a name (dim_param), or nothing",
)
def _dims(model: Analysis) -> Iterator[Finding]:
    """A dim that is not known has a name or nothing. A negative number is no shape, though some exporters write it."""
    graph = model.proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value < 0:
                yield note(f"{value.name!r} is declared with dim {axis} = {dim.dim_value}")


@general(
    "NSA021",
    "shapes can be inferred",
    severity=Severity.WARNING,
    hint="import the domain of every operator, and register the schemas of operators of your own",
)
def _inference(model: Analysis) -> Iterator[Finding]:
    """onnx can infer the model's shapes. Where it cannot, what is checked is what the model declares."""
    explained = any(True for _ in _import.check(model))
    if model.inference_error and model.proto.graph.node and not explained:
        yield note(f"shapes could not be inferred: {model.inference_error}")
