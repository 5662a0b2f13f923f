"""Windows of tokens: what the two compressions have in common. Needs the standard library only.

T', the number of windows (`window_count`), and the condition on which a step over a cache writes (`triggers`) are
written here and, in Python, nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .contract import DTYPES, Array, Rows, Shape, Violation, Violations, is_int, kind, table, wrong_sequence
from .hints import HINTS

ALIGNMENT = 16  # of D, compress_block_size and compress_stride
MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class WindowLimits:
    """Bounds (inclusive) in which the two compressions differ."""

    min_heads: int
    max_heads: int
    min_block: int
    max_block: int


BLOCK = "compress_block_size"
STRIDE = "compress_stride"
SEQ = "actual_seq_len"
ARRAY = "must be a NumPy array or a torch tensor, got {}"
_MULTIPLE = f"must be a multiple of {ALIGNMENT}, got {{}}"

# --------------------------------------------------------------------------------------------------
# Rows that read alike for both, and their checks

INPUT_DTYPE_ROW = ("input_dtype", TypeError, "input", f"input must be {' or '.join(DTYPES)}, got {{}}", "NSA006")
WINDOW_KIND_ROWS = (
    ("block_kind", TypeError, BLOCK, f"{BLOCK} must be an int, got {{}}", "NSA005"),
    ("stride_kind", TypeError, STRIDE, f"{STRIDE} must be an int, got {{}}", "NSA005"),
)
SEQ_KIND_ROW = ("seq_kind", TypeError, SEQ, f"{SEQ} must be a tuple or list of ints, got {{}}", "NSA006")
# Of lengths in a tensor, which an eager call does not take.
TENSOR_ROWS = table(
    ("seq_dtype", TypeError, SEQ, f"{SEQ} must be int64, got {{}}", "NSA006"),
    ("seq_rank", RuntimeError, SEQ, f"{SEQ} must have rank 1 [B], got rank {{}}", "NSA007"),
)
WEIGHT_RANK_ROW = (
    "weight_rank",
    RuntimeError,
    "weight",
    f"weight must have rank 2 [{BLOCK}, N], got rank {{}}",
    "NSA007",
)
DIM_ROWS = (
    ("weight_block", RuntimeError, "weight", f"weight.shape[0] must equal {BLOCK} = {{}}, got {{}}", "NSA008"),
    ("weight_heads", RuntimeError, "weight", "weight.shape[1] must equal N = {}, got {}", "NSA008"),
    ("head_dim_multiple", RuntimeError, "input", f"input: D {_MULTIPLE}", "NSA009"),
    ("head_dim_max", RuntimeError, "input", f"input: D must be <= {MAX_HEAD_DIM}, got {{}}", "NSA009"),
    ("heads_min", RuntimeError, "input", "input: N must be >= {}, got {}", "NSA010"),
    ("heads_max", RuntimeError, "input", "input: N must be <= {}, got {}", "NSA010"),
    ("block_multiple", RuntimeError, BLOCK, f"{BLOCK} {_MULTIPLE}", "NSA011"),
    ("block_range", RuntimeError, BLOCK, f"{BLOCK} must be in [{{}}, {{}}], got {{}}", "NSA011"),
    ("stride_multiple", RuntimeError, STRIDE, f"{STRIDE} {_MULTIPLE}", "NSA011"),
    ("stride_range", RuntimeError, STRIDE, f"{STRIDE} must be in [{{}}, {BLOCK} = {{}}], got {{}}", "NSA011"),
)


def input_dtype_violations(rows: Rows, input: Array) -> Violations:
    """The row on the one type of the floating-point inputs."""
    if input.dtype not in DTYPES:
        wider = input.dtype in ("float32", "float64")
        yield Violation(rows["input_dtype"], (input.dtype,), HINTS["cast_float"] if wider else None)


def window_kind_violations(rows: Rows, block: object, stride: object) -> Violations:
    """The rows that say which kind of argument block and stride are."""
    if not is_int(block):
        yield Violation(rows["block_kind"], (kind(block),))
    if not is_int(stride):
        yield Violation(rows["stride_kind"], (kind(stride),))


def seq_kind_violations(rows: Rows, actual_seq_len: object) -> Violations:
    """The row that says which kind of argument the lengths are."""
    wrong = wrong_sequence(actual_seq_len)
    if wrong is None:
        return
    given = actual_seq_len
    if isinstance(given, (tuple, list)):
        given = next(element for element in given if not is_int(element))
    integers = "int" in str(getattr(given, "dtype", ""))  # NumPy's or torch's
    yield Violation(rows["seq_kind"], (wrong,), HINTS["list_of_ints"] if integers else None)


def length_tensor_violations(rows: Rows, name: str, dtype: str | None, rank: int | None) -> Violations:
    """The rows on lengths in a tensor: of a node, or of an exporter's call. Their ids begin with ``name``."""
    if dtype not in (None, "int64"):
        yield Violation(rows[f"{name}_dtype"], (dtype,), HINTS["cast_int64"] if dtype == "int32" else None)
    if rank not in (None, 1):
        yield Violation(rows[f"{name}_rank"], (rank,))


def seq_tensor_violations(dtype: str | None, rank: int | None) -> Violations:
    """`length_tensor_violations` of actual_seq_len."""
    yield from length_tensor_violations(TENSOR_ROWS, "seq", dtype, rank)


def dim_violations(
    rows: Rows, limits: WindowLimits, heads_and_dim: Shape, weight_shape: Shape, block: int, stride: int
) -> Violations:
    """The rows on N, D, weight, block and stride, for shapes of the right rank."""
    heads, dim = heads_and_dim
    if weight_shape[0] is not None and weight_shape[0] != block:
        transposed = heads is not None and tuple(weight_shape) == (heads, block)
        yield Violation(rows["weight_block"], (block, weight_shape[0]), HINTS["transpose"] if transposed else None)
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


def window_violations(rows: Rows, limits: WindowLimits, block: int, stride: int) -> Violations:
    """The four rows on compress_block_size and compress_stride alone."""
    if block % ALIGNMENT:
        yield Violation(rows["block_multiple"], (block,))
    if not limits.min_block <= block <= limits.max_block:
        yield Violation(rows["block_range"], (limits.min_block, limits.max_block, block))
    if stride % ALIGNMENT:
        yield Violation(rows["stride_multiple"], (stride,))
    if not ALIGNMENT <= stride <= block:
        yield Violation(rows["stride_range"], (ALIGNMENT, block, stride))


# --------------------------------------------------------------------------------------------------
# T' and the trigger


def window_count(
    length: Any, compress_block_size: Any, compress_stride: Any, maximum: Callable[[Any, int], Any] = max
) -> Any:
    """Windows of one segment: ``max(0, 1 + floor((length - block) / stride))``.

    With ``maximum=numpy.maximum``, of many segments at once; with torch.sym_max, for symbolic sizes.
    """
    return maximum(length - compress_block_size + compress_stride, 0) // compress_stride


def triggers(length: Any, compress_block_size: int, compress_stride: int) -> Any:
    """Whether a sequence of ``length`` tokens completes a window in this step. Lengths may be an array."""
    return (length >= compress_block_size) & ((length - compress_block_size) % compress_stride == 0)


@dataclass(frozen=True)
class RowRun:
    """Output rows ``first_row .. first_row + rows - 1`` read windows from ``first_token`` on, stride apart."""

    first_row: int
    rows: int
    first_token: int


def row_plan(ends: Sequence[int], compress_block_size: int, compress_stride: int) -> list[RowRun]:
    """The row ranges of a prefill, one per segment that yields a window. ``ends`` are checked prefix sums."""
    plan: list[RowRun] = []
    row = start = 0
    for end in ends:
        rows = window_count(end - start, compress_block_size, compress_stride)
        if rows:
            plan.append(RowRun(row, rows, start))
            row += rows
        start = end
    return plan
