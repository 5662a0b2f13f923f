"""What ``nsa-onnx explain`` draws of an NsaCompress: the segments and their windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..facts import NodeFacts
from ..pictures import (
    MAX_DRAWN_LENGTH,
    NotDrawnError,
    Segments,
    constant_lengths,
    drawn_sizes,
    made_up_lengths,
    row_bytes,
)


def make(facts: NodeFacts, given: Sequence[int] | None) -> Segments:
    """The picture of a node, with the given lengths where the model does not fix them."""
    block, stride, _ = drawn_sizes(facts)
    constant = constant_lengths(facts, prefix_sums=True)
    tokens = facts.tensor("input").dim(0) if facts.tensor("input").rank() == 3 else None
    if tokens is not None and tokens > MAX_DRAWN_LENGTH:
        raise NotDrawnError("So many tokens cannot be drawn.", constant)
    if constant is None:
        lengths, example = made_up_lengths(given, _example(block, stride, tokens))
    else:
        lengths, example = np.diff(constant.values, prepend=0), ""
    if tokens is None or example:
        tokens = int(lengths.sum())
    return Segments(block, stride, lengths, row_bytes(facts, "input", 3), example, tokens)


def _example(block: int, stride: int, tokens: int | None) -> list[int]:
    """A batch that shows all there is: no tail, a tail, no window at all. As long as input if that is known."""
    wanted = [block + 3 * stride, block + stride + stride // 2, max(1, block // 2), block + 5 * stride + stride // 4]
    if not tokens:
        return wanted
    if tokens < sum(wanted):
        return [tokens]
    return [*wanted[:-1], tokens - sum(wanted[:-1])]
