"""NsaSelectedAttentionInfer in models: what rules of the checker are shown with."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import DOMAIN
from ..model_text import RuleExample, integers, model
from .contract import OP_TYPE

INPUTS = "q, k, v, topk, lengths, table"


def select_step_node(
    inputs: str = INPUTS,
    output: str = "y",
    heads: int = 4,
    block: int = 32,
    count: int = 2,
    page: int = 64,
    name: str = "nsa",
) -> str:
    """One NsaSelectedAttentionInfer node."""
    return (
        f"[{name}] {output} = {DOMAIN}.{OP_TYPE}\n"
        f"      <scale_value = 0.25, head_num = {heads}, key_value_head_num = 2, select_block_size = {block},\n"
        f"       select_block_count = {count}, page_block_size = {page}>\n"
        f"      ({inputs})"
    )


def select_step(
    q: str = "2, 4, 32",
    k: str = "6, 64, 2, 32",
    v: str = "6, 64, 2, 16",
    topk: str = "2, 2, 2",
    table: str = "2, 3",
    y: str = "2, 4, 16",
    *,
    lengths: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    pages: Sequence[int] | None = None,
    dtype: str = "float16",
    heads: int = 4,
    block: int = 32,
    page: int = 64,
) -> str:
    """A model with one NsaSelectedAttentionInfer.

    Args:
        q, k, v, topk, table, y: the shapes of the arrays.
        lengths, blocks, pages: constant lengths, blocks and table; inputs of the graph if None.
    """
    given = [f"{dtype}[{q}] q", f"{dtype}[{k}] k", f"{dtype}[{v}] v"]
    constants: list[str] = []
    for name, kind, shape, values in (
        ("topk", "int32", topk, blocks),
        ("lengths", "int64", "2", lengths),
        ("table", "int32", table, pages),
    ):
        if values is None:
            given.append(f"{kind}[{shape}] {name}")
        else:
            constants.append(integers(name, values, kind, shape))
    node = select_step_node(heads=heads, block=block, page=page)
    return model(given, [f"{dtype}[{y}] y"], [node], constants)


_BLOCKS = [0, 1, -1, 0, 3, 2, 1, 0]  # sequence 1 reads its pages 0 and 1
_GOOD = select_step()
RULE_EXAMPLES = {
    "NSA006": RuleExample(select_step(dtype="float"), select_step(dtype="bfloat16")),
    "NSA007": RuleExample(select_step(k="6, 64, 64"), _GOOD),
    "NSA010": RuleExample(select_step(heads=5, q="2, 5, 32", y="2, 5, 16"), _GOOD),
    "NSA012": RuleExample(
        select_step(page=72, k="6, 72, 2, 32", v="6, 72, 2, 16"),
        select_step(page=80, k="6, 80, 2, 32", v="6, 80, 2, 16"),
    ),
    "NSA014": RuleExample(select_step(table="3, 3"), _GOOD),
    "NSA015": RuleExample(select_step(lengths=[40, 193]), select_step(lengths=[40, 192])),
    "NSA016": RuleExample(
        select_step(lengths=[40, 100], blocks=_BLOCKS, pages=[0, -1, -1, 5, 6, -1]),
        select_step(lengths=[40, 100], blocks=_BLOCKS, pages=[0, -1, -1, 5, 4, -1]),
    ),
}
"""By the rule that they are shown with."""
