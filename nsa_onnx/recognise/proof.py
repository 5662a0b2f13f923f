"""Decides whether a followed sum is the compression: with which segments, window and weight; if not, why not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..graph.tensors import TensorFacts
from ..operators.facts import NodeFacts
from ..operators.windows import ALIGNMENT, BLOCK, MAX_HEAD_DIM, STRIDE
from .arithmetic import DENSE
from .positions import Axis, Dim, Dynamic, Integers, RefusalError, Steps, axis_length, bounded, merge
from .precision import FLOAT, SHORT, representable, type_name
from .results import Compression, Root, Roots, UnprovenError
from .segments import segments_of
from .terms import BIAS, LEAST_SUMMED, Terms, W, X, transpose
from .wanted import LIMITS, WINDOWS

# A weight as numbers, in float32 or in its own type, flat; None if they are not known.
WeightValues = Callable[[], npt.NDArray[np.generic] | None]

NOT_CONSECUTIVE = "what is summed over is not consecutive tokens of the input, each once"


def prove(terms: Terms, roots: Roots, values: WeightValues) -> Compression:
    """The compression that a value is.

    Args:
        terms: the value's sums.
        roots: what they are made of.
        values: the weight's numbers, asked for only when positions alone do not prove it.

    Raises:
        UnprovenError: it is none, or not for certain.
    """
    try:
        return _prove(terms, roots, values)
    except RefusalError as refusal:
        raise UnprovenError(str(refusal)) from refusal


def _prove(terms: Terms, roots: Roots, values: WeightValues) -> Compression:
    if X not in terms.factors or not terms.summed:
        raise UnprovenError("no sum of tokens")
    with _stage(1):
        _check_dense(terms)
    sums, order = _window(terms)
    block, token = len(sums), int(sums[1] - sums[0])
    with _stage(1):
        layout = _layout(terms, token)
        if roots.w is None:
            _check_pooling(roots.x, token, block)
    with _stage(2):
        base = terms.factors[X].base + int(sums[0])
        if base % token:
            raise UnprovenError("windows do not start at a token", X)
        lead, _ = layout.axes(X)
        stride, lengths, count = segments_of(lead, base // token, token, roots.x, block)
    with _stage(3):
        heads, dim, places = _heads(layout, token, order, values)
        bias = _bias_places(layout, order, heads, dim)
    with _stage(4):
        _check_contract(roots, terms.scale, (block, stride, heads, dim), lengths, count, values)
        notes = (terms.inexact, _weight_rounding(roots, terms.scale, values), _result_rounding(terms, roots.x))
    return Compression(
        roots=roots,
        block=block,
        stride=stride,
        heads=heads,
        dim=dim,
        lengths=lengths,
        weight_places=places,
        scale=terms.scale,
        bias_places=bias,
        shape=terms.shape if layout.order is None else layout.terms.shape,
        order=layout.order,
        dtype=terms.dtype,
        inexact=next((note for note in notes if note), ""),
        operator=WINDOWS,
    )


@contextmanager
def _stage(stage: int) -> Iterator[None]:
    try:
        yield
    except UnprovenError as error:
        error.stage = stage
        raise


# --------------------------------------------------------------------------------------------------
# Windows


def _check_dense(terms: Terms) -> None:
    """No axis of the result comes from the weight alone, as the columns of a matrix do."""
    if W not in terms.factors:
        return
    for mine, theirs in zip(terms.axes_of(X)[0], terms.axes_of(W)[0], strict=True):
        if not _moves(mine) and _moves(theirs):
            raise UnprovenError(DENSE)


def _moves(axis: Axis) -> bool:
    return bool(axis.step) if isinstance(axis, Steps) else bool(axis.any())


def _window(terms: Terms) -> tuple[Integers, Integers]:
    """Where the tokens of a window are (from the first on, consecutive), and the order of the summed axes."""
    _, over = terms.axes_of(X)
    sums = merge(over)
    order = np.argsort(sums, kind="stable")
    sums = sums[order]
    if len(sums) < 2 or not sums[-1] > sums[0]:
        raise UnprovenError("no sum over tokens")
    step = int(sums[1] - sums[0])
    if step == 0 or not np.array_equal(sums - sums[0], np.arange(len(sums), dtype=np.int64) * step):
        raise UnprovenError(NOT_CONSECUTIVE, X)
    return sums, order


@dataclass(frozen=True)
class _Layout:
    """Terms whose first axes lead from window to window, and whose last ones lead through a token.

    Attributes:
        lead: number of the first ones.
        order: where each axis of the value is in ``terms``; None if only axes of length 1 have moved.
    """

    terms: Terms
    lead: int
    order: tuple[int, ...] | None

    def axes(self, role: str) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
        """The root's axes: between windows, inside a token."""
        axes, _ = self.terms.axes_of(role)
        return axes[: self.lead], axes[self.lead :]


def _layout(terms: Terms, token: int) -> _Layout:
    """Find the axes that lead through the heads and channels of one token: together, all of its elements in order."""
    axes, _ = terms.axes_of(X)
    inner: dict[int, Integers] = {
        k: axis
        for k, axis in enumerate(axes)
        if not isinstance(axis, Steps) and len(axis) > 1 and np.abs(axis).max() < token
    }
    order = sorted(inner, key=lambda k: abs(int(inner[k][1] - inner[k][0])))
    size = 1
    for k in order:
        if not np.array_equal(inner[k], np.arange(len(inner[k]), dtype=np.int64) * size):
            what = "channel" if abs(int(inner[k][1] - inner[k][0])) == 1 else "head"
            raise UnprovenError(f"a {what} of the result is not made from the same {what} of the input", X)
        size *= len(inner[k])
    if size != token:
        raise UnprovenError(NOT_CONSECUTIVE, X)
    outer = [k for k in range(len(axes)) if k not in inner]
    permutation = [*outer, *reversed(order)]
    wide = [k for k in permutation if axis_length(axes[k]) != 1]
    places = tuple(permutation.index(k) for k in range(len(axes))) if wide != sorted(wide) else None
    return _Layout(transpose(terms, permutation), len(outer), places)


def _check_pooling(x: Root, token: int, block: int) -> None:
    """Tokens that all count the same are in windows only if a sequence has several: a mean of it all is none."""
    if token < ALIGNMENT or block < LEAST_SUMMED:
        raise UnprovenError("what is averaged is not windows of tokens, the channels innermost")
    size = 1
    for dim in reversed(x.shape):
        if size == token:
            if dim == block:
                raise UnprovenError("it is the mean of a whole axis, not of windows")
            return
        size *= 1 if isinstance(dim, Dynamic) else dim


# --------------------------------------------------------------------------------------------------
# Heads, weight, bias


def _heads(layout: _Layout, token: int, order: Integers, values: WeightValues) -> tuple[int, int, Integers | None]:
    """Heads, channels of each, and [block, N]: where each weight is, the same for all windows and a head's channels.

    Heads are those of the value's shape. Where it has none, or the node cannot take them, any will do whose channels
    have one weight.
    """
    _, inner = layout.axes(X)
    lengths = [len(axis) for axis in inner if not isinstance(axis, Steps)]
    own = (math.prod(lengths[:-1]), lengths[-1]) if lengths else (1, 1)
    choices = [own, *(choice for choice in _splits(token) if choice != own)]
    fitting = [choice for choice in choices if choice in _splits(token)]
    refused: UnprovenError | None = None
    for heads, dim in fitting or [own]:
        try:
            return heads, dim, _weight_places(layout, order, heads, dim, values)
        except UnprovenError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _splits(token: int) -> list[tuple[int, int]]:
    """Heads and channels that the contract allows for tokens of this many elements, the fewest heads first."""
    dims = range(MAX_HEAD_DIM, 0, -ALIGNMENT)
    return [
        (token // dim, dim) for dim in dims if token % dim == 0 and LIMITS.min_heads <= token // dim <= LIMITS.max_heads
    ]


def _weight_places(layout: _Layout, order: Integers, heads: int, dim: int, values: WeightValues) -> Integers | None:
    if W not in layout.terms.factors:
        return None
    rows, columns = _inside_windows(layout, W, order, "the weight")
    by_channel = columns.reshape(heads, dim)
    places = rows[:, None] + by_channel[:, 0]
    if (by_channel != by_channel[:, :1]).any():
        numbers = values()
        if numbers is None:
            raise UnprovenError("the weight depends on the channel: its numbers are not constants of the file", W)
        bounded(len(rows) * by_channel.size)
        bits = numbers.view(np.uint8).reshape(len(numbers), -1)
        repeated = bits[rows[:, None, None] + by_channel]
        if not np.array_equal(repeated, np.broadcast_to(repeated[:, :, :1], repeated.shape)):
            raise UnprovenError("the weight differs between channels of one head", W)
    return places


def _bias_places(layout: _Layout, order: Integers, heads: int, dim: int) -> Integers | None:
    """[block, N, D]: where each element of the bias is, the same for all windows."""
    if BIAS not in layout.terms.factors:
        return None
    rows, columns = _inside_windows(layout, BIAS, order, "the position bias")
    bounded(len(rows) * len(columns))
    return rows[:, None, None] + columns.reshape(heads, dim)


def _inside_windows(layout: _Layout, role: str, order: Integers, what: str) -> tuple[Integers, Integers]:
    """Where a root's elements are, by token of a window and by element of a token; the same for all windows."""
    lead, inner = layout.axes(role)
    if any(_moves(axis) for axis in lead):
        raise UnprovenError(f"{what} depends on the window", role if role == W else "")
    factor = layout.terms.factors[role]
    _, over = layout.terms.axes_of(role)
    return merge(over)[order] + factor.base, merge(inner)


# --------------------------------------------------------------------------------------------------
# The contract, and rounding


def _check_contract(
    roots: Roots,
    scale: Fraction,
    sizes: tuple[int, int, int, int],
    lengths: tuple[int, ...] | None,
    count: Dim,
    values: WeightValues,
) -> None:
    block, stride, heads, dim = sizes
    x, w = roots.x, roots.w
    dtype = x.dtype
    if w is not None and w.dtype != x.dtype:
        fits = x.dtype in SHORT and any(_fits(x.dtype, factor, values) for factor in (scale, Fraction(1)))
        dtype = x.dtype if fits else w.dtype
    tokens, weight, seq = WINDOWS.input_names
    inputs = {
        tokens: TensorFacts(type_name(x.dtype), (None if isinstance(count, Dynamic) else count, heads, dim)),
        weight: TensorFacts(type_name(dtype), (block, heads)),
        seq: TensorFacts(),
    }
    constants = {} if lengths is None else {seq: np.array(lengths, np.int64)}
    facts = NodeFacts(WINDOWS.op_type, {BLOCK: block, STRIDE: stride}, inputs, constants)
    found = next(WINDOWS.violations(facts), None)
    if found is not None:
        raise UnprovenError(found.message, W if found.row.argument == weight else "")


def scaled_weight(numbers: npt.NDArray[np.generic], scale: Fraction) -> npt.NDArray[np.generic]:
    """A weight's numbers times the scale, before they are rounded."""
    return numbers if scale == 1 else numbers.astype(np.float64) * float(scale)


def _fits(dtype: int, scale: Fraction, values: WeightValues) -> bool:
    """Whether each constant weight, scaled, is a value of the 16-bit type."""
    numbers = values()
    return numbers is not None and representable(scaled_weight(numbers, scale), dtype)


def _weight_rounding(roots: Roots, scale: Fraction, values: WeightValues) -> str:
    """What happens to the weight when it is scaled, if it is not exact."""
    name = type_name(roots.x.dtype)
    if roots.w is None:
        exact = representable(np.array([float(scale)]), roots.x.dtype)
        return "" if exact else f"the weight {scale} is not a {name} value and is rounded"
    if scale == 1 or _fits(roots.x.dtype, scale, values):
        return ""
    if values() is None:
        return f"the weight is no constant of the file, and times {scale} it may have to be rounded to {name}"
    return f"the weight times {scale} is not made of {name} values and is rounded"


def _result_rounding(terms: Terms, x: Root) -> str:
    """What happens to a result of another precision.

    Raises:
        UnprovenError: it is of another type.
    """
    if terms.dtype == x.dtype and terms.rounded:
        return ""
    text = f"the result stays in {type_name(terms.dtype)}, {WINDOWS.op_type} rounds it to {type_name(x.dtype)}"
    if terms.dtype != FLOAT:
        raise UnprovenError(text)
    return text
