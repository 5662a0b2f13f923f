"""Rule NSA028: the graph computes the compression with standard operators, where one NSA node could stand."""

from __future__ import annotations

from collections.abc import Iterator

from ...analysis import Analysis
from ...rulebook.examples import integers, model
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import COMPRESS, note
from .registry import general


def _windows(reduction: str) -> str:
    """Windows of 16 tokens, 16 apart: gathered, weighted and reduced."""
    return model(
        ["float16[32, 4, 16] x", "float16[16, 4] w"],
        ["float16[2, 4, 16] y"],
        [
            "windows = Gather <axis = 0> (x, indices)",
            "windows_32 = Cast <to = 1> (windows)",
            "w_32 = Cast <to = 1> (w)",
            "w_column = Unsqueeze (w_32, last)",
            "products = Mul (windows_32, w_column)",
            f"sums = {reduction} <keepdims = 0> (products, first)",
            "[compress] y = Cast <to = 10> (sums)",
        ],
        [integers("indices", range(32), shape="2, 16"), "int64[1] last = {2}", "int64[1] first = {1}"],
        imports="",
    )


@general(
    "NSA028",
    f"what {COMPRESS} computes is a node of it",
    severity=Severity.WARNING,
    example=_windows("ReduceSum"),
    accepted=_windows("ReduceMax"),
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
