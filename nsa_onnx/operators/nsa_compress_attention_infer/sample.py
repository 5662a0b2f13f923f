"""Input and expected result of an NsaCompressAttentionInfer node, for ``check --run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..attention import COMPRESSED_LENGTHS, COUNT, HEADS, PAGE, SCALE, SELECT, pages_read, table_violations
from ..attention_reference import block_scores, softmax
from ..attention_sampling import FLOATS, MAX_TOKENS, Heads, batch, most_rows, table
from ..base import Attributes, Exact, NotRunError, Ranked, Sample
from ..contract import plural
from ..facts import NodeFacts
from ..sampling import MAX_ELEMENTS, first_known, float_type, floats, note
from ..windows import BLOCK, STRIDE
from .contract import ROWS, block_count, forced_blocks


def reference(values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> tuple[Exact, Ranked]:
    """The outputs in float64."""
    query, key, value = (values[name].astype(np.float64) for name in FLOATS)
    pages, lengths = values["block_table"], values[COMPRESSED_LENGTHS].tolist()
    kv_heads, page = key.shape[2], key.shape[1]
    group = attributes[HEADS] // kv_heads
    strides = attributes[SELECT] // attributes[STRIDE], attributes[BLOCK] // attributes[STRIDE]
    # A sequence without a compressed token has one block all the same.
    counts = [max(1, block_count(n, attributes[BLOCK], attributes[STRIDE], attributes[SELECT])) for n in lengths]
    out, out_slack = np.zeros((2, len(query), attributes[HEADS], value.shape[-1]))
    scores, slack = np.zeros((2, len(query), kv_heads, max(counts, default=0)))
    scores[:] = -np.inf
    for b, (length, blocks) in enumerate(zip(lengths, counts, strict=True)):
        positions = np.arange(length)
        at = pages[b, positions // page], positions % page
        for g in range(kv_heads) if length else ():
            heads = slice(g * group, (g + 1) * group)
            keys = key[at][:, g].T
            queries = query[b, heads][:, None]
            products, sizes = queries @ keys, np.abs(queries) @ np.abs(keys)
            chances = softmax(products, sizes, query.shape[-1], attributes[SCALE])
            attended = chances.weighted(value[at][:, g])
            out[b, heads], out_slack[b, heads] = attended.values[:, 0], attended.slack[:, 0]
            own = block_scores(chances, blocks, *strides)
            scores[b, g, :blocks], slack[b, g, :blocks] = own.values[0], own.slack[0]
        certain = list(forced_blocks(blocks))
        scores[b][:, certain], slack[b][:, certain] = np.inf, 0.0
    return Exact(out, out_slack), Ranked(scores, slack, attributes[COUNT])


def make(facts: NodeFacts, attributes: Attributes) -> Sample:
    """Valid input for a node. NotRunError if there is none."""
    heads, page = Heads.of(facts, attributes), attributes[PAGE]
    dims = facts.tensor("query").dim(0), facts.tensor("block_table").dim(0)
    sequences = batch(facts, (COMPRESSED_LENGTHS, "block_table"), dims)
    constant = facts.constants.get(COMPRESSED_LENGTHS)
    longest = 3 * page + 1 if constant is None else int(constant.max(initial=0))
    most = min(most_rows(heads.query), max(MAX_TOKENS, page)) // page
    if constant is not None and longest > most_rows(heads.query):
        raise NotRunError(f"{longest} compressed tokens of one sequence, at most {most_rows(heads.query)} are run")
    each = first_known(facts.tensor("block_table").dim(1), default=pages_read(longest, page))
    if "block_table" not in facts.constants:
        each = min(each, max(1, most, pages_read(longest, page)))
    if each * sequences > MAX_ELEMENTS:
        raise NotRunError(f"{plural(sequences, 'sequence')} of {each} pages, at most {MAX_ELEMENTS} pages are run")
    declared = first_known(facts.tensor("key").dim(0), facts.tensor("value").dim(0), default=5)
    block_num = min(declared, most_rows(page * heads.kv * heads.dim))
    pages = table(facts, sequences, each, block_num)
    fitting = min(each, most) * page
    wanted = np.minimum([fitting, 0, 1, fitting // 2], fitting) if constant is None else constant
    lengths = np.resize(np.asarray(wanted, np.int64), sequences)
    read = [range(pages_read(int(n), page)) for n in lengths]
    if constant is None:
        # A constant table may serve some of the sequences only.
        for b in range(sequences):
            if any(table_violations(ROWS, pages[b : b + 1].tolist(), read[b : b + 1], block_num)):
                lengths[b], read[b] = 0, range(0)
    for violation in table_violations(ROWS, pages.tolist(), read, block_num):
        raise NotRunError(f"no input of at most {MAX_ELEMENTS} elements is valid: {violation.message}")
    dtype = float_type(facts, FLOATS)
    shapes = {
        "query": (sequences, heads.query, heads.dim),
        "key": (block_num, page, heads.kv, heads.dim),
        "value": (block_num, page, heads.kv, heads.value_dim),
    }
    values: dict[str, npt.NDArray[Any]] = dict(floats(shapes, dtype))
    values[COMPRESSED_LENGTHS], values["block_table"] = lengths, pages.astype(np.int32)
    text = f"key {list(shapes['key'])} {dtype}, {plural(sequences, 'sequence')} of up to {int(lengths.max(initial=0))}"
    return Sample(dtype, values, note(text, declared, block_num, "block_num"))
