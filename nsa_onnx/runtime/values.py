"""Converts arrays to onnxruntime's values and back, bfloat16 included, which ``InferenceSession.run`` cannot do."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from .session import onnxruntime_module

if TYPE_CHECKING:
    from onnxruntime import OrtValue

_BFLOAT16 = "bfloat16"


def to_ortvalue(array: Any, *, dtype: str | None = None) -> OrtValue:
    """An array or a CPU tensor as a value for ``run_with_ort_values`` and ``bind_ortvalue_input``.

    Args:
        array: a NumPy array, ``ml_dtypes.bfloat16`` included, or a torch tensor. Where it is dense, the value shares
            its memory and keeps it alive.
        dtype: ``"bfloat16"`` if the array holds the bits of that type as uint16.

    Raises:
        TypeError: array is neither, or is of a type that onnxruntime does not know.
        ValueError: dtype is something else, or the array is not uint16.
        RuntimeError: the tensor is not on the CPU, or onnxruntime is not installed.

    >>> outputs = session.run_with_ort_values(None, {"kv": to_ortvalue(kv)})
    >>> compressed = from_ortvalue(outputs[0])
    """
    values, name = _to_numpy(array)
    if dtype is not None:
        if dtype != _BFLOAT16:
            raise ValueError(f"dtype must be {_BFLOAT16!r} or None, got {dtype!r}")
        if values.dtype != np.uint16:
            raise ValueError(f"array must be uint16, the bits of {_BFLOAT16}, got {name}")
        name = dtype
    if not values.dtype.isnative:
        raise TypeError(f"array must have the machine's byte order, got {values.dtype.str}: array.astype({name!r})")
    values = np.require(values, requirements=("C", "ALIGNED"))
    make = onnxruntime_module().OrtValue
    if name == _BFLOAT16:
        value: OrtValue = make.ortvalue_from_numpy_with_onnx_type(values.view(np.uint16), TensorProto.BFLOAT16)
        return value
    try:
        value = make.ortvalue_from_numpy(values)
    except (RuntimeError, ValueError) as error:
        raise TypeError(f"array must be of a type that onnxruntime knows, got {name} ({error})") from error
    return value


def _to_numpy(array: object) -> tuple[npt.NDArray[Any], str]:
    """The array, or a view of the tensor, and its type's name: NumPy has no bfloat16 of its own."""
    torch: Any = sys.modules.get("torch")  # nobody holds a tensor who has not imported torch
    if torch is not None and isinstance(array, torch.Tensor):
        if array.device.type != "cpu":
            raise RuntimeError(f"array must be on the CPU, got a tensor on {array.device}: array.cpu()")
        name = str(array.dtype).removeprefix("torch.")
        tensor = array.detach().contiguous()
        return (tensor.view(torch.uint16) if name == _BFLOAT16 else tensor).numpy(), name
    if not isinstance(array, np.ndarray):
        raise TypeError(f"array must be a NumPy array or a torch tensor, got {type(array).__name__}")
    return array, array.dtype.name


def from_ortvalue(value: OrtValue) -> npt.NDArray[Any]:
    """A copy of the tensor in a value of onnxruntime, bfloat16 as ``ml_dtypes.bfloat16``.

    ``.view(np.uint16)`` gives the bits of bfloat16, ``torch.from_numpy(...).view(torch.bfloat16)`` on these a tensor.

    Raises:
        TypeError: it holds no tensor.
        RuntimeError: it holds bfloat16 on a device.
    """
    if not value.is_tensor():
        raise TypeError(f"value must be a tensor, got {value.data_type()}")
    if value.data_type() != "tensor(bfloat16)":
        return np.array(value.numpy())  # which may be a view of memory that the value frees when it goes
    if (device := value.device_name()) != "cpu":
        raise RuntimeError(f"value must be on the CPU, is on {device}: bind the output to the CPU")
    bits = np.empty(value.shape(), np.uint16)
    if bits.size:
        memory = (ctypes.c_uint16 * bits.size).from_address(value.data_ptr())
        bits.reshape(-1)[:] = np.ctypeslib.as_array(memory)
    return bits.view(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
