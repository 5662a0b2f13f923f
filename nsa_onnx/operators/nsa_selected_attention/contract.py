"""The contract of NsaSelectedAttention (prefill): limits and error table. Needs the standard library only.

Source: ``torch_npu.npu_nsa_select_attention`` and ``attention/nsa_selected_attention`` of Ascend's ops-transformer.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..attention import (
    CAUSAL,
    COUNT,
    HEADS,
    KEY_LENGTHS,
    LIMITS,
    QUERY_LENGTHS,
    SELECT,
    TOPK_RANGE_ROW,
    Stage,
    rows,
)
from ..contract import Contract, Violation, Violations

OP_TYPE = "NsaSelectedAttention"
STAGE = Stage(
    arrays={
        "query": ("T1", "N1", "D"),
        "key": ("T2", "N2", "D"),
        "value": ("T2", "N2", "Dv"),
        "topk_indices": ("T1", "N2", "k"),
    },
    types={"topk_indices": "int32"},
    attributes=(HEADS, SELECT, COUNT, CAUSAL),
    prefix_sums={QUERY_LENGTHS: "T1", KEY_LENGTHS: "T2"},
)
ROWS = rows(STAGE, TOPK_RANGE_ROW)
CONTRACT = Contract(OP_TYPE, ROWS, LIMITS)


def block_violations(
    topk_indices: Sequence[Sequence[Sequence[int]]],
    query_ends: Sequence[int],
    key_ends: Sequence[int],
    select_block_size: int,
) -> Violations:
    """Blocks that their sequence does not have, by row and group: the first one. All prefix sums are checked."""
    start = key_start = 0
    for end, key_end in zip(query_ends, key_ends, strict=True):
        blocks = -(-(key_end - key_start) // select_block_size)
        for t in range(start, end):
            for g, group in enumerate(topk_indices[t]):
                for i, block in enumerate(group):
                    if not -1 <= block < blocks:
                        yield Violation(ROWS["topk_range"], (t, g, i, blocks, int(block)))
                        return
        start, key_start = end, key_end
