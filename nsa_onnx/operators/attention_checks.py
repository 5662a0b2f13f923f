"""The checks of `attention` put together: for an eager call, and for a node of which not everything is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .attention import (
    PAGE,
    SCALE,
    Stage,
    attribute_violations,
    count_violations,
    dim_violations,
    length_violations,
    prefix_sum_violations,
    rank_violations,
    type_violations,
)
from .contract import Dim, Rows, Shape, Violation, Violations
from .facts import NodeFacts
from .windows import length_tensor_violations

Numbers = Mapping[str, int | float | None]
Lengths = Mapping[str, Sequence[int]]


def call_violations(
    stage: Stage, rows: Rows, shapes: Mapping[str, Shape], numbers: Numbers, lengths: Lengths
) -> Violations:
    """What is wrong with a call whose types are right: ranks, attributes, dims and lengths, in the table's order.

    Masks and indices are left, and the rows of the stage's own.

    Args:
        shapes: of the arrays that are given.
        numbers: scale_value and the attributes.
        lengths: all of them.
    """
    ranks = {name: len(shape) for name, shape in shapes.items()}
    return _violations(stage, rows, shapes, ranks, numbers, {name: len(one) for name, one in lengths.items()}, lengths)


def node_violations(stage: Stage, rows: Rows, facts: NodeFacts) -> Violations:
    """The same of a node, and its types. Of what is not known, nothing is wrong."""
    given = {name: facts.tensor(name) for name in (*stage.arrays, *stage.all_lengths) if name in facts.inputs}
    arrays: dict[str, object] = dict.fromkeys(stage.arrays)
    arrays |= facts.floats([name for name in stage.arrays if name not in stage.types])
    wanted = {name: dtype for name, dtype in stage.types.items() if name in given or name not in stage.optional}
    arrays |= {name: facts.indices(name, dtype) for name, dtype in wanted.items()}
    names = (SCALE, *stage.attributes)
    kinds = {name: facts.argument(name) for name in names}
    yield from type_violations(stage, rows, arrays, kinds, dict.fromkeys(stage.all_lengths, ()))
    for name in stage.all_lengths:
        yield from length_tensor_violations(rows, name, facts.tensor(name).dtype, None)
    shapes = {name: one.shape for name, one in given.items() if one.shape is not None}
    ranks = {name: len(shape) for name, shape in shapes.items()}
    vectors = {name: vector for name in stage.all_lengths if (vector := facts.vector(name)) is not None}
    counts = {name: count for name in stage.all_lengths if ranks.get(name) == 1 for count in shapes[name]}
    counts |= {name: len(vector) for name, vector in vectors.items()}
    numbers = {name: facts.number(name) for name in names}
    yield from _violations(stage, rows, shapes, ranks, numbers, counts, vectors)


def _violations(
    stage: Stage,
    rows: Rows,
    shapes: Mapping[str, Shape],
    ranks: Mapping[str, int],
    numbers: Numbers,
    counts: Mapping[str, Dim],
    lengths: Lengths,
) -> Violations:
    yield from rank_violations(stage, rows, ranks)
    yield from attribute_violations(rows, numbers)
    wanted = {name: len(dims) for name, dims in stage.arrays.items()}
    right = {name: shape for name, shape in shapes.items() if len(shape) == wanted.get(name)}
    yield from dim_violations(stage, rows, right, numbers)
    sizes = array_sizes(stage, right)
    yield from in_order(rows, _length_violations(stage, rows, sizes, numbers, counts, lengths))


def array_sizes(stage: Stage, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The dims by their names ("T1", "N2"), as far as an array of the right rank tells them."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        for dim, size in zip(stage.arrays[name], shape, strict=True):
            if size is not None:
                sizes.setdefault(dim, size)
    return sizes


def _length_violations(
    stage: Stage,
    rows: Rows,
    sizes: Mapping[str, int],
    numbers: Numbers,
    counts: Mapping[str, Dim],
    lengths: Lengths,
) -> list[Violation]:
    found = list(count_violations(stage, rows, counts, sizes.get("B") if stage.lengths else None))
    for name, dim in stage.prefix_sums.items():
        if name in lengths:
            total = None if dim is None else sizes.get(dim)
            found += prefix_sum_violations(rows, name, lengths[name], total)
    page, pages = numbers.get(PAGE), sizes.get("P")
    longest = page * pages if isinstance(page, int) and pages is not None else None  # a float breaks a row of its own
    for name in stage.lengths:
        if name in lengths:
            found += length_violations(rows, name, lengths[name], longest)
    return found


def in_order(rows: Rows, found: Sequence[Violation]) -> Violations:
    """Violations in the order of their table."""
    place = {row: index for index, row in enumerate(rows)}
    yield from sorted(found, key=lambda violation: place[violation.row.id])
