"""The eager call of NsaSelectedAttention, on NumPy arrays and torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime import native
from ..arrays import Ints, buffer
from ..attention import CAUSAL, COUNT, HEADS, KEY_LENGTHS, QUERY_LENGTHS, SCALE, SELECT
from ..attention_call import AttentionCall
from . import contract, numpy_kernel


def nsa_select_attention(
    query: Any,
    key: Any,
    value: Any,
    topk_indices: Any,
    scale_value: float,
    head_num: int,
    select_block_size: int,
    select_block_count: int,
    *,
    causal: bool = False,
    actual_seq_qlen: Ints,
    actual_seq_kvlen: Ints,
) -> Any:
    """Attention of every query token over the tokens of its selected blocks.

    Block i of a sequence is its tokens ``i * select_block_size .. (i + 1) * select_block_size - 1``, as far as it has
    them. Query head h attends with key/value head ``h // (N1 / N2)``. Entries of -1 are skipped, a block that stands
    twice counts twice, and a row without any block gives 0.

    Args:
        query: ``[T1, N1, D]``, float16 or bfloat16 (``ml_dtypes.bfloat16`` in NumPy); any strides, as all arrays.
        key: ``[T2, N2, D]``, the dtype of query.
        value: ``[T2, N2, Dv]``, the dtype of query; Dv is at most D.
        topk_indices: ``[T1, N2, select_block_count]`` int32, blocks of each row's own sequence.
        scale_value: what the products of query and key are multiplied by, rounded to float32.
        head_num: N1, a multiple of N2, at most 128 times as many.
        select_block_size: tokens in a block, a multiple of 16 in [16, 128].
        select_block_count: blocks of a row, in [1, 128].
        causal: whether a row sees no token behind its own position. A row that sees none of its tokens weighs all of
            them alike.
        actual_seq_qlen: tuple or list of B ints, the prefix sums of the sequences' query tokens; the last is T1.
        actual_seq_kvlen: the same of their key tokens; the last is T2.

    Returns:
        ``[T1, N1, Dv]``, the kind and dtype of query.

    Raises:
        TypeError: a wrong kind of argument or dtype.
        RuntimeError: a rank, dim, number, length or block outside its bound. The message names the argument,
            the element, the value and the bound.

    Source: ``torch_npu.npu_nsa_select_attention``; there, ``atten_mask`` is what turns ``causal`` on.
    """
    call = AttentionCall(
        contract.CONTRACT,
        contract.STAGE,
        {"query": query, "key": key, "value": value, "topk_indices": topk_indices},
        {
            SCALE: scale_value,
            HEADS: head_num,
            SELECT: select_block_size,
            COUNT: select_block_count,
            CAUSAL: causal,
        },
        {QUERY_LENGTHS: actual_seq_qlen, KEY_LENGTHS: actual_seq_kvlen},
    )
    op = call.torch_op()
    if op is not None and causal in (0, 1):  # another number is for the contract to name
        sizes = scale_value, head_num, select_block_size, select_block_count
        return op(*call.arrays.values(), *sizes, causal=bool(causal), **call.lengths)
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
    select_block_size: int,
    select_block_count: int,
    causal: int,
    actual_seq_qlen: npt.NDArray[np.int64],
    actual_seq_kvlen: npt.NDArray[np.int64],
    attention_out: native.Buffer,
    threads: int,
) -> None:
    """The native kernel, or what stands in for it. RuntimeError as `nsa_select_attention`."""
    arguments = (
        *(query, key, value, topk_indices),
        *(scale_value, head_num, select_block_size, select_block_count, causal),
        *(actual_seq_qlen, actual_seq_kvlen, attention_out),
    )
    if native.has("nsa_selected_attention"):
        native.call("nsa_selected_attention", native.dtype(dtype), *arguments, threads)
    else:
        numpy_kernel.selected_attention(dtype, *arguments)
