"""The operator NsaCompressAttentionInfer: its node and its documentation; the rest is in this folder's other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import attention_picture
from ..attention import COMPRESSED_LENGTHS, PAGE, pages_read, table_violations
from ..attention_nodes import NUMBERS_TEXT, AttentionOperator, attention_out, attributes, limits_text, query
from ..base import Attributes, Exact, Input, Lengths, Ranked, Sample, T
from ..compress_attention import SCORES_TEXT, WINDOW, topk_indices
from ..compression import HOST
from ..contract import Violations
from ..facts import NodeFacts
from ..pictures import Attended
from ..windows import BLOCK, STRIDE
from . import contract, sample
from .body import BODY
from .call import nsa_compress_attention_infer
from .contract import STAGE
from .example import EXAMPLE
from .rule_examples import RULE_EXAMPLES

_DOC = f"""One decode step over a paged cache of compressed tokens: each sequence's query token attends to all of its
compressed tokens, and selects blocks of tokens.

    P[h, j] = softmax over j of scale_value * <query[b, h], key(b, j)[h // G]>      G = N1 / N2
    attention_out[b, h] = sum_j P[h, j] * value(b, j)[h // G]
    key(b, j) = key[block_table[b, j // page_block_size], j % page_block_size], and value alike

`j` runs over the `Lcmp = actual_cmp_seq_kvlen[b]` compressed tokens of sequence `b`. `topk_indices` tells, for each
sequence and key/value head, the blocks of `select_block_size` tokens that are worth attending to in full:

{SCORES_TEXT}

A sequence has `S = ceil(((Lcmp - 1) * compress_stride + compress_block_size) / select_block_size)` blocks, of which the
first one and the last two are always selected. Without a compressed token, a sequence is shorter than a window: its
output is 0, and it selects block 0.

{NUMBERS_TEXT}

Limits: {limits_text(STAGE)}. The entries of `block_table` that are read are in `[0, block_num)`; others may
hold anything (-1 padding is common). A bad index is an error: nothing is clamped or wrapped.
"""


class NsaCompressAttentionInfer(AttentionOperator):
    """Decode: a query token of each sequence attends to compressed tokens in pages, and selects blocks."""

    contract = contract.CONTRACT
    stage = STAGE
    function = staticmethod(nsa_compress_attention_infer)
    doc = _DOC
    inputs = (
        query("B", "one query token of each sequence."),
        Input("key", T, "`[block_num, page_block_size, N2, D]`: the pages of the compressed keys.", agrees=WINDOW),
        Input(
            "value",
            T,
            "`[block_num, page_block_size, N2, Dv]`: the pages of the compressed values.",
            agrees=WINDOW,
        ),
        Input(
            COMPRESSED_LENGTHS,
            "tensor(int64)",
            f"`[B]`: the sequences' lengths in compressed tokens (not prefix sums), each in `0 .. P * {PAGE}`. {HOST}",
            lengths=Lengths.LENGTHS,
        ),
        Input(
            "block_table",
            "tensor(int32)",
            f"`[B, P]`: the physical page of each logical page of each sequence. {HOST}",
            below=("key", 0),
            page_size=PAGE,
        ),
    )
    outputs = (attention_out("B", 3), topk_indices("B", 2))
    attributes = attributes(STAGE)
    body_text = BODY
    example = EXAMPLE
    rule_examples = RULE_EXAMPLES

    def value_violations(self, facts: NodeFacts) -> Violations:
        lengths, table, page = facts.vector(COMPRESSED_LENGTHS), facts.constants.get("block_table"), facts.integer(PAGE)
        block_num = facts.tensor("key").dim(0)
        if lengths is not None and table is not None and page is not None and block_num is not None:
            read = [range(pages_read(length, page)) for length in lengths]
            yield from table_violations(self.contract.rows, table, read, block_num)  # type: ignore[arg-type]

    def picture(self, facts: NodeFacts, lengths: Sequence[int] | None) -> Attended:
        """Blocks of the tokens that the compressed ones were made of."""
        block, stride = attention_picture.sizes(facts, BLOCK, STRIDE)
        compressed, why = attention_picture.lengths_of(
            facts, COMPRESSED_LENGTHS, lengths, (62, 20, 1), prefix_sums=False
        )
        tokens = np.where(compressed > 0, (compressed - 1) * stride + block, 0)
        return attention_picture.attended(facts, tokens, compressed, why, chooses=True, forced=contract.forced_blocks)

    def sample(self, facts: NodeFacts, attributes: Attributes) -> Sample:
        return sample.make(facts, attributes)

    def reference(self, values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> tuple[Exact, Ranked]:
        return sample.reference(values, attributes)
