"""Rules about what the vendor's operators do not take (`vendor`), for the targets that call them."""

from __future__ import annotations

from collections.abc import Iterator

from ..analysis import Analysis
from ..operators.nsa_compress.rule_examples import compress
from ..operators.nsa_compress_infer.rule_examples import decode
from ..rulebook.finding import Finding, Severity
from ..rulebook.rule import finding, ours, rule
from . import vendor
from .reporting import limit_rule

PREPARE = "nsa-onnx prepare --target atc does it"
_ELSEWHERE = "serve the model with onnxruntime-cann and our ascend_kernels, which have no such limit"


def _block(block: int) -> str:
    return decode(w=f"{block}, 4", block=block)


_BLOCK = limit_rule(
    "NSA030",
    f"the vendor's decode: block <= {vendor.DECODE_MAX_BLOCK}",
    f"The vendor's decode operator takes windows of at most {vendor.DECODE_MAX_BLOCK} tokens.",
    vendor.LIMITS,
    ("vendor_block",),
    example=_block(vendor.DECODE_MAX_BLOCK + vendor.WINDOW_MULTIPLE),
    accepted=_block(vendor.DECODE_MAX_BLOCK),
    hint=f"use a shorter window, or {_ELSEWHERE}",
)


def _heads(n: int) -> str:
    return decode(x=f"12, 64, {n}, 16", w=f"32, {n}", cache=f"9, {n}, 16")


_ODD_HEADS = limit_rule(
    "NSA031",
    f"the vendor's decode: an even number of heads above {vendor.DECODE_MAX_ODD_HEADS}",
    f"Above {vendor.DECODE_MAX_ODD_HEADS} heads, the vendor's decode operator takes even numbers of them only.",
    vendor.LIMITS,
    ("vendor_odd_heads",),
    example=_heads(vendor.DECODE_MAX_ODD_HEADS + 1),
    accepted=_heads(vendor.DECODE_MAX_ODD_HEADS + 2),
    hint=f"pad to an even number of heads, or {_ELSEWHERE}",
)
_MOST_HEADS, _MOST_DIM = vendor.PREFILL_MAX_HEADS, vendor.MAX_HEAD_DIM
_MOST_ROWS = vendor.MAX_ELEMENTS // (_MOST_HEADS * _MOST_DIM)


def _tokens(count: int) -> str:
    row = f"{_MOST_HEADS}, {_MOST_DIM}"
    return compress(x=f"{count}, {row}", w=f"32, {_MOST_HEADS}", y=f"R, {row}")


_ELEMENTS = limit_rule(
    "NSA034",
    "the vendor's operators: elements counted in 32 bits",
    "The vendor's operators count elements in 32 bits, in the input of prefill and, before the CANN of 2026, in the\n"
    "cache of decode.",
    vendor.LIMITS,
    ("vendor_elements", "vendor_cache_elements"),
    example=_tokens(_MOST_ROWS + 1),
    accepted=_tokens(_MOST_ROWS),
    hint=f"split the batch among several nodes, or the cache among several inputs, or {_ELSEWHERE}",
)


@rule(
    "NSA035",
    "the vendor's prefill: on Atlas A2 products",
    severity=Severity.WARNING,
    example=compress(),
    accepted=decode(),
    hint="know the device: on other products use our ascend_kernels (target cann), or the CPU",
)
def _product(model: Analysis) -> Iterator[Finding]:
    """The vendor's prefill operator is documented for Atlas A2 only, until CANN of mid-2026 for its training products.

    Of Atlas A3 the vendor's documents say both.

    No model can show where it will run; the finding says what to see to. The table of products is in docs/ascend.md.
    """
    for op_type, operator in vendor.OPERATORS.items():
        nodes = [node for node, _, _ in ours(model.nodes) if node.op_type == op_type and operator.products]
        if nodes:
            more = f" (and {len(nodes) - 1} more)" if len(nodes) > 1 else ""
            yield finding(nodes[0], f"the vendor's operator{more} is documented for {operator.products}")


# --------------------------------------------------------------------------------------------------
# Called by a graph

_TABLE = limit_rule(
    "NSA032",
    "the vendor's decode: a block_table",
    "The vendor's decode operator needs a block_table. onnxruntime's backend makes one; a converted graph cannot.",
    vendor.DIRECT_LIMITS,
    ("vendor_table",),
    example=decode(table=None),
    accepted=decode(),
    hint=PREPARE,
)
_BATCH = limit_rule(
    "NSA033",
    f"the vendor's decode: 1 to {vendor.DECODE_MAX_BATCH} sequences",
    f"A call of the vendor's decode operator takes 1 to {vendor.DECODE_MAX_BATCH} sequences, and at least one\n"
    "page, slot and channel. "
    "onnxruntime's backend makes several calls; a converted graph has one.",
    vendor.DIRECT_LIMITS,
    ("vendor_batch_min", "vendor_batch_max", "vendor_pages_min", "vendor_slots_min", "vendor_no_page_channels"),
    example=decode(batch=f"{vendor.DECODE_MAX_BATCH + 1}", table=f"{vendor.DECODE_MAX_BATCH + 1}, 4"),
    accepted=decode(batch=f"{vendor.DECODE_MAX_BATCH}", table=f"{vendor.DECODE_MAX_BATCH}, 4"),
    hint=f"split the batch among several nodes, or {_ELSEWHERE}",
)
_ROWS = limit_rule(
    "NSA036",
    "the vendor's prefill: T' is not 0",
    "The vendor's prefill operator reads beyond an array on the host where no segment has a window, T' = 0.\n"
    "It refuses an input without channels, D = 0.\n"
    "onnxruntime's backend then makes no call; a converted graph does.",
    vendor.DIRECT_LIMITS,
    ("vendor_no_rows", "vendor_no_channels"),
    example=compress(x="31, 4, 16", y="0, 4, 16", seq=[31]),
    accepted=compress(x="32, 4, 16", y="1, 4, 16", seq=[32]),
    hint="leave the node out, its result is empty",
)

RULES = (_BLOCK, _ODD_HEADS, _ELEMENTS, _product)
"""On an operator that is called in whatever way."""
DIRECT_RULES = (_TABLE, _BATCH, _ROWS)
"""On an operator that a graph calls itself."""
