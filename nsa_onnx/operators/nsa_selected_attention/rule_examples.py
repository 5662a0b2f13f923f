"""NsaSelectedAttention in models: what rules of the checker are shown with."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import DOMAIN
from ..model_text import RuleExample, integers, model
from ..nsa_compress_attention.contract import OP_TYPE as CHOOSING
from .contract import OP_TYPE

INPUTS = "q, k, v, topk, ends, key_ends"


def select_node(
    inputs: str = INPUTS,
    output: str = "y",
    heads: int = 4,
    block: int = 32,
    count: int = 2,
    causal: int = 1,
    name: str = "nsa",
) -> str:
    """One NsaSelectedAttention node."""
    return (
        f"[{name}] {output} = {DOMAIN}.{OP_TYPE}\n"
        f"      <scale_value = 0.25, head_num = {heads}, select_block_size = {block}, select_block_count = {count}, "
        f"causal = {causal}>\n"
        f"      ({inputs})"
    )


def select(
    q: str = "T1, 4, 32",
    k: str = "T2, 2, 32",
    v: str = "T2, 2, 16",
    topk: str = "T1, 2, 2",
    y: str = "T1, 4, 16",
    *,
    ends: Sequence[int] | None = None,
    key_ends: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    dtype: str = "float16",
    heads: int = 4,
    block: int = 32,
    count: int = 2,
    causal: int = 1,
) -> str:
    """A model with one NsaSelectedAttention.

    Args:
        q, k, v, topk, y: the shapes of the arrays.
        ends, key_ends, blocks: constant prefix sums and blocks; inputs of the graph if None.
    """
    given = [f"{dtype}[{q}] q", f"{dtype}[{k}] k", f"{dtype}[{v}] v"]
    constants: list[str] = []
    for name, kind, shape, values in (
        ("topk", "int32", topk, blocks),
        ("ends", "int64", "B", ends),
        ("key_ends", "int64", "B", key_ends),
    ):
        if values is None:
            given.append(f"{kind}[{shape}] {name}")
        else:
            constants.append(integers(name, values, kind, shape if name == "topk" else ""))
    node = select_node(heads=heads, block=block, count=count, causal=causal)
    return model(given, [f"{dtype}[{y}] y"], [node], constants)


def _lengths(*key_ends: int) -> str:
    return select(
        q="3, 4, 32", topk="3, 2, 2", y="3, 4, 16", k="70, 2, 32", v="70, 2, 16", ends=(1, 3), key_ends=key_ends
    )


def _blocks(last: int) -> str:
    blocks = [0, 1, 1, -1, 0, 0, last, 2]
    return select(
        q="2, 4, 32",
        topk="2, 2, 2",
        y="2, 4, 16",
        k="70, 2, 32",
        v="70, 2, 16",
        ends=(2,),
        key_ends=(70,),
        blocks=blocks,
    )


def _layer(block: int) -> str:
    """The stage that selects, and the one that reads."""
    chosen = (
        f"[choose] c, topk = {DOMAIN}.{CHOOSING}\n"
        f"      <scale_value = 0.25, head_num = 4, compress_block_size = 32, compress_stride = 16,\n"
        f"       select_block_size = 64, select_block_count = 2>\n"
        f"      (q, ck, cv, ends, tokens, blocks, hidden)"
    )
    given = ["float16[T1, 4, 32] q", "float16[Tc, 2, 32] ck", "float16[Tc, 2, 16] cv", "bool[M, L] hidden"]
    given += ["float16[T2, 2, 32] k", "float16[T2, 2, 16] v"]
    given += [f"int64[B] {name}" for name in ("ends", "tokens", "blocks", "key_ends")]
    nodes = [chosen, select_node(block=block, name="read")]
    return model(given, ["float16[T1, 4, 16] c", "float16[T1, 4, 16] y"], nodes)


_GOOD = select()
RULE_EXAMPLES = {
    "NSA005": RuleExample(select(causal=2), select(causal=0)),
    "NSA006": RuleExample(select(dtype="float"), select(dtype="bfloat16")),
    "NSA007": RuleExample(select(q="1, T1, 4, 32"), _GOOD),
    "NSA009": RuleExample(select(v="T2, 2, 48", y="T1, 4, 48"), select(v="T2, 2, 32", y="T1, 4, 32")),
    "NSA010": RuleExample(select(k="T2, 3, 32", v="T2, 3, 16", topk="T1, 3, 2"), _GOOD),
    "NSA011": RuleExample(select(block=144), select(block=128)),
    "NSA014": RuleExample(select(topk="T1, 2, 3"), _GOOD),
    "NSA015": RuleExample(_lengths(30, 40), _lengths(30, 70)),
    "NSA016": RuleExample(_blocks(3), _blocks(2)),
    "NSA046": RuleExample(_layer(128), _layer(64)),
    "NSA047": RuleExample(select(causal=0), _GOOD),
}
"""By the rule that they are shown with."""
