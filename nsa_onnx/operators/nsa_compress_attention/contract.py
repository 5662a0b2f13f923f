"""The contract of NsaCompressAttention (prefill): limits and error table. Needs the standard library only.

Source: ``torch_npu.npu_nsa_compress_attention`` and ``attention/nsa_compress_attention`` of Ascend's ops-transformer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..attention import (
    BLOCK_LENGTHS,
    COMPRESSED_LENGTHS,
    COUNT,
    HEADS,
    LIMITS,
    QUERY_LENGTHS,
    SELECT,
    Stage,
    mask_rows,
    mask_violations,
    rows,
    steps,
)
from ..contract import Contract, Shape, Violation, Violations
from ..windows import BLOCK, STRIDE

OP_TYPE = "NsaCompressAttention"
STAGE = Stage(
    arrays={
        "query": ("T1", "N1", "D"),
        "key": ("Tc", "N2", "D"),
        "value": ("Tc", "N2", "Dv"),
        "topk_mask": (">= max Lq", ">= max S"),
        "atten_mask": (">= max Lq", ">= max Lcmp"),
    },
    types={"topk_mask": "bool", "atten_mask": "bool"},
    optional=frozenset({"topk_mask", "atten_mask"}),
    attributes=(HEADS, BLOCK, STRIDE, SELECT, COUNT),
    prefix_sums={QUERY_LENGTHS: "T1", COMPRESSED_LENGTHS: "Tc", BLOCK_LENGTHS: None},
)
ROWS = rows(
    STAGE,
    (
        "blocks",
        RuntimeError,
        BLOCK_LENGTHS,
        f"{BLOCK_LENGTHS}: sequence {{}} has {{}} compressed tokens, so it has {{}} blocks, got {{}}",
        "NSA015",
    ),
    *mask_rows("topk_mask", "atten_mask"),
)
CONTRACT = Contract(OP_TYPE, ROWS, LIMITS)


def block_count(compressed: int, compress_stride: int, select_block_size: int) -> int:
    """S of a sequence of ``compressed`` tokens: ``ceil(compressed / m)``, m compressed tokens begin in a block."""
    return -(-compressed * compress_stride // select_block_size)


def block_violations(
    compressed: Sequence[int], blocks: Sequence[int], compress_stride: int, select_block_size: int
) -> Violations:
    """The lengths in compressed tokens and in blocks, which must agree. The first sequence that is wrong."""
    for b, (length, given) in enumerate(zip(compressed, blocks, strict=True)):
        wanted = block_count(length, compress_stride, select_block_size)
        if given != wanted:
            yield Violation(ROWS["blocks"], (b, length, wanted, given))
            return


def value_violations(
    shapes: Mapping[str, Shape],
    lengths: Mapping[str, Sequence[int]],
    compress_stride: int | None,
    select_block_size: int | None,
) -> Violations:
    """Blocks that do not follow from the compressed tokens, and masks that are too small.

    Args:
        shapes: of the masks that are given, of rank 2.
        lengths: checked prefix sums by name; what is not known is not in it.
    """
    counts = {name: steps(ends) for name, ends in lengths.items()}
    compressed, blocks = counts.get(COMPRESSED_LENGTHS), counts.get(BLOCK_LENGTHS)
    if compressed is not None and blocks is not None and compress_stride is not None and select_block_size is not None:
        yield from block_violations(compressed, blocks, compress_stride, select_block_size)
    most = {name: max(values) for name, values in counts.items()}
    for name, columns in (("topk_mask", BLOCK_LENGTHS), ("atten_mask", COMPRESSED_LENGTHS)):
        if name in shapes:
            yield from mask_violations(ROWS, name, shapes[name], most.get(QUERY_LENGTHS), most.get(columns))
