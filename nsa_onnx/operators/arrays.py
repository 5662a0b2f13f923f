"""Arrays and tensors in eager calls: what the contract's checks and the kernels see of them.

NumPy arrays are handled here. Torch tensors go to the torch ops of ``nsa_onnx.exporters`` once that package is
imported (it registers them with `set_torch_op`), so that autograd, torch.export and torch.compile see an op. Before
that, a CPU tensor is computed through its NumPy view.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..runtime.native import Buffer, advise_huge_pages
from .contract import Array

Ints = Sequence[int]
Tensor = TypeVar("Tensor")  # torch's, which need not be installed

_torch_ops: dict[str, Callable[..., Any]] = {}


def set_torch_op(op_type: str, op: Callable[..., Any]) -> None:
    """Register what serves torch tensors, with the signature of the eager call; done by ``nsa_onnx.exporters``."""
    _torch_ops[op_type] = op


def torch_op(op_type: str, *tensors: object) -> Callable[..., Any] | None:
    """What serves the call, if all of these (but None) are tensors and ``nsa_onnx.exporters`` is imported."""
    given = [value for value in tensors if value is not None]
    return _torch_ops.get(op_type) if all(map(is_tensor, given)) else None


def is_tensor(value: object) -> bool:
    """Whether it is a torch tensor."""
    torch = sys.modules.get("torch")  # nobody holds a tensor who has not imported torch
    return torch is not None and isinstance(value, torch.Tensor)


def described(value: object) -> object:
    """What the contract sees: an `Array` for arrays and tensors, the object itself otherwise."""
    if isinstance(value, np.ndarray):
        # A foreign byte order has the native type's name, but not its bytes.
        return Array(value.dtype.name if value.dtype.isnative else value.dtype.str, value.shape)
    if is_tensor(value):
        return Array(str(value.dtype).removeprefix("torch."), tuple(value.shape))  # type: ignore[attr-defined]
    return value


def _to_numpy(name: str, tensor: Any) -> npt.NDArray[Any]:
    """A NumPy view on a CPU tensor's memory."""
    torch = sys.modules["torch"]
    if not tensor.is_cpu:
        raise RuntimeError(f"{name} must be a CPU tensor, got device {tensor.device}")
    if tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} requires a gradient: import nsa_onnx.exporters, which brings the differentiable op, "
            "or pass a detached tensor"
        )
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy has no such type; the type's name travels apart
        return tensor.view(torch.uint16).numpy()  # type: ignore[no-any-return]
    return tensor.numpy()  # type: ignore[no-any-return]


def views(**arrays: Any) -> dict[str, npt.NDArray[Any]]:
    """NumPy's view of each array or tensor."""
    return {name: _to_numpy(name, value) if is_tensor(value) else value for name, value in arrays.items()}


def buffer(array: Any) -> Buffer:
    """What the kernels see of a dense array or tensor, which must outlive the call."""
    return Buffer(array.data_ptr() if is_tensor(array) else array.ctypes.data, tuple(array.shape))


def dense(view: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array itself, or a copy where its elements do not lie as the kernel reads them."""
    return np.require(view, requirements=("C", "ALIGNED"))


def to_int64(values: Ints) -> npt.NDArray[np.int64] | None:
    """None if an element does not fit: no such length can be legal."""
    try:
        return np.asarray(values, dtype=np.int64)
    except OverflowError:
        return None


def fits_int64(*values: int) -> bool:
    """Whether the kernels can be given these at all."""
    return all(-(1 << 63) <= value < 1 << 63 for value in values)


def new_result(shape: tuple[int, ...], of: Any, dtype: str = "") -> Any:
    """Memory for a result: a tensor for a tensor, an array for an array, of that one's type unless another is named.

    Large ones are in huge pages, if the system has some: it clears a page before we write to it, and is asked for each
    of them.
    """
    if is_tensor(of):
        torch = sys.modules["torch"]
        return in_huge_pages(torch.empty(shape, dtype=getattr(torch, dtype) if dtype else of.dtype, device="cpu"))
    return _aligned_empty(shape, np.dtype(dtype or of.dtype))


def in_huge_pages(tensor: Tensor) -> Tensor:
    """A CPU tensor that nobody has written to. NumPy asks for huge pages in arrays of its own, torch does not."""
    advise_huge_pages(tensor.data_ptr(), tensor.nbytes)  # type: ignore[attr-defined]
    return tensor


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Memory that begins with a cache line, which the kernel writes large results past the caches for; as torch's."""
    line, size = 64, math.prod(shape) * dtype.itemsize
    memory = np.empty(size + line, np.uint8)
    start = -memory.ctypes.data % line
    return memory[start : start + size].view(dtype).reshape(shape)
