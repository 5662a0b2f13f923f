"""The contract of NsaCompressAttentionInfer, one decode step: limits and error table. Needs the standard library only.

Source: ``torch_npu.npu_nsa_compress_attention_infer`` and ``attention/nsa_compress_attention_infer`` of Ascend's
ops-transformer.
"""

from __future__ import annotations

from ..attention import (
    COMPRESSED_LENGTHS,
    COUNT,
    HEADS,
    KV_HEADS,
    LIMITS,
    PAGE,
    SELECT,
    TABLE_RANGE_ROW,
    Stage,
    rows,
)
from ..contract import Contract
from ..windows import BLOCK, STRIDE

OP_TYPE = "NsaCompressAttentionInfer"
STAGE = Stage(
    arrays={
        "query": ("B", "N1", "D"),
        "key": ("block_num", "page", "N2", "D"),
        "value": ("block_num", "page", "N2", "Dv"),
        "block_table": ("B", "P"),
    },
    types={"block_table": "int32"},
    attributes=(HEADS, KV_HEADS, SELECT, COUNT, PAGE, BLOCK, STRIDE),
    lengths=(COMPRESSED_LENGTHS,),
)
ROWS = rows(STAGE, TABLE_RANGE_ROW)
CONTRACT = Contract(OP_TYPE, ROWS, LIMITS)


def block_count(compressed: int, compress_block_size: int, compress_stride: int, select_block_size: int) -> int:
    """S of a sequence of ``compressed`` tokens: the blocks of the tokens that they were made of; 0 of none."""
    if not compressed:
        return 0
    return -(-((compressed - 1) * compress_stride + compress_block_size) // select_block_size)


def forced_blocks(blocks: int) -> tuple[int, ...]:
    """Those that are always selected: the first one and the last two, as far as they exist."""
    return tuple(sorted(block for block in {0, blocks - 2, blocks - 1} if 0 <= block < blocks))
