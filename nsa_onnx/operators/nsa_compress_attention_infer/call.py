"""The eager call of NsaCompressAttentionInfer, on NumPy arrays and torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime import native
from ..arrays import Ints, buffer
from ..attention import COMPRESSED_LENGTHS, COUNT, HEADS, KV_HEADS, PAGE, SCALE, SELECT
from ..attention_call import AttentionCall
from ..windows import BLOCK, STRIDE
from . import contract, numpy_kernel


def nsa_compress_attention_infer(
    query: Any,
    key: Any,
    value: Any,
    scale_value: float,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    compress_block_size: int,
    compress_stride: int,
    *,
    block_table: Any,
    actual_cmp_seq_kvlen: Ints,
) -> tuple[Any, Any]:
    """One decode step over a paged cache of compressed tokens, one query token per sequence.

    Args:
        query: ``[B, N1, D]``, float16 or bfloat16 (``ml_dtypes.bfloat16`` in NumPy); any strides.
        key: ``[block_num, page_block_size, N2, D]``, the dtype of query.
        value: ``[block_num, page_block_size, N2, Dv]``, Dv <= D.
        scale_value: what products are multiplied by, rounded to float32.
        head_num: N1, a multiple of N2.
        key_value_head_num: N2.
        select_block_size: tokens in a block that is selected as a whole.
        select_block_count: blocks that are selected, k.
        page_block_size: compressed tokens in a page, a multiple of 16.
        compress_block_size, compress_stride: the windows that the compressed tokens were made of.
        block_table: int32 ``[B, P]``, the physical page of each page of each sequence. Entries that are not read may
            hold anything.
        actual_cmp_seq_kvlen: lengths in compressed tokens (not prefix sums), each in ``0 .. P * page_block_size``.

    Returns:
        ``attention_out [B, N1, Dv]`` of query's dtype, and ``topk_indices [B, N2, k]`` int32: the blocks of highest
        score first, -1 behind where there are fewer than k.

    Raises:
        TypeError: a wrong kind of argument or dtype.
        RuntimeError: anything else outside its bound; of several errors the first of the documented table is raised.

    Source: ``torch_npu.npu_nsa_compress_attention_infer``.
    """
    call = AttentionCall(
        contract.CONTRACT,
        contract.STAGE,
        {"query": query, "key": key, "value": value, "block_table": block_table},
        {
            SCALE: scale_value,
            HEADS: head_num,
            KV_HEADS: key_value_head_num,
            SELECT: select_block_size,
            COUNT: select_block_count,
            PAGE: page_block_size,
            BLOCK: compress_block_size,
            STRIDE: compress_stride,
        },
        {COMPRESSED_LENGTHS: actual_cmp_seq_kvlen},
    )
    op = call.torch_op()
    if op is not None:
        arguments = query, key, value, *call.numbers.values()
        attention, topk = op(*arguments, block_table=block_table, **call.lengths)
        return attention, topk
    operands = call.operands()
    out, indices = operands.attention_out(), operands.topk_indices(operands.numbers[COUNT])
    kernel(
        **operands.arguments(),
        attention_out=buffer(out),
        topk_indices=buffer(indices),
        threads=native.default_threads(),
    )
    return out, indices


def kernel(
    dtype: str,
    query: native.Buffer,
    key: native.Buffer,
    value: native.Buffer,
    scale_value: float,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    compress_block_size: int,
    compress_stride: int,
    block_table: native.Buffer,
    actual_cmp_seq_kvlen: npt.NDArray[np.int64],
    attention_out: native.Buffer,
    topk_indices: native.Buffer,
    threads: int,
) -> None:
    """The native kernel, or what stands in for it, into the outputs. RuntimeError as `nsa_compress_attention_infer`."""
    operands = query, key, value
    heads = head_num, key_value_head_num
    sizes = select_block_size, select_block_count, page_block_size, compress_block_size, compress_stride
    pages = block_table, actual_cmp_seq_kvlen
    outputs = attention_out, topk_indices
    if not native.has("nsa_compress_attention_infer"):
        numpy_kernel.compress_attention_infer(dtype, *operands, scale_value, *heads, *sizes, *pages, *outputs)
        return
    function = "nsa_compress_attention_infer"
    native.call(function, native.dtype(dtype), *operands, scale_value, *heads, *sizes, *pages, *outputs, threads)
