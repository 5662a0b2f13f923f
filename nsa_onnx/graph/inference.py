"""Types of a model's values by onnx's shape inference, within limits, and what nodes compute from constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import onnx.numpy_helper
import onnx.shape_inference
from onnx import ModelProto, TensorProto, TypeProto, ValueInfoProto

from .bounds import MAX_FUNCTION_CALLS, MAX_INFERRED_DIMS, Own, function_calls, inferred_dims, propagates_safely
from .external import SMALL_BYTES, inside
from .folding import Array, Folder, may_run
from .outline import Outline
from .scopes import Scope
from .tensors import tensor_facts, tensor_type

Seen = TypeVar("Seen")
# A context in which the caller's own inference functions collect what onnx shows them.
Observe = Callable[[], AbstractContextManager[Sequence[Seen]]]


def infer(
    light: ModelProto, outline: Outline, own: Own, observe: Observe[Seen]
) -> tuple[dict[str, TypeProto], Sequence[Seen], str]:
    """Types of the main graph's values from its inputs alone, what was observed, and what went wrong."""
    if function_calls(outline) > MAX_FUNCTION_CALLS:
        return {}, (), f"functions call one another more than {MAX_FUNCTION_CALLS} times"
    if inferred_dims(light, outline, own) > MAX_INFERRED_DIMS:
        return {}, (), f"the shapes of its values may have more than {MAX_INFERRED_DIMS} dims in all"
    error = ""
    # Data propagation sees lengths that functions compute from constants, but is the less robust of the two.
    for data_prop in (True, False) if propagates_safely(light, outline, own) else (False,):
        with observe() as observed:
            try:
                graph = onnx.shape_inference.infer_shapes(light, data_prop=data_prop).graph
            except UnicodeError:
                error = error or "the model holds text that is not UTF-8"
                continue
            except Exception as failure:  # whatever a broken model makes onnx raise
                error = error or (str(failure).splitlines() or [type(failure).__name__])[0]
                continue
        values = (*graph.output, *graph.value_info)
        return {value.name: value.type for value in values if value.HasField("type")}, observed, ""
    return {}, (), error


def is_shown_as(display: str, name: str) -> bool:
    """Whether onnx's display name of a node is that of one called ``name``.

    An inference function of our own is told nothing else of the node: "node <op type>[<domain>] (<name>)" or, if it has
    no name, "node <op type>[<domain>]".
    """
    return display.endswith(f"({name})")


def computed(main: Scope, values: Folder) -> dict[str, Array]:
    """The few integers each that nodes of the main graph compute from constants: lengths, shapes, axes."""
    found: dict[str, Array] = {}
    for step in main.steps:
        if not may_run(step.op) or not all(_few_integers(main, name) for name in step.outputs):
            continue
        arrays = {name: values.value(main, name) for name in step.outputs if name}
        if all(array is not None and array.dtype.name in ("int32", "int64") for array in arrays.values()):
            found.update((name, array) for name, array in arrays.items() if array is not None)
    return found


_MAYBE_INTEGERS = frozenset({TensorProto.UNDEFINED, TensorProto.INT32, TensorProto.INT64})


def _few_integers(scope: Scope, name: str) -> bool:
    """Whether a value may be small and of integers, as far as its type tells."""
    known = scope.inferred_type(name)
    if known is not None and known.tensor_type.elem_type not in _MAYBE_INTEGERS:
        return False
    facts = tensor_facts(scope.type_of(name))
    few = all(dim is None or dim * 8 <= SMALL_BYTES for dim in facts.dims(1))
    return facts.dtype in (None, "int32", "int64") and facts.rank() in (None, 0, 1) and few


def with_constants(light: ModelProto, constants: Mapping[str, Array]) -> ModelProto:
    """The model with values of its main graph given, and without the nodes that compute them."""
    result = ModelProto(ir_version=light.ir_version, opset_import=light.opset_import, functions=light.functions)
    result.graph.CopyFrom(light.graph)
    nodes = [node for node in light.graph.node if not any(name in constants for name in node.output)]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    for name, array in constants.items():
        result.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return result


def without_weights(proto: ModelProto, folder: Path | None) -> ModelProto:
    """The model with large initializers as inputs and nothing declared of what its nodes compute."""
    light = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    graph, source = light.graph, proto.graph
    graph.name = source.name
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    inputs = {value.name for value in source.input}
    for tensor in source.initializer:
        if tensor.name in inputs:
            continue
        small = inside(tensor, folder, SMALL_BYTES)
        if small.data_location != TensorProto.EXTERNAL and small.ByteSize() <= SMALL_BYTES:
            graph.initializer.append(small)
        else:
            graph.input.add(name=tensor.name, type=tensor_type(tensor))
    graph.output.extend(ValueInfoProto(name=value.name) for value in source.output)
    return light
