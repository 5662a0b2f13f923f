"""NsaCompressAttentionInfer in torch: ``nsa_compress_attention_infer``, one decode step."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import cast

from torch import Tensor

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.nsa_compress_attention_infer import contract
from nsa_onnx.operators.nsa_compress_attention_infer.call import kernel as native_kernel

from .attention import (
    attention_operator,
    decode_query,
    in_layout,
    refuse_empty_on_npu,
    refuse_given,
    refuse_several_tokens,
    split_pages,
)
from .base import Lengths, NpuForm, find_op
from .gradients import without_gradient

_LAYOUTS = {"TND": 3, "BSND": 4}


@dataclass(frozen=True)
class _Call:
    query: Tensor
    key: Tensor
    value: Tensor
    scale_value: float
    head_num: int
    key_value_head_num: int
    select_block_size: int
    select_block_count: int
    page_block_size: int
    compress_block_size: int
    compress_stride: int
    _: KW_ONLY
    block_table: Tensor
    actual_cmp_seq_kvlen: Lengths


def nsa_compress_attention_infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale_value: float,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    compress_block_size: int,
    compress_stride: int,
    *,
    block_table: Tensor,
    actual_cmp_seq_kvlen: Lengths,
) -> tuple[Tensor, Tensor]:
    """`nsa_onnx.nsa_compress_attention_infer` for torch tensors, with lengths that may be known at run time only.

    Args:
        query, key, value, block_table: as `nsa_onnx.nsa_compress_attention_infer`, torch tensors of any strides.
        scale_value, head_num, key_value_head_num, select_block_size, select_block_count, page_block_size,
            compress_block_size, compress_stride: as there.
        actual_cmp_seq_kvlen: B lengths in compressed tokens: a list or tuple of ints or SymInts, or an int64 tensor
            ``[B]`` (the way to export a decode step: lengths change from step to step).

    Returns:
        attention_out ``[B, N1, Dv]`` and topk_indices, int32 ``[B, N2, select_block_count]``.

    Raises:
        TypeError, RuntimeError: as `nsa_onnx.nsa_compress_attention_infer`. NotImplementedError in a backward pass.
    """
    results = OPERATOR.run(
        *(query, key, value, scale_value, head_num, key_value_head_num, select_block_size, select_block_count),
        *(page_block_size, compress_block_size, compress_stride),
        block_table=block_table,
        actual_cmp_seq_kvlen=actual_cmp_seq_kvlen,
    )
    return cast(tuple[Tensor, Tensor], results)


# --------------------------------------------------------------------------------------------------
# torch_npu


@dataclass(frozen=True)
class _NpuCall:
    query: Tensor
    key: Tensor
    value: Tensor
    scale_value: float
    head_num: int
    key_value_head_num: int
    select_block_size: int
    select_block_count: int
    page_block_size: int
    compress_block_size: int
    compress_stride: int
    _: KW_ONLY
    layout: str = "TND"
    atten_mask: Tensor | None = None
    block_table: Tensor | None = None
    topk_mask: Tensor | None = None
    actual_seq_qlen: Lengths | None = None
    actual_cmp_seq_kvlen: Lengths | None = None
    actual_sel_seq_kvlen: Lengths | None = None


def _npu(call: _NpuCall) -> tuple[Tensor, Tensor]:
    """actual_sel_seq_kvlen is not read: it follows from actual_cmp_seq_kvlen."""
    refuse_given(OPERATOR.npu_function, atten_mask=call.atten_mask, topk_mask=call.topk_mask)
    refuse_several_tokens(call.actual_seq_qlen)
    ours = vars(call) | {
        "query": decode_query(call.query, call.layout, _LAYOUTS, call.head_num),
        "key": split_pages(call.key, "key", call.key_value_head_num),
        "value": split_pages(call.value, "value", call.key_value_head_num),
    }
    out, topk = OPERATOR.apply(OPERATOR.op, **ours)
    return in_layout(out, call.layout), in_layout(topk, call.layout)


def _on_npu(call: _Call) -> tuple[Tensor, Tensor]:
    """The vendor's kernel may take a missing mask for one unless it knows the other lengths as well."""
    lengths = call.actual_cmp_seq_kvlen
    refuse_empty_on_npu(OPERATOR.npu_function, "compressed tokens", lengths)
    tokens = [(length - 1) * call.compress_stride + call.compress_block_size for length in lengths]
    pages = {"key": call.key.flatten(2), "value": call.value.flatten(2)}
    given = vars(call) | pages | {"actual_seq_qlen": [1] * len(lengths), "actual_sel_seq_kvlen": tokens}
    return find_op(OPERATOR.npu_op)(**given)  # type: ignore[no-any-return]


_NO_GRADIENT, _GRADIENT = without_gradient(
    nsa_compress_attention_infer.__name__, "it is a decode step. Call it under torch.no_grad()"
)
OPERATOR = attention_operator(
    OPERATORS[contract.OP_TYPE],
    contract.STAGE,
    nsa_compress_attention_infer,
    _Call,
    native_kernel,
    gradient=_GRADIENT,
    npu_results=2,
    npu_form=NpuForm(_NpuCall, _npu, _on_npu),
    more=(_NO_GRADIENT,),
)
