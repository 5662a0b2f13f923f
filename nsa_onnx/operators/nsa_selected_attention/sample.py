"""Input and expected result of an NsaSelectedAttention node, for ``check --run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...graph.tensors import Integers
from ..attention import CAUSAL, COUNT, HEADS, KEY_LENGTHS, QUERY_LENGTHS, SELECT
from ..base import Attributes, Exact, NotRunError, Sample
from ..facts import NodeFacts
from ..sampling import MAX_BATCH, MAX_ELEMENTS, MAX_SEQUENCES, first_known, float_type, floats, note
from ..selected import attended, dims_of, kv_heads_of, most_rows, some_blocks, tokens_of
from .contract import block_violations


def reference(values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> Exact:
    """The output in float64, row by row."""
    query, key, value, topk = (values[name] for name in ("query", "key", "value", "topk_indices"))
    kv_heads, group = key.shape[1], query.shape[1] // key.shape[1]
    out = np.zeros((*query.shape[:2], value.shape[2]))
    slack = np.zeros(out.shape)
    begin = key_begin = 0
    for end, key_end in zip(values[QUERY_LENGTHS].tolist(), values[KEY_LENGTHS].tolist(), strict=True):
        for t in range(begin, end):
            for g in range(kv_heads):
                tokens = tokens_of(topk[t, g], key_end - key_begin, attributes[SELECT])
                hidden = (tokens > t - begin) & bool(attributes[CAUSAL])
                at, heads = key_begin + tokens, slice(g * group, (g + 1) * group)
                exact = attended(query[t, heads], key[at, g], value[at, g], attributes, hidden)
                out[t, heads], slack[t, heads] = exact.values, exact.slack
        begin, key_begin = end, key_end
    return Exact(out, slack)


def make(facts: NodeFacts, attributes: Attributes) -> Sample:
    """Valid input for a node. NotRunError if there is none."""
    topk = facts.constants.get("topk_indices")
    query, key, value = (facts.tensor(name) for name in ("query", "key", "value"))
    known = key.dim(1), value.dim(1), facts.tensor("topk_indices").dim(1)
    kv_heads = kv_heads_of(attributes[HEADS], *known)
    dim, value_dim = dims_of(facts)
    ends, key_ends = facts.constants.get(QUERY_LENGTHS), facts.constants.get(KEY_LENGTHS)
    counts = [len(one) for one in (ends, key_ends) if one is not None]
    if counts and counts[0] > MAX_SEQUENCES:
        raise NotRunError(f"{counts[0]} sequences, at most {MAX_SEQUENCES} are run")
    shapes = [facts.tensor(name).dim(0) for name in (QUERY_LENGTHS, KEY_LENGTHS)]
    batch = counts[0] if counts else min(first_known(*shapes, default=3), MAX_BATCH)

    most = most_rows(attributes, dim + value_dim)
    most_keys = max(1, MAX_ELEMENTS // max(1, kv_heads * dim))
    rows = first_known(query.dim(0), facts.tensor("topk_indices").dim(0), default=8 * batch)
    keys = first_known(key.dim(0), value.dim(0), default=batch * (2 * attributes[SELECT] + 5))
    ends = _ends(rows, batch, most) if ends is None else np.minimum(ends, most)
    if key_ends is None:
        key_ends = _ends(keys, batch, most_keys)
    elif topk is None:  # blocks that are constant are those of the whole sequences
        key_ends = np.minimum(key_ends, most_keys)
    used, used_keys = int(ends[-1]), int(key_ends[-1])
    if used_keys > most_keys:
        raise NotRunError(f"key has {used_keys} tokens, at most {most_keys} are run with constant blocks")

    steps = np.diff(ends, prepend=0)
    positions = np.arange(used) - np.repeat(ends - steps, steps)
    if topk is None:
        lengths = np.repeat(np.diff(key_ends, prepend=0), steps)
        topk = some_blocks(lengths, positions, kv_heads, attributes)
    topk = topk[:used]
    for violation in block_violations(topk.tolist(), ends.tolist(), key_ends.tolist(), attributes[SELECT]):
        raise NotRunError(f"no input of at most {MAX_ELEMENTS} elements is valid: {violation.message}")
    dtype = float_type(facts, ("query", "key", "value"))
    made = {
        "query": (used, attributes[HEADS], dim),
        "key": (used_keys, kv_heads, dim),
        "value": (used_keys, kv_heads, value_dim),
    }
    values: dict[str, npt.NDArray[Any]] = dict(floats(made, dtype))
    values["topk_indices"] = topk.astype(np.int32)
    values[QUERY_LENGTHS], values[KEY_LENGTHS] = ends.astype(np.int64), key_ends.astype(np.int64)
    text = (
        f"query {list(made['query'])} {dtype}, {attributes[COUNT]} blocks of {attributes[SELECT]} of {used_keys} tokens"
    )
    return Sample(dtype, values, note(text, max(rows, used), used, "T1"))


def _ends(tokens: int, batch: int, most: int) -> Integers:
    """Prefix sums of sequences that are about alike."""
    ends: Integers = np.arange(1, batch + 1, dtype=np.int64) * min(tokens, most) // batch
    return ends
