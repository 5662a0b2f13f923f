"""The ONNX operators on integers that lead to indices and shapes: constants are computed, shapes may hold T."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from onnx import AttributeProto, TensorProto

from ..graph.tensors import integer_values
from .call import Call, Numbers, Scalar, Value
from .positions import (
    Dim,
    Dynamic,
    Integers,
    Positions,
    RefusalError,
    Steps,
    bounded,
    parts_of,
    positions,
    separated,
    stretched,
)
from .terms import INDEX, MAX_RANK, Terms, insert_axes


def _as_terms(value: Value) -> Terms:
    """Integers as a tensor whose positions are the integers themselves."""
    if isinstance(value, Terms):
        return value
    if isinstance(value, Numbers | Scalar):
        raise RefusalError("a computed shape used as indices")
    return Terms(tuple(value.shape), {INDEX: separated(value)}, TensorProto.INT64, TensorProto.INT64)


def numbers_of(value: Value | None) -> Numbers:
    if isinstance(value, Numbers):
        return value
    if isinstance(value, np.ndarray) and value.ndim <= 1 and value.size <= 64:
        return Numbers(tuple(int(number) for number in value.reshape(-1)), value.ndim == 0)
    raise RefusalError("integers that are not followed")


def folded(values: Sequence[Dim], scalar: bool) -> Value:
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


def add_integers(call: Call, sign: int) -> Value:
    """Add (``sign`` 1) or Sub (-1) of integers."""
    first, second = call.inputs
    if first is None or second is None or isinstance(first, Scalar) or isinstance(second, Scalar):
        raise RefusalError("a missing input")
    if isinstance(first, Numbers) or isinstance(second, Numbers):
        a, b = numbers_of(first), numbers_of(second)
        if len(a.values) != 1 or len(b.values) != 1:
            raise RefusalError("arithmetic on shapes that is not followed")
        return folded([_add_numbers(a.values[0], b.values[0], sign)], a.scalar and b.scalar)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return _broadcast(lambda a, b: a + sign * b, first, second)
    return _add_indices(_as_terms(first), _as_terms(second), sign)


def multiply_integers(call: Call) -> Value:
    """Mul of integers."""
    return _broadcast(lambda a, b: a * b, *constant_arrays(call))


def divide_integers(call: Call) -> Value:
    """Div of integers, or of the number of tokens."""
    if isinstance(call.input(0), Numbers):
        return _divide_tokens(numbers_of(call.input(0)), numbers_of(call.input(1)))
    first, second = constant_arrays(call)
    if (first < 0).any() or (second <= 0).any():
        raise RefusalError("a division of negative integers, or by 0")
    return _broadcast(lambda a, b: a // b, first, second)


def _divide_tokens(tokens: Numbers, length: Numbers) -> Value:
    divisor = length.values[0] if len(length.values) == 1 else 0
    if tokens.values != (Dynamic(),) or isinstance(divisor, Dynamic) or divisor < 1:
        raise RefusalError("arithmetic on the number of tokens that is not followed")
    return Numbers((parts_of(divisor) if divisor > 1 else Dynamic(),), tokens.scalar and length.scalar)


def _non_zero(call: Call) -> Value:
    (array,) = constant_arrays(call)
    bounded(array.size * max(1, array.ndim))
    return np.array(np.nonzero(array), np.int64)


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
    _check_small(*arrays)
    return np.asarray(function(*arrays)).astype(np.int64)


def _where(condition: Integers, first: Integers, second: Integers) -> Integers:
    return np.asarray(np.where(condition != 0, first, second), np.int64)


def constant_arrays(call: Call) -> list[Integers]:
    arrays = [value for value in call.inputs if isinstance(value, np.ndarray)]
    if len(arrays) != len(call.inputs):
        raise RefusalError(f"{call.node.op_type} of integers that are not constant")
    return arrays


def _range(call: Call) -> Value:
    if len(call.inputs) != 3:
        raise RefusalError("Range needs three inputs")
    start, limit, step = (numbers_of(value).values for value in call.inputs)
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
    return folded(list(shape)[call.integer("start", 0) : None if end is None else int(end.i)], False)


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


def _cumulative_sum(call: Call) -> Value:
    array, axis = constant_arrays(call)
    plain = not call.flag("exclusive") and not call.flag("reverse") and array.ndim == 1
    if not plain or axis.size != 1 or axis.item() not in (0, -1):
        raise RefusalError("a CumSum that is not followed")
    _check_small(array)
    return np.asarray(np.cumsum(array), np.int64)


def _scatter_elements(call: Call) -> Value:
    data, indices, updates = constant_arrays(call)
    reduction = call.attribute("reduction", AttributeProto.STRING)
    if data.ndim != 1 or call.integer("axis", 0) != 0 or reduction is None or reduction.s != b"add":
        raise RefusalError("a ScatterElements that is not followed")
    if indices.shape != updates.shape or (indices.size and not 0 <= indices.min() <= indices.max() < len(data)):
        raise RefusalError("an index is out of the axis")
    _check_small(data, updates)
    result: Integers = data.copy()
    np.add.at(result, indices, updates)
    return result


def _check_small(*arrays: Integers) -> None:
    """Raise unless sums and products of the integers fit into 64 bits."""
    if any(array.size and max(abs(int(array.max())), abs(int(array.min()))) >= 2**31 for array in arrays):
        raise RefusalError("integers that may overflow")


FOLDS: dict[str, Callable[[Call], Value]] = {
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumulative_sum,
    "Equal": lambda call: _broadcast(np.equal, *constant_arrays(call)),
    "NonZero": _non_zero,
    "Range": _range,
    "ScatterElements": _scatter_elements,
    "Shape": _shape,
    "Where": lambda call: _broadcast(_where, *constant_arrays(call)),
}
"""Operators that are followed on integers alone."""
