"""The simulated CANN keeps its promises: each rule is broken on purpose, and the simulator must notice.

Everything runs in child processes: the library counts at exit what was not released, and a host that touches device
memory dies. tests/sim/README.md says what is simulated.
"""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SIM = ROOT / "tests" / "sim"
LIB = Path(os.environ.get("NSA_ONNX_SIM_DIR", ROOT / "build" / "sim" / "lib"))
TORCH_NPU = Path(os.environ.get("NSA_ONNX_TORCH_NPU_DIR", ROOT / "build" / "torch_npu")) / "torch_npu"
CANN_PYTHON = Path(os.environ.get("NSA_ONNX_CANN_PYTHON", ROOT / "build" / "venv-cann" / "bin" / "python"))

NOTHING_LEFT = {"calls", "device_bytes"}  # of the report, everything else counts what was left

PARAM_INVALID, CONTEXT_NULL, STREAM_CONTEXT, INVALID_HANDLE = 107000, 107002, 107003, 107017
OUT_OF_MEMORY, DMA_FAULT, VECTOR_CORE_FAULT = 207001, 507013, 507035


class Child:
    """A finished child process: its output, and what the library reported when it ended."""

    def __init__(self, command, tmp_path, **environment):
        report = tmp_path / "report.json"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("NSA_SIM_")}
        env = {
            **clean,
            "PYTHONPATH": f"{SIM}:{SIM.parent}",
            "NSA_ONNX_SIM_DIR": str(LIB),
            "LD_LIBRARY_PATH": str(LIB),
            "NSA_SIM_REPORT": str(report),
            **{k: str(v) for k, v in environment.items()},
        }
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        self.returncode, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        self.report = json.loads(report.read_text()) if report.exists() else None

    def left(self):
        return {k: v for k, v in self.report.items() if v and k not in NOTHING_LEFT}


@pytest.fixture
def child(tmp_path):
    """Run Python source that sees tests/sim/acl.py; by default it must end well and leave nothing."""

    def run(source, *, left=None, **environment):
        source = "from acl import *\n" + textwrap.dedent(source)
        done = Child([sys.executable, "-c", source], tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        assert done.left() == (left or {})
        return done

    return run


# Memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("touch", ["ctypes.string_at(address, 1)", "ctypes.memset(address, 0, 1)"])
def test_a_host_that_touches_device_memory_dies(touch, tmp_path):
    source = f"from acl import *\nstart()\naddress = malloc(4096)\n{touch}\nprint('survived')"
    done = Child([sys.executable, "-c", source], tmp_path)
    assert done.returncode == -signal.SIGSEGV
    assert "survived" not in done.stdout


def test_the_host_may_touch_pinned_memory(child):
    child("""
        start()
        array, address = pinned_array((4,), np.int32)
        array[:] = 7
        call("aclrtFreeHost", address)
    """)


def test_bytes_survive_the_way_to_the_device_and_back(child):
    child("""
        start()
        x = np.arange(1000, dtype=np.int32)
        there = upload(x)
        again = malloc(x.nbytes)
        call("aclrtMemcpy", again, x.nbytes, there, x.nbytes, D2D)
        assert np.array_equal(download(again, x), x)
        assert np.array_equal(download(again + 4 * 500, x[500:]), x[500:])
        for address in (there, again):
            call("aclrtFree", address)
    """)


def test_new_memory_holds_no_plausible_numbers(child):
    child("""
        start()
        address = malloc(64)
        assert np.isnan(download(address, np.zeros(16, np.float32))).all()
        call("aclrtFree", address)
        address = malloc(64)
        assert np.isnan(download(address, np.zeros(16, np.float32))).all()
        call("aclrtFree", address)
    """)


def test_a_copy_against_its_direction_is_refused(child):
    child(f"""
        start()
        where = {{"host": np.zeros(64, np.uint8), "device": malloc(64), "pinned": malloc_host(64)}}
        for kind, dst, src, wrong in (
            (H2D, "device", "device", "src"),
            (H2D, "host", "host", "dst"),
            (H2D, "pinned", "host", "dst"),
            (D2H, "device", "device", "dst"),
            (D2H, "host", "host", "src"),
            (D2D, "device", "pinned", "src"),
            (D2D, "pinned", "device", "dst"),
            (H2H, "host", "device", "src"),
        ):
            for function, stream in (("aclrtMemcpy", ()), ("aclrtMemcpyAsync", (None,))):
                got, why = failure(call, function, where[dst], 64, where[src], 64, kind, *stream)
                assert got == {PARAM_INVALID} and function in why and wrong in why, (kind, dst, src, got, why)
        call("aclrtFree", where["device"])
        call("aclrtFreeHost", where["pinned"])
    """)


def test_a_copy_past_the_end_of_an_allocation_fails(child):
    child(f"""
        start()
        host, address = np.zeros(128, np.uint8), malloc(64)
        assert failure(call, "aclrtMemcpy", address, 128, host, 128, H2D)[0] == {DMA_FAULT}
        assert failure(call, "aclrtMemcpy", address, 64, host, 128, H2D)[0] == {PARAM_INVALID}
        call("aclrtFree", address)
        assert failure(call, "aclrtMemcpy", address, 64, host, 64, H2D)[0] == {DMA_FAULT}
        assert failure(call, "aclrtFree", address)[0] == {PARAM_INVALID}
    """)


def test_device_memory_has_an_end(child):
    child(
        f"""
        start()
        half = malloc(1 << 19)
        assert failure(malloc, (1 << 19) + 1)[0] == {OUT_OF_MEMORY}
        call("aclrtFree", half)
        call("aclrtFree", malloc(1 << 20))
        """,
        NSA_SIM_DEVICE_MB=1,
    )


# Threads, devices, handles ------------------------------------------------------------------------------


def test_nothing_works_before_init(child):
    child("""
        assert failure(call, "aclrtSetDevice", 0)[0] == 100001
        call("aclInit", None)
        assert failure(call, "aclInit", None)[0] == 100002
        call("aclFinalize")
        assert failure(call, "aclrtSetDevice", 0)[0] == 100001
    """)


def test_a_thread_that_set_no_device_is_refused(child):
    child(f"""
        import threading
        start()
        stream, x = create_stream(), np.zeros(4)
        uses = [lambda: malloc(64), lambda: malloc_host(64), create_stream, create_event]
        uses += [lambda: synchronize(stream), lambda: upload(x), lambda: call("aclrtGetDevice", x)]
        seen = []
        thread = threading.Thread(target=lambda: seen.extend(failure(use)[0] for use in uses))
        thread.start()
        thread.join()
        assert seen == [{CONTEXT_NULL}] * len(uses), seen
        call("aclrtDestroyStream", stream)
    """)


def test_a_thread_with_a_device_may_use_a_stream_of_another_thread(child):
    child("""
        import threading
        start()
        stream = create_stream()
        def work():
            call("aclrtSetDevice", 0)
            synchronize(stream)
            call("aclrtDestroyStream", stream)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """)


def test_a_stream_of_another_device_is_refused(child):
    child(
        f"""
        start()
        stream = create_stream()
        call("aclrtSetDevice", 1)
        assert failure(synchronize, stream)[0] == {STREAM_CONTEXT}
        assert failure(call, "aclrtSetDevice", 2)[0] == 107001
        call("aclrtSetDevice", 0)
        call("aclrtDestroyStream", stream)
        """,
        NSA_SIM_DEVICES=2,
    )


def test_a_handle_dies_once(child):
    child(f"""
        start()
        for kind, handle in (("Stream", create_stream()), ("Event", create_event())):
            call(f"aclrtDestroy{{kind}}", handle)
            got, why = failure(call, f"aclrtDestroy{{kind}}", handle)
            assert got == {INVALID_HANDLE} and "destroyed twice" in why or kind == "Stream", why
        stream = create_stream()
        call("aclrtDestroyStream", stream)
        assert failure(synchronize, stream)[0] == {INVALID_HANDLE}
        host = malloc_host(64)
        call("aclrtFreeHost", host)
        assert failure(call, "aclrtFreeHost", host)[0] == {PARAM_INVALID}
    """)


LEAKS = {
    "device_memory": "malloc(64)",
    "pinned_memory": "malloc_host(64)",
    "streams": "create_stream()",
    "events": "create_event()",
    "contexts": "make('aclrtCreateContext', 0)",
    "data_buffers": "cl.aclCreateDataBuffer(None, ctypes.c_size_t(0))",
    "tensor_descs": "cl.aclCreateTensorDesc(FLOAT, 0, None, 2)",
    "op_attrs": "op_compiler.aclopCreateAttr()",
    "tensors": "tensor(0, (1,), FLOAT)",
    "int_arrays": "int_array([1])",
}


def test_what_is_not_released_is_counted_at_exit(child):
    source = ["start()"]
    for kind, leak in LEAKS.items():
        source.append(f"assert ({leak}) and cl.nsa_sim_live({kind.encode()!r}) == 1")
    child("\n".join(source), left=dict.fromkeys(LEAKS, 1))


def test_leaks_go_to_stderr_where_no_report_is_asked_for(tmp_path):
    for source, said in (("start(); malloc(64)", '"device_memory": 1'), ("start()", "")):
        env = {**os.environ, "PYTHONPATH": str(SIM), "NSA_ONNX_SIM_DIR": str(LIB)}
        env.pop("NSA_SIM_REPORT", None)
        command = [sys.executable, "-c", f"from acl import *\n{source}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
        assert said in done.stderr and bool(said) == bool(done.stderr)


# Streams ------------------------------------------------------------------------------------------------

DELAY = 100_000  # microseconds; the tests below need the host to be faster than this


def test_a_copy_is_not_done_when_the_call_returns(child):
    child(
        """
        start()
        stream = create_stream()
        there = upload(np.full(4, 1, np.int32))
        back, address = pinned_array((4,), np.int32)
        back[:] = 0
        copy_async(address, there, 16, D2H, stream)
        assert (back == 0).all() and cl.nsa_sim_pending_tasks() == 1
        synchronize(stream)
        assert (back == 1).all() and cl.nsa_sim_pending_tasks() == 0
        call("aclrtFreeHost", address)
        call("aclrtFree", there)
        call("aclrtDestroyStream", stream)
        """,
        NSA_SIM_DELAY_US=DELAY,
    )


@pytest.mark.parametrize("pinned", [False, True])
def test_an_upload_reads_the_host_when_its_turn_comes(child, pinned):
    """Staging that is reused too early is caught: the device sees the later bytes. Pageable memory is read at once."""
    child(
        f"""
        start()
        there = upload(np.zeros(4, np.int32))
        staging, address = pinned_array((4,), np.int32)
        source = staging if {pinned} else np.zeros(4, np.int32)
        source[:] = 1
        copy_async(there, source, 16, H2D)
        source[:] = 2
        synchronize()
        assert (download(there, source) == {2 if pinned else 1}).all()
        call("aclrtFreeHost", address)
        call("aclrtFree", there)
        """,
        NSA_SIM_DELAY_US=DELAY,
    )


def test_a_synchronous_copy_does_not_wait_for_streams(child):
    child(
        """
        start()
        there, (new, address) = upload(np.zeros(4, np.int32)), pinned_array((4,), np.int32)
        new[:] = 1
        copy_async(there, new, 16, H2D)
        assert (download(there, new) == 0).all()
        synchronize()
        assert (download(there, new) == 1).all()
        call("aclrtFreeHost", address)
        call("aclrtFree", there)
        """,
        NSA_SIM_DELAY_US=DELAY,
    )


@pytest.mark.parametrize("what", ["device", "pinned"])
def test_memory_freed_before_its_task_runs_is_a_fault(child, what):
    child(
        f"""
        start()
        there, staging = malloc(64), malloc_host(64)
        copy_async(there, staging, 64, H2D)
        if {what!r} == "device":
            call("aclrtFree", there)
            there = malloc(64)  # the address is not given out again
        else:
            call("aclrtFreeHost", staging)
            staging = malloc_host(64)
        got, why = failure(synchronize)
        assert got == {DMA_FAULT} and "freed" in why, why
        synchronize()  # said once
        call("aclrtFree", there)
        call("aclrtFreeHost", staging)
        """,
        NSA_SIM_DELAY_US=DELAY,
    )


@pytest.mark.parametrize("waits", [False, True])
def test_two_streams_have_no_order_but_that_of_events(child, waits):
    child(
        f"""
        start()
        first, second, event = create_stream(), create_stream(), create_event()
        x, y, other = (upload(np.zeros(4, np.int32)) for _ in range(3))
        one, staging = pinned_array((4,), np.int32)
        one[:] = 1
        for target in (other, other, x):
            copy_async(target, one, 16, H2D, first)
        call("aclrtRecordEvent", event, first)
        if {waits}:
            call("aclrtStreamWaitEvent", second, event)
        copy_async(y, x, 16, D2D, second)
        synchronize(second)
        assert (download(y, one) == {int(waits)}).all()
        synchronize(first)
        for stream in (first, second):
            call("aclrtDestroyStream", stream)
        call("aclrtDestroyEvent", event)
        call("aclrtFreeHost", staging)
        for address in (x, y, other):
            call("aclrtFree", address)
        """,
        NSA_SIM_DELAY_US=DELAY,
    )


def test_events_are_waited_for_and_asked(child):
    child(
        f"""
        start()
        begin, end, status = create_event(), create_event(), ctypes.c_int(-1)
        got, why = failure(call, "aclrtStreamWaitEvent", None, begin)
        assert got == {PARAM_INVALID} and "never recorded" in why
        there, (x, staging) = malloc(16), pinned_array((4,), np.int32)
        call("aclrtRecordEvent", begin, None)
        copy_async(there, x, 16, H2D)
        call("aclrtRecordEvent", end, None)
        call("aclrtQueryEventStatus", end, ctypes.byref(status))
        assert status.value == 0
        call("aclrtSynchronizeEvent", end)
        call("aclrtQueryEventStatus", end, ctypes.byref(status))
        assert status.value == 1
        elapsed = ctypes.c_float()
        call("aclrtEventElapsedTime", ctypes.byref(elapsed), begin, end)
        assert {DELAY / 1000} <= elapsed.value < {DELAY}
        call("aclrtDestroyEvent", begin)
        call("aclrtDestroyEvent", end)
        call("aclrtFreeHost", staging)
        call("aclrtFree", there)
        """,
        NSA_SIM_DELAY_US=DELAY,
    )


def test_destroying_a_stream_waits_for_its_tasks(child):
    child(
        """
        start()
        stream, there, (x, staging) = create_stream(), malloc(16), pinned_array((4,), np.int32)
        x[:] = 1
        copy_async(there, x, 16, H2D, stream)
        call("aclrtDestroyStream", stream)
        assert (download(there, x) == 1).all()
        call("aclrtFreeHost", staging)
        call("aclrtFree", there)
        """,
        NSA_SIM_DELAY_US=DELAY,
    )


def test_a_failed_task_that_nobody_waited_for_is_reported_at_exit(child):
    child(
        """
        start()
        there, x = malloc(16), np.ones(4, np.int32)
        cl.nsa_sim_fail_task(ctypes.c_uint64(1))
        copy_async(there, x, 16, H2D)
        call("aclrtSynchronizeEvent", (event := create_event()))
        call("aclrtRecordEvent", event, None)
        call("aclrtSynchronizeEvent", event)
        call("aclrtDestroyEvent", event)
        call("aclrtFree", there)
        """,
        left={"unseen_failures": 1},
    )


# Failures on demand -------------------------------------------------------------------------------------


def test_the_nth_call_of_a_function_fails_by_environment(child):
    child(
        """
        start()
        call("aclrtFree", malloc(64))
        assert failure(malloc, 64) == (4711, "[simulated CANN] aclrtMalloc: failed because a test asked for it")
        call("aclrtFree", malloc(64))
        assert failure(create_stream)[0] == 500001
        assert cl.nsa_sim_calls(b"aclrtMalloc") == 3
        """,
        NSA_SIM_FAIL="aclrtMalloc:2:4711,aclrtCreateStream:1",
    )


def test_the_nth_call_of_any_function_fails_by_control(child):
    child("""
        start()
        before = cl.nsa_sim_calls(b"*")
        cl.nsa_sim_fail_call(b"*", ctypes.c_uint64(2), 0)
        address = malloc(64)
        assert failure(create_stream)[0] == 500001
        assert cl.nsa_sim_calls(b"*") == before + 2
        cl.nsa_sim_fail_call(b"*", ctypes.c_uint64(1), 0)
        cl.nsa_sim_clear_failures()
        call("aclrtFree", address)
    """)


def test_an_allocation_fails_for_want_of_memory(child):
    child(
        f"""
        start()
        call("aclrtFree", malloc(64))
        assert failure(malloc_host, 64)[0] == {OUT_OF_MEMORY}
        cl.nsa_sim_fail_allocation(ctypes.c_uint64(1))
        assert failure(malloc, 64)[0] == {OUT_OF_MEMORY}
        call("aclrtFree", malloc(64))
        """,
        NSA_SIM_FAIL_ALLOC=2,
    )


def test_a_release_that_fails_on_demand_has_released(child):
    child("""
        start()
        for name, handle in (
            ("aclrtFree", malloc(64)),
            ("aclrtFreeHost", malloc_host(64)),
            ("aclrtDestroyStream", create_stream()),
            ("aclrtDestroyEvent", create_event()),
        ):
            cl.nsa_sim_fail_call(name.encode(), ctypes.c_uint64(1), 0)
            assert failure(call, name, handle)[0] == 500001
    """)


@pytest.mark.parametrize("how", ["environment", "control"])
def test_a_task_fails_when_somebody_waits_and_not_before(child, how):
    environment = {"NSA_SIM_FAIL_TASK": 2} if how == "environment" else {}
    child(
        f"""
        start()
        there, x = malloc(16), np.ones(4, np.int32)
        if {how!r} == "control":
            cl.nsa_sim_fail_task(ctypes.c_uint64(2))
        copy_async(there, x, 16, H2D)
        copy_async(there, x * 2, 16, H2D)  # fails, and the call says success
        got, why = failure(synchronize)
        assert got == {VECTOR_CORE_FAULT} and "memcpy" in why, why
        assert (download(there, x) == 1).all()
        y = x * 3
        copy_async(there, y, 16, H2D)
        synchronize()
        assert (download(there, x) == 3).all()
        call("aclrtFree", there)
        """,
        **environment,
    )


def test_a_device_wide_wait_sees_the_failure_of_any_stream(child):
    child(f"""
        start()
        stream, there = create_stream(), malloc(16)
        cl.nsa_sim_fail_task(ctypes.c_uint64(1))
        copy_async(there, np.ones(4, np.int32), 16, H2D, stream)
        assert failure(call, "aclrtSynchronizeDevice")[0] == {VECTOR_CORE_FAULT}
        call("aclrtSynchronizeDevice")
        call("aclrtDestroyStream", stream)
        call("aclrtFree", there)
    """)


def test_the_log_lists_calls_and_tasks_in_order(child, tmp_path):
    log = tmp_path / "log"
    child(
        """
        start()
        there, x = malloc(16), np.ones(4, np.int32)
        copy_async(there, x, 16, H2D)
        synchronize()
        call("aclrtFree", there)
        failure(call, "aclrtFree", there)
        """,
        NSA_SIM_LOG=log,
    )
    lines = [re.sub(r" (0x[0-9a-f]+|\d+) ", " ", line, count=1) for line in log.read_text().splitlines()]
    assert sorted(lines[3:5]) == ["call aclrtMemcpyAsync 0", "task memcpy 0"]  # two threads
    assert lines[:3] + lines[5:] == [
        "call aclInit 0",
        "call aclrtSetDevice 0",
        "call aclrtMalloc 0",
        "call aclrtSynchronizeStream 0",
        "call aclrtFree 0",
        f"call aclrtFree {PARAM_INVALID}",
    ]


def test_the_error_message_belongs_to_a_thread_and_is_handed_out_once(child):
    child("""
        import threading
        start()
        assert message() is None
        code("aclrtFree", 4096)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(message()))
        thread.start()
        thread.join()
        assert seen == [None]
        assert "aclrtFree" in message() and message() is None
    """)


def test_what_is_not_simulated_says_its_name_once(child):
    done = child("""
        start()
        assert code("aclmdlExecute", 0, None, None) == 200001
        assert code("aclmdlExecute", 0, None, None) == 200001
    """)
    assert done.stderr.count("aclmdlExecute is not simulated") == 1


# The vendor's operators ---------------------------------------------------------------------------------

# x[t] = t-th token; one head unless said otherwise. 16 columns, the least that is allowed.
OPERATORS = """
import ml_dtypes, oracle
start()

def prefill(x, w, block, stride, ends, rows, acl_type=FLOAT16, **change):
    operands = Prefill(x, w, block, stride, ends, rows, acl_type, **change)
    try:
        return operands()
    finally:
        operands.close()

def decode(x, w, slots, table, lengths, block, stride, page, cache, acl_type=FLOAT16, **change):
    operands = Decode(x, w, np.array(slots, np.int32), np.array(table, np.int32), lengths, block, stride, page,
                      cache, acl_type, **change)
    try:
        return operands()
    finally:
        operands.close()

def tokens(*values, total, dtype=np.float16):
    x = np.zeros((total, 1, 16), dtype)
    for t, value in values:
        x[t] = value
    return x

ones = np.ones((16, 1), np.float16)
page = tokens(total=64).reshape(1, 64, 1, 16)
"""


@pytest.fixture
def operators(child):
    def run(source, **options):
        return child(OPERATORS + textwrap.dedent(source), **options)

    return run


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_prefill_agrees_with_the_oracle(operators, dtype):
    operators(f"""
        rng = np.random.default_rng(0)
        dtype = np.dtype({dtype!r}) if {dtype!r} == "float16" else ml_dtypes.bfloat16
        acl_type = FLOAT16 if {dtype!r} == "float16" else BF16
        ends = [130, 130, 140, 300]
        for block, stride in ((32, 16), (16, 16), (128, 32), (96, 48)):
            x = rng.standard_normal((300, 3, 16)).astype(dtype)
            w = rng.standard_normal((block, 3)).astype(dtype)
            expected = oracle.compress_float64(x, w, block, stride, ends)
            got = prefill(x, w, block, stride, ends, len(expected), acl_type)
            error = np.abs(got.astype(np.float64) - expected)
            # Half a unit of the result and the rounding of float32 sums of `block` terms.
            scale = np.abs(expected) + 1
            assert (error <= scale * (2.0**-11 if acl_type == FLOAT16 else 2.0**-8) + block * 2.0**-20).all()
            exact = oracle.compress_exact(x, w, block, stride, ends)
            assert np.mean(exact.view(np.uint16) == got.view(np.uint16)) > 0.95
    """)


def test_prefill_rounds_halves_away_from_zero_and_decode_to_even(operators):
    operators("""
        for sign in (1, -1):
            # 2048 + 1 lies half way: float16 steps by 2 there.
            x = tokens((0, 2048 * sign), (1, sign), total=16)
            assert (prefill(x, ones, 16, 16, [16], 1) == 2050 * sign).all()
            cache = np.zeros((1, 1, 16), np.float16)
            pages = np.concatenate([x, np.zeros((48, 1, 16), np.float16)]).reshape(1, 64, 1, 16)
            assert (decode(pages, ones, [0], [[0]], [16], 16, 16, 64, cache) == 2048 * sign).all()
    """)


def test_sums_are_taken_in_the_vendors_tree_order(operators):
    """2^24 + 1 - 2^24 is 1 or 0 in float32, as the order has it."""
    operators("""
        big = tokens((0, 4096), (1, 1), (8, -4096), total=16)
        w = np.ones((16, 1), np.float16)
        w[[0, 8]] = 4096
        assert (prefill(big, w, 16, 16, [16], 1) == 1).all()
        cache = np.zeros((1, 1, 16), np.float16)
        pages = np.concatenate([big, np.zeros((48, 1, 16), np.float16)]).reshape(1, 64, 1, 16)
        assert (decode(pages, w, [0], [[0]], [16], 16, 16, 64, cache) == 0).all()
        # Within a tile of 8 decode sums like prefill within its window.
        near = tokens((0, 4096), (1, 1), (4, -4096), total=64).reshape(1, 64, 1, 16)
        w = np.ones((16, 1), np.float16)
        w[[0, 4]] = 4096
        assert (decode(near, w, [0], [[0]], [16], 16, 16, 64, cache) == 1).all()
    """)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_decode_agrees_with_the_oracle(operators, dtype):
    operators(f"""
        rng = np.random.default_rng(1)
        dtype = np.dtype({dtype!r}) if {dtype!r} == "float16" else ml_dtypes.bfloat16
        acl_type = FLOAT16 if {dtype!r} == "float16" else BF16
        for block, stride, page_size in ((32, 16, 64), (64, 32, 128), (48, 48, 64)):
            x = rng.standard_normal((9, page_size, 2, 32)).astype(dtype)
            w = rng.standard_normal((block, 2)).astype(dtype)
            lengths = [block, block + stride, block + 1, 0, block + 2 * stride]
            table = rng.permutation(9)[:5].reshape(1, 5).repeat(5, 0).astype(np.int32)
            slots = [3, 0, -1, 99, 1]  # what does not write may hold anything
            table[2:4] = -1
            cache = rng.standard_normal((5, 2, 32)).astype(dtype)
            got = decode(x, w, slots, table, lengths, block, stride, page_size, cache, acl_type)
            exact = oracle.infer_exact(x, w, slots, block, stride, page_size, table, lengths, cache)
            assert oracle.same_bits(got[[2, 4]], cache[[2, 4]])
            error = np.abs(got.astype(np.float64) - oracle.infer_float64(
                x, w, slots, block, stride, page_size, table, lengths, cache))
            scale = np.abs(exact.astype(np.float64)) + 1
            assert (error <= scale * (2.0**-11 if acl_type == FLOAT16 else 2.0**-8) + block * 2.0**-20).all()
            assert np.mean(exact.view(np.uint16) == got.view(np.uint16)) > 0.95
    """)


# Arguments, the code of the error, and what its message says.
LIMITS = (
    ("prefill(tokens(total=16), ones, 16, 16, [8, 16], 0)", 561002, "T' = 0"),
    ("prefill(tokens(total=16), ones, 16, 16, [], 1)", 161002, "actSeqLen"),
    ("prefill(tokens(total=16), ones, 16, 16, [16], 2)", 161002, "output.shape[0]"),
    ("prefill(tokens(total=16), ones, 32, 16, [16], 1)", 161002, "weight.shape[0]"),
    ("prefill(tokens(total=16), ones, 16, 32, [16], 1)", 161002, "compressStride"),
    ("prefill(tokens(total=16), ones, 16, 16, [16], 1, layout=b'BSH')", 161002, "TND"),
    ("prefill(tokens(total=16), ones, 16, 16, [16], 1, seq_type=1)", 161002, "actSeqLenType"),
    ("prefill(tokens(total=16), ones, 16, 16, [16], 1, FLOAT)", 161002, "float16"),
    ("prefill(tokens(total=16)[:, :, :8], ones, 16, 16, [16], 1)", 161002, "headDim"),
    ("decode(page, ones, [0], [[0]], [16], 16, 16, 64, cache, no_table=True)", 161002, "blockTable"),
    ("decode(page, ones, [0], [[0]], [], 16, 16, 64, cache)", 161002, "actSeqLen"),
    ("decode(page, ones, [0], [[0]], [16], 16, 16, 64, cache, seq_type=0)", 561002, "actSeqLenType"),
    ("decode(page, np.ones((80, 1), np.float16), [0], [[0]], [16], 80, 16, 64, cache)", 561002, "larger than 64"),
    ("decode(heads(66), np.ones((16, 66), np.float16), [0], [[0]], [16], 16, 16, 64, slots(66))", 561002, "64"),
    ("decode(heads(51), np.ones((16, 51), np.float16), [0], [[0]], [16], 16, 16, 64, slots(51))", 561002, "odd"),
    ("decode(page, ones, [0] * 2049, [[0]] * 2049, [16] * 2049, 16, 16, 64, cache)", 561002, "2048"),
    ("decode(page, ones, [0], [[0]], [16, 16], 16, 16, 64, cache)", 161002, "batch"),
    ("decode(page[0], ones, [0], [[0]], [16], 16, 16, 64, cache)", 161002, "rank"),
)


def test_the_vendors_limits_are_refused_in_the_first_step(operators):
    checks = "\n".join(f"refused(lambda: {call}, {code}, {said!r})" for call, code, said in LIMITS)
    operators(
        """
cache = np.zeros((1, 1, 16), np.float16)
heads = lambda n: np.zeros((1, 64, n, 16), np.float16)
slots = lambda n: np.zeros((1, n, 16), np.float16)
def refused(use, code, said):
    got, why = failure(use)
    assert got == code and said in why and "GetWorkspaceSize" in why, (said, got, why)
"""
        + checks
    )


BAD_INDICES = (
    ("decode(page, ones, [1], [[0]], [16], 16, 16, 64, cache)", "slotMapping[0] = 1"),
    ("decode(page, ones, [-1], [[0]], [16], 16, 16, 64, cache)", "slotMapping[0] = -1"),
    ("decode(page, ones, [0], [[1]], [16], 16, 16, 64, cache)", "blockTable[0, 0] = 1"),
    ("decode(page, ones, [0], [[-1]], [16], 16, 16, 64, cache)", "blockTable[0, 0] = -1"),
    ("decode(page, ones, [0], [[0]], [80], 16, 16, 64, cache)", "actSeqLen[0]"),
    ("decode(page, ones, [0, 0], [[0]] * 2, [16, 16], 16, 16, 64, cache)", "two sequences"),
    ("prefill(tokens(total=16), ones, 16, 16, [32], 2)", "actSeqLen"),
)


def test_a_bad_index_is_a_fault_of_the_task(operators):
    checks = "\n".join(f"faulty(lambda: {call}, {said!r})" for call, said in BAD_INDICES)
    operators(
        f"""
cache = np.zeros((1, 1, 16), np.float16)
def faulty(use, said):
    got, why = failure(use)
    assert got == {VECTOR_CORE_FAULT} and said in why and "aclrtSynchronizeStream" in why, (said, got, why)
"""
        + checks
    )


def test_a_host_pointer_in_a_tensor_is_a_fault(operators):
    operators(f"""
        operands = Prefill(tokens(total=16), ones, 16, 16, [16], 1)
        host = np.zeros((16, 1, 16), np.float16)
        wrong = tensor(host.ctypes.data, host.shape, FLOAT16)
        operands.tensors.append(wrong)
        operands.arguments = (wrong, *operands.arguments[1:])
        got, why = failure(lambda: operands())
        assert got == {VECTOR_CORE_FAULT} and "no device address" in why, why
        operands.close()
    """)


def test_the_second_step_demands_its_workspace_and_takes_the_executor(operators):
    operators("""
        operands = Prefill(tokens(total=16), ones, 16, 16, [16], 1)
        plan = lambda: first_step("aclnnNsaCompress", *operands.arguments)
        size, executor = plan()
        assert size > 0 and cl.nsa_sim_live(b"executors") == 1
        assert failure(second_step, "aclnnNsaCompress", None, size, executor)[0] == 161001
        assert cl.nsa_sim_live(b"executors") == 0
        workspace = malloc(size)
        got, why = failure(second_step, "aclnnNsaCompress", workspace, size - 1, plan()[1])
        assert got == 161002 and "workspaceSize" in why
        got, why = failure(second_step, "aclnnNsaCompressWithCache", workspace, size, plan()[1])
        assert got == 561000 and "belongs to" in why
        executor = plan()[1]
        second_step("aclnnNsaCompress", workspace, size, executor)
        got, why = failure(second_step, "aclnnNsaCompress", workspace, size, executor)
        assert got == 561000 and "twice" in why
        synchronize()
        second_step("aclnnNsaCompress", np.zeros(size, np.uint8), size, plan()[1])
        assert "workspace" in failure(synchronize)[1]
        cl.nsa_sim_fail_call(b"aclnnNsaCompress", ctypes.c_uint64(1), 0)
        assert failure(second_step, "aclnnNsaCompress", workspace, size, plan()[1])[0] == 500001
        call("aclDestroyAclOpExecutor", plan()[1], library=nnopbase)
        call("aclrtFree", workspace)
        operands.close()
    """)


def test_an_executor_that_is_never_run_is_counted(operators):
    operators(
        """
        operands = Prefill(tokens(total=16), ones, 16, 16, [16], 1)
        first_step("aclnnNsaCompress", *operands.arguments)
        operands.close()
        """,
        left={"executors": 1},
    )


def test_tensors_must_live_until_the_second_step(operators):
    operators("""
        operands = Prefill(tokens(total=16), ones, 16, 16, [16], 1)
        size, executor = first_step("aclnnNsaCompress", *operands.arguments)
        call("aclDestroyTensor", operands.tensors.pop(0), library=nnopbase)
        workspace = malloc(size)
        got, why = failure(second_step, "aclnnNsaCompress", workspace, size, executor)
        assert got == 561000 and "destroyed between" in why
        call("aclrtFree", workspace)
        operands.close()
    """)


def test_the_operators_run_on_their_stream_and_read_memory_then(operators):
    operators(
        """
        operands = Prefill(tokens((0, 1), total=16), ones, 16, 16, [16], 1)
        size, executor = first_step("aclnnNsaCompress", *operands.arguments)
        workspace, stream = malloc(size), create_stream()
        second_step("aclnnNsaCompress", workspace, size, executor, stream)
        later = tokens((0, 2), total=16)
        call("aclrtMemcpy", operands.memory[0], later.nbytes, later, later.nbytes, H2D)
        assert np.isnan(download(operands.memory[2], operands.out)).all()
        synchronize(stream)
        assert (download(operands.memory[2], operands.out) == 2).all()
        call("aclrtDestroyStream", stream)
        call("aclrtFree", workspace)
        operands.close()
        """,
        NSA_SIM_DELAY_US=DELAY,
    )


# The real interface -------------------------------------------------------------------------------------


def symbols(library, option):
    listed = subprocess.run(["nm", "-D", option, str(library)], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in listed.splitlines()}


def provider_library():
    found = list(CANN_PYTHON.parent.parent.glob("lib/python*/site-packages/onnxruntime/capi/*providers_cann.so"))
    assert len(found) == 1, f"onnxruntime-cann is not in {CANN_PYTHON.parent.parent}"
    return found[0]


def test_every_symbol_that_the_real_wheels_take_from_cann_resolves():
    users = [provider_library(), TORCH_NPU / "lib" / "libtorch_npu.so", TORCH_NPU / "lib" / "libtensorpipe.so"]
    users += TORCH_NPU.glob("_C.*.so")
    assert len(users) == 4
    ours = set().union(*(symbols(library, "--defined-only") for library in LIB.glob("*.so")))
    wanted = re.compile(r"(acl|rt[A-Z]|Msprof|Hccl|_ZNK?2ge)")
    for user in users:
        needed = {symbol for symbol in symbols(user, "--undefined-only") if wanted.match(symbol)}
        assert len(needed) > 0 and not needed - ours, (user.name, needed - ours)


def declarations(text):
    """{function: (result type, parameter types)} of C declarations, names and spelling variants removed."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*|^\s*#[^\n]*", "", text, flags=re.S | re.M)
    found = {}
    for result, name, parameters in re.findall(r"([\w\s*]+?)\b(acl\w+)\(([^()]*)\)\s*;", text):
        types = [] if parameters.strip() in ("", "void") else parameters.split(",")
        found[name] = (spelled(result), [spelled(re.sub(r"\w+\s*(\[\])?\s*$", r"\1", t)) for t in types])
    return found


def spelled(type_name):
    type_name = re.sub(r"ACL_FUNC_VISIBILITY|extern|\"C\"|__attribute__\S*", "", type_name)
    type_name = type_name.replace("[]", "*").replace("aclnnStatus", "aclError")
    return re.sub(r"\s*\*\s*", "*", " ".join(type_name.split()))


def test_signatures_are_those_of_the_vendors_headers():
    headers = TORCH_NPU / "include" / "third_party" / "acl" / "inc" / "acl"
    theirs = {}
    for name in ("acl_base_rt.h", "acl_rt.h", "acl_base_mdl.h", "acl_op.h", "acl_op_compiler.h"):
        theirs |= declarations((headers / name).read_text(errors="replace"))
    ours = declarations((SIM / "acl.h").read_text())
    # aclnn's headers come with CANN, not with torch_npu.
    compared = {name for name in ours if not re.match(r"acln|acl(Create|Destroy)(Tensor|IntArray)$", name)}
    compared -= {"aclGetIntArraySize", "aclSetAclOpExecutorRepeatable", "aclDestroyAclOpExecutor"}
    assert len(compared) > 60
    for name in sorted(compared):
        assert ours[name] == theirs.get(name), name


def test_constants_are_those_of_the_vendors_headers():
    headers = TORCH_NPU / "include" / "third_party" / "acl" / "inc" / "acl"
    text = "".join((headers / n).read_text(errors="replace") for n in ("acl_base_rt.h", "acl_rt.h"))
    theirs = dict(re.findall(r"\b(ACL_[A-Z0-9_]+)\s*=\s*(-?\d+)", text))
    ours = dict(re.findall(r"\b(ACL_[A-Z0-9_]+)\s*=\s*(-?\d+)", (SIM / "acl.h").read_text()))
    same = {name for name in ours if theirs.get(name) == ours[name]}
    assert len(same) > 40 and not {n for n in ours if n in theirs} - same


# onnxruntime-cann on the simulator ----------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 2000])
@pytest.mark.parametrize("case", ["results", "concurrent_runs"])
def test_the_real_provider_is_right_on_the_simulator(case, delay, tmp_path):
    left_by_provider(case, {}, tmp_path, NSA_SIM_DELAY_US=delay)


@pytest.mark.parametrize("case", ["placement", "failure_of_a_task"])
def test_the_real_provider_believes_the_simulator(case, tmp_path):
    left_by_provider(case, {}, tmp_path)


def test_the_real_provider_binds_device_memory(tmp_path):
    # OrtValues made on the device come from an arena that onnxruntime keeps for the process: one allocation.
    left_by_provider("io_binding", {"device_memory": 1}, tmp_path, NSA_SIM_DELAY_US=2000)


def left_by_provider(case, left, tmp_path, **environment):
    """Run a case of tests/sim_cann/provider.py in the environment of onnxruntime-cann."""
    program = ROOT / "tests" / "sim_cann" / "provider.py"
    done = Child([str(CANN_PYTHON), str(program), case], tmp_path, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.report["calls"] > 0
    assert done.left() == left


# torch_npu on the simulator -----------------------------------------------------------------------------


# The script that calls them, and how often each is called and runs as a task.
VENDOR_CALLS = {
    "vendor_call.py": {"aclnnNsaCompress": 4, "aclnnNsaCompressWithCache": 4},
    "vendor_attention_call.py": {
        "aclnnNsaCompressAttention": 8,
        "aclnnNsaCompressAttentionInfer": 8,
        "aclnnNsaSelectedAttention": 8,
        "aclnnNsaSelectedAttentionInfer": 12,
    },
}


@pytest.mark.parametrize("script", VENDOR_CALLS)
def test_the_real_torch_npu_calls_the_vendors_operators_as_we_read_them(script, tmp_path):
    log = tmp_path / "log"
    environment = {
        "PYTHONPATH": f"{TORCH_NPU.parent}:{SIM.parent}",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": 0,
        "NSA_SIM_LOG": log,
    }
    done = Child([sys.executable, str(ROOT / "tests" / "sim_cann" / script)], tmp_path, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    said = log.read_text()
    assert {name: said.count(f"{name} 0") for name in VENDOR_CALLS[script]} == VENDOR_CALLS[script]
    assert done.left() == {"streams": 1}  # torch_npu's own: it resets the device instead
