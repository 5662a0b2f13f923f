"""Adds to torch_npu's two operators what they lack for export, as soon as torch_npu is imported.

``npu::npu_nsa_compress`` and ``npu::npu_nsa_compress_infer.cache`` come with kernels for NPU tensors only. Here they
get CPU, fake, autograd and Functionalize kernels, the same as our own ops (`ops`), so that a model that calls
``torch_npu.npu_nsa_compress(...)`` can be run, exported and compiled where there is no NPU. In return, our ops on NPU
tensors call torch_npu's.

Nothing that torch_npu brings is replaced, nothing is defined in its namespace, and this module never imports
torch_npu: without it, nothing happens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from nsa_onnx.runtime.imports import when_imported

from . import ops, torchscript

COMPRESS = "npu_nsa_compress"
INFER = "npu_nsa_compress_infer.cache"

# The interfaces that the kernels below are written for; the tests hold them against the real wheel.
SCHEMAS = {
    COMPRESS: (
        "npu::npu_nsa_compress(Tensor input, Tensor weight, int compress_block_size, int compress_stride, *, "
        "int[]? actual_seq_len=None) -> Tensor"
    ),
    INFER: (
        "npu::npu_nsa_compress_infer.cache(Tensor input, Tensor weight, Tensor slot_mapping, "
        "int compress_block_size, int compress_stride, int page_block_size, *, Tensor? block_table=None, "
        "int[]? actual_seq_len=None, Tensor(a!) cache) -> Tensor(a!)"
    ),
}

Kernel = Callable[..., Any]

_library: torch.library.Library | None = None  # its kernels live as long as it does


def attach() -> bool:
    """Attach to the ``npu::`` ops what they lack. Idempotent; False as long as they do not exist."""
    global _library
    if _library is not None:
        return True
    if not _exists(COMPRESS) or not _exists(INFER):
        return False
    _library = torch.library.Library("npu", "IMPL")
    _attach_compress(_library)
    _attach_infer(_library)
    _attach_npu_kernels()
    return True


def _exists(name: str) -> bool:
    packet, _, overload = name.partition(".")
    return (overload or "default") in getattr(getattr(torch.ops.npu, packet, None), "overloads", list)()


def _has(name: str, *keys: str) -> bool:
    """Whether the op has a kernel of its own for one of the dispatch keys (fallbacks do not count)."""
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(f"npu::{name}", key) for key in keys)


_COMPOSITE = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")


def _with_optional_lengths(kernel: Kernel) -> Kernel:
    """The schema lets actual_seq_len out, and the dispatcher leaves out what equals its default."""
    return functools.wraps(kernel)(functools.partial(kernel, actual_seq_len=None))


def _attach_compress(library: torch.library.Library) -> None:
    name = f"npu::{COMPRESS}"
    if not _has(COMPRESS, "CPU", *_COMPOSITE):
        library.impl(COMPRESS, _with_optional_lengths(ops.compress_cpu), "CPU")
    if not _has(COMPRESS, "Meta", *_COMPOSITE):
        torch.library.register_fake(name, _with_optional_lengths(_compress_fake), lib=library)
    if not _has(COMPRESS, "Autograd", "AutogradCPU", "CompositeImplicitAutograd"):
        # "Autograd" stands for the backends that have no autograd kernel: NPU tensors keep torch_npu's.
        ops.install_autograd(library, COMPRESS, ops.compress_setup_context, ops.compress_backward)


def _attach_infer(library: torch.library.Library) -> None:
    if not _has(INFER, "CPU", *_COMPOSITE):
        library.impl(INFER, _with_optional_lengths(_infer_cpu), "CPU")
    if not _has(INFER, "Meta", *_COMPOSITE):
        torch.library.register_fake(f"npu::{INFER}", _with_optional_lengths(_infer_fake), lib=library)
    if not _has(INFER, "Autograd", "AutogradCPU", "CompositeImplicitAutograd"):
        # On the CPU only: a decode step on an NPU shall not take the way through Python.
        ops.install_inplace_autograd(library, INFER, "AutogradCPU")
    if not _has(INFER, "Functionalize", "CompositeImplicitAutograd"):
        ops.install_functionalize(library, INFER)
    if not _has(INFER, "Tracer", "CompositeImplicitAutograd"):
        torchscript.install_tracer(library, INFER)


def _infer_cpu(*args: Any, cache: Tensor, **kwargs: Any) -> Tensor:
    torch.autograd.graph.increment_version(cache)
    return ops.infer_cpu_(*args, cache=cache, **kwargs)


def _compress_fake(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    _refuse_dynamic("nsa_compress", input=input, weight=weight)
    return ops.compress_fake(input, weight, *args, **kwargs)


def _infer_fake(
    input: Tensor, weight: Tensor, slot_mapping: Tensor, *args: Any, cache: Tensor, **kwargs: Any
) -> Tensor:
    _refuse_dynamic("nsa_compress_infer", slot_mapping=slot_mapping, input=input, cache=cache)
    return ops.infer_fake_(input, weight, slot_mapping, *args, cache=cache, **kwargs)


def _refuse_dynamic(op: str, **tensors: Tensor) -> None:
    """``int[]`` carries constants only: torch has made one even of ``[x.shape[0]]``, and of that dim.

    Whatever the lengths come from, the first dim of the first tensor cannot be dynamic: T or B.
    """
    first, *_ = tensors
    for name, tensor in tensors.items():
        for axis, size in enumerate(tensor.shape):
            tied_to_lengths = name == first and axis == 0
            if (tied_to_lengths or _made_constant(size)) and ops._declared_dynamic(size):
                raise RuntimeError(
                    f"{name}.shape[{axis}] is dynamic, but the lengths of torch_npu.npu_{op} are constants in every "
                    f"exported program (int[] in its schema). Call nsa_onnx.exporters.{op} instead, which takes "
                    "lengths computed from shapes and int64 tensors, or make the dim static"
                )


def lengths_hint(error: Exception) -> str | None:
    """What to do if ``error`` is torch's on a symbolic length that it could not put into ``int[]``."""
    for op in ("nsa_compress", "nsa_compress_infer"):
        if f"npu::npu_{op}() Expected a value of type" in str(error) and "actual_seq_len" in str(error):
            return (
                f"actual_seq_len of torch_npu.npu_{op} is int[] in its schema and cannot come out of a tensor in an "
                f"exported program. Call nsa_onnx.exporters.{op} instead, with the tensor itself (int64)"
            )
    return None


def _made_constant(size: Any) -> bool:
    """Whether tracing has pinned a symbolic size to the example's."""
    if not isinstance(size, torch.SymInt):
        return False
    bounds = size.node.shape_env.bound_sympy(ops._expression(size))
    return bool(bounds.is_singleton()) or size.node.maybe_as_int() is not None


# --------------------------------------------------------------------------------------------------
# Our ops on NPU tensors: functionalization leaves them in compiled graphs, on whatever device


def _int_list(actual_seq_len: Sequence[int] | Tensor) -> list[int]:
    """torch_npu takes a list only: a lengths tensor is read back, which waits for the device."""
    return actual_seq_len.tolist() if isinstance(actual_seq_len, Tensor) else list(actual_seq_len)


def _compress_npu(*args: Any, actual_seq_len: Sequence[int] | Tensor) -> Tensor:
    return cast(Tensor, torch.ops.npu.npu_nsa_compress(*args, actual_seq_len=_int_list(actual_seq_len)))


def _infer_npu_(*args: Any, actual_seq_len: Sequence[int] | Tensor, **kwargs: Any) -> Tensor:
    lengths = _int_list(actual_seq_len)
    return cast(Tensor, torch.ops.npu.npu_nsa_compress_infer.cache(*args, actual_seq_len=lengths, **kwargs))


def _infer_npu(*args: Any, cache: Tensor, **kwargs: Any) -> Tensor:
    return _infer_npu_(*args, cache=cache.clone(memory_format=torch.contiguous_format), **kwargs)


def _attach_npu_kernels() -> None:
    for packet, kernel in (
        ("nsa_compress", _compress_npu),
        ("nsa_compress_infer", _infer_npu),
        ("nsa_compress_infer_", _infer_npu_),
    ):
        for name in (packet, f"{packet}.tensor"):
            ops.LIBRARY.impl(name, kernel, "PrivateUse1")


# --------------------------------------------------------------------------------------------------
# torch_npu imported after us


def attach_when_imported() -> None:
    """`attach` now, or when torch_npu gets imported."""
    if not attach():
        # Kernels registered ahead of torch_npu could not ask what it brings.
        when_imported("torch_npu", attach)
