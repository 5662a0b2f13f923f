"""Work in several threads and processes at once, as plain functions: test_concurrency.py runs each in its own process.

``python concurrency_cases.py CASE`` prints ``passed``. A process that hangs ends after a while and says where it was.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import gc
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from onnxruntime import InferenceSession, SessionOptions

import nsa_onnx
from nsa_onnx.graph import wire
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.example import example_model
from nsa_onnx.operators.sampling import floats
from nsa_onnx.runtime import everywhere, native

SECONDS = 100  # longer than any case takes on a busy machine
NAMES = tuple(OPERATORS)
CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


# --------------------------------------------------------------------------------------------------
# The example call of each operator


@functools.cache
def given(name: str) -> dict[str, np.ndarray]:
    return {one: values.astype(np.float16) for one, values in floats(OPERATORS[name].example.shapes, "float16").items()}


@functools.cache
def model(name: str) -> bytes:
    return example_model(OPERATORS[name], OPERATORS[name].example).SerializeToString()


def eager(name: str) -> bytes:
    """The bits of an eager call."""
    operator = OPERATORS[name]
    # A copy: a call may update an input.
    values = {**{one: array.copy() for one, array in given(name).items()}, **operator.example.indices}
    results = operator.call([values.get(one) for one in operator.input_names], operator.example.attributes)
    return b"".join(one.tobytes() for one in results)


def create(name: str, options: SessionOptions | None = None, threads: int = 2) -> InferenceSession:
    if options is None:
        options = SessionOptions()
        options.intra_op_num_threads = threads
    return nsa_onnx.create_session(model(name), device="cpu", options=options)


def served(session: InferenceSession, name: str) -> bytes:
    """The bits of a session's run."""
    return b"".join(one.tobytes() for one in session.run(None, given(name)))


@functools.cache
def right(name: str) -> bytes:
    """The bits of a run on one thread, while no other one works."""
    return served(create(name, threads=1), name)


def prepare() -> None:
    for name in NAMES:
        right(name)


def check(sessions: dict[str, InferenceSession]) -> None:
    for name, session in sessions.items():
        assert served(session, name) == right(name), name


def check_eager() -> None:
    for name in NAMES:
        assert eager(name) == right(name), name


def check_new_sessions() -> None:
    for name in NAMES:
        check({name: create(name)})


# --------------------------------------------------------------------------------------------------
# Threads


def at_once(count: int, work: Callable[[int], object]) -> None:
    """`work(0)` .. `work(count - 1)`, in threads that begin together. Raises what one of them raises."""
    barrier = threading.Barrier(count)

    def one(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))


@contextlib.contextmanager
def meanwhile(*works: Callable[[], object]) -> Iterator[None]:
    """Each of `works` again and again, in a thread of its own, while the block runs. Raises what one of them raises."""
    going = True

    def repeat(work: Callable[[], object]) -> None:
        while going:
            work()

    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(repeat, work) for work in works]
        try:
            yield
        finally:
            going = False
        for future in futures:
            future.result()


@case
def sessions_come_and_go_while_others_run() -> None:
    prepare()
    lasting = {name: create(name) for name in NAMES}
    with meanwhile(lambda: check(lasting), lambda: check(lasting)):
        at_once(3, lambda _: check_new_sessions())


@case
def one_options_object_serves_sessions_in_several_threads() -> None:
    prepare()
    options = SessionOptions()

    def work(number: int) -> None:
        for turn in range(3):
            assert nsa_onnx.session_options(options) is options
            options.register_custom_ops_library(nsa_onnx.get_library_path())
            name = NAMES[(number + turn) % len(NAMES)]
            check({name: create(name, options)})

    at_once(len(NAMES), work)


@case
def the_library_is_first_loaded_by_several_threads() -> None:
    """By half of them for an eager call, by the others for a session."""
    for name in NAMES:
        given(name), model(name)
    results: dict[int, bytes] = {}

    def work(number: int) -> None:
        name = NAMES[number % len(NAMES)]
        results[number] = eager(name) if number < len(NAMES) else served(create(name), name)

    at_once(2 * len(NAMES), work)
    assert len(results) == 2 * len(NAMES)
    for number, bits in results.items():
        assert bits == right(NAMES[number % len(NAMES)]), number


def set_target(name: str) -> None:
    native.call("nsa_set_cpu_target", native.ctypes.c_char_p(name.encode()))


@case
def the_instruction_set_is_switched_while_sessions_and_eager_calls_run() -> None:
    """Each result has the bits of one of the instruction sets: no call uses two."""
    targets = native.cpu_targets()
    bits: dict[str, dict[str, bytes]] = {}
    for target in targets:
        set_target(target)
        bits[target] = {name: eager(name) for name in NAMES}
    set_target("auto")
    assert bits[native.cpu_target()] == {name: right(name) for name in NAMES}
    possible = {name: {one[name] for one in bits.values()} for name in NAMES}
    lasting = {name: create(name) for name in NAMES}

    def run() -> None:
        for name, session in lasting.items():
            assert served(session, name) in possible[name], name
            assert eager(name) in possible[name], name

    def switch(number: int) -> None:
        for turn in range(1000):
            set_target(targets[(turn + number) % len(targets)])

    for _ in range(5):
        with meanwhile(run):
            at_once(2, switch)
        assert {name: eager(name) for name in NAMES} == bits[native.cpu_target()]
    set_target("auto")
    check(lasting)


@case
def large_files_are_first_scanned_by_several_threads() -> None:
    """What is known of a model's messages is collected at the first file."""
    sys.setswitchinterval(1e-6)
    nested = example_model(OPERATORS[NAMES[0]], OPERATORS[NAMES[0]].example)
    nested.functions.add().node.add().attribute.add().g.node.add().attribute.add(ints=range(1000))
    data = nested.SerializeToString()
    wanted = wire.scan(io.BytesIO(data), len(data))

    def scan(_: int) -> None:
        assert wire.scan(io.BytesIO(data), len(data)) == wanted

    for _ in range(50):
        wire._known.cache_clear()
        at_once(4, scan)


# --------------------------------------------------------------------------------------------------
# Processes. A session's threads are not in a fork: onnxruntime has no run there of a session that has any.


def in_fork(work: Callable[[], object]) -> None:
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(SECONDS // 2)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@case
def a_fork_has_eager_calls_new_sessions_and_sessions_without_threads() -> None:
    lasting = {name: create(name) for name in NAMES}
    alone = {name: create(name, threads=1) for name in NAMES}
    check(lasting)
    check_eager()
    in_fork(check_eager)
    in_fork(check_new_sessions)
    in_fork(lambda: check(alone))
    check(lasting)


@case
def a_fork_has_eager_calls_while_threads_of_its_parent_work() -> None:
    prepare()
    lasting = {name: create(name) for name in NAMES}
    with meanwhile(lambda: check(lasting), check_eager):
        for _ in range(5):
            in_fork(check_eager)


@case
def a_fork_in_the_middle_of_everywhere_has_it() -> None:
    def enter() -> None:
        with nsa_onnx.everywhere():
            served(InferenceSession(model(NAMES[0]), providers=["CPUExecutionProvider"]), NAMES[0])

    enter()
    entered = threading.Event()

    def hold() -> None:
        with everywhere._lock:
            entered.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    in_fork(enter)
    thread.join()


def in_new_process(_: int) -> bool:
    check_eager()
    check_new_sessions()
    return True


@case
def spawned_and_served_processes_have_everything() -> None:
    lasting = {name: create(name) for name in NAMES}
    for method in ("spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(in_new_process, range(2), chunksize=1) == [True, True]
    check(lasting)


# --------------------------------------------------------------------------------------------------
# The end of Python


@case
def python_ends_with_sessions_in_a_circle() -> None:
    gc.disable()
    circle: list[object] = [create(name) for name in NAMES]
    circle.append(circle)
    sys.modules["kept"] = circle  # type: ignore[assignment]
    check_eager()


@case
def python_ends_while_threads_make_eager_calls() -> None:
    """Not sessions: Python ends a thread where it takes the interpreter again, and onnxruntime aborts the process."""
    prepare()

    def forever() -> None:
        while True:
            check_eager()

    for _ in range(3):
        threading.Thread(target=forever, daemon=True).start()
    time.sleep(0.2)


@case
def python_ends_when_a_thread_with_sessions_has_left() -> None:
    lasting = {name: create(name) for name in NAMES}

    def leave() -> None:
        check(lasting)
        sys.exit(3)

    threading.Thread(target=leave).start()


@case
def sessions_and_eager_calls_work_at_exit() -> None:
    lasting = {name: create(name) for name in NAMES}
    prepare()
    atexit.register(print, "checked at exit")
    for work in (check_eager, check_new_sessions, lambda: check(lasting)):
        atexit.register(work)


def main() -> None:
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(SECONDS)
    CASES[sys.argv[1]]()
    print("passed", flush=True)


if __name__ == "__main__":
    main()
