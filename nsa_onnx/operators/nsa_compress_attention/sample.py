"""Input and expected result of an NsaCompressAttention node, for ``check --run``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...graph.tensors import Integers
from ..attention import BLOCK_LENGTHS, COMPRESSED_LENGTHS, COUNT, HEADS, QUERY_LENGTHS, SCALE, SELECT, steps
from ..attention_reference import block_scores, softmax
from ..attention_sampling import FLOATS, MAX_TOKENS, Heads, batch, most_rows, spread
from ..base import Attributes, Exact, NotRunError, Ranked, Sample
from ..facts import NodeFacts
from ..sampling import first_known, float_type, floats, note
from ..windows import BLOCK, STRIDE
from .contract import block_count

_Values = Mapping[str, npt.NDArray[Any]]


def reference(values: _Values, attributes: Attributes) -> tuple[Exact, Ranked]:
    """The outputs in float64."""
    query, key, value = (values[name].astype(np.float64) for name in FLOATS)
    group = attributes[HEADS] // key.shape[1]
    strides = attributes[SELECT] // attributes[STRIDE], attributes[BLOCK] // attributes[STRIDE]
    ends = [values[name].tolist() for name in (QUERY_LENGTHS, COMPRESSED_LENGTHS)]
    most = max((block_count(int(n), attributes[STRIDE], attributes[SELECT]) for n in _lengths(ends[1])), default=0)
    out, out_slack = np.zeros((2, len(query), attributes[HEADS], value.shape[-1]))
    scores, slack = np.full((len(query), key.shape[1], most), -np.inf), np.zeros((len(query), key.shape[1], most))
    row = token = 0
    for row_end, token_end in zip(*ends, strict=True):
        own, tokens = slice(row, row_end), token_end - token
        blocks = block_count(tokens, attributes[STRIDE], attributes[SELECT])
        hidden = _part(values.get("atten_mask"), row_end - row, tokens)
        forced = _part(values.get("topk_mask"), row_end - row, blocks)
        for g in range(key.shape[1]) if tokens and row_end > row else ():
            heads = slice(g * group, (g + 1) * group)
            queries, keys = query[own, heads].swapaxes(0, 1), key[token:token_end, g].T
            products, sizes = queries @ keys, np.abs(queries) @ np.abs(keys)
            unseen = None if hidden is None else np.broadcast_to(hidden, products.shape)
            chances = softmax(products, sizes, query.shape[-1], attributes[SCALE], unseen)
            attended = chances.weighted(value[token:token_end, g])
            out[own, heads], out_slack[own, heads] = attended.values.swapaxes(0, 1), attended.slack.swapaxes(0, 1)
            own_scores = block_scores(chances, blocks, *strides)
            certain = np.zeros(own_scores.values.shape, bool) if forced is None else forced
            scores[own, g, :blocks] = np.where(certain, np.inf, own_scores.values)
            slack[own, g, :blocks] = np.where(certain, 0.0, own_scores.slack)
        row, token = row_end, token_end
    return Exact(out, out_slack), Ranked(scores, slack, attributes[COUNT])


def _lengths(ends: list[int]) -> Integers:
    return np.array(steps(ends), np.int64)


def _part(mask: npt.NDArray[Any] | None, rows: int, columns: int) -> npt.NDArray[np.bool_] | None:
    return None if mask is None else mask[:rows, :columns].astype(bool)


def make(facts: NodeFacts, attributes: Attributes) -> Sample:
    """Valid input for a node. NotRunError if there is none."""
    heads = Heads.of(facts, attributes)
    sequences = batch(facts, (QUERY_LENGTHS, COMPRESSED_LENGTHS, BLOCK_LENGTHS))
    per_block = attributes[SELECT] // attributes[STRIDE]
    wanted = _compressed(facts, sequences, per_block)
    most_queries, most_tokens = _within_masks(facts, per_block)
    compressed = np.minimum(wanted, min(most_rows(heads.kv * heads.dim, heads.query), MAX_TOKENS))
    compressed = np.cumsum(np.minimum(_lengths(compressed.tolist()), most_tokens))
    blocks = np.cumsum(
        [block_count(int(n), attributes[STRIDE], attributes[SELECT]) for n in _lengths(compressed.tolist())]
    )
    longest = int(_lengths(compressed.tolist()).max())
    rows = facts.constants.get(QUERY_LENGTHS)
    if rows is None:
        rows = spread(first_known(facts.tensor("query").dim(0), default=40), sequences)
    declared = int(rows[-1])
    rows = np.minimum(rows, most_rows(heads.query * heads.dim, 4 * heads.query * longest))
    rows = np.cumsum(np.minimum(_lengths(rows.tolist()), most_queries))
    dtype = float_type(facts, FLOATS)
    shapes = {
        "query": (int(rows[-1]), heads.query, heads.dim),
        "key": (int(compressed[-1]), heads.kv, heads.dim),
        "value": (int(compressed[-1]), heads.kv, heads.value_dim),
    }
    values: dict[str, npt.NDArray[Any]] = dict(floats(shapes, dtype))
    lengths = {QUERY_LENGTHS: rows, COMPRESSED_LENGTHS: compressed, BLOCK_LENGTHS: blocks}
    values |= {name: one.astype(np.int64) for name, one in lengths.items()}
    most = {name: int(_lengths(one.tolist()).max()) for name, one in lengths.items()}
    for seed, (name, columns) in enumerate((("atten_mask", COMPRESSED_LENGTHS), ("topk_mask", BLOCK_LENGTHS))):
        if name in facts.inputs:
            constant = facts.masks.get(name)
            if constant is not None and constant.ndim == 2:
                values[name] = constant
                continue
            mask = np.random.default_rng(seed).random((most[QUERY_LENGTHS], most[columns])) < 0.25
            mask[:1] = name == "atten_mask"  # the first row sees nothing
            values[name] = mask
    text = note(f"query {list(shapes['query'])} {dtype}", declared, int(rows[-1]), "T1")
    return Sample(dtype, values, note(text, int(wanted[-1]), int(compressed[-1]), "Tc"))


def _within_masks(facts: NodeFacts, per_block: int) -> tuple[int, int]:
    """The most tokens of query and of key that a sequence may have for constant masks."""
    rows, tokens = [MAX_TOKENS], [MAX_TOKENS]
    for name, mask in facts.masks.items():
        if mask.ndim == 2:
            rows.append(mask.shape[0])
            tokens.append(mask.shape[1] * (per_block if name == "topk_mask" else 1))
    return min(rows), min(tokens)


def _compressed(facts: NodeFacts, sequences: int, per_block: int) -> Integers:
    """Prefix sums in compressed tokens: the model's, or such that they have the model's blocks."""
    constant, blocks = facts.constants.get(COMPRESSED_LENGTHS), facts.constants.get(BLOCK_LENGTHS)
    tokens = facts.tensor("key").dim(0)
    if constant is not None:
        return constant
    if blocks is None:
        return spread(first_known(tokens, default=8 * per_block + 1), sequences)
    counts = np.diff(blocks, prepend=0)
    lengths = counts * per_block
    if tokens is not None:
        # Up to m - 1 tokens less in each sequence that has blocks.
        less = int(lengths.sum()) - tokens
        spare = np.where(counts > 0, per_block - 1, 0)
        if not 0 <= less <= int(spare.sum()):
            raise NotRunError(f"no input is valid: {tokens} compressed tokens do not make {int(counts.sum())} blocks")
        taken = np.minimum(np.cumsum(spare), less)
        lengths = lengths - np.diff(taken, prepend=0)
    return np.cumsum(lengths)
