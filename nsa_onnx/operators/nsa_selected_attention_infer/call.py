"""The eager call of NsaSelectedAttentionInfer, on NumPy arrays and torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime import native
from ..arrays import Ints, buffer
from ..attention import COUNT, HEADS, KEY_LENGTHS, KV_HEADS, PAGE, SCALE, SELECT
from ..attention_call import AttentionCall
from . import contract, numpy_kernel


def nsa_select_attention_infer(
    query: Any,
    key: Any,
    value: Any,
    topk_indices: Any,
    scale_value: float,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    *,
    block_table: Any,
    actual_seq_kvlen: Ints,
) -> Any:
    """One decode step: the query token of every sequence attends to the tokens of its selected blocks, in pages.

    Token t of sequence b is ``key[block_table[b, t // page], t % page]``, and block i of a sequence is its tokens
    ``i * select_block_size .. (i + 1) * select_block_size - 1``, as far as it has them. Query head h attends with
    key/value head ``h // (N1 / N2)``. Entries of -1 are skipped, a block that stands twice counts twice, and a
    sequence without any block gives 0.

    Args:
        query: ``[B, N1, D]``, float16 or bfloat16 (``ml_dtypes.bfloat16`` in NumPy); any strides, as all arrays.
        key: ``[block_num, page_block_size, N2, D]``, the dtype of query.
        value: ``[block_num, page_block_size, N2, Dv]``, the dtype of query; Dv is at most D.
        topk_indices: ``[B, N2, select_block_count]`` int32, blocks of each sequence.
        scale_value: what the products of query and key are multiplied by, rounded to float32.
        head_num: N1, a multiple of N2, at most 128 times as many.
        key_value_head_num: N2.
        select_block_size: tokens in a block, a multiple of 16 in [16, 128].
        select_block_count: blocks of a sequence, in [1, 128].
        page_block_size: tokens in a page, a multiple of 16 in [16, 1024].
        block_table: ``[B, P]`` int32, the physical page of each logical page. Only the entries of pages that selected
            blocks lie on are read.
        actual_seq_kvlen: tuple or list of B ints, lengths in tokens (not prefix sums).

    Returns:
        ``[B, N1, Dv]``, the kind and dtype of query.

    Raises:
        TypeError: a wrong kind of argument or dtype.
        RuntimeError: a rank, dim, number, length, block or page outside its bound. The message names the argument,
            the element, the value and the bound.

    Source: ``torch_npu.npu_nsa_select_attention_infer``.
    """
    call = AttentionCall(
        contract.CONTRACT,
        contract.STAGE,
        {"query": query, "key": key, "value": value, "topk_indices": topk_indices, "block_table": block_table},
        {
            SCALE: scale_value,
            HEADS: head_num,
            KV_HEADS: key_value_head_num,
            SELECT: select_block_size,
            COUNT: select_block_count,
            PAGE: page_block_size,
        },
        {KEY_LENGTHS: actual_seq_kvlen},
    )
    op = call.torch_op()
    if op is not None:
        arrays = query, key, value, topk_indices
        return op(*arrays, *call.numbers.values(), block_table=block_table, **call.lengths)
    operands = call.operands()
    out = operands.attention_out()
    kernel(**operands.arguments(), attention_out=buffer(out), threads=native.default_threads())
    return out


def kernel(
    dtype: str,
    query: native.Buffer,
    key: native.Buffer,
    value: native.Buffer,
    topk_indices: native.Buffer,
    scale_value: float,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    block_table: native.Buffer,
    actual_seq_kvlen: npt.NDArray[np.int64],
    attention_out: native.Buffer,
    threads: int,
) -> None:
    """The native kernel, or what stands in for it. RuntimeError as `nsa_select_attention_infer`."""
    arguments = (
        *(query, key, value, topk_indices),
        *(scale_value, head_num, key_value_head_num, select_block_size, select_block_count, page_block_size),
        *(block_table, actual_seq_kvlen, attention_out),
    )
    if native.has("nsa_selected_attention_infer"):
        native.call("nsa_selected_attention_infer", native.dtype(dtype), *arguments, threads)
    else:
        numpy_kernel.selected_attention_infer(dtype, *arguments)
