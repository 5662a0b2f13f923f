"""What an output of a node must be, by the contract in float64, and what is wrong with one that is not.

A result cannot be asked to equal the float64 reference: kernels sum in float32, in an order of their own. `Exact` says
by how much a number may be off. `Ranked` is for the indices of the highest scores: where two scores are closer than
float32 sums are exact, either may come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..graph.tensors import Integers
from .contract import DTYPES
from .numbers import Floats, rounded, ulps

_Mask = npt.NDArray[np.bool_]
_REFERENCE = "; the float64 reference says {reference}"


@dataclass(frozen=True)
class Verdict:
    """On one result.

    Attributes:
        ulps: the largest distance from the reference, of integers their difference; None if the shape is wrong.
        problem: what is wrong, if anything is.
    """

    ulps: int | None
    problem: str = ""


class Wanted(Protocol):
    """What an output must be."""

    @property
    def values(self) -> npt.NDArray[Any]:
        """The reference's own result."""

    def judge(self, name: str, got: Floats, dtype: str) -> Verdict:
        """A verdict on the output ``name``, whose type is ``dtype``; ``got`` has its numbers as float64."""


@dataclass(frozen=True)
class Exact:
    """An output in float64, and by how much a float32 sum may be off: not at all for integers."""

    values: Floats
    slack: Floats

    def bounds(self, dtype: str) -> tuple[Floats, Floats]:
        """The least and the greatest that a result may be, in the output's type: rounding keeps the order."""
        return rounded(self.values - self.slack, dtype), rounded(self.values + self.slack, dtype)

    def judge(self, name: str, got: Floats, dtype: str) -> Verdict:
        wanted = rounded(self.values, dtype)
        if got.shape != wanted.shape:
            return _wrong_shape(got, wanted.shape)
        low, high = self.bounds(dtype)
        distance = ulps(got, wanted, dtype)
        worst = int(distance.max(initial=0))
        outside = ~((got >= low) & (got <= high))  # NaN is outside
        if not outside.any():
            return Verdict(worst)
        at = _place(outside * distance)
        problem = f"{name}{list(at)} is {got[at]:.6g}, the float64 reference says {wanted[at]:.6g}"
        off = f"{int(outside.sum())} of {got.size} elements are off, by up to {worst}"
        if dtype in DTYPES:
            problem += f" and float32 sums may give {low[at]:.6g} to {high[at]:.6g}; {off} ulp"
        else:
            problem += f"; {off}"
        return Verdict(worst, problem)


@dataclass(frozen=True)
class Ranked:
    """Indices of the highest scores, highest first, equal ones by ascending index; -1 where there are no more.

    Attributes:
        scores: ``[..., S]`` in float64. Infinite ones are certain and come first; -inf is no candidate.
        slack: ``[..., S]``, by how much a float32 score may be off.
        count: k, the size of a result ``[..., k]``.
    """

    scores: Floats
    slack: Floats
    count: int

    @property
    def values(self) -> Integers:
        """The indices by the scores themselves."""
        shape = (*self.scores.shape[:-1], self.count)
        order: Integers = np.zeros(shape, np.int64)
        first = np.argsort(-self.scores, axis=-1, kind="stable")[..., : self.count]
        order[..., : first.shape[-1]] = first
        order[np.arange(self.count) >= self._taken()[..., None]] = -1
        return order

    def _taken(self) -> Integers:
        """How many indices each row has."""
        taken: Integers = np.minimum((self.scores > -np.inf).sum(-1), self.count)
        return taken

    def judge(self, name: str, got: Floats, dtype: str) -> Verdict:
        expected = self.values
        if got.shape != expected.shape:
            return _wrong_shape(got, expected.shape)
        for check in (self._padding, self._range, self._twice, self._forced, self._order, self._missed):
            wrong, why = check(got, expected)
            if wrong.any():
                at, rows = _place(wrong), wrong.any(-1)
                reason = why.format(row_has=self._taken()[at[:-1]], reference=expected[at])
                return Verdict(
                    0, f"{name}{list(at)} is {got[at]:.6g}{reason}; {rows.sum()} of {rows.size} rows are off"
                )
        return Verdict(0)

    # Each check gives the places [..., k] that are wrong, and why. It may rely on those before it.

    def _padding(self, got: Floats, expected: Integers) -> tuple[_Mask, str]:
        return (expected < 0) & (got != -1), ", but this row has only {row_has} indices: the rest is -1"

    def _range(self, got: Floats, expected: Integers) -> tuple[_Mask, str]:
        inside = (got >= 0) & (got < self.scores.shape[-1]) & (np.floor(got) >= got)  # NaN is not
        inside &= _take(self.scores, np.where(inside, got, expected).astype(np.int64)) > -np.inf
        return (expected >= 0) & ~inside, f", which is no index of this row{_REFERENCE}"

    def _twice(self, got: Floats, expected: Integers) -> tuple[_Mask, str]:
        order = np.argsort(got, axis=-1, kind="stable")
        ascending = np.take_along_axis(got, order, -1)
        again = np.zeros(got.shape, bool)
        again[..., 1:] = (ascending[..., :-1] >= ascending[..., 1:]) & (ascending[..., 1:] >= 0)
        wrong = np.zeros(got.shape, bool)
        np.put_along_axis(wrong, order, again, -1)
        return wrong, ", which stands in this row twice"

    def _forced(self, got: Floats, expected: Integers) -> tuple[_Mask, str]:
        forced = np.isposinf(_take(self.scores, expected))
        return forced & (got != expected), ", but {reference} is certainly selected and comes here"

    def _order(self, got: Floats, expected: Integers) -> tuple[_Mask, str]:
        index = got.astype(np.int64)
        low, high = _take(self.scores - self.slack, index), _take(self.scores + self.slack, index)
        before = np.full(got.shape, np.inf)
        before[..., 1:] = np.minimum.accumulate(high, axis=-1)[..., :-1]
        return low > before, f", whose score is certainly higher than one before it{_REFERENCE}"

    def _missed(self, got: Floats, expected: Integers) -> tuple[_Mask, str]:
        index = got.astype(np.int64)
        left = _with_none(self.scores - self.slack)
        np.put_along_axis(left, index, -np.inf, -1)
        missed = _take(self.scores + self.slack, index) < left.max(-1, keepdims=True)
        return missed, f", whose score is certainly lower than one that is left out{_REFERENCE}"


def _with_none(values: Floats) -> Floats:
    """One place more in each row, for the index -1: no candidate."""
    return np.insert(values, values.shape[-1], -np.inf, axis=-1)


def _take(values: Floats, index: Integers) -> Floats:
    """Values of each row, whose indices may be -1."""
    taken: Floats = np.take_along_axis(_with_none(values), index, -1)
    return taken


def _place(badness: npt.NDArray[np.generic]) -> tuple[int, ...]:
    """Where the largest is, the first of equals."""
    return tuple(map(int, np.unravel_index(int(np.argmax(badness)), badness.shape)))


def _wrong_shape(got: Floats, shape: tuple[int, ...]) -> Verdict:
    return Verdict(None, f"the result has shape {list(got.shape)}, expected {list(shape)}")
