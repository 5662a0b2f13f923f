"""Whether followed products are NsaCompress: which segments, which window, which weight, and if not, why not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx.helper

from .. import spec
from .operators import DOUBLE, FLOAT, HALF, SHORT
from .terms import Axis, Dim, Dynamic, Integers, RefusalError, Steps, Terms, W, X, bounded, merge

# A weight as numbers, in float32 or in its own type, flat; None if they are not known.
WeightValues = Callable[[], npt.NDArray[np.generic] | None]


class UnprovenError(Exception):
    """Why the products are not the compression.

    Attributes:
        side: X or W if it is about that root: another one may do.
        stage: how much had been proven: 0 nothing, 1 the window, 2 heads and channels, 3 the segments, 4 the weight,
            5 the contract.
    """

    def __init__(self, reason: str, side: str = "", stage: int = 0):
        super().__init__(reason)
        self.side = side
        self.stage = stage


@dataclass(frozen=True)
class Root:
    """A tensor of the graph that the products take their elements from: its name, shape and ONNX element type."""

    name: str
    shape: tuple[Dim, ...]
    dtype: int


@dataclass(frozen=True)
class Compression:
    """What NsaCompress has to be given to compute the value.

    Attributes:
        lengths: prefix sums; None for one segment of unknown length.
        weight_places: ``[block, N]``: where in the weight root, row-major, each element is.
        output_shape: of the value, [T', N, D] or more axes in place of T'.
    """

    x: Root
    w: Root
    block: int
    stride: int
    heads: int
    dim: int
    lengths: tuple[int, ...] | None
    weight_places: Integers
    output_shape: tuple[Dim, ...]
    dtype: int


def prove(terms: Terms, x: Root, w: Root, values: WeightValues, *, allow_rounding: bool) -> Compression:
    """The compression that a value is.

    Args:
        terms: the value's products.
        x: the tokens.
        w: the weight.
        values: the weight's numbers, asked for only when positions alone do not prove it.
        allow_rounding: accept arithmetic that rounds otherwise than the operator does.

    Raises:
        UnprovenError: it is none, or not for certain.
    """
    try:
        return _prove(terms, x, w, values, allow_rounding)
    except RefusalError as refusal:
        raise UnprovenError(str(refusal)) from refusal


def _prove(terms: Terms, x: Root, w: Root, values: WeightValues, allow_rounding: bool) -> Compression:
    if not terms.is_product or not terms.summed or len(terms.shape) < 3:
        raise UnprovenError("no sum of products [windows, heads, channels]")
    heads, dim = terms.shape[-2:]
    if isinstance(heads, Dynamic) or isinstance(dim, Dynamic) or 0 in (heads, dim):
        raise UnprovenError("the number of heads or channels is not known")
    token = heads * dim
    sums, order = _window(terms, token)
    block = len(sums)
    with _stage(1):
        _check_heads(terms, heads, dim)
    with _stage(2):
        lead, _ = terms.axes_of(X)
        base = terms.factors[X].base + int(sums[0])
        if base % token:
            raise UnprovenError("windows do not start at a token", X)
        stride, lengths, tokens = _segments(lead[:-2], base // token, token, x, block)
    with _stage(3):
        places = _weight_places(terms, order, values)
    with _stage(4):
        _check_contract(x, w, terms, (block, stride, heads, dim), lengths, tokens, values)
    if terms.inexact and not allow_rounding:
        raise UnprovenError(f"{terms.inexact}: --allow-rounding accepts that", stage=5)
    return Compression(x, w, block, stride, heads, dim, lengths, places, terms.shape, x.dtype)


@contextmanager
def _stage(stage: int) -> Iterator[None]:
    try:
        yield
    except UnprovenError as error:
        error.stage = stage
        raise


def _window(terms: Terms, token: int) -> tuple[Integers, Integers]:
    """Where the tokens of a window are (from the first on, consecutive), and the order of the summed axes."""
    _, over = terms.axes_of(X)
    sums = merge(over)
    order = np.argsort(sums, kind="stable")
    sums = sums[order]
    if len(sums) < 2 or not sums[-1] > sums[0]:
        raise UnprovenError("no sum over tokens")
    if not np.array_equal(sums - sums[0], np.arange(len(sums), dtype=np.int64) * token):
        raise UnprovenError("what is summed over is not consecutive tokens of the input, each once", X)
    return sums, order


def _check_heads(terms: Terms, heads: int, dim: int) -> None:
    """Each head and channel comes from itself, whatever the window."""
    axes, _ = terms.axes_of(X)
    for axis, count, step, name in ((axes[-1], dim, 1, "channel"), (axes[-2], heads, dim, "head")):
        if isinstance(axis, Steps) or not np.array_equal(axis, np.arange(count, dtype=np.int64) * step):
            raise UnprovenError(f"a {name} of the result is not made from the same {name} of the input", X)


def _weight_places(terms: Terms, order: Integers, values: WeightValues) -> Integers:
    """[block, N]: where each weight is; the same for all windows, and for all channels of a head."""
    axes, over = terms.axes_of(W)
    for axis in axes[:-2]:
        if axis.step if isinstance(axis, Steps) else axis.any():
            raise UnprovenError("the weight depends on the window", W)
    by_channel, by_head = axes[-1], axes[-2]
    if isinstance(by_channel, Steps) or isinstance(by_head, Steps):
        raise UnprovenError("the number of heads or channels is not known", W)
    rows = merge(over)[order] + terms.factors[W].base
    places = rows[:, None] + by_head
    if by_channel.any():
        numbers = values()
        if numbers is None:
            raise UnprovenError("the weight depends on the channel: its numbers are not constants of the file", W)
        bounded(places.size * len(by_channel))
        bits = numbers.view(np.uint8).reshape(len(numbers), -1)
        repeated = bits[places[:, :, None] + by_channel]
        if not np.array_equal(repeated, np.broadcast_to(repeated[:, :, :1], repeated.shape)):
            raise UnprovenError("the weight differs between channels of one head", W)
    return places


# --------------------------------------------------------------------------------------------------
# Segments


def _segments(
    lead: Sequence[Axis], first: int, token: int, x: Root, block: int
) -> tuple[int, tuple[int, ...] | None, Dim]:
    """Stride, prefix sums and T from where the windows start."""
    moving = [axis for axis in lead if isinstance(axis, Steps) or len(axis) != 1]
    if any(isinstance(axis, Steps) for axis in moving):
        (axis,) = moving if len(moving) == 1 else (None,)
        if not isinstance(axis, Steps) or axis.step % token or axis.step < token or first:
            raise UnprovenError("windows of unknown number that do not start at 0, one stride apart", X)
        stride = axis.step // token
        if axis.length != Dynamic(block - 1, stride):
            raise UnprovenError("the number of windows is not that of the sequence's length", X)
        return stride, None, Dynamic()
    if any(isinstance(dim, Dynamic) for dim in x.shape):
        raise UnprovenError("the number of windows is fixed, that of the tokens is not", X)
    size = math.prod(dim for dim in x.shape if not isinstance(dim, Dynamic))
    if size % token:
        raise UnprovenError("the input does not hold whole tokens of this many heads and channels", X)
    starts = merge(lead)
    if (starts % token).any():
        raise UnprovenError("windows do not start at a token", X)
    at: list[int] = (starts // token + first).tolist()
    stride, lengths = segments(at, size // token, block)
    return stride, lengths, size // token


def segments(starts: Sequence[int], tokens: int, block: int) -> tuple[int, tuple[int, ...]]:
    """Stride and prefix sums that give just these windows, in this order.

    Args:
        starts: first token of each window.
        tokens: T.
        block: tokens in a window.

    Raises:
        UnprovenError: there are none within the contract.
    """
    if not starts:
        raise UnprovenError("no windows: any stride would do", X)
    steps = np.diff(np.array(starts, np.int64))
    if (steps <= 0).any():
        raise UnprovenError("windows are not in the order of the tokens", X)
    legal = range(spec.ALIGNMENT, block + 1, spec.ALIGNMENT)
    smallest = int(steps.min()) if len(steps) else 0
    if len(steps) > 1 and (steps == smallest).all() and smallest not in legal:
        violation = next(spec.window_violations(spec.COMPRESS_ROWS, spec.COMPRESS_LIMITS, block, smallest))
        raise UnprovenError(violation.message)
    found: list[tuple[int, int, tuple[int, ...]]] = []
    for stride in legal:
        lengths = _prefix_sums(starts, tokens, block, stride)
        if lengths is None:
            continue
        plan = spec.compress_plan(lengths, block, stride)  # the contract has the last word
        if [run.first_token + k * stride for run in plan for k in range(run.rows)] == list(starts):
            found.append((len(lengths), stride, lengths))
    if found:
        _, stride, lengths = min(found)
        return stride, lengths
    block_violation = next(
        spec.window_violations(spec.COMPRESS_ROWS, spec.COMPRESS_LIMITS, block, spec.ALIGNMENT), None
    )
    if block_violation is not None:
        raise UnprovenError(block_violation.message)
    raise UnprovenError(
        "no segments give these windows (they overlap between segments, or leave out tokens that fill a window)", X
    )


def _prefix_sums(starts: Sequence[int], tokens: int, block: int, stride: int) -> tuple[int, ...] | None:
    """Segments' ends, greedily: one per run of windows, and one per gap, which must be too short for a window."""
    ends: list[int] = []
    last = 0

    def close(gap_end: int) -> bool:
        nonlocal last
        if not 0 <= gap_end - last < block:
            return False
        if gap_end > last:
            ends.append(gap_end)
        last = gap_end
        return True

    index = 0
    while index < len(starts):
        if not close(starts[index]):
            return None
        count = 1
        while index + count < len(starts) and starts[index + count] - starts[index + count - 1] == stride:
            count += 1
        following = starts[index + count] if index + count < len(starts) else tokens
        longest = starts[index] + count * stride + block - 1  # one token more would fill another window
        last = min(following, longest)
        if last < starts[index] + (count - 1) * stride + block:
            return None
        ends.append(last)
        index += count
    return tuple(ends) if close(tokens) else None


# --------------------------------------------------------------------------------------------------
# The contract


def _check_contract(
    x: Root,
    w: Root,
    terms: Terms,
    sizes: tuple[int, int, int, int],
    lengths: tuple[int, ...] | None,
    tokens: Dim,
    values: WeightValues,
) -> None:
    block, stride, heads, dim = sizes
    tokens_array = spec.Array(_name(x.dtype), (None if isinstance(tokens, Dynamic) else tokens, heads, dim))
    weight_dtype = w.dtype
    if w.dtype != x.dtype and x.dtype in SHORT and _representable(values, x.dtype):
        weight_dtype = x.dtype
    weight = spec.Array(_name(weight_dtype), (block, heads))
    found = [
        *spec.compress_type_violations(tokens_array, weight, block, stride, lengths or ()),
        *spec.compress_shape_violations(tokens_array.shape, weight.shape, block, stride),
        *(spec.prefix_sum_violations(lengths, tokens_array.shape[0]) if lengths is not None else ()),
    ]
    if found:
        raise UnprovenError(found[0].message, W if found[0].row.argument == "weight" else "")
    if terms.dtype != x.dtype or not terms.rounded:
        raise UnprovenError(f"the result stays in {_name(terms.dtype)}, NsaCompress rounds it to {_name(x.dtype)}")


def _name(dtype: int) -> str:
    known: dict[int, str] = {FLOAT: "float32", DOUBLE: "float64", **SHORT}
    return known.get(dtype, f"element type {dtype}")


def _representable(values: WeightValues, dtype: int) -> bool:
    """Whether each constant weight is a value of the 16-bit type."""
    numbers = values()
    return numbers is not None and np.array_equal(numbers, numbers.astype(numpy_type(dtype)).astype(numbers.dtype))


def numpy_type(dtype: int) -> npt.DTypeLike:
    if dtype == HALF:
        return np.float16
    return onnx.helper.tensor_dtype_to_np_dtype(dtype)
