"""What CANN's own operators take, with those of the two compressions. Needs the standard library only.

What the attention stages take is in `vendor_attention`.

Each number stands here, also where the contract has the same today: if the contract grows, CANN does not.
Sources, in ops-transformer: aclnnNsaCompress.md and aclnnNsaCompressWithCache.md of July 2026, and the tiling of both
operators, of November 2025 and July 2026. Where the two differ, the older and narrower one counts, because the machine
that a model will run on may have either.

The operators' aclnn.cc in ort_ext/operators/ refuse the same and get the numbers from a generated header
(`CPP_CONSTANTS`). They work around `VendorOperator.direct`, which binds a graph that calls the operators itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..operators.contract import Dim, Row, Violation, Violations, table
from ..operators.windows import BLOCK, SEQ, STRIDE, row_plan
from . import vendor_attention
from .base import Limit, Number, bound
from .vendor_operator import KERNELS_OR_CPU, VendorOperator
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

CPP_CONSTANTS = {
    "DECODE_MAX_BLOCK": DECODE_MAX_BLOCK,
    "DECODE_MAX_ODD_HEADS": DECODE_MAX_ODD_HEADS,
    "DECODE_MAX_BATCH": DECODE_MAX_BATCH,
    "MAX_ELEMENTS": MAX_ELEMENTS,
    "GROUP_DIVIDES": vendor_attention.GROUP_DIVIDES,
    "MAX_CAUSAL_SCALE": vendor_attention.MAX_CAUSAL_SCALE,
}
CPP_STRUCTS = vendor_attention.SIZES


def _elements(row: str, argument: str) -> Limit:
    """A limit on how many elements an input has at least, taking a dim that is not known for 1."""
    must = f"{argument} must have <= {MAX_ELEMENTS} elements for the vendor's operator, got {{}}"
    made = Row(row, RuntimeError, argument, must)

    def find(facts: NodeFacts) -> Violations:
        count = 1
        for dim in facts.tensor(argument).shape or ():
            count *= 1 if dim is None else dim
        if count > MAX_ELEMENTS:
            yield Violation(made, (count,))

    return Limit((row,), find)


def _channels(row: str, rank: int, whose: str) -> Limit:
    """Empty tensors are refused; the contract takes D = 0."""
    return bound(row, Number("input", rank - 1, "D"), lambda dim: dim >= 1, ">= 1", whose)


# --------------------------------------------------------------------------------------------------
# Prefill: NsaCompress

_FOR_PREFILL = "the vendor's prefill operator"
_NO_ROWS = Row(
    "vendor_no_rows",
    RuntimeError,
    SEQ,
    f"T' must be >= 1 for the vendor's operator, got 0: no segment of {SEQ} has {BLOCK} = {{}} tokens",
)


def _no_rows(facts: NodeFacts) -> Violations:
    """The tiling walks off an array where T' is 0."""
    block, stride, tokens = facts.integer(BLOCK), facts.integer(STRIDE), facts.tensor("input").dim(0)
    lengths = facts.constants.get(SEQ)
    ends = None if lengths is None else lengths.tolist()
    if ends is None and tokens is not None and block is not None and tokens < block:
        ends = [tokens]  # however they are cut, no segment is longer
    if ends is not None and block is not None and stride is not None and not row_plan(ends, block, stride):
        yield Violation(_NO_ROWS, (block,))


_PREFILL = VendorOperator(
    limits=(
        *size_limits(
            Sizes(DTYPES, HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, PREFILL_MAX_HEADS, WINDOW_MULTIPLE, PREFILL_MAX_BLOCK),
            3,
            _FOR_PREFILL,
        ),
        _elements("vendor_elements", "input"),
    ),
    direct=(Limit((_NO_ROWS.id,), _no_rows), _channels("vendor_no_channels", 3, _FOR_PREFILL)),
    valued=(SEQ,),
    products="Atlas A2 only, before CANN of mid-2026 for training products",
    ways_out={
        "vendor_elements": f"split the batch, or {KERNELS_OR_CPU}",
        "vendor_no_rows": "leave the node out, its result is empty",
        "vendor_no_channels": "leave the node out, its result is empty",
    },
)

# --------------------------------------------------------------------------------------------------
# Decode: NsaCompressWithCache

_FOR_DECODE = "the vendor's decode operator"
_DECODE_SIZES = Sizes(
    DTYPES,
    HEAD_DIM_MULTIPLE,
    MAX_HEAD_DIM,
    DECODE_MAX_HEADS,
    WINDOW_MULTIPLE,
    DECODE_MAX_BLOCK,
    DECODE_STRIDES,
    DECODE_PAGES,
    block_row="vendor_block",
)
_CALL_ROWS = table(
    ("vendor_batch_min", RuntimeError, SEQ, f"{SEQ} must have >= 1 elements for the vendor's operator, got {{}}"),
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


def _even_heads(heads: int) -> bool:
    return heads <= DECODE_MAX_ODD_HEADS or heads % 2 == 0


def batch(facts: NodeFacts) -> Dim:
    """How many sequences a node has that writes slots, from whichever input tells."""
    dims = [facts.tensor(name).dim(0) for name in (SEQ, "slot_mapping", "block_table")]
    return next((dim for dim in dims if dim is not None), None)


def _one_call(facts: NodeFacts) -> Violations:
    """What one call does not take."""
    sequences, pages, slots = batch(facts), facts.tensor("input").dim(0), facts.tensor("cache").dim(0)
    if sequences is not None and sequences < 1:
        yield Violation(_CALL_ROWS["vendor_batch_min"], (sequences,))
    if sequences is not None and sequences > DECODE_MAX_BATCH:
        yield Violation(_CALL_ROWS["vendor_batch_max"], (sequences,))
    if pages is not None and pages < 1:
        yield Violation(_CALL_ROWS["vendor_pages_min"], (pages,))
    if slots is not None and slots < 1:
        yield Violation(_CALL_ROWS["vendor_slots_min"], (slots,))
    if "block_table" not in facts.inputs:
        yield Violation(_CALL_ROWS["vendor_table"], ())


_DECODE = VendorOperator(
    limits=(
        *size_limits(_DECODE_SIZES, 4, _FOR_DECODE),
        bound(
            "vendor_odd_heads", Number("input", 2, "N"), _even_heads, f"even above {DECODE_MAX_ODD_HEADS}", _FOR_DECODE
        ),
        # Only slots beyond the last row are out of reach: our backend refuses those when they come up.
        _elements("vendor_cache_elements", "cache"),
    ),
    direct=(_channels("vendor_no_page_channels", 4, _FOR_DECODE), Limit(tuple(_CALL_ROWS), _one_call)),
    required=("block_table",),
    ways_out={
        "vendor_block": f"use a shorter window, or {KERNELS_OR_CPU}",
        "vendor_odd_heads": f"pad to an even number of heads, or {KERNELS_OR_CPU}",
        "vendor_cache_elements": f"use a smaller cache, or {KERNELS_OR_CPU}",
        "vendor_no_page_channels": "leave the node out, it writes nothing",
        "vendor_batch_min": "convert it for at least one sequence",
        "vendor_batch_max": f"split the batch, or {KERNELS_OR_CPU}",
        "vendor_pages_min": "convert it with at least one page",
        "vendor_slots_min": "convert it with at least one slot",
    },
)

# --------------------------------------------------------------------------------------------------
# All of them

OPERATORS = {"NsaCompress": _PREFILL, "NsaCompressInfer": _DECODE, **vendor_attention.OPERATORS}
"""What the vendor has, by operator of ours."""


def vendors(op_type: str) -> VendorOperator:
    """What the vendor has for an operator of ours; without limits if nothing is known."""
    return OPERATORS.get(op_type, VendorOperator(()))


LIMITS = {op_type: one.limits for op_type, one in OPERATORS.items()}
DIRECT_LIMITS = {op_type: one.direct for op_type, one in OPERATORS.items()}
GRAPH_LIMITS = {name: (*one.limits, *one.direct) for name, one in OPERATORS.items() if not one.no_graph}
"""Of those that a converted graph can call."""
NO_GRAPH = {name: one.no_graph for name, one in OPERATORS.items() if one.no_graph}
