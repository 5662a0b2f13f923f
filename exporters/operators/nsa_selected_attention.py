"""NsaSelectedAttention in torch: ``nsa_select_attention``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import cast

import torch
from torch import Tensor

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.attention import steps
from nsa_onnx.operators.contract import raise_first
from nsa_onnx.operators.nsa_selected_attention import contract
from nsa_onnx.operators.nsa_selected_attention.call import kernel as native_kernel

from .attention import attention_operator
from .base import Lengths, NpuForm, find_op
from .prefill_attention import Piece, gradient_ops, row_tiles, sequences, softmax_op, tokens_of_blocks
from .tensors import host_lengths


@dataclass(frozen=True)
class _Call:
    query: Tensor
    key: Tensor
    value: Tensor
    topk_indices: Tensor
    scale_value: float
    head_num: int
    select_block_size: int
    select_block_count: int
    _: KW_ONLY
    causal: int = 0
    actual_seq_qlen: Lengths
    actual_seq_kvlen: Lengths


def nsa_select_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    topk_indices: Tensor,
    scale_value: float,
    head_num: int,
    select_block_size: int,
    select_block_count: int,
    *,
    causal: bool = False,
    actual_seq_qlen: Lengths,
    actual_seq_kvlen: Lengths,
) -> Tensor:
    """`nsa_onnx.nsa_select_attention` for torch tensors, with lengths that may be known at run time only.

    Args:
        query, key, value, topk_indices: as `nsa_onnx.nsa_select_attention`, torch tensors of any strides.
        scale_value, head_num, select_block_size, select_block_count, causal: as there.
        actual_seq_qlen, actual_seq_kvlen: prefix sums, each a list or tuple of ints or SymInts, or an int64 tensor
            ``[B]`` (exported as an input).

    Returns:
        attention_out ``[T1, N1, Dv]``, differentiable with respect to query, key and value.

    Raises:
        TypeError, RuntimeError: as `nsa_onnx.nsa_select_attention`.
    """
    result = OPERATOR.run(
        *(query, key, value, topk_indices, scale_value, head_num, select_block_size, select_block_count),
        causal=causal,
        actual_seq_qlen=actual_seq_qlen,
        actual_seq_kvlen=actual_seq_kvlen,
    )
    return cast(Tensor, result)


def _pieces(call: _Call) -> Iterator[Piece]:
    for rows, tokens in sequences(call.actual_seq_qlen, call.actual_seq_kvlen):
        count = tokens.stop - tokens.start
        numbers = call.select_block_count * call.select_block_size * call.key.shape[1] * call.key.shape[2]
        for tile in row_tiles(rows, numbers):
            places, there = tokens_of_blocks(call.topk_indices[tile], call.select_block_size, count)
            if not count:
                yield Piece(tile, slice(0, 0))
                continue
            hidden = None
            if call.causal:
                own = torch.arange(tile.start - rows.start, tile.stop - rows.start, device=places.device)
                hidden = places > own[:, None, None]
            yield Piece(tile, tokens.start + places.where(there, 0), there, hidden)


# --------------------------------------------------------------------------------------------------
# torch_npu


@dataclass(frozen=True)
class _NpuCall:
    query: Tensor
    key: Tensor
    value: Tensor
    topk_indices: Tensor
    scale_value: float
    head_num: int
    select_block_size: int
    select_block_count: int
    _: KW_ONLY
    atten_mask: Tensor | None = None
    actual_seq_qlen: Lengths | None = None
    actual_seq_kvlen: Lengths | None = None


def _npu(call: _NpuCall) -> tuple[Tensor, ...]:
    """That there is a mask means causal (sparse_mode 2); what is in it is never read."""
    ours = vars(call) | {"causal": int(call.atten_mask is not None)}
    return OPERATOR.apply(OPERATOR.op, **ours), *OPERATOR.apply(_SOFTMAX, **ours)


def _on_npu(call: _Call) -> Tensor:
    """The vendor's kernel checks no index, and reads as many whole blocks as it is told. It masks before it scales."""
    size, name = call.select_block_size, OPERATOR.npu_function
    queries, ends = (host_lengths(one).tolist() for one in (call.actual_seq_qlen, call.actual_seq_kvlen))
    blocks = call.topk_indices.tolist()  # waits for the device
    raise_first(contract.block_violations(blocks, queries, ends, size))
    if bool((call.topk_indices < 0).any()):
        raise RuntimeError(f"{name} takes no -1 in topk_indices on an NPU")
    for b, length in enumerate(steps(ends)):
        if length % size:
            raise RuntimeError(f"{name} takes whole blocks of {size} on an NPU, and sequence {b} has {length} keys")
    if call.causal and not 0 < call.scale_value <= 1:
        raise RuntimeError(f"with causal, {name} takes a scale_value in (0, 1] on an NPU, got {call.scale_value}")
    given = dict(vars(call))
    if given.pop("causal"):
        given["atten_mask"] = call.query.new_ones((1, 1), dtype=torch.bool)
    return find_op(OPERATOR.npu_op)(**given)[0]  # type: ignore[no-any-return]


_SOFTMAX = softmax_op(nsa_select_attention.__name__, _Call, _pieces)
_GRADIENT, *_MORE = gradient_ops(nsa_select_attention.__name__, _Call, contract.STAGE.all_lengths, _pieces)
OPERATOR = attention_operator(
    OPERATORS[contract.OP_TYPE],
    contract.STAGE,
    nsa_select_attention,
    _Call,
    native_kernel,
    gradient=_GRADIENT,
    npu_results=3,
    npu_form=NpuForm(_NpuCall, _npu, _on_npu),
    more=(_SOFTMAX, *_MORE),
)
