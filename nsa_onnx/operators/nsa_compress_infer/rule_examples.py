"""NsaCompressInfer in models: what rules of the checker are shown with."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import DOMAIN
from ..model_text import RuleExample, integers, model
from ..nsa_compress.contract import OP_TYPE as PREFILL
from .contract import OP_TYPE


def decode_node(
    inputs: str = "x, w, slots, cache, seq, table",
    output: str = "cache_out",
    block: int = 32,
    page: int = 64,
    name: str = "nsa",
) -> str:
    """One NsaCompressInfer node."""
    return (
        f"[{name}] {output} = {DOMAIN}.{OP_TYPE}\n"
        f"      <compress_block_size = {block}, compress_stride = 16, page_block_size = {page}>\n"
        f"      ({inputs})"
    )


def decode(
    x: str = "12, 64, 4, 16",
    w: str = "32, 4",
    cache: str = "9, 4, 16",
    batch: str = "3",
    *,
    table: str | None = "3, 4",
    seq: Sequence[int] | None = None,
    slots: Sequence[int] | None = None,
    pages: Sequence[int] | None = None,
    block: int = 32,
    page: int = 64,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
    carried: bool = True,
    outputs: Sequence[str] = (),
) -> str:
    """A model with one NsaCompressInfer.

    Args:
        x, w, cache, batch, table: shapes; without a table the input is left out.
        seq, slots, pages: constant lengths, slots and table; inputs of the graph if None.
        before, after: more nodes, in front of it and behind it.
        carried: whether the updated cache is an output of the graph.
        outputs: more outputs.
    """
    made = any(node.startswith("seq = ") for node in before)
    given = [f"float16[{x}] x", f"float16[{w}] w", f"float16[{cache}] cache"]
    constants: list[str] = []
    for name, dtype, shape, values in (
        ("lengths" if made else "seq", "int64", batch, seq),
        ("slots", "int32", batch, slots),
        ("table", "int32", table, pages),
    ):
        if values is not None:
            constants.append(integers(name, values, dtype, shape or ""))
        elif shape is not None and not (name == "lengths" and made):
            given.append(f"{dtype}[{shape}] {name}")
    names = "x, w, slots, cache, seq" + ("" if table is None else ", table")
    nodes = [*before, decode_node(names, block=block, page=page), *after]
    results = [*([f"float16[{cache}] cache_out"] if carried else []), *outputs]
    return model(given, results, nodes, constants)


def _with_prefill(lengths: str, *constants: str) -> str:
    """Prefill and decode in one model."""
    return model(
        [
            *("float16[100, 4, 16] x", "float16[32, 4] w", "float16[12, 64, 4, 16] pages", "int32[2] slots"),
            *("float16[9, 4, 16] cache", "int32[2, 4] table"),
        ],
        ["float16[3, 4, 16] y", "float16[9, 4, 16] cache_out"],
        [
            f"[prefill] y = {DOMAIN}.{PREFILL} <compress_block_size = 32, compress_stride = 16> (x, w, ends)",
            decode_node(f"pages, w, slots, cache, {lengths}, table", name="decode"),
        ],
        [integers("ends", [40, 100]), *constants],
    )


def _two(cache: str) -> str:
    """Two steps, one after the other; the second updates ``cache``."""
    second = decode_node(f"x, w, later, {cache}, seq, table", "cache_2", name="second")
    made = decode(after=[second], outputs=["float16[9, 4, 16] cache_2"])
    return made.replace("int32[3] slots", "int32[3] slots, int32[3] later")


_SUM = "y = ReduceSum <keepdims = 0> (cache_out)"
_ONE_PAGE_EACH = [0, -1, -1, -1, -1, -1, -1, -1, 3, -1, -1, -1]
_FOUR_PAGES = [0, 1, 2, 3] + [-1] * 8
RULE_EXAMPLES = {
    "NSA004": RuleExample(accepted=decode(table=None, batch="3")),
    "NSA012": RuleExample(decode(x="12, 32, 4, 16", page=32), decode(x="12, 128, 4, 16", page=128)),
    "NSA013": RuleExample(decode(cache="9, 5, 16"), decode(cache="9, 4, 16")),
    "NSA014": RuleExample(decode(table="2, 4"), decode(table="3, 4")),
    "NSA016": RuleExample(
        decode(seq=[32, 33, 48], slots=[1, -1, 9], pages=_ONE_PAGE_EACH),
        decode(seq=[32, 33, 48], slots=[1, -1, 8], pages=_ONE_PAGE_EACH),
    ),
    "NSA023": RuleExample(_with_prefill("ends"), _with_prefill("lengths", integers("lengths", [40, 60]))),
    "NSA024": RuleExample(
        decode(carried=False, after=[_SUM], outputs=["float16 y"]), decode(after=[_SUM], outputs=["float16 y"])
    ),
    "NSA025": RuleExample(_two("cache"), _two("cache_out")),
    "NSA029": RuleExample(decode(slots=[1, -1, 9]), decode(slots=[1, -1, 8], pages=_FOUR_PAGES)),
}
"""By the rule that they are shown with."""
