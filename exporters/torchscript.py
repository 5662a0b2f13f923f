"""The legacy exporter, ``torch.onnx.export(..., dynamo=False)``: how our ops are traced and translated.

The legacy exporter runs the model once and records the ops. For each recorded op it calls a function that is
registered under the op's name (overloads share one), which writes ONNX nodes.

A trace has no functionalization (torch's step that replaces in-place ops). So the in-place decode ops do it
themselves: the functional ``nsa_onnx::nsa_compress_infer`` is recorded, and from then on its result stands for the
cache. The cache itself keeps its contents, so that a buffer is exported as it was before the trace.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor
from torch.onnx import symbolic_helper, utils

from nsa_onnx import spec

from . import ops
from .mistakes import LOST_UPDATE

# Lowest opset that the legacy exporter writes; a symbolic serves all later ones.
_OPSET = 9

# --------------------------------------------------------------------------------------------------
# Tracing

_INFER = "nsa_onnx::nsa_compress_infer"
# An op with side effects, as far as the trace knows: it keeps an unused update in the graph until the end
# of the trace. The exporter deletes it afterwards.
_MARKER = "_updated_in_trace"
ops.LIBRARY.define(f"{_MARKER}(Tensor cache) -> ()", alias_analysis="CONSERVATIVE")
ops.LIBRARY.impl(_MARKER, lambda cache: None, "CompositeExplicitAutograd")


def install_tracer(library: torch.library.Library, name: str) -> None:
    """Have traces record the in-place infer op ``name`` ("op" or "op.overload") as a function.

    Outside of an ONNX export (torch.jit.trace) the trace writes the result back into the cache.
    """

    def trace(*args: Any, cache: Tensor, actual_seq_len: Any = None, **kwargs: Any) -> Tensor:
        ops._check_lengths_kind(spec.INFER_ROWS, actual_seq_len)
        overload = "tensor" if isinstance(actual_seq_len, Tensor) else "default"
        infer = getattr(torch.ops.nsa_onnx.nsa_compress_infer, overload)
        old = _traced_value(cache)
        new = cast(Tensor, infer(*args, cache=cache, actual_seq_len=actual_seq_len, **kwargs))
        if not torch.onnx.is_in_onnx_export():
            return cache.copy_(new)
        _refuse_view(old)
        if library.ns == "npu" and _has_unused_int():
            warnings.warn(_FROZEN_LENGTHS.format(list(actual_seq_len)), stacklevel=2)
        torch._C._set_value_trace(cache, _traced_value(new))  # type: ignore[attr-defined]
        getattr(torch.ops.nsa_onnx, _MARKER)(new)
        _check_after_trace()
        return cache

    library.impl(name, trace, "Tracer")


@contextmanager
def untraced() -> Iterator[None]:
    """What is done inside is done, and not recorded."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


def _traced_value(tensor: Tensor) -> Any:
    return torch._C._get_value_trace(tensor)  # type: ignore[attr-defined]


def _cache_operand(infer: Any) -> Any:
    return list(infer.inputs())[-1]


def _refuse_view(value: Any) -> None:
    node = value.node()
    if node.kind() not in (_INFER, "prim::Param") and "Tensor(a)" in node.schema():
        raise RuntimeError(
            f"cache is a view ({node.kind()}) of another tensor, which would not see the update: the legacy exporter "
            "does not follow views. Use dynamo=True, or give nsa_compress_infer the whole tensor"
        )


_FROZEN_LENGTHS = (
    "the trace computes integers that it does not use: if they are the actual_seq_len of npu_nsa_compress_infer "
    "(int[] in its schema), the graph has the example's, {}, for every run. Call "
    "nsa_onnx.exporters.nsa_compress_infer, which takes lengths computed from shapes and int64 tensors"
)


def _has_unused_int() -> bool:
    """Whether the trace so far ends in integer arithmetic: what is left of ``[2 * x.shape[0]]`` in an ``int[]``.

    A size that is only looked at does not count: ``x.shape`` records all of them.
    """
    values = (
        value
        for node in _all_nodes(torch._C._get_tracing_state().graph())
        for value in node.outputs()
        if node.kind().startswith("aten::") and not value.uses() and value.type().kind() == "TensorType"
    )
    return any(value.type().scalarType() == "Long" and value.type().dim() == 0 for value in values)


def _all_nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _all_nodes(inner)


def _check_after_trace() -> None:
    """Have `_warn_of_lost_updates` called once the model has run.

    The exporter deletes an unused update before it asks for any symbolic, so the end of the trace is the
    only moment to look: when the function that runs the model dies.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not _RUNS_THE_MODEL:
        frame = frame.f_back
    wrapper = frame.f_locals.get("wrapper") if frame is not None else None
    if wrapper is not None and wrapper not in _watched:
        _watched.add(wrapper)
        weakref.finalize(wrapper, _warn_of_lost_updates, torch._C._get_tracing_state().graph())


_RUNS_THE_MODEL = torch.jit._trace.ONNXTracedModule.forward.__code__
_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_RETURNS = ("prim::Return", "prim::TupleConstruct", "prim::ListConstruct", "prim::DictConstruct")


def _warn_of_lost_updates(graph: Any) -> None:
    """Warn of an update of the model's inputs or buffers that is neither returned nor updated again."""
    for node in graph.nodes():
        if node.kind() != f"nsa_onnx::{_MARKER}":
            continue
        (updated,) = node.inputs()
        users = [use.user for use in updated.uses()]
        kept = any(user.kind() in _RETURNS for user in users)
        updated_again = any(user.kind() == _INFER and _cache_operand(user) == updated for user in users)
        if _is_state(updated.node()) and not kept and not updated_again:
            warnings.warn(LOST_UPDATE.format("a cache of nsa_compress_infer"), stacklevel=2)


def _is_state(infer: Any) -> bool:
    """Whether what a traced infer op updates is, at the root, an input or buffer of the model."""
    while infer.kind() == _INFER:
        infer = _cache_operand(infer).node()
    return bool(infer.kind() == "prim::Param")


# --------------------------------------------------------------------------------------------------
# Writing nodes


def register() -> None:
    """Make ``torch.onnx.export(dynamo=False)`` know our ops and torch_npu's. Idempotent."""
    for name, symbolic in (("nsa_compress", _compress), ("nsa_compress_infer", _infer)):
        for op in (f"nsa_onnx::{name}", f"npu::npu_{name}"):
            utils.register_custom_op_symbolic(op, symbolic, _OPSET)


def _compress(g: Any, input: Any, weight: Any, block: Any, stride: Any, actual_seq_len: Any) -> Any:
    sizes = _ints(compress_block_size=block, compress_stride=stride)
    lengths = _constant_lengths(actual_seq_len)
    shape = input.type().varyingSizes()
    rows = None
    if lengths is not None:
        _refuse_dynamic(shape, "T = input.shape[0]", "the last element of actual_seq_len", lengths)
        rows = spec.compressed_length(lengths, *sizes.values())
    operands = input, weight, _lengths_value(g, actual_seq_len, lengths)
    output = g.op(f"{spec.DOMAIN}::{spec.COMPRESS_OP}", *operands, **_attributes(sizes))
    return output.setType(input.type().with_sizes([rows, *(shape or [None] * 3)[1:]]))


def _infer(
    g: Any,
    input: Any,
    weight: Any,
    slot_mapping: Any,
    block: Any,
    stride: Any,
    page: Any,
    block_table: Any,
    actual_seq_len: Any,
    cache: Any,
) -> Any:
    sizes = _ints(compress_block_size=block, compress_stride=stride, page_block_size=page)
    lengths = _constant_lengths(actual_seq_len)
    if lengths is not None:
        batch = slot_mapping.type().varyingSizes()
        _refuse_dynamic(batch, "B = slot_mapping.shape[0]", "the length of actual_seq_len", lengths)
    table = [] if symbolic_helper._is_none(block_table) else [block_table]
    operands = input, weight, slot_mapping, cache, _lengths_value(g, actual_seq_len, lengths), *table
    output = g.op(f"{spec.DOMAIN}::{spec.INFER_OP}", *operands, **_attributes(sizes))
    return output.setType(cache.type())


def _ints(**values: Any) -> dict[str, int]:
    return {name: symbolic_helper._get_const(value, "i", name) for name, value in values.items()}


def _attributes(sizes: dict[str, int]) -> dict[str, int]:
    return {f"{name}_i": value for name, value in sizes.items()}  # the suffix says the attribute's type


def _constant_lengths(actual_seq_len: Any) -> list[int] | None:
    """The lengths if the trace holds them as constants, None if they are computed or an input."""
    if not symbolic_helper._is_onnx_constant(actual_seq_len):
        return None
    return list(symbolic_helper._parse_arg(actual_seq_len, "is"))


def _lengths_value(g: Any, actual_seq_len: Any, lengths: Sequence[int] | None) -> Any:
    if lengths is None:
        return actual_seq_len
    return g.op("Constant", value_t=torch.tensor(lengths, dtype=torch.int64))


def _refuse_dynamic(shape: Sequence[int | None] | None, dim: str, constant: str, lengths: list[int]) -> None:
    """A trace has made constants of lengths computed from a shape: they hold for one size only."""
    if shape is not None and shape[0] is None:
        raise RuntimeError(
            f"{dim} is dynamic, but {constant} is a constant in the trace ({lengths}): the graph would hold for one "
            "size only. Pass actual_seq_len as an int64 tensor (nsa_onnx.exporters.nsa_compress, nsa_compress_infer), "
            "or make the dim static"
        )


for _name in ("nsa_compress_infer_", "nsa_compress_infer_.tensor"):
    install_tracer(ops.LIBRARY, _name)
