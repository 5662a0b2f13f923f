"""NSA100: what only running a node shows. `nsa_onnx.check.run` reports it; id and words are here, with the others'."""

from __future__ import annotations

from collections.abc import Iterator

from ...analysis import Analysis
from ...rulebook.finding import Finding
from .registry import general

COMPUTES = "NSA100"


# It has no example: what triggers it is a fault of the machine, not of the model alone.
@general(
    COMPUTES,
    "the node computes what the contract says",
    example="",
    accepted="",
    hint="nsa-onnx doctor tells whether the installation is sound",
)
def _computes(_: Analysis) -> Iterator[Finding]:
    """With --run only: in onnxruntime, the node's result lies where float32 sums of its windows can lie.

    The node is run alone, on generated input that is valid for it, on the CPU. The reference is summed in float64.
    """
    return iter(())
