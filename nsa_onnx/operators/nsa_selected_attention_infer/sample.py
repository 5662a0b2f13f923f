"""Input and expected result of an NsaSelectedAttentionInfer node, for ``check --run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...graph.tensors import Integers
from ..attention import COUNT, HEADS, KEY_LENGTHS, KV_HEADS, PAGE, SELECT
from ..base import Attributes, Exact, NotRunError, Sample
from ..contract import plural
from ..facts import NodeFacts
from ..sampling import MAX_BATCH, MAX_ELEMENTS, MAX_SEQUENCES, first_known, float_type, floats, note
from ..selected import attended, dims_of, most_rows, some_blocks, tokens_of
from .contract import block_violations, page_violations


def reference(values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> Exact:
    """The output in float64, sequence by sequence."""
    query, key, value = (values[name] for name in ("query", "key", "value"))
    topk, table, page = values["topk_indices"], values["block_table"], attributes[PAGE]
    kv_heads = attributes[KV_HEADS]
    group = query.shape[1] // kv_heads
    out = np.zeros((*query.shape[:2], value.shape[3]))
    slack = np.zeros(out.shape)
    for b, length in enumerate(values[KEY_LENGTHS].tolist()):
        for g in range(kv_heads):
            tokens = tokens_of(topk[b, g], length, attributes[SELECT])
            at, heads = (table[b, tokens // page], tokens % page, g), slice(g * group, (g + 1) * group)
            seen = np.zeros(len(tokens), bool)
            exact = attended(query[b, heads], key[at], value[at], attributes, seen)
            out[b, heads], slack[b, heads] = exact.values, exact.slack
    return Exact(out, slack)


def make(facts: NodeFacts, attributes: Attributes) -> Sample:
    """Valid input for a node. NotRunError if there is none."""
    names = ("topk_indices", KEY_LENGTHS, "block_table")
    topk, lengths, table = (facts.constants.get(name) for name in names)
    constants = [one for one in (topk, lengths, table) if one is not None]
    dim, value_dim = dims_of(facts)
    page, kv_heads = attributes[PAGE], attributes[KV_HEADS]
    shapes = [facts.tensor(name).dim(0) for name in ("query", *names)]
    declared = first_known(*(len(one) for one in constants), *shapes, default=4)
    if constants and declared > MAX_SEQUENCES:
        raise NotRunError(f"{plural(declared, 'sequence')}, at most {MAX_SEQUENCES} are run")
    most = min(MAX_BATCH, most_rows(attributes, dim + value_dim))
    batch = declared if constants else min(declared, most)

    # As many pages as the blocks have and one more; or what constant lengths need.
    longest = attributes[COUNT] * attributes[SELECT] if lengths is None else int(lengths.max(initial=0))
    wanted = -(-longest // page) + (lengths is None)
    pages = first_known(facts.tensor("block_table").dim(1), default=wanted)
    pages = table.shape[1] if table is not None else min(pages, wanted)
    most_pages = MAX_ELEMENTS // (page * max(1, kv_heads * dim))
    whole = first_known(facts.tensor("key").dim(0), facts.tensor("value").dim(0), default=batch * pages)
    block_num = min(whole, most_pages)
    if pages * batch > MAX_ELEMENTS:
        raise NotRunError(f"{plural(batch, 'sequence')} of {pages} pages, at most {MAX_ELEMENTS} pages are run")
    if table is None:
        table = np.random.default_rng(1).integers(0, max(1, block_num), (batch, pages))
    if lengths is None:
        lengths = _lengths(table, block_num, page)
        if topk is not None:
            least = (topk.max(axis=(1, 2), initial=-1) + 1) * attributes[SELECT]
            lengths = np.maximum(lengths, np.minimum(least, pages * page))
    if topk is None:
        topk = some_blocks(lengths, lengths - 1, kv_heads, attributes)
    sizes = attributes[SELECT], page, block_num
    found = [*block_violations(topk.tolist(), lengths.tolist(), attributes[SELECT])]
    found = found or [*page_violations(topk.tolist(), table.tolist(), lengths.tolist(), *sizes)]
    if found:
        raise NotRunError(f"no input of at most {MAX_ELEMENTS} elements is valid: {found[0].message}")

    dtype = float_type(facts, ("query", "key", "value"))
    made = {
        "query": (batch, attributes[HEADS], dim),
        "key": (block_num, page, kv_heads, dim),
        "value": (block_num, page, kv_heads, value_dim),
    }
    values: dict[str, npt.NDArray[Any]] = dict(floats(made, dtype))
    values["topk_indices"], values["block_table"] = topk.astype(np.int32), table.astype(np.int32)
    values[KEY_LENGTHS] = lengths.astype(np.int64)
    text = f"query {list(made['query'])} {dtype}, {plural(block_num, 'page')} of {page} tokens"
    return Sample(dtype, values, note(text, whole, block_num, "block_num"))


def _lengths(table: Integers, block_num: int, page: int) -> Integers:
    """Of each sequence as many tokens as its first pages that exist can hold: all, all but one, one, none."""
    exist = np.cumprod((table >= 0) & (table < block_num), axis=1).sum(axis=1) * page
    less = np.resize([0, 1, page - 1, page], len(table))
    lengths: Integers = np.maximum(exist - less, 0).astype(np.int64)
    return lengths
