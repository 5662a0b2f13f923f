"""The operator NsaCompress: its node and its documentation; the other files of this folder have the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from ..base import Attributes, Exact, Input, Lengths, Operator, Output, Pattern, Sample, T
from ..compression import HOST, SUM_TEXT, WEIGHT, WINDOW_ATTRIBUTES, WINDOW_TEXT, Window, limits_text
from ..contract import Violations
from ..facts import NodeFacts
from ..pictures import Segments
from ..windows import BLOCK, SEQ, STRIDE, seq_tensor_violations
from . import contract, picture, sample
from .body import BODY
from .call import nsa_compress
from .example import EXAMPLE
from .rule_examples import RULE_EXAMPLES

_DOC = f"""Compresses the KV sequences of a batch: each window becomes one token, a weighted sum per head.

    output[i, n, :] = sum_j input[start(i) + j, n, :] * weight[j, n]      j = 0 .. compress_block_size - 1

{WINDOW_TEXT} The batch's sequences (segments) lie one after the other in `input`; windows never cross a
segment's end, and the segments' results are concatenated in order. With `L_i` the lengths of the segments,

    T' = sum_i max(0, 1 + floor((L_i - compress_block_size) / compress_stride))

so a tail that fills no window is dropped, a segment shorter than a window yields nothing, and `T' = 0` is legal.

{SUM_TEXT}

Limits: {limits_text(contract.LIMITS)}.

Shape inference computes `T'` exactly where `actual_seq_len` is a constant of the node's own graph; elsewhere it is a
dim of its own. (To a node in a subgraph, onnx shows no constants from outside; `nsa-onnx check` looks there, too.)
"""


class NsaCompress(Operator):
    """Prefill: every window of every segment becomes one token."""

    contract = contract.CONTRACT
    doc = _DOC
    inputs = (
        Input("input", T, "`[T, N, D]`: the tokens of all segments, one segment after the other."),
        WEIGHT,
        Input(
            SEQ,
            "tensor(int64)",
            "`[B]`: prefix sums of the segments' lengths, in tokens: positive, not decreasing, the last one equal "
            f"to `T`. Two equal neighbours are an empty segment. {HOST}",
            lengths=Lengths.PREFIX_SUMS,
        ),
    )
    outputs = (
        Output(
            "output",
            T,
            "`[T', N, D]`: one row per window.",
            dims=((), (("input", 1), ("weight", 1)), (("input", 2),)),
            agrees=(BLOCK, STRIDE),
        ),
    )
    attributes = WINDOW_ATTRIBUTES
    body_text = BODY
    example = EXAMPLE
    rule_examples = RULE_EXAMPLES
    pattern = Pattern.WEIGHTED_WINDOWS

    def contract_violations(self, facts: NodeFacts) -> Violations:
        arrays = facts.floats(self.float_inputs)
        kinds = facts.argument(BLOCK), facts.argument(STRIDE)
        yield from contract.type_violations(arrays["input"], arrays["weight"], *kinds, ())
        tokens, weight, seq = (facts.tensor(name) for name in self.input_names)
        yield from seq_tensor_violations(seq.dtype, seq.rank())
        window = Window.of(facts, contract.LIMITS)
        shapes = contract.shape_violations(tokens.dims(3), weight.dims(2), window.block, window.stride)
        yield from window.known(shapes)
        lengths = facts.vector(SEQ)
        if lengths is not None:
            yield from contract.prefix_sum_violations(lengths, tokens.dim(0) if tokens.rank() == 3 else None)
        elif seq.shape == (0,):
            yield from contract.prefix_sum_violations((), None)

    def known_dims(self, facts: NodeFacts) -> Mapping[tuple[int, int], int]:
        """T', when lengths and window are known."""
        lengths, block, stride = facts.vector(SEQ), facts.integer(BLOCK), facts.integer(STRIDE)
        if lengths is None or block is None or stride is None:
            return {}
        return {(0, 0): contract.compressed_length(lengths, block, stride)}

    def empty_because(self, facts: NodeFacts) -> tuple[str, str] | None:
        """T' is 0 where no segment has as many tokens as a window."""
        tokens, block = facts.tensor("input").dim(0), facts.integer(BLOCK)
        if self.known_dims(facts).get((0, 0)) == 0:
            return SEQ, f"no segment has {BLOCK} = {block} tokens"
        if tokens is not None and block is not None and tokens < block:
            return "input", f"T = {tokens} is less than {BLOCK} = {block}"
        return None

    def may_be_empty(self, facts: NodeFacts) -> bool:
        """Of B sequences with T tokens in all, one has a window if T > B * (block - 1)."""
        tokens, sequences = facts.tensor("input").dim(0), facts.tensor(SEQ).dim(0)
        block = facts.integer(BLOCK)
        return tokens is None or sequences is None or block is None or tokens <= sequences * (block - 1)

    def sample(self, facts: NodeFacts, attributes: Attributes) -> Sample:
        return sample.make(facts, attributes)

    def reference(self, values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> tuple[Exact]:
        return sample.reference(values, attributes)

    def call(self, inputs: Sequence[Any], attributes: Attributes) -> tuple[Any]:
        x, w, seq = inputs
        return (nsa_compress(x, w, attributes[BLOCK], attributes[STRIDE], actual_seq_len=seq.tolist()),)

    def picture(self, facts: NodeFacts, lengths: Sequence[int] | None) -> Segments:
        return picture.make(facts, lengths)
