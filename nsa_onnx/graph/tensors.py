"""Types, shapes and values of a model's tensors, which are not trusted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, TensorProto, TypeProto

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
# A length, where it is known.
Dim = int | None


@dataclass(frozen=True)
class TensorFacts:
    """What is known of one input: NumPy's name of its type and its shape, None where unknown."""

    dtype: str | None = None
    shape: tuple[Dim, ...] | None = None

    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def dims(self, rank: int) -> tuple[Dim, ...]:
        """The shape, or ``rank`` unknown dims."""
        return (None,) * rank if self.shape is None else self.shape

    def dim(self, index: int) -> Dim:
        return self.shape[index] if self.shape is not None and index < len(self.shape) else None


@dataclass(frozen=True)
class Unknown:
    """An attribute that is there but whose value is not: a function's own, set by whoever calls it."""


_DTYPE_NAMES: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.DOUBLE: "float64"}


def dtype_name(elem_type: int) -> str | None:
    """NumPy's name of an ONNX element type; None for UNDEFINED."""
    if elem_type == TensorProto.UNDEFINED:
        return None
    if elem_type not in TensorProto.DataType.values():
        return f"element type {elem_type}"
    return _DTYPE_NAMES.get(elem_type) or str(TensorProto.DataType.Name(elem_type)).lower()


def tensor_facts(type_proto: TypeProto | None) -> TensorFacts:
    """What a type says of a tensor. A negative dim says nothing: some exporters write -1 for "any".

    Something else than a tensor (a sequence, an optional) has its kind for a dtype, which no input takes.
    """
    kind = None if type_proto is None else type_proto.WhichOneof("value")
    if type_proto is None or kind is None:
        return TensorFacts()
    if kind != "tensor_type":
        return TensorFacts(kind.removesuffix("_type"))
    tensor = type_proto.tensor_type
    shape: tuple[Dim, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in tensor.shape.dim
        )
    return TensorFacts(dtype_name(tensor.elem_type), shape)


def elements(dims: Iterable[int]) -> float:
    """How many elements dims make, which may be any number of any integers; infinite if it is too much for a float.

    Exact up to 2**53. `math.prod` would work for hours on a million large dims.
    """
    result = 1.0
    for dim in dims:
        if dim == 0:
            return 0.0
        result *= dim
    return result


def attribute_value(attribute: AttributeProto) -> object:
    """An int as int, a float as float; anything else as something that nobody takes for one."""
    if attribute.ref_attr_name:
        return Unknown()
    if attribute.type == AttributeProto.INT:
        return int(attribute.i)
    # Only the kind matters of what is wrong; tensors and graphs stay unread.
    kinds: dict[int, object] = {
        AttributeProto.FLOAT: attribute.f,
        AttributeProto.STRING: "",
        AttributeProto.INTS: [],
        AttributeProto.FLOATS: [],
    }
    return kinds.get(attribute.type, attribute)


_INTEGER_FIELDS: dict[int, tuple[str, str]] = {
    TensorProto.INT64: ("int64_data", "<i8"),
    TensorProto.INT32: ("int32_data", "<i4"),
}
_BOOL_FIELD = {TensorProto.BOOL: ("int32_data", "u1")}


def integer_values(tensor: TensorProto, raw_data: bytes | None = None) -> Integers | None:
    """The values of an int32 or int64 tensor; None if it is of another type, external or malformed.

    Args:
        tensor: any tensor, trusted in nothing.
        raw_data: its bytes when they were read from an external file.
    """
    values = _values(tensor, raw_data) if tensor.data_type in _INTEGER_FIELDS else None
    return None if values is None else values.astype(np.int64)


def mask_values(tensor: TensorProto, raw_data: bytes | None = None) -> Mask | None:
    """The values of a bool tensor, as `integer_values` reads them: a byte that is not 0 is true."""
    values = _values(tensor, raw_data) if tensor.data_type == TensorProto.BOOL else None
    return None if values is None else values != 0


def _values(tensor: TensorProto, raw_data: bytes | None) -> npt.NDArray[Any] | None:
    if tensor.data_location == TensorProto.EXTERNAL and raw_data is None:
        return None
    name, layout = (_INTEGER_FIELDS | _BOOL_FIELD)[tensor.data_type]
    raw = raw_data if raw_data is not None else tensor.raw_data if tensor.HasField("raw_data") else None
    if raw is None:
        values: npt.NDArray[Any] = np.array(getattr(tensor, name), np.int64)
    elif len(raw) % np.dtype(layout).itemsize:
        return None
    else:
        values = np.frombuffer(raw, layout)
    shape = tuple(tensor.dims)
    if any(dim < 0 for dim in shape) or elements(shape) != values.size:
        return None
    try:
        return values.reshape(shape)
    except ValueError:  # more axes than NumPy has, or dims that do not fit a machine word beside a 0
        return None


def tensor_type(tensor: TensorProto) -> TypeProto:
    result = TypeProto()
    result.tensor_type.elem_type = tensor.data_type
    result.tensor_type.shape.SetInParent()
    for dim in tensor.dims:
        result.tensor_type.shape.dim.add().dim_value = dim
    return result
