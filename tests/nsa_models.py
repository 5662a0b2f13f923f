"""Small models with one NSA node each, and ways to run them, for the tests."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ELEMENT_TYPES = {np.dtype(np.float16): TensorProto.FLOAT16, BFLOAT16: TensorProto.BFLOAT16}


def value(name, dtype, shape):
    """A typed graph value; `dtype` is a NumPy type or an ONNX element type."""
    element = dtype if isinstance(dtype, int) else ELEMENT_TYPES[np.dtype(dtype)]
    return helper.make_tensor_value_info(name, element, shape)


def node(op_type="NsaCompress", inputs=("x", "w", "seq"), outputs=("y",), **attributes):
    defaults = {"compress_block_size": 32, "compress_stride": 16}
    if op_type == "NsaCompressInfer":
        defaults["page_block_size"] = 64
    made = helper.make_node(op_type, inputs, outputs, name="nsa", domain="nsa_onnx")
    for name, attribute in {**defaults, **attributes}.items():
        if attribute is not None:
            made.attribute.append(helper.make_attribute(name, attribute))
    return made


def model(nodes, inputs, outputs, initializers=(), opset=18, functions=(), imports=(("nsa_onnx", 1),)):
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(initializers))
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", opset), *imports)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)


def lengths(values, name="seq"):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def compress(seq=None, dtype=np.float16, x=("T", 4, 16), w=(32, 4), y=("R", 4, 16), opset=18, **attributes):
    """One NsaCompress; the lengths are an initializer if given, else an input."""
    inputs = [value("x", dtype, x), value("w", dtype, w)]
    if seq is None:
        inputs.append(value("seq", TensorProto.INT64, ["B"]))
    constants = [] if seq is None else [lengths(seq)]
    return model([node(**attributes)], inputs, [value("y", dtype, y)], constants, opset)


def infer(
    seq=None,
    dtype=np.float16,
    x=("P", 64, 4, 16),
    w=(32, 4),
    cache=("S", 4, 16),
    table=("B", "M"),
    opset=18,
    batch="B",
    **attributes,
):
    """One NsaCompressInfer; without `table` the input is left out."""
    inputs = [value("x", dtype, x), value("w", dtype, w), value("slots", TensorProto.INT32, [batch])]
    inputs.append(value("cache", dtype, cache))
    if seq is None:
        inputs.append(value("seq", TensorProto.INT64, [batch]))
    names = ["x", "w", "slots", "cache", "seq"]
    if table is not None:
        inputs.append(value("table", TensorProto.INT32, table))
        names.append("table")
    constants = [] if seq is None else [lengths(seq)]
    nodes = [node("NsaCompressInfer", names, **attributes)]
    return model(nodes, inputs, [value("y", dtype, ("S", *cache[1:]))], constants, opset)


def run_ort(made, feeds, options=None):
    """Run in onnxruntime on the CPU, without our library unless `options` has it; bfloat16 in and out."""
    if options is None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
    options.log_severity_level = 4  # runs that must fail would fill the screen
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
        if array.dtype == BFLOAT16
        else onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        for name, array in feeds.items()
    }
    run = onnxruntime.RunOptions()
    run.log_severity_level = 4
    return [_array(result) for result in session.run_with_ort_values(None, values, run)]


def _array(result):
    if result.data_type() != "tensor(bfloat16)":
        return result.numpy()
    count = int(np.prod(result.shape()))
    if not count:
        return np.zeros(result.shape(), BFLOAT16)
    memory = (ctypes.c_uint16 * count).from_address(result.data_ptr())
    return np.frombuffer(memory, np.uint16).copy().view(BFLOAT16).reshape(result.shape())


def run_reference(made, feeds):
    """Run in ONNX's own reference implementation."""
    return ReferenceEvaluator(made).run(None, feeds)
