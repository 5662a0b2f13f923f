"""The loop in our portable bodies that sums one token of every window per turn, seen as one node without a subgraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from ..graph.walk import is_standard, subgraphs

WINDOW_LOOP = "WindowLoop"
"""Not an operator: stands for a Loop that adds ``values[tokens[j]] * weights[j]`` up, in float32.

Its inputs are values, weights, tokens, and the Loop's own three: the number of turns, the condition, the first sum.
"""

_STEPS = ("Gather", "Gather", "Cast", "Gather", "Mul", "Add")


def window_loop(node: NodeProto) -> NodeProto | None:
    """The stand-in of such a loop; None for any other node."""
    bodies = subgraphs(node) if is_standard(node) and node.op_type == "Loop" else []
    if len(bodies) != 1 or len(node.input) != 3 or len(node.output) != 1:
        return None
    named = _named_inputs(bodies[0])
    if named is None:
        return None
    return NodeProto(op_type=WINDOW_LOOP, name=node.name, input=[*named, *node.input], output=node.output)


def _named_inputs(body: GraphProto) -> tuple[str, str, str] | None:
    """What the loop's body reads from outside: values, weights, tokens."""
    if len(body.input) != 3 or len(body.output) != 2 or body.initializer or len(body.node) > 2 * len(_STEPS):
        return None
    turn, go, before = (value.name for value in body.input)
    same: dict[str, str] = {}
    steps: list[NodeProto] = []
    for node in body.node:
        if not is_standard(node) or len(node.output) != 1:
            return None
        if node.op_type == "Identity":
            same[node.output[0]] = same.get(node.input[0], node.input[0])
        else:
            steps.append(node)
    if sorted(step.op_type for step in steps) != sorted(_STEPS):
        return None
    made = {step.output[0]: step for step in steps}

    def inputs(name: str, op_type: str, count: int) -> Sequence[str] | None:
        step = made.get(same.get(name, name))
        if step is None or step.op_type != op_type or len(step.input) != count or not _is_plain(step):
            return None
        return [same.get(source, source) for source in step.input]

    total = inputs(body.output[1].name, "Add", 2)
    products = None if total is None or total[0] != before else inputs(total[1], "Mul", 2)
    tokens_32 = None if products is None else inputs(products[0], "Cast", 1)
    tokens_16 = None if tokens_32 is None else inputs(tokens_32[0], "Gather", 2)
    places = None if tokens_16 is None else inputs(tokens_16[1], "Gather", 2)
    weights = None if products is None else inputs(products[1], "Gather", 2)
    goes_on = same.get(body.output[0].name, body.output[0].name) == go
    if tokens_16 is None or places is None or weights is None or not goes_on or {places[1], weights[1]} != {turn}:
        return None
    outside = tokens_16[0], weights[0], places[0]
    return None if {turn, go, before} & set(outside) or any(name in made for name in outside) else outside


def _is_plain(step: NodeProto) -> bool:
    """Whether a node of the body has the attributes that the loop's have."""
    attributes = {attribute.name: attribute for attribute in step.attribute}
    wanted: Mapping[str, int] = {"to": TensorProto.FLOAT} if step.op_type == "Cast" else {"axis": 0}
    if step.op_type == "Cast" and "to" not in attributes:
        return False
    return all(
        name in wanted and a.type == AttributeProto.INT and a.i == wanted[name] for name, a in attributes.items()
    )
