"""The contract of NsaCompressInfer, one decode step: limits, plan and error table. Needs the standard library only.

Source: the documentation of ``torch_npu.npu_nsa_compress_infer``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..contract import Array, Contract, Dim, Shape, Violation, Violations, is_int, kind, table
from ..hints import HINTS
from ..windows import (
    ARRAY,
    BLOCK,
    DIM_ROWS,
    INPUT_DTYPE_ROW,
    SEQ,
    SEQ_KIND_ROW,
    STRIDE,
    WEIGHT_RANK_ROW,
    WINDOW_KIND_ROWS,
    WindowLimits,
    dim_violations,
    input_dtype_violations,
    seq_kind_violations,
    triggers,
    window_kind_violations,
)

OP_TYPE = "NsaCompressInfer"
LIMITS = WindowLimits(min_heads=1, max_heads=63, min_block=16, max_block=127)
PAGE = "page_block_size"
PAGE_BLOCK_SIZES = (64, 128)
# A window of at most 127 tokens touches at most this many pages of the smallest page size.
MAX_PAGE_RUNS = 3
ATTRIBUTES = (BLOCK, STRIDE, PAGE)

# The order decides which error wins.
ROWS = table(
    ("input_kind", TypeError, "input", f"input {ARRAY}", "NSA006"),
    ("weight_kind", TypeError, "weight", f"weight {ARRAY}", "NSA006"),
    ("slot_kind", TypeError, "slot_mapping", f"slot_mapping {ARRAY}", "NSA006"),
    (
        "table_kind",
        TypeError,
        "block_table",
        "block_table must be None, a NumPy array or a torch tensor, got {}",
        "NSA006",
    ),
    ("cache_kind", TypeError, "cache", f"cache {ARRAY}", "NSA006"),
    ("weight_dtype", TypeError, "weight", "weight must have the dtype of input, {}, got {}", "NSA006"),
    ("cache_dtype", TypeError, "cache", "cache must have the dtype of input, {}, got {}", "NSA006"),
    INPUT_DTYPE_ROW,
    ("slot_dtype", TypeError, "slot_mapping", "slot_mapping must be int32, got {}", "NSA006"),
    ("table_dtype", TypeError, "block_table", "block_table must be int32, got {}", "NSA006"),
    *WINDOW_KIND_ROWS,
    ("page_kind", TypeError, PAGE, f"{PAGE} must be an int, got {{}}", "NSA005"),
    SEQ_KIND_ROW,
    ("input_rank", RuntimeError, "input", f"input must have rank 4 [block_num, {PAGE}, N, D], got rank {{}}", "NSA007"),
    WEIGHT_RANK_ROW,
    ("slot_rank", RuntimeError, "slot_mapping", "slot_mapping must have rank 1 [B], got rank {}", "NSA007"),
    ("table_rank", RuntimeError, "block_table", "block_table must have rank 2 [B, max_pages], got rank {}", "NSA007"),
    ("cache_rank", RuntimeError, "cache", "cache must have rank 3 [slots, N, D], got rank {}", "NSA007"),
    *DIM_ROWS,
    ("page_size", RuntimeError, PAGE, f"{PAGE} must be {' or '.join(map(str, PAGE_BLOCK_SIZES))}, got {{}}", "NSA012"),
    ("input_page", RuntimeError, "input", f"input.shape[1] must equal {PAGE} = {{}}, got {{}}", "NSA012"),
    ("cache_heads", RuntimeError, "cache", "cache.shape[1] must equal N = {}, got {}", "NSA013"),
    ("cache_dim", RuntimeError, "cache", "cache.shape[2] must equal D = {}, got {}", "NSA013"),
    ("seq_count", RuntimeError, SEQ, f"{SEQ} must have B = {{}} elements, got {{}}", "NSA014"),
    ("table_batch", RuntimeError, "block_table", "block_table.shape[0] must equal B = {}, got {}", "NSA014"),
    (
        "pages_divide",
        RuntimeError,
        "input",
        "input.shape[0] must be a multiple of B = {} when block_table is absent, got {}",
        "NSA012",
    ),
    ("seq_range", RuntimeError, SEQ, f"{SEQ}[{{}}] must be in [0, {{}}] (pages x {PAGE}), got {{}}", "NSA015"),
    ("slot_range", RuntimeError, "slot_mapping", "slot_mapping[{}] must be in [0, {}), got {}", "NSA016"),
    (
        "slot_duplicate",
        RuntimeError,
        "slot_mapping",
        "slot_mapping[{}] must differ from slot_mapping[{}] (both sequences write), got {}",
        "NSA016",
    ),
    ("table_range", RuntimeError, "block_table", "block_table[{}, {}] must be in [0, {}), got {}", "NSA016"),
)
CONTRACT = Contract(OP_TYPE, ROWS, LIMITS, {"PAGE_BLOCK_SIZES": PAGE_BLOCK_SIZES, "MAX_PAGE_RUNS": MAX_PAGE_RUNS})


def type_violations(
    input: object,
    weight: object,
    slot_mapping: object,
    compress_block_size: object,
    compress_stride: object,
    page_block_size: object,
    block_table: object,
    actual_seq_len: object,
    cache: object,
) -> Violations:
    """The TypeErrors. Arrays come as `Array`."""
    for name, value in (("input", input), ("weight", weight), ("slot", slot_mapping)):
        if not isinstance(value, Array):
            yield Violation(ROWS[f"{name}_kind"], (kind(value),))
    if block_table is not None and not isinstance(block_table, Array):
        yield Violation(ROWS["table_kind"], (kind(block_table),))
    if not isinstance(cache, Array):
        yield Violation(ROWS["cache_kind"], (kind(cache),))
    if isinstance(input, Array):
        for name, value in (("weight", weight), ("cache", cache)):
            if isinstance(value, Array) and value.dtype != input.dtype:
                yield Violation(ROWS[f"{name}_dtype"], (input.dtype, value.dtype))
        yield from input_dtype_violations(ROWS, input)
    for name, value in (("slot", slot_mapping), ("table", block_table)):
        if isinstance(value, Array) and value.dtype != "int32":
            hint = HINTS["cast_int32"] if value.dtype == "int64" else None
            yield Violation(ROWS[f"{name}_dtype"], (value.dtype,), hint)
    yield from window_kind_violations(ROWS, compress_block_size, compress_stride)
    if not is_int(page_block_size):
        yield Violation(ROWS["page_kind"], (kind(page_block_size),))
    yield from seq_kind_violations(ROWS, actual_seq_len)


def shape_violations(
    input_shape: Shape,
    weight_shape: Shape,
    slot_shape: Shape,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    table_shape: Shape | None,
    sequences: Dim,
    cache_shape: Shape,
) -> Violations:
    """Ranks, limits and dims. ``sequences`` is the length of actual_seq_len."""
    ranks = (
        ("input", input_shape, 4),
        ("weight", weight_shape, 2),
        ("slot", slot_shape, 1),
        ("table", table_shape, 2),
        ("cache", cache_shape, 3),
    )
    wrong = [(name, shape) for name, shape, rank in ranks if shape is not None and len(shape) != rank]
    for name, shape in wrong:
        yield Violation(ROWS[f"{name}_rank"], (len(shape),))
    if wrong:
        return
    block_num, page, heads, dim = input_shape
    (batch,) = slot_shape
    yield from dim_violations(ROWS, LIMITS, (heads, dim), weight_shape, compress_block_size, compress_stride)
    if page_block_size not in PAGE_BLOCK_SIZES:
        yield Violation(ROWS["page_size"], (page_block_size,))
    equal = (
        ("input_page", page_block_size, page),
        ("cache_heads", heads, cache_shape[1]),
        ("cache_dim", dim, cache_shape[2]),
        ("seq_count", batch, sequences),
        ("table_batch", batch, table_shape[0] if table_shape is not None else None),
    )
    for row, wanted, got in equal:
        if wanted is not None and got is not None and wanted != got:
            yield Violation(ROWS[row], (wanted, got))
    if table_shape is None and batch and block_num is not None and block_num % batch:
        yield Violation(ROWS["pages_divide"], (batch, block_num))


def length_violations(actual_seq_len: Sequence[int], longest: int) -> Violations:
    """Lengths of the sequences; ``longest`` is what their pages can hold, in tokens."""
    wrong = [b for b, length in enumerate(actual_seq_len) if not 0 <= length <= longest]
    sums = all(0 <= end - start <= longest for start, end in pairwise((0, *actual_seq_len)))
    hint = HINTS["prefix_sums"] if sums else None
    for b in wrong:
        yield Violation(ROWS["seq_range"], (b, longest, actual_seq_len[b]), hint)


def index_violations(
    slot_mapping: Sequence[int],
    block_table: Sequence[Sequence[int]] | None,
    actual_seq_len: Sequence[int],
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    block_num: int,
    max_pages: int,
    slots: int,
) -> Violations:
    """The indices: all lengths first, then what the writing sequences use.

    ``max_pages`` is ``block_table.shape[1]``, or ``block_num / B`` without a table.
    """
    wrong_lengths = list(length_violations(actual_seq_len, max_pages * page_block_size))
    yield from wrong_lengths
    if wrong_lengths:
        return
    writer_of: dict[int, int] = {}
    for b, length in enumerate(actual_seq_len):
        if not triggers(length, compress_block_size, compress_stride):
            continue
        slot = int(slot_mapping[b])
        if not 0 <= slot < slots:
            yield Violation(ROWS["slot_range"], (b, slots, slot))
        elif slot in writer_of:
            yield Violation(ROWS["slot_duplicate"], (b, writer_of[slot], slot))
        else:
            writer_of[slot] = b
        if block_table is None:
            continue
        first = (length - compress_block_size) // page_block_size
        last = (length - 1) // page_block_size
        for p in range(first, last + 1):
            page = int(block_table[b][p])
            if not 0 <= page < block_num:
                yield Violation(ROWS["table_range"], (b, p, block_num, page))


@dataclass(frozen=True)
class PageRun:
    """``tokens`` consecutive tokens of physical page ``page``, from token ``offset`` of it."""

    page: int
    offset: int
    tokens: int


@dataclass(frozen=True)
class SlotWrite:
    """One compressed token: sequence ``sequence`` writes ``cache[slot]`` from the tokens of ``runs``."""

    sequence: int
    slot: int
    runs: tuple[PageRun, ...]


def slot_plan(
    slot_mapping: Sequence[int],
    block_table: Sequence[Sequence[int]] | None,
    actual_seq_len: Sequence[int],
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    max_pages: int,
) -> list[SlotWrite]:
    """What one step reads and writes. Indices must be checked (`index_violations`)."""
    plan: list[SlotWrite] = []
    for b, length in enumerate(actual_seq_len):
        if not triggers(length, compress_block_size, compress_stride):
            continue
        runs: list[PageRun] = []
        token = length - compress_block_size
        while token < length:
            offset = token % page_block_size
            tokens = min(page_block_size - offset, length - token)
            logical = token // page_block_size
            page = b * max_pages + logical if block_table is None else int(block_table[b][logical])
            runs.append(PageRun(page, offset, tokens))
            token += tokens
        plan.append(SlotWrite(b, int(slot_mapping[b]), tuple(runs)))
    return plan
