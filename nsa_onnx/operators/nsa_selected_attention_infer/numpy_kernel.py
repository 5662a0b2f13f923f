"""NsaSelectedAttentionInfer in NumPy, for where the native library is missing: the same bound, the same errors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.native import Buffer
from ..attention import COUNT, HEADS, KEY_LENGTHS, KV_HEADS, PAGE, SCALE, SELECT
from ..attention_checks import call_violations
from ..bits import in_memory
from ..contract import raise_first
from ..selected_numpy import Integers, attend, wrong_blocks
from . import contract


def selected_attention_infer(
    dtype: str,
    query: Buffer,
    key: Buffer,
    value: Buffer,
    topk_indices: Buffer,
    scale_value: float,
    head_num: int,
    key_value_head_num: int,
    select_block_size: int,
    select_block_count: int,
    page_block_size: int,
    block_table: Buffer,
    actual_seq_kvlen: npt.NDArray[np.int64],
    attention_out: Buffer,
) -> None:
    """What the native function of that name does, with the arguments of `call.kernel`."""
    lengths = actual_seq_kvlen.copy()  # what is checked is what is used
    buffers = {
        "query": query,
        "key": key,
        "value": value,
        "topk_indices": topk_indices,
        "block_table": block_table,
    }
    numbers: dict[str, int | float | None] = {
        SCALE: scale_value,
        HEADS: head_num,
        KV_HEADS: key_value_head_num,
        SELECT: select_block_size,
        COUNT: select_block_count,
        PAGE: page_block_size,
    }
    shapes = {name: buffer.shape for name, buffer in buffers.items()}
    raise_first(call_violations(contract.STAGE, contract.ROWS, shapes, numbers, {KEY_LENGTHS: lengths.tolist()}))
    topk = in_memory(topk_indices, np.int32).copy()
    table = in_memory(block_table, np.int32).copy()
    if wrong_blocks(topk, lengths, select_block_size):
        next(contract.block_violations(topk.tolist(), lengths.tolist(), select_block_size)).throw()
    sizes = select_block_size, page_block_size, key.shape[0]
    raise_first(contract.page_violations(topk.tolist(), table.tolist(), lengths.tolist(), *sizes))
    rows = np.arange(len(lengths))[:, np.newaxis]

    def place(chunk: slice, tokens: Integers) -> Integers:
        pages = table[rows[chunk], tokens // page_block_size].astype(np.int64)
        found: Integers = pages * page_block_size + tokens % page_block_size
        return found

    keys, values = (in_memory(buffer).reshape(-1, *buffer.shape[2:]) for buffer in (key, value))
    attend(
        dtype,
        in_memory(query),
        keys,
        values,
        topk,
        scale_value,
        select_block_size,
        lengths,
        place,
        in_memory(attention_out),
    )
