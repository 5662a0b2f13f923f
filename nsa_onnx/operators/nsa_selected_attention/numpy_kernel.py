"""NsaSelectedAttention in NumPy, for where the native library is missing: the same bound, the same errors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...runtime.native import Buffer
from ..attention import CAUSAL, COUNT, HEADS, KEY_LENGTHS, QUERY_LENGTHS, SCALE, SELECT
from ..attention_checks import call_violations
from ..bits import in_memory
from ..contract import raise_first
from ..selected_numpy import Integers, attend, wrong_blocks
from . import contract


def selected_attention(
    dtype: str,
    query: Buffer,
    key: Buffer,
    value: Buffer,
    topk_indices: Buffer,
    scale_value: float,
    head_num: int,
    select_block_size: int,
    select_block_count: int,
    causal: int,
    actual_seq_qlen: npt.NDArray[np.int64],
    actual_seq_kvlen: npt.NDArray[np.int64],
    attention_out: Buffer,
) -> None:
    """What the native function of that name does, with the arguments of `call.kernel`."""
    ends, key_ends = actual_seq_qlen.tolist(), actual_seq_kvlen.tolist()  # what is checked is what is used
    buffers = {"query": query, "key": key, "value": value, "topk_indices": topk_indices}
    numbers: dict[str, int | float | None] = {
        SCALE: scale_value,
        HEADS: head_num,
        SELECT: select_block_size,
        COUNT: select_block_count,
        CAUSAL: causal,
    }
    shapes = {name: buffer.shape for name, buffer in buffers.items()}
    lengths = {QUERY_LENGTHS: ends, KEY_LENGTHS: key_ends}
    raise_first(call_violations(contract.STAGE, contract.ROWS, shapes, numbers, lengths))
    topk = in_memory(topk_indices, np.int32).copy()
    rows = np.diff(ends, prepend=0)
    key_lengths = np.repeat(np.diff(key_ends, prepend=0), rows)
    if wrong_blocks(topk, key_lengths, select_block_size):
        next(contract.block_violations(topk.tolist(), ends, key_ends, select_block_size)).throw()
    key_begins = np.repeat([0, *key_ends[:-1]], rows)[:, np.newaxis]
    positions = np.arange(ends[-1]) - np.repeat([0, *ends[:-1]], rows)

    def place(chunk: slice, tokens: Integers) -> Integers:
        found: Integers = key_begins[chunk] + tokens
        return found

    attend(
        dtype,
        in_memory(query),
        in_memory(key),
        in_memory(value),
        topk,
        scale_value,
        select_block_size,
        key_lengths,
        place,
        in_memory(attention_out),
        positions if causal else None,
    )
