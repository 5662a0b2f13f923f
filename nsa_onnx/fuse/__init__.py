"""``nsa-onnx fuse``: finds the compression in standard operators and puts one of our nodes in its place.

A value is replaced only if it is proven, element by element, to be the same weighted sum of the same tokens. Names,
the order of nodes and the numbers of a run do not count. So a form that nobody foresaw is found too, and a form that
only looks similar stays, and is reported with the reason. The guide for users is docs/fuse.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from ..analysis import Source, analyse
from ..graph.reading import UnreadableModelError
from ..operators.contract import DOMAIN, OPSET_VERSION
from ..recognise.search import Candidate, candidate
from .rewrite import Replacement, replace_all

__all__ = ["Candidate", "FuseResult", "candidates", "fuse"]


@dataclass(frozen=True)
class FuseResult:
    """What `fuse` has made.

    Attributes:
        model: with a node of ours where the compression was; a copy, even if nothing was found.
        fused: what has been replaced.
        left: what looks like the compression and has not been, with the reason.
        complete: whether all of the model was looked at; false for one that costs more than a model may.
        replacements: for each that is fused, the proof and the graphs, for `compare`.
    """

    model: ModelProto
    fused: tuple[Candidate, ...]
    left: tuple[Candidate, ...]
    complete: bool = True
    replacements: tuple[Replacement, ...] = ()


def candidates(model: Source, *, allow_rounding: bool = False, folder: Path | None = None) -> tuple[Candidate, ...]:
    """What looks like the compression, without changing anything. Its cost is bounded.

    Args:
        model: as for `fuse`; nothing is found in a model whose names are no text.
        allow_rounding, folder: as in `fuse`.
    """
    try:
        return analyse(model, folder=folder).candidates(allow_rounding=allow_rounding)
    except UnreadableModelError:
        if isinstance(model, ModelProto):  # names that are no text: the checker says so
            return ()
        raise


def fuse(model: Source, *, allow_rounding: bool = False, folder: Path | None = None) -> FuseResult:
    """Replace the compressions that can be proven. The model that is given stays as it is.

    Args:
        model: path of an ONNX file, the model itself, or its analysis. Trusted in nothing; its external data need not
            be loaded.
        allow_rounding: also replace what rounds products or partial sums to 16 bits, or accumulates in float64. The
            result then differs in the last places: our nodes accumulate in float32 and round once.
        folder: of the model's external data, where exporters put indices and weights; the file's own for a path.
            Without it, none is read.

    Raises:
        UnreadableModelError: (a ValueError) the file cannot be read as a model.
        ValueError: the model imports another version of our domain.
    """
    seen = analyse(model, folder=folder)
    wrong = [entry.version for entry in seen.proto.opset_import if entry.domain == DOMAIN]
    if any(version != OPSET_VERSION for version in wrong):
        raise ValueError(f"the model imports {DOMAIN} version {wrong[0]}, fuse writes {OPSET_VERSION}")
    copy = ModelProto()
    copy.CopyFrom(seen.proto)
    found = seen.search()
    told = [candidate(one, allow_rounding) for one in found.found]
    proven = [one for one, it in zip(found.found, told, strict=True) if not it.reason]
    replacements = tuple(replace_all(seen.proto, copy, proven, seen.folder))
    fused = tuple(it for it in told if not it.reason)
    left = tuple(it for it in told if it.reason)
    return FuseResult(copy, fused, left, found.complete, replacements)
