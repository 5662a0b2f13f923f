"""NsaCompress in models: what rules of the checker are shown with."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import DOMAIN, OPSET_VERSION
from ..model_text import IMPORT, STANDARD_OPSET, RuleExample, integers, model
from ..windows import ALIGNMENT, MAX_HEAD_DIM
from .contract import LIMITS, OP_TYPE


def compress_node(
    inputs: str = "x, w, seq", output: str = "y", block: int = 32, stride: int = 16, name: str = "nsa", more: str = ""
) -> str:
    """One NsaCompress node."""
    return (
        f"[{name}] {output} = {DOMAIN}.{OP_TYPE}\n"
        f"      <compress_block_size = {block}, compress_stride = {stride}{more}> ({inputs})"
    )


def compress(
    x: str = "T, 4, 16",
    w: str = "32, 4",
    y: str = "R, 4, 16",
    *,
    seq: Sequence[int] | None = None,
    dtype: str = "float16",
    block: int = 32,
    stride: int = 16,
    before: Sequence[str] = (),
    after: Sequence[str] = (),
    inputs: str = "x, w, seq",
    outputs: Sequence[str] = (),
    imports: str = IMPORT,
) -> str:
    """A model with one NsaCompress.

    Args:
        x, w, y: the shapes of input, weight and output.
        seq: constant prefix sums; an input of the graph if None.
        before, after: more nodes, in front of it and behind it.
        inputs: of the node, by name; "seq" may be made by a node of ``before``.
        outputs: more outputs of the graph.
    """
    made = any(node.startswith("seq = ") for node in before)
    given = [f"{dtype}[{x}] x", f"{dtype}[{w}] w", *([] if made or seq is not None else ["int64[B] seq"])]
    constants = [] if seq is None else [integers("lengths" if made else "seq", seq)]
    nodes = [*before, compress_node(inputs, block=block, stride=stride), *after]
    return model(given, [f"{dtype}[{y}] y", *outputs], nodes, constants, imports=imports)


def _heads(n: int) -> str:
    return compress(x=f"T, {n}, 16", w=f"32, {n}", y=f"R, {n}, 16")


def _dim(n: int) -> str:
    return compress(x=f"T, 4, {n}", y=f"R, 4, {n}")


def _block(n: int) -> str:
    return compress(w=f"{n}, 4", block=n)


def _seq(*ends: int, y: str = "R, 4, 16", x: str = "100, 4, 16") -> str:
    return compress(x=x, y=y, seq=ends)


def _with_body(opset: int) -> str:
    # Short, and so not the true body: NSA026 says so, too.
    return compress() + (
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        f"{OP_TYPE} <compress_block_size, compress_stride> (input, weight, actual_seq_len) => (output)\n"
        "{\n    output = Neg (input)\n}\n"
    )


def _in_standard_operators(reduction: str) -> str:
    """Windows of 16 tokens, 16 apart: gathered, weighted and reduced."""
    return model(
        ["float16[32, 4, 16] x", "float16[16, 4] w"],
        ["float16[2, 4, 16] y"],
        [
            "windows = Gather <axis = 0> (x, indices)",
            "windows_32 = Cast <to = 1> (windows)",
            "w_32 = Cast <to = 1> (w)",
            "w_column = Unsqueeze (w_32, last)",
            "products = Mul (windows_32, w_column)",
            f"sums = {reduction} <keepdims = 0> (products, first)",
            "[compress] y = Cast <to = 10> (sums)",
        ],
        [integers("indices", range(32), shape="2, 16"), "int64[1] last = {2}", "int64[1] first = {1}"],
        imports="",
    )


def _attention(*nodes: str) -> str:
    """Scores of queries against compressed keys."""
    text = compress(x="T, 4, 16", after=nodes, outputs=["float16[4, Q, R] scores"])
    return text.replace("float16[T, 4, 16] x", "float16[T, 4, 16] x, float16[Q, 4, 16] q")


_GOOD = compress()
_ANOTHER_NAME = _with_body(STANDARD_OPSET).replace(OP_TYPE, f"p_{OP_TYPE}")
RULE_EXAMPLES = {
    "NSA002": RuleExample(compress(imports=f'"{DOMAIN}" : {OPSET_VERSION + 1}'), _GOOD),
    "NSA003": RuleExample(_GOOD.replace(OP_TYPE, OP_TYPE[:-1]), _GOOD),
    "NSA004": RuleExample(compress(inputs="x, w")),
    "NSA005": RuleExample(_GOOD.replace(", compress_stride = 16", ""), _GOOD),
    "NSA006": RuleExample(compress(dtype="float"), compress(dtype="bfloat16")),
    "NSA007": RuleExample(compress(x="1, T, 4, 16"), _GOOD),
    "NSA008": RuleExample(compress(w="31, 4"), _GOOD),
    "NSA009": RuleExample(_dim(MAX_HEAD_DIM + ALIGNMENT), _dim(MAX_HEAD_DIM)),
    "NSA010": RuleExample(_heads(LIMITS.max_heads + 1), _heads(LIMITS.max_heads)),
    "NSA011": RuleExample(_block(LIMITS.max_block + ALIGNMENT), _block(LIMITS.max_block)),
    "NSA015": RuleExample(_seq(40, 60), _seq(40, 100)),
    "NSA017": RuleExample(_seq(40, 100, x="T, 4, 16").replace("int64[2]", "int64[3]"), _seq(40, 100, x="T, 4, 16")),
    "NSA018": RuleExample(_seq(40, 100, y="4, 4, 16"), _seq(40, 100, y="3, 4, 16")),
    "NSA019": RuleExample(compress(x="-1, 4, 16"), _GOOD),
    "NSA020": RuleExample(_with_body(STANDARD_OPSET - 1), _with_body(STANDARD_OPSET)),
    "NSA021": RuleExample(compress(before=["z = other.Foo (x)"]), compress(before=["z = Neg (x)"])),
    "NSA022": RuleExample(_seq(31, x="31, 4, 16", y="0, 4, 16"), _seq(32, x="32, 4, 16", y="1, 4, 16")),
    "NSA026": RuleExample(_with_body(STANDARD_OPSET), _GOOD),
    "NSA028": RuleExample(_in_standard_operators("ReduceSum"), _in_standard_operators("ReduceMax")),
    "NSA042": RuleExample(
        _attention('[scores] scores = Einsum <equation = "qhd,khd->hqk"> (q, y)'),
        _attention(
            "rows = Transpose <perm = [1, 0, 2]> (q)",
            "columns = Transpose <perm = [1, 2, 0]> (y)",
            "[scores] scores = MatMul (rows, columns)",
        ),
    ),
    "NSA043": RuleExample(_ANOTHER_NAME, _ANOTHER_NAME.replace(DOMAIN, "mine")),
    "NSA045": RuleExample(_GOOD.replace(DOMAIN, f"{DOMAIN}.v1"), _GOOD),
}
"""By the rule that they are shown with."""
