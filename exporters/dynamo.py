"""Translations for ``torch.onnx.export(dynamo=True)``: one function per operator.

The same function serves our op and torch_npu's, both when it is registered on import (`register`) and when it is
passed explicitly (`onnx_translation_table`).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Optional, TypeVar, Union, cast
from weakref import WeakSet

import onnx
import onnxscript
import torch
from onnxscript import BFLOAT16, FLOAT16, INT32, INT64
from onnxscript.function_libs.torch_lib import registration
from torch.export import ExportedProgram
from torch.fx import Node

from nsa_onnx import spec
from nsa_onnx.operators import schema

from .mistakes import LOST_UPDATE

# Torch ops by what they mean. In-place infer ops never arrive: functionalization has replaced them.
COMPRESS_OPS = ("nsa_onnx::nsa_compress", "nsa_onnx::nsa_compress.tensor", "npu::npu_nsa_compress")
INFER_OPS = (
    "nsa_onnx::nsa_compress_infer",
    "nsa_onnx::nsa_compress_infer.tensor",
    "npu::npu_nsa_compress_infer.cache",
)


def _node(op_type: str) -> Callable[..., Any]:
    """The onnxscript op that emits ``op_type`` of our domain; constants and SymInts become inputs by themselves."""
    schema.register()
    opset = onnxscript.values.Opset(spec.DOMAIN, spec.OPSET_VERSION)
    op = onnxscript.values.Op(opset, op_type, onnx.defs.get_schema(op_type, spec.OPSET_VERSION, spec.DOMAIN))
    lengths = schema.INPUT_NAMES[op_type].index("actual_seq_len")

    def emit(*inputs: Any, **attributes: Any) -> Any:
        if inputs[lengths] is None:
            raise TypeError(f"actual_seq_len is missing: {op_type} needs it; pass it in the model")
        return op(*inputs, **attributes)

    return emit


# The annotations are read by onnxscript: INT64 and INT32 are inputs, a bare int is an attribute. It knows
# Optional and Union, not their shorter spelling.
# ruff: noqa: UP007, UP045
Float16 = TypeVar("Float16", bound=Union[FLOAT16, BFLOAT16])


def _compress(
    input: Float16,
    weight: Float16,
    compress_block_size: int,
    compress_stride: int,
    actual_seq_len: Optional[INT64] = None,
) -> Float16:
    return _node(spec.COMPRESS_OP)(  # type: ignore[no-any-return]
        input,
        weight,
        actual_seq_len,
        compress_block_size=compress_block_size,
        compress_stride=compress_stride,
    )


def _infer(
    input: Float16,
    weight: Float16,
    slot_mapping: INT32,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    block_table: Optional[INT32] = None,
    actual_seq_len: Optional[INT64] = None,
    cache: Optional[Float16] = None,
) -> Float16:
    return _node(spec.INFER_OP)(  # type: ignore[no-any-return]
        input,
        weight,
        slot_mapping,
        cache,
        actual_seq_len,
        block_table,
        compress_block_size=compress_block_size,
        compress_stride=compress_stride,
        page_block_size=page_block_size,
    )


def _translation(function: Callable[..., Any]) -> Any:
    """What torch's exporter can call: arguments as the torch op's, an onnxscript value as the result."""
    return onnxscript.values.TracedOnnxFunction(onnxscript.values.Opset(spec.DOMAIN, spec.OPSET_VERSION), function)


compress_translation = _translation(_compress)
infer_translation = _translation(_infer)


def _translations() -> dict[str, Callable[..., Any]]:
    return dict.fromkeys(COMPRESS_OPS, compress_translation) | dict.fromkeys(INFER_OPS, infer_translation)


def onnx_translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For ``torch.onnx.export(..., custom_translation_table=...)``: every op of ours that exists.

    torch_npu's ops are in it once torch_npu has been imported. Without the table, importing
    ``nsa_onnx.exporters`` has the same effect.
    """
    found = {_torch_op(name): function for name, function in _translations().items()}
    return {op: function for op, function in found.items() if op is not None}


def _torch_op(name: str) -> Any:
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet, None), overload or "default", None)


def register() -> None:
    """Make plain ``torch.onnx.export(dynamo=True)`` know the ops. Idempotent.

    torchlib's registry is what the exporter fills its own table from; ops that do not exist are skipped
    there, so that torch_npu's may come later.
    """
    for name, function in _translations().items():
        if name not in registration.default_registry:
            registration.default_registry.register(function, name)


# --------------------------------------------------------------------------------------------------
# Caches that would vanish

_looked_after = ContextVar("nsa_onnx_caches_looked_after", default=False)
_warned: WeakSet[ExportedProgram] = WeakSet()


@contextmanager
def caches_looked_after() -> Iterator[None]:
    """`nsa_onnx.exporters.export` makes outputs of the caches: no warning inside."""
    token = _looked_after.set(True)
    try:
        yield
    finally:
        _looked_after.reset(token)


def warn_of_lost_caches() -> None:
    """During torch.onnx.export: warn of caches that the program updates but does not return.

    Called while an infer op is functionalized; torch itself drops such an update without a word.
    """
    program = None if _looked_after.get() else _program_being_exported()
    if program is None or program in _warned:
        return
    _warned.add(program)
    if lost := lost_caches(program):
        warnings.warn(LOST_UPDATE.format(", ".join(lost)), stacklevel=2)


def _program_being_exported() -> ExportedProgram | None:
    """The program whose decomposition is running: no argument leads to it, but the call stack does."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is _RUN_DECOMPOSITIONS:
            return cast(ExportedProgram, frame.f_locals["self"])
        frame = frame.f_back
    return None


_RUN_DECOMPOSITIONS = inspect.unwrap(ExportedProgram.run_decompositions).__code__


def lost_caches(program: ExportedProgram) -> list[str]:
    """Arguments, buffers and parameters that a not yet functionalized program updates and does not return."""
    (output,) = program.graph.find_nodes(op="output")
    returned = {_origin(node) for node in output.all_input_nodes}
    updated = [_origin(written) for node in program.graph.nodes for written in _written(node)]
    lost = dict.fromkeys(node for node in updated if node.op == "placeholder" and node not in returned)
    signature = program.graph_signature
    names = {name: f"buffer {held}" for name, held in signature.inputs_to_buffers.items()}
    names |= {name: f"parameter {held}" for name, held in signature.inputs_to_parameters.items()}
    return [names.get(node.name, f"argument {node.name}") for node in lost]


def _written(node: Node) -> list[Node]:
    """The arguments that an op updates in place, by its schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    values = [
        (a, node.args[i] if i < len(node.args) else node.kwargs.get(a.name)) for i, a in enumerate(schema.arguments)
    ]
    written = [value for a, value in values if a.alias_info is not None and a.alias_info.is_write]
    return [value for value in written if isinstance(value, Node)]


def _origin(node: Node) -> Node:
    """The node whose memory ``node`` is or shows; a copy counts as a way to return it."""
    while (source := _source(node)) is not None:
        node = source
    return node


def _source(node: Node) -> Node | None:
    """The argument that the result aliases, by the op's schema: of a view, or of an in-place op."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or len(schema.returns) != 1:
        return None
    alias = schema.returns[0].alias_info
    for index, argument in enumerate(schema.arguments):
        aliased = alias and argument.alias_info and argument.alias_info.before_set == alias.before_set
        if aliased or (index == 0 and node.target in _COPIES):
            source = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            return source if isinstance(source, Node) else None
    return None


_COPIES = (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default)
