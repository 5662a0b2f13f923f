"""The model that every tool gets: a prefill and a decode branch between standard operators, and its results."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from nsa_onnx.operators.expand import expand

GENERATOR = np.random.default_rng(0)
TOKENS, WIDTH, HEADS, DIM = 96, 32, 4, 16


def initializer(name, array):
    return onnx.numpy_helper.from_array(array, name)


def normal(*shape, dtype=np.float32):
    return GENERATOR.standard_normal(shape).astype(dtype)


def layer() -> onnx.ModelProto:
    """tokens -> MatMul -> NsaCompress -> MatMul -> y, and pages -> NsaCompressInfer -> cache_out."""
    ours = {"domain": "nsa_onnx", "compress_block_size": 32, "compress_stride": 16}
    decode = ["pages", "weight", "slots", "cache", "lengths", "table"]
    nodes = [
        helper.make_node("MatMul", ["tokens", "w_in"], ["flat"], name="project_in"),
        helper.make_node("Cast", ["flat"], ["half"], name="to_half", to=TensorProto.FLOAT16),
        helper.make_node("Reshape", ["half", "split"], ["kv"], name="split_heads"),
        helper.make_node("NsaCompress", ["kv", "weight", "seq"], ["windows"], name="prefill", **ours),
        helper.make_node("Cast", ["windows"], ["float"], name="to_float", to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["float", "join"], ["joined"], name="join_heads"),
        helper.make_node("MatMul", ["joined", "w_out"], ["y"], name="project_out"),
        helper.make_node("NsaCompressInfer", decode, ["cache_out"], name="decode", page_block_size=64, **ours),
    ]
    half, float32 = TensorProto.FLOAT16, TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info("tokens", float32, [TOKENS, WIDTH]),
        helper.make_tensor_value_info("pages", half, [4, 64, HEADS, DIM]),
        helper.make_tensor_value_info("slots", TensorProto.INT32, [2]),
        helper.make_tensor_value_info("cache", half, [5, HEADS, DIM]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, [2]),
        helper.make_tensor_value_info("table", TensorProto.INT32, [2, 2]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", float32, [3, WIDTH]),
        helper.make_tensor_value_info("cache_out", half, [5, HEADS, DIM]),
    ]
    constants = [
        initializer("w_in", normal(WIDTH, HEADS * DIM)),
        initializer("split", np.array([-1, HEADS, DIM])),
        initializer("weight", np.random.default_rng(1).random((32, HEADS)).astype(np.float16)),
        initializer("seq", np.array([40, TOKENS])),
        initializer("join", np.array([-1, HEADS * DIM])),
        initializer("w_out", normal(HEADS * DIM, WIDTH)),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nsa_onnx", 1)]
    return helper.make_model(
        helper.make_graph(nodes, "layer", inputs, outputs, constants), opset_imports=opsets, ir_version=10
    )


FEEDS = {
    "tokens": normal(TOKENS, WIDTH),
    "pages": normal(4, 64, HEADS, DIM, dtype=np.float16),
    "slots": np.array([3, 1], np.int32),
    "cache": normal(5, HEADS, DIM, dtype=np.float16),
    "lengths": np.array([80, 32]),
    "table": np.array([[2, 0], [3, 1]], np.int32),
}

PLAIN = layer()
PORTABLE = expand(PLAIN)
