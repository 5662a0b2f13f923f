"""What CANN's own NsaCompress and NsaCompressWithCache do less than the contract. Needs the standard library only.

Sources: aclnnNsaCompress.md and aclnnNsaCompressWithCache.md, and the tiling of both operators (ops-transformer, late
2025). ort_ext/cann/aclnn.cc works around what it can (the second kind of rows below) and refuses the rest (the first).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..operators.contract import Dim, Shape, Violation, Violations, table
from ..operators.windows import BLOCK, SEQ, row_plan

VENDOR_MAX_DECODE_BLOCK = 64
VENDOR_MAX_ODD_HEADS = 50
VENDOR_MAX_ELEMENTS = 2**32 - 1
# The tiling refuses more than 2048, and leaves out its end mark when 2048 sequences compress.
VENDOR_MAX_BATCH = 2047

VENDOR_ROWS = table(
    # What the operators cannot do, called in whatever way.
    (
        "vendor_block",
        RuntimeError,
        BLOCK,
        f"{BLOCK} must be <= {VENDOR_MAX_DECODE_BLOCK} for the vendor's decode operator, got {{}}",
    ),
    (
        "vendor_odd_heads",
        RuntimeError,
        "input",
        f"input: N must be even above {VENDOR_MAX_ODD_HEADS} for the vendor's decode operator, got {{}}",
    ),
    (
        "vendor_elements",
        RuntimeError,
        "input",
        f"input must have <= {VENDOR_MAX_ELEMENTS} elements for the vendor's operator, got {{}}",
    ),
    (
        "vendor_cache_elements",
        RuntimeError,
        "cache",
        f"cache must have <= {VENDOR_MAX_ELEMENTS} elements for the vendor's operator, got {{}}",
    ),
    # What a graph that calls them directly cannot do; our backend has a way around each.
    (
        "vendor_no_rows",
        RuntimeError,
        SEQ,
        f"T' must be >= 1 for the vendor's operator, got 0: no segment of {SEQ} has {BLOCK} = {{}} tokens",
    ),
    ("vendor_batch_min", RuntimeError, SEQ, f"{SEQ} must have >= 1 elements for the vendor's operator, got {{}}"),
    (
        "vendor_batch_max",
        RuntimeError,
        SEQ,
        f"{SEQ} must have <= {VENDOR_MAX_BATCH} elements for the vendor's decode operator, got {{}}",
    ),
    ("vendor_pages_min", RuntimeError, "input", "input.shape[0] must be >= 1 for the vendor's decode operator, got {}"),
    ("vendor_table", RuntimeError, "block_table", "block_table must be connected for the vendor's decode operator"),
)


def _elements(shape: Shape) -> int | None:
    """How many elements there are at least, taking a dim that is not known for 1; None if a dim is 0."""
    count = 1
    for dim in shape:
        count *= 1 if dim is None else dim
    return count or None


def vendor_compress_violations(input_shape: Shape) -> Violations:
    """What the vendor's prefill operator cannot do, called in whatever way (target aclnn)."""
    elements = _elements(input_shape)
    if elements is not None and elements > VENDOR_MAX_ELEMENTS:
        yield Violation(VENDOR_ROWS["vendor_elements"], (elements,))


def vendor_infer_violations(input_shape: Shape, cache_shape: Shape, compress_block_size: Dim) -> Violations:
    """What the vendor's decode operator cannot do, called in whatever way (target aclnn).

    Of the cache, only slots beyond the last row are out of reach: our backend refuses those when they come up.
    """
    rows = VENDOR_ROWS
    if compress_block_size is not None and compress_block_size > VENDOR_MAX_DECODE_BLOCK:
        yield Violation(rows["vendor_block"], (compress_block_size,))
    heads = input_shape[2] if len(input_shape) == 4 else None
    if heads is not None and heads > VENDOR_MAX_ODD_HEADS and heads % 2:
        yield Violation(rows["vendor_odd_heads"], (heads,))
    elements = _elements(cache_shape)
    if elements is not None and elements > VENDOR_MAX_ELEMENTS:
        yield Violation(rows["vendor_cache_elements"], (elements,))


def direct_compress_violations(
    actual_seq_len: Sequence[int] | None, compress_block_size: Dim, compress_stride: Dim
) -> Violations:
    """What a graph that calls the vendor's prefill operator directly cannot do (target ATC, graph mode).

    ``actual_seq_len`` is None where it is not constant. Lengths, block and stride must otherwise be checked.
    """
    if actual_seq_len is None or compress_block_size is None or compress_stride is None:
        return
    if not row_plan(actual_seq_len, compress_block_size, compress_stride):
        yield Violation(VENDOR_ROWS["vendor_no_rows"], (compress_block_size,))


def direct_infer_violations(batch: Dim, has_table: bool, block_num: Dim = None) -> Violations:
    """What a graph that calls the vendor's decode operator directly cannot do (target ATC, graph mode)."""
    rows = VENDOR_ROWS
    if batch is not None and batch < 1:
        yield Violation(rows["vendor_batch_min"], (batch,))
    if batch is not None and batch > VENDOR_MAX_BATCH:
        yield Violation(rows["vendor_batch_max"], (batch,))
    if block_num is not None and block_num < 1:
        yield Violation(rows["vendor_pages_min"], (block_num,))
    if not has_table:
        yield Violation(rows["vendor_table"], ())
