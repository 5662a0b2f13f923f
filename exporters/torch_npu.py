"""Adds to torch_npu's operators what they lack for export, as soon as torch_npu is imported.

They come with kernels for NPU tensors only. Here they get CPU, fake, autograd and Functionalize kernels, the same as
our own ops (`operators`), so that a model that calls ``torch_npu.npu_nsa_compress(...)`` can be run, exported and
compiled where there is no NPU. In return, our ops on NPU tensors call torch_npu's.

Nothing that torch_npu brings is replaced, nothing is defined in its namespace, and this module never imports
torch_npu: without it, nothing happens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nsa_onnx.runtime.imports import when_imported

from . import ops, private, torchscript
from .operators import OPERATORS
from .operators.base import Op, TorchOperator, fake_kernel, find_op, kernel
from .operators.tensors import fresh

Kernel = Callable[..., Any]

_library: torch.library.Library | None = None  # its kernels live as long as it does


def attach() -> bool:
    """Attach to the ``npu::`` ops what they lack. Idempotent; False as long as there are none."""
    global _library
    if _library is not None:
        return True
    there = [operator for operator in OPERATORS if operator.npu_op and find_op(operator.npu_op) is not None]
    if not there:
        return False
    _library = torch.library.Library("npu", "IMPL")
    for operator in there:
        _attach(_library, operator)
        _attach_npu_kernels(operator)
    return True


_COMPOSITE = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")


def _attach(library: torch.library.Library, operator: TorchOperator) -> None:
    op, name = operator.in_place or operator.op, operator.npu_op.removeprefix("npu::")
    form = operator.npu_form
    run, fake = op.kernel, op.fake
    if form is not None:
        run, fake = kernel(form.call, form.run), fake_kernel(form.call, form.run)

    def lacks(*keys: str) -> bool:
        return not private.has_kernel(operator.npu_op, *keys)

    def with_optional_lengths(kernel: Kernel) -> Kernel:
        """The schema lets the lengths out, and the dispatcher leaves out what equals its default."""
        return functools.wraps(kernel)(functools.partial(kernel, **dict.fromkeys(operator.lengths)))

    if lacks("CPU", *_COMPOSITE):
        library.impl(name, with_optional_lengths(_counting_versions(run) if op.in_place else run), "CPU")
    if lacks("Meta", *_COMPOSITE):
        torch.library.register_fake(operator.npu_op, with_optional_lengths(_fake(operator, fake)), lib=library)
    if form is not None and lacks("Autograd", "AutogradCPU", "CompositeImplicitAutograd"):
        # Our ops have the gradients.
        library.impl(name, with_optional_lengths(_fake(operator, fake)), "AutogradCPU")
    elif op.gradient and lacks("Autograd", "AutogradCPU", "CompositeImplicitAutograd"):
        # "Autograd" stands for the backends that have no autograd kernel: NPU tensors keep torch_npu's. A decode step
        # on an NPU, which has no gradient, shall not take the way through Python at all.
        ops.install_autograd(library, name, op, "AutogradCPU" if op.gradient.refuses else "Autograd")
    if op.in_place and lacks("Functionalize", "CompositeImplicitAutograd"):
        ops.install_functionalize(library, name, operator)
    if op.in_place and lacks("Tracer", "CompositeImplicitAutograd"):
        torchscript.install_tracer(library, name, operator)
    if form is not None:
        private.decompose(find_op(operator.npu_op), _fake(operator, fake))
        if lacks("Tracer", "CompositeImplicitAutograd"):
            torchscript.install_converter(library, name, operator, fake)


def _counting_versions(kernel: Kernel) -> Kernel:
    @functools.wraps(kernel)
    def counting(*args: Any, cache: Tensor, **kwargs: Any) -> Any:
        torch.autograd.graph.increment_version(cache)
        return kernel(*args, cache=cache, **kwargs)

    return counting


def _fake(operator: TorchOperator, fake: Kernel) -> Kernel:
    @functools.wraps(fake)
    def refusing(*args: Any, **kwargs: Any) -> Any:
        _refuse_dynamic(operator, dict(zip(operator.npu_parameters, args, strict=False)) | kwargs)
        return fake(*args, **kwargs)

    return refusing


def _refuse_dynamic(operator: TorchOperator, given: dict[str, Any]) -> None:
    """``int[]`` carries constants only: torch has made one even of ``[x.shape[0]]``, and of that dim.

    Whatever the lengths come from, the dims that are tied to them cannot be dynamic: T or B.
    """
    tied = [tie.input for tie in operator.ties]
    for name in dict.fromkeys((*tied, *given)):
        if not isinstance(given[name], Tensor):
            continue
        for axis, size in enumerate(given[name].shape):
            tied_to_lengths = name in tied and axis == 0
            if (tied_to_lengths or private.made_constant(size)) and private.declared_dynamic(size):
                raise RuntimeError(
                    f"{name}.shape[{axis}] is dynamic, but the lengths of torch_npu.{operator.npu_function} are "
                    "constants in every exported program (int[] in its schema). Call "
                    f"nsa_onnx.exporters.{operator.name} instead, which takes lengths computed from shapes and int64 "
                    "tensors, or make the dim static"
                )


def lengths_hint(error: Exception) -> str | None:
    """What to do if ``error`` is torch's on a symbolic length that it could not put into ``int[]``."""
    said = str(error)
    for operator in (one for one in OPERATORS if one.npu_op):
        npu = operator.npu_function
        for name in operator.lengths:
            if f"npu::{npu}() Expected a value of type" in said and name in said:
                return (
                    f"{name} of torch_npu.{npu} is int[] in its schema and cannot come out of a tensor in an exported "
                    f"program. Call nsa_onnx.exporters.{operator.name} instead, with the tensor itself (int64)"
                )
    return None


# --------------------------------------------------------------------------------------------------
# Our ops on NPU tensors: functionalization leaves them in compiled graphs, on whatever device


def npu_kernel(operator: TorchOperator, op: Op) -> Kernel:
    """A kernel of ``op`` that calls torch_npu's, which takes lists only: a tensor of lengths is waited for."""
    npu_op = find_op(operator.npu_op)

    def on_npu(*args: Any, **kwargs: Any) -> Any:
        if operator.in_place and not op.in_place:
            kwargs["cache"] = fresh(kwargs["cache"])
        kwargs |= {name: _int_list(kwargs[name]) for name in operator.lengths}
        if operator.npu_form is not None:
            return operator.npu_form.on_npu(operator.call(*args, **kwargs))
        return npu_op(*args, **kwargs)

    return on_npu


def _int_list(lengths: Sequence[int] | Tensor) -> list[int]:
    return lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)


def _attach_npu_kernels(operator: TorchOperator) -> None:
    for op in filter(None, (operator.op, operator.in_place)):
        for name in op.schemas:
            ops.LIBRARY.impl(name, npu_kernel(operator, op), "PrivateUse1")


# --------------------------------------------------------------------------------------------------
# torch_npu imported after us


def attach_when_imported() -> None:
    """`attach` now, or when torch_npu gets imported."""
    if not attach():
        # Kernels registered ahead of torch_npu could not ask what it brings.
        when_imported("torch_npu", attach)
