"""Of each row of the compress-attention stages' error tables, a call that breaks it and the words of its message."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

F16, BF16 = np.float16, ml_dtypes.bfloat16


@dataclass(frozen=True)
class Node:
    """What only a node can get wrong: an input's type or shape."""

    name: str
    dtype: str = "int64"
    shape: tuple = (2,)


def ones(*shape, dtype=F16):
    return np.ones(shape, dtype)


def mask(*shape, dtype=bool):
    return np.zeros(shape, dtype)


def attention_call():
    """Two sequences: 1 and 2 query tokens, 5 and 7 compressed ones, so 2 blocks each."""
    return {
        "query": ones(3, 4, 32),
        "key": ones(12, 2, 32),
        "value": ones(12, 2, 16),
        "scale_value": 0.25,
        "head_num": 4,
        "compress_block_size": 32,
        "compress_stride": 16,
        "select_block_size": 64,
        "select_block_count": 3,
        "topk_mask": mask(2, 2),
        "atten_mask": mask(2, 7),
        "actual_seq_qlen": [1, 3],
        "actual_cmp_seq_kvlen": [5, 12],
        "actual_sel_seq_kvlen": [2, 4],
    }


def attention_infer_call():
    """Two sequences of 40 and 100 compressed tokens on pages of 64."""
    return {
        "query": ones(2, 4, 32),
        "key": ones(5, 64, 2, 32),
        "value": ones(5, 64, 2, 16),
        "scale_value": 0.25,
        "head_num": 4,
        "key_value_head_num": 2,
        "select_block_size": 64,
        "select_block_count": 3,
        "page_block_size": 64,
        "compress_block_size": 32,
        "compress_stride": 16,
        "block_table": np.array([[3, -1], [0, 4]], np.int32),
        "actual_cmp_seq_kvlen": [40, 100],
    }


KINDS = {
    "query_kind": ({"query": None}, "query .*NumPy array or a torch tensor, got NoneType"),
    "key_kind": ({"key": [1.0]}, "key .*got list"),
    "value_kind": ({"value": "v"}, "value .*got str"),
}
SCALE_AND_HEADS = {
    "scale_kind": ({"scale_value": True}, "scale_value must be a float or an int, got bool"),
    "head_num_kind": ({"head_num": 4.0}, "head_num must be an int, got float"),
}
WINDOW_KINDS = {
    "compress_block_size_kind": ({"compress_block_size": "32"}, "compress_block_size must be an int, got str"),
    "compress_stride_kind": ({"compress_stride": None}, "compress_stride must be an int, got NoneType"),
}
SELECT_KINDS = {
    "select_block_size_kind": ({"select_block_size": 64.0}, "select_block_size must be an int, got float"),
    "select_block_count_kind": ({"select_block_count": False}, "select_block_count must be an int, got bool"),
}
SIZES = {
    "select_multiple": ({"select_block_size": 72}, "select_block_size must be a multiple of 16, got 72"),
    "select_range": ({"select_block_size": 144}, r"select_block_size must be in \[16, 128\], got 144"),
    "block_multiple": ({"compress_block_size": 40}, "compress_block_size must be a multiple of 16, got 40"),
    "block_range": ({"compress_block_size": 80}, r"must be in \[16, select_block_size = 64\], got 80"),
    "stride_multiple": ({"compress_stride": 8}, "compress_stride must be a multiple of 16, got 8"),
    "stride_range": ({"compress_stride": 48}, r"must be in \[16, compress_block_size = 32\], got 48"),
    "select_stride": (
        {"compress_stride": 32, "select_block_size": 48},
        "select_block_size must be a multiple of compress_stride = 32, got 48",
    ),
    "count_range": ({"select_block_count": 0}, r"select_block_count must be in \[1, 128\], got 0"),
}

ATTENTION_CASES = {
    **KINDS,
    "topk_mask_kind": ({"topk_mask": [[True]]}, "topk_mask must be None, a NumPy array or a torch tensor, got list"),
    "atten_mask_kind": ({"atten_mask": 0}, "atten_mask must be None, .*got int"),
    "key_dtype": ({"key": ones(12, 2, 32, dtype=BF16)}, "key must have the dtype of query, float16, got bfloat16"),
    "value_dtype": ({"value": ones(12, 2, 16, dtype=BF16)}, "value must have the dtype of query, float16, got bfl"),
    "query_dtype": (
        {"query": ones(3, 4, 32, dtype="f4"), "key": ones(12, 2, 32, dtype="f4"), "value": ones(12, 2, 16, dtype="f4")},
        "query must be float16 or bfloat16, got float32 .*cast all",
    ),
    "topk_mask_dtype": ({"topk_mask": mask(2, 2, dtype="u1")}, "topk_mask must be bool, got uint8"),
    "atten_mask_dtype": ({"atten_mask": mask(2, 7, dtype=F16)}, "atten_mask must be bool, got float16"),
    **SCALE_AND_HEADS,
    **WINDOW_KINDS,
    **SELECT_KINDS,
    "actual_seq_qlen_kind": ({"actual_seq_qlen": np.array([1, 3])}, r"actual_seq_qlen .*ints, got ndarray .*\.tolist"),
    "actual_seq_qlen_dtype": (Node("actual_seq_qlen", "int32"), "actual_seq_qlen must be int64, got int32 .*cast"),
    "actual_cmp_seq_kvlen_kind": ({"actual_cmp_seq_kvlen": 12}, "actual_cmp_seq_kvlen .*ints, got int"),
    "actual_cmp_seq_kvlen_dtype": (Node("actual_cmp_seq_kvlen", "int32"), "actual_cmp_seq_kvlen must be int64, got i"),
    "actual_sel_seq_kvlen_kind": ({"actual_sel_seq_kvlen": (2, "4")}, "actual_sel_seq_kvlen .*got str at index 1"),
    "actual_sel_seq_kvlen_dtype": (Node("actual_sel_seq_kvlen", "int32"), "actual_sel_seq_kvlen must be int64, got i"),
    "query_rank": (
        {"query": ones(1, 3, 4, 32)},
        r"query must have rank 3 \[T1, N1, D\], got rank 4 .*one after the other",
    ),
    "key_rank": ({"key": ones(12, 64)}, r"key must have rank 3 \[Tc, N2, D\], got rank 2"),
    "value_rank": ({"value": ones(12)}, r"value must have rank 3 \[Tc, N2, Dv\], got rank 1"),
    "topk_mask_rank": ({"topk_mask": mask(1, 2, 2)}, "topk_mask must have rank 2 .*got rank 3"),
    "atten_mask_rank": ({"atten_mask": mask(7)}, "atten_mask must have rank 2 .*got rank 1"),
    "actual_seq_qlen_rank": (
        Node("actual_seq_qlen", shape=(1, 2)),
        r"actual_seq_qlen must have rank 1 \[B\], got rank 2",
    ),
    "actual_cmp_seq_kvlen_rank": (Node("actual_cmp_seq_kvlen", shape=()), "actual_cmp_seq_kvlen must .*got rank 0"),
    "actual_sel_seq_kvlen_rank": (Node("actual_sel_seq_kvlen", shape=()), "actual_sel_seq_kvlen must .*got rank 0"),
    "scale_finite": ({"scale_value": float("inf")}, "scale_value must be a finite float32, got inf"),
    "head_num_min": ({"head_num": 0}, "head_num must be >= 1, got 0"),
    **SIZES,
    "query_n1": ({"query": ones(3, 6, 32)}, r"query.shape\[1\] must equal head_num = 4, got 6"),
    "key_d": ({"key": ones(12, 2, 48)}, r"key.shape\[2\] must equal D = 32, got 48"),
    "value_tc": ({"value": ones(11, 2, 16)}, r"value.shape\[0\] must equal Tc = 12, got 11"),
    "value_n2": ({"value": ones(12, 1, 16)}, r"value.shape\[1\] must equal N2 = 2, got 1"),
    "key_heads_min": ({"key": ones(12, 0, 32), "value": ones(12, 0, 16)}, "key: N2 must be >= 1, got 0"),
    "heads_divide": (
        {"key": ones(12, 5, 32), "value": ones(12, 5, 16)},
        "head_num must be a multiple of N2 = 5, got 4",
    ),
    "group_max": ({"query": ones(3, 258, 32), "head_num": 258}, "head_num / N2 must be <= 128, got 129"),
    "dim_multiple": ({"query": ones(3, 4, 24), "key": ones(12, 2, 24)}, "query: D must be a multiple of 16, got 24"),
    "dim_range": ({"query": ones(3, 4, 528), "key": ones(12, 2, 528)}, r"query: D must be in \[16, 512\], got 528"),
    "value_dim_multiple": ({"value": ones(12, 2, 20)}, "value: Dv must be a multiple of 16, got 20"),
    "value_dim_range": ({"value": ones(12, 2, 48)}, r"value: Dv must be in \[16, D = 32\], got 48"),
    "actual_seq_qlen_empty": ({"actual_seq_qlen": []}, "actual_seq_qlen must have at least 1 element, got 0"),
    "actual_cmp_seq_kvlen_empty": ({"actual_cmp_seq_kvlen": ()}, "actual_cmp_seq_kvlen must have at least 1 element"),
    "actual_sel_seq_kvlen_empty": ({"actual_sel_seq_kvlen": ()}, "actual_sel_seq_kvlen must have at least 1 element"),
    "actual_cmp_seq_kvlen_b": ({"actual_cmp_seq_kvlen": [12]}, "actual_cmp_seq_kvlen must have B = 2 elements, got 1"),
    "actual_sel_seq_kvlen_b": ({"actual_sel_seq_kvlen": [2, 3, 4]}, "actual_sel_seq_kvlen must have B = 2 .*got 3"),
    "actual_seq_qlen_negative": ({"actual_seq_qlen": [-1, 3]}, r"actual_seq_qlen\[0\] must be >= 0, got -1"),
    "actual_cmp_seq_kvlen_negative": ({"actual_cmp_seq_kvlen": [-5, 12]}, r"kvlen\[0\] must be >= 0, got -5"),
    "actual_sel_seq_kvlen_negative": ({"actual_sel_seq_kvlen": [-2, 2]}, r"sel_seq_kvlen\[0\] must be >= 0, got -2"),
    "actual_seq_qlen_decreasing": ({"actual_seq_qlen": [4, 3]}, r"actual_seq_qlen\[1\] must be >= .*4, got 3"),
    "actual_seq_qlen_last": ({"actual_seq_qlen": [1, 2]}, r"actual_seq_qlen\[1\].*T1 = 3, got 2 .*accumulate"),
    "actual_cmp_seq_kvlen_decreasing": (
        {"actual_cmp_seq_kvlen": [7, 5]},
        r"actual_cmp_seq_kvlen\[1\] must be >= .*7, got 5 .*accumulate",
    ),
    "actual_cmp_seq_kvlen_last": ({"actual_cmp_seq_kvlen": [5, 13]}, r"actual_cmp_seq_kvlen\[1\].*Tc = 12, got 13"),
    "actual_sel_seq_kvlen_decreasing": ({"actual_sel_seq_kvlen": [2, 1]}, r"sel_seq_kvlen\[1\] must be >= .*2, got 1"),
    "blocks": (
        {"actual_sel_seq_kvlen": [2, 5]},
        "actual_sel_seq_kvlen: sequence 1 has 7 compressed tokens, so it has 2 blocks, got 3",
    ),
    "topk_mask_rows": ({"topk_mask": mask(1, 2)}, r"topk_mask.shape\[0\] must be >= 2, .*got 1"),
    "topk_mask_columns": ({"topk_mask": mask(9, 1)}, r"topk_mask.shape\[1\] must be >= 2, .*got 1"),
    "atten_mask_rows": ({"atten_mask": mask(0, 7)}, r"atten_mask.shape\[0\] must be >= 2, .*got 0"),
    "atten_mask_columns": ({"atten_mask": mask(2, 6)}, r"atten_mask.shape\[1\] must be >= 7, .*got 6"),
}

_PAGES = {"key": ones(5, 64, 2, 32, dtype=BF16), "value": ones(5, 64, 2, 16, dtype=BF16)}
ATTENTION_INFER_CASES = {
    **KINDS,
    "block_table_kind": ({"block_table": None}, "block_table .*got NoneType"),
    "key_dtype": ({"key": _PAGES["key"]}, "key must have the dtype of query, float16, got bfloat16"),
    "value_dtype": ({"value": _PAGES["value"]}, "value must have the dtype of query, float16, got bfloat16"),
    "query_dtype": (
        {name: array.astype(np.float64) for name, array in (("query", ones(2, 4, 32)), *_PAGES.items())},
        "query must be float16 or bfloat16, got float64 .*cast all",
    ),
    "block_table_dtype": ({"block_table": np.zeros((2, 2), np.int64)}, "block_table must be int32, got int64 .*cast"),
    **SCALE_AND_HEADS,
    "key_value_head_num_kind": ({"key_value_head_num": "2"}, "key_value_head_num must be an int, got str"),
    **SELECT_KINDS,
    "page_block_size_kind": ({"page_block_size": 64.0}, "page_block_size must be an int, got float"),
    **WINDOW_KINDS,
    "actual_cmp_seq_kvlen_kind": ({"actual_cmp_seq_kvlen": [40, 100.0]}, "kvlen .*ints, got float at index 1"),
    "actual_cmp_seq_kvlen_dtype": (Node("actual_cmp_seq_kvlen", "int32"), "actual_cmp_seq_kvlen must be int64, got i"),
    "query_rank": ({"query": ones(2, 1, 4, 32)}, r"query must have rank 3 \[B, N1, D\], got rank 4 .*one query token"),
    "key_rank": ({"key": ones(5, 64, 64)}, r"key must have rank 4 \[block_num, page, N2, D\], got rank 3 .*reshape"),
    "value_rank": ({"value": ones(5, 64, 32)}, "value must have rank 4 .*got rank 3 .*reshape"),
    "block_table_rank": ({"block_table": np.zeros(2, np.int32)}, r"block_table must have rank 2 \[B, P\], got rank 1"),
    "actual_cmp_seq_kvlen_rank": (Node("actual_cmp_seq_kvlen", shape=(2, 1)), r"must have rank 1 \[B\], got rank 2"),
    "scale_finite": ({"scale_value": -1e39}, r"scale_value must be a finite float32, got -1e\+39"),
    "head_num_min": ({"head_num": -4}, "head_num must be >= 1, got -4"),
    "key_value_head_num_min": ({"key_value_head_num": 0}, "key_value_head_num must be >= 1, got 0"),
    "heads_divide": ({"key_value_head_num": 3}, "head_num must be a multiple of N2 = 3, got 4"),
    "group_max": ({"head_num": 258}, "head_num / N2 must be <= 128, got 129"),
    **SIZES,
    "page_multiple": ({"page_block_size": 40}, "page_block_size must be a multiple of 16, got 40"),
    "page_range": ({"page_block_size": 1040}, r"page_block_size must be in \[16, 1024\], got 1040"),
    "query_n1": ({"query": ones(2, 6, 32)}, r"query.shape\[1\] must equal head_num = 4, got 6"),
    "key_page": ({"key": ones(5, 32, 2, 32)}, r"key.shape\[1\] must equal page_block_size = 64, got 32"),
    "key_n2": ({"key": ones(5, 64, 1, 32)}, r"key.shape\[2\] must equal key_value_head_num = 2, got 1"),
    "key_d": ({"key": ones(5, 64, 2, 16)}, r"key.shape\[3\] must equal D = 32, got 16"),
    "value_block_num": ({"value": ones(6, 64, 2, 16)}, r"value.shape\[0\] must equal block_num = 5, got 6"),
    "value_page": ({"value": ones(5, 32, 2, 16)}, r"value.shape\[1\] must equal page_block_size = 64, got 32"),
    "value_n2": ({"value": ones(5, 64, 4, 16)}, r"value.shape\[2\] must equal key_value_head_num = 2, got 4"),
    "block_table_b": ({"block_table": np.zeros((1, 2), np.int32)}, r"block_table.shape\[0\] must equal B = 2, got 1"),
    "dim_multiple": ({"query": ones(2, 4, 24), "key": ones(5, 64, 2, 24)}, "query: D must be a multiple of 16, got 24"),
    "dim_range": ({"query": ones(2, 4, 528), "key": ones(5, 64, 2, 528)}, r"query: D must be in \[16, 512\], got 528"),
    "value_dim_multiple": ({"value": ones(5, 64, 2, 20)}, "value: Dv must be a multiple of 16, got 20"),
    "value_dim_range": ({"value": ones(5, 64, 2, 0)}, r"value: Dv must be in \[16, D = 32\], got 0"),
    "actual_cmp_seq_kvlen_b": ({"actual_cmp_seq_kvlen": [40]}, "actual_cmp_seq_kvlen must have B = 2 elements, got 1"),
    "actual_cmp_seq_kvlen_negative": ({"actual_cmp_seq_kvlen": [40, -1]}, r"kvlen\[1\] must be >= 0, got -1"),
    "actual_cmp_seq_kvlen_max": ({"actual_cmp_seq_kvlen": [129, 40]}, r"kvlen\[0\] must be <= 128 .*got 129"),
    "table_range": (
        {"block_table": np.array([[3, -1], [0, 5]], np.int32)},
        r"block_table\[1, 1\] must be in \[0, 5\), got 5",
    ),
}
