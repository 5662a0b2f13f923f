"""The ONNX operators that the proof follows, each on `Terms`, on constant integers, and on shapes.

What is not here, or not in the way it is here, raises `RefusalError`: the proof then stops, the graph stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto

from ..schema import integer_values
from .terms import (
    INDEX,
    MAX_RANK,
    Dim,
    Dynamic,
    Integers,
    Positions,
    RefusalError,
    Steps,
    Terms,
    W,
    X,
    bounded,
    concat,
    contract,
    dense,
    expand,
    insert_axes,
    normal_axis,
    positions,
    remove_axes,
    reshape,
    separated,
    stretched,
    sum_over,
    take,
    transpose,
)

FLOAT, HALF, BFLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
INTEGERS = (TensorProto.INT64, TensorProto.INT32)
SHORT: dict[int, str] = {HALF: "float16", BFLOAT16: "bfloat16"}
# Types that hold every value of a type, itself included.
_EXACT: Mapping[int, tuple[int, ...]] = {
    HALF: (HALF, FLOAT, DOUBLE),
    BFLOAT16: (BFLOAT16, FLOAT, DOUBLE),
    FLOAT: (FLOAT, DOUBLE),
    DOUBLE: (DOUBLE,),
}
# No slice ends beyond this by accident: exporters write INT_MAX for "to the end".
_TO_THE_END = 2**31 - 1


@dataclass(frozen=True)
class Numbers:
    """A few integers, some of which may depend on the number of tokens T; ``Dynamic(b)`` stands for T - b."""

    values: tuple[Dim, ...]
    scalar: bool = False


Value = Terms | Integers | Numbers


class Call:
    """One node and the values of its inputs; a missing optional input is None."""

    def __init__(self, node: NodeProto, inputs: Sequence[Value | None]):
        self.node = node
        self.inputs = inputs
        self._attributes = {attribute.name: attribute for attribute in node.attribute}

    def attribute(self, name: str, kind: int) -> AttributeProto | None:
        """An attribute of the kind that the operator has; a wrong one means whatever a runtime makes of it."""
        found = self._attributes.get(name)
        if found is not None and (found.ref_attr_name or found.type != kind):
            raise RefusalError(f"attribute {name} of {self.node.op_type} is not of the operator's kind")
        return found

    def integer(self, name: str, default: int) -> int:
        found = self.attribute(name, AttributeProto.INT)
        return default if found is None else int(found.i)

    def flag(self, name: str, default: int = 0) -> bool:
        value = self.integer(name, default)
        if value not in (0, 1):
            raise RefusalError(f"attribute {name} of {self.node.op_type} is neither 0 nor 1")
        return value == 1

    def integers(self, name: str) -> list[int] | None:
        found = self.attribute(name, AttributeProto.INTS)
        return None if found is None else list(found.ints)

    def input(self, index: int) -> Value | None:
        return self.inputs[index] if index < len(self.inputs) else None

    def terms(self, index: int = 0) -> Terms:
        value = self.input(index)
        if isinstance(value, Terms):
            return value
        raise RefusalError(f"{self.node.op_type}: input {index} is no tensor that is followed")

    def dims(self, index: int) -> list[Dim] | None:
        """A small integer input; None if it is absent."""
        value = self.input(index)
        if value is None:
            return None
        if isinstance(value, Numbers):
            return list(value.values)
        if isinstance(value, np.ndarray) and value.size <= 64:
            return [int(number) for number in value.reshape(-1)]
        raise RefusalError(f"{self.node.op_type}: input {index} is not constant")

    def constants(self, index: int, name: str) -> list[int] | None:
        """Integers that are an input in newer opsets and an attribute in older ones."""
        dims = self.dims(index)
        if dims is None:
            return self.integers(name)
        if any(isinstance(dim, Dynamic) for dim in dims):
            raise RefusalError(f"{self.node.op_type}: input {index} is not constant")
        return [dim for dim in dims if not isinstance(dim, Dynamic)]


# --------------------------------------------------------------------------------------------------
# Integers: constants are folded, shapes may hold T


def _as_terms(value: Value) -> Terms:
    """Integers as a tensor whose positions are the integers themselves."""
    if isinstance(value, Terms):
        return value
    if isinstance(value, Numbers):
        raise RefusalError("a computed shape used as indices")
    return Terms(tuple(value.shape), {INDEX: separated(value)}, TensorProto.INT64, TensorProto.INT64)


def _numbers(value: Value | None) -> Numbers:
    if isinstance(value, Numbers):
        return value
    if isinstance(value, np.ndarray) and value.ndim <= 1 and value.size <= 64:
        return Numbers(tuple(int(number) for number in value.reshape(-1)), value.ndim == 0)
    raise RefusalError("integers that are not followed")


def _folded(values: Sequence[Dim], scalar: bool) -> Value:
    if any(isinstance(value, Dynamic) for value in values):
        return Numbers(tuple(values), scalar)
    array = np.array(values, np.int64)
    return array.reshape(()) if scalar else array


def _add_numbers(first: Dim, second: Dim, sign: int) -> Dim:
    if sign > 0 and isinstance(second, Dynamic):
        first, second = second, first
    if isinstance(second, Dynamic):
        raise RefusalError("arithmetic on the number of tokens that is not followed")
    if not isinstance(first, Dynamic):
        return _checked(first + sign * second)
    if first.step != 1:
        raise RefusalError("arithmetic on the number of tokens that is not followed")
    return Dynamic(_checked(first.offset - sign * second))


def _checked(number: int) -> int:
    if abs(number) >= 2**62:
        raise RefusalError("integers that overflow")
    return number


def _sum(sign: int) -> Callable[[Call], Value]:
    def add(call: Call) -> Value:
        first, second = call.inputs
        if first is None or second is None:
            raise RefusalError("a missing input")
        if isinstance(first, Numbers) or isinstance(second, Numbers):
            a, b = _numbers(first), _numbers(second)
            if len(a.values) != 1 or len(b.values) != 1:
                raise RefusalError("arithmetic on shapes that is not followed")
            return _folded([_add_numbers(a.values[0], b.values[0], sign)], a.scalar and b.scalar)
        if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
            return _broadcast(lambda a, b: a + sign * b, first, second)
        return _add_indices(_as_terms(first), _as_terms(second), sign)

    return add


def _add_indices(first: Terms, second: Terms, sign: int) -> Terms:
    if sign < 0 or set(first.factors) != {INDEX} or set(second.factors) != {INDEX}:
        raise RefusalError("a sum of two tensors")
    rank = max(len(first.shape), len(second.shape))
    first, second = (insert_axes(t, range(rank - len(t.shape))) for t in (first, second))
    shape = [b if a == 1 else a for a, b in zip(first.shape, second.shape, strict=True)]
    axes: list[Integers | Steps] = []
    lines = (first.factors[INDEX].axes, second.factors[INDEX].axes)
    for mine, other, dim in zip(*lines, shape, strict=True):
        a, b = stretched(mine, dim), stretched(other, dim)
        if isinstance(a, Steps) and isinstance(b, Steps):
            axes.append(Steps(a.step + b.step, a.length))
        elif isinstance(a, Steps) or isinstance(b, Steps):
            raise RefusalError("shapes that do not broadcast")
        else:
            axes.append(a + b)
    base = first.factors[INDEX].base + second.factors[INDEX].base
    return replace(first, shape=tuple(shape), factors={INDEX: positions(base, axes)})


def _broadcast(function: Callable[..., Integers], *arrays: Integers) -> Integers:
    try:
        bounded(math.prod(np.broadcast_shapes(*(array.shape for array in arrays))))
    except ValueError as error:
        raise RefusalError("shapes that do not broadcast") from error
    if any(array.size and max(abs(int(array.max())), abs(int(array.min()))) >= 2**31 for array in arrays):
        raise RefusalError("integers that may overflow")
    return np.asarray(function(*arrays)).astype(np.int64)


def _where(condition: Integers, first: Integers, second: Integers) -> Integers:
    return np.asarray(np.where(condition != 0, first, second), np.int64)


def _constant_arrays(call: Call) -> list[Integers]:
    arrays = [value for value in call.inputs if isinstance(value, np.ndarray)]
    if len(arrays) != len(call.inputs):
        raise RefusalError(f"{call.node.op_type} of integers that are not constant")
    return arrays


def _range(call: Call) -> Value:
    if len(call.inputs) != 3:
        raise RefusalError("Range needs three inputs")
    start, limit, step = (_numbers(value).values for value in call.inputs)
    if not len(start) == len(limit) == len(step) == 1:
        raise RefusalError("Range of what is no number")
    first, end, delta = start[0], limit[0], step[0]
    if isinstance(first, Dynamic) or isinstance(delta, Dynamic) or delta == 0:
        raise RefusalError("a Range that is not followed")
    if isinstance(end, Dynamic):
        if delta < 1 or end.step != 1:
            raise RefusalError("a Range that is not followed")
        axis = Steps(delta, Dynamic(_checked(end.offset + first), delta))
        return Terms((axis.length,), {INDEX: Positions(first, (axis,))}, TensorProto.INT64, TensorProto.INT64)
    bounded(len(range(first, end, delta)))
    return np.arange(first, end, delta, dtype=np.int64)


def _shape(call: Call) -> Value:
    shape: Sequence[Dim] = call.terms().shape
    if any(isinstance(dim, Dynamic) and dim != Dynamic() for dim in shape):
        raise RefusalError("the Shape of windows of unknown number")
    end = call.attribute("end", AttributeProto.INT)
    return _folded(list(shape)[call.integer("start", 0) : None if end is None else int(end.i)], False)


def _constant_of_shape(call: Call) -> Value:
    dims = call.constants(0, "")
    value = call.attribute("value", AttributeProto.TENSOR)
    if dims is None or len(dims) > MAX_RANK or any(dim < 0 for dim in dims):
        raise RefusalError("ConstantOfShape that is not followed")
    fill = 0
    if value is not None:
        numbers = integer_values(value.t)
        if numbers is None or numbers.size != 1:
            raise RefusalError("ConstantOfShape of no integers")
        fill = int(numbers.reshape(-1)[0])
    bounded(math.prod(dims))
    return np.full(dims, fill, np.int64)


# --------------------------------------------------------------------------------------------------
# Data movement


def _cast(call: Call) -> Value:
    value, to = call.input(0), call.integer("to", 0)
    if not isinstance(value, Terms):
        if to not in INTEGERS or value is None:
            raise RefusalError("a Cast of integers")
        return value
    if INDEX in value.factors:
        if to not in INTEGERS:
            raise RefusalError("a Cast of integers")
        return value
    if not value.is_product:
        if to not in _EXACT.get(value.origin, ()):
            raise RefusalError("a Cast before the product that loses bits")
        return replace(value, dtype=to)
    if to not in _EXACT:
        raise RefusalError("a Cast of the result to another kind of type")
    if value.rounded and to in SHORT and to != value.origin:
        raise RefusalError("the result is rounded to two types")
    result = replace(value, dtype=to, rounded=value.rounded or to in SHORT)
    return replace(result, origin=to) if to in SHORT else _noting_double(result)


def _noting_double(terms: Terms) -> Terms:
    if terms.dtype != DOUBLE:
        return terms
    return replace(terms, inexact=terms.inexact or "it is computed in float64, not in float32")


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
        if value is None:
            raise RefusalError("a missing input")
        # Constants: move their numbers, then read them from where they came to lie.
        flat = value.reshape(-1)
        moved = on_terms(
            call, Terms(value.shape, {INDEX: _row_major(value.shape)}, TensorProto.INT64, TensorProto.INT64)
        )
        places = dense(moved.factors[INDEX])
        return flat[places] if places.size else places

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
    return _folded([numbers.values[place] for place in places], index.ndim == 0)


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
    return _folded(numbers.values[starts[0] : ends[0] : step], False)


def _squeeze_numbers(call: Call, numbers: Numbers) -> Value:
    if len(numbers.values) != 1:
        raise RefusalError("Squeeze of a shape with several dims")
    return Numbers(numbers.values, True)


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
        parts = [_numbers(value) for value in call.inputs]
        if any(part.scalar for part in parts):
            raise RefusalError("Concat of scalars")
        return _folded([value for part in parts for value in part.values], False)
    arrays = _constant_arrays(call)
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


# --------------------------------------------------------------------------------------------------
# Products and sums


def _finished(terms: Terms) -> Terms:
    """After one operator's arithmetic: what its element type has done to the numbers."""
    if terms.dtype not in _EXACT:
        raise RefusalError("a product of another kind of type")
    # One operator rounds once, at its end, also if it sums: how it accumulates the standard leaves open.
    return _noting_double(replace(terms, rounded=terms.dtype in SHORT, origin=terms.dtype))


def _mul(call: Call) -> Value:
    if len(call.inputs) == 2 and all(isinstance(value, np.ndarray) for value in call.inputs):
        return _broadcast(lambda a, b: a * b, *_constant_arrays(call))
    first, second = call.terms(0), call.terms(1)
    rank = max(len(first.shape), len(second.shape))
    if rank > MAX_RANK:
        raise RefusalError("too many axes")
    labels = [str(k) for k in range(rank)]
    product = contract(first, labels[rank - len(first.shape) :], second, labels[rank - len(second.shape) :], labels)
    return _finished(product)


def _reduce_sum(call: Call) -> Value:
    terms = call.terms()
    axes = call.constants(1, "axes")
    if not axes:
        if call.flag("noop_with_empty_axes"):
            return terms
        axes = list(range(len(terms.shape)))
    if terms.rounded and terms.is_product:
        kind = SHORT.get(terms.origin, "16 bits")
        note = f"products or partial sums are rounded to {kind} before they are summed"
        terms = replace(terms, inexact=terms.inexact or note)
    result = sum_over(terms, axes, call.flag("keepdims", 1))
    return replace(result, rounded=True) if result.dtype in SHORT else result


def _einsum(call: Call) -> Value:
    equation = call.attribute("equation", AttributeProto.STRING)
    text = "" if equation is None else equation.s.decode("ascii", "replace").replace(" ", "")
    left, arrow, out = text.partition("->")
    operands = left.split(",")
    if not arrow or len(operands) != 2 or len(call.inputs) != 2 or not (left.replace(",", "") + out).isalpha():
        raise RefusalError(f"Einsum of a kind that is not followed: {text[:40]!r}")
    first, second = call.terms(0), call.terms(1)
    lengths_fit = len(operands[0]) == len(first.shape) and len(operands[1]) == len(second.shape)
    if not lengths_fit or len(set(out)) != len(out) or not set(out) <= set(left):
        raise RefusalError("Einsum whose equation does not fit")
    return _finished(contract(first, operands[0], second, operands[1], out))


def _matmul(call: Call) -> Value:
    first, second = call.terms(0), call.terms(1)
    a, b = len(first.shape), len(second.shape)
    if not a or not b or max(a, b) > MAX_RANK:
        raise RefusalError("MatMul of what is no matrix")
    batch = [str(k) for k in range(max(a, b, 2) - 2)]
    rows, columns = (["row"] if a > 1 else []), (["column"] if b > 1 else [])
    mine = [*batch[len(batch) - max(a - 2, 0) :], *rows, "k"]
    theirs = [*batch[len(batch) - max(b - 2, 0) :], "k", *columns]
    return _finished(contract(first, mine, second, theirs, [*batch, *rows, *columns]))


def _conv(call: Call) -> Value:
    x, w = call.terms(0), call.terms(1)
    if X not in x.factors or W not in w.factors or len(x.shape) != len(w.shape) or len(x.shape) < 3:
        raise RefusalError("Conv of another kind")
    if call.input(2) is not None or len([name for name in call.node.input if name]) > 2:
        raise RefusalError("Conv adds a bias")
    auto_pad = call.attribute("auto_pad", AttributeProto.STRING)
    if any(call.integers("pads") or []) or (auto_pad is not None and auto_pad.s not in (b"NOTSET", b"VALID")):
        raise RefusalError("Conv pads the sequence")
    space = len(x.shape) - 2
    kernel = w.static_shape()
    strides = call.integers("strides") or [1] * space
    dilations = call.integers("dilations") or [1] * space
    group = call.integer("group", 1)
    channels = x.shape[1]
    if isinstance(channels, Dynamic) or group < 1 or kernel[0] % group or channels != kernel[1] * group:
        raise RefusalError("Conv whose groups do not fit")
    if len(strides) != space or len(dilations) != space or min(*strides, *dilations) < 1:
        raise RefusalError("Conv whose attributes do not fit")
    for k in reversed(range(space)):
        x = take(x, 2 + k, _windows(x.shape[2 + k], kernel[2 + k], strides[k], dilations[k]))
    bounded(kernel[0] * kernel[1])
    outputs = np.arange(kernel[0], dtype=np.int64)[:, None]
    x = take(x, 1, outputs // (kernel[0] // group) * kernel[1] + np.arange(kernel[1], dtype=np.int64))
    places, offsets = [f"i{k}" for k in range(space)], [f"j{k}" for k in range(space)]
    labels = ["b", "o", "c", *(name for pair in zip(places, offsets, strict=True) for name in pair)]
    return _finished(contract(x, labels, w, ["o", "c", *offsets], ["b", "o", *places]))


def _windows(length: Dim, kernel: int, stride: int, dilation: int) -> Integers | Positions:
    """Where each output place and kernel element of a Conv reads along one axis."""
    if max(kernel, stride, dilation) >= 2**31 or kernel < 1:
        raise RefusalError("Conv whose attributes do not fit")
    reach = dilation * (kernel - 1)
    bounded(kernel)
    offsets = np.arange(kernel, dtype=np.int64) * dilation
    if isinstance(length, Dynamic):
        if length.step != 1:
            raise RefusalError("Conv over windows")
        return Positions(0, (Steps(stride, Dynamic(length.offset + reach, stride)), offsets))
    count = (length - reach - 1) // stride + 1
    if count < 1:
        raise RefusalError("Conv of a sequence that is shorter than the kernel")
    bounded(count * kernel)
    return np.arange(count, dtype=np.int64)[:, None] * stride + offsets


Evaluate = Callable[[Call], Value]

MOVEMENTS: dict[str, Evaluate] = {
    "Cast": _cast,
    "Concat": _concat,
    "Expand": _movement(_expand),
    "Flatten": _movement(_flatten),
    "Gather": _movement(_gather, _gather_numbers),
    "GatherND": _gather_nd,
    "Identity": _identity,
    "Reshape": _movement(_reshape),
    "Slice": _movement(_slice, _slice_numbers),
    "Squeeze": _movement(_squeeze, _squeeze_numbers),
    "Tile": _movement(_tile),
    "Transpose": _movement(_transpose),
    "Unsqueeze": _movement(_unsqueeze, lambda call, numbers: Numbers(numbers.values, False)),
}
"""Operators that move elements or change their type. Their first input is the data; Concat's are all."""

PRODUCTS: dict[str, Evaluate] = {"Conv": _conv, "Einsum": _einsum, "MatMul": _matmul, "Mul": _mul}
"""Operators that can multiply x and w; the first three also sum."""

SUMS: dict[str, Evaluate] = {"ReduceSum": _reduce_sum}

_INTEGER_OPERATORS: dict[str, Evaluate] = {
    "Add": _sum(1),
    "ConstantOfShape": _constant_of_shape,
    "Equal": lambda call: _broadcast(np.equal, *_constant_arrays(call)),
    "Range": _range,
    "Shape": _shape,
    "Sub": _sum(-1),
    "Where": lambda call: _broadcast(_where, *_constant_arrays(call)),
}

OPERATORS: dict[str, Evaluate] = {**MOVEMENTS, **PRODUCTS, **SUMS, **_INTEGER_OPERATORS}
"""All that the proof follows, beside Split, which has several outputs (`split`)."""
