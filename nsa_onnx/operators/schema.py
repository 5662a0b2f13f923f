"""The operators' ONNX schemas and shape inference.

Importing this module registers the schemas (`register`). Then ``onnx.shape_inference`` computes the exact T' (the
number of output rows) from constant lengths, and ``onnx.checker`` knows types, attributes and limits.
``docs/operators.md`` is generated from the schemas' texts.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
from onnx import TypeProto, defs
from onnx.shape_inference import InferenceContext, InferenceError

from ..graph.tensors import Integers, TensorFacts, attribute_value, integer_values, tensor_facts
from ..runtime.imports import in_main_interpreter
from . import OPERATORS
from .contract import DOMAIN, OPSET_VERSION, Violations
from .facts import NodeFacts

SCHEMAS = {op_type: operator.schema for op_type, operator in OPERATORS.items()}
"""The schemas by op type, for those who need the object (onnxscript, the documentation)."""

INPUT_NAMES = {op_type: operator.input_names for op_type, operator in OPERATORS.items()}
"""Names of each operator's inputs, in their order."""

OUTPUT_RANKS = {
    (DOMAIN, op_type): max(len(output.dims) for output in operator.outputs) for op_type, operator in OPERATORS.items()
}
"""Rank of each operator's largest output, by domain and operator."""


def violations(facts: NodeFacts) -> Violations:
    """Everything that is certainly wrong with a node, in the order of the error table."""
    return OPERATORS[facts.op_type].violations(facts)


def context_facts(op_type: str, ctx: InferenceContext) -> tuple[NodeFacts, dict[str, TypeProto]]:
    """The node that onnx is inferring, and the types of its inputs by name."""
    schema = SCHEMAS[op_type]
    inputs: dict[str, TensorFacts] = {}
    types: dict[str, TypeProto] = {}
    constants: dict[str, Integers] = {}
    for index, formal in enumerate(schema.inputs[: ctx.get_num_inputs()]):
        if not ctx.has_input(index):
            continue
        type_proto = ctx.get_input_type(index)
        inputs[formal.name] = tensor_facts(type_proto)
        if type_proto is not None:
            types[formal.name] = type_proto
        values = _context_values(ctx, index)
        if values is not None:
            constants[formal.name] = values
    attributes = {name: attribute_value(a) for name in schema.attributes if (a := ctx.get_attribute(name)) is not None}
    return NodeFacts(op_type, attributes, inputs, constants), types


def _context_values(ctx: InferenceContext, index: int) -> Integers | None:
    tensor = ctx.get_input_data(index)
    if tensor is not None:
        return integer_values(tensor)
    # With data propagation, integers that onnx has computed come as a "shape".
    symbolic = ctx.get_symbolic_input(index)
    if symbolic is None or not all(dim.HasField("dim_value") for dim in symbolic.dim):
        return None
    return np.array([dim.dim_value for dim in symbolic.dim], np.int64)


# While `observing`: what onnx has shown of each node, and then nothing is raised.
_observed: ContextVar[list[tuple[str, NodeFacts]] | None] = ContextVar("observed", default=None)


@contextmanager
def observing() -> Iterator[list[tuple[str, NodeFacts]]]:
    """Collect what onnx knows of every node of ours that it infers (name for people, facts), and raise nothing.

    Nodes in functions come once per call, with what the call gives them.
    """
    seen: list[tuple[str, NodeFacts]] = []
    token = _observed.set(seen)
    try:
        yield seen
    finally:
        _observed.reset(token)


def _inference(op_type: str) -> Callable[[InferenceContext], None]:
    """The inference function of one operator.

    onnx gives a Python function no way to report an error that strict mode raises and lax mode drops:
    an exception ends both. So it is raised only for what `violations` is certain of.
    """

    def infer(ctx: InferenceContext) -> None:
        facts, types = context_facts(op_type, ctx)
        first = next(violations(facts), None)
        seen = _observed.get()
        if seen is not None:
            seen.append((ctx.get_display_name(), facts))
        elif first is not None:
            raise InferenceError(f"[ShapeInferenceError] {op_type}: {first.message}")
        if first is not None:
            return
        for number, made in enumerate(OPERATORS[op_type].output_types(facts, types)[: ctx.get_num_outputs()]):
            if ctx.has_output(number):
                ctx.set_output_type(number, made)

    return infer


def register() -> None:
    """Make the schemas known to onnx, once per process; calling it again does nothing."""
    for op_type, schema in SCHEMAS.items():
        if not defs.has(op_type, OPSET_VERSION, DOMAIN):
            defs.register_schema(schema)
            atexit.register(_deregister, op_type)


def _deregister(op_type: str) -> None:
    # Before Python ends: onnx frees the inference function with the process otherwise, and onnx 1.19 then waits
    # for ever for the interpreter that is gone.
    if defs.has(op_type, OPSET_VERSION, DOMAIN):
        defs.deregister_schema(op_type, OPSET_VERSION, DOMAIN)


if not in_main_interpreter():
    # onnx waits for ever when it takes a Python function there.
    raise ImportError("nsa_onnx needs Python's main interpreter: onnx does not work in a sub-interpreter")
for _op_type, _schema in SCHEMAS.items():
    _schema.set_type_and_shape_inference_function(_inference(_op_type))
register()
