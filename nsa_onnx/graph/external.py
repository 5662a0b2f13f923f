"""External data: the constants that an exporter has put in files beside the model."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto

from .tensors import elements

# Index constants beyond this are taken as unknown, not read: no batch has so many sequences.
MAX_CONSTANT_BYTES = 64 * 2**20
# Initializers up to here may matter to shape inference; larger ones are weights, which it need not see.
SMALL_BYTES = 64 * 2**10
_ITEM_BYTES: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT64, TensorProto.UINT64, TensorProto.DOUBLE), 8),
    **dict.fromkeys((TensorProto.INT32, TensorProto.UINT32, TensorProto.FLOAT), 4),
    **dict.fromkeys((TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT16, TensorProto.UINT16), 2),
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL), 1),
}


def data_size(tensor: TensorProto) -> float | None:
    """Bytes of a tensor's data in a file; None if its type or its dims make no such number."""
    item = _ITEM_BYTES.get(tensor.data_type)
    return None if item is None or any(dim < 0 for dim in tensor.dims) else item * elements(tensor.dims)


def external_bytes(tensor: TensorProto, folder: Path | None) -> bytes | None:
    """The data of an external tensor in the model's own folder; None if it is not external or not to be read.

    Raises:
        ValueError: there is no such data, or it would be read from outside of the folder.
    """
    if tensor.data_location != TensorProto.EXTERNAL or folder is None:
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    needed = data_size(tensor) or 0
    if needed > MAX_CONSTANT_BYTES:
        return None
    length = int(needed)
    offset_text = entries.get("offset", "0")
    if not offset_text.isdecimal() or len(offset_text) > 18:
        raise ValueError(f"external data {location!r}: the offset must be a number of bytes, got {offset_text!r}")
    offset = int(offset_text)
    try:
        base = folder.resolve()
        path = (base / location).resolve()  # links followed, so that none leads out of the folder
        if not location or not path.is_relative_to(base):
            raise ValueError(f"external data {location!r} is outside of the model's folder")
        if not path.is_file():
            raise ValueError(f"external data {location!r}: no such file")
        with path.open("rb") as file:
            file.seek(offset)
            data: bytes = file.read(length)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"external data {location!r}: {error}") from error
    if len(data) != length:
        raise ValueError(f"external data {location!r} has {len(data)} bytes at {offset}, {length} are needed")
    return data


def inside(tensor: TensorProto, folder: Path | None, most: int = MAX_CONSTANT_BYTES) -> TensorProto:
    """The tensor, with its data in it if that lies in a file of the model's folder and is no more than so many bytes.

    The one reader of constants: a model that an exporter has put into two files is the model that it would be in one.
    What cannot be read stays as it is; a rule of the checker says why.
    """
    size = data_size(tensor)
    if tensor.data_location != TensorProto.EXTERNAL or size is None or size > most:
        return tensor
    try:
        data = external_bytes(tensor, folder)
    except ValueError:
        return tensor
    if data is None:
        return tensor
    return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=data)
