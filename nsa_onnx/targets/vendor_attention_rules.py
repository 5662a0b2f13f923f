"""Rules about what the vendor's attention operators do not take (`vendor_attention`), for the targets that call them.

What the contract bounds as well (head dims, groups, strides, counts, pages) is reported by the contract's rules.
"""

from __future__ import annotations

from ..operators.nsa_compress_attention.rule_examples import attention
from ..operators.nsa_selected_attention.rule_examples import select
from ..operators.nsa_selected_attention_infer.rule_examples import select_step
from . import vendor_attention as vendor
from .reporting import limit_rule

_LIMITS = {op_type: one.limits for op_type, one in vendor.OPERATORS.items()}
_SELECTED, _STEP = vendor.SIZES["NsaSelectedAttention"], vendor.SIZES["NsaSelectedAttentionInfer"]
_COMPRESSED = vendor.SIZES["NsaCompressAttention"]


def _heads(heads: int) -> str:
    keys = heads // 2
    return select(
        q=f"T1, {heads}, 192",
        k=f"T2, {keys}, 192",
        v=f"T2, {keys}, 128",
        topk=f"T1, {keys}, 2",
        y=f"T1, {heads}, 128",
        heads=heads,
    )


_HEADS = limit_rule(
    "NSA049",
    f"the vendor's select attention: <= {_SELECTED.heads} heads",
    f"The vendor's select attention takes at most {_SELECTED.heads} query heads, and {_STEP.key_heads} heads of paged "
    "keys.",
    _LIMITS,
    ("vendor_heads", "vendor_key_heads"),
    example=_heads(_SELECTED.heads + 2),
    accepted=_heads(_SELECTED.heads),
    hint=f"split the heads among several nodes, or {vendor.CPU}",
)


def _batch(batch: int) -> str:
    step = select_step(
        q="B, 4, 192",
        k="6, 64, 1, 192",
        v="6, 64, 1, 128",
        topk="B, 1, 2",
        table="B, 3",
        y="B, 4, 128",
    )
    step = step.replace("key_value_head_num = 2", "key_value_head_num = 1")
    return step.replace("int64[2] lengths", f"int64[{batch}] lengths")


_SEQUENCES = limit_rule(
    "NSA050",
    "the vendor's attention: so many sequences",
    "A call of the vendor's attention operators takes a limited number of sequences, and at least one: up to "
    f"{_COMPRESSED.sequences} and\n{_SELECTED.sequences} in prefill, "
    f"{vendor.SIZES['NsaCompressAttentionInfer'].sequences} and {_STEP.sequences} with pages.",
    _LIMITS,
    ("vendor_sequences", "vendor_no_sequence"),
    example=_batch(_STEP.sequences + 1),
    accepted=_batch(_STEP.sequences),
    hint=f"split the batch among several nodes, or {vendor.CPU}",
)


def _keys(tokens: int) -> str:
    return attention(
        q="1, 4, 32",
        k=f"{tokens}, 2, 32",
        v=f"{tokens}, 2, 16",
        y="1, 4, 16",
        topk="1, 2, 2",
        ends=[1],
        tokens=[tokens],
        blocks=[-(-tokens // 4)],
        masks=[f"1, {tokens}"],
    )


_LENGTHS = limit_rule(
    "NSA051",
    "the vendor's attention: lengths of sequences",
    "The vendor's attention operators take sequences of at least one key token and of limited length: "
    f"{_COMPRESSED.length} compressed\n"
    f"tokens in prefill, {vendor.SIZES['NsaCompressAttentionInfer'].length} in pages; {_SELECTED.length} tokens in "
    "prefill of select attention.",
    _LIMITS,
    ("vendor_no_tokens", "vendor_length", "vendor_tokens", "vendor_many_blocks"),
    example=_keys(_COMPRESSED.length + 1),
    accepted=_keys(_COMPRESSED.length),
    hint=f"leave empty sequences out, split long ones, or {vendor.CPU}",
)


def _two(first: int, columns: int) -> str:
    """Two sequences, the first one of ``first`` compressed tokens, and a mask of so many columns."""
    blocks = -(-first // 4)
    return attention(
        q="100, 4, 32",
        k="12, 2, 32",
        v="12, 2, 16",
        y="100, 4, 16",
        topk="100, 2, 2",
        ends=(40, 100),
        tokens=(first, 12),
        blocks=(blocks, blocks - (first - 12) // 4),
        masks=[f"60, {columns}"],
    )


_BLOCKS = limit_rule(
    "NSA052",
    "the vendor's attention: enough blocks in every sequence",
    "The vendor's attention operators refuse a sequence with fewer than select_block_count blocks; with pages,\n"
    "for select attention, the longest sequence counts. Its prefill takes whole blocks only: lengths of keys that are\n"
    "multiples of select_block_size.",
    _LIMITS,
    ("vendor_few_blocks", "vendor_partial_block"),
    example=_two(4, columns=8),
    accepted=_two(5, columns=7),
    hint=f"select fewer blocks, pad the sequences, or {vendor.CPU} while they are short",
)
_MASKS = limit_rule(
    "NSA053",
    "the vendor's compress attention: masks as wide as the longest sequence",
    "The vendor's compress attention takes the longest sequence's size for the distance of two rows of a mask: it\n"
    "reads a wider one wrongly.",
    _LIMITS,
    ("vendor_mask_columns", "vendor_topk_mask_columns"),
    example=_two(5, columns=8),
    accepted=_two(5, columns=7),
    hint="cut the mask to the longest sequence, with a Slice",
)


def _scaled(scale: str) -> str:
    made = select(q="T1, 4, 192", k="T2, 2, 192", v="T2, 2, 128", y="T1, 4, 128")
    return made.replace("scale_value = 0.25", f"scale_value = {scale}")


_SCALE = limit_rule(
    "NSA054",
    "the vendor's select attention: a scale in (0, 1] with causal",
    "The vendor's select attention hides a token by the lowest float32, and multiplies by the scale afterwards:\n"
    "above 1, rows that see nothing become NaN; below 0, hidden tokens win.",
    _LIMITS,
    ("vendor_causal_scale",),
    example=_scaled("2.0"),
    accepted=_scaled("1.0"),
    hint=f"multiply query by the scale instead, or {vendor.CPU}",
)

RULES = (_HEADS, _SEQUENCES, _LENGTHS, _BLOCKS, _MASKS, _SCALE)
