"""What ``nsa-onnx explain`` draws of an NsaCompressInfer: the sequences' pages, and the windows that become full."""

from __future__ import annotations

from collections.abc import Sequence

from ..facts import NodeFacts
from ..pictures import Pages, constant_lengths, drawn_sizes, made_up_lengths, row_bytes
from .contract import PAGE


def make(facts: NodeFacts, given: Sequence[int] | None) -> Pages:
    """The picture of a node, with the given lengths where the model does not fix them."""
    block, stride, page = drawn_sizes(facts, PAGE)
    constant = constant_lengths(facts, prefix_sums=False)
    batch, pages = facts.tensor("slot_mapping").dim(0), facts.tensor("input").dim(0)
    if constant is None:
        example = _example(block, stride, page)
        lengths, why = made_up_lengths(given, example[:batch] if batch else example)
    else:
        lengths, why = constant.values, ""
    slots, table = facts.constants.get("slot_mapping"), facts.constants.get("block_table")
    return Pages(
        block,
        stride,
        lengths,
        row_bytes(facts, "input", 4),
        why,
        page,
        slots if slots is not None and slots.shape == lengths.shape else None,
        table if table is not None and table.ndim == 2 else None,
        pages // batch if pages and batch and "block_table" not in facts.inputs else None,
    )


def _example(block: int, stride: int, page: int) -> list[int]:
    """Too short, a first window, between two windows, and a window across the end of a page where there is one."""
    across = next((n for n in range(1, 64) if (n * stride) // page != (n * stride + block - 1) // page), 3)
    return [max(1, block - 1), block, block + stride + stride // 2, block + across * stride]
