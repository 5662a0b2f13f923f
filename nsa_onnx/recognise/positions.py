"""Positions of elements, one vector of numbers per axis, and a limit on what following them may cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

# One vector, or one constant. 2**22 int64 are 32 MiB.
MAX_ELEMENTS = 2**22
# What one model may cost in all: nodes looked at (each about 2 us), elements of vectors made (each about 20 ns).
MAX_VISITS = 1_000_000
MAX_POSITIONS = 2**26


class RefusalError(Exception):
    """Why a value cannot be followed; the message is for people.

    Attributes:
        windows: whether it would have been windows.
    """

    windows = False


class ExhaustedError(Exception):
    """The model costs more than a model may."""


class Budget:
    """What one model may cost, whatever is in it; counted down while it is followed."""

    def __init__(self, visits: int = MAX_VISITS, positions: int = MAX_POSITIONS) -> None:
        self.visits = visits
        self.positions = positions

    def visit(self) -> None:
        """One node is looked at."""
        self.visits -= 1
        if self.visits < 0:
            raise ExhaustedError

    def spend(self, elements: int) -> None:
        """A vector is made."""
        self.positions -= elements
        if self.positions < 0:
            raise ExhaustedError

    @contextmanager
    def counting(self) -> Iterator[None]:
        """All vectors made inside count."""
        token = _budget.set(self)
        try:
            yield
        finally:
            _budget.reset(token)


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def bounded(elements: int) -> int:
    """The number of elements, if a vector of so many may be made, which then counts."""
    budget = _budget.get()
    if budget is not None:
        budget.spend(min(max(elements, 0), MAX_ELEMENTS))
    if not 0 <= elements <= MAX_ELEMENTS:
        raise RefusalError(f"{elements} elements in one axis are more than the {MAX_ELEMENTS} that are followed")
    return elements


@dataclass(frozen=True)
class Dynamic:
    """A dim that follows the unknown number of tokens T: ``max(0, ceil((T - offset) / step))``."""

    offset: int = 0
    step: int = 1


def parts_of(length: int) -> Dynamic:
    """How many whole parts of this length T has."""
    return Dynamic(length - 1, length)


Dim = int | Dynamic


@dataclass(frozen=True)
class Steps:
    """The positions of an axis of unknown length: ``step * i``."""

    step: int
    length: Dynamic


Axis = Integers | Steps


def axis_length(axis: Axis) -> Dim:
    return axis.length if isinstance(axis, Steps) else len(axis)


def same_axis(first: Axis, second: Axis) -> bool:
    if isinstance(first, Steps) or isinstance(second, Steps):
        return first is second or (isinstance(first, Steps) and isinstance(second, Steps) and first == second)
    return first is second or np.array_equal(first, second)


@dataclass(frozen=True)
class Positions:
    """Flat positions: ``base`` plus one summand per axis. Each axis starts with 0, so equal means same numbers."""

    base: int
    axes: tuple[Axis, ...]


def positions(base: int, axes: Sequence[Axis]) -> Positions:
    """Normalised: each axis starts with 0."""
    result: list[Axis] = []
    for axis in axes:
        if not isinstance(axis, Steps) and len(axis) and axis[0]:
            base += int(axis[0])
            axis = axis - axis[0]
        result.append(axis)
    return Positions(base, tuple(result))


def separated(values: Integers) -> Positions:
    """Dense values as positions.

    Raises:
        RefusalError: they are not a sum of one summand per axis.
    """
    if not values.size:
        return Positions(0, tuple(np.zeros(size, np.int64) for size in values.shape))
    bounded(values.size)
    base = int(values.flat[0])
    axes: list[Integers] = []
    total = np.full((1,) * values.ndim, base, np.int64)
    for k in range(values.ndim):
        line = np.moveaxis(values, k, 0).reshape(values.shape[k], -1)[:, 0] - base
        axes.append(line)
        total = total + line.reshape([-1 if axis == k else 1 for axis in range(values.ndim)])
    if not np.array_equal(total, values):
        raise RefusalError("the indices do not form windows: they are no sum of one step per axis")
    return Positions(base, tuple(axes))


def dense(places: Positions) -> Integers:
    """All positions as one array."""
    bounded(math.prod(len(axis) for axis in places.axes if not isinstance(axis, Steps)))
    total = np.full((1,) * len(places.axes), places.base, np.int64)
    for k, axis in enumerate(places.axes):
        if isinstance(axis, Steps):
            raise RefusalError("an axis of unknown length")
        total = total + axis.reshape([-1 if other == k else 1 for other in range(len(places.axes))])
    return total


def merge(axes: Sequence[Axis]) -> Integers:
    """Several axes as one, in row-major order."""
    result = np.zeros(1, np.int64)
    for axis in axes:
        if isinstance(axis, Steps):
            raise RefusalError("a Reshape of the dim of unknown length")
        bounded(len(result) * len(axis))
        result = (result[:, None] + axis).reshape(-1)
    return result


def static(dim: Dim) -> int:
    if isinstance(dim, Dynamic):
        raise RefusalError("a Reshape of the dim of unknown length")
    return dim


def stretched(axis: Axis, length: Dim) -> Axis:
    """An axis of length 1 repeated; one of the right length as it is."""
    if axis_length(axis) == length:
        return axis
    if axis_length(axis) != 1:
        raise RefusalError("shapes that do not broadcast")
    return Steps(0, length) if isinstance(length, Dynamic) else np.zeros(bounded(length), np.int64)


def normal_axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise RefusalError(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank
