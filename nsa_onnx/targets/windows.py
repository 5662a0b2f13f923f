"""The limits that targets have on the two compressions. Needs the standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from ..operators.windows import BLOCK, STRIDE
from .base import Limit, Number, at_most, multiple, one_of, types


@dataclass(frozen=True)
class Sizes:
    """Bounds of one operator, inclusive.

    Attributes:
        strides, pages: the only ones that are taken; empty if there is no such list.
        block_row: the row that a longer window breaks.
    """

    dtypes: tuple[str, ...]
    head_dim_multiple: int
    max_head_dim: int
    max_heads: int
    window_multiple: int
    max_block: int
    strides: tuple[int, ...] = ()
    pages: tuple[int, ...] = ()
    block_row: str = "block_range"


def size_limits(sizes: Sizes, rank: int, whose: str) -> tuple[Limit, ...]:
    """The limits that follow, for an operator with an input ``[..., N, D]`` of this rank."""
    heads, dim = Number("input", rank - 2, "N"), Number("input", rank - 1, "D")
    block, stride = Number(BLOCK), Number(STRIDE)
    limits = [
        types("input_dtype", "input", sizes.dtypes, whose),
        multiple("head_dim_multiple", dim, sizes.head_dim_multiple, whose),
        at_most("head_dim_max", dim, sizes.max_head_dim, whose),
        at_most("heads_max", heads, sizes.max_heads, whose),
        multiple("block_multiple", block, sizes.window_multiple, whose),
        at_most(sizes.block_row, block, sizes.max_block, whose),
        multiple("stride_multiple", stride, sizes.window_multiple, whose),
    ]
    if sizes.strides:
        limits.append(one_of("stride_range", stride, sizes.strides, whose))
    if sizes.pages:
        limits.append(one_of("page_size", Number("page_block_size"), sizes.pages, whose))
    return tuple(limits)
