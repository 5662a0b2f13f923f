"""The attention stages on the real onnxruntime-cann and the simulated CANN: ``python attention.py <case>``.

Runs where nsa.py does, which has what both need; tests/test_cann.py starts it once per case.
"""

import gc
import sys

import nsa
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

import nsa_onnx
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.base import Exact

DTYPES = nsa.DTYPES
D, DV = 192, 128
SCALE = D**-0.5
PAGE = 64
CHECK = "nsa_onnx.check_device_indices"
TYPES = {"int32": TensorProto.INT32, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}

ATTRIBUTES = {
    "NsaCompressAttention": {
        "head_num": 8,
        "compress_block_size": 32,
        "compress_stride": 16,
        "select_block_size": 64,
        "select_block_count": 2,
    },
    "NsaCompressAttentionInfer": {
        "head_num": 8,
        "key_value_head_num": 2,
        "compress_block_size": 32,
        "compress_stride": 16,
        "select_block_size": 64,
        "select_block_count": 2,
        "page_block_size": PAGE,
    },
    "NsaSelectedAttention": {"head_num": 8, "select_block_size": 64, "select_block_count": 2, "causal": 1},
    "NsaSelectedAttentionInfer": {
        "head_num": 4,
        "key_value_head_num": 1,
        "select_block_size": 64,
        "select_block_count": 2,
        "page_block_size": PAGE,
    },
}
VENDOR = {
    "NsaCompressAttention": "aclnnNsaCompressAttention",
    "NsaCompressAttentionInfer": "aclnnNsaCompressAttentionInfer",
    "NsaSelectedAttention": "aclnnNsaSelectedAttention",
    "NsaSelectedAttentionInfer": "aclnnNsaSelectedAttentionInfer",
}


# --------------------------------------------------------------------------------------------------
# Models and inputs


def attributes_of(op_type, changes):
    return {"scale_value": SCALE, **ATTRIBUTES[op_type], **changes}


def model(op_type, feeds, **changes):
    """One node with inputs of these types; their shapes are free."""
    names = OPERATORS[op_type].input_names
    outputs = [output.name for output in OPERATORS[op_type].outputs]
    node = helper.make_node(
        op_type,
        [name if name in feeds else "" for name in names],
        outputs,
        name="nsa",
        domain="nsa_onnx",
        **attributes_of(op_type, changes),
    )
    infos = [
        helper.make_tensor_value_info(name, _element(feeds[name]), [f"{name}_{i}" for i in range(feeds[name].ndim)])
        for name in names
        if name in feeds
    ]
    kinds = {"topk_indices": TensorProto.INT32}
    made = [helper.make_tensor_value_info(name, kinds.get(name, _element(feeds["query"])), None) for name in outputs]
    graph = helper.make_graph([node], "g", infos, made)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nsa_onnx", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _element(array):
    return nsa.models.ELEMENT_TYPES.get(array.dtype) or TYPES[array.dtype.name]


def floats(rng, shape, dtype):
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


def compress_prefill(
    rng, dtype, lengths=(40, 24), tokens=(8, 13), heads=8, key_heads=2, masks=False, dims=(D, DV), per_block=4
):
    rows, keys = sum(lengths), sum(tokens)
    blocks = [-(-length // per_block) for length in tokens]
    feeds = {
        "query": floats(rng, (rows, heads, dims[0]), dtype),
        "key": floats(rng, (keys, key_heads, dims[0]), dtype),
        "value": floats(rng, (keys, key_heads, dims[1]), dtype),
        "actual_seq_qlen": np.cumsum(lengths),
        "actual_cmp_seq_kvlen": np.cumsum(tokens),
        "actual_sel_seq_kvlen": np.cumsum(blocks),
    }
    if masks:
        feeds["atten_mask"] = rng.random((max(lengths), max(tokens))) < 0.3
        feeds["topk_mask"] = rng.random((max(lengths), max(blocks))) < 0.2
    return feeds


def pages(rng, dtype, batch, columns, key_heads, dims):
    """Keys and values in pages, and a table of them in any order."""
    count = batch * columns + 1
    return {
        "key": floats(rng, (count, PAGE, key_heads, dims[0]), dtype),
        "value": floats(rng, (count, PAGE, key_heads, dims[1]), dtype),
        "block_table": rng.permutation(count)[: batch * columns].reshape(batch, columns).astype(np.int32),
    }


def compress_decode(rng, dtype, lengths=(7, 70, 128), heads=8, key_heads=2, dims=(D, DV)):
    return {
        "query": floats(rng, (len(lengths), heads, dims[0]), dtype),
        **pages(rng, dtype, len(lengths), 2, key_heads, dims),
        "actual_cmp_seq_kvlen": np.array(lengths, np.int64),
    }


def select_prefill(rng, dtype, lengths=(12, 20), keys=(128, 192), heads=8, key_heads=2, count=2, dims=(D, DV)):
    rows, total = sum(lengths), sum(keys)
    topk = [rng.integers(0, length // 64, (n, key_heads, count)) for n, length in zip(lengths, keys, strict=True)]
    return {
        "query": floats(rng, (rows, heads, dims[0]), dtype),
        "key": floats(rng, (total, key_heads, dims[0]), dtype),
        "value": floats(rng, (total, key_heads, dims[1]), dtype),
        "topk_indices": np.concatenate(topk).astype(np.int32),
        "actual_seq_qlen": np.cumsum(lengths),
        "actual_seq_kvlen": np.cumsum(keys),
    }


def select_decode(rng, dtype, lengths=(64, 100, 192), heads=4, key_heads=1, dims=(D, DV), agree=True):
    topk = np.array([[0, -1], [1, 0], [2, 0]], np.int32)[: len(lengths), None].repeat(key_heads, 1)
    topk[np.array(lengths, int) == 0] = -1
    if not agree:
        topk[1:, 1] = topk[1:, 1, ::-1]
        topk[2, 2] = 1, -1
    return {
        "query": floats(rng, (len(lengths), heads, dims[0]), dtype),
        **pages(rng, dtype, len(lengths), 3, key_heads, dims),
        "topk_indices": topk,
        "actual_seq_kvlen": np.array(lengths, np.int64),
    }


MAKERS = {
    "NsaCompressAttention": compress_prefill,
    "NsaCompressAttentionInfer": compress_decode,
    "NsaSelectedAttention": select_prefill,
    "NsaSelectedAttentionInfer": select_decode,
}


# --------------------------------------------------------------------------------------------------
# Sessions and comparisons


def session(op_type, feeds, entries=(), **changes):
    options = ort.SessionOptions()
    for name, value in entries:
        options.add_session_config_entry(name, value)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.log_severity_level = 4
    return nsa_onnx.create_session(model(op_type, feeds, **changes), device="ascend", options=options)


def check(op_type, made, feeds, **changes):
    """The device's results are the operator's, but for the vendor's rounding of P to 16 bits."""
    got = nsa.run(made, feeds)
    attributes = attributes_of(op_type, changes)
    attributes["scale_value"] = float(np.float32(attributes["scale_value"]))
    of_p = (2.0**-11 if feeds["query"].dtype == nsa.FLOAT16 else 2.0**-8) * np.abs(feeds["value"].astype(float)).max()
    values = {name: array.astype(float) if array.dtype in DTYPES else array for name, array in feeds.items()}
    for result, wanted in zip(got, OPERATORS[op_type].reference(values, attributes), strict=True):
        if isinstance(wanted, Exact):
            wanted = Exact(wanted.values, wanted.slack + of_p)
        problem = wanted.judge(op_type, result.astype(np.float64), feeds["query"].dtype.name).problem
        assert not problem, problem
    return got


# --------------------------------------------------------------------------------------------------
# Cases


def _all(op_type, *variants):
    """All variants in both types: inputs, attributes, and calls of the vendor's operator if not one."""
    rng, simulator = np.random.default_rng(0), nsa.Simulator()
    for dtype in DTYPES:
        for inputs, changes, *calls in variants:
            feeds = MAKERS[op_type](rng, dtype, **inputs)
            before = simulator.calls(VENDOR[op_type])
            check(op_type, session(op_type, feeds, **changes), feeds, **changes)
            assert simulator.calls(VENDOR[op_type]) == before + (calls[0] if calls else 1)


def compress_attention_prefill():
    """With masks and without, one head to a group and many, sequences of several lengths and without queries."""
    wide = {"head_num": 64, "select_block_count": 3}
    small = {"compress_block_size": 16, "select_block_size": 16, "head_num": 2, "scale_value": -1.5}
    _all(
        "NsaCompressAttention",
        ({}, {}),
        ({"masks": True}, {}),
        ({"lengths": (0, 5, 1), "tokens": (9, 12, 30), "heads": 64, "key_heads": 1, "dims": (32, 16)}, wide),
        ({"lengths": (3,), "tokens": (2,), "heads": 2, "key_heads": 2, "dims": (256, 256), "per_block": 1}, small),
    )


def compress_attention_decode():
    """Sequences of one page and of several, forced blocks and others."""
    many = {"head_num": 16, "key_value_head_num": 1, "select_block_count": 5}
    _all(
        "NsaCompressAttentionInfer",
        ({}, {}),
        ({"lengths": (40, 41, 120, 128), "heads": 16, "key_heads": 1, "dims": (64, 32)}, many),
    )


def selected_attention_prefill():
    """Causal and not, blocks that stand twice, several heads of the keys."""
    deep = {"causal": 0, "head_num": 3, "select_block_count": 4, "select_block_size": 16, "scale_value": -3.0}
    _all(
        "NsaSelectedAttention",
        ({}, {}),
        ({}, {"causal": 0}),
        ({"lengths": (2, 70), "heads": 3, "key_heads": 3, "count": 4}, deep),
    )


def selected_attention_decode():
    """Blocks that are cut by the sequence's end, fewer blocks than k; a call for each head where heads do not agree."""
    several = {"head_num": 6, "key_value_head_num": 3}
    _all(
        "NsaSelectedAttentionInfer",
        ({}, {}),
        ({"lengths": (130, 70)}, {"head_num": 4, "scale_value": 0.5}),
        ({"heads": 6, "key_heads": 3}, several),
        ({"heads": 6, "key_heads": 3, "agree": False}, several, 3),
    )


def no_rows_no_call():
    """Nothing to compute: no call of the vendor's operator, which would refuse it."""
    rng, simulator = np.random.default_rng(1), nsa.Simulator()
    inputs = {
        "NsaCompressAttention": {"lengths": (0, 0)},
        "NsaSelectedAttention": {"lengths": (0, 0)},
        "NsaCompressAttentionInfer": {"lengths": ()},
        "NsaSelectedAttentionInfer": {"lengths": ()},
    }
    for op_type, maker in MAKERS.items():
        feeds = maker(rng, nsa.FLOAT16, **inputs[op_type])
        for result in nsa.run(session(op_type, feeds), feeds):
            assert result.shape[0] == 0
        assert simulator.calls(VENDOR[op_type]) == 0


def vendor_limits():
    """What the vendor's operators do not take is refused in words that say the way out, before any call."""
    rng, simulator = np.random.default_rng(2), nsa.Simulator()

    def refused(words, op_type, changes=None, **inputs):
        feeds = MAKERS[op_type](rng, nsa.FLOAT16, **inputs)
        error = str(nsa.raised(lambda: nsa.run(session(op_type, feeds, **(changes or {})), feeds)))
        assert words in error and 'use device="cpu"' in error and f"{op_type} 'nsa'" in error, error

    prefill, decode = "NsaCompressAttention", "NsaCompressAttentionInfer"
    refused("select_block_count <= 32, got 33", prefill, {"select_block_count": 33})
    refused("compress_stride <= 64, got 80", prefill, _windows(80), per_block=1)
    refused("N1 / N2 <= 64 that divide 128, got 3", prefill, {"head_num": 6}, heads=6)
    refused("N1 / N2 <= 64 that divide 128, got 128", prefill, {"head_num": 128}, heads=128, key_heads=1)
    refused("at least 1 token, actual_cmp_seq_kvlen: sequence 1 has 0", prefill, tokens=(9, 0))
    refused("got 2, actual_cmp_seq_kvlen: sequence 0 has 4 tokens in 1 blocks", prefill, tokens=(4, 9))
    refused("at most 14000 tokens", prefill, lengths=(1,), tokens=(14001,), dims=(16, 16))
    refused("select_block_size as a char", prefill, {"select_block_size": 128}, per_block=8)
    wide = compress_prefill(rng, nsa.FLOAT16, masks=True)
    wide["atten_mask"] = np.pad(wide["atten_mask"], ((0, 0), (0, 1)))
    error = str(nsa.raised(lambda: nsa.run(session(prefill, wide), wide)))
    assert "atten_mask with as many columns as the longest sequence, 13, got 14" in error, error

    refused("D <= 192, got 256", decode, dims=(256, 128))
    refused("Dv <= 128, got 144", decode, dims=(192, 144))
    refused("N1 / N2 <= 128 that divide 128, got 3", decode, {"head_num": 6}, heads=6)
    refused("at least 1 token, actual_cmp_seq_kvlen: sequence 1 has 0", decode, lengths=(7, 0))
    refused("got 3, actual_cmp_seq_kvlen: sequence 0 has 7 tokens in 2 blocks", decode, {"select_block_count": 3})

    prefill, decode = "NsaSelectedAttention", "NsaSelectedAttentionInfer"
    refused("D = 192, got 128", prefill, dims=(128, 128))
    refused("Dv = 128, got 192", prefill, dims=(192, 192))
    refused("N1 / N2 <= 32, got 33", prefill, {"head_num": 33}, heads=33, key_heads=1)
    refused("N1 <= 128, got 130", prefill, {"head_num": 130}, heads=130)
    refused("select_block_count <= 32, got 33", prefill, {"select_block_count": 33}, count=33)
    refused("whole blocks of 64 tokens, actual_seq_kvlen: sequence 1 has 190", prefill, keys=(128, 190))
    refused("got 2, actual_seq_kvlen: sequence 0 has 64 tokens in 1 blocks", prefill, keys=(64, 128))
    refused("sequences of 1 to 131072 tokens, actual_seq_qlen: sequence 0 has 0", prefill, lengths=(0, 4))
    refused("0 < scale_value <= 1 with causal, got 2", prefill, {"scale_value": 2.0})
    without = select_prefill(rng, nsa.FLOAT16)
    without["topk_indices"][3, 1, 0] = -1
    error = str(nsa.raised(lambda: nsa.run(session(prefill, without), without)))
    assert "topk_indices[3, 1, 0] is -1" in error, error

    refused("N1 / N2 <= 16, got 17", decode, {"head_num": 17}, heads=17)
    refused("Dv = 128, got 64", decode, dims=(192, 64))
    refused("at least 1 token, actual_seq_kvlen: sequence 0 has 0", decode, lengths=(0, 192))
    refused("2 x 64 and 100 tokens", decode, lengths=(64, 100))
    for row, words in (([-1, 0], "topk_indices[1, 0, 1] is 0"), ([1, 1], "blocks that differ")):
        wrong = select_decode(rng, nsa.FLOAT16)
        wrong["topk_indices"][1, 0] = row
        error = str(nsa.raised(lambda wrong=wrong: nsa.run(session(decode, wrong), wrong)))
        assert words in error, error
    several = select_decode(rng, nsa.FLOAT16, key_heads=2)
    made = session(decode, several, [(CHECK, "0")], key_value_head_num=2)
    error = str(nsa.raised(lambda: nsa.run(made, several)))
    assert "N2 = 2 needs the check of indices on the device" in error, error
    assert not any(map(simulator.calls, VENDOR.values()))


def _windows(stride):
    return {"compress_block_size": stride, "compress_stride": stride, "select_block_size": stride}


# --------------------------------------------------------------------------------------------------
# Indices on the device


def bad_indices_on_the_device():
    """Selected blocks that lie on the device are fetched and checked; a bad one is an error before any call."""
    rng, simulator = np.random.default_rng(3), nsa.Simulator()
    for op_type, at, bad, words in (
        ("NsaSelectedAttention", (13, 1, 0), 3, "topk_indices[13, 1, 0] must be in [-1, 3)"),
        ("NsaSelectedAttentionInfer", (1, 0, 1), 2, "topk_indices[1, 0, 1] must be in [-1, 2)"),
    ):
        feeds = MAKERS[op_type](rng, nsa.FLOAT16)
        made = session(op_type, feeds)
        check(op_type, made, feeds)
        feeds["topk_indices"][at] = bad
        error = str(nsa.raised(lambda made=made, feeds=feeds: nsa.run(made, feeds)))
        assert words in error and "blocks of select_block_size tokens in its sequence" in error, error
        assert simulator.calls(VENDOR[op_type]) == 1


def unchecked_indices():
    """With the entry, nothing is fetched from the device; a bad block is then the device's fault."""
    rng, simulator = np.random.default_rng(4), nsa.Simulator()
    for op_type in ("NsaSelectedAttention", "NsaSelectedAttentionInfer"):
        feeds = MAKERS[op_type](rng, nsa.FLOAT16)
        if "block_table" in feeds:  # as many sequences as pages would hide which is which
            feeds["block_table"] = np.pad(feeds["block_table"], [(0, 0), (0, 1)])
        checked, unchecked = session(op_type, feeds), session(op_type, feeds, [(CHECK, "0")])
        waits = [
            waits_of(simulator, lambda made=made, feeds=feeds: nsa.run(made, feeds)) for made in (checked, unchecked)
        ]
        assert waits[0] == waits[1] + 1, waits
        check(op_type, unchecked, feeds)
        feeds["topk_indices"][0, 0, 0] = 10**6
        error = str(nsa.raised(lambda made=unchecked, feeds=feeds: nsa.run(made, feeds)))
        assert "Synchronize" in error, error
        table = feeds.get("block_table")
        if table is not None:
            table[2, 1] = -1  # whatever the blocks are: all pages of a sequence must be right
            error = str(nsa.raised(lambda made=unchecked, feeds=feeds: nsa.run(made, feeds)))
            assert "block_table[2, 1] must be in [0, 10), got -1" in error, error
    error = nsa.raised(lambda: session(op_type, feeds, [(CHECK, "no")]))
    assert f"{CHECK} must be 1 or 0, got 'no'" in str(error), error


def waits_of(simulator, body):
    return sum(name == "aclrtSynchronizeStream" for name in simulator.names(body))


def a_layer_stays_on_the_device():
    """Compress attention chooses the blocks that select attention reads: they never leave the device unchecked."""
    rng = np.random.default_rng(5)
    first = compress_prefill(rng, nsa.FLOAT16, lengths=(128, 192), tokens=(8, 12))
    second = select_prefill(rng, nsa.FLOAT16, lengths=(128, 192), keys=(128, 192))
    nodes = [
        helper.make_node(
            "NsaCompressAttention",
            ["query", "ckey", "cvalue", "qlen", "clen", "slen"],
            ["compressed", "topk"],
            name="compress",
            domain="nsa_onnx",
            **attributes_of("NsaCompressAttention", {}),
        ),
        helper.make_node(
            "NsaSelectedAttention",
            ["query", "key", "value", "topk", "qlen", "klen"],
            ["selected"],
            name="select",
            domain="nsa_onnx",
            **attributes_of("NsaSelectedAttention", {}),
        ),
    ]
    feeds = {
        "query": first["query"],
        "ckey": first["key"],
        "cvalue": first["value"],
        "qlen": first["actual_seq_qlen"],
        "clen": first["actual_cmp_seq_kvlen"],
        "slen": first["actual_sel_seq_kvlen"],
        "key": second["key"],
        "value": second["value"],
        "klen": second["actual_seq_kvlen"],
    }
    infos = [helper.make_tensor_value_info(name, _element(feeds[name]), [None] * feeds[name].ndim) for name in feeds]
    half, index = TensorProto.FLOAT16, TensorProto.INT32
    outputs = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in (("compressed", half), ("topk", index), ("selected", half))
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nsa_onnx", 1)]
    graph = helper.make_graph(nodes, "layer", infos, outputs)
    made = nsa.session(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    _, topk, selected = nsa.run(made, feeds)
    second |= {"query": first["query"], "topk_indices": topk}
    (alone,) = check("NsaSelectedAttention", session("NsaSelectedAttention", second), second)
    assert np.array_equal(alone, selected)


# --------------------------------------------------------------------------------------------------
# Failures


def failures():
    """Failing calls, tasks and allocations end the run with an error that names the node; the next run is right."""
    rng, simulator = np.random.default_rng(6), nsa.Simulator()
    for op_type, maker in MAKERS.items():
        feeds = maker(rng, nsa.FLOAT16)
        made = session(op_type, feeds)
        for name in (f"{VENDOR[op_type]}GetWorkspaceSize", VENDOR[op_type]):
            simulator.fail_call(name, 1)
            error = str(nsa.raised(lambda made=made, feeds=feeds: nsa.run(made, feeds)))
            assert f"{name} failed with" in error and f"{op_type} 'nsa'" in error, error
            check(op_type, made, feeds)
        failed = 0
        for nth in range(1, 12):
            simulator.fail_task(nth)
            failed += nsa.attempt(lambda made=made, feeds=feeds: nsa.run(made, feeds)) is not None
            simulator.clear()
        assert failed >= 1, op_type
        check(op_type, made, feeds)
        failed = 0
        for nth in range(1, 6):
            made = None  # what the last session's nodes had is freed
            made = session(op_type, feeds)
            simulator.fail_allocation(nth)
            failed += nsa.attempt(lambda made=made, feeds=feeds: nsa.run(made, feeds)) is not None
            simulator.clear()
            check(op_type, made, feeds)
        assert failed >= 1, op_type


def no_other_backend():
    """A session that asks for our kernels is told that there are none."""
    rng = np.random.default_rng(7)
    for op_type, maker in MAKERS.items():
        feeds = maker(rng, nsa.FLOAT16)
        made = model(op_type, feeds)
        error = str(
            nsa.raised(
                lambda made=made: nsa_onnx.create_session(made, device="ascend", ascend_backend="ascend_kernels")
            )
        )
        assert "ascend_kernels: does not have this operator" in error and f"{op_type} 'nsa'" in error, error


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    gc.collect()  # sessions are released before the simulator counts what is left
