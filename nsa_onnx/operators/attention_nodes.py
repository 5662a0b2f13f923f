"""What the nodes of the attention stages have in common: attributes, texts, checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .attention import CAUSAL, COUNT, HEADS, KV_HEADS, LIMITS, PAGE, SCALE, SELECT, Stage
from .attention_checks import node_violations
from .base import Attribute, Attributes, Input, Operator, Output, T
from .contract import Violations
from .facts import NodeFacts
from .windows import ALIGNMENT, BLOCK, STRIDE

_ATTRIBUTES = {
    SCALE: Attribute(SCALE, "What the products of query and key are multiplied by.", is_float=True),
    HEADS: Attribute(HEADS, "Query heads, `N1`."),
    KV_HEADS: Attribute(KV_HEADS, "Key and value heads, `N2`."),
    BLOCK: Attribute(BLOCK, "Tokens in a window, which became one compressed token."),
    STRIDE: Attribute(STRIDE, "Tokens between the starts of two neighbouring windows."),
    SELECT: Attribute(SELECT, "Tokens in a block, which is selected as a whole."),
    COUNT: Attribute(COUNT, "Blocks that are selected for each row, `k`."),
    PAGE: Attribute(PAGE, "Tokens in a page."),
    CAUSAL: Attribute(CAUSAL, "1 if a token does not see later ones, else 0."),
}

NUMBERS_TEXT = (
    "Products, the softmax and sums are float32, in an order that depends on the shapes and the instruction set alone; "
    "each result is rounded once, to nearest even. NaN stays in its own row."
)
MASKED_TEXT = (
    "A masked product becomes the lowest float32, so that a row that sees nothing gets the mean of all values."
)


def attributes(stage: Stage) -> tuple[Attribute, ...]:
    """The attributes of a stage's node."""
    return tuple(_ATTRIBUTES[name] for name in (SCALE, *stage.attributes))


def limits_text(stage: Stage) -> str:
    """The limits of a stage, for the documentation."""
    parts = [
        f"`N1` is a multiple of `N2`, `N1 / N2 <= {LIMITS.max_group}`",
        f"`D` and `Dv` are multiples of {ALIGNMENT}, `Dv <= D <= {LIMITS.max_head_dim}`",
        f"`{SELECT}` is a multiple of {ALIGNMENT} in `[{ALIGNMENT}, {LIMITS.max_select_block}]`",
        f"`{COUNT}` is in `[1, {LIMITS.max_select_count}]`",
    ]
    if BLOCK in stage.attributes:
        parts += [
            f"`{BLOCK}` and `{STRIDE}` are multiples of {ALIGNMENT}, `{STRIDE} <= {BLOCK} <= {SELECT}`",
            f"`{SELECT}` is a multiple of `{STRIDE}`",
        ]
    if PAGE in stage.attributes:
        parts.append(f"`{PAGE}` is a multiple of {ALIGNMENT} in `[{ALIGNMENT}, {LIMITS.max_page}]`")
    return "; ".join(parts)


def attention_out(rows: str, value_axis: int) -> Output:
    """The first output of every stage.

    Args:
        rows: what query's first dim is called.
        value_axis: where Dv is in value.
    """
    return Output(
        "attention_out",
        T,
        f"`[{rows}, N1, Dv]`: for each query token and head, its mean of values.",
        dims=((("query", 0),), (("query", 1),), (("value", value_axis),)),
    )


def query(rows: str, text: str) -> Input:
    return Input("query", T, f"`[{rows}, N1, D]`: {text}")


class AttentionOperator(Operator):
    """An attention stage. Besides what `Operator` asks for, a subclass sets ``stage`` and ``function``."""

    stage: Stage
    function: Callable[..., Any]
    """The eager call, as a static method."""

    def contract_violations(self, facts: NodeFacts) -> Violations:
        right = True
        for violation in node_violations(self.stage, self.contract.rows, facts):
            right = False
            yield violation
        if right:
            yield from self.value_violations(facts)

    def value_violations(self, facts: NodeFacts) -> Violations:
        """The rows of the stage's own on masks, blocks and indices, for a node that is right but for them."""
        return iter(())

    def call(self, inputs: Sequence[Any], attributes: Attributes) -> tuple[Any, ...]:
        given = dict(zip(self.input_names, inputs, strict=True))
        lengths = {name: given.pop(name).tolist() for name in self.stage.all_lengths}
        results = self.function(**given, **lengths, **attributes)
        return results if isinstance(results, tuple) else (results,)

    def known_dims(self, facts: NodeFacts) -> Mapping[tuple[int, int], int]:
        """Those of a second output, too, whether there is one or not."""
        known = {(0, 1): facts.integer(HEADS), (1, 1): facts.integer(KV_HEADS), (1, 2): facts.integer(COUNT)}
        return {place: size for place, size in known.items() if size is not None}
