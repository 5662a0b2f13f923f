"""Where an axis of length 0 goes: which axes of a node's results are empty because axes of its inputs are.

Standard operators only. For an operator that is not known here, no result counts as empty: what is found is certain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from .bounds import MAX_RANK

Constant = Callable[[int], npt.NDArray[Any] | None]
"""The value of a node's input, by position; None if a run decides it."""


@dataclass(frozen=True)
class Extent:
    """What matters of a shape: its rank, and which of its axes have 0 elements."""

    rank: int
    empty: frozenset[int] = frozenset()

    def shifted(self, by: int) -> frozenset[int]:
        return frozenset(axis + by for axis in self.empty)


Extents = Sequence[Extent | None]
"""Of a node's inputs; None where the rank is not known."""


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value; the default too where a function's caller sets it."""
    found = next((one for one in node.attribute if one.name == name and not one.ref_attr_name), None)
    return default if found is None else helper.get_attribute_value(found)


def integers(node: NodeProto, constant: Constant, name: str, index: int) -> list[int] | None:
    """Integers that are an attribute in old versions of an operator and an input in new ones."""
    given = attribute(node, name)
    if given is not None:
        return [int(one) for one in given] if isinstance(given, Sequence) else [int(given)]
    value = constant(index) if index < len(node.input) and node.input[index] else None
    return None if value is None else [int(one) for one in np.ravel(value)]


def results(node: NodeProto, inputs: Extents, constant: Constant) -> list[Extent | None]:
    """The extents of a node's outputs; None for those of which nothing is known."""
    rule = _RULES.get(node.op_type)
    try:
        made = None if rule is None or not inputs else rule(node, inputs, constant)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):  # the node is broken
        made = None
    if made is not None and made.rank > MAX_RANK:
        made = None
    every = [made] * len(node.output) if node.op_type in _ALIKE else [made]
    return [*every, *[None] * (len(node.output) - len(every))]


def _normal(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _same(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    return inputs[0]


def _broadcast(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    if any(one is None for one in inputs):
        return None
    known = [one for one in inputs if one is not None]
    rank = max(one.rank for one in known)
    return Extent(rank, frozenset().union(*(one.shifted(rank - one.rank) for one in known)))


def _transpose(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    if (x := inputs[0]) is None:
        return None
    order = attribute(node, "perm") or list(range(x.rank))[::-1]
    return Extent(x.rank, frozenset(to for to, axis in enumerate(order) if axis in x.empty))


def _unsqueeze(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    x, axes = inputs[0], integers(node, constant, "axes", 1)
    if x is None or axes is None:
        return None
    rank = x.rank + len(axes)
    new = {_normal(axis, rank) for axis in axes}
    kept = [axis for axis in range(rank) if axis not in new]
    return Extent(rank, frozenset(to for axis, to in enumerate(kept) if axis in x.empty))


def _without(x: Extent, gone: set[int]) -> Extent:
    kept = [axis for axis in range(x.rank) if axis not in gone]
    return Extent(len(kept), frozenset(to for to, axis in enumerate(kept) if axis in x.empty))


def _squeeze(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    x, axes = inputs[0], integers(node, constant, "axes", 1)
    return None if x is None or axes is None else _without(x, {_normal(axis, x.rank) for axis in axes})


def _reduce(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    x, axes = inputs[0], integers(node, constant, "axes", 1)
    if x is None or (axes is None and len(node.input) > 1 and node.input[1]):
        return None
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        return x
    gone = {_normal(axis, x.rank) for axis in axes or range(x.rank)}
    return Extent(x.rank, x.empty - gone) if attribute(node, "keepdims", 1) else _without(x, gone)


def _flatten(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    if (x := inputs[0]) is None:
        return None
    axis = _normal(attribute(node, "axis", 1), x.rank)
    return Extent(2, frozenset(int(one >= axis) for one in x.empty))


def _reshape(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    x, shape = inputs[0], integers(node, constant, "shape", 1)
    if x is None or shape is None:
        return None
    copied = {axis for axis, dim in enumerate(shape) if dim == 0 and not attribute(node, "allowzero", 0)}
    empty = copied & x.empty or {axis for axis, dim in enumerate(shape) if dim == -1 and x.empty}
    return Extent(len(shape), frozenset(empty))


def _expand(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    x, shape = inputs[0], integers(node, constant, "shape", 1)
    if x is None or shape is None:
        return None
    rank = max(x.rank, len(shape))
    return Extent(rank, x.shifted(rank - x.rank))


def _concat(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    """Along the axis, nothing is there only if nothing is in any of the parts. The other axes are all parts' own."""
    known = [one for one in inputs if one is not None]
    if not known:
        return None
    axis = _normal(attribute(node, "axis", 0), known[0].rank)
    others = frozenset().union(*(one.empty - {axis} for one in known))
    nothing = len(known) == len(inputs) and all(axis in one.empty for one in known)
    return Extent(known[0].rank, others | ({axis} if nothing else set()))


def _gather(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    x, indices = inputs[0], inputs[1]
    if x is None or indices is None:
        return None
    axis = _normal(attribute(node, "axis", 0), x.rank)
    moved = {one if one < axis else one + indices.rank - 1 for one in x.empty if one != axis}
    return Extent(x.rank + indices.rank - 1, frozenset(moved) | indices.shifted(axis))


def _pad(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    """A padded axis has elements, whatever was there before."""
    x, pads = inputs[0], integers(node, constant, "pads", 1)
    if x is None or pads is None:
        return None
    axes = integers(node, constant, "axes", 3) or list(range(len(pads) // 2))
    padded = {_normal(axis, x.rank) for axis, one in zip(axes * 2, pads, strict=False) if one}
    return Extent(x.rank, x.empty - padded)


def _top_k(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    x = inputs[0]
    return None if x is None else Extent(x.rank, x.empty - {_normal(attribute(node, "axis", -1), x.rank)})


def _arg(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    x = inputs[0]
    if x is None:
        return None
    axis = _normal(attribute(node, "axis", 0), x.rank)
    return Extent(x.rank, x.empty - {axis}) if attribute(node, "keepdims", 1) else _without(x, {axis})


def _mat_mul(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    a, b = inputs[0], inputs[1]
    if a is None or b is None or a.rank < 2 or b.rank < 2:
        return None
    rank = max(a.rank, b.rank)
    left, right = a.shifted(rank - a.rank), b.shifted(rank - b.rank)
    batch = {axis for axis in left | right if axis < rank - 2}
    return Extent(rank, frozenset(batch | (left & {rank - 2}) | (right & {rank - 1})))


def _gemm(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    a, b = inputs[0], inputs[1]
    if a is None or b is None:
        return None
    rows, columns = int(attribute(node, "transA", 0) == 1), int(attribute(node, "transB", 0) != 1)
    return Extent(2, frozenset({0} if rows in a.empty else set()) | ({1} if columns in b.empty else set()))


def _batch_only(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    x = inputs[0]
    return None if x is None else Extent(x.rank, x.empty & {0})


def einsum_terms(node: NodeProto) -> tuple[list[str], str] | None:
    """The letters of an Einsum's operands and result; None where they cannot be told."""
    equation = attribute(node, "equation", b"")
    terms = equation.decode(errors="replace").replace(" ", "") if isinstance(equation, bytes) else ""
    operands, arrow, result = terms.partition("->")
    if "." in terms or not arrow:
        return None
    return operands.split(","), result


def _einsum(node: NodeProto, inputs: Extents, constant: Constant) -> Extent | None:
    terms = einsum_terms(node)
    if terms is None or any(one is None for one in inputs):
        return None
    empty = {
        letters[axis]
        for letters, one in zip(terms[0], inputs, strict=False)
        if one is not None
        for axis in one.empty
        if axis < len(letters)
    }
    return Extent(len(terms[1]), frozenset(axis for axis, letter in enumerate(terms[1]) if letter in empty))


_Rule = Callable[[NodeProto, Extents, Constant], Extent | None]

_SAME = """
    Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh CumSum
    DequantizeLinear Dropout Elu Erf Exp Floor Gelu Hardmax HardSigmoid HardSwish Identity InstanceNormalization IsInf
    IsNaN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg Not
    QuantizeLinear RMSNormalization Reciprocal Relu ReverseSequence RotaryEmbedding Round Selu Shrink Sigmoid Sign Sin
    Sinh Slice Softmax Softplus Softsign Split Sqrt Swish Tan Tanh ThresholdedRelu Tile Trilu
    ScatterElements ScatterND
"""
_BROADCAST = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod
    Mul Or PRelu Pow Sub Sum Where Xor
"""
_REDUCE = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
"""
_BATCH = """
    AveragePool Conv ConvTranspose GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization LpPool MaxPool
"""
# Every output has the first one's extent.
_ALIKE = ("Split", "TopK", "Dropout")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_BROADCAST.split(), _broadcast),
    **dict.fromkeys(_REDUCE.split(), _reduce),
    **dict.fromkeys(_BATCH.split(), _batch_only),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    "Concat": _concat,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _mat_mul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
