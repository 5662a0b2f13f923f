"""The selected attentions inside onnxruntime: further cases of ort_cases.py, which says how they run.

The C interface, which tests/test_select.py and tests/test_selected_kernels.py hold to the contract, gives the bits that
nodes must have.
"""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from ort_cases import DTYPES, ONNX_TYPES, case, error_of, model, run, session

PREFILL_INPUTS = ("query", "key", "value", "topk_indices", "actual_seq_qlen", "actual_seq_kvlen")
DECODE_INPUTS = ("query", "key", "value", "topk_indices", "actual_seq_kvlen", "block_table")
PREFILL = {"scale_value": 0.25, "head_num": 6, "select_block_size": 32, "select_block_count": 3, "causal": 1}
DECODE = {
    "scale_value": 0.25,
    "head_num": 6,
    "key_value_head_num": 2,
    "select_block_size": 32,
    "select_block_count": 3,
    "page_block_size": 48,
}


class Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("shape", ctypes.POINTER(ctypes.c_int64)), ("rank", ctypes.c_int64))


def argument(value):
    if isinstance(value, np.ndarray):
        shape = (ctypes.c_int64 * value.ndim)(*value.shape)
        return ctypes.byref(Array(value.ctypes.data, shape, value.ndim))
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)


def c_function(library, name, feeds, values, lengths):
    """attention_out by the function `name`, on one thread: values and then lengths are its arguments."""
    out = np.zeros((*feeds["query"].shape[:2], feeds["value"].shape[-1]), feeds["query"].dtype)
    error = ctypes.create_string_buffer(512)
    pairs = [part for one in lengths for part in (ctypes.c_void_p(one.ctypes.data), ctypes.c_int64(len(one)))]
    failed = getattr(ctypes.CDLL(library), name)(
        int(out.dtype.name == "bfloat16"),
        *(argument(value) for value in values),
        *pairs,
        argument(out),
        *(ctypes.c_int64(1), error, ctypes.c_int64(512)),
    )
    assert failed == 0, error.value
    return out


def prefill_bits(library, feeds):
    arrays = [feeds[name] for name in PREFILL_INPUTS[:4]]
    lengths = [feeds[name] for name in PREFILL_INPUTS[4:]]
    return c_function(library, "nsa_selected_attention", feeds, [*arrays, *PREFILL.values()], lengths)


def decode_bits(library, feeds):
    arrays = [feeds[name] for name in DECODE_INPUTS[:4]]
    values = [*arrays, *DECODE.values(), feeds["block_table"]]
    return c_function(library, "nsa_selected_attention_infer", feeds, values, [feeds["actual_seq_kvlen"]])


def make_prefill(dtype, rows=(5, 0, 90), tokens=(70, 3, 200)):
    rng = np.random.default_rng(1)

    def floats(*shape):
        return rng.standard_normal(shape).astype(dtype)

    topk = [rng.integers(-1, -(-n // 32), (count, 2, 3)) for count, n in zip(rows, tokens)]  # noqa: B905
    return {
        "query": floats(sum(rows), 6, 64),
        "key": floats(sum(tokens), 2, 64),
        "value": floats(sum(tokens), 2, 32),
        "topk_indices": np.concatenate(topk).astype(np.int32),
        "actual_seq_qlen": np.cumsum(rows),
        "actual_seq_kvlen": np.cumsum(tokens),
    }


def make_decode(dtype):
    """Pages 0 to 7; sequence 1 has no token. Entries of the table that are not read are garbage."""
    rng = np.random.default_rng(2)

    def floats(*shape):
        return rng.standard_normal(shape).astype(dtype)

    return {
        "query": floats(3, 6, 64),
        "key": floats(8, 48, 2, 64),
        "value": floats(8, 48, 2, 32),
        "topk_indices": np.array([[[0, 2, -1], [1, 1, 2]], [[-1] * 3] * 2, [[3, 0, -1], [3, 3, 3]]], np.int32),
        "actual_seq_kvlen": np.array([90, 0, 100]),
        "block_table": np.array([[7, 2, -1], [-9, 99, -1], [0, -5, 3]], np.int32),
    }


def graph(op_type, names, attributes, dtype="float16", ranks=True):
    """A model of one node; `attributes` that are None are left out."""
    kinds = dict.fromkeys(("query", "key", "value"), ONNX_TYPES[dtype])
    kinds |= {"topk_indices": TensorProto.INT32, "block_table": TensorProto.INT32}
    paged = op_type.endswith("Infer")
    dims = {"query": 3, "key": 3 + paged, "value": 3 + paged, "topk_indices": 3, "block_table": 2}
    inputs = {
        name: (kinds.get(name, TensorProto.INT64), [f"{name}_{i}" for i in range(dims.get(name, 1))] if ranks else None)
        for name in names
    }
    known = {name: value for name, value in attributes.items() if value is not None}
    node = helper.make_node(op_type, names, ["y"], name="node_y", domain="nsa_onnx", **known)
    return model([node], inputs, {"y": (ONNX_TYPES[dtype], None)})


def prefill_graph(dtype="float16", ranks=True, **attributes):
    return graph("NsaSelectedAttention", PREFILL_INPUTS, {**PREFILL, **attributes}, dtype, ranks)


def decode_graph(dtype="float16", ranks=True, **attributes):
    return graph("NsaSelectedAttentionInfer", DECODE_INPUTS, {**DECODE, **attributes}, dtype, ranks)


@case
def selected_attention_gives_the_bits_of_its_c_function(library):
    for dtype in DTYPES:
        feeds = make_prefill(dtype)
        for threads in (1, 3):
            running = session(library, prefill_graph(dtype.name), threads)
            (y,) = run(running, feeds)
            assert y.dtype == dtype and np.array_equal(y.view(np.uint16), prefill_bits(library, feeds).view(np.uint16))
        (output,) = running.get_outputs()
        assert output.shape == ["query_0", "query_1", "value_2"]


@case
def selected_attention_infer_gives_the_bits_of_its_c_function(library):
    for dtype in DTYPES:
        feeds = make_decode(dtype)
        for threads in (1, 3):
            running = session(library, decode_graph(dtype.name), threads)
            (y,) = run(running, feeds)
            assert y.dtype == dtype and np.array_equal(y.view(np.uint16), decode_bits(library, feeds).view(np.uint16))
            assert not y[1].any() and y[0].any()
        (output,) = running.get_outputs()
        assert output.shape == ["query_0", "query_1", "value_3"]


@case
def selected_attention_of_no_row_is_empty(library):
    (y,) = run(session(library, prefill_graph()), make_prefill(np.float16, (0,), (40,)))
    assert y.shape == (0, 6, 32)
    feeds = {name: array if name in ("key", "value") else array[:0] for name, array in make_decode(np.float16).items()}
    (y,) = run(session(library, decode_graph()), feeds)
    assert y.shape == (0, 6, 32)


@case
def selected_attentions_refuse_bad_indices_and_shapes(library):
    prefill, decode = session(library, prefill_graph(ranks=False)), session(library, decode_graph(ranks=False))
    good, step = make_prefill(np.float16), make_decode(np.float16)

    def changed(array, place, value):
        array = array.copy()
        array[place] = value
        return array

    bad = [
        (prefill, good, "topk_indices", changed(good["topk_indices"], (4, 1, 2), 3), "topk_indices[4, 1, 2] must be"),
        (prefill, good, "topk_indices", changed(good["topk_indices"], (5, 0, 0), -2), "topk_indices[5, 0, 0] must be"),
        (prefill, good, "topk_indices", good["topk_indices"][:, :, :2].copy(), "topk_indices.shape[2] must equal"),
        (prefill, good, "actual_seq_qlen", np.array([5, 4, 95]), "actual_seq_qlen[1] must be >= the element before"),
        (prefill, good, "actual_seq_kvlen", np.array([70, 273]), "actual_seq_kvlen must have B = 3 elements, got 2"),
        (prefill, good, "actual_seq_kvlen", np.array([[70, 73, 273]]), "actual_seq_kvlen must have rank 1"),
        (prefill, good, "key", good["key"][:, :1].copy(), "value.shape[1] must equal N2 = 1, got 2"),
        (prefill, good, "query", good["query"][None], "query must have rank 3 [T1, N1, D], got rank 4"),
        (decode, step, "topk_indices", changed(step["topk_indices"], (0, 0, 0), 3), "topk_indices[0, 0, 0] must be"),
        (decode, step, "block_table", changed(step["block_table"], (2, 2), 8), "block_table[2, 2] must be in [0, 8)"),
        (decode, step, "block_table", step["block_table"][0], "block_table must have rank 2 [B, P], got rank 1"),
        (decode, step, "actual_seq_kvlen", np.array([90, 0, 145]), "actual_seq_kvlen[2] must be <= 144"),
        (decode, step, "key", step["key"][:, :32].copy(), "key.shape[1] must equal page_block_size = 48, got 32"),
        (decode, step, "value", step["value"].reshape(8, 48, -1), "value must have rank 4"),
    ]
    for running, feeds, name, array, words in bad:
        message = error_of(run, running, {**feeds, name: array})
        assert words in message and "INVALID_ARGUMENT" in message, (words, message)


@case
def selected_attentions_refuse_bad_attributes_when_the_model_is_loaded(library):
    bad = [
        (prefill_graph, {"head_num": 0}, "NsaSelectedAttention: head_num must be >= 1, got 0"),
        (prefill_graph, {"select_block_size": 24}, "select_block_size must be a multiple of 16, got 24"),
        (prefill_graph, {"select_block_count": 129}, "select_block_count must be in [1, 128], got 129"),
        (prefill_graph, {"causal": 2}, "causal must be 0 or 1, got 2"),
        (prefill_graph, {"causal": None}, "causal must be an int, got none"),
        (prefill_graph, {"scale_value": None}, "scale_value must be a float, got none"),
        (decode_graph, {"key_value_head_num": 4}, "NsaSelectedAttentionInfer: head_num must be a multiple of N2 = 4"),
        (decode_graph, {"page_block_size": 1040}, "page_block_size must be in [16, 1024], got 1040"),
    ]
    for make, attributes, words in bad:
        assert words in error_of(session, library, make(**attributes)), words


@case
def selected_blocks_may_come_from_another_node(library):
    """As from NsaCompressAttention, but for a Cast."""
    feeds = make_prefill(np.float16)
    node = helper.make_node("NsaSelectedAttention", PREFILL_INPUTS, ["y"], domain="nsa_onnx", **PREFILL)
    cast = helper.make_node("Cast", ["wide"], ["topk_indices"], to=TensorProto.INT32)
    kinds = {name: (helper.np_dtype_to_tensor_dtype(array.dtype), None) for name, array in feeds.items()}
    kinds["wide"] = (TensorProto.INT64, None)
    del kinds["topk_indices"]
    running = session(library, model([cast, node], kinds, {"y": (TensorProto.FLOAT16, None)}))
    wanted = prefill_bits(library, feeds)
    feeds["wide"] = feeds.pop("topk_indices").astype(np.int64)
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    (y,) = running.run_with_ort_values(None, values)
    assert np.array_equal(y.numpy().view(np.uint16), wanted.view(np.uint16))
