"""The table of hints: for common mistakes, what to write instead. Needs the standard library only.

A hint ends the message of the limit that is broken, in the same words everywhere: in eager calls, in onnxruntime (the
C++ sources get the table from a generated header), in the exporters and in the checker. It is added only where the
input shows this very mistake. ``docs/operators.md`` has the table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hint:
    """One habit.

    Attributes:
        habit: what was given, and how it is told from other mistakes, for the documentation.
        text: what to do.
    """

    id: str
    habit: str
    text: str

    @property
    def ending(self) -> str:
        """What the message of a row ends with."""
        return f" ({self.text})"


_ALL = (
    Hint(
        "leading_zero",
        "`cu_seqlens` of flash-attention: prefix sums that begin with 0 and end in T",
        "drop the leading 0: prefix sums begin with the end of the first segment",
    ),
    Hint(
        "lengths",
        "lengths for prefix sums: the elements sum up to T",
        "these are lengths, which sum up to T: pass their prefix sums, itertools.accumulate(lengths)",
    ),
    Hint(
        "prefix_sums",
        "prefix sums for lengths: they do not decrease, and their steps would fit the pages",
        "these look like prefix sums: pass each sequence's own length",
    ),
    Hint(
        "list_of_ints",
        "an ndarray, a tensor or a list of tensors for a list of ints",
        "pass a list of ints: .tolist()",
    ),
    Hint("cast_int64", "int32 lengths in a tensor", "cast it to int64"),
    Hint("cast_int32", "int64 slots or tables, torch's default", "cast it to int32: int64 is only torch's default"),
    Hint("transpose", "a weight `[N, compress_block_size]`", "this is [N, compress_block_size]: transpose it"),
    Hint("cast_float", "float32 or float64 input", "cast all floating-point inputs to float16 or bfloat16"),
    Hint(
        "one_token",
        "several query tokens of each sequence in a decode step: `[B, S, N1, D]`",
        "a decode step takes one query token per sequence, [B, N1, D]: pass the tokens one after the other",
    ),
    Hint(
        "tokens_first",
        "a batch axis: `[B, S, N, D]`",
        "the sequences lie one after the other, [T, N, D]: reshape to [B * S, N, D]",
    ),
    Hint(
        "split_heads",
        "pages `[block_num, page_block_size, N2 * D]`",
        "reshape the pages to [block_num, page_block_size, N2, D]",
    ),
)
HINTS = {hint.id: hint for hint in _ALL}
"""All hints by id, in the order of the documentation."""
