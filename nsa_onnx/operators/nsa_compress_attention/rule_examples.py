"""NsaCompressAttention in models: what rules of the checker are shown with."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import DOMAIN
from ..model_text import RuleExample, integers, model
from .contract import OP_TYPE

INPUTS = "q, k, v, ends, tokens, blocks"


def attention_node(
    inputs: str = INPUTS,
    outputs: str = "y, topk",
    heads: int = 4,
    block: int = 32,
    stride: int = 16,
    select: int = 64,
    count: int = 2,
    name: str = "nsa",
) -> str:
    """One NsaCompressAttention node."""
    return (
        f"[{name}] {outputs} = {DOMAIN}.{OP_TYPE}\n"
        f"      <scale_value = 0.25, head_num = {heads}, compress_block_size = {block}, compress_stride = {stride},\n"
        f"       select_block_size = {select}, select_block_count = {count}>\n"
        f"      ({inputs})"
    )


def attention(
    q: str = "T1, 4, 32",
    k: str = "Tc, 2, 32",
    v: str = "Tc, 2, 16",
    y: str = "T1, 4, 16",
    topk: str = "T1, 2, 2",
    *,
    ends: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    masks: Sequence[str] = (),
    dtype: str = "float16",
    heads: int = 4,
    block: int = 32,
    stride: int = 16,
    select: int = 64,
    count: int = 2,
) -> str:
    """A model with one NsaCompressAttention.

    Args:
        q, k, v, y, topk: the shapes of the arrays.
        ends, tokens, blocks: constant prefix sums; inputs of the graph if None.
        masks: the shapes of atten_mask and topk_mask.
    """
    given = [f"{dtype}[{q}] q", f"{dtype}[{k}] k", f"{dtype}[{v}] v"]
    constants: list[str] = []
    for name, values in (("ends", ends), ("tokens", tokens), ("blocks", blocks)):
        if values is None:
            given.append(f"int64[B] {name}")
        else:
            constants.append(integers(name, values))
    names = ("hidden", "always")[: len(masks)]
    given += [f"bool[{shape}] {name}" for shape, name in zip(masks, names, strict=True)]
    inputs = ", ".join((INPUTS, *names))
    node = attention_node(inputs, heads=heads, block=block, stride=stride, select=select, count=count)
    return model(given, [f"{dtype}[{y}] y", f"int32[{topk}] topk"], [node], constants)


def _lengths(*blocks: int, masks: Sequence[str] = ()) -> str:
    return attention(
        q="100, 4, 32",
        k="12, 2, 32",
        v="12, 2, 16",
        y="100, 4, 16",
        topk="100, 2, 2",
        ends=(40, 100),
        tokens=(5, 12),
        blocks=blocks,
        masks=masks,
    )


def _mask(last: int) -> str:
    """Two query tokens behind the first window, and a constant mask for them: its last element is ``last``."""
    hidden = [0] * 64 + [1, last]
    made = attention(q="33, 4, 32", y="33, 4, 16", topk="33, 2, 2", k="2, 2, 32", v="2, 2, 16", masks=["33, 2"])
    constant = integers("hidden", hidden, "bool", "33, 2")
    return made.replace(", bool[33, 2] hidden", "").replace("{\n", f"<{constant}>\n{{\n", 1)


_GOOD = attention()
RULE_EXAMPLES = {
    "NSA004": RuleExample(_GOOD.replace(INPUTS, "q, k, v, ends, tokens"), attention(masks=["M, L"])),
    "NSA005": RuleExample(_GOOD.replace("scale_value = 0.25, ", ""), _GOOD),
    "NSA006": RuleExample(attention(dtype="float"), attention(dtype="bfloat16")),
    "NSA007": RuleExample(attention(q="1, T1, 4, 32"), _GOOD),
    "NSA009": RuleExample(attention(v="Tc, 2, 48", y="T1, 4, 48"), attention(v="Tc, 2, 32", y="T1, 4, 32")),
    "NSA010": RuleExample(attention(k="Tc, 3, 32", v="Tc, 3, 16", topk="T1, 3, 2"), _GOOD),
    "NSA011": RuleExample(attention(stride=48, block=48), attention(stride=32, block=48)),
    "NSA014": RuleExample(_lengths(2, 4, masks=["59, 7"]), _lengths(2, 4, masks=["60, 7"])),
    "NSA015": RuleExample(_lengths(2, 5), _lengths(2, 4)),
    "NSA048": RuleExample(_mask(1), _mask(0)),
}
"""By the rule that they are shown with."""
