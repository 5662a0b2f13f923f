"""Products and sums of `Terms`, and what rounding does to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from .positions import Axis, Dim, Dynamic, Positions, RefusalError, normal_axis, positions, static, stretched
from .precision import DOUBLE, EXACT, SHORT
from .terms import BIAS, MAX_RANK, Terms, W, X, insert_axes
from .wanted import WINDOWS

# Numerator and denominator of a scale: more bits than a few float constants have together are not followed.
_MAX_SCALE_BITS = 4096


def finished(terms: Terms) -> Terms:
    """After one operator's arithmetic: what its element type has done to the numbers.

    One operator rounds once, at its end, also if it sums: how it accumulates the standard leaves open.
    """
    if terms.dtype not in EXACT:
        raise RefusalError("arithmetic in another kind of type")
    return noting_double(replace(terms, rounded=terms.rounded or terms.dtype in SHORT, origin=terms.dtype))


def noting_double(terms: Terms) -> Terms:
    """With a note if it is computed in float64."""
    if terms.dtype != DOUBLE:
        return terms
    return replace(terms, inexact=terms.inexact or "it is computed in float64, not in float32")


def _noting_rounding(terms: Terms, following: str) -> Terms:
    """With a note if the numbers have been rounded to 16 bits before this step."""
    if not terms.rounded:
        return terms
    what = "products or partial sums are" if terms.is_computed else "tokens are"
    note = f"{what} rounded to {SHORT.get(terms.origin, '16 bits')} before they are {following}"
    return replace(terms, inexact=terms.inexact or note)


def contract(first: Terms, labels: Sequence[str], second: Terms, others: Sequence[str], out: Sequence[str]) -> Terms:
    """Multiply element by element over labelled axes; labels that are not in ``out`` are summed over.

    Axes of length 1 broadcast. The element type's consequences are the caller's.
    """
    tokens, weight = (first, second) if X in first.factors else (second, first)
    if X not in tokens.factors or W in tokens.factors or set(weight.factors) != {W}:
        raise RefusalError("a product that is not of one element of the input and one of the weight")
    if first.summed or second.summed:
        raise RefusalError("a product after the sum")
    if first.dtype != second.dtype:
        raise RefusalError("a product of two element types")
    if len(set(labels)) != len(labels) or len(set(others)) != len(others):
        raise RefusalError("a diagonal")
    lengths: dict[str, Dim] = {}
    for names, shape in ((labels, first.shape), (others, second.shape)):
        for label, dim in zip(names, shape, strict=True):
            if lengths.get(label, 1) == 1:
                lengths[label] = dim
            elif dim not in (1, lengths[label]):
                raise RefusalError("shapes that do not broadcast")
    over = [label for label in lengths if label not in out]
    summed = [lengths[label] for label in over]
    if any(isinstance(dim, Dynamic) for dim in summed):
        raise RefusalError("a sum over the dim of unknown length")
    factors: dict[str, Positions] = {}
    for terms, names in ((first, labels), (second, others)):
        for role, factor in terms.factors.items():
            have = dict(zip(names, factor.axes, strict=True))
            nothing = np.zeros(1, np.int64)
            axes = [stretched(have.get(label, nothing), lengths[label]) for label in (*out, *over)]
            factors[role] = Positions(factor.base, tuple(axes))
    tokens, weight = (_noting_rounding(side, "multiplied") for side in (tokens, weight))
    return Terms(
        tuple(lengths[label] for label in out),
        factors,
        first.dtype,
        first.dtype,
        tuple(static(dim) for dim in summed),
        scale=_bounded_scale(first.scale * second.scale),
        rounded=first.rounded or second.rounded,
        inexact=tokens.inexact or weight.inexact,
        windows=max(first.windows, second.windows),
    )


def sum_over(terms: Terms, places: Sequence[int], keepdims: bool) -> Terms:
    """ReduceSum of tokens, weighted or not."""
    if X not in terms.factors:
        raise RefusalError("a sum of something else than tokens")
    rank = len(terms.shape)
    over = sorted({normal_axis(place, rank) for place in places})
    order = [k for k in range(rank) if k not in over]
    factors: dict[str, Positions] = {}
    for role, factor in terms.factors.items():
        axes, summed = terms.axes_of(role)
        factors[role] = Positions(factor.base, (*(axes[k] for k in order), *(axes[k] for k in over), *summed))
    lengths = [terms.shape[k] for k in over]
    if any(isinstance(dim, Dynamic) for dim in lengths):
        raise RefusalError("a sum over the dim of unknown length")
    result = replace(
        _noting_rounding(terms, "summed"),
        shape=tuple(terms.shape[k] for k in order),
        factors=factors,
        summed=(*(static(dim) for dim in lengths), *terms.summed),
    )
    return finished(insert_axes(result, over) if keepdims else result)


def scaled(terms: Terms, factor: Fraction) -> Terms:
    """All elements times a constant. The element type's consequences are the caller's."""
    if not {X, W} & set(terms.factors):
        raise RefusalError("a product of something else than tokens and weights")
    if factor == 0:
        raise RefusalError("a product with 0")
    return replace(terms, scale=_bounded_scale(terms.scale * factor))


def multiplied(terms: Terms, factor: Fraction) -> Terms:
    """Mul by, or Div through, a constant, as an operator of its own."""
    return finished(scaled(_noting_rounding(terms, "scaled"), factor))


def _bounded_scale(scale: Fraction) -> Fraction:
    if max(scale.numerator.bit_length(), scale.denominator.bit_length()) > _MAX_SCALE_BITS:
        raise RefusalError("a product of too many constants")
    return scale


def add_bias(first: Terms, second: Terms) -> Terms:
    """Add to the tokens what depends on their place in the window, before they are weighted."""
    tokens, bias = (first, second) if X in first.factors else (second, first)
    if tokens.is_computed or set(tokens.factors) != {X} or bias.is_computed or set(bias.factors) != {BIAS}:
        raise RefusalError("a sum of two tensors")
    if tokens.dtype != bias.dtype:
        raise RefusalError("a sum of two element types")
    rank = max(len(first.shape), len(second.shape))
    if rank > MAX_RANK:
        raise RefusalError("too many axes")
    sides = [insert_axes(side, range(rank - len(side.shape))) for side in (tokens, bias)]
    shape = [b if a == 1 else a for a, b in zip(sides[0].shape, sides[1].shape, strict=True)]
    factors: dict[str, Positions] = {}
    for side in sides:
        ((role, factor),) = side.factors.items()
        axes: list[Axis] = [stretched(axis, dim) for axis, dim in zip(factor.axes, shape, strict=True)]
        factors[role] = positions(factor.base, axes)
    note = f"a position bias is added to the tokens: {WINDOWS.op_type}(x) + sum(bias * weight) rounds otherwise"
    return replace(
        tokens, shape=tuple(shape), factors=factors, inexact=note, windows=max(first.windows, second.windows)
    )
