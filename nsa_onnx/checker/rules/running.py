"""Rules NSA100 and NSA101, which an option turns on: ``--run`` and ``--min-nodes``.

Their ids and texts are here, so that they are listed with the others. `checker.run` does the work of NSA100.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnx import FunctionProto

from ...analysis import Analysis
from ...operators.contract import plural
from ...rulebook.finding import Finding
from ...rulebook.rule import note
from .registry import REGISTERED, general

COMPUTES, ENOUGH = "NSA100", "NSA101"

OPTIONS = {COMPUTES: "--run", ENOUGH: "--min-nodes"}
"""What turns a rule on."""


# They have no example: what triggers the first is a fault of the machine, the second a wish of the caller.
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


@general(
    ENOUGH,
    "the model has its NSA nodes",
    example="",
    accepted="",
    hint="a tool may have inlined the portable bodies (nsa-onnx fuse takes that back) or renamed them (nsa-onnx expand "
    "does), or the export dropped nodes that no output depends on (nsa_onnx.exporters.export keeps them)",
)
def _enough(_: Analysis) -> Iterator[Finding]:
    """With --min-nodes N only: the model has at least N nodes of our operators, those in subgraphs and in functions
    that the graph calls included. Without it, a model that lost them all is clean.
    """
    return iter(())


def too_few(model: Analysis, least: int) -> Iterator[Finding]:
    """The finding of NSA101, if there is one."""
    called = model.outline.called()
    count = 0
    for node in model.nodes:
        function = next((scope.graph for scope in node.scope.chain() if isinstance(scope.graph, FunctionProto)), None)
        reached = function is None or (function.domain, function.name) in called
        count += node.facts is not None and reached
    if count < least:
        found = REGISTERED[ENOUGH]
        message = f"the model has {plural(count, 'NSA node')}, at least {least} are expected"
        yield replace(note(message), rule=found.id, severity=found.severity, hint=found.hint)
