"""Input and expected result of an NsaSelectedAttentionInfer node, for ``check --run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...graph.tensors import Integers
from ..attention import COUNT, KEY_LENGTHS, KV_HEADS, PAGE, SELECT
from ..attention_sampling import FLOATS, as_values, batch, most_rows, table
from ..base import Attributes, Exact, NotRunError, Sample
from ..contract import plural
from ..facts import NodeFacts
from ..sampling import MAX_ELEMENTS, first_known, float_type, floats, note
from ..selected import attended, heads_of, rows_run, some_blocks, tokens_of
from .contract import block_violations, page_violations


def reference(values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> Exact:
    """The output in float64, sequence by sequence."""
    query, key, value = (values[name] for name in ("query", "key", "value"))
    topk, pages, page = values["topk_indices"], values["block_table"], attributes[PAGE]
    kv_heads = attributes[KV_HEADS]
    group = query.shape[1] // kv_heads
    out = np.zeros((*query.shape[:2], value.shape[3]))
    slack = np.zeros(out.shape)
    for b, length in enumerate(values[KEY_LENGTHS].tolist()):
        for g in range(kv_heads):
            tokens = tokens_of(topk[b, g], length, attributes[SELECT])
            at, heads = (pages[b, tokens // page], tokens % page, g), slice(g * group, (g + 1) * group)
            seen = np.zeros(len(tokens), bool)
            exact = attended(query[b, heads], key[at], value[at], attributes, seen)
            out[b, heads], slack[b, heads] = exact.values, exact.slack
    return Exact(out, slack)


def make(facts: NodeFacts, attributes: Attributes) -> Sample:
    """Valid input for a node. NotRunError if there is none."""
    topk, lengths = facts.constants.get("topk_indices"), facts.constants.get(KEY_LENGTHS)
    constant_table = "block_table" in facts.constants
    heads, page = heads_of(facts, attributes), attributes[PAGE]
    dims = [facts.tensor(name).dim(0) for name in ("query", KEY_LENGTHS)]
    sequences = batch(facts, (KEY_LENGTHS, "topk_indices", "block_table"), dims)
    if topk is None and lengths is None and not constant_table:
        sequences = min(sequences, rows_run(attributes, heads))

    # As many pages as the blocks have and one more; or what constant lengths need.
    longest = attributes[COUNT] * attributes[SELECT] if lengths is None else int(lengths.max(initial=0))
    wanted = -(-longest // page) + (lengths is None)
    pages = first_known(facts.tensor("block_table").dim(1), default=wanted)
    pages = pages if constant_table else min(pages, wanted)
    if pages * sequences > MAX_ELEMENTS:
        raise NotRunError(f"{plural(sequences, 'sequence')} of {pages} pages, at most {MAX_ELEMENTS} pages are run")
    declared = first_known(facts.tensor("key").dim(0), facts.tensor("value").dim(0), default=sequences * pages)
    block_num = min(declared, most_rows(page * heads.kv * heads.dim))
    entries = table(facts, sequences, pages, block_num)
    if lengths is None:
        lengths = _lengths(entries, block_num, page)
        if topk is not None:
            least = (topk.max(axis=(1, 2), initial=-1) + 1) * attributes[SELECT]
            lengths = np.maximum(lengths, np.minimum(least, pages * page))
    if topk is None:
        topk = some_blocks(lengths, lengths - 1, heads.kv, attributes)
    sizes = attributes[SELECT], page, block_num
    found = [*block_violations(topk.tolist(), lengths.tolist(), attributes[SELECT])]
    found = found or [*page_violations(topk.tolist(), entries.tolist(), lengths.tolist(), *sizes)]
    if found:
        raise NotRunError(f"no input of at most {MAX_ELEMENTS} elements is valid: {found[0].message}")

    dtype = float_type(facts, FLOATS)
    shapes = {
        "query": (sequences, heads.query, heads.dim),
        "key": (block_num, page, heads.kv, heads.dim),
        "value": (block_num, page, heads.kv, heads.value_dim),
    }
    indices = {"topk_indices": topk, "block_table": entries, KEY_LENGTHS: lengths}
    text = f"query {list(shapes['query'])} {dtype}, {plural(block_num, 'page')} of {page} tokens"
    return Sample(dtype, as_values(floats(shapes, dtype), **indices), note(text, declared, block_num, "block_num"))


def _lengths(table: Integers, block_num: int, page: int) -> Integers:
    """Of each sequence as many tokens as its first pages that exist can hold: all, all but one, one, none."""
    exist = np.cumprod((table >= 0) & (table < block_num), axis=1).sum(axis=1) * page
    less = np.resize([0, 1, page - 1, page], len(table))
    lengths: Integers = np.maximum(exist - less, 0).astype(np.int64)
    return lengths
