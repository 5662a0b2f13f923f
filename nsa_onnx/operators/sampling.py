"""Generated input for a node and sums in float64, which operators need for ``check --run``.

What the model says about a node's inputs is kept: types, shapes, constant lengths and indices. The rest is generated
so that it is valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .base import Exact
from .contract import DTYPES, Dim
from .facts import NodeFacts
from .numbers import Floats, gamma, rounded

# Generated tensors are at most this large (16 MiB in float32): one window of 128 tokens of the most heads and channels.
MAX_ELEMENTS = 2**22
# Sequences of a batch, where their number is free.
MAX_BATCH = 64
# Sequences of a batch whose lengths or indices are constant.
MAX_SEQUENCES = 4096


def first_known(*dims: Dim, default: int) -> int:
    """The first dim that is known."""
    return next((dim for dim in dims if dim is not None), default)


def float_type(facts: NodeFacts, names: Iterable[str]) -> str:
    """The type of the floating-point inputs, a legal one where it is not known."""
    return next((dtype for name in names if (dtype := facts.tensor(name).dtype)), DTYPES[0])


def floats(shapes: Mapping[str, Sequence[int]], dtype: str) -> dict[str, Floats]:
    """Both signs, but one per channel: where nothing cancels out, an ulp of the result says how good the sum is."""
    generator = np.random.default_rng(0)
    values = {}
    for name, shape in shapes.items():
        made = np.abs(generator.standard_normal(tuple(shape)))
        if name == "weight":
            made *= 0.25
        else:
            made[..., ::2] *= -1
        values[name] = rounded(made, dtype)
    return values


def heads_and_dim(facts: NodeFacts, rank: int) -> tuple[int, int]:
    """N and D of a compression."""
    tokens, weight, cache = facts.tensor("input").dims(rank), facts.tensor("weight").dims(2), facts.tensor("cache")
    return (
        first_known(tokens[-2], weight[1], cache.dim(1), default=3),
        first_known(tokens[-1], cache.dim(2), default=32),
    )


def note(text: str, declared: int, used: int, name: str) -> str:
    """What was run, and what of it was cut."""
    return text if declared == used else f"{text}, {name} cut from {declared}"


def weighted(windows: Iterable[Floats], weight: Floats, shape: tuple[int, ...]) -> Exact:
    """Sum over j of windows[j] * weight[j] in float64, and by how much a float32 sum may be off.

    Args:
        windows: for each token of a window ``[rows, N, D]``, that token of all windows.
        weight: ``[compress_block_size, N]``.
        shape: ``(rows, N, D)``.
    """
    total, size = np.zeros(shape), np.zeros(shape)
    for tokens, factors in zip(windows, weight, strict=True):
        product = tokens * factors[:, None]
        total += product
        size += np.abs(product)
    return Exact(total, gamma(len(weight)) * size)
