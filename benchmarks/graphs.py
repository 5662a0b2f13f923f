"""ONNX models for the benchmarks: our nodes, and NsaCompress in standard operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nsa_onnx.operators.contract import DOMAIN, OPSET_VERSION
from nsa_onnx.operators.expand import expand
from nsa_onnx.operators.windows import window_count
from nsa_onnx.runtime import native

ONNX_TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
Shape = Iterable[int | str]
Constants = dict[str, Any]


def model(nodes: list[NodeProto], inputs: dict[str, tuple[int, Shape]], output: str, kind: int, constants: Constants):
    """A model of these nodes. inputs: name -> (element type, shape)."""
    values = [helper.make_tensor_value_info(name, of, shape) for name, (of, shape) in inputs.items()]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    outputs = [helper.make_tensor_value_info(output, kind, None)]
    graph = helper.make_graph(nodes, "bench", values, outputs, initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session(graph: Any, threads: int, library: bool = True) -> ort.InferenceSession:
    """A CPU session with onnxruntime's own defaults, with our library or without."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if library:
        options.register_custom_ops_library(str(native.library_path()))
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def compress(weight: Any, stride: int, tokens: int, dim: int, dtype: str) -> Any:
    """One NsaCompress over one segment."""
    block, heads = weight.shape
    attributes = {"compress_block_size": block, "compress_stride": stride}
    node = helper.make_node("NsaCompress", ["x", "w", "seq"], ["y"], domain=DOMAIN, **attributes)
    kind = ONNX_TYPES[dtype]
    return model([node], {"x": (kind, [tokens, heads, dim])}, "y", kind, {"w": weight, "seq": np.array([tokens])})


def portable(weight: Any, stride: int, tokens: int, dim: int, dtype: str) -> Any:
    """The same with our body in standard operators, for sessions without our library."""
    return expand(compress(weight, stride, tokens, dim, dtype))


def conv(weight: Any, stride: int, tokens: int, dim: int, dtype: str) -> Any:
    """[T, N, D] -> [1, N * D, T, 1], one filter of `block` taps per channel.

    Tried as well, 2 to 28 times slower: a 1-D Conv of the same channels (`conv_1d`), T as the width, D as the
    width or as the batch with N groups. Only this form gets onnxruntime's blocked depthwise kernel.
    """
    kind, (_, heads) = ONNX_TYPES[dtype], weight.shape
    filters = np.repeat(weight.astype(np.float32).T, dim, axis=0)[:, None, :, None]
    nodes = [
        helper.make_node("Reshape", ["x", "as_channels"], ["x4"]),
        helper.make_node("Cast", ["x4"], ["x32"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["x32"], ["xt"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["xt", "w"], ["yt"], group=heads * dim, strides=[stride, 1]),
        helper.make_node("Transpose", ["yt"], ["y32"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["y32"], ["y4"], to=kind),
        helper.make_node("Reshape", ["y4", "as_heads"], ["y"]),
    ]
    constants = {
        "w": np.ascontiguousarray(filters),
        "as_channels": np.array([1, -1, 1, heads * dim]),
        "as_heads": np.array([-1, heads, dim]),
    }
    return model(nodes, {"x": (kind, [tokens, heads, dim])}, "y", kind, constants)


def conv_1d(weight: Any, stride: int, tokens: int, dim: int, dtype: str) -> Any:
    """[T, N, D] -> [1, N * D, T], a 1-D Conv with one group per channel: what one writes first."""
    kind, (_, heads) = ONNX_TYPES[dtype], weight.shape
    nodes = [
        helper.make_node("Reshape", ["x", "as_channels"], ["x3"]),
        helper.make_node("Cast", ["x3"], ["x32"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["x32"], ["xt"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["xt", "w"], ["yt"], group=heads * dim, strides=[stride]),
        helper.make_node("Transpose", ["yt"], ["y32"], perm=[0, 2, 1]),
        helper.make_node("Cast", ["y32"], ["y3"], to=kind),
        helper.make_node("Reshape", ["y3", "as_heads"], ["y"]),
    ]
    constants = {
        "w": np.ascontiguousarray(np.repeat(weight.astype(np.float32).T, dim, axis=0)[:, None, :]),
        "as_channels": np.array([1, -1, heads * dim]),
        "as_heads": np.array([-1, heads, dim]),
    }
    return model(nodes, {"x": (kind, [tokens, heads, dim])}, "y", kind, constants)


def gather(weight: Any, stride: int, tokens: int, dim: int, dtype: str) -> Any:
    """Gather the windows, multiply, ReduceSum."""
    kind, (block, heads) = ONNX_TYPES[dtype], weight.shape
    rows = window_count(tokens, block, stride)
    nodes = [
        helper.make_node("Gather", ["x", "windows"], ["x16"], axis=0),
        helper.make_node("Cast", ["x16"], ["x32"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x32", "w"], ["products"]),
        helper.make_node("ReduceSum", ["products", "axis"], ["y32"], keepdims=0),
        helper.make_node("Cast", ["y32"], ["y"], to=kind),
    ]
    constants = {
        "windows": np.arange(rows)[:, None] * stride + np.arange(block),
        "w": weight.astype(np.float32)[:, :, None],
        "axis": np.array([1]),
    }
    return model(nodes, {"x": (kind, [tokens, heads, dim])}, "y", kind, constants)


def infer(heads: int, dim: int, block: int, stride: int, page: int, dtype: str) -> Any:
    """One NsaCompressInfer with a block table; batch and sizes of cache and pool are free."""
    kind = ONNX_TYPES[dtype]
    inputs: dict[str, tuple[int, Shape]] = {
        "x": (kind, ["pages", page, heads, dim]),
        "w": (kind, [block, heads]),
        "slots": (TensorProto.INT32, ["B"]),
        "cache": (kind, ["S", heads, dim]),
        "seq": (TensorProto.INT64, ["B"]),
        "table": (TensorProto.INT32, ["B", "P"]),
    }
    attributes = {"compress_block_size": block, "compress_stride": stride, "page_block_size": page}
    node = helper.make_node("NsaCompressInfer", list(inputs), ["y"], domain=DOMAIN, **attributes)
    return model([node], inputs, "y", kind, {})


def identity() -> Any:
    """One Identity of a few numbers: what a run of onnxruntime costs at least."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], {"x": (TensorProto.FLOAT, [16])}, "y", TensorProto.FLOAT, {})


def sum_of(names: Sequence[str]) -> Any:
    """One Sum of a few numbers each: what a run of as many inputs costs at least, onnxruntime takes time for each."""
    inputs: dict[str, tuple[int, Shape]] = {name: (TensorProto.FLOAT, [16]) for name in names}
    return model([helper.make_node("Sum", list(names), ["y"])], inputs, "y", TensorProto.FLOAT, {})


def bound(running: ort.InferenceSession, inputs: dict[str, Any], outputs: dict[str, Any]) -> Callable[[], None]:
    """A run on arrays where they lie: nothing is copied, and no output allocated."""
    binding = running.io_binding()
    for name, array in inputs.items():
        binding.bind_input(name, "cpu", 0, _kind(array), array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, _kind(array), array.shape, array.ctypes.data)
    kept_alive = inputs, outputs

    def run() -> None:
        assert kept_alive  # onnxruntime does not hold the arrays
        running.run_with_iobinding(binding)

    return run


def _kind(array: Any) -> Any:
    return TensorProto.BFLOAT16 if array.dtype.name == "bfloat16" else array.dtype.type


def group_query_attention(heads: int, kv_heads: int, dtype: str, tokens: int, dim: int) -> Any:
    """onnxruntime's own attention: one token of one sequence, whose cache holds `tokens` tokens."""
    kind = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT}[dtype]
    cache = kind, [1, kv_heads, tokens, dim]
    inputs = {
        "query": (kind, [1, 1, heads * dim]),
        "key": (kind, [1, 1, kv_heads * dim]),
        "value": (kind, [1, 1, kv_heads * dim]),
        "past_key": cache,
        "past_value": cache,
        "before": (TensorProto.INT32, [1]),
        "total": (TensorProto.INT32, [1]),
    }
    outputs = {"output": inputs["query"], "new_key": cache, "new_value": cache}
    node = helper.make_node(
        "GroupQueryAttention",
        list(inputs),
        list(outputs),
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
    )
    values = [[helper.make_tensor_value_info(name, *of) for name, of in each.items()] for each in (inputs, outputs)]
    graph = helper.make_graph([node], "bench", *values)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
