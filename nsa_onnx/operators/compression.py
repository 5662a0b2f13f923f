"""What the nodes of the two compressions have in common, for schemas and checks."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Attribute, Input, T
from .contract import Violations
from .facts import NodeFacts
from .windows import ALIGNMENT, BLOCK, MAX_HEAD_DIM, STRIDE, WindowLimits

HOST = "Read on the host on every execution provider, and checked in full before anything is computed."
WINDOW_TEXT = "A window is `compress_block_size` consecutive tokens; windows start `compress_stride` tokens apart."
SUM_TEXT = (
    "Products are accumulated in float32 in the order j = 0, 1, 2, ... and rounded once, to nearest even, so that "
    "every instruction set and thread count gives the same bits. NaN and Inf stay in their own window, head and "
    "channel."
)
WINDOW_ATTRIBUTES = (
    Attribute(BLOCK, "Tokens in a window."),
    Attribute(STRIDE, "Tokens between the starts of two neighbouring windows."),
)
WEIGHT = Input("weight", T, "`[compress_block_size, N]`: the weight of each token of a window, per head.")


def limits_text(limits: WindowLimits) -> str:
    """The limits that both have, for the documentation."""
    return (
        f"`D` is a multiple of {ALIGNMENT} and at most {MAX_HEAD_DIM}; "
        f"`{limits.min_heads} <= N <= {limits.max_heads}`; `compress_block_size` is a multiple of {ALIGNMENT} in "
        f"`[{limits.min_block}, {limits.max_block}]`; `compress_stride` is a multiple of {ALIGNMENT} in "
        f"`[{ALIGNMENT}, compress_block_size]`"
    )


_ROWS_ABOUT = {
    "compress_block_size": {"weight_block", "block_multiple", "block_range"},
    "compress_stride": {"stride_multiple", "stride_range"},
    "page_block_size": {"page_size", "input_page"},
}


@dataclass(frozen=True)
class Window:
    """Block and stride for the checks of shapes, where one may be unknown.

    An unknown one gets a value that is legal with the other, and what is said because of it is dropped.
    """

    block: int
    stride: int
    unknown: frozenset[str]

    @classmethod
    def of(cls, facts: NodeFacts, limits: WindowLimits) -> Window:
        """Of a node."""
        block, stride = facts.integer("compress_block_size"), facts.integer("compress_stride")
        largest = limits.max_block - limits.max_block % ALIGNMENT
        names = ("compress_block_size", "compress_stride", "page_block_size")
        return cls(
            largest if block is None else block,
            ALIGNMENT if stride is None else stride,
            frozenset(name for name in names if facts.integer(name) is None),
        )

    def known(self, found: Violations) -> Violations:
        """Without what is said because of an unknown attribute."""
        dropped = {row for name in self.unknown for row in _ROWS_ABOUT[name]}
        return (violation for violation in found if violation.row.id not in dropped)
