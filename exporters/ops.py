"""Registers the ops of all operators in torch's namespace ``nsa_onnx``.

torch's own registration has no gradients for ops with tensors among their keyword arguments, and none for ops that
update an argument in place: both are done here.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from nsa_onnx.operators import arrays

from . import dynamo, private
from .operators import OPERATORS
from .operators.base import NAMESPACE, Op, TorchOperator, find_op
from .operators.gradients import tensors_of


def install_autograd(library: torch.library.Library, name: str, op: Op, key: str = "Autograd") -> None:
    """Give op ``name`` ("op" or "op.overload") the gradient of ``op``.

    As `torch.library.register_autograd`, which refuses tensors among the keyword arguments (lengths,
    cache) and in-place ops.

    Args:
        library: an IMPL or DEF library of the op's namespace; it must stay alive.
        key: "Autograd" (every backend without a kernel of its own) or one backend's, "AutogradCPU".
    """
    assert op.gradient is not None
    setup_context, backward, _ = op.gradient

    class Formula(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *inputs, run, kwargs = args
            output = run()
            inputs = inputs[: len(inputs) - len(tensors_of(kwargs))]
            setup_context(ctx=ctx, inputs=tuple(inputs), keyword_only_inputs=kwargs, output=output)
            if op.in_place:
                ctx.mark_dirty(kwargs["cache"])
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            gradients = backward(ctx, *grads)
            return *gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients))  # run, kwargs, their tensors

    @private.not_compiled
    def autograd(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return private.below_autograd(find_op(f"{library.ns}::{name}"), keyset, *args, **kwargs)

        tensors = tensors_of(kwargs)
        given = (value for value in (*args, *tensors) if isinstance(value, Tensor))
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in given):
            return run()
        if op.in_place:
            _refuse_leaf(kwargs["cache"])
        return Formula.apply(*args, *tensors, run, kwargs)  # type: ignore[no-untyped-call]

    library.impl(name, autograd, key, with_keyset=True)


def _refuse_leaf(cache: Tensor) -> None:
    """What autograd would say of it, but before the cache has changed."""
    leaf = private.shown_by(cache)
    if leaf.is_leaf and leaf.requires_grad:
        raise RuntimeError(
            "cache must not be a leaf tensor that requires a gradient, or a view of one: it is updated in place. Pass "
            "a detached tensor, or call under torch.no_grad()"
        )


def install_version_counter(library: torch.library.Library, name: str) -> None:
    """Let autograd notice that the in-place op ``name`` has changed its cache."""

    @private.not_compiled
    def count(keyset: Any, *args: Any, cache: Tensor, **kwargs: Any) -> Any:
        torch.autograd.graph.increment_version(cache)
        return private.below_version_counter(find_op(f"{library.ns}::{name}"), keyset, *args, cache=cache, **kwargs)

    library.impl(name, count, "ADInplaceOrView", with_keyset=True)


def install_functionalize(library: torch.library.Library, name: str, operator: TorchOperator) -> None:
    """Under functionalization, turn the in-place op ``name`` of an operator into the one that returns a new cache.

    Works for torch_npu's, too, whose tag ``out`` would make functionalization forget the cache's old contents.

    Args:
        library: an IMPL or DEF library of the op's namespace; it must stay alive.
    """

    @private.not_compiled
    def functionalize(*args: Any, cache: Tensor, **kwargs: Any) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            dynamo.warn_of_lost_caches()
        operator.check_lengths(kwargs)
        op = operator.overload(operator.op, kwargs)
        plain_args = [private.functional_value(arg) for arg in args]
        plain_kwargs = {key: private.functional_value(value) for key, value in {**kwargs, "cache": cache}.items()}
        with private.below_functionalization():
            new = cast(Tensor, op(*plain_args, **plain_kwargs))
        private.update_functional(cache, new)
        return cache

    library.impl(name, functionalize, "Functionalize")


# --------------------------------------------------------------------------------------------------
# Registration

LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def _register(operator: TorchOperator, op: Op) -> None:
    for name, schema in op.schemas.items():
        LIBRARY.define(name + schema, tags=[torch.Tag.pt2_compliant_tag])
        LIBRARY.impl(name, op.kernel, op.key)
        torch.library.register_fake(f"{NAMESPACE}::{name}", op.fake, lib=LIBRARY)
        if op.gradient is not None:
            install_autograd(LIBRARY, name, op)
        if op.in_place:
            install_version_counter(LIBRARY, name)
            install_functionalize(LIBRARY, name, operator)


for _operator in OPERATORS:
    for _op in _operator.ops:
        _register(_operator, _op)
    arrays.set_torch_op(_operator.node.op_type, _operator.function)
