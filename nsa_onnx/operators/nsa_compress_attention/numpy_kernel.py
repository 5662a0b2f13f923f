"""NsaCompressAttention in NumPy, for where the native library is missing: the same errors, results within the bound."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.native import Buffer
from ..attention import BLOCK_LENGTHS, COMPRESSED_LENGTHS, COUNT, HEADS, QUERY_LENGTHS, SCALE, SELECT, steps
from ..attention_checks import call_violations
from ..attention_numpy import attend_rows, keys_and_values, row_tiles, top_blocks
from ..bits import in_memory, to_bits, to_float
from ..contract import raise_first
from ..windows import BLOCK, STRIDE
from . import contract


def compress_attention(
    dtype: str,
    query: Buffer,
    key: Buffer,
    value: Buffer,
    scale_value: float,
    head_num: int,
    compress_block_size: int,
    compress_stride: int,
    select_block_size: int,
    select_block_count: int,
    topk_mask: Buffer | None,
    atten_mask: Buffer | None,
    actual_seq_qlen: npt.NDArray[np.int64],
    actual_cmp_seq_kvlen: npt.NDArray[np.int64],
    actual_sel_seq_kvlen: npt.NDArray[np.int64],
    attention_out: Buffer,
    topk_indices: Buffer,
) -> None:
    """What the native function of that name does, with the arguments of `call.kernel`."""
    given = {"query": query, "key": key, "value": value, "topk_mask": topk_mask, "atten_mask": atten_mask}
    shapes = {name: one.shape for name, one in given.items() if one is not None}
    numbers: dict[str, int | float | None] = {
        SCALE: scale_value,
        HEADS: head_num,
        BLOCK: compress_block_size,
        STRIDE: compress_stride,
        SELECT: select_block_size,
        COUNT: select_block_count,
    }
    lengths = {  # what is checked is what is used
        QUERY_LENGTHS: actual_seq_qlen.tolist(),
        COMPRESSED_LENGTHS: actual_cmp_seq_kvlen.tolist(),
        BLOCK_LENGTHS: actual_sel_seq_kvlen.tolist(),
    }
    raise_first(call_violations(contract.STAGE, contract.ROWS, shapes, numbers, lengths))
    raise_first(contract.value_violations(shapes, lengths, compress_stride, select_block_size))

    queries, keys, values = (in_memory(one) for one in (query, key, value))
    hidden, forced = (None if one is None else in_memory(one, np.bool_) for one in (atten_mask, topk_mask))
    out, topk = in_memory(attention_out), in_memory(topk_indices, np.int32)
    sizes = select_block_size // compress_stride, compress_block_size // compress_stride
    row = key_begin = 0
    for row_end, key_end, blocks in zip(
        lengths[QUERY_LENGTHS], lengths[COMPRESSED_LENGTHS], steps(lengths[BLOCK_LENGTHS]), strict=True
    ):
        tokens = key_end - key_begin
        if not tokens:
            out[row:row_end], topk[row:row_end] = 0, -1
        else:
            own = slice(key_begin, key_end)
            own_keys, own_values = keys_and_values(dtype, keys[own], values[own])
            for tile in row_tiles(row, row_end, head_num * tokens):
                local = slice(tile.start - row, tile.stop - row)
                unseen = None if hidden is None else hidden[local, :tokens]
                always = None if forced is None else forced[local, np.newaxis, :blocks]
                rows = to_float(dtype, queries[tile])
                results, scores = attend_rows(rows, own_keys, own_values, scale_value, blocks, sizes, unseen)
                if always is not None:
                    np.copyto(scores, np.inf, where=always)
                out[tile], topk[tile] = to_bits(dtype, results), top_blocks(scores, select_block_count)
        row, key_begin = row_end, key_end
