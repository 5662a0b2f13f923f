"""What a value is made of: a sum of products of elements of two tensors, known element by element.

The proof that a subgraph is the compression looks at no data. Every value between the roots (the tokens x and the
weight w) and the result is followed exactly: which element of x and which of w each of its products takes. In all
forms that exporters write, these positions are *separable*: the flat position is a constant plus one summand per
axis. So an axis is one vector of positions, whatever the other axes are, and 16384 tokens in windows of 128 cost a few
vectors of at most 16384 integers instead of 67 million pairs. What is not separable, or too large, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from .positions import (
    Axis,
    Dim,
    Dynamic,
    Integers,
    Positions,
    RefusalError,
    Steps,
    axis_length,
    bounded,
    merge,
    normal_axis,
    parts_of,
    positions,
    same_axis,
    separated,
    static,
    stretched,
)

MAX_RANK = 32
# What is read in windows of fewer elements, nobody would call windows of tokens.
LEAST_WINDOW = 16
# Sums of fewer elements are common elsewhere; nobody would call them the compression.
LEAST_SUMMED = 8

X, W, BIAS, INDEX = "x", "w", "bias", "index"


@dataclass(frozen=True)
class Terms:
    """A tensor each of whose elements is ``scale * sum((x + bias) * w)`` over the ``summed`` axes.

    Attributes:
        shape: of the tensor.
        summed: lengths of the axes that are summed over.
        factors: by root, where its elements are taken: over the axes of ``shape``, then ``summed``. The roots are X,
            the tokens; W, their weight, without which each counts 1; BIAS, what is added to the tokens before they
            are weighted. A tensor of computed integers has one entry, INDEX: its positions are the integers.
        dtype: the element type, as in ONNX.
        origin: the element type of the root that a mere copy is taken from.
        scale: what all is multiplied by.
        rounded: whether a product or a sum has been rounded to 16 bits.
        windows: whether elements were read in windows: 2 by indices or a strided kernel, 1 by slices put together.
        inexact: how the arithmetic differs from one sum in float32 with one rounding; empty if it does not.
    """

    shape: tuple[Dim, ...]
    factors: Mapping[str, Positions]
    dtype: int
    origin: int
    summed: tuple[int, ...] = ()
    scale: Fraction = Fraction(1)
    rounded: bool = False
    inexact: str = ""
    windows: int = 0

    @property
    def is_computed(self) -> bool:
        """Whether it is more than a copy of a root's elements."""
        return len(self.factors) > 1 or bool(self.summed) or self.scale != 1

    def static_shape(self) -> tuple[int, ...]:
        if any(isinstance(dim, Dynamic) for dim in self.shape):
            raise RefusalError("a shape is not known")
        return tuple(dim for dim in self.shape if not isinstance(dim, Dynamic))

    def axes_of(self, role: str) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
        """The root's axes: those of the shape, the summed ones."""
        axes = self.factors[role].axes
        return axes[: len(self.shape)], axes[len(self.shape) :]


def root(role: str, shape: Sequence[Dim], dtype: int) -> Terms:
    """A root: each element is its own."""
    axes: list[Axis] = []
    step = 1
    for dim in reversed(shape):
        if isinstance(dim, Dynamic):
            axes.append(Steps(step, dim))
            if any(isinstance(other, Dynamic) or other != 1 for other in shape[: len(shape) - len(axes)]):
                raise RefusalError("the dim of unknown length is not the first one")
        else:
            axes.append(np.arange(bounded(dim), dtype=np.int64) * step)
            step *= dim
            if step >= 2**62:
                raise RefusalError("a tensor is too large to be followed")
    return Terms(tuple(shape), {role: Positions(0, tuple(reversed(axes)))}, dtype, dtype)


# --------------------------------------------------------------------------------------------------
# Data movement: the same for every factor


def _map_axes(terms: Terms, shape: Sequence[Dim], change: Callable[[list[Axis]], tuple[int, Sequence[Axis]]]) -> Terms:
    """Apply a change of the shape's axes to each factor; ``change`` gives what is added to the base, too."""
    if len(shape) > MAX_RANK:
        raise RefusalError(f"more than {MAX_RANK} axes")
    factors: dict[str, Positions] = {}
    for role, factor in terms.factors.items():
        kept, summed = terms.axes_of(role)
        added, axes = change(list(kept))
        factors[role] = positions(factor.base + added, (*axes, *summed))
    return replace(terms, shape=tuple(shape), factors=factors)


def transpose(terms: Terms, perm: Sequence[int]) -> Terms:
    if sorted(perm) != list(range(len(terms.shape))):
        raise RefusalError("perm is no permutation")
    return _map_axes(terms, [terms.shape[k] for k in perm], lambda axes: (0, [axes[k] for k in perm]))


def insert_axes(terms: Terms, places: Sequence[int]) -> Terms:
    """Axes of length 1 at the places, counted in the result."""
    rank = len(terms.shape) + len(places)
    if rank > MAX_RANK:
        raise RefusalError(f"more than {MAX_RANK} axes")
    at = sorted({normal_axis(place, rank) for place in places})
    if len(at) != len(places):
        raise RefusalError("an axis is given twice")
    shape: list[Dim] = list(terms.shape)
    for place in at:
        shape.insert(place, 1)

    def change(axes: list[Axis]) -> tuple[int, list[Axis]]:
        for place in at:
            axes.insert(place, np.zeros(1, np.int64))
        return 0, axes

    return _map_axes(terms, shape, change)


def remove_axes(terms: Terms, places: Sequence[int] | None) -> Terms:
    """Without the axes, which must be of length 1; all of those if None."""
    rank = len(terms.shape)
    drop = {k for k in range(rank) if terms.shape[k] == 1} if places is None else {normal_axis(p, rank) for p in places}
    if any(terms.shape[k] != 1 for k in drop):
        raise RefusalError("Squeeze of an axis that is not of length 1")
    keep = [k for k in range(rank) if k not in drop]
    return _map_axes(terms, [terms.shape[k] for k in keep], lambda axes: (0, [axes[k] for k in keep]))


def expand(terms: Terms, shape: Sequence[Dim]) -> Terms:
    """ONNX Expand: both sides broadcast."""
    missing = len(shape) - len(terms.shape)
    terms = insert_axes(terms, range(missing)) if missing > 0 else terms
    wanted = (1,) * -missing + tuple(shape) if missing < 0 else tuple(shape)
    result = [have if want == 1 else want for have, want in zip(terms.shape, wanted, strict=True)]
    return _map_axes(
        terms, result, lambda axes: (0, [stretched(axis, dim) for axis, dim in zip(axes, result, strict=True)])
    )


def take(terms: Terms, axis: int, indices: Integers | Positions) -> Terms:
    """ONNX Gather along one axis: it is replaced by the axes of ``indices`` (none for a single index)."""
    axis = normal_axis(axis, len(terms.shape))
    new = [axis_length(a) for a in indices.axes] if isinstance(indices, Positions) else list(indices.shape)
    if isinstance(indices, np.ndarray):
        bounded(indices.size)

    def change(axes: list[Axis]) -> tuple[int, list[Axis]]:
        taken = _taken(axes[axis], indices)
        return taken.base, [*axes[:axis], *taken.axes, *axes[axis + 1 :]]

    wide = [dim for dim in new if isinstance(dim, Dynamic) or dim > 1]
    is_window = len(wide) > 1 and not isinstance(wide[-1], Dynamic) and wide[-1] >= LEAST_WINDOW
    try:
        moved = _map_axes(terms, [*terms.shape[:axis], *new, *terms.shape[axis + 1 :]], change)
    except RefusalError as refusal:
        refusal.windows = is_window
        raise
    return replace(moved, windows=2) if is_window else moved


def _taken(axis: Axis, indices: Integers | Positions) -> Positions:
    if isinstance(axis, Steps):
        index = indices if isinstance(indices, Positions) else separated(indices)
        return _scaled(index, axis.step)
    if isinstance(indices, Positions):
        raise RefusalError("indices of unknown number into an axis of known length")
    if indices.size and not (-len(axis) <= indices.min() and indices.max() < len(axis)):
        raise RefusalError(f"an index is out of the axis of length {len(axis)}")
    return separated(axis[indices])  # NumPy counts negative ones from the end, as ONNX does


def _scaled(index: Positions, step: int) -> Positions:
    """Indices into an axis ``step * i`` of unknown length. An index beyond its end is an error when the model runs."""
    axes: list[Axis] = []
    for axis in index.axes:
        if isinstance(axis, Steps):
            if axis.step < 0:
                raise RefusalError("indices that may be negative")
            axes.append(Steps(axis.step * step, axis.length))
        else:
            if len(axis) and int(axis.min()) < 0:
                raise RefusalError("indices that may be negative")
            axes.append(axis * step)
    if index.base < 0:
        raise RefusalError("indices that may be negative")
    return Positions(index.base * step, tuple(axes))


def concat(parts: Sequence[Terms], axis: int) -> Terms:
    """One after the other along an axis, all other axes alike."""
    first = parts[0]
    axis = normal_axis(axis, len(first.shape))
    full = [part for part in parts if all(dim != 0 for dim in part.shape)] or [first]
    for part in parts:
        if (
            part.factors.keys() != first.factors.keys()
            or part.dtype != first.dtype
            or part.summed != first.summed
            or part.scale != first.scale
        ):
            raise RefusalError("Concat of unlike parts")
        if len(part.shape) != len(first.shape) or isinstance(part.shape[axis], Dynamic):
            raise RefusalError("Concat of parts of unknown length")
        if any(part.shape[k] != first.shape[k] for k in range(len(first.shape)) if k != axis):
            raise RefusalError("Concat of unlike shapes")
    factors: dict[str, Positions] = {}
    length = 0
    for role in first.factors:
        model = full[0].factors[role].axes
        pieces: list[Integers] = []
        for part in full:
            factor = part.factors[role]
            others = zip(factor.axes, model, strict=True)
            if not all(k == axis or same_axis(mine, other) for k, (mine, other) in enumerate(others)):
                raise RefusalError("Concat of parts that take their elements in different ways")
            line = factor.axes[axis]
            assert not isinstance(line, Steps)
            pieces.append(line + factor.base)
        joined = np.concatenate(pieces)
        length = bounded(len(joined))
        factors[role] = positions(0, (*model[:axis], joined, *model[axis + 1 :]))
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    inexact = next((part.inexact for part in parts if part.inexact), "")
    stacked = len(parts) > 1 and all(part.shape[axis] == 1 for part in parts)
    windows = max(int(stacked), *(part.windows for part in parts))
    rounded = any(part.rounded for part in parts)
    return replace(first, shape=shape, factors=factors, inexact=inexact, rounded=rounded, windows=windows)


# --------------------------------------------------------------------------------------------------
# Reshape: axes are merged in groups of equal size, then split


def reshape(terms: Terms, target: Sequence[Dim]) -> Terms:
    """Another shape for the same elements in the same order; one dim of ``target`` may be -1."""
    shape = _resolved(terms.shape, target)
    if any(dim == 0 for dim in terms.shape):
        return _map_axes(terms, shape, lambda axes: (0, [np.zeros(bounded(static(d)), np.int64) for d in shape]))
    groups = _groups(terms.shape, shape)

    def change(axes: list[Axis]) -> tuple[int, list[Axis]]:
        result: list[Axis] = []
        base = 0
        for old, new in groups:
            if len(old) == 1 and len(new) == 1:
                result.append(axes[old[0]])
                continue
            first = axes[old[0]] if old else None
            if isinstance(first, Steps):
                result.extend(_in_parts(first, [shape[k] for k in new]))
                continue
            merged = merge([axes[k] for k in old])
            split = separated(merged.reshape([static(shape[k]) for k in new]))
            base += split.base
            result.extend(split.axes)
        return base, result

    return _map_axes(terms, shape, change)


def _in_parts(axis: Steps, dims: Sequence[Dim]) -> list[Axis]:
    """An axis of unknown length, which is as long as the dims say, in parts of a fixed length each."""
    parts, *inner = dims
    assert isinstance(parts, Dynamic)
    inside = np.arange(bounded(parts.step), dtype=np.int64).reshape([static(dim) for dim in inner])
    split = separated(inside)
    return [
        Steps(axis.step * parts.step, parts),
        *(line * axis.step for line in split.axes if not isinstance(line, Steps)),
    ]


def _resolved(old: Sequence[Dim], target: Sequence[Dim]) -> list[Dim]:
    """``target`` with its -1 replaced; checks that both have the same number of elements."""
    if len(target) > MAX_RANK or any(not isinstance(dim, Dynamic) and dim < -1 for dim in target):
        raise RefusalError("Reshape to an impossible shape")
    shape = list(target)
    unknown = [dim for dim in old if isinstance(dim, Dynamic)]
    size = math.prod(dim for dim in old if not isinstance(dim, Dynamic))
    rest = math.prod(dim for dim in shape if not isinstance(dim, Dynamic) and dim != -1)
    free = [k for k, dim in enumerate(shape) if dim == -1]
    if len(free) > 1:
        raise RefusalError("Reshape to an impossible shape")
    if free and unknown and not any(isinstance(dim, Dynamic) for dim in shape) and rest == size:
        shape[free[0]] = unknown[0]
    elif free and unknown == [Dynamic()] and not any(isinstance(dim, Dynamic) for dim in shape):
        if size == 0 or rest == 0 or rest % size:
            raise RefusalError("Reshape to an impossible shape")
        shape[free[0]] = parts_of(rest // size)
    elif free:
        if rest == 0 or size % rest:
            raise RefusalError("Reshape to an impossible shape")
        shape[free[0]] = size // rest
    now = [dim for dim in shape if isinstance(dim, Dynamic)]
    rest = math.prod(dim for dim in shape if not isinstance(dim, Dynamic))
    in_parts = (
        unknown == [Dynamic()] and len(now) == 1 and now == [parts_of(now[0].step)] and rest == size * now[0].step
    )
    if not in_parts and (rest != size or unknown != now):
        raise RefusalError("Reshape to a shape of another size")
    return shape


def _groups(old: Sequence[Dim], new: Sequence[Dim]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes on both sides that hold the same number of elements, in order."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        mine: list[int] = []
        theirs: list[int] = []
        both = i < len(old) and j < len(new)
        if both and old[i] == new[j]:
            groups.append(([i], [j]))
            i, j = i + 1, j + 1
            continue
        if both and isinstance(old[i], Dynamic) and new[j] == 1:
            groups.append(([], [j]))
            j += 1
            continue
        whole, parts = (old[i], new[j]) if both else (1, 1)
        if isinstance(whole, Dynamic) and isinstance(parts, Dynamic):
            start, inside = j, 1
            while inside < parts.step and j + 1 < len(new):
                j += 1
                inside *= static(new[j])
            if inside != parts.step:
                raise RefusalError("Reshape to a shape of another size")
            groups.append(([i], list(range(start, j + 1))))
            i, j = i + 1, j + 1
            continue
        size, other = 1, 1
        while (i < len(old) or j < len(new)) and (size != other or not (mine or theirs)):
            if i < len(old) and (size <= other or j == len(new)):
                size *= static(old[i])
                mine.append(i)
                i += 1
            else:
                other *= static(new[j])
                theirs.append(j)
                j += 1
        if size != other:
            raise RefusalError("Reshape to a shape of another size")
        groups.append((mine, theirs))
    return groups
