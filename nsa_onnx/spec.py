"""The contract of the two operators: limits, T', the window plans and the error table.

Everything else in the project asks this module; it asks nothing but the standard library. The C++
sources get its limits and its messages from a header that ``cmake/generate_spec_header.py`` writes at
configure time, so that both languages refuse the same input in the same words.

Sources: the documentation of ``mindspore.ops.nsa_compress`` (the 23 error rows and T') and of
``torch_npu.npu_nsa_compress_infer`` (decode limits).

Shapes here are tuples of ints; a dim that is not known (None) passes every check that needs it, which
is what shape inference wants.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

DOMAIN = "nsa_onnx"
OPSET_VERSION = 1
COMPRESS_OP = "NsaCompress"
INFER_OP = "NsaCompressInfer"

DTYPES = ("float16", "bfloat16")
ALIGNMENT = 16  # of D, compress_block_size and compress_stride
MAX_HEAD_DIM = 256
PAGE_BLOCK_SIZES = (64, 128)


@dataclass(frozen=True)
class Limits:
    """Bounds (inclusive) in which the two operators differ."""

    min_heads: int
    max_heads: int
    min_block: int
    max_block: int


COMPRESS_LIMITS = Limits(min_heads=1, max_heads=128, min_block=16, max_block=128)
INFER_LIMITS = Limits(min_heads=1, max_heads=63, min_block=16, max_block=127)
# A window of at most 127 tokens touches at most this many pages of the smallest page size.
MAX_PAGE_RUNS = 3

Dim = int | None
Shape = Sequence[Dim]


@dataclass(frozen=True)
class Array:
    """What the contract sees of an array: no data. ``dtype`` is NumPy's name for the type."""

    dtype: str
    shape: tuple[Dim, ...]


# --------------------------------------------------------------------------------------------------
# The error table


@dataclass(frozen=True)
class Row:
    """One row of the error table. ``message`` has one ``{}`` per value, in order."""

    id: str
    error: type[TypeError] | type[RuntimeError]
    argument: str
    message: str


def _rows(*rows: tuple[str, type[TypeError] | type[RuntimeError], str, str]) -> dict[str, Row]:
    return {row[0]: Row(*row) for row in rows}


_BLOCK = "compress_block_size"
_STRIDE = "compress_stride"
_SEQ = "actual_seq_len"
_ARRAY = "must be a NumPy array or a torch tensor, got {}"
_MULTIPLE = f"must be a multiple of {ALIGNMENT}, got {{}}"

# Rows that read alike for both operators.
_DIM_ROWS = (
    ("weight_block", RuntimeError, "weight", f"weight.shape[0] must equal {_BLOCK} = {{}}, got {{}}"),
    ("weight_heads", RuntimeError, "weight", "weight.shape[1] must equal N = {}, got {}"),
    ("head_dim_multiple", RuntimeError, "input", f"input: D {_MULTIPLE}"),
    ("head_dim_max", RuntimeError, "input", f"input: D must be <= {MAX_HEAD_DIM}, got {{}}"),
    ("heads_min", RuntimeError, "input", "input: N must be >= {}, got {}"),
    ("heads_max", RuntimeError, "input", "input: N must be <= {}, got {}"),
    ("block_multiple", RuntimeError, _BLOCK, f"{_BLOCK} {_MULTIPLE}"),
    ("block_range", RuntimeError, _BLOCK, f"{_BLOCK} must be in [{{}}, {{}}], got {{}}"),
    ("stride_multiple", RuntimeError, _STRIDE, f"{_STRIDE} {_MULTIPLE}"),
    ("stride_range", RuntimeError, _STRIDE, f"{_STRIDE} must be in [{{}}, {_BLOCK} = {{}}], got {{}}"),
)

# The 23 rows of mindspore.ops.nsa_compress; their order decides which error wins.
COMPRESS_ROWS = _rows(
    ("input_kind", TypeError, "input", f"input {_ARRAY}"),
    ("weight_kind", TypeError, "weight", f"weight {_ARRAY}"),
    ("weight_dtype", TypeError, "weight", "weight must have the dtype of input, {}, got {}"),
    ("input_dtype", TypeError, "input", f"input must be {' or '.join(DTYPES)}, got {{}}"),
    ("block_kind", TypeError, _BLOCK, f"{_BLOCK} must be an int, got {{}}"),
    ("stride_kind", TypeError, _STRIDE, f"{_STRIDE} must be an int, got {{}}"),
    ("seq_kind", TypeError, _SEQ, f"{_SEQ} must be a tuple or list of ints, got {{}}"),
    ("input_rank", RuntimeError, "input", "input must have rank 3 [T, N, D], got rank {}"),
    ("weight_rank", RuntimeError, "weight", f"weight must have rank 2 [{_BLOCK}, N], got rank {{}}"),
    *_DIM_ROWS,
    ("seq_empty", RuntimeError, _SEQ, f"{_SEQ} must have at least 1 element, got {{}}"),
    ("seq_decreasing", RuntimeError, _SEQ, f"{_SEQ}[{{}}] must be >= the element before it, {{}}, got {{}}"),
    ("seq_positive", RuntimeError, _SEQ, f"{_SEQ}[{{}}] must be >= 1, got {{}}"),
    ("seq_last", RuntimeError, _SEQ, f"{_SEQ}[{{}}], the last element, must equal T = {{}}, got {{}}"),
)

INFER_ROWS = _rows(
    ("input_kind", TypeError, "input", f"input {_ARRAY}"),
    ("weight_kind", TypeError, "weight", f"weight {_ARRAY}"),
    ("slot_kind", TypeError, "slot_mapping", f"slot_mapping {_ARRAY}"),
    ("table_kind", TypeError, "block_table", "block_table must be None, a NumPy array or a torch tensor, got {}"),
    ("cache_kind", TypeError, "cache", f"cache {_ARRAY}"),
    ("weight_dtype", TypeError, "weight", "weight must have the dtype of input, {}, got {}"),
    ("cache_dtype", TypeError, "cache", "cache must have the dtype of input, {}, got {}"),
    ("input_dtype", TypeError, "input", f"input must be {' or '.join(DTYPES)}, got {{}}"),
    ("slot_dtype", TypeError, "slot_mapping", "slot_mapping must be int32, got {}"),
    ("table_dtype", TypeError, "block_table", "block_table must be int32, got {}"),
    ("block_kind", TypeError, _BLOCK, f"{_BLOCK} must be an int, got {{}}"),
    ("stride_kind", TypeError, _STRIDE, f"{_STRIDE} must be an int, got {{}}"),
    ("page_kind", TypeError, "page_block_size", "page_block_size must be an int, got {}"),
    ("seq_kind", TypeError, _SEQ, f"{_SEQ} must be a tuple or list of ints, got {{}}"),
    (
        "input_rank",
        RuntimeError,
        "input",
        "input must have rank 4 [block_num, page_block_size, N, D], got rank {}",
    ),
    ("weight_rank", RuntimeError, "weight", f"weight must have rank 2 [{_BLOCK}, N], got rank {{}}"),
    ("slot_rank", RuntimeError, "slot_mapping", "slot_mapping must have rank 1 [B], got rank {}"),
    ("table_rank", RuntimeError, "block_table", "block_table must have rank 2 [B, max_pages], got rank {}"),
    ("cache_rank", RuntimeError, "cache", "cache must have rank 3 [slots, N, D], got rank {}"),
    *_DIM_ROWS,
    (
        "page_size",
        RuntimeError,
        "page_block_size",
        f"page_block_size must be {' or '.join(map(str, PAGE_BLOCK_SIZES))}, got {{}}",
    ),
    ("input_page", RuntimeError, "input", "input.shape[1] must equal page_block_size = {}, got {}"),
    ("cache_heads", RuntimeError, "cache", "cache.shape[1] must equal N = {}, got {}"),
    ("cache_dim", RuntimeError, "cache", "cache.shape[2] must equal D = {}, got {}"),
    ("seq_count", RuntimeError, _SEQ, f"{_SEQ} must have B = {{}} elements, got {{}}"),
    ("table_batch", RuntimeError, "block_table", "block_table.shape[0] must equal B = {}, got {}"),
    (
        "pages_divide",
        RuntimeError,
        "input",
        "input.shape[0] must be a multiple of B = {} when block_table is absent, got {}",
    ),
    ("seq_range", RuntimeError, _SEQ, f"{_SEQ}[{{}}] must be in [0, {{}}] (pages x page_block_size), got {{}}"),
    ("slot_range", RuntimeError, "slot_mapping", "slot_mapping[{}] must be in [0, {}), got {}"),
    (
        "slot_duplicate",
        RuntimeError,
        "slot_mapping",
        "slot_mapping[{}] must differ from slot_mapping[{}] (both sequences write), got {}",
    ),
    ("table_range", RuntimeError, "block_table", "block_table[{}, {}] must be in [0, {}), got {}"),
)


@dataclass(frozen=True)
class Violation:
    """A row of the table that the input breaks, with the values of its message."""

    row: Row
    values: tuple[object, ...]

    @property
    def message(self) -> str:
        return self.row.message.format(*self.values)

    def throw(self) -> NoReturn:
        raise self.row.error(self.message)


Violations = Iterator[Violation]


def raise_first(violations: Violations) -> None:
    """Raise the first violation: TypeError or RuntimeError, as its row says."""
    for violation in violations:
        violation.throw()


def is_int(value: object) -> bool:
    """An int of the contract: Python's or NumPy's; a bool is none. Symbolic ints of torch count."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    # NumPy and torch are not imported for this question: an object that is one of theirs has done so.
    return any(
        (base.__module__, base.__qualname__) in (("numpy", "integer"), ("torch", "SymInt"))
        for base in type(value).__mro__
    )


def _kind(value: object) -> str:
    return type(value).__name__


def _seq_kind(actual_seq_len: object) -> str | None:
    """None if it is a tuple or list of ints, else what it is."""
    if not isinstance(actual_seq_len, (tuple, list)):
        return _kind(actual_seq_len)
    for index, value in enumerate(actual_seq_len):
        if not is_int(value):
            return f"{_kind(value)} at index {index}"
    return None


def compress_type_violations(
    input: object, weight: object, compress_block_size: object, compress_stride: object, actual_seq_len: object
) -> Violations:
    """Rows 1 to 7. Arrays come as `Array`; anything else in their place is not an array."""
    rows = COMPRESS_ROWS
    if not isinstance(input, Array):
        yield Violation(rows["input_kind"], (_kind(input),))
    if not isinstance(weight, Array):
        yield Violation(rows["weight_kind"], (_kind(weight),))
    if isinstance(input, Array) and isinstance(weight, Array) and weight.dtype != input.dtype:
        yield Violation(rows["weight_dtype"], (input.dtype, weight.dtype))
    if isinstance(input, Array) and input.dtype not in DTYPES:
        yield Violation(rows["input_dtype"], (input.dtype,))
    yield from _window_kind_violations(rows, compress_block_size, compress_stride)
    if (kind := _seq_kind(actual_seq_len)) is not None:
        yield Violation(rows["seq_kind"], (kind,))


def _window_kind_violations(rows: dict[str, Row], block: object, stride: object) -> Violations:
    if not is_int(block):
        yield Violation(rows["block_kind"], (_kind(block),))
    if not is_int(stride):
        yield Violation(rows["stride_kind"], (_kind(stride),))


def compress_shape_violations(
    input_shape: Shape, weight_shape: Shape, compress_block_size: int, compress_stride: int
) -> Violations:
    """Rows 8 to 19."""
    rows = COMPRESS_ROWS
    if len(input_shape) != 3:
        yield Violation(rows["input_rank"], (len(input_shape),))
    if len(weight_shape) != 2:
        yield Violation(rows["weight_rank"], (len(weight_shape),))
    if len(input_shape) == 3 and len(weight_shape) == 2:
        yield from _dim_violations(
            rows, COMPRESS_LIMITS, input_shape[1:], weight_shape, compress_block_size, compress_stride
        )


def _dim_violations(
    rows: dict[str, Row], limits: Limits, heads_and_dim: Shape, weight_shape: Shape, block: int, stride: int
) -> Violations:
    heads, dim = heads_and_dim
    if weight_shape[0] is not None and weight_shape[0] != block:
        yield Violation(rows["weight_block"], (block, weight_shape[0]))
    if weight_shape[1] is not None and heads is not None and weight_shape[1] != heads:
        yield Violation(rows["weight_heads"], (heads, weight_shape[1]))
    if dim is not None and dim % ALIGNMENT:
        yield Violation(rows["head_dim_multiple"], (dim,))
    if dim is not None and dim > MAX_HEAD_DIM:
        yield Violation(rows["head_dim_max"], (dim,))
    if heads is not None and heads < limits.min_heads:
        yield Violation(rows["heads_min"], (limits.min_heads, heads))
    if heads is not None and heads > limits.max_heads:
        yield Violation(rows["heads_max"], (limits.max_heads, heads))
    yield from window_violations(rows, limits, block, stride)


def window_violations(rows: dict[str, Row], limits: Limits, block: int, stride: int) -> Violations:
    """The four rows on compress_block_size and compress_stride alone."""
    if block % ALIGNMENT:
        yield Violation(rows["block_multiple"], (block,))
    if not limits.min_block <= block <= limits.max_block:
        yield Violation(rows["block_range"], (limits.min_block, limits.max_block, block))
    if stride % ALIGNMENT:
        yield Violation(rows["stride_multiple"], (stride,))
    if not ALIGNMENT <= stride <= block:
        yield Violation(rows["stride_range"], (ALIGNMENT, block, stride))


def prefix_sum_violations(actual_seq_len: Sequence[int], tokens: Dim) -> Violations:
    """Rows 20 to 23: prefix sums of the segment lengths, the last one equal to ``tokens``."""
    rows = COMPRESS_ROWS
    if not len(actual_seq_len):
        yield Violation(rows["seq_empty"], (0,))
        return
    for index in range(1, len(actual_seq_len)):
        if actual_seq_len[index] < actual_seq_len[index - 1]:
            yield Violation(rows["seq_decreasing"], (index, actual_seq_len[index - 1], actual_seq_len[index]))
            break
    for index, end in enumerate(actual_seq_len):
        if end < 1:
            yield Violation(rows["seq_positive"], (index, end))
            break
    last = len(actual_seq_len) - 1
    if tokens is not None and actual_seq_len[last] != tokens:
        yield Violation(rows["seq_last"], (last, tokens, actual_seq_len[last]))


def check_compress(
    input: object, weight: object, compress_block_size: int, compress_stride: int, actual_seq_len: Sequence[int]
) -> None:
    """Raise the first of the 23 rows that the call breaks, in the order of the table."""
    raise_first(compress_type_violations(input, weight, compress_block_size, compress_stride, actual_seq_len))
    assert isinstance(input, Array) and isinstance(weight, Array)  # row 1 and 2 have passed
    raise_first(compress_shape_violations(input.shape, weight.shape, compress_block_size, compress_stride))
    raise_first(prefix_sum_violations(actual_seq_len, input.shape[0]))


def infer_type_violations(
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
    """The TypeErrors of nsa_compress_infer. Arrays come as `Array`."""
    rows = INFER_ROWS
    for name, value in (("input", input), ("weight", weight), ("slot", slot_mapping)):
        if not isinstance(value, Array):
            yield Violation(rows[f"{name}_kind"], (_kind(value),))
    if block_table is not None and not isinstance(block_table, Array):
        yield Violation(rows["table_kind"], (_kind(block_table),))
    if not isinstance(cache, Array):
        yield Violation(rows["cache_kind"], (_kind(cache),))
    if isinstance(input, Array):
        for name, value in (("weight", weight), ("cache", cache)):
            if isinstance(value, Array) and value.dtype != input.dtype:
                yield Violation(rows[f"{name}_dtype"], (input.dtype, value.dtype))
        if input.dtype not in DTYPES:
            yield Violation(rows["input_dtype"], (input.dtype,))
    for name, value in (("slot", slot_mapping), ("table", block_table)):
        if isinstance(value, Array) and value.dtype != "int32":
            yield Violation(rows[f"{name}_dtype"], (value.dtype,))
    yield from _window_kind_violations(rows, compress_block_size, compress_stride)
    if not is_int(page_block_size):
        yield Violation(rows["page_kind"], (_kind(page_block_size),))
    if (kind := _seq_kind(actual_seq_len)) is not None:
        yield Violation(rows["seq_kind"], (kind,))


def infer_shape_violations(
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
    """Ranks, limits and dims of nsa_compress_infer. ``sequences`` is the length of actual_seq_len."""
    rows = INFER_ROWS
    ranks = (
        ("input", input_shape, 4),
        ("weight", weight_shape, 2),
        ("slot", slot_shape, 1),
        ("table", table_shape, 2),
        ("cache", cache_shape, 3),
    )
    wrong = [(name, shape) for name, shape, rank in ranks if shape is not None and len(shape) != rank]
    for name, shape in wrong:
        yield Violation(rows[f"{name}_rank"], (len(shape),))
    if wrong:
        return
    block_num, page, heads, dim = input_shape
    (batch,) = slot_shape
    yield from _dim_violations(rows, INFER_LIMITS, (heads, dim), weight_shape, compress_block_size, compress_stride)
    if page_block_size not in PAGE_BLOCK_SIZES:
        yield Violation(rows["page_size"], (page_block_size,))
    equal = (
        ("input_page", page_block_size, page),
        ("cache_heads", heads, cache_shape[1]),
        ("cache_dim", dim, cache_shape[2]),
        ("seq_count", batch, sequences),
        ("table_batch", batch, table_shape[0] if table_shape is not None else None),
    )
    for row, wanted, got in equal:
        if wanted is not None and got is not None and wanted != got:
            yield Violation(rows[row], (wanted, got))
    if table_shape is None and batch and block_num is not None and block_num % batch:
        yield Violation(rows["pages_divide"], (batch, block_num))


def infer_length_violations(actual_seq_len: Sequence[int], longest: int) -> Violations:
    """Lengths of the sequences of nsa_compress_infer; ``longest`` is what their pages can hold, in tokens."""
    for b, length in enumerate(actual_seq_len):
        if not 0 <= length <= longest:
            yield Violation(INFER_ROWS["seq_range"], (b, longest, length))


def infer_index_violations(
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
    """The indices of nsa_compress_infer: all lengths first, then what the writing sequences use.

    ``max_pages`` is ``block_table.shape[1]``, or ``block_num / B`` without a table.
    """
    rows = INFER_ROWS
    wrong_lengths = list(infer_length_violations(actual_seq_len, max_pages * page_block_size))
    yield from wrong_lengths
    if wrong_lengths:
        return
    writer_of: dict[int, int] = {}
    for b, length in enumerate(actual_seq_len):
        if not triggers(length, compress_block_size, compress_stride):
            continue
        slot = int(slot_mapping[b])
        if not 0 <= slot < slots:
            yield Violation(rows["slot_range"], (b, slots, slot))
        elif slot in writer_of:
            yield Violation(rows["slot_duplicate"], (b, writer_of[slot], slot))
        else:
            writer_of[slot] = b
        if block_table is None:
            continue
        first = (length - compress_block_size) // page_block_size
        last = (length - 1) // page_block_size
        for p in range(first, last + 1):
            page = int(block_table[b][p])
            if not 0 <= page < block_num:
                yield Violation(rows["table_range"], (b, p, block_num, page))


# --------------------------------------------------------------------------------------------------
# The vendor's operators
#
# CANN's own NsaCompress and NsaCompressWithCache do less than the contract. Sources: aclnnNsaCompress.md and
# aclnnNsaCompressWithCache.md, and the tiling of both operators (ops-transformer, late 2025). ort_ext/cann/aclnn.cc
# works around what it can (the second kind below) and refuses the rest (the first).

VENDOR_MAX_DECODE_BLOCK = 64
VENDOR_MAX_ODD_HEADS = 50
VENDOR_MAX_ELEMENTS = 2**32 - 1
# The tiling refuses more than 2048, and leaves out its end mark when 2048 sequences compress.
VENDOR_MAX_BATCH = 2047

VENDOR_ROWS = _rows(
    # What the operators cannot do, called in whatever way.
    (
        "vendor_block",
        RuntimeError,
        _BLOCK,
        f"{_BLOCK} must be <= {VENDOR_MAX_DECODE_BLOCK} for the vendor's decode operator, got {{}}",
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
        _SEQ,
        f"T' must be >= 1 for the vendor's operator, got 0: no segment of {_SEQ} has {_BLOCK} = {{}} tokens",
    ),
    ("vendor_batch_min", RuntimeError, _SEQ, f"{_SEQ} must have >= 1 elements for the vendor's operator, got {{}}"),
    (
        "vendor_batch_max",
        RuntimeError,
        _SEQ,
        f"{_SEQ} must have <= {VENDOR_MAX_BATCH} elements for the vendor's decode operator, got {{}}",
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
    if not compress_plan(actual_seq_len, compress_block_size, compress_stride):
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


# --------------------------------------------------------------------------------------------------
# Lengths and plans


def window_count(length: int, compress_block_size: int, compress_stride: int) -> int:
    """Windows of one segment: ``max(0, 1 + floor((length - block) / stride))``."""
    return max(0, 1 + (length - compress_block_size) // compress_stride)


def compressed_length(actual_seq_len: Sequence[int], compress_block_size: int, compress_stride: int) -> int:
    """T', the number of output rows of NsaCompress.

    Args:
        actual_seq_len: prefix sums of the segment lengths, in tokens.
        compress_block_size: window length, in tokens.
        compress_stride: distance of two windows' starts, in tokens.

    Raises:
        TypeError, RuntimeError: as `nsa_onnx.nsa_compress`, for these three arguments.

    >>> compressed_length([40, 60], 32, 16)  # segments of 40 and 20 tokens: one window, none
    1
    """
    rows = COMPRESS_ROWS
    raise_first(_window_kind_violations(rows, compress_block_size, compress_stride))
    if (kind := _seq_kind(actual_seq_len)) is not None:
        Violation(rows["seq_kind"], (kind,)).throw()
    raise_first(window_violations(rows, COMPRESS_LIMITS, compress_block_size, compress_stride))
    raise_first(prefix_sum_violations(actual_seq_len, None))
    return sum(run.rows for run in compress_plan(actual_seq_len, compress_block_size, compress_stride))


@dataclass(frozen=True)
class RowRun:
    """Output rows ``first_row .. first_row + rows - 1`` read windows from ``first_token`` on, stride apart."""

    first_row: int
    rows: int
    first_token: int


def compress_plan(actual_seq_len: Sequence[int], compress_block_size: int, compress_stride: int) -> list[RowRun]:
    """The row ranges of NsaCompress, one per segment that yields a window. Lengths must be checked."""
    plan: list[RowRun] = []
    row = start = 0
    for end in actual_seq_len:
        rows = window_count(end - start, compress_block_size, compress_stride)
        if rows:
            plan.append(RowRun(row, rows, start))
            row += rows
        start = end
    return plan


def triggers(length: int, compress_block_size: int, compress_stride: int) -> bool:
    """Whether a sequence of ``length`` tokens completes a window in this decode step."""
    return length >= compress_block_size and (length - compress_block_size) % compress_stride == 0


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


def infer_plan(
    slot_mapping: Sequence[int],
    block_table: Sequence[Sequence[int]] | None,
    actual_seq_len: Sequence[int],
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    max_pages: int,
) -> list[SlotWrite]:
    """What one decode step reads and writes. Indices must be checked (`infer_index_violations`)."""
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
