"""NsaCompressAttention in torch: ``nsa_compress_attention``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import cast

from torch import Tensor

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.attention import steps
from nsa_onnx.operators.nsa_compress_attention import contract
from nsa_onnx.operators.nsa_compress_attention.call import kernel as native_kernel

from .attention import attention_operator, boolean, refuse_empty_on_npu
from .base import Lengths, NpuForm, find_op
from .prefill_attention import Piece, gradient_ops, row_tiles, sequences, softmax_op
from .tensors import host_lengths


@dataclass(frozen=True)
class _Call:
    query: Tensor
    key: Tensor
    value: Tensor
    scale_value: float
    head_num: int
    compress_block_size: int
    compress_stride: int
    select_block_size: int
    select_block_count: int
    _: KW_ONLY
    topk_mask: Tensor | None = None
    atten_mask: Tensor | None = None
    actual_seq_qlen: Lengths
    actual_cmp_seq_kvlen: Lengths
    actual_sel_seq_kvlen: Lengths


def nsa_compress_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale_value: float,
    head_num: int,
    compress_block_size: int,
    compress_stride: int,
    select_block_size: int,
    select_block_count: int,
    *,
    topk_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    actual_seq_qlen: Lengths,
    actual_cmp_seq_kvlen: Lengths,
    actual_sel_seq_kvlen: Lengths,
) -> tuple[Tensor, Tensor]:
    """`nsa_onnx.nsa_compress_attention` for torch tensors, with lengths that may be known at run time only.

    Args:
        query, key, value, topk_mask, atten_mask: as `nsa_onnx.nsa_compress_attention`, torch tensors of any strides.
        scale_value, head_num, compress_block_size, compress_stride, select_block_size, select_block_count: as there.
        actual_seq_qlen, actual_cmp_seq_kvlen, actual_sel_seq_kvlen: prefix sums, each a list or tuple of ints or
            SymInts, or an int64 tensor ``[B]`` (exported as an input).

    Returns:
        attention_out ``[T1, N1, Dv]``, differentiable with respect to query, key and value, and topk_indices, int32
        ``[T1, N2, select_block_count]``.

    Raises:
        TypeError, RuntimeError: as `nsa_onnx.nsa_compress_attention`.
    """
    results = OPERATOR.run(
        *(query, key, value, scale_value, head_num, compress_block_size, compress_stride),
        *(select_block_size, select_block_count),
        topk_mask=topk_mask,
        atten_mask=atten_mask,
        actual_seq_qlen=actual_seq_qlen,
        actual_cmp_seq_kvlen=actual_cmp_seq_kvlen,
        actual_sel_seq_kvlen=actual_sel_seq_kvlen,
    )
    return cast(tuple[Tensor, Tensor], results)


def _pieces(call: _Call) -> Iterator[Piece]:
    for rows, tokens in sequences(call.actual_seq_qlen, call.actual_cmp_seq_kvlen):
        count = tokens.stop - tokens.start
        for tile in row_tiles(rows, call.head_num * count):
            own = slice(tile.start - rows.start, tile.stop - rows.start)
            hidden = None if call.atten_mask is None else call.atten_mask[own, None, :count]
            yield Piece(tile, tokens, hidden=hidden)


# --------------------------------------------------------------------------------------------------
# torch_npu


@dataclass(frozen=True)
class _NpuCall:
    query: Tensor
    key: Tensor
    value: Tensor
    scale_value: float
    head_num: int
    compress_block_size: int
    compress_stride: int
    select_block_size: int
    select_block_count: int
    _: KW_ONLY
    topk_mask: Tensor | None = None
    atten_mask: Tensor | None = None
    actual_seq_qlen: Lengths | None = None
    actual_cmp_seq_kvlen: Lengths | None = None
    actual_sel_seq_kvlen: Lengths | None = None


def _npu(call: _NpuCall) -> tuple[Tensor, ...]:
    ours = {**vars(call), "topk_mask": boolean(call.topk_mask), "atten_mask": boolean(call.atten_mask)}
    return *OPERATOR.apply(OPERATOR.op, **ours), *OPERATOR.apply(_SOFTMAX, **ours)


def _on_npu(call: _Call) -> tuple[Tensor, ...]:
    """The vendor's kernel takes the rows of a mask to be as long as the longest sequence."""
    queries, tokens, blocks = (
        steps(host_lengths(lengths).tolist())
        for lengths in (call.actual_seq_qlen, call.actual_cmp_seq_kvlen, call.actual_sel_seq_kvlen)
    )
    refuse_empty_on_npu(OPERATOR.npu_function, "compressed tokens", tokens)
    masks = {
        name: None if mask is None else mask[: max(queries), : max(columns)].contiguous()
        for name, mask, columns in (("topk_mask", call.topk_mask, blocks), ("atten_mask", call.atten_mask, tokens))
    }
    return find_op(OPERATOR.npu_op)(**(vars(call) | masks))[:2]  # type: ignore[no-any-return]


_SOFTMAX = softmax_op(nsa_compress_attention.__name__, _Call, _pieces)
_GRADIENT, *_MORE = gradient_ops(nsa_compress_attention.__name__, _Call, contract.STAGE.all_lengths, _pieces)
OPERATOR = attention_operator(
    OPERATORS[contract.OP_TYPE],
    contract.STAGE,
    nsa_compress_attention,
    _Call,
    native_kernel,
    gradient=_GRADIENT,
    npu_results=4,
    npu_form=NpuForm(_NpuCall, _npu, _on_npu),
    more=(_SOFTMAX, *_MORE),
    own_violations=lambda call, shapes, lengths: contract.value_violations(
        shapes, lengths, call.compress_stride, call.select_block_size
    ),
)
