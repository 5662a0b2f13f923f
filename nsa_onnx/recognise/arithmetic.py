"""The ONNX operators that multiply tokens by weights, and those that sum or average them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
from onnx import AttributeProto

from .call import Call, Numbers, Scalar, Value
from .integers import add_integers, divide_integers, multiply_integers
from .loops import WINDOW_LOOP
from .positions import Dim, Dynamic, Integers, Positions, RefusalError, Steps, bounded, normal_axis, static
from .precision import EXACT, FLOAT
from .products import add_bias, contract, finished, multiplied, scaled, sum_over
from .terms import INDEX, MAX_RANK, Terms, W, X, insert_axes, take

DENSE = "a dense projection over the window, not one weight per token and head"


def _mul(call: Call) -> Value:
    if len(call.inputs) == 2 and all(isinstance(value, np.ndarray) for value in call.inputs):
        return multiply_integers(call)
    for constant, other in ((0, 1), (1, 0)):
        scalar = call.input(constant)
        if isinstance(scalar, Scalar):
            return multiplied(_beside(call.terms(other), scalar), _finite(scalar))
    first, second = call.terms(0), call.terms(1)
    rank = max(len(first.shape), len(second.shape))
    if rank > MAX_RANK:
        raise RefusalError("too many axes")
    labels = [str(k) for k in range(rank)]
    product = contract(first, labels[rank - len(first.shape) :], second, labels[rank - len(second.shape) :], labels)
    return finished(product)


def _div(call: Call) -> Value:
    if len(call.inputs) == 2 and all(isinstance(value, np.ndarray | Numbers) for value in call.inputs):
        return divide_integers(call)
    scalar = call.input(1)
    if not isinstance(scalar, Scalar):
        raise RefusalError("a division by what is not one constant")
    terms = _beside(call.terms(), scalar)
    if not _finite(scalar):
        raise RefusalError("a division by 0")
    return multiplied(terms, 1 / _finite(scalar))


def _finite(scalar: Scalar) -> Fraction:
    if scalar.value is None:
        raise RefusalError("a constant that is not finite")
    return scalar.value


def _beside(terms: Terms, scalar: Scalar) -> Terms:
    """What an operator makes of the shape and the type when the other input is the constant."""
    if terms.dtype != scalar.dtype:
        raise RefusalError("a product of two element types")
    return insert_axes(terms, range(scalar.rank - len(terms.shape))) if scalar.rank > len(terms.shape) else terms


def _add(call: Call) -> Value:
    first, second = call.inputs
    tensors = [value for value in (first, second) if isinstance(value, Terms) and INDEX not in value.factors]
    return add_bias(call.terms(0), call.terms(1)) if tensors else add_integers(call, 1)


def _reduce(call: Call, mean: bool = False) -> Value:
    terms = call.terms()
    axes = call.constants(1, "axes")
    if not axes:
        if call.flag("noop_with_empty_axes"):
            return terms
        axes = list(range(len(terms.shape)))
    if mean:
        count = math.prod(static(terms.shape[normal_axis(axis, len(terms.shape))]) for axis in set(axes))
        if count == 0:
            raise RefusalError("a mean of nothing")
        terms = scaled(terms, Fraction(1, count))
    return sum_over(terms, axes, call.flag("keepdims", 1))


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
    return finished(contract(first, operands[0], second, operands[1], out))


def _matmul(call: Call) -> Value:
    first, second = call.terms(0), call.terms(1)
    a, b = len(first.shape), len(second.shape)
    if not a or not b or max(a, b) > MAX_RANK:
        raise RefusalError("MatMul of what is no matrix")
    batch = [str(k) for k in range(max(a, b, 2) - 2)]
    rows, columns = (["row"] if a > 1 else []), (["column"] if b > 1 else [])
    mine = [*batch[len(batch) - max(a - 2, 0) :], *rows, "k"]
    theirs = [*batch[len(batch) - max(b - 2, 0) :], "k", *columns]
    return finished(contract(first, mine, second, theirs, [*batch, *rows, *columns]))


def _conv(call: Call) -> Value:
    x, w = call.terms(0), call.terms(1)
    if X not in x.factors or W not in w.factors or len(x.shape) != len(w.shape) or len(x.shape) < 3:
        raise RefusalError("Conv of another kind")
    kernel = w.static_shape()
    if kernel[1] > 1:
        raise RefusalError(DENSE)
    if call.input(2) is not None or len([name for name in call.node.input if name]) > 2:
        raise RefusalError("Conv adds a bias: an Add after it can stay")
    group = call.integer("group", 1)
    channels = x.shape[1]
    if isinstance(channels, Dynamic) or group < 1 or kernel[0] % group or channels != kernel[1] * group:
        raise RefusalError("Conv whose groups do not fit")
    x = _in_windows(call, x, kernel[2:])
    bounded(kernel[0] * kernel[1])
    outputs = np.arange(kernel[0], dtype=np.int64)[:, None]
    x = take(x, 1, outputs // (kernel[0] // group) * kernel[1] + np.arange(kernel[1], dtype=np.int64))
    space = len(kernel) - 2
    places, offsets = [f"i{k}" for k in range(space)], [f"j{k}" for k in range(space)]
    labels = ["b", "o", "c", *(name for pair in zip(places, offsets, strict=True) for name in pair)]
    return finished(contract(x, labels, w, ["o", "c", *offsets], ["b", "o", *places]))


def _window_loop(call: Call) -> Value:
    values, weights, tokens, turns = call.terms(0), call.terms(1), call.input(2), call.input(3)
    if not isinstance(tokens, np.ndarray) or not isinstance(turns, np.ndarray) or tokens.ndim != 2:
        raise RefusalError("windows at places that depend on data")
    if turns.size != 1 or turns.item() != len(tokens) or len(weights.shape) != 3 or len(values.shape) != 3:
        raise RefusalError("a loop that is not over a window's tokens")
    if FLOAT not in EXACT.get(values.dtype, ()):
        raise RefusalError("a Cast before the product that loses bits")
    windows = replace(take(values, 0, tokens), dtype=FLOAT)
    return finished(contract(windows, "jind", weights, "jnd", "ind"))


def _average_pool(call: Call) -> Value:
    kernel = call.integers("kernel_shape") or []
    x = call.terms()
    if len(x.shape) < 3 or len(kernel) != len(x.shape) - 2:
        raise RefusalError("AveragePool whose attributes do not fit")
    if call.flag("ceil_mode"):
        raise RefusalError("AveragePool with ceil_mode: its last window may be shorter")
    x = _in_windows(call, x, kernel)
    offsets = [3 + 2 * k for k in range(len(kernel))]
    return sum_over(scaled(x, Fraction(1, math.prod(kernel))), offsets, False)


def _in_windows(call: Call, x: Terms, kernel: Sequence[int]) -> Terms:
    """The axes after the first two, each as windows and places in a window, as Conv and AveragePool read them."""
    kind, space = call.node.op_type, len(kernel)
    auto_pad = call.attribute("auto_pad", AttributeProto.STRING)
    if any(call.integers("pads") or []) or (auto_pad is not None and auto_pad.s not in (b"NOTSET", b"VALID")):
        raise RefusalError(f"{kind} pads the sequence")
    strides = call.integers("strides") or [1] * space
    dilations = call.integers("dilations") or [1] * space
    if len(strides) != space or len(dilations) != space or min(*strides, *dilations) < 1:
        raise RefusalError(f"{kind} whose attributes do not fit")
    for k in reversed(range(space)):
        x = take(x, 2 + k, _windows(x.shape[2 + k], kernel[k], strides[k], dilations[k]))
    return x


def _windows(length: Dim, kernel: int, stride: int, dilation: int) -> Integers | Positions:
    """Where each output place and kernel element of a Conv or an AveragePool reads along one axis."""
    if max(kernel, stride, dilation) >= 2**31 or kernel < 1:
        raise RefusalError("a window whose sizes do not fit")
    reach = dilation * (kernel - 1)
    bounded(kernel)
    offsets = np.arange(kernel, dtype=np.int64) * dilation
    if isinstance(length, Dynamic):
        if length.step != 1:
            raise RefusalError("windows of windows")
        return Positions(0, (Steps(stride, Dynamic(length.offset + reach, stride)), offsets))
    count = (length - reach - 1) // stride + 1
    if count < 1:
        raise RefusalError("a sequence that is shorter than the kernel")
    bounded(count * kernel)
    return np.arange(count, dtype=np.int64)[:, None] * stride + offsets


PRODUCTS: dict[str, Callable[[Call], Value]] = {
    "Conv": _conv,
    "Einsum": _einsum,
    "MatMul": _matmul,
    "Mul": _mul,
    WINDOW_LOOP: _window_loop,
}
"""Operators that can multiply x and w; all but Mul also sum."""

SUMS: dict[str, Callable[[Call], Value]] = {
    "AveragePool": _average_pool,
    "ReduceMean": partial(_reduce, mean=True),
    "ReduceSum": _reduce,
}

SCALES: dict[str, Callable[[Call], Value]] = {"Div": _div, "Mul": _mul}
"""Operators that may multiply all by one constant."""

ADDS: dict[str, Callable[[Call], Value]] = {"Add": _add, "Sub": partial(add_integers, sign=-1)}
