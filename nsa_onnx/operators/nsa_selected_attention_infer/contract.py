"""The contract of NsaSelectedAttentionInfer, one decode step: limits and error table. Needs the standard library only.

Source: ``torch_npu.npu_nsa_select_attention_infer`` and ``attention/nsa_selected_attention_infer`` of Ascend's
ops-transformer.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..attention import (
    COUNT,
    HEADS,
    KEY_LENGTHS,
    KV_HEADS,
    LIMITS,
    PAGE,
    SELECT,
    TABLE_RANGE_ROW,
    TOPK_RANGE_ROW,
    Stage,
    rows,
    table_violations,
)
from ..contract import Contract, Violation, Violations

OP_TYPE = "NsaSelectedAttentionInfer"
STAGE = Stage(
    arrays={
        "query": ("B", "N1", "D"),
        "key": ("block_num", "page", "N2", "D"),
        "value": ("block_num", "page", "N2", "Dv"),
        "topk_indices": ("B", "N2", "k"),
        "block_table": ("B", "P"),
    },
    types={"topk_indices": "int32", "block_table": "int32"},
    attributes=(HEADS, KV_HEADS, SELECT, COUNT, PAGE),
    lengths=(KEY_LENGTHS,),
)
ROWS = rows(STAGE, TOPK_RANGE_ROW, TABLE_RANGE_ROW)
CONTRACT = Contract(OP_TYPE, ROWS, LIMITS)


def block_violations(
    topk_indices: Sequence[Sequence[Sequence[int]]], lengths: Sequence[int], select_block_size: int
) -> Violations:
    """Blocks that their sequence does not have: the first one. The lengths are checked."""
    for b, length in enumerate(lengths):
        blocks = -(-length // select_block_size)
        for g, group in enumerate(topk_indices[b]):
            for i, block in enumerate(group):
                if not -1 <= block < blocks:
                    yield Violation(ROWS["topk_range"], (b, g, i, blocks, int(block)))
                    return


def pages_of_blocks(blocks: Sequence[int], length: int, select_block_size: int, page: int) -> list[int]:
    """The columns of a sequence's row in the table that the tokens of these checked blocks lie on, ascending."""
    columns: set[int] = set()
    for block in blocks:
        if block >= 0:
            first, end = block * select_block_size, min((block + 1) * select_block_size, length)
            columns.update(range(first // page, (end - 1) // page + 1))
    return sorted(columns)


def page_violations(
    topk_indices: Sequence[Sequence[Sequence[int]]],
    block_table: Sequence[Sequence[int]],
    lengths: Sequence[int],
    select_block_size: int,
    page: int,
    block_num: int,
) -> Violations:
    """Pages that are read and do not exist: the first one. Blocks and lengths are checked."""
    columns = [
        pages_of_blocks([block for group in groups for block in group], length, select_block_size, page)
        for groups, length in zip(topk_indices, lengths, strict=True)
    ]
    yield from table_violations(ROWS, block_table, columns, block_num)
