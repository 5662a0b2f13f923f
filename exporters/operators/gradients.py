"""Helpers for gradient formulas: keeping tensors and lengths of the forward pass, refusing the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .. import private
from .base import NAMESPACE, Gradient, Lengths, Op, find_op


def keep(ctx: Any, lengths: Lengths, *tensors: Tensor | None) -> None:
    """Save what the backward pass needs."""
    in_tensor = isinstance(lengths, Tensor)
    ctx.save_for_backward(*tensors, lengths if in_tensor else None)
    ctx.lengths = None if in_tensor else list(lengths)


def kept(ctx: Any) -> tuple[Any, ...]:
    """The saved tensors and the lengths."""
    *tensors, lengths = ctx.saved_tensors
    return *tensors, ctx.lengths if lengths is None else lengths


def tensors_of(keywords: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among keyword arguments, which autograd sees behind the positional ones."""
    return [value for value in keywords.values() if isinstance(value, Tensor)]


def without_gradient(name: str, reason: str) -> tuple[Op, Gradient]:
    """For an op ``name`` that has no gradient: an op that raises when it runs, and a formula that calls it.

    Zeros would be wrong without a word. An op, because torch.compile traces backward passes that are never run.

    Args:
        reason: what the error says: why there is none, and what to do.
    """
    raises = f"{name}_has_no_gradient"

    @private.not_compiled
    def refuse(grad: Tensor, size: Sequence[int]) -> Tensor:
        raise NotImplementedError(f"{name} has no gradient: {reason}")

    def setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        operands = (*inputs, *tensors_of(keyword_only_inputs))
        wanted = zip(operands, ctx.needs_input_grad, strict=False)
        ctx.shapes = [value.shape if needs else None for value, needs in wanted]

    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        op: Callable[..., Tensor] = find_op(f"{NAMESPACE}::{raises}")
        return tuple(None if shape is None else op(grad, shape) for shape in ctx.shapes)

    op = Op(
        raises,
        "(Tensor grad, SymInt[] size) -> Tensor",
        refuse,
        lambda grad, size: grad.new_empty(size),
        key="CompositeExplicitAutograd",
    )
    return op, Gradient(setup_context, backward, refuses=True)
