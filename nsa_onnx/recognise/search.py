"""All compressions of a model that are written in standard operators, proven or left with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TypeProto

from .. import spec
from ..graph.walk import standard_opset
from .graph import graphs
from .pattern import Found, search
from .positions import Budget, ExhaustedError

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
        reason: why it cannot be NsaCompress, or is not proven to be; empty if it can.
        compress_block_size: of the window; 0 if it is not known.
        compress_stride: of the window; 0 if it is not known.
        actual_seq_len: prefix sums of the segments; empty where they are not constants.
        inexact: how its arithmetic differs from NsaCompress; empty if it does not.
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
    op_type: str = spec.COMPRESS_OP


def candidates(
    model: ModelProto, types: Mapping[str, TypeProto], *, allow_rounding: bool = False, folder: Path | None = None
) -> tuple[Candidate, ...]:
    """What looks like the compression, without changing anything. Never raises; its cost is bounded.

    Args:
        model: trusted in nothing.
        types: types of the main graph's values, as they were inferred.
        allow_rounding: also take for the compression what rounds otherwise than the operator.
        folder: of the external data; without it, none is read.
    """
    try:
        found, _ = search_model(model, types, folder)
        return tuple(candidate(one, allow_rounding) for one in found)
    except UnicodeError:  # names that are no text: others say so
        return ()


def search_model(model: ModelProto, types: Mapping[str, TypeProto], folder: Path | None) -> tuple[list[Found], bool]:
    """All that is found, and whether all of the model was looked at."""
    found: list[Found] = []
    if (standard_opset(model.opset_import) or 0) < MIN_OPSET:
        return found, True
    budget = Budget()
    try:
        for graph in graphs(model, types, folder):
            for one in search(graph, budget, folder):
                found.append(one)
    except ExhaustedError:
        return found, False
    return found, True


def candidate(found: Found, allow_rounding: bool) -> Candidate:
    """What people are told of a place."""
    it, own = found.compression, found.own_body
    reason = found.reason
    if own is not None:
        block, stride = own.attributes["compress_block_size"], own.attributes["compress_stride"]
        return Candidate(found.name, found.value, found.graph.place, found.form, "", block, stride, op_type=own.op_type)
    if it is not None and it.inexact and not allow_rounding:
        reason = f"{it.inexact}: --allow-rounding accepts that"
    if it is None or reason:
        return Candidate(found.name, found.value, found.graph.place, found.form, reason)
    lengths = it.lengths or ()
    return Candidate(
        found.name, found.value, found.graph.place, found.form, "", it.block, it.stride, lengths, it.inexact
    )
