"""Element types: their names, and which of them can hold all numbers of another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx.helper
from onnx import TensorProto

FLOAT, HALF, BFLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
INTEGERS = (TensorProto.INT64, TensorProto.INT32)
SHORT: dict[int, str] = {HALF: "float16", BFLOAT16: "bfloat16"}
"""The types of the operators' tensors."""

EXACT: Mapping[int, tuple[int, ...]] = {
    HALF: (HALF, FLOAT, DOUBLE),
    BFLOAT16: (BFLOAT16, FLOAT, DOUBLE),
    FLOAT: (FLOAT, DOUBLE),
    DOUBLE: (DOUBLE,),
}
"""Types that hold every value of a type, itself included."""


def type_name(dtype: int) -> str:
    """The type's name, for people."""
    known: dict[int, str] = {FLOAT: "float32", DOUBLE: "float64", **SHORT}
    return known.get(dtype, f"element type {dtype}")


def numpy_type(dtype: int) -> npt.DTypeLike:
    """The type as NumPy, or ml_dtypes, has it."""
    return onnx.helper.tensor_dtype_to_np_dtype(dtype)


def rounded_to(numbers: npt.NDArray[np.generic], dtype: int) -> npt.NDArray[np.generic]:
    """Numbers in another type; too large ones are infinite."""
    with np.errstate(all="ignore"):
        result: npt.NDArray[np.generic] = numbers.astype(numpy_type(dtype))
    return result


def representable(numbers: npt.NDArray[np.generic], dtype: int) -> bool:
    """Whether each number is a value of the type."""
    return np.array_equal(numbers, rounded_to(numbers, dtype).astype(numbers.dtype))
