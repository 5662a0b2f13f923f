"""What CANN's own operators for the attention stages take. Needs the standard library only.

Each number stands here, also where the contract has the same today. Sources, in ops-transformer's attention/nsa_*: the
documents (docs/aclnn*.md), the host code (op_host/*_tiling*.cpp, op_api/) and, where it gets wrong what the host code
lets pass, the kernels (op_kernel/) of November 2025 and July 2026; the narrower of the two counts. docs/ascend.md has
the table.

C++ has the same numbers (`SIZES`, in the generated header) and refuses the same in device/cann/attention.cc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..operators.attention import (
    BLOCK_LENGTHS,
    CAUSAL,
    COMPRESSED_LENGTHS,
    COUNT,
    HEADS,
    KEY_LENGTHS,
    KV_HEADS,
    PAGE,
    QUERY_LENGTHS,
    SCALE,
    SELECT,
    steps,
)
from ..operators.contract import Dim, Row, Violation, Violations
from ..operators.windows import BLOCK, STRIDE
from .base import Limit, Number, at_most, bound
from .vendor_operator import VendorOperator

if TYPE_CHECKING:
    from ..operators.facts import NodeFacts

CPU = "serve it on the CPU"


@dataclass(frozen=True)
class AttentionSizes:
    """Bounds of one of the vendor's attention operators, inclusive; 0 where it has none.

    Attributes:
        head_dim, value_dim: the most D and Dv.
        exact_dims: whether they are the only ones.
        group: the most G = N1 / N2. dividing_group: whether G must divide 128 as well.
        heads, key_heads: the most N1 and N2.
        stride, count: the most compress_stride and select_block_count.
        page: the largest page. min_page: the smallest.
        sequences: the most of a call.
        length: the most key tokens of a sequence; there must be one at least.
        blocks: the most blocks that a sequence has to choose from.
        tokens: the most query tokens of a sequence; where it is given, there must be one at least.
        whole_blocks: whether every sequence has at least select_block_count blocks of keys, and no partial one.
    """

    head_dim: int = 0
    value_dim: int = 0
    exact_dims: int = 0
    group: int = 0
    dividing_group: int = 0
    heads: int = 0
    key_heads: int = 0
    stride: int = 0
    count: int = 0
    page: int = 0
    min_page: int = 0
    sequences: int = 0
    length: int = 0
    blocks: int = 0
    tokens: int = 0
    whole_blocks: int = 0


_COMPRESS = AttentionSizes(
    group=64,
    dividing_group=1,
    stride=64,
    count=32,
    sequences=4096,  # arrays of the tiling, whose ends it does not look at
    length=14000,
)
_COMPRESS_DECODE = AttentionSizes(
    head_dim=192,
    value_dim=128,
    group=128,
    dividing_group=1,
    stride=64,
    page=128,
    sequences=10000,
    length=8192,
    blocks=4096,
)
_SELECTED = AttentionSizes(
    head_dim=192,
    value_dim=128,
    exact_dims=1,
    group=32,
    heads=128,
    count=32,  # 128 since 2026
    sequences=1024,
    length=131072,
    tokens=131072,
    whole_blocks=1,
)
_SELECTED_DECODE = AttentionSizes(
    head_dim=192,
    value_dim=128,
    exact_dims=1,
    group=16,
    key_heads=256,
    page=128,
    min_page=64,
    sequences=3072,
)
SIZES = {
    "NsaCompressAttention": _COMPRESS,
    "NsaCompressAttentionInfer": _COMPRESS_DECODE,
    "NsaSelectedAttention": _SELECTED,
    "NsaSelectedAttentionInfer": _SELECTED_DECODE,
}
GROUP_DIVIDES = 128
MAX_CAUSAL_SCALE = 1

# --------------------------------------------------------------------------------------------------
# One number of a node


def _number_limits(sizes: AttentionSizes, paged: bool, whose: str) -> Iterator[Limit]:
    """Limits on attributes and dims; where the contract bounds the same number, the rows are the contract's."""
    dims = (
        ("dim_range", "query", 2, "D", sizes.head_dim),
        ("value_dim_range", "value", 3 if paged else 2, "Dv", sizes.value_dim),
    )
    for row, argument, axis, name, most in dims:
        number = Number(argument, axis, name)
        if most and sizes.exact_dims:
            yield bound(row, number, most.__eq__, str(most), whose)
        elif most:
            yield at_most(row, number, most, whose)
    if sizes.heads:
        yield at_most("vendor_heads", Number(HEADS), sizes.heads, whose)
    if sizes.key_heads:
        yield at_most("vendor_key_heads", Number(KV_HEADS), sizes.key_heads, whose)
    yield _group(sizes, paged, whose)
    if sizes.stride:
        yield at_most("stride_range", Number(STRIDE), sizes.stride, whose)
    if sizes.count:
        yield at_most("count_range", Number(COUNT), sizes.count, whose)
    if sizes.min_page:
        pages = (sizes.min_page, sizes.page)
        yield bound("page_range", Number(PAGE), pages.__contains__, " or ".join(map(str, pages)), whose)
    elif sizes.page:
        yield at_most("page_range", Number(PAGE), sizes.page, whose)


def _group(sizes: AttentionSizes, paged: bool, whose: str) -> Limit:
    divides = f" and divide {GROUP_DIVIDES}" if sizes.dividing_group else ""
    made = Row(
        "group_max", RuntimeError, HEADS, f"{HEADS} / N2 must be <= {sizes.group}{divides} for {whose}, got {{}}"
    )

    def find(facts: NodeFacts) -> Violations:
        heads, key_heads = facts.integer(HEADS), key_head_count(facts, paged)
        if not heads or not key_heads or heads % key_heads:
            return
        group = heads // key_heads
        if group > sizes.group or (sizes.dividing_group and GROUP_DIVIDES % group):
            yield Violation(made, (group,))

    return Limit(("group_max",), find)


def key_head_count(facts: NodeFacts, paged: bool) -> Dim:
    """N2, from whatever tells it."""
    return facts.integer(KV_HEADS) or facts.tensor("key").dim(2 if paged else 1)


# --------------------------------------------------------------------------------------------------
# Sequences


@dataclass(frozen=True)
class _Sequences:
    """Which inputs say how long the sequences are."""

    keys: str
    queries: str = ""
    sums: bool = True

    def key_lengths(self, facts: NodeFacts) -> list[int] | None:
        return self._of(facts, self.keys, "key")

    def query_lengths(self, facts: NodeFacts) -> list[int] | None:
        return self._of(facts, self.queries, "query")

    def _of(self, facts: NodeFacts, name: str, tokens: str) -> list[int] | None:
        values = facts.vector(name)
        if values is not None:
            return steps(values) if self.sums else values
        total, count = facts.tensor(tokens).dim(0), facts.tensor(name).dim(0)
        # However many sequences there are: none is longer than all tokens, and one alone has them all.
        return [total] if self.sums and total is not None and (count == 1 or total == 0) else None


def _sequence_rows(sizes: AttentionSizes, lengths: _Sequences, whose: str) -> dict[str, Row]:
    keys, queries = lengths.keys, lengths.queries
    texts = {
        "vendor_sequences": (keys, f"{keys} must have <= {sizes.sequences} elements for {whose}, got {{}}"),
        "vendor_no_sequence": (keys, f"{keys} must have >= 1 elements for {whose}, got {{}}"),
        "vendor_no_tokens": (keys, f"{keys}: sequence {{}} must have >= 1 tokens for {whose}, got {{}}"),
        "vendor_length": (keys, f"{keys}: sequence {{}} must have <= {sizes.length} tokens for {whose}, got {{}}"),
        "vendor_tokens": (
            queries,
            f"{queries}: sequence {{}} must have 1 to {sizes.tokens} tokens for {whose}, got {{}}",
        ),
        "vendor_few_blocks": (COUNT, f"{COUNT} must be <= {{}}, the blocks of sequence {{}}, for {whose}, got {{}}"),
        "vendor_many_blocks": (
            keys,
            f"{keys}: sequence {{}} must have <= {sizes.blocks} blocks of {SELECT} tokens for {whose}, got {{}}",
        ),
        "vendor_partial_block": (
            keys,
            f"{keys}: the length of sequence {{}} must be a multiple of {SELECT} = {{}} for {whose}, got {{}}",
        ),
    }
    return {row: Row(row, RuntimeError, argument, text) for row, (argument, text) in texts.items()}


Blocks = Callable[[int, "NodeFacts"], int | None]


def _sequence_limit(sizes: AttentionSizes, lengths: _Sequences, blocks: Blocks, every: bool, whose: str) -> Limit:
    """What the sequences of a call must have.

    Args:
        blocks: how many blocks a sequence of so many key tokens has.
        every: whether each sequence has to have select_block_count blocks, or only the longest one.
    """
    rows = _sequence_rows(sizes, lengths, whose)

    def find(facts: NodeFacts) -> Violations:
        count = facts.tensor(lengths.keys).dim(0)
        if count == 0:
            yield Violation(rows["vendor_no_sequence"], (0,))
        if count is not None and count > sizes.sequences:
            yield Violation(rows["vendor_sequences"], (count,))
        queries = lengths.query_lengths(facts) if sizes.tokens else None
        for b, tokens in enumerate(queries or ()):
            if not 1 <= tokens <= sizes.tokens:
                yield Violation(rows["vendor_tokens"], (b, tokens))
                break
        keys = lengths.key_lengths(facts)
        if keys:
            yield from _of_keys(facts, keys)

    def _of_keys(facts: NodeFacts, keys: list[int]) -> Violations:
        wanted, select = facts.integer(COUNT), facts.integer(SELECT)
        least, most = min(range(len(keys)), key=keys.__getitem__), max(range(len(keys)), key=keys.__getitem__)
        if keys[least] < 1:
            yield Violation(rows["vendor_no_tokens"], (least, keys[least]))
            return
        if sizes.length and keys[most] > sizes.length:
            yield Violation(rows["vendor_length"], (most, keys[most]))
        if select and sizes.whole_blocks:
            for b, length in enumerate(keys):
                if length % select:
                    yield Violation(rows["vendor_partial_block"], (b, select, length))
                    break
        there, found = least if every else most, blocks(keys[least if every else most], facts)
        if wanted is not None and found is not None and found < wanted:
            yield Violation(rows["vendor_few_blocks"], (found, there, wanted))
        total = blocks(keys[most], facts)
        if sizes.blocks and total is not None and total > sizes.blocks:
            yield Violation(rows["vendor_many_blocks"], (most, total))

    return Limit(tuple(rows), find)


def _compressed_blocks(length: int, facts: NodeFacts) -> int | None:
    stride, select = facts.integer(STRIDE), facts.integer(SELECT)
    return -(-length * stride // select) if stride and select else None


def _blocks_of_windows(length: int, facts: NodeFacts) -> int | None:
    block, stride, select = facts.integer(BLOCK), facts.integer(STRIDE), facts.integer(SELECT)
    return -(-((length - 1) * stride + block) // select) if block and stride and select else None


def _whole_blocks(length: int, facts: NodeFacts) -> int | None:
    select = facts.integer(SELECT)
    return length // select if select else None


# --------------------------------------------------------------------------------------------------
# What one operator has alone

_FOR = {
    "NsaCompressAttention": "the vendor's compress attention",
    "NsaCompressAttentionInfer": "the vendor's paged compress attention",
    "NsaSelectedAttention": "the vendor's select attention",
    "NsaSelectedAttentionInfer": "the vendor's paged select attention",
}


def _mask_limit(whose: str) -> Limit:
    """The kernel takes the longest sequence's size for the distance of two rows of a mask."""
    rows = {
        name: Row(
            row, RuntimeError, name, f"{name}.shape[1] must be {{}}, the most of a sequence, for {whose}, got {{}}"
        )
        for name, row in (("atten_mask", "vendor_mask_columns"), ("topk_mask", "vendor_topk_mask_columns"))
    }

    def find(facts: NodeFacts) -> Violations:
        for name, lengths in (("atten_mask", COMPRESSED_LENGTHS), ("topk_mask", BLOCK_LENGTHS)):
            ends, columns = facts.vector(lengths), facts.tensor(name).dim(1)
            if name in facts.inputs and ends and columns is not None and columns != max(steps(ends)):
                yield Violation(rows[name], (max(steps(ends)), columns))

    return Limit(tuple(row.id for row in rows.values()), find)


def _scale_limit(whose: str) -> Limit:
    """Hidden logits get the lowest float32 first and are multiplied by the scale afterwards."""
    text = f"{SCALE} must be > 0 and <= {MAX_CAUSAL_SCALE} with {CAUSAL} for {whose}, got {{}}"
    made = Row("vendor_causal_scale", RuntimeError, SCALE, text)

    def find(facts: NodeFacts) -> Violations:
        scale = facts.number(SCALE)
        if facts.integer(CAUSAL) == 1 and scale is not None and not 0 < scale <= MAX_CAUSAL_SCALE:
            yield Violation(made, (scale,))

    return Limit((made.id,), find)


# --------------------------------------------------------------------------------------------------
# All of them

_SUMS = _Sequences(COMPRESSED_LENGTHS, QUERY_LENGTHS)
_FEW = f"select fewer blocks, or {CPU} while sequences are this short"
_WAYS_OUT = {
    "vendor_few_blocks": _FEW,
    "vendor_no_tokens": f"leave sequences without keys out, or {CPU}",
    "vendor_no_sequence": "convert it for at least one sequence",
    "vendor_sequences": f"split the batch, or {CPU}",
    "vendor_partial_block": f"pad every sequence to whole blocks, or {CPU}",
    "vendor_mask_columns": "cut the mask to the longest sequence",
    "vendor_topk_mask_columns": "cut the mask to the longest sequence",
    "vendor_causal_scale": f"scale query instead, or {CPU}",
}
_NO_GRAPH = "its inputs and outputs stand in another order there, which a parser plugin cannot change"


def _operator(op_type: str, paged: bool, *limits: Limit, products: str = "") -> VendorOperator:
    numbers = _number_limits(SIZES[op_type], paged, _FOR[op_type])
    return VendorOperator((*numbers, *limits), products=products, ways_out=_WAYS_OUT, otherwise=CPU, no_graph=_NO_GRAPH)


def _sequences(op_type: str, lengths: _Sequences, blocks: Blocks, *, every: bool = True) -> Limit:
    return _sequence_limit(SIZES[op_type], lengths, blocks, every, _FOR[op_type])


OPERATORS: Mapping[str, VendorOperator] = {
    "NsaCompressAttention": _operator(
        "NsaCompressAttention",
        False,
        _sequences("NsaCompressAttention", _SUMS, _compressed_blocks),
        _mask_limit(_FOR["NsaCompressAttention"]),
    ),
    "NsaCompressAttentionInfer": _operator(
        "NsaCompressAttentionInfer",
        True,
        _sequences("NsaCompressAttentionInfer", _Sequences(COMPRESSED_LENGTHS, sums=False), _blocks_of_windows),
    ),
    "NsaSelectedAttention": _operator(
        "NsaSelectedAttention",
        False,
        _sequences("NsaSelectedAttention", _Sequences(KEY_LENGTHS, QUERY_LENGTHS), _whole_blocks),
        _scale_limit(_FOR["NsaSelectedAttention"]),
        products="Atlas A2 only",
    ),
    "NsaSelectedAttentionInfer": _operator(
        "NsaSelectedAttentionInfer",
        True,
        _sequences("NsaSelectedAttentionInfer", _Sequences(KEY_LENGTHS, sums=False), _whole_blocks, every=False),
    ),
}
"""What the vendor has, by operator of ours."""
