"""The softmax of the prefill stages once more, in torch, some rows at a time: for gradients, and for torch_npu.

A stage says which keys its rows attend to (`Piece`). From that follow the op for softmax_max and softmax_sum, which
torch_npu's functions return and no ONNX node has, and the op for the gradient. Where nobody uses their results,
exported and compiled programs drop them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .. import private
from .base import Gradient, Op, arguments, fake_kernel, kernel, overload
from .gradients import without_gradient
from .tensors import host_lengths

LOWEST = torch.finfo(torch.float32).min
"""What a masked logit is."""

_REPEATED = 8  # torch_npu returns each number eight times
_MOST_NUMBERS = 2**22  # at once


@dataclass(frozen=True)
class Piece:
    """Rows of query, and the L keys that each attends to.

    Attributes:
        tokens: where these are among all keys: a slice for all rows and groups, or ``[rows, N2, L]``.
        there: ``[rows, N2, L]``, false where there is no such token; None if all are there.
        hidden: ``[rows, 1 or N2, L]``, true where the token is not seen.
    """

    rows: slice
    tokens: slice | Tensor
    there: Tensor | None = None
    hidden: Tensor | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The keys or values in float32: ``[1 or rows, N2, L, D]``."""
        if isinstance(self.tokens, slice):
            return tensor[self.tokens].transpose(0, 1).float()[None]
        return tensor[self.tokens, torch.arange(tensor.shape[1], device=tensor.device)[:, None]].float()

    def add(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        """Add what the rows give each token, ``left [rows, N2, G, L]`` times ``right [rows, N2, G, D]``."""
        if isinstance(self.tokens, slice):
            total[self.tokens] += torch.einsum("rhgl,rhgd->lhd", left, right)
        else:
            groups = torch.arange(total.shape[1], device=total.device)[:, None]
            total.index_put_((self.tokens, groups), left.transpose(-1, -2) @ right, accumulate=True)


Pieces = Callable[[Any], Iterator[Piece]]


def _grouped(rows: Tensor, kv_heads: int) -> Tensor:
    """``[rows, N1, D]`` in float32 by group, ``[rows, N2, G, D]``."""
    return rows.float().reshape(rows.shape[0], kv_heads, -1, rows.shape[-1])


def _softmax(call: Any, piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
    """The largest logit of each row and head, the sum of exp(logit - largest), and the exponentials of each token."""
    keys = piece.of(call.key)
    logits = _grouped(call.query[piece.rows], keys.shape[1]) @ keys.transpose(-1, -2) * call.scale_value
    if piece.hidden is not None:
        logits = logits.masked_fill(piece.hidden[:, :, None], LOWEST)
    if piece.there is not None:
        logits = logits.masked_fill(~piece.there[:, :, None], -torch.inf)
    largest = torch.full_like(logits[..., :1], LOWEST)
    if logits.shape[-1]:
        largest = torch.maximum(largest, logits.amax(-1, keepdim=True))
    exponentials = (logits - largest).exp()
    return largest, exponentials.sum(-1, keepdim=True), exponentials


def softmax_op(function: str, call: type[Any], pieces: Pieces) -> Op:
    """The op that gives softmax_max and softmax_sum, float32 ``[T1, N1, 8]``, for a call of ``function``."""

    def run(call: Any) -> tuple[Tensor, Tensor]:
        highest, sums = fake(call)
        for piece in pieces(call):
            largest, total, _ = _softmax(call, piece)
            highest[piece.rows], sums[piece.rows] = largest.flatten(1, 2), total.flatten(1, 2)
        return highest, sums

    def fake(call: Any) -> tuple[Tensor, Tensor]:
        shape = (*call.query.shape[:2], _REPEATED)
        highest, sums = (call.query.new_empty(shape, dtype=torch.float32) for _ in range(2))
        return highest, sums

    return Op(
        f"{function}_softmax",
        f"({arguments(call)}) -> (Tensor, Tensor)",
        kernel(call, run),
        fake_kernel(call, fake),
        key="CompositeExplicitAutograd",
        not_in_graphs=(
            f"softmax_max and softmax_sum of torch_npu.npu_{function} are there for its gradient, and no ONNX node has "
            "them: a model that is exported must not use them"
        ),
    )


def gradient_ops(function: str, call: type[Any], lengths: tuple[str, ...], pieces: Pieces) -> tuple[Gradient, Op, Op]:
    """The gradient with respect to query, key and value; the op that computes it, and the one for its own, refused."""
    names = list(inspect.signature(call).parameters)
    refuses, second = without_gradient(f"{function}_grad", "it is a gradient itself, and of the first order only")

    @private.not_compiled
    def run(grad: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return _gradients(grad, call(*args, **kwargs), pieces)

    def fake(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        return tuple(one.new_empty(one.shape) for one in (query, key, value))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        given = dict(zip(names, inputs, strict=False)) | keyword_only_inputs
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        ctx.save_for_backward(*tensors.values())
        ctx.tensors = list(tensors)
        ctx.others = {name: value for name, value in given.items() if name not in tensors}

    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        given = ctx.others | dict(zip(ctx.tensors, ctx.saved_tensors, strict=True))
        op = overload(f"{function}_grad", *(given[name] for name in lengths))
        return tuple(
            one if needed else None for one, needed in zip(op(grad, **given), ctx.needs_input_grad[:3], strict=True)
        )

    op = Op(
        f"{function}_grad",
        f"(Tensor grad, {arguments(call)}) -> (Tensor, Tensor, Tensor)",
        run,
        fake,
        second,
        key="CompositeExplicitAutograd",
    )
    return Gradient(setup_context, backward), op, refuses


def _gradients(grad: Tensor, call: Any, pieces: Pieces) -> tuple[Tensor, ...]:
    """In float32, rounded once to the types of query, key and value."""
    operands = call.query, call.key, call.value
    of_query, of_key, of_value = (one.new_zeros(one.shape, dtype=torch.float32) for one in operands)
    for piece in pieces(call):
        _, sums, exponentials = _softmax(call, piece)
        chances = exponentials / sums.where(sums > 0, 1)  # a row without tokens has none
        keys, values = piece.of(call.key), piece.of(call.value)
        queries, grads = (_grouped(one[piece.rows], keys.shape[1]) for one in (call.query, grad))
        of_chances = grads @ values.transpose(-1, -2)
        of_logits = chances * (of_chances - (chances * of_chances).sum(-1, keepdim=True)) * call.scale_value
        if piece.hidden is not None:  # a masked logit is a constant
            of_logits = of_logits.masked_fill(piece.hidden[:, :, None], 0)
        of_query[piece.rows] = (of_logits @ keys).flatten(1, 2)
        piece.add(of_key, of_logits, queries)
        piece.add(of_value, chances, grads)
    return tuple(total.to(one.dtype) for total, one in zip((of_query, of_key, of_value), operands, strict=True))


# --------------------------------------------------------------------------------------------------
# For the stages


def sequences(*prefix_sums: Any) -> Iterator[tuple[slice, ...]]:
    """Where each sequence lies, by prefix sums of several kinds of tokens."""
    ends = (host_lengths(one).tolist() for one in prefix_sums)
    for bounds in zip(*(pairwise((0, *one)) for one in ends), strict=True):
        yield tuple(slice(*pair) for pair in bounds)


def row_tiles(rows: slice, numbers_of_a_row: int) -> Iterator[slice]:
    """Rows in pieces that take little memory."""
    step = max(1, _MOST_NUMBERS // max(1, numbers_of_a_row))
    for first in range(rows.start, rows.stop, step):
        yield slice(first, min(first + step, rows.stop))


def tokens_of_blocks(blocks: Tensor, block_size: int, tokens: int) -> tuple[Tensor, Tensor]:
    """The positions of blocks' tokens in their sequence, ``[rows, N2, k]`` to ``[rows, N2, L]``, and which there are.

    RuntimeError for a block that a sequence of so many tokens does not have; the stage's own op says which.
    """
    count = -(-tokens // block_size)
    if bool(((blocks < -1) | (blocks >= count)).any()):
        raise RuntimeError(f"topk_indices must be in [-1, {count})")
    inside = torch.arange(block_size, device=blocks.device)
    positions = (blocks.long()[..., None] * block_size + inside).flatten(2)
    there = (blocks >= 0).repeat_interleave(block_size, -1) & (positions < tokens)
    return positions, there
