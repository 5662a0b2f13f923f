"""Small torch models, tensors and comparisons, shared by the tests of the exporters."""

from __future__ import annotations

import ml_dtypes
import nsa_models
import numpy as np
import oracle
import torch

import nsa_onnx

DTYPES = (torch.float16, torch.bfloat16)
BLOCK, STRIDE, PAGE, HEADS, DIM = 32, 16, 64, 2, 16


def randn(*shape, dtype=torch.float16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def to_numpy(tensor):
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def same(a, b):
    """Equal bits of two tensors, or of a tensor and an array."""
    a, b = (to_numpy(value) if isinstance(value, torch.Tensor) else value for value in (a, b))
    if a.dtype in (np.float16, ml_dtypes.bfloat16):
        return oracle.same_bits(a, b)
    return a.dtype == b.dtype and np.array_equal(a, b)


def run_onnx(proto, *tensors):
    """Outputs of a model in onnxruntime with our library; the tensors are its inputs in order."""
    feeds = {value.name: to_numpy(tensor) for value, tensor in zip(proto.graph.input, tensors, strict=True)}
    return nsa_models.run_ort(proto, feeds, nsa_onnx.session_options())


def nsa_nodes(proto):
    return [node for node in proto.graph.node if node.domain == "nsa_onnx"]


def dims(value):
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def value_dims(proto, name):
    values = (*proto.graph.value_info, *proto.graph.output, *proto.graph.input)
    return next(dims(value) for value in values if value.name == name)


def decode_arguments(dtype=torch.float16, lengths=(64, 80), seed=0):
    """input, slot_mapping, block_table, cache for two sequences; with (64, 80) both write."""
    slots = torch.tensor([3, 1], dtype=torch.int32)
    table = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    x = randn(4, PAGE, HEADS, DIM, dtype=dtype, seed=seed)
    return x, slots, table, randn(5, HEADS, DIM, dtype=dtype, seed=seed + 1)
