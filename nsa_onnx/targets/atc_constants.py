"""Writes constants in the one form that the parser of ATC reads: a tensor in ``value``, small types as raw bytes."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, TensorProto, helper

from ..graph.tensors import elements
from .preparing import Work, label

_CONSTANT_FORMS = {
    "value_int": (TensorProto.INT64, "i"),
    "value_ints": (TensorProto.INT64, "ints"),
    "value_float": (TensorProto.FLOAT, "f"),
    "value_floats": (TensorProto.FLOAT, "floats"),
    "value_string": (TensorProto.STRING, "s"),
    "value_strings": (TensorProto.STRING, "strings"),
}


def plain_constants(work: Work) -> None:
    """The parser reads nothing of a Constant but ``value``, and takes the constant for empty otherwise."""
    count = 0
    for node in work.nodes():
        if node.op_type != "Constant" or node.domain:
            continue
        for attribute in node.attribute:
            if attribute.name == "sparse_value":
                work.reasons.append(
                    f"{label(node)}: sparse_value: the converter does not read this form of Constant: make it dense"
                )
            if attribute.name in _CONSTANT_FORMS:
                elem_type, source = _CONSTANT_FORMS[attribute.name]
                value = getattr(attribute, source)
                single = source in ("i", "f", "s")
                values = [value] if single else list(value)
                tensor = helper.make_tensor(attribute.name, elem_type, [] if single else [len(values)], values)
                attribute.CopyFrom(AttributeProto(name="value", type=AttributeProto.TENSOR, t=tensor))
                count += 1
    work.changed(count, "wrote constants as a tensor in 'value', the only form that the converter reads")


# Element types whose data the parser reads from raw_data alone: (field of TensorProto, NumPy's type of the bytes).
_RAW_ONLY: dict[int, tuple[str, str]] = {
    TensorProto.FLOAT16: ("int32_data", "<u2"),
    TensorProto.BFLOAT16: ("int32_data", "<u2"),
    TensorProto.INT16: ("int32_data", "<u2"),
    TensorProto.UINT16: ("int32_data", "<u2"),
    TensorProto.INT8: ("int32_data", "u1"),
    TensorProto.UINT8: ("int32_data", "u1"),
    TensorProto.BOOL: ("int32_data", "u1"),
    TensorProto.UINT32: ("uint64_data", "<u4"),
}


def raw_tensors(work: Work) -> None:
    count = 0
    for graph in work.graphs:
        tensors = list(graph.initializer)
        for node in graph.node:
            tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        for tensor in tensors:
            count += _make_raw(tensor)
    work.changed(count, "wrote 8- and 16-bit tensors as raw bytes, the only form that the converter reads")


def _make_raw(tensor: TensorProto) -> bool:
    """Whether the tensor's data was moved into raw_data. Malformed tensors are left to the runtimes."""
    if tensor.data_type not in _RAW_ONLY or tensor.HasField("raw_data"):
        return False
    source, layout = _RAW_ONLY[tensor.data_type]
    data = getattr(tensor, source)
    if not len(data) or len(data) != elements(tensor.dims):
        return False
    tensor.raw_data = np.array(data, np.int64).astype(layout).tobytes()
    tensor.ClearField(source)
    return True
