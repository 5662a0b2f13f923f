"""Target ``portable``: any runtime that knows standard operators and model-local functions, without our library.

There, an NSA node is computed by its portable body in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..analysis import Analysis
from ..operators import OPERATORS
from ..operators.contract import plural
from ..operators.copies import is_body, is_operator
from ..operators.expand import MIN_IR
from ..operators.model_text import model
from ..operators.nsa_compress.rule_examples import compress
from ..rulebook.finding import Finding
from ..rulebook.rule import connected, finding, note, rule
from .base import Target


@rule(
    "NSA044",
    "portable: every NSA node has a body of ours",
    example=compress(),
    accepted=model(["float16[2] x"], ["float16[2] y"], ["y = Neg (x)"], imports=""),
    hint="nsa-onnx expand writes the bodies, and nodes that compute an input that is left out",
)
def _bodies(seen: Analysis) -> Iterator[Finding]:
    """The model runs without our library: the portable body of each operator that it uses is in the file and is ours,
    and every input of the nodes is connected, since a body cannot ask for that.

    `onnx.version_converter` drops functions, for one. The file then looks the same to a runtime with our library.
    """
    nodes = [node for node in seen.nodes if node.facts is not None]
    if nodes and seen.proto.ir_version < MIN_IR:
        yield note(f"ir_version must be >= {MIN_IR}, which brought functions, got {seen.proto.ir_version}")
    bodies = {function.name: function for function in seen.proto.functions if is_operator(function)}
    for op_type, count in Counter(node.op_type for node in nodes).items():
        first = next(node for node in nodes if node.op_type == op_type)
        if op_type not in bodies:
            yield finding(first, f"{op_type} has no portable body in the model ({plural(count, 'node')})")
        elif not is_body(op_type, bodies[op_type]):
            message = f"the portable body of {op_type} is not ours, and nothing here knows what it computes"
            yield finding(first, f"{message} ({plural(count, 'node')})")
    for node in nodes:
        for one in OPERATORS[node.op_type].inputs:
            if one.optional and not connected(node, one.name):
                yield finding(node, f"{one.name} must be connected for a portable body", one.name)


TARGET = Target("portable", "any runtime, without our library: the bodies in the file run.", rules=(_bodies,))
