"""What ``nsa-onnx explain`` draws of an attention stage: the blocks of its sequences, and what a query token reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..graph.tensors import Integers
from .attention import COUNT, SELECT
from .facts import NodeFacts
from .pictures import MAX_DRAWN_LENGTH, Attended, NotDrawnError, constant_lengths, made_up_lengths

Forced = Callable[[int], tuple[int, ...]]
# Beyond it, a size is too absurd to draw. Tokens, a length times a size, stay within 64 bits.
_MAX_SIZE = 2**20


def sizes(facts: NodeFacts, *names: str) -> tuple[int, ...]:
    """Attributes that can be drawn.

    Raises:
        NotDrawnError: one is not known, or absurd.
    """
    values = [facts.integer(name) for name in names]
    known = tuple(value for value in values if value is not None and 1 <= value <= _MAX_SIZE)
    if len(known) < len(names):
        raise NotDrawnError("Attributes are not known or absurd, so the blocks have no size to draw.")
    return known


def lengths_of(
    facts: NodeFacts, name: str, given: Sequence[int] | None, example: Sequence[int], *, prefix_sums: bool
) -> tuple[Integers, str]:
    """The lengths of the sequences, and why they are made up where no constant tells them."""
    constant = constant_lengths(facts, prefix_sums=prefix_sums, name=name, smallest=0)
    if constant is None:
        return made_up_lengths(given, example)
    return (np.diff(constant.values, prepend=0) if prefix_sums else constant.values), ""


def attended(
    facts: NodeFacts, tokens: Integers, reads: Integers, why: str, *, chooses: bool, forced: Forced = lambda _: ()
) -> Attended:
    """The picture of sequences of so many tokens, of which a query token reads so many."""
    block, number = sizes(facts, SELECT, COUNT)
    if int(tokens.max(initial=0)) > MAX_DRAWN_LENGTH:
        raise NotDrawnError("So many tokens cannot be drawn.")
    blocks = (-(-tokens // block)).tolist()
    always = tuple(forced(there) for there in blocks)
    return Attended(block, block, tokens, None, why, number, always, reads, chooses)
