"""NsaCompressAttentionInfer in models: what rules of the checker are shown with."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import DOMAIN
from ..model_text import RuleExample, integers, model
from .contract import OP_TYPE

INPUTS = "q, k, v, lengths, table"


def attention_step_node(
    inputs: str = INPUTS,
    outputs: str = "y, topk",
    heads: int = 4,
    select: int = 64,
    page: int = 64,
    name: str = "nsa",
) -> str:
    """One NsaCompressAttentionInfer node."""
    return (
        f"[{name}] {outputs} = {DOMAIN}.{OP_TYPE}\n"
        f"      <scale_value = 0.25, head_num = {heads}, key_value_head_num = 2, compress_block_size = 32,\n"
        f"       compress_stride = 16, select_block_size = {select}, select_block_count = 2,\n"
        f"       page_block_size = {page}>\n"
        f"      ({inputs})"
    )


def attention_step(
    q: str = "2, 4, 32",
    k: str = "6, 64, 2, 32",
    v: str = "6, 64, 2, 16",
    table: str = "2, 3",
    y: str = "2, 4, 16",
    *,
    lengths: Sequence[int] | None = None,
    pages: Sequence[int] | None = None,
    dtype: str = "float16",
    heads: int = 4,
    select: int = 64,
    page: int = 64,
) -> str:
    """A model with one NsaCompressAttentionInfer.

    Args:
        q, k, v, table, y: the shapes of the arrays.
        lengths, pages: constant lengths and table; inputs of the graph if None.
    """
    given = [f"{dtype}[{q}] q", f"{dtype}[{k}] k", f"{dtype}[{v}] v"]
    constants: list[str] = []
    for name, kind, shape, values in (("lengths", "int64", "2", lengths), ("table", "int32", table, pages)):
        if values is None:
            given.append(f"{kind}[{shape}] {name}")
        else:
            constants.append(integers(name, values, kind, shape))
    node = attention_step_node(heads=heads, select=select, page=page)
    return model(given, [f"{dtype}[{y}] y", "int32[2, 2, 2] topk"], [node], constants)


_GOOD = attention_step()
RULE_EXAMPLES = {
    "NSA006": RuleExample(attention_step(dtype="float"), attention_step(dtype="bfloat16")),
    "NSA007": RuleExample(attention_step(k="6, 64, 64"), _GOOD),
    "NSA010": RuleExample(attention_step(heads=5, q="2, 5, 32", y="2, 5, 16"), _GOOD),
    "NSA011": RuleExample(attention_step(select=144), attention_step(select=128)),
    "NSA012": RuleExample(
        attention_step(page=72, k="6, 72, 2, 32", v="6, 72, 2, 16"),
        attention_step(page=80, k="6, 80, 2, 32", v="6, 80, 2, 16"),
    ),
    "NSA014": RuleExample(attention_step(table="3, 3"), _GOOD),
    "NSA015": RuleExample(attention_step(lengths=[40, 193]), attention_step(lengths=[40, 192])),
    "NSA016": RuleExample(
        attention_step(lengths=[40, 100], pages=[0, -1, -1, 5, 6, -1]),
        attention_step(lengths=[40, 100], pages=[0, -1, -1, 5, 4, -1]),
    ),
}
"""By the rule that they are shown with."""
