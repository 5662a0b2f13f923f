"""Generated input for nodes of the attention stages: heads, lengths, pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..graph.tensors import Integers
from .attention import HEADS, KV_HEADS, LIMITS
from .base import Attributes, NotRunError
from .contract import Dim
from .facts import NodeFacts
from .sampling import MAX_BATCH, MAX_ELEMENTS, MAX_SEQUENCES, first_known

FLOATS = ("query", "key", "value")
MAX_TOKENS = 2**12
"""Keys of a sequence, where their number is free: a query row has a product with each, in each head."""


@dataclass(frozen=True)
class Heads:
    """N1, N2, D and Dv of a node."""

    query: int
    kv: int
    dim: int
    value_dim: int

    @classmethod
    def of(cls, facts: NodeFacts, attributes: Attributes) -> Heads:
        """What is declared; little where nothing is."""
        query, key, value = (facts.tensor(name) for name in FLOATS)
        heads = int(attributes[HEADS])
        fewest = next(n for n in range(-(-heads // LIMITS.max_group), heads + 1) if heads % n == 0)
        wanted = 2 if heads % 2 == 0 and fewest == 1 else fewest
        kv = first_known(attributes.get(KV_HEADS), _last(key.shape, 2), _last(value.shape, 2), default=wanted)
        value_dim = _last(value.shape, 1)
        least = 32 if value_dim is None else max(32, value_dim)
        dim = first_known(_last(query.shape, 1), _last(key.shape, 1), default=least)
        return cls(heads, int(kv), dim, first_known(value_dim, default=min(dim, 16)))


def _last(shape: Sequence[Dim] | None, place: int) -> Dim:
    """The dim at this place from the end."""
    return shape[-place] if shape is not None and len(shape) >= place else None


def batch(facts: NodeFacts, lengths: Sequence[str], dims: Sequence[Dim] = (), default: int = 3) -> int:
    """Sequences of a batch: as many as constants or dims say, few where nothing does.

    Args:
        lengths: the inputs with one element per sequence.
        dims: further dims that say it.
    """
    constants = [len(facts.constants[name]) for name in lengths if name in facts.constants]
    if constants:
        if constants[0] > MAX_SEQUENCES:
            raise NotRunError(f"{constants[0]} sequences, at most {MAX_SEQUENCES} are run")
        return constants[0]
    return min(first_known(*(facts.tensor(name).dim(0) for name in lengths), *dims, default=default), MAX_BATCH)


def spread(total: int, sequences: int) -> Integers:
    """Prefix sums that end in ``total``: the first sequence has half of it, the second nothing, others the rest."""
    if sequences < 1:
        raise NotRunError("no input is valid: there is no sequence")
    if sequences == 1:
        return np.array([total], np.int64)
    first = total // 2 if sequences > 2 else total - total // 3
    rest = np.arange(sequences - 1, dtype=np.int64)
    sums: Integers = np.concatenate(([first], first + rest * (total - first) // max(sequences - 2, 1)))
    sums[-1] = total
    return sums


def most_rows(*sizes: int) -> int:
    """How many rows of these sizes are run at most."""
    return max(1, min(MAX_ELEMENTS // max(1, size) for size in sizes))


def table(facts: NodeFacts, sequences: int, pages: int, block_num: int) -> Integers:
    """The constant table of a node, or any pages."""
    if "block_table" in facts.constants:
        return facts.constants["block_table"]
    made: Integers = np.random.default_rng(1).integers(0, max(block_num, 1), (sequences, pages))
    return made


def as_values(floats: Mapping[str, npt.NDArray[Any]], **indices: Integers) -> dict[str, npt.NDArray[Any]]:
    """All inputs of a sample by name: lengths as int64, tables and blocks as int32."""
    return {**floats, **{name: one.astype(np.int64 if one.ndim == 1 else np.int32) for name, one in indices.items()}}
