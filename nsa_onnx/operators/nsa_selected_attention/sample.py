"""Input and expected result of an NsaSelectedAttention node, for ``check --run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..attention import CAUSAL, COUNT, KEY_LENGTHS, QUERY_LENGTHS, SELECT
from ..attention_sampling import FLOATS, as_values, batch, most_rows, spread
from ..base import Attributes, Exact, NotRunError, Sample
from ..facts import NodeFacts
from ..sampling import MAX_ELEMENTS, first_known, float_type, floats, note
from ..selected import attended, heads_of, rows_run, some_blocks, tokens_of
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
    topk, ends, key_ends = (facts.constants.get(name) for name in ("topk_indices", QUERY_LENGTHS, KEY_LENGTHS))
    heads, sequences = heads_of(facts, attributes), batch(facts, (QUERY_LENGTHS, KEY_LENGTHS))
    query, key, value, blocks = (facts.tensor(name) for name in (*FLOATS, "topk_indices"))
    rows = first_known(query.dim(0), blocks.dim(0), default=8 * sequences)
    keys = first_known(key.dim(0), value.dim(0), default=sequences * (2 * attributes[SELECT] + 5))
    most, most_keys = rows_run(attributes, heads), most_rows(heads.kv * heads.dim)
    ends = spread(min(rows, most), sequences) if ends is None else np.minimum(ends, most)
    if key_ends is None:
        key_ends = spread(min(keys, most_keys), sequences)
    elif topk is None:  # constant blocks are those of the whole sequences
        key_ends = np.minimum(key_ends, most_keys)
    used, used_keys = int(ends[-1]), int(key_ends[-1])
    if used_keys > most_keys:
        raise NotRunError(f"key has {used_keys} tokens, at most {most_keys} are run with constant blocks")

    steps = np.diff(ends, prepend=0)
    positions = np.arange(used) - np.repeat(ends - steps, steps)
    if topk is None:
        lengths = np.repeat(np.diff(key_ends, prepend=0), steps)
        topk = some_blocks(lengths, positions, heads.kv, attributes)
    topk = topk[:used]
    for violation in block_violations(topk.tolist(), ends.tolist(), key_ends.tolist(), attributes[SELECT]):
        raise NotRunError(f"no input of at most {MAX_ELEMENTS} elements is valid: {violation.message}")
    dtype = float_type(facts, FLOATS)
    shapes = {
        "query": (used, heads.query, heads.dim),
        "key": (used_keys, heads.kv, heads.dim),
        "value": (used_keys, heads.kv, heads.value_dim),
    }
    indices = {"topk_indices": topk, QUERY_LENGTHS: ends, KEY_LENGTHS: key_ends}
    text = f"query {list(shapes['query'])} {dtype}, {attributes[COUNT]} blocks of {attributes[SELECT]}, T2 {used_keys}"
    return Sample(dtype, as_values(floats(shapes, dtype), **indices), note(text, max(rows, used), used, "T1"))
