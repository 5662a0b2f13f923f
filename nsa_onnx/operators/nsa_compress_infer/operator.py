"""The operator NsaCompressInfer: its node and its documentation; the other files of this folder have the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
from onnx import NodeProto

from ..base import Attribute, Attributes, Exact, Input, Lengths, Operator, Output, Sample, T
from ..bodies import inlined
from ..compression import HOST, SUM_TEXT, WEIGHT, WINDOW_ATTRIBUTES, Window, limits_text
from ..contract import Dim, Violations
from ..facts import NodeFacts, node_violation
from ..pictures import Pages
from ..windows import BLOCK, SEQ, STRIDE, seq_tensor_violations
from . import contract, picture, sample
from .body import BODY, DEFAULT_TABLE
from .call import nsa_compress_infer
from .contract import PAGE
from .example import EXAMPLE
from .rule_examples import RULE_EXAMPLES

_DOC = f"""One decode step over a paged KV cache: a sequence that has just completed a window has it compressed.

For a sequence `b` of length `L = actual_seq_len[b]`: if `L >= compress_block_size` and
`(L - compress_block_size) % compress_stride == 0`, its last `compress_block_size` tokens are compressed into
`cache_out[slot_mapping[b]]`; otherwise nothing is written for `b`. All other rows of `cache_out` are those of `cache`.

    cache_out[slot_mapping[b], n, :] = sum_j token(b, L - compress_block_size + j)[n, :] * weight[j, n]
    token(b, t) = input[block_table[b, t // page_block_size], t % page_block_size]

{SUM_TEXT}

Limits: {limits_text(contract.LIMITS)}; `page_block_size` is {" or ".join(map(str, contract.PAGE_BLOCK_SIZES))}.
The slots of the sequences that write are in range and differ from one another, and the entries of `block_table` that
are read are in `[0, block_num)`. Rows that do not write may hold anything (-1 padding is common). A bad index is an
error, found before the cache is written: nothing is clamped or wrapped.

`cache_out` may share `cache`'s memory; bound to the same value, only the written slots are touched.
"""


class NsaCompressInfer(Operator):
    """Decode: a sequence that has just completed a window has it compressed into its slot of the cache."""

    contract = contract.CONTRACT
    doc = _DOC
    inputs = (
        Input("input", T, "`[block_num, page_block_size, N, D]`: the pages of the KV cache."),
        WEIGHT,
        Input(
            "slot_mapping",
            "tensor(int32)",
            f"`[B]`: the row of `cache` that each sequence writes. {HOST}",
            below=("cache", 0),
            distinct=True,
        ),
        Input("cache", T, "`[slots, N, D]`: the compressed tokens so far."),
        Input(
            SEQ,
            "tensor(int64)",
            "`[B]`: the sequences' lengths in tokens (not prefix sums), each in "
            f"`0 .. max_pages * page_block_size`. {HOST}",
            lengths=Lengths.LENGTHS,
        ),
        Input(
            "block_table",
            "tensor(int32)",
            "`[B, max_pages]`: the physical page of each logical page of each sequence. Without it, sequence `b` "
            "owns the pages `b * P .. (b + 1) * P - 1` with `P = block_num / B`, which must divide, and "
            f"`max_pages = P`. {HOST}",
            optional=True,
            below=("input", 0),
            page_size=PAGE,
        ),
    )
    outputs = (
        Output(
            "cache_out",
            T,
            "`[slots, N, D]`: `cache` with the new rows.",
            dims=((("cache", 0),), (("cache", 1), ("input", 2), ("weight", 1)), (("cache", 2), ("input", 3))),
            updates="cache",
            agrees=(BLOCK, STRIDE),
        ),
    )
    attributes = (*WINDOW_ATTRIBUTES, Attribute(PAGE, "Tokens in a page."))
    body_text = BODY
    example = EXAMPLE
    rule_examples = RULE_EXAMPLES
    ascend_note = "the device checks no length, slot or page: a wrong one reads or writes elsewhere"

    def contract_violations(self, facts: NodeFacts) -> Violations:
        arrays = facts.floats(self.float_inputs)
        yield from contract.type_violations(
            arrays["input"],
            arrays["weight"],
            facts.indices("slot_mapping"),
            facts.argument(BLOCK),
            facts.argument(STRIDE),
            facts.argument(PAGE),
            facts.indices("block_table") if "block_table" in facts.inputs else None,
            (),
            arrays["cache"],
        )
        seq = facts.tensor(SEQ)
        yield from seq_tensor_violations(seq.dtype, seq.rank())
        wrong_shape = False
        for violation in _shape_violations(facts):
            wrong_shape = True
            yield violation
        if not wrong_shape:
            yield from _value_violations(facts)

    def completion(self, node: NodeProto, prefix: str, opset: int) -> list[NodeProto]:
        """The default block_table."""
        if any(node.input[self.input_names.index("block_table") :]):
            return []
        return default_table(node, prefix, opset)

    def sample(self, facts: NodeFacts, attributes: Attributes) -> Sample:
        return sample.make(facts, attributes)

    def reference(self, values: Mapping[str, npt.NDArray[Any]], attributes: Attributes) -> tuple[Exact]:
        return sample.reference(values, attributes)

    def call(self, inputs: Sequence[Any], attributes: Attributes) -> tuple[Any]:
        x, w, slots, cache, seq, table = inputs
        operands = (x, w, slots, *(attributes[name] for name in contract.ATTRIBUTES))
        return (
            nsa_compress_infer(*operands, block_table=table, actual_seq_len=seq.tolist(), cache=cache.copy(order="C")),
        )

    def picture(self, facts: NodeFacts, lengths: Sequence[int] | None) -> Pages:
        return picture.make(facts, lengths)


def default_table(node: NodeProto, prefix: str, opset: int) -> list[NodeProto]:
    """The nodes that compute the table that an absent block_table stands for, ``prefix + "block_table"``."""
    names = (one.name for one in NsaCompressInfer.inputs)
    return inlined(DEFAULT_TABLE, opset, dict(zip(names, node.input, strict=False)), prefix)


def _shape_violations(facts: NodeFacts) -> Violations:
    window, page = Window.of(facts, contract.LIMITS), facts.integer(PAGE)
    return window.known(
        contract.shape_violations(
            facts.tensor("input").dims(4),
            facts.tensor("weight").dims(2),
            facts.tensor("slot_mapping").dims(1),
            window.block,
            window.stride,
            contract.PAGE_BLOCK_SIZES[0] if page is None else page,
            facts.tensor("block_table").dims(2) if "block_table" in facts.inputs else None,
            facts.tensor(SEQ).dim(0),
            facts.tensor("cache").dims(3),
        )
    )


def _max_pages(facts: NodeFacts) -> Dim:
    if "block_table" in facts.inputs:
        return facts.tensor("block_table").dim(1)
    block_num, batch = facts.tensor("input").dim(0), facts.tensor("slot_mapping").dim(0)
    return block_num // batch if block_num is not None and batch else None


def _value_violations(facts: NodeFacts) -> Violations:
    """Constant lengths against the pages, and constant indices where all of them are known."""
    lengths, page = facts.vector(SEQ), facts.integer(PAGE)
    if lengths is None or page is None:
        return
    pages = _max_pages(facts)
    if pages is None:
        yield from (node_violation("seq_negative", *pair) for pair in enumerate(lengths) if pair[1] < 0)
        return
    slots, table = facts.constants.get("slot_mapping"), facts.constants.get("block_table")
    unknown = table is None and "block_table" in facts.inputs
    block, stride = facts.integer(BLOCK), facts.integer(STRIDE)
    block_num, slot_count = facts.tensor("input").dim(0), facts.tensor("cache").dim(0)
    if slots is None or unknown or block is None or stride is None or block_num is None or slot_count is None:
        yield from contract.length_violations(lengths, pages * page)
        return
    rows = None if table is None else table.tolist()
    yield from contract.index_violations(
        slots.tolist(), rows, lengths, block, stride, page, block_num, pages, slot_count
    )
