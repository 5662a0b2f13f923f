"""Calls of the attention stages in torch: small, with several sequences, masks and pages in disorder."""

from __future__ import annotations

import torch
from torch_cases import randn

SCALE, HEADS, KV_HEADS, DIM, VALUE_DIM = 0.25, 4, 2, 32, 16


def compress_attention(dtype=torch.float16):
    """Sequences of 16 and 24 query tokens, of 5 and 6 compressed ones, so of 2 and 2 blocks."""
    query = randn(40, HEADS, DIM, dtype=dtype)
    key, value = randn(11, KV_HEADS, DIM, dtype=dtype, seed=1), randn(11, KV_HEADS, VALUE_DIM, dtype=dtype, seed=2)
    masks = {"topk_mask": randn(24, 2, seed=3) > 1, "atten_mask": randn(24, 6, seed=4) > 1}
    lengths = {"actual_seq_qlen": [16, 40], "actual_cmp_seq_kvlen": [5, 11], "actual_sel_seq_kvlen": [2, 4]}
    return (query, key, value, SCALE, HEADS, 32, 16, 64, 3), masks | lengths


def compress_attention_infer(dtype=torch.float16):
    """Sequences of 100 and 30 compressed tokens."""
    query = randn(2, HEADS, DIM, dtype=dtype)
    key, value = (
        randn(3, 64, KV_HEADS, DIM, dtype=dtype, seed=1),
        randn(3, 64, KV_HEADS, VALUE_DIM, dtype=dtype, seed=2),
    )
    table = torch.tensor([[2, 0], [1, -1]], dtype=torch.int32)
    sizes = SCALE, HEADS, KV_HEADS, 64, 8, 64, 32, 16
    return (query, key, value, *sizes), {"block_table": table, "actual_cmp_seq_kvlen": [100, 30]}


def select_attention(dtype=torch.float16):
    """Sequences of 16 and 24 query tokens, and of 80 and 120 key tokens, so of 2 blocks."""
    query = randn(40, HEADS, DIM, dtype=dtype)
    key, value = randn(200, KV_HEADS, DIM, dtype=dtype, seed=1), randn(200, KV_HEADS, VALUE_DIM, dtype=dtype, seed=2)
    topk = torch.tensor([1, -1, 0], dtype=torch.int32).expand(40, KV_HEADS, 3).clone()
    topk[5], topk[30, 1] = -1, torch.tensor([0, 0, 1])
    lengths = {"actual_seq_qlen": [16, 40], "actual_seq_kvlen": [80, 200]}
    return (query, key, value, topk, SCALE, HEADS, 64, 3), {"causal": True, **lengths}


def select_attention_infer(dtype=torch.float16):
    """Sequences of 128 and 30 tokens."""
    (query, key, value, *_), keywords = compress_attention_infer(dtype)
    topk = torch.tensor([[[1, 0], [0, -1]], [[0, -1], [-1, -1]]], dtype=torch.int32)
    lengths = {"block_table": keywords["block_table"], "actual_seq_kvlen": [128, 30]}
    return (query, key, value, topk, SCALE, HEADS, KV_HEADS, 64, 2, 64), lengths


CALLS = {
    "nsa_compress_attention": compress_attention,
    "nsa_compress_attention_infer": compress_attention_infer,
    "nsa_select_attention": select_attention,
    "nsa_select_attention_infer": select_attention_infer,
}


def with_lengths(keywords, kind):
    """Lists as they are ("list"), all as tensors ("tensor"), or the first one alone ("mixed")."""
    lists = [name for name, value in keywords.items() if isinstance(value, list)]
    tensors = {"list": [], "tensor": lists, "mixed": lists[:1]}[kind]
    return keywords | {name: torch.tensor(keywords[name]) for name in tensors}


def results(value):
    return list(value) if isinstance(value, tuple) else [value]
