"""The benchmark program: a tiny run has all its parts, and its checks and limits can fail."""

import itertools
import json
import subprocess
import sys
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import contenders, decode_cost, decode_step, limits, memory, models, prefill, startup
from benchmarks.worker import Worker, WorkerError
from nsa_onnx.operators import OPERATORS
from nsa_onnx.runtime import native

ROOT = Path(__file__).resolve().parents[1]
# The slow ones to prepare are left out here: a compiler that runs for seconds, a body that is tested elsewhere.
PEERS = ("ort conv", "ort conv 1-D", "ort gather", "torch eager", "torch conv")
TINY = ("--rounds", "2", "--megabytes", "2", "--threads", "1,2", "--dtype", "both", "--shapes", "48/16,32/16@3x48")
ALWAYS = (*limits.READ_FORMS, "copy", "nsa_onnx node", "nsa_onnx eager")


def bench(*arguments):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Everything on inputs that are too small to say anything about speed: text, JSON, plots."""
    folder = tmp_path_factory.mktemp("bench")
    done = bench(*TINY, "--peers", ",".join(PEERS), "--json", folder / "run.json", "--plots", folder / "plots")
    assert done.returncode == 0, done.stderr
    return done, json.loads((folder / "run.json").read_text()), folder / "plots"


def test_every_contender_of_a_case_is_measured_and_judged_by_the_limit_and_by_ours(tiny):
    _, run, _ = tiny
    cases = run["prefill"]
    assert len(cases) == 2 * 2 * 3, "dtypes, threads, two shapes and one that fits L2"
    for case in cases:
        wanted = {*ALWAYS, *(PEERS if (case["heads"], case["dim"]) == (4, 128) else ())}
        assert set(case["contenders"]) == wanted
        for name, of in case["contenders"].items():
            assert 1 <= len(of["seconds"]) <= 2 and min(of["seconds"]) > 0, (name, of)
            assert all(of[key] > 0 for key in ("gb_per_s", "of_limit", "node_over_it")), (name, of)
        assert case["contenders"][case["limit"]]["of_limit"] == 1
        assert case["contenders"]["nsa_onnx node"]["node_over_it"] == 1
        fastest = max(case["contenders"][form]["gb_per_s"] for form in limits.READ_FORMS)
        assert case["contenders"][case["limit"]]["gb_per_s"] == fastest
    assert any("NOT beyond the last-level cache" in case["note"] or "unknown" in case["note"] for case in cases)


def test_decode_growth_and_figures_are_measured(tiny):
    _, run, _ = tiny
    decode, growth, figures = run["decode"], run["growth"], run["figures"]
    assert [point["cache_bytes"] >> 20 for point in decode["growth"] if point["grows"] == "cache"] == [1, 2]
    assert all(point["us"] > 0 for point in decode["growth"])
    assert [of["threads"] for of in decode["scattered"]] == [1, 2]
    assert all(of["of_limit"] > 0 and of["windows"] == 256 for of in decode["scattered"])
    paged = {name for name, one in OPERATORS.items() if any(port.page_size for port in one.inputs)}
    assert {(of["operator"], of["threads"], of["sequences"]) for of in decode["idle"]} == set(
        itertools.product(paged, (1, 2), decode_cost.BATCHES)
    )
    for of in decode["idle"]:
        assert of["node_us"] > 0 and of["sum_us"] > 0 and of["identity_us"] > 0
    assert {point["sweep"] for point in growth["points"]} == {"tokens", "segments", "heads", "dim", "overlap"}
    assert all(point["ns_per_byte"] > 0 and point["of_limit"] > 0 for point in growth["points"])
    assert growth["plan"]["segments"] == 1000 and 0 < growth["plan"]["share"] < 1
    assert figures["demo"]["in_place_ms"] > 0 and figures["demo"]["own_outputs_ms"] > 0
    forms = {of["name"]: of for of in figures["portable"]}
    assert forms["portable body"]["ulps"] == 0 < forms["ort gather"]["ulps"]
    assert forms["portable body"]["extra_kib"] < forms["ort gather"]["extra_kib"]


def test_the_selected_attentions_and_a_whole_step_are_measured(tiny):
    _, run, _ = tiny
    selected, step = run["selected"], run["step"]
    (prompt,) = selected["prefill"]
    assert prompt["seconds"] > 0 and prompt["of_limit"] > 0
    assert [of["name"] for of in selected["peers"]] == ["torch attention"] and selected["peers"][0]["seconds"] > 0
    (point,) = selected["decode"]
    assert point["group"] == 16 and point["of_read"] > 0 and point["of_limit"] > 0
    assert point["of_bound"] >= max(point["of_read"], point["of_limit"]) * 0.999
    lengths = [of["tokens"] for of in step["sparse"]]
    assert all(of[f"{part}ms"] > 0 for of in step["sparse"] for part in ("", "compress_", "selected_", "window_"))
    assert [(of["name"], of["tokens"]) for of in step["dense"]] == [(n, t) for n in decode_step.PEERS for t in lengths]
    assert all(of["ms"] > 0 for of in step["dense"])


def test_eager_calls_and_start_up_are_measured(tiny):
    _, run, _ = tiny
    calls = {of["name"]: of for of in run["eager"]["calls"]}
    assert {"node", "NumPy", "torch", "torch op"} <= set(calls)
    assert all(of["ms"] > 0 and of["over_node"] > 0 for of in calls.values()) and calls["node"]["over_node"] == 1
    programs = {of["program"]: of for of in run["startup"]["programs"]}
    assert set(programs) == set(startup.PROGRAMS)
    assert programs["nsa-onnx check"]["imports_ms"]["onnx"] > 0 == programs["import nsa_onnx"]["imports_ms"]["onnx"]
    assert {of["stage"] for of in run["startup"]["session"]} == set(startup.STAGES)


def test_the_commands_that_read_models_are_measured(tiny):
    _, run, _ = tiny
    commands = run["models"]["commands"]
    assert {of["command"] for of in commands} == {"onnx", *models.COMMANDS}
    assert all(of["nodes"] >= 600 and of["ms_per_node"] > 0 and of["over_onnx"] > 0 for of in commands)


def test_the_report_names_all_tables_and_has_no_bar_where_nobody_watches(tiny):
    done, run, _ = tiny
    for words in (
        "Prefill, bfloat16, threads: 2",
        "node/read",
        "torch conv",
        "Identity",
        "ns/byte",
        "ms/node",
        "Selected attention, causal prefill",
        "A decode step, one sequence",
        "docs/demo.md",
    ):
        assert words in done.stdout, words
    assert run["machine"]["processor"] in done.stdout and "step" not in done.stderr, done.stderr


def test_the_plots_are_png(tiny):
    _, _, plots = tiny
    for name in ("roofline.png", "growth.png", "step.png"):
        assert (plots / name).read_bytes().startswith(b"\x89PNG"), name


def test_the_program_fails_when_a_contender_computes_something_else():
    case = contenders.Case(32, 16, 4, 128, "float16", 1024, 1)
    plan = prefill.Plan("case", case, ("nsa_onnx node", "ort conv"), 1024)

    class Sabotaged(prefill.Team):
        def __init__(self, name, change):
            super().__init__()
            self.name, self.change = name, change

        def of(self, name):
            worker = super().of(name)
            return _Changing(worker, self.change) if name == self.name else worker

    for name, change in (("nsa_onnx node", 2.0**-8), ("ort conv", 0.5)):
        with Sabotaged(name, change) as team, pytest.raises(AssertionError, match=name):
            prefill.measure(plan, team, 1, lambda _: None)
    honest = contenders.NODE, "ort conv", *contenders.LIMITS
    with prefill.Team() as team:
        prefill.measure(replace(plan, names=honest), team, 1, lambda _: None)


class _Changing:
    """A worker whose output is off by a little in one number."""

    def __init__(self, worker, change):
        self._worker, self._change = worker, change

    def __getattr__(self, name):
        return getattr(self._worker, name)

    def call(self, function, **arguments):
        result = self._worker.call(function, **arguments)
        if function == "worker:output_rows":
            result[-1][0][0] += self._change
        return result


def test_the_read_limit_reads_every_byte():
    limits.build()
    words = memory.aligned_empty((1_000_003,), np.dtype(np.uint32))
    words[:] = np.random.default_rng(0).integers(1 << 32, size=words.size, dtype=np.uint32)
    total = int(words.sum(dtype=np.uint64)) % (1 << 32)
    for way in limits.ways():
        for threads in (1, 3):
            for target in native.cpu_targets():
                read = limits.Reading(limits.shares(words.ctypes.data, words.nbytes, threads), target, threads, way)
                assert read(2) > 0 and read.sum.value == 2 * total % (1 << 32), (way, threads, target)


def test_the_fastest_way_to_read_is_searched_and_taken(monkeypatch, tiny):
    _, run, _ = tiny
    reads = run["machine"]["reads"]
    assert [(of["threads"], of["huge"]) for of in reads] == [(1, True), (1, False), (2, True), (2, False)]
    for of in reads:
        speeds = [way["gb_per_s"] for way in of["best"]]
        assert speeds == sorted(speeds, reverse=True) and speeds[0] >= of["plain"] > 0
    limits.build()
    monkeypatch.setenv("NSA_ONNX_BENCH_WAYS", "{}")
    found = limits.search(native.cpu_target(), 2, 1)
    assert len(found) == len(set(limits.ways())) == 68
    limits.choose({2: found})
    assert [list(astuple(way)) for way in limits.best(2)] == [list(of["way"]) for of in found[:3]]


def test_no_limit_is_measured_on_another_instruction_set_than_the_kernels():
    limits.build()
    with pytest.raises(RuntimeError, match="instruction set"):
        limits.Reading([], "mmx", 1)()


def test_the_copy_limit_copies():
    limits.build()
    source = memory.Tokens(3, 48, "float16").fill(5000)
    target = memory.aligned_empty(source.shape, source.dtype)
    assert limits.copy_seconds(source.ctypes.data, target.ctypes.data, source.nbytes, 2) > 0
    assert np.array_equal(source, target)


def test_inputs_are_the_same_in_every_process_and_windows_of_them_need_no_array():
    tokens = memory.Tokens(2, 16, "bfloat16")
    x = tokens.fill(9000)
    assert x.ctypes.data % 4096 == 0
    assert np.array_equal(tokens.window(4090, 40).view(np.uint16), x[4090:4130].view(np.uint16))
    assert np.array_equal(memory.Tokens(2, 16, "bfloat16").fill(100).view(np.uint16), x[:100].view(np.uint16))


def test_a_worker_that_fails_says_why():
    with Worker() as worker:
        with pytest.raises(WorkerError, match="KeyError: 'no such'"):
            worker.call("worker:run", name="no such")
        assert worker.call("worker:forget") is None, "and serves on"


def test_bad_options_are_refused():
    for arguments, words in (
        (("--shapes", "32-16"), "'32-16' is not BLOCK/STRIDE"),
        (("--rounds", "0"), "at least 1, got '0'"),
        (("--sections", "prefil"), "'prefil' is none of prefill, eager"),
        (("--peers", "numpy"), "'numpy' is none of"),
        (("--shapes", "40/16"), "compress_block_size must be a multiple of 16, got 40"),
    ):
        done = bench(*arguments)
        assert done.returncode == 2 and words in done.stderr, (arguments, done.stderr)
