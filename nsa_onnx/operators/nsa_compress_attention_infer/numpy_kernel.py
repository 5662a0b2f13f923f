"""NsaCompressAttentionInfer in NumPy, for where the native library is missing: the same errors, results within the
bound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.native import Buffer
from ..attention import (
    COMPRESSED_LENGTHS,
    COUNT,
    HEADS,
    KV_HEADS,
    PAGE,
    SCALE,
    SELECT,
    pages_read,
    table_violations,
)
from ..attention_checks import call_violations
from ..attention_numpy import Pages, attend_rows, keys_and_values, top_blocks
from ..bits import in_memory, to_bits, to_float
from ..contract import raise_first
from ..windows import BLOCK, STRIDE
from . import contract


def compress_attention_infer(
    dtype: str,
    query: Buffer,
    key: Buffer,
    value: Buffer,
    scale_value: float,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    compress_block_size: int,
    compress_stride: int,
    block_table: Buffer,
    actual_cmp_seq_kvlen: npt.NDArray[np.int64],
    attention_out: Buffer,
    topk_indices: Buffer,
) -> None:
    """What the native function of that name does, with the arguments of `call.kernel`."""
    given = {"query": query, "key": key, "value": value, "block_table": block_table}
    shapes = {name: one.shape for name, one in given.items()}
    numbers: dict[str, int | float | None] = {
        SCALE: scale_value,
        HEADS: head_num,
        KV_HEADS: key_value_head_num,
        SELECT: select_block_size,
        COUNT: select_block_count,
        PAGE: page_block_size,
        BLOCK: compress_block_size,
        STRIDE: compress_stride,
    }
    lengths = actual_cmp_seq_kvlen.tolist()  # what is checked is what is used: of lengths and pages, copies
    raise_first(call_violations(contract.STAGE, contract.ROWS, shapes, numbers, {COMPRESSED_LENGTHS: lengths}))
    table = in_memory(block_table, np.int32).copy()
    read = [range(pages_read(length, page_block_size)) for length in lengths]
    raise_first(table_violations(contract.ROWS, table, read, key.shape[0]))

    queries = in_memory(query)
    keys, values = (Pages(in_memory(one), table) for one in (key, value))
    out, topk = in_memory(attention_out), in_memory(topk_indices, np.int32)
    sizes = select_block_size // compress_stride, compress_block_size // compress_stride
    for b, tokens in enumerate(lengths):
        if not tokens:
            out[b], topk[b] = 0, -1
            topk[b, :, 0] = 0
            continue
        where = np.arange(tokens)
        own_keys, own_values = keys_and_values(dtype, keys.tokens(b, where), values.tokens(b, where))
        blocks = contract.block_count(tokens, compress_block_size, compress_stride, select_block_size)
        row = to_float(dtype, queries[b, np.newaxis])
        results, scores = attend_rows(row, own_keys, own_values, scale_value, blocks, sizes)
        (out[b],) = to_bits(dtype, results)
        scores[..., list(contract.forced_blocks(blocks))] = np.inf
        (topk[b],) = top_blocks(scores, select_block_count)
