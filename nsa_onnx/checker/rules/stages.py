"""NSA046 to NSA048: what the stages of a layer hand on, and what a token sees."""

from __future__ import annotations

from collections.abc import Iterator

from ...analysis import Analysis
from ...operators.base import Output
from ...operators.facts import NodeFacts
from ...rulebook.finding import Finding, Severity
from ...rulebook.rule import finding, made_by, ours, sound
from .registry import general

# Operators that change the form of a value, not what it holds.
_FORM = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


@general(
    "NSA046",
    "stages that hand values on are of one size",
    documentation="""An attention stage reads what was made with its own sizes, as far as the model shows it.

    Compressed tokens are made with the block and the stride that importance is counted with, and blocks are selected
    with the size and the count of the stage that reads them. Nodes that only change a value's form are looked through.
    """,
    hint="give both nodes the same attributes: the index of a block means other tokens otherwise",
)
def _disagreeing(model: Analysis) -> Iterator[Finding]:
    made = dict(_made(model))
    for node, operator, facts in ours(sound(model.nodes)) if made else ():
        for one, name in zip(operator.inputs, node.proto.input, strict=False):
            found = made_by(node.scope, name, _FORM) if one.agrees else None
            if found is None or (id(found[0]), found[1]) not in made:
                continue
            maker, output = made[id(found[0]), found[1]]
            for attribute in one.agrees:
                own, other = facts.integer(attribute), maker.integer(attribute)
                if attribute in output.agrees and None not in (own, other) and own != other:
                    message = f"{one.name} was made with {attribute} = {other} by {maker.op_type}, got {own}"
                    yield finding(node, message, attribute)


def _made(model: Analysis) -> Iterator[tuple[tuple[int, str], tuple[NodeFacts, Output]]]:
    """The nodes that make something that others must agree in, by scope and name of the value."""
    for node, operator, facts in ours(model.nodes):
        for output, name in zip(operator.outputs, node.proto.output, strict=False):
            if output.agrees:
                yield (id(node.scope), name), (facts, output)


@general(
    "NSA047",
    "no token sees later ones",
    severity=Severity.WARNING,
    documentation="""In a prefill, a token attends to tokens that come after it only where the model says so on purpose.

    torch_npu's functions are causal only with a mask: without one, every token of a prompt sees the whole prompt, and
    a decoder that was trained to predict the next token then reads it.
    """,
    hint="pass atten_mask in torch (in a selected stage its presence alone sets causal = 1); leave it as it is only in "
    "models that look both ways",
)
def _future(model: Analysis) -> Iterator[Finding]:
    for node, operator, facts in ours(sound(model.nodes)):
        if (told := operator.looks_ahead(facts)) is not None:
            argument, reason = told
            yield finding(node, reason, argument)


@general(
    "NSA048",
    "every row of a mask sees something",
    severity=Severity.WARNING,
    documentation="""No row of a constant mask hides everything.

    A token that sees nothing gets the average of all values, later ones included: that is what the vendor's kernel
    computes, and the contract. Tokens before the end of the first window have nothing to see yet and are not reported:
    a model multiplies their result by 0, or its gate does.
    """,
    hint="true hides a token: a mask that was made the other way round needs a Not",
)
def _blind(model: Analysis) -> Iterator[Finding]:
    for node, operator, facts in ours(sound(model.nodes)):
        if (told := operator.blind_rows(facts)) is not None:
            name, rows = told
            more = f" and {len(rows) - 1} more rows" if len(rows) > 1 else ""
            yield finding(node, f"{name}: row {rows[0]}{more} sees no token, so the result is an average of all", name)
