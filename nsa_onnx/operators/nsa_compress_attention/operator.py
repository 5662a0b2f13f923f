"""The operator NsaCompressAttention: its node and its documentation; the other files of this folder have the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from ...graph.tensors import Integers
from .. import attention_picture
from ..attention import BLOCK_LENGTHS, COMPRESSED_LENGTHS, QUERY_LENGTHS, SELECT, steps
from ..attention_nodes import (
    MASKED_TEXT,
    NUMBERS_TEXT,
    AttentionOperator,
    attention_out,
    attributes,
    limits_text,
    query,
)
from ..base import Attributes, Exact, Input, Lengths, Ranked, Sample, T
from ..bodies import inlined
from ..compress_attention import SCORES_TEXT, WINDOW, topk_indices
from ..compression import HOST
from ..contract import Violations
from ..facts import NodeFacts
from ..pictures import Attended
from ..windows import BLOCK, STRIDE
from . import contract, sample
from .body import BODY, default_mask
from .call import nsa_compress_attention
from .contract import STAGE
from .example import EXAMPLE
from .rule_examples import RULE_EXAMPLES

_DOC = f"""Attention of query tokens to the compressed tokens of their sequences, and the blocks of tokens it selects.

    P[t, h, j] = softmax over j of scale_value * <query[t, h], key[j, h // G]>      G = N1 / N2
    attention_out[t, h] = sum_j P[t, h, j] * value[j, h // G]

`j` runs over the compressed tokens of the sequence that `t` is in. {MASKED_TEXT} `topk_indices` tells, for each row and
key/value head, the blocks of `select_block_size` tokens that are worth attending to in full:

{SCORES_TEXT} Where `topk_mask` is true, the score is infinite.

The batch's sequences lie one after the other in `query` and in `key` and `value`. A sequence without compressed tokens
is legal: its rows are 0, and it has no block.

{NUMBERS_TEXT}

Limits: {limits_text(STAGE)}.
"""
_MASKS = {"topk_mask": BLOCK_LENGTHS, "atten_mask": COMPRESSED_LENGTHS}


class NsaCompressAttention(AttentionOperator):
    """Prefill: query tokens attend to compressed tokens, and select blocks."""

    contract = contract.CONTRACT
    stage = STAGE
    function = staticmethod(nsa_compress_attention)
    doc = _DOC
    inputs = (
        query("T1", "the query tokens of all sequences, one sequence after the other."),
        Input("key", T, "`[Tc, N2, D]`: the compressed keys of all sequences.", agrees=WINDOW),
        Input("value", T, "`[Tc, N2, Dv]`: the compressed values.", agrees=WINDOW),
        Input(
            QUERY_LENGTHS,
            "tensor(int64)",
            "`[B]`: prefix sums of the sequences' lengths in query tokens: not negative, not decreasing, the last one "
            f"equal to `T1`. {HOST}",
            lengths=Lengths.PREFIX_SUMS,
        ),
        Input(
            COMPRESSED_LENGTHS,
            "tensor(int64)",
            f"`[B]`: the same in compressed tokens, the last one equal to `Tc`. {HOST}",
            lengths=Lengths.PREFIX_SUMS,
        ),
        Input(
            BLOCK_LENGTHS,
            "tensor(int64)",
            "`[B]`: the same in blocks. A sequence of `Lcmp` compressed tokens has "
            f"`S = ceil(Lcmp * compress_stride / select_block_size)`. {HOST}",
            lengths=Lengths.PREFIX_SUMS,
        ),
        Input(
            "atten_mask",
            "tensor(bool)",
            "`[M, L]`: true where a query token does not see a compressed token. All sequences share it, from its "
            "first row and column on: `M` is at least their greatest length in query tokens, `L` that in compressed "
            "tokens. Without it, all is seen.",
            optional=True,
        ),
        Input(
            "topk_mask",
            "tensor(bool)",
            "`[M, S]`: true where a block is always selected; as `atten_mask`, `S` at least the most blocks.",
            optional=True,
        ),
    )
    outputs = (attention_out("T1", 2), topk_indices("T1", 1))
    attributes = attributes(STAGE)
    body_text = BODY
    example = EXAMPLE
    rule_examples = RULE_EXAMPLES

    def value_violations(self, facts: NodeFacts) -> Violations:
        names = (QUERY_LENGTHS, COMPRESSED_LENGTHS, BLOCK_LENGTHS)
        lengths = {name: vector for name in names if (vector := facts.vector(name)) is not None}
        shapes = {name: facts.tensor(name).dims(2) for name in _MASKS if name in facts.inputs}
        sizes = facts.integer(STRIDE), facts.integer(SELECT)
        return contract.value_violations(shapes, lengths, *sizes)

    def looks_ahead(self, facts: NodeFacts) -> tuple[str, str] | None:
        if "atten_mask" in facts.inputs:
            return None
        return "atten_mask", "without atten_mask every query token sees all compressed tokens of its sequence"

    def blind_rows(self, facts: NodeFacts) -> tuple[str, Integers] | None:
        mask, window = facts.masks.get("atten_mask"), facts.integer(BLOCK)
        if mask is None or window is None:
            return None
        ends, seen_ends = facts.vector(QUERY_LENGTHS), facts.vector(COMPRESSED_LENGTHS)
        parts = [mask]
        if ends is not None and seen_ends is not None:
            parts = [mask[:rows, :seen] for rows, seen in zip(steps(ends), steps(seen_ends), strict=True)]
        blind = {row for part in parts if part.shape[1] for row in np.flatnonzero(part.all(axis=1)).tolist()}
        # The first window is complete with the token of this row.
        rows = sorted(row for row in blind if row >= window - 1)
        return ("atten_mask", np.array(rows, np.int64)) if rows else None

    def picture(self, facts: NodeFacts, lengths: Sequence[int] | None) -> Attended:
        """Blocks of the tokens that the compressed ones begin in: as many as actual_sel_seq_kvlen says."""
        (stride,) = attention_picture.sizes(facts, STRIDE)
        compressed, why = attention_picture.lengths_of(
            facts, COMPRESSED_LENGTHS, lengths, (63, 20, 3), prefix_sums=True
        )
        return attention_picture.attended(facts, compressed * stride, compressed, why, chooses=True)

    def completion(self, node: NodeProto, prefix: str, opset: int) -> list[NodeProto]:
        """The masks that are left out."""
        given = dict(zip(self.input_names, node.input, strict=False))
        nodes: list[NodeProto] = []
        for name, columns in _MASKS.items():
            if not given.get(name):
                nodes += inlined(default_mask(name, columns), opset, given, prefix)
        return nodes

    def sample(self, facts: NodeFacts, attributes: Attributes) -> Sample:
        return sample.make(facts, attributes)

    def reference(self, values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> tuple[Exact, Ranked]:
        return sample.reference(values, attributes)
