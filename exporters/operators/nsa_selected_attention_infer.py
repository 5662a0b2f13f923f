"""NsaSelectedAttentionInfer in torch: ``nsa_select_attention_infer``, one decode step."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import cast

import torch
from torch import Tensor

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.contract import raise_first
from nsa_onnx.operators.nsa_selected_attention_infer import contract
from nsa_onnx.operators.nsa_selected_attention_infer.call import kernel as native_kernel

from .attention import (
    attention_operator,
    decode_query,
    in_layout,
    one_token,
    refuse_empty_on_npu,
    refuse_given,
    refuse_several_tokens,
    split_pages,
)
from .base import Lengths, NpuForm, find_op
from .gradients import without_gradient
from .tensors import host_lengths

_LAYOUTS = {"BSND": 4, "BSH": 3, "TND": 3}


@dataclass(frozen=True)
class _Call:
    query: Tensor
    key: Tensor
    value: Tensor
    topk_indices: Tensor
    scale_value: float
    head_num: int
    key_value_head_num: int
    select_block_size: int
    select_block_count: int
    page_block_size: int
    _: KW_ONLY
    block_table: Tensor
    actual_seq_kvlen: Lengths


def nsa_select_attention_infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    topk_indices: Tensor,
    scale_value: float,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    *,
    block_table: Tensor,
    actual_seq_kvlen: Lengths,
) -> Tensor:
    """`nsa_onnx.nsa_select_attention_infer` for torch tensors, with lengths that may be known at run time only.

    Args:
        query, key, value, topk_indices, block_table: as `nsa_onnx.nsa_select_attention_infer`, torch tensors of any
            strides.
        scale_value, head_num, key_value_head_num, select_block_size, select_block_count, page_block_size: as there.
        actual_seq_kvlen: B lengths in tokens: a list or tuple of ints or SymInts, or an int64 tensor ``[B]`` (the way
            to export a decode step: lengths change from step to step).

    Returns:
        attention_out ``[B, N1, Dv]``.

    Raises:
        TypeError, RuntimeError: as `nsa_onnx.nsa_select_attention_infer`. NotImplementedError in a backward pass.
    """
    result = OPERATOR.run(
        *(query, key, value, topk_indices, scale_value, head_num, key_value_head_num),
        *(select_block_size, select_block_count, page_block_size),
        block_table=block_table,
        actual_seq_kvlen=actual_seq_kvlen,
    )
    return cast(Tensor, result)


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
    key_value_head_num: int
    select_block_size: int
    select_block_count: int
    page_block_size: int
    _: KW_ONLY
    layout: str = "BSND"
    atten_mask: Tensor | None = None
    block_table: Tensor | None = None
    actual_seq_qlen: Lengths | None = None
    actual_seq_kvlen: Lengths | None = None


def _npu(call: _NpuCall) -> Tensor:
    refuse_given(OPERATOR.npu_function, atten_mask=call.atten_mask)
    refuse_several_tokens(call.actual_seq_qlen)
    ours = vars(call) | {
        "query": decode_query(call.query, call.layout, _LAYOUTS, call.head_num),
        "key": split_pages(call.key, "key", call.key_value_head_num),
        "value": split_pages(call.value, "value", call.key_value_head_num),
        "topk_indices": one_token(call.topk_indices, "topk_indices"),
    }
    return in_layout(OPERATOR.apply(OPERATOR.op, **ours), call.layout)


def _on_npu(call: _Call) -> Tensor:
    """The vendor's kernel checks no index. It reads the blocks of the first key/value head for all of them, wants -1
    behind all blocks, and blocks that differ. The order of blocks does not matter.
    """
    name, heads = OPERATOR.npu_function, call.key_value_head_num
    lengths = host_lengths(call.actual_seq_kvlen).tolist()
    refuse_empty_on_npu(name, "keys", lengths)
    blocks = call.topk_indices.cpu()  # waits for the device
    raise_first(contract.block_violations(blocks.tolist(), lengths, call.select_block_size))
    blocks = blocks.sort(-1, descending=True).values
    if bool(((blocks[..., 1:] == blocks[..., :-1]) & (blocks[..., 1:] >= 0)).any()):
        raise RuntimeError(f"{name} takes no block of topk_indices twice on an NPU")
    if bool((blocks == blocks[:, :1]).all()):
        return _npu_kernel(call, blocks)
    group = call.head_num // heads
    own = [slice(head * group, (head + 1) * group) for head in range(heads)]
    results = [_npu_kernel(call, blocks[:, [head] * heads])[:, part] for head, part in enumerate(own)]
    return torch.cat(results, 1)


def _npu_kernel(call: _Call, blocks: Tensor) -> Tensor:
    call = replace(call, topk_indices=blocks.contiguous().to(call.query.device))
    pages = {"key": call.key.flatten(2), "value": call.value.flatten(2)}
    given = vars(call) | pages | {"layout": "TND", "actual_seq_qlen": [1] * len(call.actual_seq_kvlen)}
    return find_op(OPERATOR.npu_op)(**given)  # type: ignore[no-any-return]


_NO_GRADIENT, _GRADIENT = without_gradient(
    nsa_select_attention_infer.__name__, "it is a decode step. Call it under torch.no_grad()"
)
OPERATOR = attention_operator(
    OPERATORS[contract.OP_TYPE],
    contract.STAGE,
    nsa_select_attention_infer,
    _Call,
    native_kernel,
    gradient=_GRADIENT,
    npu_results=1,
    npu_form=NpuForm(_NpuCall, _npu, _on_npu),
    more=(_NO_GRADIENT,),
)
