"""NsaCompressInfer in torch: ``nsa_compress_infer_`` updates its cache, ``nsa_compress_infer`` returns a new one.

Under functionalization (torch.export's decompositions, torch.compile, torch.onnx.export) the first becomes the second.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import cast

import torch
from torch import Tensor

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.arrays import buffer, described, in_huge_pages
from nsa_onnx.operators.base import Lengths as Kind
from nsa_onnx.operators.contract import raise_first
from nsa_onnx.operators.nsa_compress_infer import contract
from nsa_onnx.operators.nsa_compress_infer.call import kernel as native_kernel
from nsa_onnx.operators.nsa_compress_infer.call import refuse_overlap, refuse_shared, written_slots
from nsa_onnx.operators.windows import SEQ

from .base import Lengths, Op, Tie, TorchOperator, arguments, fake_kernel, kernel
from .gradients import without_gradient
from .tensors import array, bits, dense, dtype, host_lengths, require_one_device


@dataclass(frozen=True)
class _Call:
    input: Tensor
    weight: Tensor
    slot_mapping: Tensor
    compress_block_size: int
    compress_stride: int
    page_block_size: int
    _: KW_ONLY
    block_table: Tensor | None = None
    actual_seq_len: Lengths
    cache: Tensor

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.compress_block_size, self.compress_stride, self.page_block_size


def nsa_compress_infer(
    input: Tensor,
    weight: Tensor,
    slot_mapping: Tensor,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    *,
    block_table: Tensor | None = None,
    actual_seq_len: Lengths,
    cache: Tensor,
) -> Tensor:
    """`nsa_onnx.nsa_compress_infer` for torch tensors, with lengths that may be known at run time only.

    Args:
        input, weight, slot_mapping, block_table, cache: as `nsa_onnx.nsa_compress_infer`, torch tensors.
        compress_block_size, compress_stride, page_block_size: in tokens.
        actual_seq_len: B lengths in tokens: a list or tuple of ints or SymInts, or an int64 tensor
            ``[B]`` (the way to export a decode step: lengths change from step to step).

    Returns:
        cache itself, updated in place.

    Raises:
        TypeError, RuntimeError: as `nsa_onnx.nsa_compress_infer`. NotImplementedError in a backward pass.
    """
    operands = input, weight, slot_mapping, compress_block_size, compress_stride, page_block_size
    return cast(Tensor, OPERATOR.run(*operands, block_table=block_table, actual_seq_len=actual_seq_len, cache=cache))


# --------------------------------------------------------------------------------------------------
# Kernels


def _check_kinds(call: _Call) -> None:
    x, w, slots, table, cache = map(
        described, (call.input, call.weight, call.slot_mapping, call.block_table, call.cache)
    )
    raise_first(contract.type_violations(x, w, slots, *call.sizes, table, call.actual_seq_len, cache))


def _check(call: _Call) -> None:
    """Every row of the error table that needs no data."""
    _check_kinds(replace(call, actual_seq_len=()))
    OPERATOR.check_lengths(vars(call))
    lengths = call.actual_seq_len
    count = lengths.shape[0] if isinstance(lengths, Tensor) else len(lengths)
    sequences = count if isinstance(count, int) else None
    x, w, slots, cache = (array(tensor).shape for tensor in (call.input, call.weight, call.slot_mapping, call.cache))
    table = None if call.block_table is None else array(call.block_table).shape
    raise_first(contract.shape_violations(x, w, slots, *call.sizes, table, sequences, cache))
    indices = {"slot_mapping": call.slot_mapping, "block_table": call.block_table, SEQ: lengths}
    require_one_device({"input": call.input, "weight": call.weight, "cache": call.cache}, indices)


def _update(call: _Call) -> Tensor:
    """On CPU tensors, in place: only the written slots of the cache are touched."""
    _check(call)
    cache = call.cache
    refuse_overlap(cache.shape, cache.stride())
    refuse_shared(**{name: bits(getattr(call, name)) for name in ("cache", "input", "weight")})
    lengths = host_lengths(call.actual_seq_len)
    x, w, slots, updated = map(dense, (call.input, call.weight, call.slot_mapping, cache))
    table = None if call.block_table is None else dense(call.block_table)
    if updated is not cache:  # slots and lengths are looked at twice, so they must not change in between
        slots, lengths = slots.clone(), lengths.copy()
    native_kernel(
        dtype(x),
        buffer(x),
        buffer(w),
        buffer(slots),
        *call.sizes,
        None if table is None else buffer(table),
        lengths,
        buffer(updated),
        torch.get_num_threads(),
    )
    if updated is not cache:
        written = written_slots(slots.numpy(), lengths, call.compress_block_size, call.compress_stride).tolist()
        cache[written] = updated[written]
    return cache


def _updated(call: _Call) -> Tensor:
    """As a function: a new, dense cache is returned."""
    copy = in_huge_pages(call.cache.new_empty(call.cache.shape)).copy_(call.cache)
    return _update(replace(call, cache=copy))


def _fake(call: _Call) -> Tensor:
    _check(call)
    OPERATOR.require_ties(call)
    lengths, table = call.actual_seq_len, call.block_table
    if not isinstance(lengths, Tensor):
        pages = table.shape[1] if table is not None else call.input.shape[0] // max(len(lengths), 1)
        if isinstance(pages, int) and all(isinstance(length, int) for length in lengths):
            raise_first(contract.length_violations(lengths, pages * call.page_block_size))
    return call.cache.new_empty(call.cache.shape)


def _fake_update(call: _Call) -> Tensor:
    _fake(call)
    return call.cache


# --------------------------------------------------------------------------------------------------
# The ops

_ARGUMENTS = arguments(_Call)
_NO_GRADIENT, _GRADIENT = without_gradient(
    "nsa_compress_infer", "it is a decode step. Call it under torch.no_grad(), or train through nsa_compress"
)
OPERATOR = TorchOperator(
    node=OPERATORS[contract.OP_TYPE],
    function=nsa_compress_infer,
    call=_Call,
    check_kinds=_check_kinds,
    op=Op(
        "nsa_compress_infer",
        f"({_ARGUMENTS}) -> Tensor",
        kernel(_Call, _updated),
        fake_kernel(_Call, _fake),
        _GRADIENT,
    ),
    in_place=Op(
        "nsa_compress_infer_",
        f"({_ARGUMENTS.replace('Tensor cache', 'Tensor(a!) cache')}) -> Tensor(a!)",
        kernel(_Call, _update),
        fake_kernel(_Call, _fake_update),
        _GRADIENT,
        in_place=True,
    ),
    npu_schema=(
        "npu::npu_nsa_compress_infer.cache(Tensor input, Tensor weight, Tensor slot_mapping, "
        "int compress_block_size, int compress_stride, int page_block_size, *, Tensor? block_table=None, "
        "int[]? actual_seq_len=None, Tensor(a!) cache) -> Tensor(a!)"
    ),
    ties=(Tie("B", "slot_mapping", SEQ, Kind.LENGTHS),),
    more=(_NO_GRADIENT,),
)
