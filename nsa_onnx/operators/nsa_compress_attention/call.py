"""The eager call of NsaCompressAttention, on NumPy arrays and torch tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime import native
from ..arrays import Ints, buffer
from ..attention import BLOCK_LENGTHS, COMPRESSED_LENGTHS, COUNT, HEADS, QUERY_LENGTHS, SCALE, SELECT
from ..attention_call import AttentionCall
from ..contract import Violations
from ..windows import BLOCK, STRIDE
from . import contract, numpy_kernel


def nsa_compress_attention(
    query: Any,
    key: Any,
    value: Any,
    scale_value: float,
    head_num: int,
    compress_block_size: int,
    compress_stride: int,
    select_block_size: int,
    select_block_count: int,
    *,
    topk_mask: Any = None,
    atten_mask: Any = None,
    actual_seq_qlen: Ints,
    actual_cmp_seq_kvlen: Ints,
    actual_sel_seq_kvlen: Ints,
) -> tuple[Any, Any]:
    """Attend to the compressed tokens of a sequence, and select the blocks that its tokens attend to in full.

    Args:
        query: ``[T1, N1, D]``, float16 or bfloat16 (``ml_dtypes.bfloat16`` in NumPy); any strides.
        key: ``[Tc, N2, D]``, the dtype of query; N1 is a multiple of N2.
        value: ``[Tc, N2, Dv]``, Dv <= D.
        scale_value: what products are multiplied by, rounded to float32.
        head_num: N1.
        compress_block_size, compress_stride: the windows that the compressed tokens were made of.
        select_block_size: tokens in a block that is selected as a whole.
        select_block_count: blocks that are selected, k.
        topk_mask: bool ``[>= max Lq, >= max S]``, true where a block is always selected.
        atten_mask: bool ``[>= max Lq, >= max Lcmp]``, true where a compressed token is not seen.
        actual_seq_qlen: prefix sums of the sequences' lengths in query tokens; the last is T1.
        actual_cmp_seq_kvlen: the same in compressed tokens; the last is Tc.
        actual_sel_seq_kvlen: the same in blocks, ``ceil(Lcmp * compress_stride / select_block_size)`` each.

    Returns:
        ``attention_out [T1, N1, Dv]`` of query's dtype, and ``topk_indices [T1, N2, k]`` int32: the blocks of highest
        score first, -1 behind where there are fewer than k.

    Raises:
        TypeError: a wrong kind of argument or dtype.
        RuntimeError: anything else outside its bound; of several errors the first of the documented table is raised.

    Source: ``torch_npu.npu_nsa_compress_attention``.
    """
    call = AttentionCall(
        contract.CONTRACT,
        contract.STAGE,
        {"query": query, "key": key, "value": value, "topk_mask": topk_mask, "atten_mask": atten_mask},
        {
            SCALE: scale_value,
            HEADS: head_num,
            BLOCK: compress_block_size,
            STRIDE: compress_stride,
            SELECT: select_block_size,
            COUNT: select_block_count,
        },
        {
            QUERY_LENGTHS: actual_seq_qlen,
            COMPRESSED_LENGTHS: actual_cmp_seq_kvlen,
            BLOCK_LENGTHS: actual_sel_seq_kvlen,
        },
    )
    op = call.torch_op()
    if op is not None:
        arguments = query, key, value, *call.numbers.values()
        attention, topk = op(*arguments, topk_mask=topk_mask, atten_mask=atten_mask, **call.lengths)
        return attention, topk

    def own_rows(shapes: Mapping[str, Any], lengths: Mapping[str, Any]) -> Violations:
        return contract.value_violations(shapes, lengths, compress_stride, select_block_size)

    operands = call.operands(own_rows)
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
    compress_block_size: int,
    compress_stride: int,
    select_block_size: int,
    select_block_count: int,
    topk_mask: native.Buffer | None,
    atten_mask: native.Buffer | None,
    actual_seq_qlen: npt.NDArray[np.int64],
    actual_cmp_seq_kvlen: npt.NDArray[np.int64],
    actual_sel_seq_kvlen: npt.NDArray[np.int64],
    attention_out: native.Buffer,
    topk_indices: native.Buffer,
    threads: int,
) -> None:
    """The native kernel, or what stands in for it, into the outputs. RuntimeError as `nsa_compress_attention`."""
    operands = query, key, value
    sizes = head_num, compress_block_size, compress_stride, select_block_size, select_block_count
    masks = topk_mask, atten_mask
    lengths = actual_seq_qlen, actual_cmp_seq_kvlen, actual_sel_seq_kvlen
    outputs = attention_out, topk_indices
    if not native.has("nsa_compress_attention"):
        numpy_kernel.compress_attention(dtype, *operands, scale_value, *sizes, *masks, *lengths, *outputs)
        return
    function = "nsa_compress_attention"
    native.call(function, native.dtype(dtype), *operands, scale_value, *sizes, *masks, *lengths, *outputs, threads)
