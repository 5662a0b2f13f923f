"""What ``nsa-onnx explain`` draws of a node: the operator makes the data of a picture, `nsa_onnx.explain` draws it.

`Operator.picture` returns one of the kinds that are defined here. How each kind looks is said in
``nsa_onnx/explain``, by its `View`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..graph.tensors import Integers, Unknown
from .facts import NodeFacts
from .windows import BLOCK, SEQ, STRIDE, triggers, window_count

# Beyond this, attributes and lengths are too absurd to draw. Sums of as many as fit a file stay within 64 bits.
MAX_DRAWN_LENGTH = 2**34
# Blocks of a sequence that are drawn one by one.
MAX_DRAWN_BLOCKS = 4096
# Wrong values that are marked.
_MAX_WRONG = 64
_GIVEN = "Lengths as given: the model leaves them to each run."
_EXAMPLE = "Example lengths: the model leaves them to each run."
_ITEM_SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True, eq=False)
class Values:
    """The values of an input, one after the other, and the indices of those that are wrong."""

    argument: str
    values: Integers
    wrong: frozenset[int] = frozenset()


class NotDrawnError(Exception):
    """A node has no picture; the message says why, for the page.

    Attributes:
        values: what the page shows instead.
    """

    def __init__(self, reason: str, values: Values | None = None) -> None:
        super().__init__(reason)
        self.values = values


@dataclass(frozen=True, eq=False)
class Picture:
    """Windows of tokens, and what becomes of them.

    Attributes:
        block, stride: of the windows, in tokens.
        lengths: of the segments or sequences, in tokens.
        row_bytes: of one token or one compressed row, all heads; None if that is not known.
        example: why the lengths are made up; empty if they are the model's.
    """

    block: int
    stride: int
    lengths: Integers
    row_bytes: int | None
    example: str

    @cached_property
    def windows(self) -> Integers:
        """Of each segment or sequence, how many windows are full."""
        return np.asarray(window_count(self.lengths, self.block, self.stride, np.maximum), np.int64)

    @cached_property
    def before(self) -> int:
        """Tokens."""
        return int(self.lengths.sum())

    @cached_property
    def after(self) -> int:
        """Rows that they are compressed into."""
        return int(self.windows.sum())

    @property
    def exact(self) -> bool:
        """Whether every run compresses these tokens into these rows: the output then has as many."""
        return False

    @property
    def ratio(self) -> str:
        """Tokens per row that they become; empty where none is left."""
        if self.exact:
            return f"{self.before / self.after:.1f} : 1" if self.after else ""
        return f"at least {self.stride:,} : 1"  # the more, the shorter the segments


@dataclass(frozen=True, eq=False)
class Segments(Picture):
    """Segments that are compressed whole.

    Attributes:
        tokens: T of the input if it is known, which an invalid model may have different from the sum of the lengths.
    """

    tokens: int

    @property
    def exact(self) -> bool:
        return not self.example

    @cached_property
    def dropped(self) -> Integers:
        """Of each segment, the tokens after its last window."""
        covered = np.where(self.windows > 0, self.block + (self.windows - 1) * self.stride, 0)
        return np.asarray(self.lengths - covered, np.int64)

    @cached_property
    def starts(self) -> Integers:
        return _starts(self.lengths)

    @cached_property
    def first_rows(self) -> Integers:
        return _starts(self.windows)


@dataclass(frozen=True, eq=False)
class Pages(Picture):
    """Sequences in pages, of which a step compresses the windows that have just become full.

    Attributes:
        page: tokens of a page.
        slots: where each sequence writes; None where the model does not fix it.
        table: pages in the cache by sequence and its own pages; None where the model does not fix it.
        owned: pages of each sequence where they lie in order, and that number is known.
    """

    page: int
    slots: Integers | None
    table: Integers | None
    owned: int | None

    @cached_property
    def writes(self) -> npt.NDArray[np.bool_]:
        """Which sequences this step compresses a window of."""
        return np.asarray(triggers(self.lengths, self.block, self.stride))

    def next_write(self, length: int) -> int:
        """The length at which a sequence next completes a window; its own if it does now."""
        return self.block if length < self.block else length + (self.block - length) % self.stride

    def physical_page(self, sequence: int, logical: int) -> int | None:
        """The page of the cache that holds a sequence's page; None if the model does not say."""
        if self.table is not None:
            inside = sequence < self.table.shape[0] and logical < self.table.shape[1]
            return int(self.table[sequence, logical]) if inside else None
        return None if self.owned is None or logical >= self.owned else sequence * self.owned + logical


@dataclass(frozen=True, eq=False)
class Attended(Picture):
    """Sequences that a query token attends to, and their blocks. ``block`` and ``stride`` are those of the blocks.

    Attributes:
        count: blocks that are chosen, or read, at most.
        forced: of each sequence, the blocks that are always chosen.
        reads: of each sequence, how many tokens the query token attends to: compressed ones where it chooses.
        chooses: whether the node chooses the blocks (another one reads them) or reads them.
    """

    count: int
    forced: tuple[tuple[int, ...], ...]
    reads: Integers
    chooses: bool

    @cached_property
    def windows(self) -> Integers:
        """Of each sequence, its blocks; the last one may be shorter."""
        return np.asarray(-(-self.lengths // self.block), np.int64)

    @cached_property
    def after(self) -> int:
        return int(self.reads.sum())

    @property
    def ratio(self) -> str:
        return f"{self.before / self.after:.1f} : 1" if self.after else ""

    def drawn_blocks(self, index: int) -> tuple[int, ...]:
        """As many blocks as are chosen: the forced ones, and for the others an example, evenly spread."""
        there, forced = int(self.windows[index]), self.forced[index]
        free = min(self.count, there) - len(forced)
        others = [block for block in range(there) if block not in forced] if there <= MAX_DRAWN_BLOCKS else []
        chosen = [others[i * len(others) // free] for i in range(free)] if others and free > 0 else []
        return tuple(sorted({*forced[: self.count], *chosen}))


def _starts(counts: Integers) -> Integers:
    return np.asarray(np.concatenate(([0], np.cumsum(counts)))[:-1], np.int64)


# --------------------------------------------------------------------------------------------------
# What operators ask to make one


def drawn_sizes(facts: NodeFacts, page: str = "") -> tuple[int, int, int]:
    """Block, stride, and the attribute that says how many tokens a page has (1 without one).

    Raises:
        NotDrawnError: they are not known, or absurd.
    """
    names = (BLOCK, STRIDE, page) if page else (BLOCK, STRIDE)
    sizes = [value for name in names if (value := facts.integer(name)) is not None]
    if len(sizes) < len(names):
        by_caller = any(isinstance(facts.attributes.get(name), Unknown) for name in names)
        why = "Attributes are set by the function's caller" if by_caller else "Attributes are not known"
        raise NotDrawnError(f"{why}, so the windows have no size to draw.")
    block, stride, tokens = (*sizes, 1)[:3]
    if not 1 <= stride <= block <= MAX_DRAWN_LENGTH or not 1 <= tokens <= MAX_DRAWN_LENGTH:
        raise NotDrawnError("Windows of this size cannot be drawn.")
    return block, stride, tokens


def constant_lengths(facts: NodeFacts, *, prefix_sums: bool, name: str = SEQ, smallest: int = 1) -> Values | None:
    """The constant that the model gives for lengths, as it is in the file; None if there is none.

    Args:
        smallest: that prefix sums may be.

    Raises:
        NotDrawnError: no segment or sequence can have such lengths.
    """
    constant = facts.constants.get(name)
    if constant is None:
        return None
    flat = constant.reshape(-1)
    wrong = flat < 0
    if prefix_sums:
        wrong = (flat < smallest) | np.concatenate(([False], flat[1:] < flat[:-1]))
    values = Values(name, flat, frozenset(np.flatnonzero(wrong)[:_MAX_WRONG].tolist()))
    if constant.ndim != 1 or not constant.size or values.wrong or int(constant.max()) > MAX_DRAWN_LENGTH:
        raise NotDrawnError("The model's lengths are not valid, so there is nothing to draw.", values)
    return values


def made_up_lengths(given: Sequence[int] | None, example: Sequence[int]) -> tuple[Integers, str]:
    """The lengths that the user gives, or an example; and why they are made up."""
    return np.array(given or example, np.int64), _GIVEN if given else _EXAMPLE


def row_bytes(facts: NodeFacts, name: str, rank: int) -> int | None:
    """Bytes of one token of an input ``[..., N, D]`` of this rank; None if they are not known."""
    tensor = facts.tensor(name)
    size, shape = _ITEM_SIZES.get(tensor.dtype or ""), tensor.shape
    if size is None or shape is None or len(shape) != rank or shape[-2] is None or shape[-1] is None:
        return None
    return shape[-2] * shape[-1] * size
