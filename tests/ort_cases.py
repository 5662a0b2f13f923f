"""Tests of the library inside onnxruntime, as plain functions that run with any onnxruntime.

tests/test_ort.py calls each of them in its own process, and again in a process with the oldest supported onnxruntime:
``python ort_cases.py LIBRARY`` prints a JSON object, case -> "" or a traceback. Needs numpy, ml_dtypes, onnx and
onnxruntime; of nsa_onnx, the library and the contracts.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime as ort
import oracle
from onnx import TensorProto, helper, numpy_helper

# The package is not installed beside the old onnxruntime.
sys.path.append(str(Path(__file__).parents[1]))
from nsa_onnx.operators.nsa_compress import contract as prefill
from nsa_onnx.operators.nsa_compress_infer import contract as decode

ONNX_TYPES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
DTYPES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


# --------------------------------------------------------------------------------------------------
# Models, sessions, runs


def compress_node(inputs=("x", "w", "seq"), output="y", **attributes):
    defaults = {"compress_block_size": 32, "compress_stride": 16}
    defaults.update(attributes)
    known = {name: value for name, value in defaults.items() if value is not None}
    return helper.make_node("NsaCompress", inputs, [output], name=f"node_{output}", domain="nsa_onnx", **known)


def infer_node(inputs=("x", "w", "slots", "cache", "seq"), output="y", **attributes):
    defaults = {"compress_block_size": 32, "compress_stride": 16, "page_block_size": 64}
    defaults.update(attributes)
    return helper.make_node("NsaCompressInfer", inputs, [output], name=f"node_{output}", domain="nsa_onnx", **defaults)


def model(nodes, inputs, outputs, initializers=()):
    """`inputs` and `outputs`: name -> (element type, shape or None)."""
    infos = [[helper.make_tensor_value_info(n, t, s) for n, (t, s) in each.items()] for each in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos, initializer=list(initializers))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nsa_onnx", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def compress_inputs(dtype="float16"):
    kind = ONNX_TYPES[dtype]
    return {"x": (kind, ["T", "N", "D"]), "w": (kind, ["L", "N"]), "seq": (TensorProto.INT64, ["B"])}


def infer_inputs(dtype="float16", table=False):
    kind = ONNX_TYPES[dtype]
    inputs = {
        "x": (kind, ["pages", "page", "N", "D"]),
        "w": (kind, ["L", "N"]),
        "slots": (TensorProto.INT32, ["B"]),
        "cache": (kind, ["S", "N", "D"]),
        "seq": (TensorProto.INT64, ["B"]),
    }
    return {**inputs, "table": (TensorProto.INT32, ["B", "M"])} if table else inputs


def options(library, threads=2):
    result = ort.SessionOptions()
    result.intra_op_num_threads = threads
    result.log_severity_level = 4  # failures are tested for here: not in the log as well
    result.register_custom_ops_library(library)
    return result


def session(library, graph, threads=2):
    return ort.InferenceSession(graph, options(library, threads), providers=["CPUExecutionProvider"])


def ort_value(array):
    if array.dtype.name == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def run(running, feeds):
    """The outputs; bfloat16 in and out."""
    values = {name: ort_value(array) for name, array in feeds.items()}
    outputs = running.run_with_ort_values([o.name for o in running.get_outputs()], values)
    return [to_numpy(value) for value in outputs]


def to_numpy(value):
    if "bfloat16" not in value.data_type():
        return value.numpy()
    # numpy() refuses bfloat16; a view of the same bytes as float16 does not.
    count = int(np.prod(value.shape()))
    raw = (ctypes.c_uint16 * count).from_address(value.data_ptr()) if count else ()
    return np.array(raw, np.uint16).reshape(value.shape()).view(ml_dtypes.bfloat16)


def error_of(call, *arguments):
    try:
        call(*arguments)
    except Exception as error:
        return str(error)
    raise AssertionError("no error")


def make_compress(dtype, tokens=200, seq=(70, 75, 200), heads=3, dim=32, block=32):
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, heads, dim)).astype(dtype)
    w = rng.standard_normal((block, heads)).astype(dtype)
    return {"x": x, "w": w, "seq": np.array(seq, np.int64)}


def make_infer(dtype, table=False, batch=4):
    """Sequences 0 and 2 write; 1 and 3 do not, and their slots and table entries are garbage."""
    rng = np.random.default_rng(7)
    feeds = {
        "x": rng.standard_normal((3 * batch, 64, 3, 32)).astype(dtype),
        "w": rng.standard_normal((32, 3)).astype(dtype),
        "slots": np.array([5, -1, 0, 5][:batch], np.int32),
        "cache": rng.standard_normal((6, 3, 32)).astype(dtype),
        "seq": np.array([80, 81, 192, 0][:batch], np.int64),
    }
    if table:
        feeds["table"] = np.array([[9, 4, -7], [-1, 99, -1], [-1, 1, 11], [-1, -1, -1]][:batch], np.int32)
    return feeds


def infer_expected(feeds):
    return oracle.infer_exact(
        feeds["x"], feeds["w"], feeds["slots"], 32, 16, 64, feeds.get("table"), feeds["seq"], feeds["cache"]
    )


# --------------------------------------------------------------------------------------------------
# NsaCompress


@case
def compress_gives_the_contracts_bits(library):
    for dtype in DTYPES:
        graph = model([compress_node()], compress_inputs(dtype.name), {"y": (ONNX_TYPES[dtype.name], None)})
        running = session(library, graph)
        for seq, tokens in (((70, 75, 200), 200), ((32,), 32), ((31, 40), 40), ((100, 100), 100)):
            feeds = make_compress(dtype, tokens, seq)
            (y,) = run(running, feeds)
            assert oracle.same_bits(y, oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, seq)), (dtype, seq)


@case
def compress_without_a_window_gives_no_row(library):
    running = session(library, model([compress_node()], compress_inputs(), {"y": (TensorProto.FLOAT16, None)}))
    (y,) = run(running, make_compress(np.float16, 5, (5,)))
    assert y.shape == (0, 3, 32) and y.dtype == np.float16


@case
def compress_runs_on_any_number_of_session_threads_with_the_same_bits(library):
    graph = model([compress_node()], compress_inputs(), {"y": (TensorProto.FLOAT16, None)})
    feeds = make_compress(np.float16, 6000, (2999, 6000), heads=4, dim=64)  # 3 MB: several parts
    outputs = [run(session(library, graph, threads), feeds)[0] for threads in (1, 2, 5)]
    for y in outputs:
        assert np.array_equal(y.view(np.uint16), outputs[0].view(np.uint16))
    assert oracle.same_bits(outputs[0], oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, (2999, 6000)))


def threads_seen_during(work):
    """Ids of the threads that live while `work` runs, but for the one that looks."""
    seen, done = set(), threading.Event()

    def look():
        while not done.is_set():
            seen.update(map(int, os.listdir("/proc/self/task")))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        work()
    finally:
        done.set()
        looking.join()
    return seen - {looking.native_id}


@case
def compress_runs_on_the_sessions_threads_and_no_others(library):
    graph = model([compress_node()], compress_inputs(), {"y": (TensorProto.FLOAT16, None)})
    feeds = make_compress(np.float16, 60000, (60000,), heads=4, dim=64)  # 31 MB: milliseconds on two threads
    running = session(library, graph, 2)
    run(running, feeds)
    before = set(map(int, os.listdir("/proc/self/task")))
    assert threads_seen_during(lambda: [run(running, feeds) for _ in range(10)]) <= before


@case
def lengths_may_be_an_initializer(library):
    feeds = make_compress(np.float16)
    inputs = {name: kind for name, kind in compress_inputs().items() if name != "seq"}
    seq = numpy_helper.from_array(feeds.pop("seq"), "seq")
    running = session(library, model([compress_node()], inputs, {"y": (TensorProto.FLOAT16, None)}, [seq]))
    (y,) = run(running, feeds)
    assert oracle.same_bits(y, oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, (70, 75, 200)))


@case
def initializers_may_lie_at_odd_offsets_of_an_external_file(library):
    """onnxruntime maps the file: without care, the kernel would read int64 at an odd address."""
    feeds = make_compress(np.float16)
    data, initializers = bytearray(), []
    for name, array in feeds.items():
        data += b"#" * (1 + len(data) % 2)  # the next offset is odd
        info = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
        info.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        for key, value in (("location", "data.bin"), ("offset", len(data)), ("length", array.nbytes)):
            info.external_data.add(key=key, value=str(value))
        initializers.append(info)
        data += array.tobytes()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data.bin").write_bytes(data)
        path = Path(folder, "model.onnx")
        path.write_bytes(model([compress_node()], {}, {"y": (TensorProto.FLOAT16, None)}, initializers))
        chosen = options(library)
        chosen.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would fold a constant node
        running = ort.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"])
        (y,) = run(running, {})
    assert oracle.same_bits(y, oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, feeds["seq"]))


@case
def an_output_bound_to_an_odd_address_is_refused(library):
    running = session(library, model([compress_node()], compress_inputs(), {"y": (TensorProto.FLOAT16, None)}))
    binding = running.io_binding()
    for name, array in make_compress(np.float16).items():
        binding.bind_ortvalue_input(name, ort_value(array))
    rows, memory = 9, np.zeros(4096, np.uint8)
    binding.bind_output("y", "cpu", 0, np.float16, (rows, 3, 32), memory.ctypes.data + 1)
    message = error_of(running.run_with_iobinding, binding)
    assert "the output must be bound to an even address" in message and not memory.any()


@case
def two_nodes_with_different_lengths_do_not_share_a_dim(library):
    """onnxruntime gives tensors with dims of one name one buffer: the same name would be a wrong claim."""
    nodes = [compress_node(), compress_node(("x", "w", "seq2"), "y2")]
    nodes += [helper.make_node("Cast", [y], [f"{y}_f"], to=TensorProto.FLOAT) for y in ("y", "y2")]
    nodes += [helper.make_node("Exp", [f"{y}_f"], [f"{y}_e"]) for y in ("y", "y2")]
    inputs = {**compress_inputs(), "seq2": (TensorProto.INT64, ["B2"])}
    outputs = {"y_e": (TensorProto.FLOAT, None), "y2_e": (TensorProto.FLOAT, None)}
    running = session(library, model(nodes, inputs, outputs))
    rows = [output.shape[0] for output in running.get_outputs()]
    assert len(set(rows)) == 2 and all(isinstance(row, str) for row in rows), rows
    assert [output.shape[1:] for output in running.get_outputs()] == [["N", "D"]] * 2
    feeds = make_compress(np.float16)
    for seq in ((70, 75, 200), (200,), (40, 80, 120, 160, 200)):
        results = run(running, {**feeds, "seq": np.array(seq), "seq2": np.array([200])})
        for lengths, result in zip((seq, (200,)), results):  # noqa: B905
            y = oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, lengths)
            np.testing.assert_allclose(result, np.exp(y.astype(np.float32)), rtol=1e-5)


@case
def bad_lengths_and_shapes_are_refused_in_the_contracts_words(library):
    running = session(library, model([compress_node()], compress_inputs(), {"y": (TensorProto.FLOAT16, None)}))
    good = make_compress(np.float16)
    half = np.float16
    bad = [
        {"seq": np.array([70, 60, 200])},
        {"seq": np.array([0, 200])},
        {"seq": np.array([199])},
        {"seq": np.array([200, 201])},
        {"seq": np.array([-(2**63), 2**63 - 1])},
        {"seq": np.array([], np.int64)},
        {"x": good["x"][:, :, :20].copy()},
        {"x": np.zeros((200, 3, 272), half)},
        {"x": np.zeros((200, 0, 32), half), "w": np.zeros((32, 0), half)},
        {"x": np.zeros((200, 129, 16), half), "w": np.zeros((32, 129), half)},
        {"w": good["w"][:16].copy()},
        {"w": np.zeros((32, 4), half)},
    ]
    for change in bad:
        feeds = {**good, **change}
        violations = [
            *prefill.shape_violations(feeds["x"].shape, feeds["w"].shape, 32, 16),
            *prefill.prefix_sum_violations(feeds["seq"].tolist(), len(feeds["x"])),
        ]
        message = error_of(run, running, feeds)
        assert violations[0].message in message and "INVALID_ARGUMENT" in message, (message, violations[0].message)
    untyped = {name: (kind, None) for name, (kind, _) in compress_inputs().items()}
    running = session(library, model([compress_node()], untyped, {"y": (TensorProto.FLOAT16, None)}))
    message = error_of(run, running, {**good, "seq": good["seq"][None]})
    assert "actual_seq_len must have rank 1 [B], got rank 2" in message
    for name, words in (("x", "input must have rank 3 [T, N, D], got rank 4"), ("w", "weight must have rank 2")):
        assert words in error_of(run, running, {**good, name: good[name][None]})


@case
def bad_attributes_are_refused_when_the_model_is_loaded(library):
    bad = [
        ({"compress_block_size": 33}, "compress_block_size must be a multiple of 16, got 33"),
        ({"compress_block_size": 144}, "compress_block_size must be in [16, 128], got 144"),
        ({"compress_stride": 0}, "compress_stride must be in [16, compress_block_size = 32], got 0"),
        ({"compress_stride": 48}, "compress_stride must be in [16, compress_block_size = 32], got 48"),
        ({"compress_stride": None}, "compress_stride must be an int, got none"),
        ({"compress_block_size": 32.0}, "compress_block_size must be an int, got none"),
    ]
    for attributes, words in bad:
        graph = model([compress_node(**attributes)], compress_inputs(), {"y": (TensorProto.FLOAT16, None)})
        assert f"NsaCompress: {words}" in error_of(session, library, graph)
    for attributes, words in (
        ({"compress_block_size": 128}, "compress_block_size must be in [16, 127], got 128"),
        ({"page_block_size": 32}, "page_block_size must be 64 or 128, got 32"),
    ):
        graph = model([infer_node(**attributes)], infer_inputs(), {"y": (TensorProto.FLOAT16, None)})
        assert f"NsaCompressInfer: {words}" in error_of(session, library, graph)


@case
def wrong_and_mixed_types_are_refused_when_the_model_is_loaded(library):
    half, brain, single = TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT
    for x, w in ((half, brain), (brain, half), (single, single)):
        inputs = {**compress_inputs(), "x": (x, ["T", "N", "D"]), "w": (w, ["L", "N"])}
        assert "NsaCompress" in error_of(session, library, model([compress_node()], inputs, {"y": (x, None)}))
    for wrong in ({"cache": (brain, ["S", "N", "D"])}, {"slots": (TensorProto.INT64, ["B"])}):
        graph = model([infer_node()], {**infer_inputs(), **wrong}, {"y": (half, None)})
        assert "NsaCompressInfer" in error_of(session, library, graph)


# --------------------------------------------------------------------------------------------------
# NsaCompressInfer


@case
def infer_gives_the_contracts_bits_in_all_three_spellings_of_the_table(library):
    for dtype in DTYPES:
        for table, inputs in (
            (False, ("x", "w", "slots", "cache", "seq")),
            (False, ("x", "w", "slots", "cache", "seq", "")),
            (True, ("x", "w", "slots", "cache", "seq", "table")),
        ):
            kind = ONNX_TYPES[dtype.name]
            graph = model([infer_node(inputs)], infer_inputs(dtype.name, table), {"y": (kind, None)})
            feeds = make_infer(dtype, table)
            (y,) = run(session(library, graph), feeds)
            assert oracle.same_bits(y, infer_expected(feeds)), (dtype, inputs)
            assert not oracle.same_bits(y, feeds["cache"])


@case
def a_cache_bound_to_both_names_is_updated_in_place(library):
    graph = model([infer_node()], infer_inputs(), {"y": (TensorProto.FLOAT16, None)})
    running = session(library, graph)
    feeds = make_infer(np.float16)
    cache = ort_value(feeds["cache"])
    binding = running.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, cache if name == "cache" else ort_value(array))
    binding.bind_ortvalue_output("y", cache)
    running.run_with_iobinding(binding)
    assert binding.get_outputs()[0].data_ptr() == cache.data_ptr()
    assert oracle.same_bits(cache.numpy(), infer_expected(feeds))


def run_on_guarded_cache(library):
    """Decode on a cache whose memory is read-only but for the two slots that the step writes."""
    slots, slot_bytes = 6, 8 * 256 * 2  # of 4096 bytes: one page each
    memory = mmap.mmap(-1, slots * slot_bytes)
    cache = np.frombuffer(memory, np.float16).reshape(slots, 8, 256)
    feeds = make_infer(np.float16)
    feeds.update(x=np.ones((12, 64, 8, 256), np.float16), w=np.ones((32, 8), np.float16), cache=cache)
    expected = infer_expected(feeds)
    address, page = cache.ctypes.data, mmap.PAGESIZE
    assert slot_bytes % page == 0, "this test needs pages of 4096 bytes or less"
    for slot in set(range(slots)) - {5, 0}:
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + slot * slot_bytes), slot_bytes, mmap.PROT_READ) == 0
    running = session(library, model([infer_node()], infer_inputs(), {"y": (TensorProto.FLOAT16, None)}))
    binding = running.io_binding()
    for name, array in feeds.items():
        if name != "cache":
            binding.bind_ortvalue_input(name, ort_value(array))
    binding.bind_input("cache", "cpu", 0, np.float16, cache.shape, address)
    binding.bind_output("y", "cpu", 0, np.float16, cache.shape, address)
    running.run_with_iobinding(binding)
    assert oracle.same_bits(cache, expected)


@case
def a_bound_run_touches_no_other_slot(library):
    """In a process of its own: a stray write is a segmentation fault there."""
    command = [sys.executable, __file__, library, "guarded"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.returncode, done.stderr)


@case
def a_cache_in_another_buffer_is_copied_and_the_input_kept(library):
    running = session(library, model([infer_node()], infer_inputs(), {"y": (TensorProto.FLOAT16, None)}))
    feeds = make_infer(np.float16)
    cache, out = ort_value(feeds["cache"]), ort_value(np.full_like(feeds["cache"], 9))
    binding = running.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, cache if name == "cache" else ort_value(array))
    binding.bind_ortvalue_output("y", out)
    running.run_with_iobinding(binding)
    assert oracle.same_bits(out.numpy(), infer_expected(feeds))
    assert oracle.same_bits(cache.numpy(), feeds["cache"])


@case
def other_readers_of_the_cache_see_its_old_values(library):
    """An intermediate cache with two readers: the op may not take its buffer over."""
    nodes = [
        helper.make_node("Neg", ["cache"], ["negated"]),
        helper.make_node("Neg", ["negated"], ["copy"]),
        infer_node(("x", "w", "slots", "copy", "seq")),
        helper.make_node("Cast", ["copy"], ["old"], to=TensorProto.FLOAT),
    ]
    outputs = {"y": (TensorProto.FLOAT16, None), "old": (TensorProto.FLOAT, None)}
    feeds = make_infer(np.float16)
    y, old = run(session(library, model(nodes, infer_inputs(), outputs)), feeds)
    assert oracle.same_bits(y, infer_expected(feeds))
    assert np.array_equal(old, feeds["cache"].astype(np.float32))


@case
def two_steps_in_one_graph_chain_through_the_cache(library):
    nodes = [infer_node(), infer_node(("x", "w", "slots2", "y", "seq"), "z")]
    inputs = {**infer_inputs(), "slots2": (TensorProto.INT32, ["B"])}
    feeds = make_infer(np.float16)
    slots2 = np.array([1, -1, 2, -1], np.int32)
    graph = model(nodes, inputs, {"z": (TensorProto.FLOAT16, None)})
    (z,) = run(session(library, graph), {**feeds, "slots2": slots2})
    first = infer_expected(feeds)
    assert oracle.same_bits(z, infer_expected({**feeds, "slots": slots2, "cache": first}))


@case
def a_bad_index_is_refused_in_the_contracts_words_and_the_cache_unchanged(library):
    running = session(
        library,
        model(
            [infer_node(("x", "w", "slots", "cache", "seq", "table"))],
            infer_inputs(table=True),
            {"y": (TensorProto.FLOAT16, None)},
        ),
    )
    good = make_infer(np.float16, table=True)
    bad = [
        {"slots": np.array([5, 0, 6, 0], np.int32)},
        {"slots": np.array([-1, 0, 1, 0], np.int32)},
        {"slots": np.array([3, 0, 3, 0], np.int32)},
        {"seq": np.array([80, 193, 192, 0])},
        {"seq": np.array([80, 81, 192, -1])},
        {"seq": np.array([80, 81, 2**63 - 1, 0])},
        {"table": np.array([[9, -1, 0], [0, 0, 0], [0, 1, 11], [0, 0, 0]], np.int32)},
        {"table": np.array([[9, 4, 0], [0, 0, 0], [0, 1, 12], [0, 0, 0]], np.int32)},
    ]
    for change in bad:
        feeds = {**good, **change}
        lists = [feeds[name].tolist() for name in ("slots", "table", "seq")]
        (first, *_) = decode.index_violations(*lists, 32, 16, 64, 12, 3, 6)
        cache = ort_value(feeds["cache"])
        binding = running.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, cache if name == "cache" else ort_value(array))
        binding.bind_ortvalue_output("y", cache)
        message = error_of(running.run_with_iobinding, binding)
        assert first.message in message, (message, first.message)
        assert oracle.same_bits(cache.numpy(), good["cache"])


@case
def bad_shapes_of_infer_are_refused_in_the_contracts_words(library):
    graph = model([infer_node()], {n: (k, None) for n, (k, _) in infer_inputs().items()}, {"y": (10, None)})
    running = session(library, graph)
    good = make_infer(np.float16)
    bad = [
        {"cache": good["cache"][:, :2].copy()},
        {"cache": good["cache"][:, :, :16].copy()},
        {"cache": good["cache"][0]},
        {"slots": good["slots"][None]},
        {"slots": good["slots"][:3]},
        {"x": good["x"][:11].copy()},
        {"x": good["x"][:, :32].copy()},
        {"x": good["x"][0]},
        {"w": good["w"][:16].copy()},
    ]
    for change in bad:
        feeds = {**good, **change}
        shapes = [feeds[name].shape for name in ("x", "w", "slots")]
        (first, *_) = decode.shape_violations(*shapes, 32, 16, 64, None, len(feeds["seq"]), feeds["cache"].shape)
        message = error_of(run, running, feeds)
        assert first.message in message, (message, first.message)


@case
def an_empty_batch_returns_the_cache(library):
    running = session(library, model([infer_node()], infer_inputs(), {"y": (TensorProto.FLOAT16, None)}))
    feeds = make_infer(np.float16)
    feeds.update(slots=np.zeros(0, np.int32), seq=np.zeros(0, np.int64))
    (y,) = run(running, feeds)
    assert oracle.same_bits(y, feeds["cache"])


# --------------------------------------------------------------------------------------------------
# Sessions


@case
def options_serve_many_sessions_and_sessions_outlive_their_options(library):
    graph = model([compress_node()], compress_inputs(), {"y": (TensorProto.FLOAT16, None)})
    feeds = make_compress(np.float16)
    expected = oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, (70, 75, 200))
    shared = options(library)
    running = [ort.InferenceSession(graph, shared, providers=["CPUExecutionProvider"]) for _ in range(3)]
    del shared
    for _ in range(3):  # options come and go, the library stays
        running.append(session(library, graph))
        with contextlib.suppress(IndexError):
            del running[0]
        for each in running:
            assert oracle.same_bits(run(each, feeds)[0], expected)


@case
def one_session_serves_many_threads(library):
    running = session(library, model([compress_node()], compress_inputs(), {"y": (TensorProto.FLOAT16, None)}))
    feeds = make_compress(np.float16, 3000, (3000,), heads=4, dim=64)
    expected = oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, (3000,))
    failures = []

    def work():
        for _ in range(5):
            if not oracle.same_bits(run(running, feeds)[0], expected):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@case
def the_same_library_twice_on_one_options_object_is_as_good_as_once(library):
    graph = model([compress_node()], compress_inputs(), {"y": (TensorProto.FLOAT16, None)})
    twice = options(library)
    twice.register_custom_ops_library(library)
    for _ in range(2):  # the options are good for another session, too
        ort.InferenceSession(graph, twice, providers=["CPUExecutionProvider"])
        twice.register_custom_ops_library(library)


def main():
    # onnxruntime's Python layer prints, beside the exception, that it tries the same provider again.
    library, report = sys.argv[1], {}
    if sys.argv[2:] == ["guarded"]:
        return run_on_guarded_cache(library)
    with contextlib.redirect_stdout(sys.stderr):
        for name, function in CASES.items():
            try:
                function(library)
                report[name] = ""
            except Exception:
                report[name] = traceback.format_exc()
    print(json.dumps({"version": ort.__version__, "cases": report}))


if __name__ == "__main__":
    import compress_attention_ort_cases  # noqa: F401
    import ort_cases  # this file, as the modules with further cases know it
    import selected_ort_cases  # noqa: F401

    ort_cases.main()
