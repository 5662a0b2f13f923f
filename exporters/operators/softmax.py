"""softmax_max and softmax_sum, which torch_npu's prefill stages return for their gradient. No ONNX node has them.

They are computed by an op of their own, in torch: where nobody uses them, an exported or compiled program drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .base import Op, arguments, fake_kernel, kernel
from .tensors import host_lengths

LOWEST = torch.finfo(torch.float32).min
"""What a masked logit is."""

_REPEATED = 8  # torch_npu returns each number eight times
_MOST_LOGITS = 2**21  # at once


def softmax_op(function: str, call: type[Any], logits: Callable[[Any], Iterator[tuple[slice, Tensor]]]) -> Op:
    """The op that gives both, float32 ``[T1, N1, 8]``, for a call of ``function``.

    Args:
        logits: pieces of the call's rows, and their masked logits ``[rows, N1, L]``; -inf where there is no token.
    """

    def run(call: Any) -> tuple[Tensor, Tensor]:
        highest, sums = _empty(call)
        for rows, values in logits(call):
            top = values.amax(-1, keepdim=True).clamp(min=LOWEST) if values.shape[-1] else values.new_zeros(1)
            highest[rows], sums[rows] = top, (values - top).exp().sum(-1, keepdim=True)
        return highest, sums

    return Op(
        f"{function}_softmax",
        f"({arguments(call)}) -> (Tensor, Tensor)",
        kernel(call, run),
        fake_kernel(call, _empty),
        key="CompositeExplicitAutograd",
        not_in_graphs=(
            f"softmax_max and softmax_sum of torch_npu.npu_{function} are there for its gradient, and no ONNX node has "
            "them: a model that is exported must not use them"
        ),
    )


def _empty(call: Any) -> tuple[Tensor, Tensor]:
    shape = (*call.query.shape[:2], _REPEATED)
    return call.query.new_empty(shape, dtype=torch.float32), call.query.new_empty(shape, dtype=torch.float32)


def sequences(*prefix_sums: Any) -> Iterator[tuple[slice, ...]]:
    """Where each sequence lies, by prefix sums of several kinds of tokens."""
    ends = (host_lengths(one).tolist() for one in prefix_sums)
    for bounds in zip(*(pairwise((0, *one)) for one in ends), strict=True):
        yield tuple(slice(*pair) for pair in bounds)


def row_tiles(rows: slice, logits_of_a_row: int) -> Iterator[slice]:
    """Rows in pieces with few logits."""
    step = max(1, _MOST_LOGITS // max(1, logits_of_a_row))
    for first in range(rows.start, rows.stop, step):
        yield slice(first, min(first + step, rows.stop))


def products(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Scaled, in float32: ``query [rows, N1, D]``, ``key [.., N2, L, D]`` to ``[rows, N1, L]``."""
    rows, heads, dim = query.shape
    grouped = query.float().reshape(rows, key.shape[-3], -1, dim)
    return (grouped @ key.float().transpose(-1, -2)).reshape(rows, heads, key.shape[-2]) * scale


def by_head(tensor: Tensor) -> Tensor:
    """``[L, N2, D]`` to ``[N2, L, D]``."""
    return tensor.transpose(0, 1)


def expanded(mask: Tensor, heads: int) -> Tensor:
    """A mask ``[rows, N2, L]`` of groups for their heads: ``[rows, N1, L]``."""
    return mask.repeat_interleave(heads // mask.shape[1], 1)


def positions(blocks: Tensor, block_size: int, tokens: int) -> tuple[Tensor, Tensor]:
    """The tokens of blocks ``[rows, N2, k]``, ``[rows, N2, k * block_size]``, and which of them there are."""
    inside = torch.arange(block_size, device=blocks.device)
    found = (blocks.long()[..., None] * block_size + inside).flatten(2)
    return found, (blocks >= 0).repeat_interleave(block_size, -1) & (found < tokens)


def check_blocks(blocks: Tensor, block_size: int, tokens: int) -> None:
    """RuntimeError for a block that its sequence does not have; the stage's own op says which."""
    count = -(-tokens // block_size)
    if bool(((blocks < -1) | (blocks >= count)).any()):
        raise RuntimeError(f"topk_indices must be in [-1, {count})")
