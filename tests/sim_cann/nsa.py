"""Our operators on the real onnxruntime-cann and the simulated CANN: ``python nsa.py <case>``.

Runs in the environment of onnxruntime-cann, with the simulator's libraries on LD_LIBRARY_PATH. tests/test_cann.py
starts it once per case, and reads what the simulator reports as not released.
"""

import ctypes
import gc
import json
import os
import re
import sys
import threading
import warnings
from pathlib import Path

import ml_dtypes
import nsa_models as models
import numpy as np
import onnx
import onnxruntime as ort
import oracle
from onnx import TensorProto, helper

import nsa_onnx
from nsa_onnx.operators import OPERATORS

FLOAT16, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
DTYPES = (FLOAT16, BFLOAT16)
PROVIDER = "CANNExecutionProvider"
BACKEND = os.environ.get("NSA_ONNX_ASCEND_BACKEND", "auto")
OURS = BACKEND == "ascend_kernels"
# What puts the operators on the stream.
PREFILL_CALL = "nsa_ascend_compress" if OURS else "aclnnNsaCompress"
DECODE_CALL = "nsa_ascend_infer" if OURS else "aclnnNsaCompressWithCache"


# --------------------------------------------------------------------------------------------------
# The simulator's controls


class Simulator:
    def __init__(self):
        self.library = ctypes.CDLL("libascendcl.so")
        self.library.nsa_sim_calls.restype = ctypes.c_uint64
        self.library.nsa_sim_live.restype = ctypes.c_int64

    def calls(self, name="*"):
        return self.library.nsa_sim_calls(name.encode())

    def live(self):
        kinds = ("device_memory", "pinned_memory", "streams", "events", "tensors", "int_arrays", "executors")
        return {kind: self.library.nsa_sim_live(kind.encode()) for kind in kinds}

    def fail_call(self, name, nth):
        self.library.nsa_sim_fail_call(name.encode(), ctypes.c_uint64(nth), 0)

    def fail_task(self, nth):
        self.library.nsa_sim_fail_task(ctypes.c_uint64(nth))

    def fail_allocation(self, nth):
        self.library.nsa_sim_fail_allocation(ctypes.c_uint64(nth))

    def clear(self):
        self.library.nsa_sim_clear_failures()

    def delay(self, microseconds):
        self.library.nsa_sim_set_delay_us(ctypes.c_uint64(microseconds))

    def names(self, body):
        """Names of the ACL functions that `body` calls, in their order."""
        path = Path(os.environ["NSA_TEST_FOLDER"]) / "calls.log"
        path.unlink(missing_ok=True)
        self.library.nsa_sim_set_log(str(path).encode())
        body()
        self.library.nsa_sim_set_log(None)
        return [line.split()[2] for line in path.read_text().splitlines() if line.startswith("call")]


# --------------------------------------------------------------------------------------------------
# Values, sessions, comparisons


class DeviceArray:
    """Device memory that onnxruntime's Python can bind; its OrtValue has no bfloat16 and no update there."""

    def __init__(self, array):
        self.shape, self.dtype = array.shape, array.dtype
        self.value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array).view(np.float16), "cann", 0)

    def binding(self, name):
        return name, "cann", 0, models.ELEMENT_TYPES[self.dtype], self.shape, self.value.data_ptr()

    def write(self, array):
        _copy(self.value.data_ptr(), array.ctypes.data, array.nbytes, 1)

    def read(self):
        array = np.empty(self.shape, self.dtype)
        _copy(array.ctypes.data, self.value.data_ptr(), array.nbytes, 2)
        return array


def _copy(to, source, size, kind):
    arguments = ctypes.c_void_p(to), ctypes.c_size_t(size), ctypes.c_void_p(source), ctypes.c_size_t(size)
    assert ctypes.CDLL("libascendcl.so").aclrtMemcpy(*arguments, kind) == 0


def on_host(array):
    if array.dtype == BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def session(model, **arguments):
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.log_severity_level = 4
    return nsa_onnx.create_session(model, device="ascend", options=options, **arguments)


def run(made, feeds):
    """All outputs on the host; bfloat16 in and out."""
    values = {name: on_host(array) for name, array in feeds.items()}
    quiet = ort.RunOptions()
    quiet.log_severity_level = 4
    return [models._array(result) for result in made.run_with_ort_values(None, values, quiet)]


def numbers(rng, shape, dtype):
    """Positive, so that no sum cancels and 1 ulp is a fair bound."""
    return rng.random(shape, np.float32).astype(dtype)


def close(got, exact, float64):
    """Within 1 ulp of the CPU's bits, and rightly rounded but for the float32 sum's own error."""
    if got.shape != exact.shape or oracle.ulp_distance(got, exact) > 1:
        return False
    bits = 11 if got.dtype == FLOAT16 else 8
    error = np.abs(got.astype(np.float64) - float64)
    return bool(np.all(error <= np.abs(float64) * 2.0**-bits * (1 + 2.0**-8) + 2.0**-25))


# --------------------------------------------------------------------------------------------------
# Prefill

SEGMENTS = ([40, 100], [32], [31], [100, 100, 101, 180], [16, 31, 47], [300], [128, 129])


def prefill_feeds(rng, dtype, seq, block=32, heads=4, dim=16):
    x, w = numbers(rng, (seq[-1], heads, dim), dtype), numbers(rng, (block, heads), dtype)
    return {"x": x, "w": w, "seq": np.array(seq, np.int64)}


def check_prefill(made, feeds, stride=16):
    x, w, seq = feeds["x"], feeds["w"], feeds["seq"].tolist()
    (got,) = run(made, feeds)
    exact = oracle.compress_exact(x, w, len(w), stride, seq)
    assert close(got, exact, oracle.compress_float64(x, w, len(w), stride, seq)), (x.shape, len(w), stride, seq)


def prefill():
    """Ragged, empty and too short segments, with lengths as input and as initializer."""
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        made = session(models.compress(dtype=dtype))
        for seq in SEGMENTS:
            check_prefill(made, prefill_feeds(rng, dtype, seq))
        feeds = prefill_feeds(rng, dtype, [40, 100])
        (got,) = run(session(models.compress([40, 100], dtype=dtype)), {"x": feeds["x"], "w": feeds["w"]})
        assert oracle.ulp_distance(got, oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, [40, 100])) <= 1


def prefill_sizes():
    """The contract's corners, all of which the vendor's operator takes."""
    rng = np.random.default_rng(1)
    for dtype in DTYPES:
        for block, stride, heads, dim in ((16, 16, 1, 16), (128, 16, 3, 32), (128, 128, 128, 16), (48, 32, 2, 256)):
            model = models.compress(
                dtype=dtype, x=("T", heads, dim), w=(block, heads), y=("R", heads, dim),
                compress_block_size=block, compress_stride=stride,
            )  # fmt: skip
            check_prefill(session(model), prefill_feeds(rng, dtype, [130, 300], block, heads, dim), stride)


def no_window_no_call():
    """T' = 0 walks off an array in the vendor's code: nothing is called."""
    rng, simulator = np.random.default_rng(2), Simulator()
    made = session(models.compress())
    check_prefill(made, prefill_feeds(rng, FLOAT16, [31, 50]))
    assert simulator.calls("aclnnNsaCompressGetWorkspaceSize") == simulator.calls(PREFILL_CALL) == 0
    check_prefill(made, prefill_feeds(rng, FLOAT16, [32, 50]))
    assert simulator.calls(PREFILL_CALL) == 1


def nothing_to_compute_no_call():
    """D = 0 and steps that write nothing are legal, and empty arrays are what the vendor's operators refuse."""
    rng, simulator = np.random.default_rng(2), Simulator()
    empty = models.compress(x=("T", 4, 0), w=(32, 4), y=("R", 4, 0))
    check_prefill(session(empty), prefill_feeds(rng, FLOAT16, [40, 100], dim=0))
    made = session(decode_model(dim=0))
    for lengths in LENGTHS:
        check_decode(made, decode_feeds(rng, FLOAT16, lengths, dim=0))
    made = session(decode_model())
    feeds = decode_feeds(rng, FLOAT16, [31, 33])
    check_decode(made, feeds)
    feeds["x"] = feeds["x"][:0]  # no page at all, and no slot
    check_decode(made, feeds | {"cache": feeds["cache"][:0]})
    check_decode(made, feeds)
    first = ("aclnnNsaCompressGetWorkspaceSize", "aclnnNsaCompressWithCacheGetWorkspaceSize")
    assert not any(simulator.calls(name) for name in (PREFILL_CALL, DECODE_CALL, *first))


# --------------------------------------------------------------------------------------------------
# Decode


def decode_feeds(rng, dtype, lengths, block=32, stride=16, page=64, heads=4, dim=16, table=True):
    batch = len(lengths)
    columns = max(1, -(-max(lengths, default=0) // page))
    blocks = batch * columns
    writes = [length >= block and (length - block) % stride == 0 for length in lengths]
    slots = np.full(batch, -1, np.int32)
    slots[writes] = rng.permutation(batch + 2)[: sum(writes)]
    feeds = {
        "x": numbers(rng, (blocks, page, heads, dim), dtype),
        "w": numbers(rng, (block, heads), dtype),
        "slots": slots,
        "cache": numbers(rng, (batch + 2, heads, dim), dtype),
        "seq": np.array(lengths, np.int64),
    }
    if table:
        feeds["table"] = rng.permutation(blocks).reshape(batch, columns).astype(np.int32)
        for b, length in enumerate(lengths):  # garbage where nobody reads
            used = range((length - block) // page, -(-length // page)) if writes[b] else ()
            feeds["table"][b, [c for c in range(columns) if c not in used]] = -7
    return feeds


def decode_model(dtype=FLOAT16, block=32, stride=16, page=64, heads=4, dim=16, table=True):
    return models.infer(
        dtype=dtype, x=("P", page, heads, dim), w=(block, heads), cache=("S", heads, dim),
        table=("B", "M") if table else None,
        compress_block_size=block, compress_stride=stride, page_block_size=page,
    )  # fmt: skip


def decode_results(feeds, stride=16):
    page = feeds["x"].shape[1]
    arguments = [feeds["x"], feeds["w"], feeds["slots"], len(feeds["w"]), stride, page, feeds.get("table")]
    arguments += [feeds["seq"].tolist(), feeds["cache"]]
    return oracle.infer_exact(*arguments), oracle.infer_float64(*arguments)


def check_decode(made, feeds, stride=16):
    before = feeds["cache"].copy()
    (got,) = run(made, feeds)
    assert close(got, *decode_results(feeds, stride)), (feeds["x"].shape, feeds["seq"])
    assert oracle.same_bits(feeds["cache"], before)


LENGTHS = ([32, 33, 96, 0], [64 + 32, 128, 16], [31], [], [160, 160, 160], [112, 80, 64, 48, 1])


def decode():
    rng = np.random.default_rng(3)
    for dtype in DTYPES:
        for table in (True, False):
            made = session(decode_model(dtype, table=table))
            for lengths in LENGTHS:
                check_decode(made, decode_feeds(rng, dtype, lengths, table=table))


def decode_sizes():
    """Pages, blocks and strides that do not divide one another, and the vendor's largest numbers of heads."""
    rng = np.random.default_rng(4)
    sizes = [
        (64, 48, 64, 2, 32),
        (48, 32, 128, 49, 16),
        (16, 16, 64, 52, 16),
        (64, 16, 128, 62, 16),
        (48, 16, 64, 1, 256),
    ]
    for dtype in DTYPES:
        for block, stride, page, heads, dim in sizes:
            lengths = [block, block + stride, block + 3 * stride, block + 7 * stride, block + 1]
            made = session(decode_model(dtype, block, stride, page, heads, dim))
            check_decode(made, decode_feeds(rng, dtype, lengths, block, stride, page, heads, dim), stride)


def large_batches():
    """More sequences than the vendor's operator takes: several calls. Fewer that write: one call."""
    rng, simulator = np.random.default_rng(5), Simulator()
    made = session(decode_model(heads=1))
    for lengths, calls in (([32] * 2047, 1), ([32] * 2048, 1 if OURS else 2), ([33] * 3000 + [48], 1)):
        before = simulator.calls(DECODE_CALL)
        check_decode(made, decode_feeds(rng, FLOAT16, lengths, heads=1))
        assert simulator.calls(DECODE_CALL) - before == calls


def no_vendor_limits():
    """Our kernels take what the vendor's operator refuses: every block, odd and large numbers of heads."""
    rng, simulator = np.random.default_rng(21), Simulator()
    sizes = [(80, 16, 128, 51, 16), (112, 48, 128, 2, 64), (112, 112, 64, 63, 32), (96, 16, 64, 1, 256)]
    for dtype in DTYPES:
        for block, stride, page, heads, dim in sizes:
            lengths = [block, block + stride, block + 3 * stride, block + 1]
            made = session(decode_model(dtype, block, stride, page, heads, dim))
            check_decode(made, decode_feeds(rng, dtype, lengths, block, stride, page, heads, dim), stride)
    assert simulator.calls(DECODE_CALL) == len(DTYPES) * len(sizes)
    assert not any(simulator.calls(f"{name}GetWorkspaceSize") for name in VENDORS)


VENDORS = ("aclnnNsaCompress", "aclnnNsaCompressWithCache")


def uploads_do_not_grow_with_the_table():
    """What a step has on the device beside its tensors is as much for a table of a megabyte as for a small one."""
    rng = np.random.default_rng(22)
    feeds = decode_feeds(rng, FLOAT16, [96, 160, 33])
    decoder = Decoder(session(decode_model()), feeds)
    before = free_memory()
    decoder.step(feeds)
    small = before - free_memory()
    feeds["table"] = np.pad(feeds["table"], ((0, 0), (0, 100_000)), constant_values=-7)
    for _ in range(3):
        decoder.step(feeds)
    assert before - free_memory() == small
    if OURS:
        assert 0 < small <= 64 * 1024, small
    assert close(decoder.cache(), *decode_results(feeds))


def free_memory():
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    assert ctypes.CDLL("libascendcl.so").aclrtGetMemInfo(1, ctypes.byref(free), ctypes.byref(total)) == 0
    return free.value


def launches_are_asynchronous():
    """A launch returns long before the kernel has run, which runs behind what is on its stream already."""
    simulator, events = Simulator(), Path(os.environ["NSA_TEST_FOLDER"]) / "events.log"
    made, feeds = session(models.compress()), prefill_feeds(np.random.default_rng(23), FLOAT16, [40, 100])
    check_prefill(made, feeds)
    simulator.delay(20_000)
    simulator.library.nsa_sim_set_log(str(events).encode())
    check_prefill(made, feeds)
    simulator.library.nsa_sim_set_log(None)
    lines = [line.split() for line in events.read_text().splitlines()]
    order = [(line[0], line[2]) for line in lines]
    launched, ran = order.index(("call", PREFILL_CALL)), order.index(("task", PREFILL_CALL))
    recorded = order.index(("call", "aclrtRecordEvent"))
    assert launched < recorded < ran, order


def device_faults_name_the_kernel():
    """A kernel that runs into memory that is gone fails when somebody waits, with the look-alike's words."""
    made = session(models.compress())
    check_prefill(made, prefill_feeds(np.random.default_rng(24), FLOAT16, [40, 100]))
    kernels, acl = ctypes.CDLL("libnsa_ascend_kernels.so"), ctypes.CDLL("libascendcl.so")
    acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
    stale = [ctypes.c_void_p(4096)] * 4
    assert kernels.nsa_ascend_compress(None, 0, *stale, ctypes.c_int64(1)) == 0
    assert acl.aclrtSynchronizeStream(None) == 507015
    message = acl.aclGetRecentErrMsg().decode()
    assert "nsa_ascend_compress" in message and "not the device's" in message, message


def unknown_number_of_cores():
    """The first launch asks for it; where that fails, so does the run, and the next one asks again."""
    simulator = Simulator()
    made, feeds = session(models.compress()), prefill_feeds(np.random.default_rng(25), FLOAT16, [40, 100])
    simulator.fail_call("aclGetDeviceCapability", 1)
    assert "aclGetDeviceCapability failed with 500001" in str(raised(lambda: run(made, feeds)))
    check_prefill(made, feeds)


def vendor_limits():
    """What the vendor's operator cannot do is refused with a way out, before anything is launched."""
    rng, simulator = np.random.default_rng(6), Simulator()
    for block in (80, 112):
        error = raised(lambda block=block: session(decode_model(block=block)))
        assert isinstance(error, RuntimeError)
        for words in (
            "NsaCompressInfer 'nsa'",
            f"compress_block_size <= 64, got {block}",
            "ascend_kernels",
            'device="cpu"',
        ):
            assert words in str(error), error
    made = session(decode_model(heads=51))
    error = raised(lambda: run(made, decode_feeds(rng, FLOAT16, [32], heads=51)))
    assert "even number of heads above 50, got 51" in str(error), error
    assert simulator.calls("aclnnNsaCompressWithCacheGetWorkspaceSize") == 0


def bad_indices():
    """Found on the host, before anything is launched or written."""
    rng, simulator = np.random.default_rng(7), Simulator()
    good = decode_feeds(rng, FLOAT16, [32, 96])
    decoder = Decoder(session(decode_model()), good)
    decoder.step(good)
    decoder.set_cache(good["cache"])
    launched, copies = (simulator.calls(name) for name in LAUNCHES)
    for name, index, value, words in (
        ("slots", 1, 4, r"slot_mapping\[1\].*got 4"),
        ("slots", 0, -1, r"slot_mapping\[0\].*got -1"),
        ("slots", 0, good["slots"][1], "slot_mapping"),
        ("table", (1, 1), 99, r"block_table\[1, 1\].*got 99"),
        ("seq", 0, 1000, r"actual_seq_len\[0\].*got 1000"),
    ):
        bad = {**good, name: good[name].copy()}
        bad[name][index] = value
        error = raised(lambda bad=bad: decoder.step(bad))
        assert re.search(words, str(error)), error
    assert (launched, copies) == tuple(simulator.calls(name) for name in LAUNCHES)
    assert oracle.same_bits(decoder.cache(), good["cache"])
    decoder.step(good)
    assert close(decoder.cache(), *decode_results(good))


LAUNCHES = (DECODE_CALL if OURS else "aclnnNsaCompressWithCacheGetWorkspaceSize", "aclrtMemcpyAsync")


def attempt(body):
    """What `body` raises, or None."""
    try:
        body()
    except Exception as error:
        return error
    return None


def raised(body):
    error = attempt(body)
    assert error is not None, "nothing was raised"
    return error


# --------------------------------------------------------------------------------------------------
# Memory that stays on the device


class Decoder:
    """A session bound to device memory: the cache is updated in place, step by step."""

    def __init__(self, made, feeds):
        self.made, self.binding = made, made.io_binding()
        self.there = {name: DeviceArray(feeds[name]) for name in ("x", "w", "cache")}
        for name, array in self.there.items():
            self.binding.bind_input(*array.binding(name))
        self.bind_output(self.there["cache"])
        self.quiet = ort.RunOptions()
        self.quiet.log_severity_level = 4

    def bind_output(self, array):
        self.binding.bind_output(*array.binding("y"))

    def step(self, feeds):
        self.hosts = [on_host(feeds[name]) for name in ("slots", "seq", "table")]
        for name, value in zip(("slots", "seq", "table"), self.hosts, strict=True):
            self.binding.bind_ortvalue_input(name, value)
        self.made.run_with_iobinding(self.binding, self.quiet)

    def cache(self):
        return self.there["cache"].read()

    def set_cache(self, array):
        self.there["cache"].write(array)


def in_place():
    """The cache stays where it is; a step writes its slots and touches nothing else."""
    rng, simulator = np.random.default_rng(8), Simulator()
    for dtype in DTYPES:
        feeds = decode_feeds(rng, dtype, [96, 97, 160])
        decoder = Decoder(session(decode_model(dtype)), feeds)
        copies = []
        for step in range(20):
            feeds["table"] = rng.permutation(9).reshape(3, 3).astype(np.int32)
            feeds["slots"] = rng.permutation(5)[:3].astype(np.int32)
            before = simulator.calls("aclrtMemcpyAsync")
            decoder.step(feeds)
            copies.append(simulator.calls("aclrtMemcpyAsync") - before)
            got = decoder.cache()
            assert close(got, *decode_results(feeds)), (dtype, step)
            feeds["cache"], feeds["seq"] = got, (feeds["seq"] + 1) % 176
        assert set(copies) == {0, 1}, copies  # the indices where something is written; never the cache


def input_cache_survives():
    """Bound apart, the old cache stays as it was and the new one is complete."""
    rng = np.random.default_rng(10)
    for lengths in ([96, 160], [97, 161]):
        feeds = decode_feeds(rng, FLOAT16, lengths)
        decoder = Decoder(session(decode_model()), feeds)
        new = DeviceArray(np.zeros_like(feeds["cache"]))
        decoder.bind_output(new)
        decoder.step(feeds)
        assert oracle.same_bits(decoder.cache(), feeds["cache"])
        assert close(new.read(), *decode_results(feeds))


# --------------------------------------------------------------------------------------------------
# Several at once


def concurrent_runs():
    """Four threads, one session of each operator and a second one: every result is its own."""
    simulator = Simulator()
    simulator.delay(300)
    prefills = [session(models.compress()) for _ in range(2)]
    decodes = [session(decode_model()) for _ in range(2)]
    wrong = []

    def work(number):
        rng = np.random.default_rng(number)
        for i in range(15):
            try:
                check_prefill(prefills[i % 2], prefill_feeds(rng, FLOAT16, [40 + i, 100 + 2 * i]))
                check_decode(decodes[number % 2], decode_feeds(rng, FLOAT16, [96, 32 + 16 * (i % 9), 33]))
            except Exception as error:
                wrong.append((number, i, error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def two_nodes_and_standard_ones():
    """Prefill into decode, with the provider's own nodes around and lengths that a node computes."""
    rng = np.random.default_rng(11)
    half, int64 = TensorProto.FLOAT16, TensorProto.INT64
    nodes = [
        helper.make_node("Add", ["seq", "zero"], ["sum"], name="add_lengths"),
        helper.make_node("Add", ["x", "x"], ["double"], name="add"),
        models.node(inputs=("double", "w", "sum"), outputs=("first",)),
        models.node(inputs=("first", "w", "short"), outputs=("y",)),
    ]
    nodes[3].name = "second"
    model = models.model(
        nodes,
        [models.value("x", half, ["T", 4, 16]), models.value("w", half, [32, 4])]
        + [models.value(name, int64, ["B"]) for name in ("seq", "short")],
        [models.value("y", half, ["R", 4, 16])],
        [helper.make_tensor("zero", int64, [1], [0])],
    )
    x, w = numbers(rng, (700, 4, 16), FLOAT16), numbers(rng, (32, 4), FLOAT16) / 16
    feeds = {"x": x, "w": w, "seq": np.array([100, 700]), "short": np.array([41])}
    made = session(model)
    simulator = Simulator()
    simulator.delay(300)
    (got,) = run(made, feeds)
    first = oracle.compress_exact(x + x, w, 32, 16, [100, 700])
    assert len(first) == 41
    assert (
        oracle.ulp_distance(got, oracle.compress_exact(first, w, 32, 16, [41])) <= 2
    )  # the first one's ulp carries on


def nodes_in_a_row():
    """Four decode nodes put their work on one stream before the first of them has begun."""
    rng, simulator = np.random.default_rng(20), Simulator()
    single, count = decode_model(), 4
    nodes, inputs, outputs, feeds, wanted = [], [], [], {}, {}
    for i in range(count):
        ours = decode_feeds(rng, FLOAT16, [96, 160, 33, 48])
        names = {name: f"{name}{i}" for name in (*ours, "y")}
        feeds.update({names[name]: array for name, array in ours.items()})
        wanted[names["y"]] = decode_results(ours)
        for target, source in (
            (nodes, single.graph.node),
            (inputs, single.graph.input),
            (outputs, single.graph.output),
        ):
            target.extend(type(item)() for item in source)
            for copied, item in zip(target[-len(source) :], source, strict=True):
                copied.CopyFrom(item)
                copied.name = names.get(item.name, f"nsa{i}")
        nodes[-1].input[:] = [names[name] for name in nodes[-1].input]
        nodes[-1].output[:] = [names["y"]]
    for value in (*inputs, *outputs):  # sizes of one node need not be another's
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = f"{dim.dim_param}_{value.name}"
    made = session(models.model(nodes, inputs, outputs))
    simulator.delay(2000)
    for _ in range(3):
        for output, got in zip(made.get_outputs(), run(made, feeds), strict=True):
            assert close(got, *wanted[output.name]), output.name


def the_provider_cannot_broadcast_both_inputs():
    """Why models are prepared, and docs/ascend.md warns. Fails when a newer provider can: then both may go."""
    feeds = {"a": np.array([[1], [2]], np.float32), "b": np.array([4, 8, 16], np.float32)}
    inputs = [models.value(name, TensorProto.FLOAT, array.shape) for name, array in feeds.items()]
    output = models.value("y", TensorProto.FLOAT, (2, 3))
    model = models.model([helper.make_node("Sub", ["a", "b"], ["y"])], inputs, [output])
    (got,) = session(model).run(None, feeds)
    assert not got.any(), got  # b - b


# --------------------------------------------------------------------------------------------------
# Failures


def failing_calls():
    """Every ACL call of a run fails in turn: its name is in the error, nothing leaks, the next run is right."""
    rng, simulator = np.random.default_rng(12), Simulator()
    feeds = decode_feeds(rng, FLOAT16, [96, 160, 33])
    cache, (exact, float64) = feeds["cache"], decode_results(feeds)
    decoder = Decoder(session(decode_model()), feeds)
    prefill_made, prefill_input = session(models.compress()), prefill_feeds(rng, FLOAT16, [40, 100])
    quiet_failures = set()

    def same_cache():
        return oracle.same_bits(decoder.cache(), cache)

    def decode_once():
        decoder.step(feeds)
        assert close(decoder.cache(), exact, float64)

    def prefill_once():
        check_prefill(prefill_made, prefill_input)

    for once, is_decode in ((decode_once, True), (prefill_once, False)):
        once()
        body = (lambda: decoder.step(feeds)) if is_decode else once
        decoder.set_cache(cache)
        names = simulator.names(body)
        assert (DECODE_CALL if is_decode else PREFILL_CALL) in names, names
        live = simulator.live()
        for nth, name in enumerate(names, 1):
            if name == "aclrtSetDevice":
                continue  # the provider's own: where its second one fails, onnxruntime 1.24.4 waits for ever
            decoder.set_cache(cache)
            simulator.fail_call("*", nth)
            error = attempt(body)
            simulator.clear()
            if error is None:
                quiet_failures.add(name)
                assert not is_decode or close(decoder.cache(), exact, float64), name
            else:
                assert name in str(error), (name, error)
                assert "may have changed" in str(error) or same_cache() or name == "aclrtSynchronizeStream", error
            once()
            assert simulator.live() == live, (name, simulator.live(), live)
    # Releases, which nobody can act on.
    assert quiet_failures <= {"aclDestroyTensor", "aclDestroyIntArray", "aclrtDestroyEvent"}, quiet_failures


def failing_first_calls():
    """The same for what only a node's first run calls: a fresh session for every failure."""
    rng, simulator = np.random.default_rng(13), Simulator()
    feeds = decode_feeds(rng, FLOAT16, [96, 160, 33])
    cache, (exact, float64) = feeds["cache"], decode_results(feeds)
    decoder = Decoder(session(decode_model()), feeds)
    names = simulator.names(lambda: decoder.step(feeds))
    ours = ("aclrtCreateEvent", "aclrtMallocHost", "aclrtMalloc", "aclrtMemcpyAsync", "aclrtRecordEvent")
    assert set(ours) <= set(names), names
    for name in ours:
        for nth in range(1, 1 + names.count(name)):
            decoder = error = None  # the last session goes, and what its node had is freed
            gc.collect()
            decoder = Decoder(session(decode_model()), feeds)
            simulator.fail_call(name, nth)
            error = raised(lambda decoder=decoder: decoder.step(feeds))
            simulator.clear()
            assert name in str(error), (name, error)
            assert "may have changed" in str(error) or oracle.same_bits(decoder.cache(), cache), (name, error)
            decoder.set_cache(cache)
            decoder.step(feeds)
            assert close(decoder.cache(), exact, float64), name


def failing_allocations():
    """No memory left for scratch or workspace: an error, and the next run is right."""
    rng, simulator = np.random.default_rng(14), Simulator()
    failed = 0
    for nth in range(1, 9):
        made = None  # what the last session's nodes had is freed
        made = session(decode_model())
        feeds = decode_feeds(rng, FLOAT16, [96, 160, 33])
        simulator.fail_allocation(nth)
        failed += attempt(lambda made=made, feeds=feeds: run(made, feeds)) is not None
        simulator.clear()
        check_decode(made, feeds)
    # The pinned memory of the upload, its device memory, and the workspace of the vendor's operator.
    assert failed >= (2 if OURS else 3), failed


def failing_tasks():
    """A failure on the device ends the run with an error, and the next run is right."""
    rng, simulator = np.random.default_rng(15), Simulator()
    made, feeds = session(decode_model()), decode_feeds(rng, FLOAT16, [96, 160, 33])
    check_decode(made, feeds)
    failed = 0
    for nth in range(1, 7):
        simulator.fail_task(nth)
        error = attempt(lambda: run(made, feeds))
        simulator.clear()
        if error is not None:
            failed += 1
            assert "Synchronize" in str(error), error
        check_decode(made, feeds)
    assert failed >= 3, failed  # the upload, the cache's copy, the operator


def a_failed_run_does_not_fall_back():
    """onnxruntime's Python sessions would go on with the CPU after a failure of the provider."""
    rng, simulator = np.random.default_rng(16), Simulator()
    made, feeds = session(models.compress()), prefill_feeds(rng, FLOAT16, [40, 100])
    made.run(None, feeds)
    simulator.fail_call(PREFILL_CALL, 1)
    error = raised(lambda: made.run(None, feeds))
    assert f"{PREFILL_CALL} failed with 500001" in str(error), error
    assert "NsaCompress 'nsa'" in str(error)
    assert made.get_providers()[0] == PROVIDER
    check_prefill(made, feeds)


# --------------------------------------------------------------------------------------------------
# Sessions


def placement():
    for dtype in DTYPES:
        for model in (models.compress(dtype=dtype), decode_model(dtype), decode_model(dtype, table=False)):
            made = session(model)
            assert made.get_providers() == [PROVIDER, "CPUExecutionProvider"]
            parts = made.get_provider_graph_assignment_info()
            assert [(part.ep_name, node.name) for part in parts for node in part.get_nodes()] == [(PROVIDER, "nsa")]


def placement_is_asserted():
    """A node that the provider does not take is an error, not a node on the CPU."""
    from nsa_onnx.runtime import cann

    Simulator()
    made = nsa_onnx.create_session(models.compress(), device="cpu", options=recording())
    error = raised(lambda: cann._require_placement(made, PROVIDER))
    assert "NsaCompress 'nsa' is on CPUExecutionProvider" in str(error), error


def recording():
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def auto_is_ascend():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = nsa_onnx.create_session(models.compress())
    assert made.get_providers()[0] == PROVIDER
    check_prefill(made, prefill_feeds(np.random.default_rng(17), FLOAT16, [40, 100]))


def backends():
    """Chosen by argument, by session entry or by variable; a wrong name is an error."""
    made = nsa_onnx.create_session(models.compress(), device="ascend", ascend_backend="aclnn")
    check_prefill(made, prefill_feeds(np.random.default_rng(18), FLOAT16, [40, 100]))
    options = ort.SessionOptions()
    options.add_session_config_entry("nsa_onnx.ascend_backend", "nonsense")
    error = raised(lambda: nsa_onnx.create_session(models.compress(), device="ascend", options=options))
    assert "nsa_onnx.ascend_backend must be auto, ascend_kernels or aclnn, got 'nonsense'" in str(error), error
    os.environ["NSA_ONNX_ASCEND_BACKEND"] = "nonsense"
    error = raised(lambda: session(models.compress()))
    assert "got 'nonsense'" in str(error), error


def preferred_backend():
    """Our kernels where their library is found, the vendor's operators where it is not."""
    simulator, expected = Simulator(), os.environ["NSA_TEST_EXPECTED"]
    check_prefill(session(models.compress()), prefill_feeds(np.random.default_rng(26), FLOAT16, [40, 100]))
    calls = {"ascend_kernels": simulator.calls("nsa_ascend_compress"), "aclnn": simulator.calls("aclnnNsaCompress")}
    assert calls == {name: int(name == expected) for name in calls}, calls


def kernels_are_missing():
    """Asked for by name and not found: an error that says where they were looked for."""
    words = os.environ["NSA_TEST_WORDS"]
    error = raised(lambda: nsa_onnx.create_session(models.compress(), device="ascend", ascend_backend="ascend_kernels"))
    assert isinstance(error, RuntimeError) and words in str(error), error


def cann_is_missing():
    """Without CANN's libraries: an error that names one; `auto` warns and takes the CPU."""
    missing = os.environ["NSA_TEST_MISSING"]
    error = raised(lambda: session(models.compress()))
    assert isinstance(error, RuntimeError) and missing in str(error) and "set_env.sh" in str(error), error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = nsa_onnx.create_session(models.compress())
    assert made.get_providers() == ["CPUExecutionProvider"]
    assert any(missing in str(w.message) and "takes the CPU" in str(w.message) for w in caught), caught


def numpy_2_is_explained():
    """onnxruntime-cann's own error is "import numpy failed"."""
    for name in [name for name in sys.modules if name.startswith("onnxruntime")]:
        del sys.modules[name]
    error = raised(lambda: nsa_onnx.create_session(models.compress(), device="cpu"))
    assert str(error) == "onnxruntime-cann needs numpy < 2, installed is 2.1.0: pip install 'numpy<2'", error


def graph_mode():
    """CANN compiles nothing here, and our nodes are on the CPU, as create_session says."""
    options = {"enable_cann_graph": 1, "enable_cann_subgraph": 1}
    made = nsa_onnx.create_session(models.compress(), device="ascend", provider_options=options)
    check_prefill(made, prefill_feeds(np.random.default_rng(19), FLOAT16, [40, 100]))
    (part,) = made.get_provider_graph_assignment_info()
    assert part.ep_name == "CPUExecutionProvider"


def doctor():
    from nsa_onnx.runtime.session import doctor

    found = doctor(ascend=True)
    text = found.to_text()
    print(text)
    assert found.ok, text
    assert found.ascend.simulated and "SIMULATED" in text
    assert found.ascend.soc == "Ascend910B2"
    assert found.ascend.backends == {"ascend_kernels": "ok", "aclnn": "ok"}, text
    vendors = [run for run in found.ascend.runs if run.name.endswith("aclnn")]
    assert [run.ulp for run in vendors[:4]] == [1, 1, 0, 0], text
    assert len(vendors) == 2 * len(OPERATORS) and all(run.ulp <= 1 for run in vendors), text
    ours = [run for run in found.ascend.runs if run.name.endswith("ascend_kernels")]
    assert [run.absent for run in ours] == [False] * 4 + [True] * (len(vendors) - 4), text
    assert all(run.ulp <= 1 for run in ours[:4]), text


if __name__ == "__main__":
    assert np.__version__ < "2" and onnx.__version__ and json
    globals()[sys.argv[1]]()
    gc.collect()  # sessions are released before the simulator counts what is left
