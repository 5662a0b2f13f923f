"""The compress attentions inside onnxruntime: further cases of ort_cases.py, which says how they run.

The C interface, which tests/test_compress_attention.py and tests/test_compress_attention_kernels.py hold to the
contract, gives the bits that nodes must have.
"""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from ort_cases import DTYPES, ONNX_TYPES, case, error_of, model, run, session
from selected_ort_cases import argument

LENGTHS = ("actual_seq_qlen", "actual_cmp_seq_kvlen", "actual_sel_seq_kvlen")
PREFILL_INPUTS = ("query", "key", "value", *LENGTHS, "atten_mask", "topk_mask")
DECODE_INPUTS = ("query", "key", "value", "actual_cmp_seq_kvlen", "block_table")
WINDOWS = {"compress_block_size": 32, "compress_stride": 16}
SELECTION = {"select_block_size": 64, "select_block_count": 3}
PREFILL = {"scale_value": 0.25, "head_num": 6, **WINDOWS, **SELECTION}
DECODE = {
    "scale_value": 0.25,
    "head_num": 6,
    "key_value_head_num": 2,
    **SELECTION,
    "page_block_size": 48,
    **WINDOWS,
}


def c_function(library, name, feeds, values, lengths):
    """Both outputs by the function `name`, on one thread: values and then lengths are its arguments."""
    query = feeds["query"]
    out = np.zeros((*query.shape[:2], feeds["value"].shape[-1]), query.dtype)
    topk = np.zeros((len(query), feeds["key"].shape[-2], 3), np.int32)
    error = ctypes.create_string_buffer(512)
    pairs = [part for one in lengths for part in (ctypes.c_void_p(one.ctypes.data), ctypes.c_int64(len(one)))]
    failed = getattr(ctypes.CDLL(library), name)(
        int(out.dtype.name == "bfloat16"),
        *(None if value is None else argument(value) for value in values),
        *pairs,
        argument(out),
        argument(topk),
        *(ctypes.c_int64(1), error, ctypes.c_int64(512)),
    )
    assert failed == 0, error.value
    return out, topk


def prefill_results(library, feeds):
    arrays = [feeds[name] for name in PREFILL_INPUTS[:3]]
    masks = [feeds.get(name) for name in ("topk_mask", "atten_mask")]
    lengths = [feeds[name] for name in LENGTHS]
    return c_function(library, "nsa_compress_attention", feeds, [*arrays, *PREFILL.values(), *masks], lengths)


def decode_results(library, feeds):
    values = [*(feeds[name] for name in DECODE_INPUTS[:3]), *DECODE.values(), feeds["block_table"]]
    return c_function(library, "nsa_compress_attention_infer", feeds, values, [feeds["actual_cmp_seq_kvlen"]])


def make_prefill(dtype, rows=(5, 0, 90), tokens=(70, 3, 200), masks=PREFILL_INPUTS[6:]):
    rng = np.random.default_rng(1)
    blocks = [-(-n // 4) for n in tokens]
    arrays = {
        name: rng.standard_normal(shape).astype(dtype)
        for name, shape in (
            ("query", (sum(rows), 6, 64)),
            ("key", (sum(tokens), 2, 64)),
            ("value", (sum(tokens), 2, 32)),
        )
    }
    lengths = dict(zip(LENGTHS, (np.cumsum(rows), np.cumsum(tokens), np.cumsum(blocks))))  # noqa: B905
    given = {"atten_mask": rng.random((90, 203)) < 0.3, "topk_mask": rng.random((92, 50)) < 0.1}
    return {**arrays, **lengths, **{name: given[name] for name in masks}}


def make_decode(dtype):
    """Pages 0 to 7; sequence 1 has no token. Entries of the table that are not read are garbage."""
    rng = np.random.default_rng(2)
    return {
        "query": rng.standard_normal((3, 6, 64)).astype(dtype),
        "key": rng.standard_normal((8, 48, 2, 64)).astype(dtype),
        "value": rng.standard_normal((8, 48, 2, 32)).astype(dtype),
        "actual_cmp_seq_kvlen": np.array([90, 0, 100]),
        "block_table": np.array([[7, 2, -1], [-9, 99, -1], [0, 5, 3]], np.int32),
    }


def graph(op_type, names, attributes, dtype="float16", ranks=True):
    """A model of one node; an attribute that is None and an input whose name is "" are left out."""
    kinds = dict.fromkeys(("query", "key", "value"), ONNX_TYPES[dtype])
    kinds |= {"block_table": TensorProto.INT32, "atten_mask": TensorProto.BOOL, "topk_mask": TensorProto.BOOL}
    paged = op_type.endswith("Infer")
    rank = {"query": 3, "key": 3 + paged, "value": 3 + paged, "block_table": 2, "atten_mask": 2, "topk_mask": 2}
    inputs = {
        name: (kinds.get(name, TensorProto.INT64), [f"{name}_{i}" for i in range(rank.get(name, 1))] if ranks else None)
        for name in names
        if name
    }
    known = {name: value for name, value in attributes.items() if value is not None}
    node = helper.make_node(op_type, names, ["y", "blocks"], name="node_y", domain="nsa_onnx", **known)
    return model([node], inputs, {"y": (ONNX_TYPES[dtype], None), "blocks": (TensorProto.INT32, None)})


def prefill_graph(dtype="float16", ranks=True, inputs=PREFILL_INPUTS, **attributes):
    return graph("NsaCompressAttention", inputs, {**PREFILL, **attributes}, dtype, ranks)


def decode_graph(dtype="float16", ranks=True, **attributes):
    return graph("NsaCompressAttentionInfer", DECODE_INPUTS, {**DECODE, **attributes}, dtype, ranks)


def same(results, wanted):
    (y, blocks), (wanted_y, wanted_blocks) = results, wanted
    bits = y.dtype == wanted_y.dtype and np.array_equal(y.view(np.uint16), wanted_y.view(np.uint16))
    return bits and blocks.dtype == np.int32 and np.array_equal(blocks, wanted_blocks)


@case
def compress_attention_gives_the_bits_of_its_c_function(library):
    for dtype in DTYPES:
        feeds = make_prefill(dtype)
        for threads in (1, 3):
            running = session(library, prefill_graph(dtype.name), threads)
            assert same(run(running, feeds), prefill_results(library, feeds))


@case
def compress_attention_infers_its_outputs_shapes(library):
    output, blocks = session(library, prefill_graph()).get_outputs()
    if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 24):  # older ones are not asked: custom_op.h says why
        assert (output.shape, blocks.shape) == (["query_0", "query_1", "value_2"], ["query_0", "key_1", 3])
    output, blocks = session(library, decode_graph()).get_outputs()
    assert (output.shape, blocks.shape) == (["query_0", "query_1", "value_3"], ["query_0", 2, 3])


@case
def compress_attention_without_one_mask_or_both(library):
    for inputs in (
        PREFILL_INPUTS[:6],
        PREFILL_INPUTS[:7],
        (*PREFILL_INPUTS[:6], "", "topk_mask"),
        (*PREFILL_INPUTS[:6], "", ""),
    ):
        feeds = make_prefill(np.float16, masks=[name for name in inputs[6:] if name])
        assert same(run(session(library, prefill_graph(inputs=inputs)), feeds), prefill_results(library, feeds)), inputs


@case
def compress_attention_infer_gives_the_bits_of_its_c_function(library):
    for dtype in DTYPES:
        feeds = make_decode(dtype)
        for threads in (1, 3):
            y, blocks = run(session(library, decode_graph(dtype.name), threads), feeds)
            assert same((y, blocks), decode_results(library, feeds))
            assert not y[1].any() and y[0].any()
            assert blocks[1].tolist() == [[0, -1, -1]] * 2


@case
def compress_attention_of_no_row_is_empty(library):
    feeds = make_prefill(np.float16, (0,), (40,))
    y, blocks = run(session(library, prefill_graph()), feeds)
    assert (y.shape, blocks.shape) == ((0, 6, 32), (0, 2, 3))
    feeds = {name: array if name in ("key", "value") else array[:0] for name, array in make_decode(np.float16).items()}
    y, blocks = run(session(library, decode_graph()), feeds)
    assert (y.shape, blocks.shape) == ((0, 6, 32), (0, 2, 3))


@case
def compress_attentions_refuse_bad_indices_and_shapes(library):
    prefill, decode = session(library, prefill_graph(ranks=False)), session(library, decode_graph(ranks=False))
    good, step = make_prefill(np.float16), make_decode(np.float16)
    table = step["block_table"].copy()
    table[2, 1] = 8
    bad = [
        (prefill, good, "actual_seq_qlen", np.array([5, 4, 95]), "actual_seq_qlen[1] must be >= the element before"),
        (prefill, good, "actual_cmp_seq_kvlen", np.array([70, 273]), "actual_cmp_seq_kvlen must have B = 3 elements"),
        (prefill, good, "actual_sel_seq_kvlen", np.array([18, 19, 70]), "so it has 50 blocks, got 51"),
        (prefill, good, "actual_sel_seq_kvlen", np.array([[18, 19, 69]]), "actual_sel_seq_kvlen must have rank 1"),
        (prefill, good, "key", good["key"][:, :1].copy(), "value.shape[1] must equal N2 = 1, got 2"),
        (prefill, good, "query", good["query"][None], "query must have rank 3 [T1, N1, D], got rank 4"),
        (prefill, good, "atten_mask", good["atten_mask"][:, :199].copy(), "atten_mask.shape[1] must be >= 200"),
        (prefill, good, "topk_mask", good["topk_mask"][:89].copy(), "topk_mask.shape[0] must be >= 90"),
        (decode, step, "block_table", table, "block_table[2, 1] must be in [0, 8), got 8"),
        (decode, step, "block_table", step["block_table"][0], "block_table must have rank 2 [B, P], got rank 1"),
        (decode, step, "actual_cmp_seq_kvlen", np.array([90, 0, 145]), "actual_cmp_seq_kvlen[2] must be <= 144"),
        (decode, step, "key", step["key"][:, :32].copy(), "key.shape[1] must equal page_block_size = 48, got 32"),
        (decode, step, "query", step["query"][None], "query must have rank 3 [B, N1, D], got rank 4"),
        (decode, step, "value", step["value"].reshape(8, 48, -1), "value must have rank 4"),
    ]
    for running, feeds, name, array, words in bad:
        message = error_of(run, running, {**feeds, name: array})
        assert words in message and "INVALID_ARGUMENT" in message, (words, message)


@case
def compress_attentions_refuse_bad_attributes_when_the_model_is_loaded(library):
    bad = [
        (prefill_graph, {"head_num": 0}, "NsaCompressAttention: head_num must be >= 1, got 0"),
        (prefill_graph, {"select_block_size": 24}, "select_block_size must be a multiple of 16, got 24"),
        (prefill_graph, {"select_block_count": 129}, "select_block_count must be in [1, 128], got 129"),
        (prefill_graph, {"compress_stride": 48}, "compress_stride must be in [16, compress_block_size = 32], got 48"),
        (prefill_graph, {"compress_block_size": None}, "compress_block_size must be an int, got none"),
        (prefill_graph, {"scale_value": None}, "scale_value must be a float, got none"),
        (decode_graph, {"key_value_head_num": 4}, "NsaCompressAttentionInfer: head_num must be a multiple of N2 = 4"),
        (decode_graph, {"page_block_size": 1040}, "page_block_size must be in [16, 1024], got 1040"),
    ]
    for make, attributes, words in bad:
        assert words in error_of(session, library, make(**attributes)), words
