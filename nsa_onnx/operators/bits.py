"""16-bit floats as bit patterns, because NumPy has no bfloat16 of its own: reading, rounding, memory of a call."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.native import Buffer

Bits = npt.NDArray[np.uint16]

_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0}


def in_memory(buffer: Buffer, dtype: npt.DTypeLike = np.uint16) -> npt.NDArray[Any]:
    """The array that a buffer stands for; it shares its memory."""
    kind = np.dtype(dtype)
    size = math.prod(buffer.shape)
    if not size:  # its address may be anything
        return np.empty(buffer.shape, kind)
    memory = (ctypes.c_char * (size * kind.itemsize)).from_address(buffer.address)
    values: npt.NDArray[Any] = np.frombuffer(memoryview(memory), kind)
    return values.reshape(buffer.shape)


def to_float(dtype: str, bits: Bits, out: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
    """As float32, which holds every number of both types."""
    result = np.empty(bits.shape, np.float32) if out is None else out
    if dtype == "float16":
        np.copyto(result, bits.view(np.float16))
    else:
        np.left_shift(bits, 16, out=result.view(np.uint32), dtype=np.uint32)
    return result


def to_bits(dtype: str, values: npt.NDArray[np.float32]) -> Bits:
    """Rounded to the nearest number, ties to even; one NaN for all."""
    if dtype == "float16":
        result = values.astype(np.float16).view(np.uint16)
    else:
        bits = values.view(np.uint32)
        result = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    result[np.isnan(values)] = _NAN[dtype]
    return result
