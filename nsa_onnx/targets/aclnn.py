"""Target ``cann-aclnn``: onnxruntime's CANN provider with the vendor's operators. Sources: docs/ascend.md.

`VENDOR_RULES` are the rules that this target shares with ``atc``, CANN's converter.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import spec
from ..analysis import Analysis
from ..rulebook.examples import compress, infer
from ..rulebook.finding import Finding, Severity
from ..rulebook.rule import COMPRESS, finding, of_type, rule
from . import cann, vendor
from .base import Target
from .reporting import limit_rule

ELSEWHERE = "serve the model with onnxruntime-cann and our ascend_kernels, which have no such limit"


def _block(block: int) -> str:
    return infer(w=f"{block}, 4", block=block)


_BLOCK = limit_rule(
    "NSA030",
    f"the vendor's decode: block <= {vendor.DECODE_MAX_BLOCK}",
    f"The vendor's decode operator takes windows of at most {vendor.DECODE_MAX_BLOCK} tokens.",
    vendor.LIMITS,
    ("vendor_block",),
    example=_block(vendor.DECODE_MAX_BLOCK + vendor.WINDOW_MULTIPLE),
    accepted=_block(vendor.DECODE_MAX_BLOCK),
    hint=f"use a shorter window, or {ELSEWHERE}",
)


def _heads(n: int) -> str:
    return infer(x=f"12, 64, {n}, 16", w=f"32, {n}", cache=f"9, {n}, 16")


_ODD_HEADS = limit_rule(
    "NSA031",
    f"the vendor's decode: an even number of heads above {vendor.DECODE_MAX_ODD_HEADS}",
    f"Above {vendor.DECODE_MAX_ODD_HEADS} heads, the vendor's decode operator takes even numbers of them only.",
    vendor.LIMITS,
    ("vendor_odd_heads",),
    example=_heads(vendor.DECODE_MAX_ODD_HEADS + 1),
    accepted=_heads(vendor.DECODE_MAX_ODD_HEADS + 2),
    hint=f"pad to an even number of heads, or {ELSEWHERE}",
)
_MOST_HEADS, _MOST_DIM = spec.COMPRESS_LIMITS.max_heads, spec.MAX_HEAD_DIM
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
    hint=f"split the batch among several nodes, or the cache among several inputs, or {ELSEWHERE}",
)


@rule(
    "NSA035",
    "the vendor's prefill: on Atlas A2 products",
    severity=Severity.WARNING,
    example=compress(),
    accepted=infer(),
    hint="know the device: on other products use our ascend_kernels (target cann), or the CPU",
)
def _product(model: Analysis) -> Iterator[Finding]:
    """The vendor's prefill operator is documented for Atlas A2 only, until CANN of mid-2026 for its training products.

    Of Atlas A3 the vendor's documents say both.

    No model can show where it will run; the finding says what to see to. The table of products is in docs/ascend.md.
    """
    nodes = list(of_type(model, COMPRESS))
    if nodes:
        more = f" (and {len(nodes) - 1} more)" if len(nodes) > 1 else ""
        products = "Atlas A2 only, before CANN of mid-2026 for training products"
        yield finding(nodes[0], f"the vendor's operator{more} is documented for {products}")


VENDOR_RULES = (_BLOCK, _ODD_HEADS, _ELEMENTS, _product)
TARGET = Target(
    "cann-aclnn",
    "the same with the vendor's operators, which take less.",
    vendor.LIMITS,
    (*VENDOR_RULES, *cann.PROVIDER_RULES),
    cann.prepare,
)
