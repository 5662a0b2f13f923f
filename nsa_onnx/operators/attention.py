"""The attention stages: limits, error rows and checks of all four. Needs the standard library only.

A `Stage` says what one of them takes. Its error table (`rows`) and its checks follow from that, in this order: kinds,
types, ranks, what attributes alone can break, dims, lengths, masks, indices. plan/attention.cc checks the same in C++.

The symbols are those of docs/operators.md: query heads N1, key/value heads N2, head dims D and Dv; tokens T1 of query,
Tc (compressed) or T2 of key; in a decode step B sequences and P pages each at most; k selected blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .contract import (
    DTYPES,
    Array,
    Dim,
    Error,
    Row,
    Rows,
    Shape,
    Violation,
    Violations,
    is_float,
    is_int,
    kind,
    table,
    wrong_sequence,
)
from .hints import HINTS, Hint
from .windows import ALIGNMENT, ARRAY, BLOCK, STRIDE

SCALE = "scale_value"
HEADS = "head_num"
KV_HEADS = "key_value_head_num"
SELECT = "select_block_size"
COUNT = "select_block_count"
PAGE = "page_block_size"
CAUSAL = "causal"
QUERY_LENGTHS = "actual_seq_qlen"
KEY_LENGTHS = "actual_seq_kvlen"
COMPRESSED_LENGTHS = "actual_cmp_seq_kvlen"
BLOCK_LENGTHS = "actual_sel_seq_kvlen"

# The attribute that says what a dim must be. k is select_block_count.
_TOLD_BY = {"N1": HEADS, "N2": KV_HEADS, "page": PAGE, "k": COUNT}


@dataclass(frozen=True)
class AttentionLimits:
    """Bounds, inclusive. Sizes but the count and the group are multiples of 16 as well."""

    max_group: int = 128
    max_head_dim: int = 512
    max_select_block: int = 128
    max_select_count: int = 128
    max_page: int = 1024


LIMITS = AttentionLimits()
_MAX_FLOAT32 = float.fromhex("0x1.fffffep127")


@dataclass(frozen=True)
class Stage:
    """What one attention stage takes.

    Attributes:
        arrays: the dims of each array by the array's name, in the order of the call. A dim that stands twice must be
            the same; one that begins with ">=" only has a least size.
        types: of those that are not float16 or bfloat16 as query is.
        optional: arrays that may be left out.
        attributes: but scale_value, which all have.
        prefix_sums: of tokens, per sequence: the dim that the last one equals, None where it follows otherwise.
        lengths: of sequences in pages.
    """

    arrays: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    types: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    prefix_sums: Mapping[str, str | None] = field(default_factory=dict)
    lengths: tuple[str, ...] = ()

    @property
    def all_lengths(self) -> tuple[str, ...]:
        return (*self.prefix_sums, *self.lengths)


_Row = tuple[str, Error, str, str, str]


def rows(stage: Stage, *own: _Row) -> dict[str, Row]:
    """The error table of a stage; the order decides which error wins. ``own`` rows come last."""
    parts = (_type_rows, _rank_rows, _attribute_rows, _dim_rows, _length_rows)
    return table(*(row for part in parts for row in part(stage)), *own)


# --------------------------------------------------------------------------------------------------
# Kinds and types


def _type_rows(stage: Stage) -> Iterator[_Row]:
    for name in stage.arrays:
        text = ARRAY.replace("must be", "must be None,") if name in stage.optional else ARRAY
        yield f"{name}_kind", TypeError, name, f"{name} {text}", "NSA006"
    for name in ("key", "value"):
        yield f"{name}_dtype", TypeError, name, f"{name} must have the dtype of query, {{}}, got {{}}", "NSA006"
    yield "query_dtype", TypeError, "query", f"query must be {' or '.join(DTYPES)}, got {{}}", "NSA006"
    for name, dtype in stage.types.items():
        yield f"{name}_dtype", TypeError, name, f"{name} must be {dtype}, got {{}}", "NSA006"
    yield "scale_kind", TypeError, SCALE, f"{SCALE} must be a float or an int, got {{}}", "NSA005"
    for name in stage.attributes:
        yield f"{name}_kind", TypeError, name, f"{name} must be {_KIND.get(name, 'an int')}, got {{}}", "NSA005"
    for name in stage.all_lengths:
        yield f"{name}_kind", TypeError, name, f"{name} must be a tuple or list of ints, got {{}}", "NSA006"
        yield f"{name}_dtype", TypeError, name, f"{name} must be int64, got {{}}", "NSA006"


_KIND = {CAUSAL: "a bool or an int"}  # of attributes that are not ints


def type_violations(
    stage: Stage,
    table: Rows,
    arrays: Mapping[str, object],
    numbers: Mapping[str, object],
    lengths: Mapping[str, object],
) -> Violations:
    """The TypeErrors of an eager call.

    Args:
        arrays: by name, as `Array`; None where an optional one is left out.
        numbers: scale_value and the attributes.
        lengths: by name.
    """
    query = arrays["query"]
    for name in stage.arrays:
        value = arrays[name]
        if not isinstance(value, Array) and not (value is None and name in stage.optional):
            yield Violation(table[f"{name}_kind"], (kind(value),))
    if isinstance(query, Array):
        for name in ("key", "value"):
            value = arrays[name]
            if isinstance(value, Array) and value.dtype != query.dtype:
                yield Violation(table[f"{name}_dtype"], (query.dtype, value.dtype))
        if query.dtype not in DTYPES:
            wider = query.dtype in ("float32", "float64")
            yield Violation(table["query_dtype"], (query.dtype,), HINTS["cast_float"] if wider else None)
    for name, dtype in stage.types.items():
        value = arrays[name]
        if isinstance(value, Array) and value.dtype != dtype:
            yield Violation(table[f"{name}_dtype"], (value.dtype,), _cast_hint(value.dtype, dtype))
    scale = numbers[SCALE]
    if not is_int(scale) and not is_float(scale):
        yield Violation(table["scale_kind"], (kind(scale),))
    for name in stage.attributes:
        value = numbers[name]
        if not is_int(value) and not (name in _KIND and isinstance(value, bool)):
            yield Violation(table[f"{name}_kind"], (kind(value),))
    for name in stage.all_lengths:
        yield from _sequence_violations(table, name, lengths[name])


def _cast_hint(got: str, wanted: str) -> Hint | None:
    return HINTS["cast_int32"] if (got, wanted) == ("int64", "int32") else None


def _sequence_violations(table: Rows, name: str, value: object) -> Violations:
    wrong = wrong_sequence(value)
    if wrong is None:
        return
    given = value
    if isinstance(given, (tuple, list)):
        given = next(element for element in given if not is_int(element))
    integers = "int" in str(getattr(given, "dtype", ""))  # NumPy's or torch's
    yield Violation(table[f"{name}_kind"], (wrong,), HINTS["list_of_ints"] if integers else None)


# --------------------------------------------------------------------------------------------------
# Ranks


def _rank_rows(stage: Stage) -> Iterator[_Row]:
    for name, dims in stage.arrays.items():
        wanted = f"rank {len(dims)} [{', '.join(dims)}]"
        yield f"{name}_rank", RuntimeError, name, f"{name} must have {wanted}, got rank {{}}", "NSA007"
    for name in stage.all_lengths:
        yield f"{name}_rank", RuntimeError, name, f"{name} must have rank 1 [B], got rank {{}}", "NSA007"


def rank_violations(stage: Stage, table: Rows, ranks: Mapping[str, int | None]) -> Violations:
    """Arrays and lengths whose rank is known and wrong. A name that is not in ``ranks`` is left out of the call."""
    wanted = {name: len(dims) for name, dims in stage.arrays.items()} | dict.fromkeys(stage.all_lengths, 1)
    for name, right in wanted.items():
        rank = ranks.get(name)
        if rank is not None and rank != right:
            yield Violation(table[f"{name}_rank"], (rank,), _rank_hint(stage, name, rank))


def _rank_hint(stage: Stage, name: str, rank: int) -> Hint | None:
    paged = bool(stage.lengths)
    if name == "query" and rank == 4:
        return HINTS["one_token" if paged else "tokens_first"]
    if name in ("key", "value"):
        if paged and rank == 3:
            return HINTS["split_heads"]
        if not paged and rank == 4:
            return HINTS["tokens_first"]
    return None


# --------------------------------------------------------------------------------------------------
# Attributes


def _attribute_rows(stage: Stage) -> Iterator[_Row]:
    multiple = f"must be a multiple of {ALIGNMENT}, got {{}}"
    yield "scale_finite", RuntimeError, SCALE, f"{SCALE} must be a finite float32, got {{}}", "NSA005"
    yield "head_num_min", RuntimeError, HEADS, f"{HEADS} must be >= 1, got {{}}", "NSA010"
    if KV_HEADS in stage.attributes:
        yield "key_value_head_num_min", RuntimeError, KV_HEADS, f"{KV_HEADS} must be >= 1, got {{}}", "NSA010"
        yield from _group_rows()
    yield "select_multiple", RuntimeError, SELECT, f"{SELECT} {multiple}", "NSA011"
    yield "select_range", RuntimeError, SELECT, f"{SELECT} must be in [{ALIGNMENT}, {{}}], got {{}}", "NSA011"
    if BLOCK in stage.attributes:
        yield "block_multiple", RuntimeError, BLOCK, f"{BLOCK} {multiple}", "NSA011"
        text = f"{BLOCK} must be in [{ALIGNMENT}, {SELECT} = {{}}], got {{}}"
        yield "block_range", RuntimeError, BLOCK, text, "NSA011"
        yield "stride_multiple", RuntimeError, STRIDE, f"{STRIDE} {multiple}", "NSA011"
        text = f"{STRIDE} must be in [{ALIGNMENT}, {BLOCK} = {{}}], got {{}}"
        yield "stride_range", RuntimeError, STRIDE, text, "NSA011"
        text = f"{SELECT} must be a multiple of {STRIDE} = {{}}, got {{}}"
        yield "select_stride", RuntimeError, SELECT, text, "NSA011"
    yield "count_range", RuntimeError, COUNT, f"{COUNT} must be in [1, {{}}], got {{}}", "NSA011"
    if PAGE in stage.attributes:
        yield "page_multiple", RuntimeError, PAGE, f"{PAGE} {multiple}", "NSA012"
        yield "page_range", RuntimeError, PAGE, f"{PAGE} must be in [{ALIGNMENT}, {{}}], got {{}}", "NSA012"
    if CAUSAL in stage.attributes:
        yield "causal_range", RuntimeError, CAUSAL, f"{CAUSAL} must be 0 or 1, got {{}}", "NSA005"


def _group_rows() -> Iterator[_Row]:
    yield "heads_divide", RuntimeError, HEADS, f"{HEADS} must be a multiple of N2 = {{}}, got {{}}", "NSA010"
    yield "group_max", RuntimeError, HEADS, f"{HEADS} / N2 must be <= {{}}, got {{}}", "NSA010"


def attribute_violations(table: Rows, numbers: Mapping[str, int | float | None]) -> Violations:
    """What scale_value and the attributes break by themselves. One that is unknown (None) or absent passes."""
    limits = LIMITS
    scale, block, stride = numbers.get(SCALE), numbers.get(BLOCK), numbers.get(STRIDE)
    select = numbers.get(SELECT)
    if scale is not None and not abs(scale) <= _MAX_FLOAT32:  # NaN is not, either
        yield Violation(table["scale_finite"], (scale,))
    for name in (HEADS, KV_HEADS):
        value = numbers.get(name)
        if value is not None and value < 1:
            yield Violation(table[f"{name}_min"], (value,))
    yield from group_violations(table, numbers.get(HEADS), numbers.get(KV_HEADS))
    yield from _size_violations(table, "select", select, limits.max_select_block)
    yield from _size_violations(table, "block", block, select)
    yield from _size_violations(table, "stride", stride, block)
    if select is not None and stride is not None and stride >= 1 and select % stride:
        yield Violation(table["select_stride"], (stride, select))
    count = numbers.get(COUNT)
    if count is not None and not 1 <= count <= limits.max_select_count:
        yield Violation(table["count_range"], (limits.max_select_count, count))
    yield from _size_violations(table, "page", numbers.get(PAGE), limits.max_page)
    causal = numbers.get(CAUSAL)
    if causal is not None and causal not in (0, 1):
        yield Violation(table["causal_range"], (causal,))


def _size_violations(table: Rows, what: str, size: float | None, most: float | None) -> Violations:
    """The rows on a size that is a multiple of 16 in [16, most]."""
    if size is None:
        return
    if size % ALIGNMENT:
        yield Violation(table[f"{what}_multiple"], (size,))
    if size < ALIGNMENT or (most is not None and size > most):
        yield Violation(table[f"{what}_range"], (LIMITS.max_select_block if most is None else most, size))


def group_violations(table: Rows, heads: float | None, kv_heads: float | None) -> Violations:
    """The rows on G = N1 / N2. Numbers below 1 are for others."""
    if heads is None or kv_heads is None or min(heads, kv_heads) < 1:
        return
    if heads % kv_heads:
        yield Violation(table["heads_divide"], (kv_heads, heads))
    elif heads // kv_heads > LIMITS.max_group:
        yield Violation(table["group_max"], (LIMITS.max_group, heads // kv_heads))


# --------------------------------------------------------------------------------------------------
# Dims


def _dim_rows(stage: Stage) -> Iterator[_Row]:
    for name, axis, dim in _tied(stage):
        wanted = _TOLD_BY[dim] if _TOLD_BY.get(dim) in stage.attributes else dim
        rule = {"page": "NSA012", "D": "NSA009", "N1": "NSA010", "N2": "NSA010"}
        text = f"{name}.shape[{axis}] must equal {wanted} = {{}}, got {{}}"
        yield f"{name}_{dim.lower()}", RuntimeError, name, text, rule.get(dim, "NSA014")
    if KV_HEADS not in stage.attributes:  # key tells N2
        yield "key_heads_min", RuntimeError, "key", "key: N2 must be >= 1, got {}", "NSA010"
        yield from _group_rows()
    multiple = f"must be a multiple of {ALIGNMENT}, got {{}}"
    yield "dim_multiple", RuntimeError, "query", f"query: D {multiple}", "NSA009"
    yield "dim_range", RuntimeError, "query", f"query: D must be in [{ALIGNMENT}, {{}}], got {{}}", "NSA009"
    yield "value_dim_multiple", RuntimeError, "value", f"value: Dv {multiple}", "NSA009"
    text = f"value: Dv must be in [{ALIGNMENT}, D = {{}}], got {{}}"
    yield "value_dim_range", RuntimeError, "value", text, "NSA009"


def _tied(stage: Stage) -> Iterator[tuple[str, int, str]]:
    """Dims that an attribute or an earlier array tells, as (array, axis, dim)."""
    seen = {dim for dim, attribute in _TOLD_BY.items() if attribute in stage.attributes}
    for name, dims in stage.arrays.items():
        for axis, dim in enumerate(dims):
            if dim in seen:
                yield name, axis, dim
        seen.update(dim for dim in dims if not dim.startswith(">="))


def dim_violations(
    stage: Stage, table: Rows, shapes: Mapping[str, Shape], numbers: Mapping[str, int | float | None]
) -> Violations:
    """Dims of arrays of the right rank. An array that is left out or of unknown rank is not in ``shapes``."""
    sizes: dict[str, float | None] = {dim: numbers.get(attribute) for dim, attribute in _TOLD_BY.items()}
    tied = set(_tied(stage))
    for name, dims in stage.arrays.items():
        if name not in shapes:
            continue
        for axis, (dim, size) in enumerate(zip(dims, shapes[name], strict=True)):
            wanted = sizes.get(dim)
            if (name, axis, dim) in tied and size is not None and wanted is not None and size != wanted:
                yield Violation(table[f"{name}_{dim.lower()}"], (wanted, size))
            if wanted is None:
                sizes[dim] = size
    if KV_HEADS not in numbers and sizes.get("N2") is not None:
        if sizes["N2"] < 1:  # type: ignore[operator]
            yield Violation(table["key_heads_min"], (sizes["N2"],))
        yield from group_violations(table, numbers.get(HEADS), sizes["N2"])
    head_dim, value_dim = sizes.get("D"), sizes.get("Dv")
    if head_dim is not None and head_dim % ALIGNMENT:
        yield Violation(table["dim_multiple"], (head_dim,))
    if head_dim is not None and not ALIGNMENT <= head_dim <= LIMITS.max_head_dim:
        yield Violation(table["dim_range"], (LIMITS.max_head_dim, head_dim))
    if value_dim is not None and value_dim % ALIGNMENT:
        yield Violation(table["value_dim_multiple"], (value_dim,))
    if value_dim is not None and (value_dim < ALIGNMENT or (head_dim is not None and value_dim > head_dim)):
        yield Violation(table["value_dim_range"], (LIMITS.max_head_dim if head_dim is None else head_dim, value_dim))


# --------------------------------------------------------------------------------------------------
# Lengths


def _length_rows(stage: Stage) -> Iterator[_Row]:
    for name in stage.prefix_sums:
        yield f"{name}_empty", RuntimeError, name, f"{name} must have at least 1 element, got {{}}", "NSA015"
    first, *others = stage.all_lengths
    for name in (first, *others) if stage.lengths else others:
        yield f"{name}_b", RuntimeError, name, f"{name} must have B = {{}} elements, got {{}}", "NSA014"
    for name in stage.all_lengths:
        yield f"{name}_negative", RuntimeError, name, f"{name}[{{}}] must be >= 0, got {{}}", "NSA015"
    for name, total in stage.prefix_sums.items():
        text = f"{name}[{{}}] must be >= the element before it, {{}}, got {{}}"
        yield f"{name}_decreasing", RuntimeError, name, text, "NSA015"
        if total is not None:
            text = f"{name}[{{}}], the last element, must equal {total} = {{}}, got {{}}"
            yield f"{name}_last", RuntimeError, name, text, "NSA015"
    for name in stage.lengths:
        text = f"{name}[{{}}] must be <= {{}} (pages x {PAGE}), got {{}}"
        yield f"{name}_max", RuntimeError, name, text, "NSA015"


def count_violations(stage: Stage, table: Rows, counts: Mapping[str, Dim], batch: Dim = None) -> Violations:
    """How many elements the lengths have; ``batch`` is B where an array tells it (a decode step)."""
    for name in stage.prefix_sums:
        if counts.get(name) == 0:
            yield Violation(table[f"{name}_empty"], (0,))
    wanted = batch
    for name in stage.all_lengths:
        count = counts.get(name)
        if wanted is None:
            wanted = count
        elif count is not None and count != wanted:
            yield Violation(table[f"{name}_b"], (wanted, count))


def prefix_sum_violations(table: Rows, name: str, ends: Sequence[int], total: Dim) -> Violations:
    """Prefix sums; ``total`` is what the last one must equal, if that is known."""
    if not len(ends):
        return
    for index, end in enumerate(ends):
        if end < 0:
            yield Violation(table[f"{name}_negative"], (index, end))
            break
    for index, (before, end) in enumerate(pairwise(ends), 1):
        if end < before:
            yield Violation(table[f"{name}_decreasing"], (index, before, end), _lengths_hint(ends, total))
            break
    if total is not None and ends[-1] != total:
        values = (len(ends) - 1, total, ends[-1])
        yield Violation(table[f"{name}_last"], values, _lengths_hint(ends, total))


def _lengths_hint(ends: Sequence[int], total: Dim) -> Hint | None:
    """Lengths where prefix sums are asked for. C++ has the same in plan/."""
    return HINTS["lengths"] if min(ends) >= 0 and sum(ends) == total else None


def length_violations(table: Rows, name: str, lengths: Sequence[int], longest: Dim) -> Violations:
    """Lengths of sequences in pages; ``longest`` is what the pages of one can hold, in tokens."""
    for b, length in enumerate(lengths):
        if length < 0:
            yield Violation(table[f"{name}_negative"], (b, length))
            return
    if longest is None:
        return
    sums = all(0 <= end - start <= longest for start, end in pairwise((0, *lengths)))
    for b, length in enumerate(lengths):
        if length > longest:
            yield Violation(table[f"{name}_max"], (b, longest, length), HINTS["prefix_sums"] if sums else None)
            return


# --------------------------------------------------------------------------------------------------
# Masks, blocks and pages

TABLE_RANGE_ROW: _Row = (
    "table_range",
    RuntimeError,
    "block_table",
    "block_table[{}, {}] must be in [0, {}), got {}",
    "NSA016",
)
TOPK_RANGE_ROW: _Row = (
    "topk_range",
    RuntimeError,
    "topk_indices",
    f"topk_indices[{{}}, {{}}, {{}}] must be in [-1, {{}}) (blocks of {SELECT} tokens in its sequence), got {{}}",
    "NSA016",
)


def mask_rows(*names: str) -> Iterator[_Row]:
    """The rows on masks that all sequences share, from their first row and column on."""
    for name in names:
        for axis, what in enumerate(("rows", "columns")):
            text = f"{name}.shape[{axis}] must be >= {{}}, the most of a sequence, got {{}}"
            yield f"{name}_{what}", RuntimeError, name, text, "NSA014"


def mask_violations(table: Rows, name: str, shape: Shape, rows: int | None, columns: int | None) -> Violations:
    """A mask of rank 2 that is too small for the longest sequence."""
    for what, size, least in zip(("rows", "columns"), shape, (rows, columns), strict=True):
        if size is not None and least is not None and size < least:
            yield Violation(table[f"{name}_{what}"], (least, size))


def steps(ends: Sequence[int]) -> list[int]:
    """The lengths of the sequences, from checked prefix sums."""
    return [end - start for start, end in pairwise((0, *ends))]


def pages_read(length: int, page: int) -> int:
    """Pages that ``length`` tokens of one sequence lie on."""
    return math.ceil(length / page)


def table_violations(
    table: Rows, block_table: Sequence[Sequence[int]], pages: Sequence[Sequence[int]], block_num: int
) -> Violations:
    """Entries of a table that are read: ``pages`` has, per sequence, the columns, ascending. The first wrong one."""
    for b, columns in enumerate(pages):
        for p in columns:
            page = int(block_table[b][p])
            if not 0 <= page < block_num:
                yield Violation(table["table_range"], (b, p, block_num, page))
                return
