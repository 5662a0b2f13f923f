"""NsaCompress in torch: ``nsa_compress`` and the ops of its gradient."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.arrays import buffer, described, in_huge_pages
from nsa_onnx.operators.base import Lengths as Kind
from nsa_onnx.operators.contract import raise_first
from nsa_onnx.operators.nsa_compress import contract
from nsa_onnx.operators.nsa_compress.call import kernel as native_kernel
from nsa_onnx.operators.windows import SEQ, row_plan, window_count

from .. import private
from .base import Gradient, Lengths, Op, Tie, TorchOperator, arguments, fake_kernel, kernel, overload
from .gradients import keep, kept
from .tensors import array, dense, dtype, host_lengths, require_one_device


@dataclass(frozen=True)
class _Call:
    input: Tensor
    weight: Tensor
    compress_block_size: int
    compress_stride: int
    _: KW_ONLY
    actual_seq_len: Lengths

    @property
    def window(self) -> tuple[int, int]:
        return self.compress_block_size, self.compress_stride


def nsa_compress(
    input: Tensor,
    weight: Tensor,
    compress_block_size: int,
    compress_stride: int,
    *,
    actual_seq_len: Lengths,
) -> Tensor:
    """`nsa_onnx.nsa_compress` for torch tensors, with lengths that may be known at run time only.

    Args:
        input: ``[T, N, D]``, float16 or bfloat16; any strides.
        weight: ``[compress_block_size, N]``, the dtype of input.
        compress_block_size: window length, in tokens.
        compress_stride: tokens between two windows' starts.
        actual_seq_len: prefix sums of the segment lengths: a list or tuple of ints or SymInts (exported
            as a constant, or computed from shapes), or an int64 tensor ``[B]`` (exported as an input).

    Returns:
        ``[T', N, D]``, differentiable with respect to input and weight.

    Raises:
        TypeError, RuntimeError: as `nsa_onnx.nsa_compress`.
    """
    output = OPERATOR.run(input, weight, compress_block_size, compress_stride, actual_seq_len=actual_seq_len)
    return cast(Tensor, output)


# --------------------------------------------------------------------------------------------------
# Kernels


def _check_kinds(call: _Call) -> None:
    operands = described(call.input), described(call.weight)
    raise_first(contract.type_violations(*operands, *call.window, call.actual_seq_len))


def _check(call: _Call) -> None:
    """Every row of the error table that needs no data."""
    _check_kinds(replace(call, actual_seq_len=()))
    OPERATOR.check_lengths(vars(call))
    raise_first(contract.shape_violations(array(call.input).shape, array(call.weight).shape, *call.window))
    require_one_device({"input": call.input, "weight": call.weight}, {SEQ: call.actual_seq_len})


def _run(call: _Call) -> Tensor:
    """On CPU tensors of any strides."""
    _check(call)
    lengths = host_lengths(call.actual_seq_len)
    ends = lengths.tolist()
    raise_first(contract.prefix_sum_violations(ends, call.input.shape[0]))
    output = in_huge_pages(call.input.new_empty((contract.planned_rows(ends, *call.window), *call.input.shape[1:])))
    x, w = dense(call.input), dense(call.weight)
    threads = torch.get_num_threads()
    native_kernel(dtype(x), buffer(x), buffer(w), *call.window, lengths, buffer(output), threads)
    return output


def _fake(call: _Call) -> Tensor:
    """T' is an int, an expression of SymInts, or unbacked (lengths in a tensor)."""
    _check(call)
    ends = call.actual_seq_len
    if isinstance(ends, Tensor):
        rows = torch.library.get_ctx().new_dynamic_size(min=0)
    else:
        if all(isinstance(end, int) for end in ends):
            raise_first(contract.prefix_sum_violations(ends, array(call.input).shape[0]))
        OPERATOR.require_ties(call)
        lengths = (end - start for start, end in zip((0, *ends), ends, strict=False))
        rows = sum(window_count(length, *call.window, torch.sym_max) for length in lengths)
    return call.input.new_empty((rows, *call.input.shape[1:]))


# --------------------------------------------------------------------------------------------------
# Gradients. <grad, NsaCompress(input, weight)> is linear in each of the three, so the two gradient ops
# and NsaCompress are one another's derivatives, to every order.


def _window_starts(lengths: Lengths, block: int, stride: int, device: torch.device) -> Tensor:
    plan = row_plan(host_lengths(lengths).tolist(), block, stride)
    starts = [np.arange(run.rows, dtype=np.int64) * stride + run.first_token for run in plan]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *starts])).to(device)


@private.not_compiled
def _grad_input(
    grad: Tensor, weight: Tensor, block: int, stride: int, tokens: int, *, actual_seq_len: Lengths
) -> Tensor:
    """``[T, N, D]``: every window's gradient, weighted, added to its tokens in float32."""
    starts = _window_starts(actual_seq_len, block, stride, grad.device)
    total = grad.new_zeros((tokens, *grad.shape[1:]), dtype=torch.float32)
    rows, w = grad.float(), weight.float()
    for j in range(block):
        total.index_add_(0, starts + j, rows * w[j, :, None])
    return total.to(grad.dtype)


@private.not_compiled
def _grad_weight(grad: Tensor, input: Tensor, block: int, stride: int, *, actual_seq_len: Lengths) -> Tensor:
    """``[compress_block_size, N]``: over windows and D, the sum of gradient times token, in float32."""
    starts = _window_starts(actual_seq_len, block, stride, grad.device)
    rows = grad.float()
    sums = [(rows * input[starts + j].float()).sum((0, 2)) for j in range(block)]
    return torch.stack(sums).to(grad.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    input, weight, *ctx.window = inputs
    ctx.tokens = input.shape[0]
    needs_input, needs_weight = ctx.needs_input_grad[:2]
    keep(ctx, keyword_only_inputs[SEQ], input if needs_weight else None, weight if needs_input else None)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """In the dtype of input and weight, float32 inside."""
    input, weight, lengths = kept(ctx)
    to_input = None if weight is None else _op("grad_input", lengths, grad, weight, *ctx.window, ctx.tokens)
    to_weight = None if input is None else _op("grad_weight", lengths, grad, input, *ctx.window)
    return to_input, to_weight, None, None


def _setup_of_gradients(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    grad, operand, *rest = inputs
    ctx.window = rest[:2]
    keep(ctx, keyword_only_inputs[SEQ], grad, operand)


def _grad_input_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight, lengths = kept(ctx)
    to_grad = _op("", lengths, grad_grad, weight, *ctx.window)
    to_weight = _op("grad_weight", lengths, grad, grad_grad, *ctx.window)
    return to_grad, to_weight, None, None, None


def _grad_weight_backward(ctx: Any, grad_grad: Tensor) -> tuple[Tensor | None, ...]:
    grad, input, lengths = kept(ctx)
    to_grad = _op("", lengths, input, grad_grad, *ctx.window)
    to_input = _op("grad_input", lengths, grad, grad_grad, *ctx.window, input.shape[0])
    return to_grad, to_input, None, None


def _op(suffix: str, lengths: Lengths, *args: Any) -> Tensor:
    name = f"{nsa_compress.__name__}_{suffix}".rstrip("_")
    return cast(Tensor, overload(name, lengths)(*args, actual_seq_len=lengths))


# --------------------------------------------------------------------------------------------------
# The ops

_REST = f"int compress_block_size, int compress_stride, {{}}*, {{{{lengths}}}} {SEQ}) -> Tensor"
OPERATOR = TorchOperator(
    node=OPERATORS[contract.OP_TYPE],
    function=nsa_compress,
    call=_Call,
    check_kinds=_check_kinds,
    op=Op(
        "nsa_compress",
        f"({arguments(_Call)}) -> Tensor",
        kernel(_Call, _run),
        fake_kernel(_Call, _fake),
        Gradient(_setup, _backward),
    ),
    npu_schema=(
        "npu::npu_nsa_compress(Tensor input, Tensor weight, int compress_block_size, int compress_stride, *, "
        "int[]? actual_seq_len=None) -> Tensor"
    ),
    ties=(Tie("T", "input", SEQ, Kind.PREFIX_SUMS),),
    more=(
        Op(
            "nsa_compress_grad_input",
            f"(Tensor grad, Tensor weight, {_REST.format('SymInt tokens, ')}",
            _grad_input,
            lambda grad, weight, block, stride, tokens, *, actual_seq_len: grad.new_empty((tokens, *grad.shape[1:])),
            Gradient(_setup_of_gradients, _grad_input_backward),
            key="CompositeExplicitAutograd",
        ),
        Op(
            "nsa_compress_grad_weight",
            f"(Tensor grad, Tensor input, {_REST.format('')}",
            _grad_weight,
            lambda grad, input, block, stride, *, actual_seq_len: grad.new_empty((block, grad.shape[1])),
            Gradient(_setup_of_gradients, _grad_weight_backward),
            key="CompositeExplicitAutograd",
        ),
    ),
)
