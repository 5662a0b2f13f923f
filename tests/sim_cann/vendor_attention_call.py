"""The attention stages of the real torch_npu on the simulated CANN, started by tests/test_sim.py.

As vendor_call.py: torch_npu's own code says in which order and form the vendor calls its operators.
"""

import ml_dtypes
import numpy as np
import torch
import torch_npu

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.base import Exact

BITS = {torch.float16: np.dtype(np.float16), torch.bfloat16: np.dtype(ml_dtypes.bfloat16)}
D, DV, PAGE, SCALE = 192, 128, 64, 192**-0.5
WINDOWS = {"compress_block_size": 32, "compress_stride": 16, "select_block_size": 64}


def array(tensor):
    tensor = tensor.cpu()
    return tensor.view(torch.int16).numpy().view(BITS[tensor.dtype]) if tensor.dtype in BITS else tensor.numpy()


def check(op_type, results, tensors, lengths, **attributes):
    """Results in the node's form are the operator's, but for the vendor's rounding of P to 16 bits."""
    dtype = BITS[tensors["query"].dtype]
    values = {name: array(tensor) for name, tensor in tensors.items()} | {k: np.array(v) for k, v in lengths.items()}
    values |= {name: values[name].astype(float) for name in ("query", "key", "value")}
    of_p = (2.0**-11 if dtype == np.float16 else 2.0**-8) * np.abs(values["value"]).max()
    attributes = {"scale_value": float(np.float32(SCALE)), **attributes}
    for result, wanted in zip(results, OPERATORS[op_type].reference(values, attributes), strict=True):
        if isinstance(wanted, Exact):
            wanted = Exact(wanted.values, wanted.slack + of_p)
        problem = wanted.judge(op_type, array(result).astype(float), dtype.name).problem
        assert not problem, problem


def floats(*shape, dtype):
    return torch.randn(shape).to(dtype)


def compress_prefill(dtype):
    tensors = {"query": floats(64, 8, D, dtype=dtype), "key": floats(21, 2, D, dtype=dtype)}
    tensors["value"] = floats(21, 2, DV, dtype=dtype)
    masks = {"atten_mask": torch.rand(40, 13) < 0.3, "topk_mask": torch.rand(40, 4) < 0.2}
    lengths = {"actual_seq_qlen": [40, 64], "actual_cmp_seq_kvlen": [8, 21], "actual_sel_seq_kvlen": [2, 6]}
    for given in ({}, masks):
        there = {name: tensor.npu() for name, tensor in given.items()}
        out, topk, maxima, sums = torch_npu.npu_nsa_compress_attention(
            *(tensor.npu() for tensor in tensors.values()), SCALE, 8, 32, 16, 64, 2, **there, **lengths
        )
        attributes = {"head_num": 8, **WINDOWS, "select_block_count": 2}
        check("NsaCompressAttention", (out, topk), tensors | given, lengths, **attributes)
        assert maxima.shape == sums.shape == (64, 8, 8) and (array(sums) > 0).all()


def pages(dtype, groups):
    tensors = {"key": floats(10, PAGE, groups, D, dtype=dtype), "value": floats(10, PAGE, groups, DV, dtype=dtype)}
    return tensors | {"block_table": torch.randperm(10)[:9].reshape(3, 3).to(torch.int32)}


def flat(tensor):
    """Pages with all heads in one dim."""
    return tensor.flatten(2)


def compress_decode(dtype):
    tensors = {"query": floats(3, 8, D, dtype=dtype), **pages(dtype, 2)}
    lengths = {"actual_cmp_seq_kvlen": [7, 70, 192]}
    attributes = {"head_num": 8, "key_value_head_num": 2, "select_block_count": 2, "page_block_size": PAGE, **WINDOWS}
    operands = flat(tensors["key"]).npu(), flat(tensors["value"]).npu()
    for layout, query in (("TND", tensors["query"]), ("BSND", tensors["query"][:, None])):
        out, topk = torch_npu.npu_nsa_compress_attention_infer(
            *(query.npu(), *operands, SCALE, 8, 2, 64, 2, PAGE, 32, 16),
            layout=layout,
            block_table=tensors["block_table"].npu(),
            **lengths,
        )
        results = out.cpu().reshape(3, 8, DV), topk.cpu().reshape(3, 2, 2)
        check("NsaCompressAttentionInfer", results, tensors, lengths, **attributes)


def select_prefill(dtype):
    """The mask makes it causal by being there, whatever it holds."""
    tensors = {"query": floats(32, 8, D, dtype=dtype), "key": floats(320, 2, D, dtype=dtype)}
    tensors |= {"value": floats(320, 2, DV, dtype=dtype), "topk_indices": torch.randint(2, (32, 2, 2)).to(torch.int32)}
    lengths = {"actual_seq_qlen": [12, 32], "actual_seq_kvlen": [128, 320]}
    for causal, mask in ((0, None), (1, torch.zeros(3, 5, dtype=torch.bool).npu())):
        out, _, sums = torch_npu.npu_nsa_select_attention(
            *(tensor.npu() for tensor in tensors.values()), SCALE, 8, 64, 2, atten_mask=mask, **lengths
        )
        attributes = {"head_num": 8, "select_block_size": 64, "select_block_count": 2, "causal": causal}
        check("NsaSelectedAttention", (out,), tensors, lengths, **attributes)
        assert sums.shape == (32, 8, 8)


def select_decode(dtype):
    tensors = {"query": floats(3, 4, D, dtype=dtype), **pages(dtype, 1)}
    tensors["topk_indices"] = torch.tensor([[[0, -1]], [[1, 0]], [[2, 0]]], dtype=torch.int32)
    lengths = {"actual_seq_kvlen": [64, 100, 192]}
    attributes = {"head_num": 4, "key_value_head_num": 1, "select_block_size": 64, "select_block_count": 2}
    for layout in ("TND", "BSH", "BSND"):
        query, topk = tensors["query"], tensors["topk_indices"]
        if layout != "TND":
            query, topk = query[:, None], topk[:, None]
        if layout == "BSH":
            query = query.flatten(2)
        form = (lambda tensor: tensor) if layout == "BSND" else flat
        operands = query.npu(), form(tensors["key"]).npu(), form(tensors["value"]).npu(), topk.npu()
        out = torch_npu.npu_nsa_select_attention_infer(
            *(*operands, SCALE, 4, 1, 64, 2, PAGE),
            layout=layout,
            block_table=tensors["block_table"].npu(),
            actual_seq_qlen=[1, 1, 1],
            **lengths,
        )
        results = (out.cpu().reshape(3, 4, DV),)
        check("NsaSelectedAttentionInfer", results, tensors, lengths, page_block_size=PAGE, **attributes)


if __name__ == "__main__":
    torch.manual_seed(0)
    for dtype in BITS:
        for case in (compress_prefill, compress_decode, select_prefill, select_decode):
            case(dtype)
