"""ONNX translation for ``torch.onnx.export(dynamo=True)``: one function per operator, for every op that means it.

The same two functions serve our ops and torch_npu's, the automatic route (`register`, done on import)
and the explicit one (`onnx_translation_table`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, TypeVar, Union

import onnx
import onnxscript
import torch
from onnxscript import BFLOAT16, FLOAT16, INT32, INT64
from onnxscript.function_libs.torch_lib import registration

from nsa_onnx import schema, spec

# Torch ops by what they mean. In-place infer ops never arrive: functionalization has replaced them.
COMPRESS_OPS = ("nsa_onnx::nsa_compress", "nsa_onnx::nsa_compress.tensor", "npu::npu_nsa_compress")
INFER_OPS = (
    "nsa_onnx::nsa_compress_infer",
    "nsa_onnx::nsa_compress_infer.tensor",
    "npu::npu_nsa_compress_infer.cache",
)


def _node(op_type: str) -> Callable[..., Any]:
    """The onnxscript op that emits ``op_type`` of our domain."""
    schema.register()
    opset = onnxscript.values.Opset(spec.DOMAIN, spec.OPSET_VERSION)
    return onnxscript.values.Op(opset, op_type, onnx.defs.get_schema(op_type, spec.OPSET_VERSION, spec.DOMAIN))


def _lengths(actual_seq_len: Any) -> Any:
    """An int64 ``[B]`` value; onnxscript has made a Constant of constants and puts SymInts together itself."""
    if actual_seq_len is None:
        raise TypeError("actual_seq_len is missing: NsaCompress and NsaCompressInfer need it; pass it in the model")
    return actual_seq_len


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
        _lengths(actual_seq_len),
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
        _lengths(actual_seq_len),
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
