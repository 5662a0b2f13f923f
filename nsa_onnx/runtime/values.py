"""bfloat16 in and out of onnxruntime: its Python calls take and give NumPy's own types only.

`to_ortvalue` and `from_ortvalue` carry any array that our operators know; the sessions' ``run_with_ort_values`` and
IO binding take and give such values.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from .session import onnxruntime_module

if TYPE_CHECKING:
    from onnxruntime import OrtValue


def to_ortvalue(array: Any) -> OrtValue:
    """An onnxruntime value in CPU memory with an array's contents, bfloat16 included.

    Args:
        array: a NumPy array of any shape; bfloat16 is ml_dtypes' type. A torch tensor in CPU memory is taken, too.

    Returns:
        The value. It shares the memory of an array that is dense: a write to the one is seen in the other.

    Raises:
        RuntimeError: onnxruntime is not installed.
        TypeError: it is no array, or of a type that onnxruntime does not know.
    """
    if type(array).__module__.partition(".")[0] == "torch" and hasattr(array, "detach"):
        array = _of_torch(array)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"array must be a NumPy array or a torch tensor, got {type(array).__name__}")
    values = onnxruntime_module().OrtValue
    dense = np.ascontiguousarray(array).reshape(array.shape)  # ascontiguousarray makes [1] of a scalar
    if dense.dtype.name == "bfloat16":
        value = values.ortvalue_from_numpy_with_onnx_type(dense.view(np.uint16), TensorProto.BFLOAT16)
    else:
        try:
            value = values.ortvalue_from_numpy(dense)
        except RuntimeError as error:
            raise TypeError(f"array is of type {dense.dtype}, which onnxruntime does not take: {error}") from error
    value.nsa_onnx_memory = dense  # lives as long as the value does
    return value


def from_ortvalue(value: OrtValue) -> npt.NDArray[Any]:
    """The contents of an onnxruntime value as a NumPy array of its own; bfloat16 as ml_dtypes' type.

    Raises:
        TypeError: the value is no tensor.
        RuntimeError: it is bfloat16, and ml_dtypes is not installed (onnx brings it).
    """
    if not value.is_tensor():
        raise TypeError(f"value must be a tensor, got {value.data_type()}")
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    try:
        import ml_dtypes
    except ImportError as error:
        raise RuntimeError("bfloat16 needs a NumPy type that ml_dtypes has: pip install ml_dtypes") from error
    # .numpy() knows no bfloat16: the bytes are read where they lie, and copied.
    if value.device_name().lower() != "cpu":
        raise RuntimeError(f"value is on {value.device_name()}: bind the output to 'cpu', or copy it there first")
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=np.int64))
    bits = np.zeros(size, np.uint16)
    if size:
        ctypes.memmove(bits.ctypes.data, value.data_ptr(), bits.nbytes)
    return np.asarray(bits.view(ml_dtypes.bfloat16)).reshape(shape)


def _of_torch(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu().contiguous()
    if str(tensor.dtype) != "torch.bfloat16":
        return np.asarray(tensor.numpy())
    import ml_dtypes
    import torch

    return np.asarray(tensor.view(torch.uint16).numpy()).view(ml_dtypes.bfloat16)
