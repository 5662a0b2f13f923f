"""Finds all compressions of a model that are written in standard operators: proven, or left with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..graph.scopes import Scope
from ..operators.contract import plural
from ..operators.windows import BLOCK, STRIDE
from .graph import graphs
from .pattern import OWN_BODY, Found
from .pattern import search as search_graph
from .positions import Budget, ExhaustedError
from .wanted import WINDOWS

# Older than this, Squeeze and ReduceSum mean other things than the proof reads into them.
MIN_OPSET = 9


@dataclass(frozen=True)
class Candidate:
    """A place where windows of tokens are weighted and summed in standard operators.

    Attributes:
        name: of the node that makes the result, or of the result if the node has none.
        output: name of the result.
        place: the graph it is in: ``graph``, or the way to a subgraph.
        form: how it is written.
        reason: why it cannot be the operator, or is not proven to be; empty if it can.
        compress_block_size: of the window; 0 if it is not known.
        compress_stride: of the window; 0 if it is not known.
        actual_seq_len: prefix sums of the segments; empty where they are not constants.
        inexact: how its arithmetic differs from the operator's; empty if it does not.
        op_type: the operator that it is.
    """

    name: str
    output: str
    place: str
    form: str
    reason: str = ""
    compress_block_size: int = 0
    compress_stride: int = 0
    actual_seq_len: tuple[int, ...] = ()
    inexact: str = ""
    op_type: str = WINDOWS.op_type

    @property
    def segments(self) -> str:
        """How many segments it compresses, in words."""
        if self.actual_seq_len:
            return plural(len(self.actual_seq_len), "segment")
        return "lengths as before" if self.form == OWN_BODY else "one segment of any length"


@dataclass(frozen=True)
class Search:
    """What was found, and whether all of the model was looked at."""

    found: tuple[Found, ...] = ()
    complete: bool = True


def search(scopes: Sequence[Scope], folder: Path | None) -> Search:
    """All compressions of a model. The cost is bounded.

    Args:
        scopes: all of the model, the main graph first, with the types that were inferred. Trusted in nothing.
        folder: of the external data; without it, none is read.

    Raises:
        UnicodeError: names are no text.
    """
    found: list[Found] = []
    if scopes[0].imports.get("", 0) < MIN_OPSET:
        return Search()
    budget = Budget()
    try:
        for graph in graphs(scopes, folder):
            for one in search_graph(graph, budget, folder):
                found.append(one)
    except ExhaustedError:
        return Search(tuple(found), complete=False)
    return Search(tuple(found))


def candidate(found: Found, allow_rounding: bool) -> Candidate:
    """What people are told of a place."""
    it, own = found.compression, found.own_body
    reason = found.reason
    if own is not None:
        block, stride = own.attributes.get(BLOCK, 0), own.attributes.get(STRIDE, 0)
        return Candidate(
            found.name, found.value, found.graph.place, found.form, "", block, stride, op_type=own.operator.op_type
        )
    if it is not None and it.inexact and not allow_rounding:
        reason = f"{it.inexact}: --allow-rounding accepts that"
    if it is None or reason:
        return Candidate(found.name, found.value, found.graph.place, found.form, reason)
    lengths = it.lengths or ()
    return Candidate(
        found.name, found.value, found.graph.place, found.form, "", it.block, it.stride, lengths, it.inexact
    )
