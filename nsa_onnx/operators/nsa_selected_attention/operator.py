"""The operator NsaSelectedAttention: its node and its documentation; the other files of this folder have the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import attention_picture
from ..attention import CAUSAL, COUNT, KEY_LENGTHS, QUERY_LENGTHS, SELECT
from ..attention_nodes import NUMBERS_TEXT, AttentionOperator, attention_out, attributes, limits_text, query
from ..base import Attributes, Exact, Input, Lengths, Sample, T
from ..compression import HOST
from ..contract import Violations
from ..facts import NodeFacts
from ..pictures import Attended
from ..selected import BLOCKS_TEXT, topk_input
from . import contract, sample
from .body import BODY
from .call import nsa_select_attention
from .contract import STAGE
from .example import EXAMPLE
from .rule_examples import RULE_EXAMPLES

_DOC = f"""Every query token attends to the tokens of the blocks that were selected for it, and to no others.

The sequences of the batch lie one after the other, in `query` and in `key` and `value`. {BLOCKS_TEXT}

    attention_out[t, h] = sum_j P[j] * value[j, h // G]      over the tokens j of the blocks topk_indices[t, h // G]
    P = softmax_j (scale_value * <query[t, h], key[j, h // G]>)

With `causal`, the token at position q of a sequence sees the tokens at positions p <= q of the same sequence and no
others; positions are counted from the sequence's first token, in query and in key. A row that sees none of its tokens
weighs all of them alike: that is what a softmax over logits gives that are all masked with the lowest float32.

{NUMBERS_TEXT}

Limits: {limits_text(STAGE)}. A block that its sequence does not have is an error, found before anything is written.

`causal` is what the presence of torch_npu's `atten_mask` means: the content of that mask is never read.
"""


class NsaSelectedAttention(AttentionOperator):
    """Prefill: every query token attends to the tokens of its selected blocks."""

    contract = contract.CONTRACT
    stage = STAGE
    function = staticmethod(nsa_select_attention)
    doc = _DOC
    inputs = (
        query("T1", "the query tokens of all sequences, one sequence after the other."),
        Input("key", T, "`[T2, N2, D]`: the keys of all sequences."),
        Input("value", T, "`[T2, N2, Dv]`: the values of all sequences."),
        topk_input("T1"),
        Input(
            QUERY_LENGTHS,
            "tensor(int64)",
            "`[B]`: prefix sums of the sequences' lengths in query tokens: not negative, not decreasing, the last one "
            f"equal to `T1`. {HOST}",
            lengths=Lengths.PREFIX_SUMS,
        ),
        Input(
            KEY_LENGTHS,
            "tensor(int64)",
            f"`[B]`: the same in key tokens, the last one equal to `T2`. {HOST}",
            lengths=Lengths.PREFIX_SUMS,
        ),
    )
    outputs = (attention_out("T1", 2),)
    attributes = attributes(STAGE)
    body_text = BODY
    example = EXAMPLE
    rule_examples = RULE_EXAMPLES

    def value_violations(self, facts: NodeFacts) -> Violations:
        """Constant blocks, where the lengths are constant as well."""
        topk, select = facts.constants.get("topk_indices"), facts.integer(SELECT)
        ends, key_ends = facts.vector(QUERY_LENGTHS), facts.vector(KEY_LENGTHS)
        if topk is not None and ends is not None and key_ends is not None and select is not None:
            yield from contract.block_violations(topk.tolist(), ends, key_ends, select)

    def looks_ahead(self, facts: NodeFacts) -> tuple[str, str] | None:
        if facts.integer(CAUSAL) != 0:
            return None
        return CAUSAL, "causal = 0, so a query token sees the later tokens of its blocks"

    def picture(self, facts: NodeFacts, lengths: Sequence[int] | None) -> Attended:
        """Blocks of the sequences, and as many of them as a row reads at most."""
        block, count = attention_picture.sizes(facts, SELECT, COUNT)
        tokens, why = attention_picture.lengths_of(facts, KEY_LENGTHS, lengths, (1000, 320, 40), prefix_sums=True)
        return attention_picture.attended(facts, tokens, np.minimum(tokens, block * count), why, chooses=False)

    def sample(self, facts: NodeFacts, attributes: Attributes) -> Sample:
        return sample.make(facts, attributes)

    def reference(self, values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> tuple[Exact]:
        return (sample.reference(values, attributes),)
