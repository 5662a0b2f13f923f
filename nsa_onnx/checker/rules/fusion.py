"""Rule NSA028: the graph computes the compression with standard operators, where one NSA node could stand."""

from __future__ import annotations

from collections.abc import Iterator

from ...analysis import Analysis
from ...operators.contract import listed
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import note, op_types
from .registry import general


@general(
    "NSA028",
    f"what {listed(op_types(lambda operator: operator.pattern is not None), 'compute')} is a node of it",
    severity=Severity.WARNING,
    hint="nsa-onnx fuse puts the node in, where it has proven that it is the same",
)
def _decomposed(model: Analysis) -> Iterator[Finding]:
    """No value is computed in standard operators that one of our nodes would compute: the mean of blocks of tokens,
    windows gathered, weighted and summed, a grouped convolution, or the inlined body of a portable file.

    That is what is left where an exporter has taken the operator apart, or a model was written without it. It is
    right, needs many times the memory and time, and no kernel of ours runs. Only what is proven to be the same is
    reported, up to the rounding of partial sums.
    """
    for one in model.candidates(allow_rounding=True):
        if one.reason:
            continue
        window = f"compress_block_size = {one.compress_block_size}, compress_stride = {one.compress_stride}"
        message = f"{one.output!r} is {one.op_type} with {window}, written in standard operators ({one.form})"
        rounding = "nsa-onnx fuse --allow-rounding puts the node in, which rounds only once"
        hint = rounding if one.inexact else ""
        yield note(message, node=one.name, place=one.place, hint=hint)
