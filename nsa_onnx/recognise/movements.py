"""The ONNX operators that move elements, or change their type and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
from onnx import AttributeProto, TensorProto

from .call import Call, Numbers, Scalar, Value
from .integers import constant_arrays, folded, numbers_of
from .positions import Dynamic, Integers, Positions, RefusalError, bounded, dense, normal_axis
from .precision import EXACT, INTEGERS, SHORT, rounded_to
from .products import noting_double
from .terms import INDEX, MAX_RANK, Terms, concat, expand, insert_axes, remove_axes, reshape, take, transpose

# No slice ends beyond this by accident: exporters write INT_MAX for "to the end".
_TO_THE_END = 2**31 - 1


def _cast(call: Call) -> Value:
    value, to = call.input(0), call.integer("to", 0)
    if isinstance(value, Scalar):
        return _cast_scalar(value, to)
    if not isinstance(value, Terms):
        if to not in INTEGERS or value is None:
            raise RefusalError("a Cast of integers")
        return value
    if INDEX in value.factors:
        if to not in INTEGERS:
            raise RefusalError("a Cast of integers")
        return value
    if not value.is_computed:
        if to not in EXACT.get(value.origin, ()):
            raise RefusalError("a Cast before the product that loses bits")
        return replace(value, dtype=to)
    if to not in EXACT:
        raise RefusalError("a Cast of the result to another kind of type")
    if value.rounded and to in SHORT and to != value.origin:
        raise RefusalError("the result is rounded to two types")
    result = replace(value, dtype=to, rounded=value.rounded or to in SHORT)
    return replace(result, origin=to) if to in SHORT else noting_double(result)


def _cast_scalar(scalar: Scalar, to: int) -> Scalar:
    """A constant in another type, rounded if it has to be."""
    if to not in EXACT or scalar.value is None:
        raise RefusalError("a Cast of a constant to another kind of type")
    number = float(rounded_to(np.array([float(scalar.value)]), to)[0])
    return Scalar(Fraction(number) if math.isfinite(number) else None, to, scalar.rank)


def _identity(call: Call) -> Value:
    value = call.input(0)
    if value is None:
        raise RefusalError("a missing input")
    return value


def _movement(
    on_terms: Callable[[Call, Terms], Terms], on_numbers: Callable[[Call, Numbers], Value] | None = None
) -> Callable[[Call], Value]:
    """An operator that moves elements: of tensors, and of integers, for which it is the same."""

    def move(call: Call) -> Value:
        value = call.input(0)
        if isinstance(value, Terms):
            return on_terms(call, value)
        if isinstance(value, Numbers):
            if on_numbers is None:
                raise RefusalError(f"{call.node.op_type} of a computed shape")
            return on_numbers(call, value)
        if value is None or isinstance(value, Scalar):
            raise RefusalError("a missing input")
        # Constants: move their numbers, then read them from where they came to lie.
        flat = value.reshape(-1)
        moved = on_terms(
            call, Terms(value.shape, {INDEX: _row_major(value.shape)}, TensorProto.INT64, TensorProto.INT64)
        )
        places = dense(moved.factors[INDEX])
        return np.asarray(flat[places]) if places.size else places

    return move


def _row_major(shape: Sequence[int]) -> Positions:
    step, axes = 1, []
    for dim in reversed(shape):
        axes.append(np.arange(dim, dtype=np.int64) * step)
        step *= dim
    return Positions(0, tuple(reversed(axes)))


def _transpose(call: Call, terms: Terms) -> Terms:
    perm = call.integers("perm")
    return transpose(terms, list(reversed(range(len(terms.shape)))) if perm is None else perm)


def _reshape(call: Call, terms: Terms) -> Terms:
    target = call.dims(1)
    if target is None:
        raise RefusalError("Reshape without a shape")
    if not call.flag("allowzero"):
        for k, dim in enumerate(target):
            if dim == 0:
                target[k] = terms.shape[normal_axis(k, len(terms.shape))]
    return reshape(terms, target)


def _flatten(call: Call, terms: Terms) -> Terms:
    shape = terms.static_shape()
    axis = call.integer("axis", 1)
    axis = axis if axis == len(shape) else normal_axis(axis, len(shape))
    return reshape(terms, [math.prod(shape[:axis]), math.prod(shape[axis:])])


def _unsqueeze(call: Call, terms: Terms) -> Terms:
    axes = call.constants(1, "axes")
    if axes is None:
        raise RefusalError("Unsqueeze without axes")
    return insert_axes(terms, axes)


def _squeeze(call: Call, terms: Terms) -> Terms:
    return remove_axes(terms, call.constants(1, "axes"))


def _expand(call: Call, terms: Terms) -> Terms:
    shape = call.dims(1)
    if shape is None or len(shape) > MAX_RANK:
        raise RefusalError("Expand without a shape")
    return expand(terms, shape)


def _tile(call: Call, terms: Terms) -> Terms:
    repeats = call.constants(1, "")
    if repeats is None or len(repeats) != len(terms.shape) or any(count < 0 for count in repeats):
        raise RefusalError("Tile without repeats")
    for axis, count in enumerate(repeats):
        if count != 1:
            dim = terms.shape[axis]
            if isinstance(dim, Dynamic):
                raise RefusalError("Tile along the dim of unknown length")
            bounded(dim * count)
            terms = take(terms, axis, np.tile(np.arange(dim, dtype=np.int64), count))
    return terms


def _slice(call: Call, terms: Terms) -> Terms:
    if call.input(1) is not None:
        starts, ends, axes, steps = call.dims(1), call.dims(2), call.constants(3, ""), call.constants(4, "")
    else:
        old_starts, old_ends = call.integers("starts"), call.integers("ends")
        starts = None if old_starts is None else list(old_starts)
        ends = None if old_ends is None else list(old_ends)
        axes, steps = call.integers("axes"), None
    if starts is None or ends is None:
        raise RefusalError("Slice without bounds")
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise RefusalError("Slice with bounds that do not fit")
    for start, end, place, step in zip(starts, ends, axes, steps, strict=True):
        axis = normal_axis(place, len(terms.shape))
        dim = terms.shape[axis]
        whole = start == 0 and step == 1
        if whole and (end == dim or (not isinstance(end, Dynamic) and end >= _TO_THE_END)):
            continue
        if isinstance(dim, Dynamic) or isinstance(start, Dynamic) or isinstance(end, Dynamic) or step == 0:
            raise RefusalError("a Slice that depends on the number of tokens")
        first, last, by = slice(start, end, step).indices(dim)
        terms = take(terms, axis, np.arange(first, last, by, dtype=np.int64))
    return terms


def _gather(call: Call, terms: Terms) -> Terms:
    return take(terms, call.integer("axis", 0), _indices(call.input(1)))


def _indices(value: Value | None) -> Integers | Positions:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Terms) and set(value.factors) == {INDEX}:
        return value.factors[INDEX]
    raise RefusalError("a Gather whose indices are not constant")


def _gather_numbers(call: Call, numbers: Numbers) -> Value:
    index = call.input(1)
    if not isinstance(index, np.ndarray) or index.ndim > 1 or index.size > 64 or numbers.scalar:
        raise RefusalError("a Gather from a shape that is not followed")
    places = [normal_axis(int(place), len(numbers.values)) for place in index.reshape(-1)]
    return folded([numbers.values[place] for place in places], index.ndim == 0)


def _slice_numbers(call: Call, numbers: Numbers) -> Value:
    starts, ends, axes, steps = (
        call.constants(1, ""),
        call.constants(2, ""),
        call.constants(3, ""),
        call.constants(4, ""),
    )
    if (
        starts is None
        or ends is None
        or len(starts) != 1
        or len(ends) != 1
        or axes not in (None, [0])
        or numbers.scalar
    ):
        raise RefusalError("a Slice of a shape that is not followed")
    step = 1 if steps is None else steps[0]
    if step == 0:
        raise RefusalError("a Slice of a shape that is not followed")
    return folded(numbers.values[starts[0] : ends[0] : step], False)


def _squeeze_numbers(call: Call, numbers: Numbers) -> Value:
    if len(numbers.values) != 1:
        raise RefusalError("Squeeze of a shape with several dims")
    return Numbers(numbers.values, True)


def _pad(call: Call, terms: Terms) -> Terms:
    pads = call.constants(1, "pads")
    if pads is None or any(pads):
        raise RefusalError("Pad adds tokens")
    return terms


def _gather_nd(call: Call) -> Value:
    terms, index = call.terms(), call.input(1)
    if call.integer("batch_dims", 0):
        raise RefusalError("GatherND over a batch")
    if isinstance(index, np.ndarray) and index.ndim and index.shape[-1] == 1:
        return take(terms, 0, index[..., 0])
    if isinstance(index, Terms) and set(index.factors) == {INDEX} and index.shape and index.shape[-1] == 1:
        return take(terms, 0, remove_axes(index, [-1]).factors[INDEX])
    raise RefusalError("GatherND along more than one axis")


def _concat(call: Call) -> Value:
    axis_attribute = call.attribute("axis", AttributeProto.INT)
    if axis_attribute is None or not call.inputs:
        raise RefusalError("Concat without an axis")
    if any(isinstance(value, Terms) for value in call.inputs):
        return concat([call.terms(k) for k in range(len(call.inputs))], int(axis_attribute.i))
    if any(isinstance(value, Numbers) for value in call.inputs):
        parts = [numbers_of(value) for value in call.inputs]
        if any(part.scalar for part in parts):
            raise RefusalError("Concat of scalars")
        return folded([value for part in parts for value in part.values], False)
    arrays = constant_arrays(call)
    bounded(sum(array.size for array in arrays))
    try:
        return np.concatenate(arrays, axis=int(axis_attribute.i))
    except ValueError as error:
        raise RefusalError("Concat of unlike shapes") from error


def split(call: Call) -> list[Value]:
    """Split: one value per output."""
    terms = call.terms()
    axis = normal_axis(call.integer("axis", 0), len(terms.shape))
    dim = terms.shape[axis]
    if isinstance(dim, Dynamic):
        raise RefusalError("Split along the dim of unknown length")
    parts = len(call.node.output)
    sizes = call.constants(1, "split")
    if sizes is None:
        each = -(-dim // parts)
        sizes = [min(each, max(0, dim - each * k)) for k in range(parts)]
    if len(sizes) != parts or sum(sizes) != dim or any(size < 0 for size in sizes):
        raise RefusalError("Split into parts that do not fit")
    ends = np.cumsum(sizes)
    return [
        take(terms, axis, np.arange(end - size, end, dtype=np.int64)) for size, end in zip(sizes, ends, strict=True)
    ]


MOVEMENTS: dict[str, Callable[[Call], Value]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Expand": _movement(_expand),
    "Flatten": _movement(_flatten),
    "Gather": _movement(_gather, _gather_numbers),
    "GatherND": _gather_nd,
    "Identity": _identity,
    "Pad": _movement(_pad),
    "Reshape": _movement(_reshape),
    "Slice": _movement(_slice, _slice_numbers),
    "Squeeze": _movement(_squeeze, _squeeze_numbers),
    "Tile": _movement(_tile),
    "Transpose": _movement(_transpose),
    "Unsqueeze": _movement(_unsqueeze, lambda call, numbers: Numbers(numbers.values, False)),
}
"""Operators that move elements or change their type. Their first input is the data; Concat's are all."""
