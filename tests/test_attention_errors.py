"""Every row of the attention stages' error tables, which error wins where several apply, and the hints."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import compress_attention_rows as compress
import numpy as np
import pytest
import selected_cases as cases
import torch
from compress_attention_rows import BF16, Node, ones

import nsa_onnx
from nsa_onnx.graph.tensors import TensorFacts, Unknown
from nsa_onnx.operators import OPERATORS, arrays
from nsa_onnx.operators.attention_call import Operands
from nsa_onnx.operators.facts import NodeFacts
from nsa_onnx.operators.hints import HINTS
from nsa_onnx.operators.nsa_compress_attention_infer import contract as compress_step
from nsa_onnx.operators.nsa_selected_attention_infer.contract import pages_of_blocks
from nsa_onnx.runtime import native


def topk(*shape, block=0, dtype=np.int32):
    made = np.full(shape, block, dtype)
    made.flat[-1] = -1
    return made


def select_call():
    """Two sequences: 1 and 2 query tokens, 40 and 30 key tokens, so 2 blocks each."""
    return {
        "query": ones(3, 4, 32),
        "key": ones(70, 2, 32),
        "value": ones(70, 2, 16),
        "topk_indices": topk(3, 2, 3),
        "scale_value": 0.25,
        "head_num": 4,
        "select_block_size": 32,
        "select_block_count": 3,
        "causal": False,
        "actual_seq_qlen": [1, 3],
        "actual_seq_kvlen": [40, 70],
    }


def select_infer_call():
    """Two sequences of 40 and 100 tokens on pages of 64."""
    return {
        "query": ones(2, 4, 32),
        "key": ones(5, 64, 2, 32),
        "value": ones(5, 64, 2, 16),
        "topk_indices": topk(2, 2, 3),
        "scale_value": 0.25,
        "head_num": 4,
        "key_value_head_num": 2,
        "select_block_size": 32,
        "select_block_count": 3,
        "page_block_size": 64,
        "block_table": np.array([[3, -1], [0, 4]], np.int32),
        "actual_seq_kvlen": [40, 100],
    }


def three_steps():
    """What of a call changes with a third sequence."""
    return {"query": ones(3, 4, 32), "topk_indices": topk(3, 2, 3), "block_table": np.zeros((3, 2), np.int32)}


def blocks(*at, block, base):
    made = base()["topk_indices"]
    made[at] = block
    return made


# Row id -> the arguments that break it, and the words that must be in the message: argument, element, value, bound.
KINDS = {
    "query_kind": ({"query": None}, "query .*NumPy array or a torch tensor, got NoneType"),
    "key_kind": ({"key": [1.0]}, "key .*got list"),
    "value_kind": ({"value": "v"}, "value .*got str"),
    "topk_indices_kind": ({"topk_indices": [[0]]}, "topk_indices .*got list"),
}
DTYPES = {
    "key_dtype": ({"key": ones(70, 2, 32, dtype=BF16)}, "key must have the dtype of query, float16, got bfloat16"),
    "value_dtype": (
        {"value": ones(70, 2, 16, dtype=BF16)},
        "value must have the dtype of query, float16, got bfloat16",
    ),
    "query_dtype": (
        {"query": ones(3, 4, 32, dtype="f4"), "key": ones(70, 2, 32, dtype="f4"), "value": ones(70, 2, 16, dtype="f4")},
        "query must be float16 or bfloat16, got float32 .*cast all",
    ),
    "topk_indices_dtype": (
        {"topk_indices": topk(3, 2, 3, dtype=np.int64)},
        "topk_indices must be int32, got int64 .*cast",
    ),
}
NUMBER_KINDS = {
    "scale_kind": ({"scale_value": "1"}, "scale_value must be a float or an int, got str"),
    "head_num_kind": ({"head_num": 4.0}, "head_num must be an int, got float"),
    "select_block_size_kind": ({"select_block_size": True}, "select_block_size must be an int, got bool"),
    "select_block_count_kind": ({"select_block_count": None}, "select_block_count must be an int, got NoneType"),
}
NUMBERS = {
    "scale_finite": ({"scale_value": 1e39}, r"scale_value must be a finite float32, got 1e\+39"),
    "head_num_min": ({"head_num": 0}, "head_num must be >= 1, got 0"),
}
SIZES = {
    "select_multiple": ({"select_block_size": 40}, "select_block_size must be a multiple of 16, got 40"),
    "select_range": ({"select_block_size": 144}, r"select_block_size must be in \[16, 128\], got 144"),
    "count_range": ({"select_block_count": 129}, r"select_block_count must be in \[1, 128\], got 129"),
}
SELECT_CASES = {
    **KINDS,
    **DTYPES,
    **NUMBER_KINDS,
    "causal_kind": ({"causal": 1.0}, "causal must be a bool or an int, got float"),
    "actual_seq_qlen_kind": ({"actual_seq_qlen": np.array([1, 3])}, r"actual_seq_qlen .*ints, got ndarray .*\.tolist"),
    "actual_seq_qlen_dtype": (Node("actual_seq_qlen", "int32"), "actual_seq_qlen must be int64, got int32 .*cast"),
    "actual_seq_kvlen_kind": ({"actual_seq_kvlen": (40, "70")}, "actual_seq_kvlen .*ints, got str at index 1"),
    "actual_seq_kvlen_dtype": (Node("actual_seq_kvlen", "int32"), "actual_seq_kvlen must be int64, got int32"),
    "query_rank": (
        {"query": ones(1, 3, 4, 32)},
        r"query must have rank 3 \[T1, N1, D\], got rank 4 .*one after the other",
    ),
    "key_rank": ({"key": ones(70, 64)}, r"key must have rank 3 \[T2, N2, D\], got rank 2"),
    "value_rank": ({"value": ones(70)}, r"value must have rank 3 \[T2, N2, Dv\], got rank 1"),
    "topk_indices_rank": ({"topk_indices": topk(3, 6)}, r"topk_indices must have rank 3 \[T1, N2, k\], got rank 2"),
    "actual_seq_qlen_rank": (
        Node("actual_seq_qlen", shape=(1, 2)),
        r"actual_seq_qlen must have rank 1 \[B\], got rank 2",
    ),
    "actual_seq_kvlen_rank": (
        Node("actual_seq_kvlen", shape=()),
        r"actual_seq_kvlen must have rank 1 \[B\], got rank 0",
    ),
    **NUMBERS,
    **SIZES,
    "causal_range": ({"causal": 2}, "causal must be 0 or 1, got 2"),
    "query_n1": ({"query": ones(3, 6, 32)}, r"query.shape\[1\] must equal head_num = 4, got 6"),
    "key_d": ({"key": ones(70, 2, 48)}, r"key.shape\[2\] must equal D = 32, got 48"),
    "value_t2": ({"value": ones(69, 2, 16)}, r"value.shape\[0\] must equal T2 = 70, got 69"),
    "value_n2": ({"value": ones(70, 1, 16)}, r"value.shape\[1\] must equal N2 = 2, got 1"),
    "topk_indices_t1": ({"topk_indices": topk(4, 2, 3)}, r"topk_indices.shape\[0\] must equal T1 = 3, got 4"),
    "topk_indices_n2": ({"topk_indices": topk(3, 1, 3)}, r"topk_indices.shape\[1\] must equal N2 = 2, got 1"),
    "topk_indices_k": (
        {"topk_indices": topk(3, 2, 2)},
        r"topk_indices.shape\[2\] must equal select_block_count = 3, got 2",
    ),
    "key_heads_min": (
        {"key": ones(70, 0, 32), "value": ones(70, 0, 16), "topk_indices": np.zeros((3, 0, 3), np.int32)},
        "key: N2 must be >= 1, got 0",
    ),
    "heads_divide": (
        {"key": ones(70, 5, 32), "value": ones(70, 5, 16), "topk_indices": topk(3, 5, 3)},
        "head_num must be a multiple of N2 = 5, got 4",
    ),
    "group_max": ({"query": ones(3, 258, 32), "head_num": 258}, "head_num / N2 must be <= 128, got 129"),
    "dim_multiple": ({"query": ones(3, 4, 24), "key": ones(70, 2, 24)}, "query: D must be a multiple of 16, got 24"),
    "dim_range": ({"query": ones(3, 4, 528), "key": ones(70, 2, 528)}, r"query: D must be in \[16, 512\], got 528"),
    "value_dim_multiple": ({"value": ones(70, 2, 20)}, "value: Dv must be a multiple of 16, got 20"),
    "value_dim_range": ({"value": ones(70, 2, 48)}, r"value: Dv must be in \[16, D = 32\], got 48"),
    "actual_seq_qlen_empty": ({"actual_seq_qlen": []}, "actual_seq_qlen must have at least 1 element, got 0"),
    "actual_seq_kvlen_empty": ({"actual_seq_kvlen": ()}, "actual_seq_kvlen must have at least 1 element, got 0"),
    "actual_seq_kvlen_b": ({"actual_seq_kvlen": [70]}, "actual_seq_kvlen must have B = 2 elements, got 1"),
    "actual_seq_qlen_negative": ({"actual_seq_qlen": [-1, 3]}, r"actual_seq_qlen\[0\] must be >= 0, got -1"),
    "actual_seq_kvlen_negative": ({"actual_seq_kvlen": [-5, 70]}, r"actual_seq_kvlen\[0\] must be >= 0, got -5"),
    "actual_seq_qlen_decreasing": ({"actual_seq_qlen": [4, 3]}, r"actual_seq_qlen\[1\] must be >= .*4, got 3"),
    "actual_seq_qlen_last": ({"actual_seq_qlen": [1, 2]}, r"actual_seq_qlen\[1\].*T1 = 3, got 2 .*accumulate"),
    "actual_seq_kvlen_decreasing": (
        {"actual_seq_kvlen": [40, 30]},
        r"actual_seq_kvlen\[1\] must be >= .*40, got 30 .*accumulate",
    ),
    "actual_seq_kvlen_last": ({"actual_seq_kvlen": [40, 71]}, r"actual_seq_kvlen\[1\].*T2 = 70, got 71"),
    "topk_range": (
        {"topk_indices": blocks(2, 1, 1, block=1, base=select_call)},
        r"topk_indices\[2, 1, 1\] must be in \[-1, 1\) .*got 1",
    ),
}

PAGES = {"key": ones(5, 64, 2, 32, dtype=BF16), "value": ones(5, 64, 2, 16, dtype=BF16)}
SELECT_INFER_CASES = {
    **KINDS,
    "block_table_kind": ({"block_table": None}, "block_table .*got NoneType"),
    "key_dtype": ({"key": PAGES["key"]}, "key must have the dtype of query, float16, got bfloat16"),
    "value_dtype": ({"value": PAGES["value"]}, "value must have the dtype of query, float16, got bfloat16"),
    "query_dtype": (
        {name: array.astype(np.float64) for name, array in (("query", ones(2, 4, 32)), *PAGES.items())},
        "query must be float16 or bfloat16, got float64 .*cast all",
    ),
    "topk_indices_dtype": ({"topk_indices": topk(2, 2, 3).astype(np.int16)}, "topk_indices must be int32, got int16"),
    "block_table_dtype": ({"block_table": np.zeros((2, 2), np.int64)}, "block_table must be int32, got int64 .*cast"),
    **{row: NUMBER_KINDS[row] for row in ("scale_kind", "head_num_kind")},
    "key_value_head_num_kind": ({"key_value_head_num": "2"}, "key_value_head_num must be an int, got str"),
    **{row: NUMBER_KINDS[row] for row in ("select_block_size_kind", "select_block_count_kind")},
    "page_block_size_kind": ({"page_block_size": 64.0}, "page_block_size must be an int, got float"),
    "actual_seq_kvlen_kind": ({"actual_seq_kvlen": [40, 100.0]}, "actual_seq_kvlen .*ints, got float at index 1"),
    "actual_seq_kvlen_dtype": (Node("actual_seq_kvlen", "int32"), "actual_seq_kvlen must be int64, got int32"),
    "query_rank": ({"query": ones(2, 1, 4, 32)}, r"query must have rank 3 \[B, N1, D\], got rank 4 .*one query token"),
    "key_rank": ({"key": ones(5, 64, 64)}, r"key must have rank 4 \[block_num, page, N2, D\], got rank 3 .*reshape"),
    "value_rank": ({"value": ones(5, 64, 32)}, r"value must have rank 4 .*got rank 3 .*reshape"),
    "topk_indices_rank": ({"topk_indices": topk(6)}, r"topk_indices must have rank 3 \[B, N2, k\], got rank 1"),
    "block_table_rank": ({"block_table": np.zeros(2, np.int32)}, r"block_table must have rank 2 \[B, P\], got rank 1"),
    "actual_seq_kvlen_rank": (
        Node("actual_seq_kvlen", shape=(2, 1)),
        r"actual_seq_kvlen must have rank 1 \[B\], got rank 2",
    ),
    **NUMBERS,
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
    "topk_indices_b": ({"topk_indices": topk(3, 2, 3)}, r"topk_indices.shape\[0\] must equal B = 2, got 3"),
    "topk_indices_n2": (
        {"topk_indices": topk(2, 1, 3)},
        r"topk_indices.shape\[1\] must equal key_value_head_num = 2, got 1",
    ),
    "topk_indices_k": (
        {"topk_indices": topk(2, 2, 4)},
        r"topk_indices.shape\[2\] must equal select_block_count = 3, got 4",
    ),
    "block_table_b": ({"block_table": np.zeros((1, 2), np.int32)}, r"block_table.shape\[0\] must equal B = 2, got 1"),
    "dim_multiple": ({"query": ones(2, 4, 24), "key": ones(5, 64, 2, 24)}, "query: D must be a multiple of 16, got 24"),
    "dim_range": ({"query": ones(2, 4, 528), "key": ones(5, 64, 2, 528)}, r"query: D must be in \[16, 512\], got 528"),
    "value_dim_multiple": ({"value": ones(5, 64, 2, 20)}, "value: Dv must be a multiple of 16, got 20"),
    "value_dim_range": ({"value": ones(5, 64, 2, 0)}, r"value: Dv must be in \[16, D = 32\], got 0"),
    "actual_seq_kvlen_b": ({"actual_seq_kvlen": [40]}, "actual_seq_kvlen must have B = 2 elements, got 1"),
    "actual_seq_kvlen_negative": ({"actual_seq_kvlen": [40, -1]}, r"actual_seq_kvlen\[1\] must be >= 0, got -1"),
    "actual_seq_kvlen_max": ({"actual_seq_kvlen": [129, 40]}, r"actual_seq_kvlen\[0\] must be <= 128 .*got 129"),
    "topk_range": (
        {"topk_indices": blocks(1, 0, 2, block=4, base=select_infer_call)},
        r"topk_indices\[1, 0, 2\] must be in \[-1, 4\) .*got 4",
    ),
    "table_range": (
        {
            "topk_indices": blocks(1, 0, 2, block=3, base=select_infer_call),
            "block_table": np.array([[3, -1], [0, 5]], "i4"),
        },
        r"block_table\[1, 1\] must be in \[0, 5\), got 5",
    ),
}


@dataclass(frozen=True)
class Stage:
    call: object
    base: object
    cases: dict

    def __call__(self, arguments, library="numpy"):
        return self.call(**{name: to(library, value) for name, value in arguments.items()})


STAGES = {
    "NsaCompressAttention": Stage(nsa_onnx.nsa_compress_attention, compress.attention_call, compress.ATTENTION_CASES),
    "NsaCompressAttentionInfer": Stage(
        nsa_onnx.nsa_compress_attention_infer, compress.attention_infer_call, compress.ATTENTION_INFER_CASES
    ),
    "NsaSelectedAttention": Stage(nsa_onnx.nsa_select_attention, select_call, SELECT_CASES),
    "NsaSelectedAttentionInfer": Stage(nsa_onnx.nsa_select_attention_infer, select_infer_call, SELECT_INFER_CASES),
}
CMP, STEP, SELECT, SELECT_STEP = STAGES
ALL_ROWS = [(op_type, row) for op_type, stage in STAGES.items() for row in stage.cases]
CALL_ROWS = [(op_type, row) for op_type, row in ALL_ROWS if not isinstance(STAGES[op_type].cases[row][0], Node)]


def to(library, value):
    # An array of lengths is the error under test, not an array argument.
    array = isinstance(value, np.ndarray) and (value.dtype.kind not in "i" or value.dtype == np.int32 or value.ndim > 1)
    return cases.tensor(value) if library == "torch" and array else value


def refused(op_type, changed, library="numpy"):
    stage = STAGES[op_type]
    with pytest.raises((TypeError, RuntimeError)) as raised:
        stage({**stage.base(), **changed}, library)
    return type(raised.value), str(raised.value)


def broken(op_type, changed):
    """What is wrong with the node of the base call, of which some are changed: attributes and inputs by name.

    An input is None where it is left out, a tuple for its shape, or a list for a constant; an array is a constant that
    is declared without a shape.
    """
    operator, base = OPERATORS[op_type], STAGES[op_type].base()
    attributes = {name: base[name] for name in operator.attribute_names}
    inputs = {name: np.asarray(base[name]) for name in operator.input_names}
    facts = {name: TensorFacts(value.dtype.name, value.shape) for name, value in inputs.items()}
    constants = {}
    for name, value in changed.items():
        if name in attributes:
            attributes[name] = value
        elif value is None:
            del facts[name]
        elif isinstance(value, (list, np.ndarray)):
            constants[name] = np.array(value, np.int64)
            facts[name] = TensorFacts(facts[name].dtype, constants[name].shape if isinstance(value, list) else None)
        else:
            facts[name] = value if isinstance(value, TensorFacts) else TensorFacts(facts[name].dtype, value)
    return list(operator.violations(NodeFacts(op_type, attributes, facts, constants)))


def hintless(message):
    for hint in HINTS.values():
        message = message.removesuffix(hint.ending)
    return message


@pytest.mark.parametrize("op_type", STAGES)
def test_the_cases_cover_the_whole_table_in_its_order(op_type):
    assert list(STAGES[op_type].cases) == list(OPERATORS[op_type].contract.rows)
    STAGES[op_type](STAGES[op_type].base())


# What is wrong with a node, all of it: the op type, what is changed of the base call, the messages.
SUMS, PREFIX_SUMS = HINTS["lengths"].ending, HINTS["prefix_sums"].ending
LAST = "actual_seq_qlen[1], the last element, must equal T1 = 3, got "
LONGER = "actual_seq_kvlen[{}] must be <= 128 (pages x page_block_size), got {}"
OPEN_ROWS = {"query": (None, 4, 32), "topk_indices": (None, 2, 3)}
THREE = {**OPEN_ROWS, "block_table": (None, 2)}
WRONG_NODES = [
    (CMP, {"key": TensorFacts("float32", (12, 2, 32))}, ["key must have the dtype of query, float16, got float32"]),
    (CMP, {"atten_mask": TensorFacts("uint8", (2, 7))}, ["atten_mask must be bool, got uint8"]),
    (SELECT, {"topk_indices": None}, ["topk_indices is a required input and is not connected"]),
    (CMP, {"atten_mask": (1, 2, 7, 1)}, ["atten_mask must have rank 2 [>= max Lq, >= max Lcmp], got rank 4"]),
    (CMP, {"query": (1, 3, 4, 4, 32)}, ["query must have rank 3 [T1, N1, D], got rank 5"]),
    (CMP, {"key": (1, 12, 2, 4, 32)}, ["key must have rank 3 [Tc, N2, D], got rank 5"]),
    (
        CMP,
        {"value": (1, 12, 2, 16)},
        ["value must have rank 3 [Tc, N2, Dv], got rank 4" + HINTS["tokens_first"].ending],
    ),
    (SELECT, {"query": (3, 128)}, ["query must have rank 3 [T1, N1, D], got rank 2"]),
    (SELECT, {"topk_indices": (1, 3, 2, 3)}, ["topk_indices must have rank 3 [T1, N2, k], got rank 4"]),
    (STEP, {"query": (2, 1, 1, 4, 32)}, ["query must have rank 3 [B, N1, D], got rank 5"]),
    (STEP, {"key": (5, 32)}, ["key must have rank 4 [block_num, page, N2, D], got rank 2"]),
    (STEP, {"value": (5, 64, 2, 4, 4)}, ["value must have rank 4 [block_num, page, N2, Dv], got rank 5"]),
    # Attributes
    (
        CMP,
        {"select_block_size": Unknown(), "compress_block_size": 8, "compress_stride": 136},
        [
            "compress_block_size must be a multiple of 16, got 8",
            "compress_block_size must be in [16, select_block_size = 128], got 8",
            "compress_stride must be a multiple of 16, got 136",
            "compress_stride must be in [16, compress_block_size = 8], got 136",
        ],
    ),
    (CMP, {"compress_block_size": Unknown(), "select_block_size": Unknown(), "compress_stride": 144}, []),
    (CMP, {"compress_stride": 0}, ["compress_stride must be in [16, compress_block_size = 32], got 0"]),
    (SELECT, {"causal": -1}, ["causal must be 0 or 1, got -1"]),
    (
        SELECT,
        {"head_num": -3},
        ["head_num must be >= 1, got -3", "query.shape[1] must equal head_num = -3, got 4"],
    ),
    (SELECT, {"head_num": 1, "query": (3, 1, 32)}, ["head_num must be a multiple of N2 = 2, got 1"]),
    (
        SELECT,
        {"head_num": 129, "query": (3, 129, 32), "key": (70, 1, 32), "value": (70, 1, 16), "topk_indices": (3, 1, 3)},
        ["head_num / N2 must be <= 128, got 129"],
    ),
    (SELECT_STEP, {"head_num": 258, "query": (2, 258, 32)}, ["head_num / N2 must be <= 128, got 129"]),
    (SELECT_STEP, {"page_block_size": 64.0}, ["page_block_size must be an int, got float"]),
    # Dims
    (
        SELECT,
        {"query": (3, 4, None), "key": (70, 2, None), "value": (70, 2, 0)},
        ["value: Dv must be in [16, D = 512], got 0"],
    ),
    (CMP, {"topk_mask": (9, 2)}, []),
    (CMP, {"key": (12, 0, 32), "value": (12, 0, 16)}, ["key: N2 must be >= 1, got 0"]),
    (SELECT, {"query": TensorFacts(), "value": (69, 2, 16)}, ["value.shape[0] must equal T2 = 70, got 69"]),
    # Lengths
    (SELECT, {"actual_seq_kvlen": (3,)}, ["actual_seq_kvlen must have B = 2 elements, got 3"]),
    (SELECT, {"actual_seq_qlen": (None,), "actual_seq_kvlen": (3,)}, []),
    (
        SELECT,
        {"actual_seq_qlen": [-1, -2]},
        [
            "actual_seq_qlen[0] must be >= 0, got -1",
            "actual_seq_qlen[1] must be >= the element before it, -1, got -2",
            "actual_seq_qlen[1], the last element, must equal T1 = 3, got -2",
        ],
    ),
    (
        SELECT,
        {"actual_seq_qlen": [3, 2, 1], "actual_seq_kvlen": (3,)},
        [
            "actual_seq_qlen[1] must be >= the element before it, 3, got 2",
            "actual_seq_qlen[2], the last element, must equal T1 = 3, got 1",
        ],
    ),
    (SELECT, {"actual_seq_qlen": [3, 3]}, []),
    (SELECT, {"actual_seq_qlen": [0, 3]}, []),
    (CMP, {"actual_seq_qlen": [1, 3], "actual_cmp_seq_kvlen": [5, 12], "actual_sel_seq_kvlen": [2, 4]}, []),
    (
        CMP,
        {"actual_cmp_seq_kvlen": [5, 12], "actual_sel_seq_kvlen": [3, 6], "topk_mask": None},
        ["actual_sel_seq_kvlen: sequence 0 has 5 compressed tokens, so it has 2 blocks, got 3"],
    ),
    (
        CMP,
        {"actual_cmp_seq_kvlen": [5, 12], "actual_sel_seq_kvlen": [2, 3]},
        ["actual_sel_seq_kvlen: sequence 1 has 7 compressed tokens, so it has 2 blocks, got 1"],
    ),
    (SELECT_STEP, {"actual_seq_kvlen": [-1, -2]}, ["actual_seq_kvlen[0] must be >= 0, got -1"]),
    (
        SELECT_STEP,
        {"actual_seq_kvlen": [130, 129]},
        [LONGER.format(0, 130)],
    ),
    (SELECT_STEP, {"actual_seq_kvlen": [0, 128]}, []),
    (
        SELECT_STEP,
        {"actual_seq_kvlen": [0, 129], "page_block_size": 64.0},
        ["page_block_size must be an int, got float"],
    ),
    # Lengths for prefix sums, and prefix sums for lengths
    (
        SELECT,
        {"actual_seq_qlen": [3, 0]},
        ["actual_seq_qlen[1] must be >= the element before it, 3, got 0" + SUMS, LAST + "0" + SUMS],
    ),
    (
        SELECT,
        {"actual_seq_qlen": [2, 0]},
        ["actual_seq_qlen[1] must be >= the element before it, 2, got 0", LAST + "0"],
    ),
    (SELECT, {"actual_seq_qlen": [-1, 4]}, ["actual_seq_qlen[0] must be >= 0, got -1", LAST + "4"]),
    (
        SELECT,
        {**OPEN_ROWS, "actual_seq_qlen": [2, 1]},
        ["actual_seq_qlen[1] must be >= the element before it, 2, got 1"],
    ),
    (SELECT_STEP, {"actual_seq_kvlen": [128, 256]}, [LONGER.format(1, 256) + PREFIX_SUMS]),
    (SELECT_STEP, {"actual_seq_kvlen": [129, 200]}, [LONGER.format(0, 129)]),
    (SELECT_STEP, {"actual_seq_kvlen": [40, 169]}, [LONGER.format(1, 169)]),
    (SELECT_STEP, {**THREE, "actual_seq_kvlen": [100, 100, 200]}, [LONGER.format(2, 200) + PREFIX_SUMS]),
    (SELECT_STEP, {**THREE, "actual_seq_kvlen": [100, 99, 200]}, [LONGER.format(2, 200)]),
    # Blocks and pages
    (
        SELECT,
        {"topk_indices": [[[0, 1, 2]] * 2] * 3, "actual_seq_qlen": [1, 3], "actual_seq_kvlen": [40, 70]},
        ["topk_indices[0, 0, 2] must be in [-1, 2) (blocks of select_block_size tokens in its sequence), got 2"],
    ),
    (
        SELECT_STEP,
        {"topk_indices": [[[-1, 1, -2]] * 2] * 2, "actual_seq_kvlen": [40, 100]},
        ["topk_indices[0, 0, 2] must be in [-1, 2) (blocks of select_block_size tokens in its sequence), got -2"],
    ),
    (
        STEP,
        {"block_table": [[5, 0], [-1, 0]], "actual_cmp_seq_kvlen": [40, 100]},
        ["block_table[0, 0] must be in [0, 5), got 5"],
    ),
]


@pytest.mark.parametrize(("op_type", "changed", "messages"), WRONG_NODES)
def test_all_that_is_wrong_with_a_node_is_told_once(op_type, changed, messages):
    assert [violation.message for violation in broken(op_type, changed)] == messages


# Constants of each stage, of which the last index is wrong.
CONSTANTS = {
    CMP: {"actual_cmp_seq_kvlen": [5, 12], "actual_sel_seq_kvlen": [2, 5]},
    STEP: {"actual_cmp_seq_kvlen": [40, 128], "block_table": [[3, -1], [0, 5]]},
    SELECT: {
        "actual_seq_qlen": [1, 3],
        "actual_seq_kvlen": [40, 70],
        "topk_indices": [[[0, -1, 1]] * 2, [[0, -1, 0]] * 2, [[0, 0, 0], [0, 0, 1]]],
    },
    SELECT_STEP: {
        "actual_seq_kvlen": [40, 128],
        "topk_indices": [[[0, -1, 1]] * 2, [[0, 0, 0], [0, 0, 3]]],
        "block_table": [[3, -1], [0, 5]],
    },
}
WRONG = {
    CMP: "actual_sel_seq_kvlen: sequence 1 has 7 compressed tokens, so it has 2 blocks, got 3",
    STEP: "block_table[1, 1] must be in [0, 5), got 5",
    SELECT: "topk_indices[2, 1, 2] must be in [-1, 1) (blocks of select_block_size tokens in its sequence), got 1",
    SELECT_STEP: "block_table[1, 1] must be in [0, 5), got 5",
}


@pytest.mark.parametrize("op_type", STAGES)
def test_a_constant_is_wrong_only_if_all_that_tells_it_is_known(op_type):
    given = CONSTANTS[op_type] | ({"topk_mask": None} if op_type == CMP else {})
    assert [one.message for one in broken(op_type, given)] == [WRONG[op_type]]
    arrays = {name: np.array(value) for name, value in CONSTANTS[op_type].items()}
    assert [one.message for one in broken(op_type, {**given, **arrays})] == [WRONG[op_type]]
    for name in CONSTANTS[op_type]:
        assert broken(op_type, {**given, name: TensorFacts()}) == []
    for name in OPERATORS[op_type].attribute_names:
        telling = {CMP: "stride select_block_size", STEP: "page", SELECT: "select_block_size"}
        tells = any(word in name for word in telling.get(op_type, "page select_block_size").split())
        assert [one.message for one in broken(op_type, {**given, name: Unknown()})] == [WRONG[op_type]] * (not tells)
    if "block_table" in given:
        assert broken(op_type, {**given, "key": TensorFacts()}) == []


@pytest.mark.parametrize(
    ("op_type", "name", "value", "message"),
    [
        *((op, "block_table", [5, 5], "block_table must have rank 2 [B, P], got rank 1") for op in (STEP, SELECT_STEP)),
        (STEP, "block_table", [[[5, 5]], [[5, 5]]], "block_table must have rank 2 [B, P], got rank 3"),
        (STEP, "block_table", [[5, 5]], "block_table.shape[0] must equal B = 2, got 1"),
        (SELECT_STEP, "block_table", [[5, 5]] * 3, "block_table.shape[0] must equal B = 2, got 3"),
        *(
            (op, "block_table", [[5], [5]], "must be <= 64 (pages x page_block_size), got 128")
            for op in (STEP, SELECT_STEP)
        ),
        (SELECT, "topk_indices", [[5, 5, 5]] * 3, "topk_indices must have rank 3 [T1, N2, k], got rank 2"),
        (SELECT, "topk_indices", [[[5, 5, 5]] * 2] * 2, "topk_indices.shape[0] must equal T1 = 3, got 2"),
        (SELECT_STEP, "topk_indices", [[[[5, 5, 5]]]] * 2, "topk_indices must have rank 3 [B, N2, k], got rank 4"),
        (SELECT_STEP, "topk_indices", [[[5, 5, 5]] * 2] * 3, "topk_indices.shape[0] must equal B = 2, got 3"),
    ],
)
def test_a_constant_is_judged_by_its_own_shape_alone(op_type, name, value, message):
    (found,) = broken(op_type, {**CONSTANTS[op_type], name: np.array(value)})
    assert found.message.endswith(message)


def test_the_blocks_of_a_single_sequence_are_looked_at():
    shapes = {"query": (3, 4, 32), "key": (70, 2, 32)}
    ends = {"actual_seq_qlen": [3], "actual_seq_kvlen": [70]}
    messages = [one.message for one in broken(SELECT, {**shapes, **ends, "topk_indices": [[[0, 2, 3]] * 2] * 3})]
    assert messages == [
        WRONG[SELECT].replace("[2, 1, 2]", "[0, 0, 2]").replace("-1, 1", "-1, 3").replace("got 1", "got 3")
    ]


@pytest.mark.parametrize("op_type", STAGES)
def test_of_what_is_not_known_of_a_node_nothing_is_wrong(op_type):
    operator, base = OPERATORS[op_type], STAGES[op_type].base()
    shapes = {name: np.asarray(base[name]).shape for name in operator.input_names}
    cases = [{name: Unknown()} for name in operator.attribute_names]
    for name, shape in shapes.items():
        cases += [{name: TensorFacts()}, {name: (None,) * len(shape)}]
    for changed in ({}, *cases, {name: value for case in cases for name, value in case.items()}):
        assert broken(op_type, changed) == [], changed


@pytest.mark.parametrize(("op_type", "row"), ALL_ROWS, ids=lambda v: v)
def test_each_row_raises_its_class_and_names_argument_value_and_bound(op_type, row):
    changed, words = STAGES[op_type].cases[row]
    wanted = OPERATORS[op_type].contract.rows[row]
    if isinstance(changed, Node):
        (violation,) = broken(op_type, {changed.name: TensorFacts(changed.dtype, changed.shape)})
        assert violation.row is wanted and re.search(words, violation.message)
        return
    for library in ("numpy", "torch"):
        error, message = refused(op_type, changed, library)
        assert error is wanted.error and re.search(words, message), message
        assert hintless(message) == message or not re.search(words, hintless(message)), "a hint that is not expected"


@pytest.mark.parametrize(("op_type", "row"), CALL_ROWS, ids=lambda v: v)
def test_each_row_has_the_same_words_without_the_library(op_type, row, monkeypatch):
    changed, _ = STAGES[op_type].cases[row]
    wanted = refused(op_type, changed)
    monkeypatch.setattr(native, "has", lambda _: False)
    assert refused(op_type, changed) == wanted


@pytest.mark.parametrize(
    ("op_type", "changed", "words"),
    [
        ("NsaCompressAttention", {"actual_cmp_seq_kvlen": [5, 2**70]}, "Tc = 12, got 1180591620717411303424"),
        ("NsaCompressAttention", {"actual_sel_seq_kvlen": [2, 2**70]}, "2 blocks, got 1180591620717411303422"),
        ("NsaCompressAttention", {"actual_sel_seq_kvlen": [3, 5]}, "sequence 0 has 5 .* it has 2 blocks, got 3"),
        ("NsaCompressAttention", {"actual_sel_seq_kvlen": [2, 3]}, "sequence 1 has 7 .* it has 2 blocks, got 1"),
        ("NsaCompressAttention", {"actual_seq_qlen": [-(2**70), 3]}, ">= 0, got -1180591620717411303424"),
        ("NsaCompressAttention", {"select_block_count": 2**64}, r"in \[1, 128\], got 18446744073709551616"),
        ("NsaCompressAttention", {"scale_value": -(10**400)}, "scale_value must be a finite float32"),
        ("NsaCompressAttentionInfer", {"actual_cmp_seq_kvlen": [40, 2**63]}, r"<= 128 .*got 9223372036854775808"),
        ("NsaCompressAttentionInfer", {"actual_cmp_seq_kvlen": [40, 140]}, "got 140 .*look like prefix sums"),
        (
            "NsaCompressAttentionInfer",
            {"block_table": np.array([[-1, 0], [0, 4]], "i4")},
            r"block_table\[0, 0\] .*got -1",
        ),
        ("NsaSelectedAttention", {"actual_seq_kvlen": [40, 2**70]}, "T2 = 70, got 1180591620717411303424"),
        ("NsaSelectedAttention", {"head_num": 2**70}, "must equal head_num = 1180591620717411303424, got 4"),
        ("NsaSelectedAttention", {"scale_value": 10**400}, "scale_value must be a finite float32"),
        ("NsaSelectedAttention", {"scale_value": float("nan")}, "scale_value must be a finite float32, got nan"),
        ("NsaSelectedAttention", {"topk_indices": topk(3, 2, 3, block=-2)}, r"topk_indices\[0, 0, 0\] .*got -2"),
        ("NsaSelectedAttention", {"topk_indices": topk(3, 2, 3, block=2**31 - 1)}, "got 2147483647"),
        (
            "NsaSelectedAttention",
            {"actual_seq_kvlen": [70, 70]},
            r"topk_indices\[1, 0, 0\] must be in \[-1, 0\).*got 0",
        ),
        ("NsaSelectedAttentionInfer", {"topk_indices": topk(2, 2, 3, block=-2)}, r"topk_indices\[0, 0, 0\] .*got -2"),
        ("NsaSelectedAttentionInfer", {"actual_seq_kvlen": [40, 2**63]}, r"must be <= 128 .*got 9223372036854775808"),
        ("NsaSelectedAttentionInfer", {"actual_seq_kvlen": [40, 140]}, "got 140 .*look like prefix sums"),
        ("NsaSelectedAttentionInfer", {"actual_seq_kvlen": [0, 100]}, r"topk_indices\[0, 0, 0\] must be in \[-1, 0\)"),
        # Next to the bounds
        ("NsaSelectedAttention", {"query": ones(1, 3, 4, 1, 32)}, r"rank 3 \[T1, N1, D\], got rank 5$"),
        ("NsaSelectedAttention", {"causal": -1}, "causal must be 0 or 1, got -1$"),
        ("NsaSelectedAttention", {"select_block_size": 0}, r"select_block_size must be in \[16, 128\], got 0$"),
        ("NsaSelectedAttention", {"select_block_count": 0}, r"select_block_count must be in \[1, 128\], got 0$"),
        ("NsaSelectedAttention", {"actual_seq_kvlen": [40, 70, 70]}, "must have B = 2 elements, got 3$"),
        # Lengths for prefix sums
        ("NsaSelectedAttention", {"actual_seq_kvlen": [20, 10]}, "20, got 10$"),
        ("NsaSelectedAttention", {"actual_seq_kvlen": [50, 40]}, "50, got 40$"),
        (
            "NsaSelectedAttention",
            {
                "actual_seq_qlen": [1, 2, 3],
                "actual_seq_kvlen": [2**63 - 1, 2**63 - 1, 72],
            },  # their sum, 64 bits of it: 70
            f"{2**63 - 1}, got 72$",
        ),
        # Prefix sums for lengths
        ("NsaSelectedAttentionInfer", {"actual_seq_kvlen": [128, 256]}, "got 256 .*look like prefix sums"),
        ("NsaSelectedAttentionInfer", {"actual_seq_kvlen": [129, 200]}, "got 129$"),
        ("NsaSelectedAttentionInfer", {"actual_seq_kvlen": [40, 169]}, "got 169$"),
        ("NsaSelectedAttentionInfer", {**three_steps(), "actual_seq_kvlen": [0, 140, 140]}, "got 140$"),
        ("NsaSelectedAttentionInfer", {**three_steps(), "actual_seq_kvlen": [0, 128, 256]}, "got 256 .*look like"),
        ("NsaSelectedAttentionInfer", {**three_steps(), "actual_seq_kvlen": [40, 140, 140]}, "got 140 .*look like"),
        ("NsaSelectedAttentionInfer", {**three_steps(), "actual_seq_kvlen": [100, 99, 200]}, "got 200$"),
        (
            "NsaSelectedAttentionInfer",
            {"block_table": np.array([[-1, 0], [0, 4]], "i4")},
            r"block_table\[0, 0\] .*got -1",
        ),
    ],
)
def test_values_at_the_edges_are_named(op_type, changed, words, monkeypatch):
    for _ in ("with the library", "without"):
        _, message = refused(op_type, changed)
        assert re.search(words, message), message
        monkeypatch.setattr(native, "has", lambda _: False)


@pytest.mark.parametrize(
    ("lengths", "got"),
    [
        ([np.int64(1), 3.0], "float at index 1"),
        (np.array([1.0, 3.0]), "ndarray"),
        ([1, np.array(3)], "ndarray at index 1" + HINTS["list_of_ints"].ending),
    ],
)
def test_lengths_in_an_array_are_told_to_become_a_list(lengths, got):
    error, message = refused(SELECT, {"actual_seq_qlen": lengths})
    assert (error, message) == (TypeError, f"actual_seq_qlen must be a tuple or list of ints, got {got}")


MOST = float(np.finfo(np.float32).max)
# Calls at the bounds: of each argument that is changed, the bound itself.
PAGES_OF_16 = {"page_block_size": 16, "key": ones(5, 16, 2, 32), "value": ones(5, 16, 2, 16)}
PAGES_OF_1024 = {"page_block_size": 1024, "key": ones(5, 1024, 2, 32), "value": ones(5, 1024, 2, 16)}
ONE_HEAD = {"head_num": 1, "query": ones(3, 1, 16), "key": ones(70, 1, 16), "value": ones(70, 1, 16)}
ONE_HEAD_IN_PAGES = {"head_num": 1, "query": ones(2, 1, 32), "key": ones(5, 64, 1, 32), "value": ones(5, 64, 1, 16)}
FINEST = {"actual_sel_seq_kvlen": [5, 12], "topk_mask": None}  # a block for each compressed token
LEGAL = [
    (SELECT, {"scale_value": MOST}),
    (SELECT, {"scale_value": -MOST}),
    (SELECT, {"head_num": 256, "query": ones(3, 256, 32)}),
    (SELECT, {"head_num": 2, "query": ones(3, 2, 32)}),
    (SELECT, {**ONE_HEAD, "topk_indices": topk(3, 1, 3)}),
    (SELECT, {"query": ones(3, 4, 512), "key": ones(70, 2, 512), "value": ones(70, 2, 512)}),
    (SELECT, {"select_block_size": 16, "topk_indices": topk(3, 2, 3, block=1)}),
    (SELECT, {"select_block_size": 128, "select_block_count": 128, "topk_indices": topk(3, 2, 128)}),
    (SELECT, {"select_block_count": 1, "topk_indices": topk(3, 2, 1)}),
    (SELECT, {"causal": 1}),
    (CMP, {"compress_block_size": 64, "compress_stride": 64, **FINEST}),
    (CMP, {"compress_block_size": 16, "select_block_size": 16, **FINEST}),
    (STEP, {**PAGES_OF_16, "actual_cmp_seq_kvlen": [16, 32]}),
    (STEP, PAGES_OF_1024),
    (STEP, {"actual_cmp_seq_kvlen": [64, 128]}),
    (STEP, {"actual_cmp_seq_kvlen": [0, 65]}),
    (STEP, {**ONE_HEAD_IN_PAGES, "key_value_head_num": 1}),
    (SELECT_STEP, {"actual_seq_kvlen": [64, 128], "topk_indices": blocks(1, 1, 0, block=3, base=select_infer_call)}),
]


@pytest.mark.parametrize(("op_type", "changed"), LEGAL)
def test_the_bounds_themselves_are_legal(op_type, changed, monkeypatch):
    stage = STAGES[op_type]
    for _ in ("with the library", "without"):
        stage({**stage.base(), **changed})
        monkeypatch.setattr(native, "has", lambda _: False)
    shapes = {name: value.shape for name, value in changed.items() if isinstance(value, np.ndarray)}
    assert broken(op_type, {**changed, **shapes}) == []


def test_a_scale_that_is_no_finite_float32_is_refused(monkeypatch):
    least = math.nextafter(MOST, math.inf)
    for _ in ("with the library", "without"):
        for scale in (least, -least, 3.74e38, 10 * MOST, math.inf, -math.inf, math.copysign(math.nan, -1)):
            assert refused(SELECT, {"scale_value": scale})[1] == f"scale_value must be a finite float32, got {scale}"
        monkeypatch.setattr(native, "has", lambda _: False)


@pytest.mark.parametrize(
    ("blocks", "length", "page", "columns"),
    [
        ([0, -1], 100, 64, [0]),
        ([1], 100, 64, [0]),
        ([2], 65, 64, [1]),
        ([2], 66, 64, [1]),
        ([3, 0], 128, 64, [0, 1]),
        ([0, 2], 70, 16, [0, 1, 4]),
        ([1, 1], 64, 48, [0, 1]),
    ],
)
def test_the_pages_that_blocks_of_32_tokens_lie_on(blocks, length, page, columns):
    assert pages_of_blocks(blocks, length, 32, page) == columns


@pytest.mark.parametrize(
    ("compressed", "blocks", "forced"),
    [(0, 0, ()), (1, 1, (0,)), (3, 1, (0,)), (4, 2, (0, 1)), (7, 2, (0, 1)), (8, 3, (0, 1, 2)), (40, 11, (0, 9, 10))],
)
def test_the_blocks_of_a_sequence_in_pages(compressed, blocks, forced):
    assert compress_step.block_count(compressed, 32, 16, 64) == blocks
    assert compress_step.forced_blocks(blocks) == forced


@pytest.mark.parametrize("op_type", STAGES)
def test_the_native_kernel_computes_where_it_is(op_type, monkeypatch):
    called = []
    monkeypatch.setattr(native, "call", lambda function, *_: called.append(function))
    for has in (True, False):
        monkeypatch.setattr(native, "has", lambda _, has=has: has)
        STAGES[op_type](STAGES[op_type].base())
        assert called == [type(OPERATORS[op_type]).__module__.split(".")[-2]]


@pytest.mark.parametrize("op_type", STAGES)
def test_tensors_go_to_the_torch_op(op_type, monkeypatch):
    given = []
    monkeypatch.setitem(arrays._torch_ops, op_type, lambda *values, **named: given.append((values, named)) or (1, 2))
    stage = STAGES[op_type]
    made = stage(stage.base(), "torch")
    ((values, named),) = given
    assert made == (1, 2)
    assert {type(value) for value in values} == {torch.Tensor, int, float}
    assert named.keys() >= {name for name in OPERATORS[op_type].input_names if name.startswith("actual")}


def test_causal_is_a_bool_for_the_torch_op_and_another_number_is_named(monkeypatch):
    given = []
    monkeypatch.setitem(arrays._torch_ops, SELECT, lambda *_, causal, **__: given.append(causal))
    arguments = select_call()
    del arguments["causal"]
    for changed in ({}, {"causal": False}, {"causal": 1}, {"causal": np.int64(0)}):
        STAGES[SELECT](arguments | changed, "torch")
    assert [(type(causal), causal) for causal in given] == [(bool, causal) for causal in (False, False, True, False)]
    for causal in (-1, 2):
        assert refused(SELECT, {"causal": causal}, "torch")[1] == f"causal must be 0 or 1, got {causal}"


@pytest.mark.parametrize("block", [0, 1])  # the beginning of the first page, and its end
def test_what_is_not_read_may_be_anything(block):
    arguments = {**select_infer_call(), "topk_indices": topk(2, 2, 3, block=block)}
    wanted = nsa_onnx.nsa_select_attention_infer(**arguments)
    arguments["block_table"] = np.array([[3, 2**31 - 1], [0, -(2**31)]], np.int32)
    assert np.array_equal(nsa_onnx.nsa_select_attention_infer(**arguments), wanted)


@pytest.mark.parametrize(
    ("query", "key", "value", "count", "attention_out", "topk_indices"),
    [
        ((3, 4, 32), (12, 2, 32), (12, 2, 16), 5, (3, 4, 16), (3, 2, 5)),
        ((3, 4, 32), (9, 64, 4, 32), (9, 64, 2, 32), 0, (3, 4, 32), (3, 4, 0)),
        ((3, 4, 32), (12, 5, 32), (12, 2, 33), 5, (0, 0, 0), (0, 0, 0)),
        ((3, 4), (12, 2, 32), (12, 2, 1), 5, (0, 0, 0), (0, 0, 0)),
        ((3, 4, 5, 32), (12, 2, 32), (12, 2, 16), 5, (0, 0, 0), (0, 0, 0)),
        ((3, 4, 32), (2, 32), (), 2**16, (0, 0, 0), (3, 2, 2**16)),
        ((3, 4, 32), (2,), (16,), 1, (3, 4, 16), (0, 0, 0)),
        ((3, 4, 32), (), (1,), 1, (3, 4, 1), (0, 0, 0)),
        ((3, 4, 32), (12, 2, 32), (1,), 2**16 + 1, (3, 4, 1), (0, 0, 0)),
        ((3, 4, 32), (12, 2, 32), (1,), -1, (3, 4, 1), (0, 0, 0)),
    ],
)
def test_what_a_kernel_will_refuse_gets_little_memory(query, key, value, count, attention_out, topk_indices):
    arrays = {"query": ones(*query), "key": ones(*key), "value": ones(*value)}
    operands = Operands(tuple(arrays), "float16", arrays["query"], arrays, {}, {})
    made = operands.attention_out(), operands.topk_indices(count)
    assert [(one.shape, one.dtype) for one in made] == [(attention_out, np.float16), (topk_indices, np.int32)]


@pytest.mark.parametrize("op_type", STAGES)
def test_where_two_rows_apply_the_earlier_one_of_the_table_wins(op_type):
    table, found = OPERATORS[op_type].contract.rows, STAGES[op_type].cases
    pairs = 0
    for first, second in itertools.combinations([row for op, row in CALL_ROWS if op == op_type], 2):
        changed, words = found[first]
        other = found[second][0]
        # Two breakages can be had together where they touch different arguments.
        if changed.keys() & other.keys():
            continue
        pairs += 1
        error, message = refused(op_type, {**other, **changed})
        if error is table[first].error and re.search(words, message):
            continue
        # A pair can mean something else than its parts (another D or N2 makes other shapes legal): it must be an error
        # of a row before the second one all the same.
        assert not re.search(found[second][1], message) or table[second].argument == table[first].argument, (
            first,
            second,
        )
    assert pairs > 500
