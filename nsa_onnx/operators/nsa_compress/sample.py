"""Input and expected result of an NsaCompress node, for ``check --run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...graph.tensors import Integers
from ..base import Attributes, Exact, NotRunError, Sample
from ..facts import NodeFacts
from ..sampling import (
    MAX_BATCH,
    MAX_ELEMENTS,
    MAX_SEQUENCES,
    first_known,
    float_type,
    floats,
    heads_and_dim,
    note,
    weighted,
)
from .contract import ATTRIBUTES


def reference(values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> tuple[Exact]:
    """The output in float64."""
    block, stride = (attributes[name] for name in ATTRIBUTES)
    tokens, weight = values["input"], values["weight"]
    starts: list[int] = []
    begin = 0
    for end in values["actual_seq_len"].tolist():
        starts.extend(range(begin, end - block + 1, stride))
        begin = end
    first = np.array(starts, np.int64)
    shape = (len(starts), *tokens.shape[1:])
    return (weighted((tokens[first + j] for j in range(block)), weight, shape),)


def make(facts: NodeFacts, attributes: Attributes) -> Sample:
    """Valid input for a node. NotRunError if there is none."""
    block, stride = (attributes[name] for name in ATTRIBUTES)
    heads, dim = heads_and_dim(facts, 3)
    most = max(block, MAX_ELEMENTS // max(1, heads * dim))
    lengths = facts.constants.get("actual_seq_len")
    if lengths is not None:
        if len(lengths) > MAX_SEQUENCES:
            raise NotRunError(f"{len(lengths)} sequences, at most {MAX_SEQUENCES} are run")
        declared = int(lengths[-1])
        lengths = np.minimum(lengths, most)
    else:
        declared = first_known(facts.tensor("input").dim(0), default=6 * block + stride // 2)
        batch = min(first_known(facts.tensor("actual_seq_len").dim(0), default=4), MAX_BATCH)
        lengths = _prefix_sums(min(declared, most), batch, block)
    tokens = int(lengths[-1])
    dtype = float_type(facts, ("input", "weight"))
    values: dict[str, npt.NDArray[Any]] = dict(floats({"input": (tokens, heads, dim), "weight": (block, heads)}, dtype))
    values["actual_seq_len"] = lengths.astype(np.int64)
    return Sample(dtype, values, note(f"input {[tokens, heads, dim]} {dtype}", declared, tokens, "T"))


def _prefix_sums(tokens: int, batch: int, block: int) -> Integers:
    """Segments of one batch: the first has half of the tokens, or all where that is less than a window."""
    if tokens < 1:
        raise NotRunError("no input is valid: T is 0, and the lengths must be positive and end in T")
    first = tokens // 2 if tokens // 2 >= block else tokens
    rest = np.arange(1, batch, dtype=np.int64)
    sums: Integers = np.concatenate(([first], first + rest * (tokens - first) // max(batch - 1, 1)))
    sums[-1] = tokens
    return sums
