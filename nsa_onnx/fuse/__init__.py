"""Fusion: find the compression where it is written in standard operators, and put NsaCompress in its place.

A value is replaced only if it is proven, element by element, to be the same weighted sum of the same tokens: no
name, order of nodes or numbers of a run count, so a form that nobody has thought of is found too, and one that looks
alike but is not stays. What looks alike and stays is reported with the reason. See docs/fuse.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TypeProto

from .. import spec
from ..recognise.graph import graphs
from ..recognise.pattern import Found, Options, search
from ..recognise.terms import Budget, ExhaustedError
from .rewrite import opset, replace_all

__all__ = ["Candidate", "FuseResult", "candidates", "fuse"]

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
    """

    name: str
    output: str
    place: str
    form: str
    reason: str = ""
    compress_block_size: int = 0
    compress_stride: int = 0
    actual_seq_len: tuple[int, ...] = ()


@dataclass(frozen=True)
class FuseResult:
    """What `fuse` has made.

    Attributes:
        model: with NsaCompress where the compression was; a copy, even if nothing was found.
        fused: what has been replaced.
        left: what looks like the compression and has not been, with the reason.
        complete: whether all of the model was looked at; false for one that costs more than a model may.
    """

    model: ModelProto
    fused: tuple[Candidate, ...]
    left: tuple[Candidate, ...]
    complete: bool = True


def candidates(
    model: ModelProto,
    types: Mapping[str, TypeProto] | None = None,
    *,
    allow_rounding: bool = False,
    folder: Path | None = None,
) -> tuple[Candidate, ...]:
    """What looks like the compression, without changing anything. Never raises; its cost is bounded.

    Args:
        model: trusted in nothing.
        types: types of the main graph's values, if they have been inferred; else they are here.
        allow_rounding, folder: as in `fuse`.
    """
    try:
        found, _ = _search(model, types, Options(allow_rounding, folder))
        return tuple(_candidate(one) for one in found)
    except UnicodeError:  # names that are no text: others say so
        return ()


def fuse(
    model: str | os.PathLike[str] | ModelProto, *, allow_rounding: bool = False, folder: Path | None = None
) -> FuseResult:
    """Replace the compressions that can be proven. The model that is given stays as it is.

    Args:
        model: path of an ONNX file, or the model itself. Trusted in nothing; its external data need not be loaded.
        allow_rounding: also replace what rounds products or partial sums to 16 bits, or accumulates in float64. The
            result then differs in the last places: NsaCompress accumulates in float32 and rounds once.
        folder: of the model's external data, where exporters put indices and weights; the file's own for a path.
            Without it, none is read.

    Raises:
        UnreadableModelError: (a ValueError) the file cannot be read as a model.
        ValueError: the model imports another version of our domain.
    """
    if not isinstance(model, ModelProto):
        from ..checker.model import load  # here, because the checker's rules search with this module

        folder = Path(model).parent if folder is None else folder
        model = load(Path(model))
    wrong = [entry.version for entry in model.opset_import if entry.domain == spec.DOMAIN]
    if any(version != spec.OPSET_VERSION for version in wrong):
        raise ValueError(f"the model imports {spec.DOMAIN} version {wrong[0]}, fuse writes {spec.OPSET_VERSION}")
    copy = ModelProto()
    copy.CopyFrom(model)
    options = Options(allow_rounding, folder)
    found, complete = _search(copy, None, options)
    proven = [one for one in found if one.compression is not None]
    fused = tuple(_candidate(one) for one in proven)
    left = tuple(_candidate(one) for one in found if one.compression is None)
    replace_all(copy, proven, options)
    return FuseResult(copy, fused, left, complete)


def _search(model: ModelProto, types: Mapping[str, TypeProto] | None, options: Options) -> tuple[list[Found], bool]:
    """All that is found, and whether all was looked at."""
    found: list[Found] = []
    if opset(model) < MIN_OPSET:
        return found, True
    budget = Budget()
    try:
        for graph in graphs(model, _types(model, options.folder) if types is None else types, options.folder):
            for one in search(graph, budget, options):
                found.append(one)
    except ExhaustedError:
        return found, False
    return found, True


def _types(model: ModelProto, folder: Path | None) -> Mapping[str, TypeProto]:
    # Imported late: the checker's rules use `candidates`.
    from ..checker.model import read

    return read(model, folder).inferred


def _candidate(found: Found) -> Candidate:
    it = found.compression
    if it is None:
        return Candidate(found.name, found.value, found.graph.place, found.form, found.reason)
    lengths = it.lengths or ()
    return Candidate(found.name, found.value, found.graph.place, found.form, "", it.block, it.stride, lengths)
