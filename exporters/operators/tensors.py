"""Turns tensors into what the contract and the native kernels take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nsa_onnx.operators.contract import Array


def array(tensor: Tensor) -> Array:
    """What the contract sees of a tensor; a symbolic dim is an unknown one."""
    return Array(dtype(tensor), tuple(dim if isinstance(dim, int) else None for dim in tensor.shape))


def dtype(tensor: Tensor) -> str:
    """NumPy's name for its type."""
    return str(tensor.dtype).removeprefix("torch.")


def require_one_device(computed: Mapping[str, Tensor | None], indices: Mapping[str, Any]) -> None:
    """All that is computed with is where the first of it is; indices may be on the host.

    Asked of a meta tensor, too: torch gives a call with one among others to the fake kernel, whose result would be
    memory that nobody has written.
    """
    first, *_ = computed
    device = computed[first].device  # type: ignore[union-attr]
    for name, value in {**computed, **indices}.items():
        if not isinstance(value, Tensor) or value.device == device:
            continue
        if name in computed or value.device.type != "cpu":
            raise RuntimeError(f"{name} must be on the device of {first}, {device}, got {value.device}")


def host_lengths(lengths: Sequence[int] | Tensor) -> npt.NDArray[np.int64]:
    """Lengths of either kind, for the kernels."""
    return np.asarray(lengths.cpu().numpy() if isinstance(lengths, Tensor) else lengths, dtype=np.int64)


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where its elements do not lie as the kernel reads them (torch.frombuffer)."""
    contiguous = tensor.contiguous()
    return contiguous.clone() if contiguous.data_ptr() % contiguous.element_size() else contiguous


def bits(tensor: Tensor) -> npt.NDArray[Any]:
    """NumPy's view of a 16-bit CPU tensor's memory, whatever its strides."""
    view: npt.NDArray[Any] = tensor.detach().view(torch.int16).numpy()
    return view


def fresh(tensor: Tensor) -> Tensor:
    """A copy that is dense, whatever the tensor is."""
    return tensor.clone(memory_format=torch.contiguous_format)
