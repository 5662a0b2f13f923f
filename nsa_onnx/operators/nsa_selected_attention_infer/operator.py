"""The operator NsaSelectedAttentionInfer: its node and documentation; the other files of this folder have the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import attention_picture
from ..attention import COUNT, KEY_LENGTHS, PAGE, SELECT
from ..attention_nodes import NUMBERS_TEXT, AttentionOperator, attention_out, attributes, limits_text, query
from ..base import Attributes, Exact, Input, Lengths, Sample, T
from ..compression import HOST
from ..contract import Violations
from ..facts import NodeFacts
from ..pictures import Attended
from ..selected import BLOCKS_TEXT, topk_input
from . import contract, sample
from .body import BODY
from .call import nsa_select_attention_infer
from .contract import STAGE
from .example import EXAMPLE
from .rule_examples import RULE_EXAMPLES

_DOC = f"""One decode step over paged keys and values: each sequence's query token attends to its selected blocks.

{BLOCKS_TEXT}

    attention_out[b, h] = sum_j P[j] * value(b, j)[h // G]      over the tokens j of the blocks topk_indices[b, h // G]
    P = softmax_j (scale_value * <query[b, h], key(b, j)[h // G]>)
    key(b, j) = key[block_table[b, j // page_block_size], j % page_block_size], value(b, j) likewise

{NUMBERS_TEXT}

Limits: {limits_text(STAGE)}. A block that its sequence does not have and a page outside `[0, block_num)` are
errors, found before anything is written. Entries of `block_table` that no selected block lies on may hold anything (-1
padding is common).
"""


class NsaSelectedAttentionInfer(AttentionOperator):
    """Decode: each sequence's query token attends to the tokens of its selected blocks, in pages."""

    contract = contract.CONTRACT
    stage = STAGE
    function = staticmethod(nsa_select_attention_infer)
    doc = _DOC
    inputs = (
        query("B", "one query token of each sequence."),
        Input("key", T, "`[block_num, page_block_size, N2, D]`: the pages of the keys."),
        Input("value", T, "`[block_num, page_block_size, N2, Dv]`: the pages of the values."),
        topk_input("B"),
        Input(
            KEY_LENGTHS,
            "tensor(int64)",
            f"`[B]`: the sequences' lengths in tokens (not prefix sums), each in `0 .. P * {PAGE}`. {HOST}",
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
    outputs = (attention_out("B", 3),)
    attributes = attributes(STAGE)
    body_text = BODY
    example = EXAMPLE
    rule_examples = RULE_EXAMPLES

    def value_violations(self, facts: NodeFacts) -> Violations:
        """Constant blocks and pages, where the lengths are constant as well."""
        topk, table = facts.constants.get("topk_indices"), facts.constants.get("block_table")
        lengths, select, page = facts.vector(KEY_LENGTHS), facts.integer(SELECT), facts.integer(PAGE)
        if topk is None or lengths is None or select is None:
            return
        blocks = topk.tolist()
        found = list(contract.block_violations(blocks, lengths, select))
        yield from found
        block_num = facts.tensor("key").dim(0)
        if not found and table is not None and page is not None and block_num is not None:
            yield from contract.page_violations(blocks, table.tolist(), lengths, select, page, block_num)

    def picture(self, facts: NodeFacts, lengths: Sequence[int] | None) -> Attended:
        """Blocks of the sequences, and as many of them as a row reads at most."""
        block, count = attention_picture.sizes(facts, SELECT, COUNT)
        tokens, why = attention_picture.lengths_of(facts, KEY_LENGTHS, lengths, (1000, 320, 40), prefix_sums=False)
        return attention_picture.attended(facts, tokens, np.minimum(tokens, block * count), why, chooses=False)

    def sample(self, facts: NodeFacts, attributes: Attributes) -> Sample:
        return sample.make(facts, attributes)

    def reference(self, values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> tuple[Exact]:
        return (sample.reference(values, attributes),)
