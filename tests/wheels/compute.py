"""Run by an environment into which a wheel is installed: prints a hash of both operators' results, eager and served."""

import hashlib
import itertools

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

import nsa_onnx
from nsa_onnx.runtime import native


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint16).tobytes()).hexdigest()[:16]


def numbers(seed, shape, dtype):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def served(x, weight):
    """NsaCompress in onnxruntime."""
    value = helper.make_tensor_value_info
    attributes = {"compress_block_size": 32, "compress_stride": 16}
    node = helper.make_node("NsaCompress", ["x", "w", "seq"], ["y"], domain="nsa_onnx", **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [value("x", TensorProto.FLOAT16, x.shape), value("w", TensorProto.FLOAT16, weight.shape)],
        [value("y", TensorProto.FLOAT16, None)],
        [helper.make_tensor("seq", TensorProto.INT64, [2], [50, 200])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nsa_onnx", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    assert nsa_onnx.check(model).ok
    return nsa_onnx.create_session(model.SerializeToString()).run(None, {"x": x, "w": weight})[0]


print(native.cpu_target())
print(nsa_onnx.__version__, np.__version__, onnx.__version__, onnxruntime.__version__)
for dtype, heads in itertools.product((np.float16, ml_dtypes.bfloat16), (1, 3)):
    weight = numbers(0, (32, heads), dtype)
    x, pages = numbers(1, (200, heads, 48), dtype), numbers(2, (6, 64, heads, 48), dtype)
    print("compress", digest(nsa_onnx.nsa_compress(x, weight, 32, 16, actual_seq_len=[50, 200])))
    cache = nsa_onnx.nsa_compress_infer(
        *(pages, weight, np.array([3, 0], np.int32), 32, 16, 64),
        block_table=np.array([[4, 1, 0], [2, 5, 3]], np.int32),
        actual_seq_len=[32, 96],
        cache=np.zeros((4, heads, 48), dtype),
    )
    print("compress_infer", digest(cache))
    if dtype == np.float16:
        print("served", digest(served(x, weight)))
