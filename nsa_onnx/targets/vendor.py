"""What CANN's own operators NsaCompress and NsaCompressWithCache take. Needs the standard library only.

Each number stands here, also where the contract has the same today: if the contract grows, CANN does not.
Sources, in ops-transformer: aclnnNsaCompress.md and aclnnNsaCompressWithCache.md of July 2026, and the tiling of both
operators, of November 2025 and July 2026. Where the two differ, the older and narrower one counts, because the machine
that a model will run on may have either. The products are in ``aclnn.py``.

The operators' aclnn.cc in ort_ext/operators/ refuse the same and get the numbers from a generated header
(`CPP_CONSTANTS`). They work around `DIRECT_LIMITS`, which bind a graph that calls the operators itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..operators.contract import Dim, Row, Violation, Violations, table
from ..operators.windows import BLOCK, SEQ, STRIDE, row_plan
from .base import Limit, Number, bound
from .windows import Sizes, size_limits

if TYPE_CHECKING:
    from ..operators.facts import NodeFacts

DTYPES = ("float16", "bfloat16")
HEAD_DIM_MULTIPLE = 16
MAX_HEAD_DIM = 256
WINDOW_MULTIPLE = 16  # of block and stride

PREFILL_MAX_HEADS = 128
PREFILL_MAX_BLOCK = 128

DECODE_MAX_HEADS = 64
# The tiling shares heads out by 8, 4 and 2; above this number the buffer has no room for an odd one.
DECODE_MAX_ODD_HEADS = 50
DECODE_MAX_BLOCK = 64
DECODE_STRIDES = (16, 32, 48, 64)
DECODE_PAGES = (64, 128)
# The tiling refuses more than 2048, and leaves out its end mark when 2048 sequences compress.
DECODE_MAX_BATCH = 2047

# Prefill keeps where each core begins in 32 bits, and so did decode with the cache before 2026.
MAX_ELEMENTS = 2**32 - 1

CPP_CONSTANTS = ("DECODE_MAX_BLOCK", "DECODE_MAX_ODD_HEADS", "DECODE_MAX_BATCH", "MAX_ELEMENTS")

_PREFILL, _DECODE = "NsaCompress", "NsaCompressInfer"
_FOR, _FOR_PREFILL, _FOR_DECODE = (
    "the vendor's operator",
    "the vendor's prefill operator",
    "the vendor's decode operator",
)
_SIZES = {
    _PREFILL: Sizes(DTYPES, HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, PREFILL_MAX_HEADS, WINDOW_MULTIPLE, PREFILL_MAX_BLOCK),
    _DECODE: Sizes(
        DTYPES,
        HEAD_DIM_MULTIPLE,
        MAX_HEAD_DIM,
        DECODE_MAX_HEADS,
        WINDOW_MULTIPLE,
        DECODE_MAX_BLOCK,
        DECODE_STRIDES,
        DECODE_PAGES,
        block_row="vendor_block",
    ),
}


def _elements(row: str, argument: str) -> Limit:
    """A limit on how many elements an input has at least, taking a dim that is not known for 1."""
    made = Row(row, RuntimeError, argument, f"{argument} must have <= {MAX_ELEMENTS} elements for {_FOR}, got {{}}")

    def find(facts: NodeFacts) -> Violations:
        count = 1
        for dim in facts.tensor(argument).shape or ():
            count *= 1 if dim is None else dim
        if count > MAX_ELEMENTS:
            yield Violation(made, (count,))

    return Limit((row,), find)


def _even_heads(heads: int) -> bool:
    return heads <= DECODE_MAX_ODD_HEADS or heads % 2 == 0


LIMITS = {
    _PREFILL: (*size_limits(_SIZES[_PREFILL], 3, _FOR_PREFILL), _elements("vendor_elements", "input")),
    _DECODE: (
        *size_limits(_SIZES[_DECODE], 4, _FOR_DECODE),
        bound(
            "vendor_odd_heads", Number("input", 2, "N"), _even_heads, f"even above {DECODE_MAX_ODD_HEADS}", _FOR_DECODE
        ),
        # Only slots beyond the last row are out of reach: our backend refuses those when they come up.
        _elements("vendor_cache_elements", "cache"),
    ),
}
"""What the operators do not take, called in whatever way."""


# --------------------------------------------------------------------------------------------------
# Called by a graph

_ROWS = table(
    (
        "vendor_no_rows",
        RuntimeError,
        SEQ,
        f"T' must be >= 1 for {_FOR}, got 0: no segment of {SEQ} has {BLOCK} = {{}} tokens",
    ),
    ("vendor_batch_min", RuntimeError, SEQ, f"{SEQ} must have >= 1 elements for {_FOR}, got {{}}"),
    (
        "vendor_batch_max",
        RuntimeError,
        SEQ,
        f"{SEQ} must have <= {DECODE_MAX_BATCH} elements for {_FOR_DECODE}, got {{}}",
    ),
    ("vendor_pages_min", RuntimeError, "input", f"input.shape[0] must be >= 1 for {_FOR_DECODE}, got {{}}"),
    ("vendor_slots_min", RuntimeError, "cache", f"cache.shape[0] must be >= 1 for {_FOR_DECODE}, got {{}}"),
    ("vendor_table", RuntimeError, "block_table", f"block_table must be connected for {_FOR_DECODE}"),
)


def _no_rows(facts: NodeFacts) -> Violations:
    """The tiling walks off an array where T' is 0."""
    block, stride, tokens = facts.integer(BLOCK), facts.integer(STRIDE), facts.tensor("input").dim(0)
    lengths = facts.constants.get(SEQ)
    ends = None if lengths is None else lengths.tolist()
    if ends is None and tokens is not None and block is not None and tokens < block:
        ends = [tokens]  # however they are cut, no segment is longer
    if ends is not None and block is not None and stride is not None and not row_plan(ends, block, stride):
        yield Violation(_ROWS["vendor_no_rows"], (block,))


def batch(facts: NodeFacts) -> Dim:
    """How many sequences a decode node has, from whichever input tells."""
    dims = [facts.tensor(name).dim(0) for name in (SEQ, "slot_mapping", "block_table")]
    return next((dim for dim in dims if dim is not None), None)


def _one_call(facts: NodeFacts) -> Violations:
    """What one call of the decode operator does not take."""
    sequences, pages, slots = batch(facts), facts.tensor("input").dim(0), facts.tensor("cache").dim(0)
    if sequences is not None and sequences < 1:
        yield Violation(_ROWS["vendor_batch_min"], (sequences,))
    if sequences is not None and sequences > DECODE_MAX_BATCH:
        yield Violation(_ROWS["vendor_batch_max"], (sequences,))
    if pages is not None and pages < 1:
        yield Violation(_ROWS["vendor_pages_min"], (pages,))
    if slots is not None and slots < 1:
        yield Violation(_ROWS["vendor_slots_min"], (slots,))
    if "block_table" not in facts.inputs:
        yield Violation(_ROWS["vendor_table"], ())


def _channels(row: str, rank: int, whose: str) -> Limit:
    """Empty tensors are refused; the contract takes D = 0."""
    return bound(row, Number("input", rank - 1, "D"), lambda dim: dim >= 1, ">= 1", whose)


DIRECT_LIMITS = {
    _PREFILL: (Limit(("vendor_no_rows",), _no_rows), _channels("vendor_no_channels", 3, _FOR_PREFILL)),
    _DECODE: (
        _channels("vendor_no_page_channels", 4, _FOR_DECODE),
        Limit(
            ("vendor_batch_min", "vendor_batch_max", "vendor_pages_min", "vendor_slots_min", "vendor_table"), _one_call
        ),
    ),
}
"""What a graph that calls the operators itself must keep, beyond `LIMITS`; our backend has a way around each."""
