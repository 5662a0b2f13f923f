"""Our operators on Ascend: the real onnxruntime-cann on the simulated CANN of tests/sim.

Everything runs in child processes with the environment of onnxruntime-cann (numpy < 2, `make test` builds it);
the cases are in tests/sim_cann/nsa.py. Without that environment these tests fail: they are not optional.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nsa_onnx

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LIB = Path(os.environ.get("NSA_ONNX_SIM_LIB", ROOT / "build" / "sim" / "lib"))
CANN_PYTHON = Path(os.environ.get("NSA_ONNX_CANN_PYTHON", ROOT / "build" / "venv-cann" / "bin" / "python"))

# The provider keeps what OrtValues on the device were made in until the process ends.
PROVIDERS_ARENA = {"device_memory": 1}

CASES = (
    *("prefill", "prefill_sizes", "no_window_no_call"),
    *("decode", "decode_sizes", "large_batches", "vendor_limits"),
    *("concurrent_runs", "two_nodes_and_standard_ones", "nodes_in_a_row"),
    *("failing_allocations", "failing_tasks", "a_failed_run_does_not_fall_back"),
    *("placement", "placement_is_asserted", "auto_is_ascend", "backends", "graph_mode", "doctor"),
    "the_provider_cannot_broadcast_both_inputs",
)
CASES_WITH_DEVICE_VALUES = (
    *("bad_indices", "in_place", "input_cache_survives"),
    *("failing_calls", "failing_first_calls"),
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with nsa_onnx as it is here, library included, for another Python."""
    folder = tmp_path_factory.mktemp("packages")
    package = folder / "nsa_onnx"
    package.mkdir()
    for path in (*(ROOT / "nsa_onnx").iterdir(), Path(nsa_onnx.get_library_path())):
        (package / path.name).symlink_to(path)
    return folder


class Child:
    """A finished case: its output, and what the simulator reported when it ended (None if it was not loaded)."""

    def __init__(self, arguments, folder, path, library_path=LIB, **environment):
        report = folder / "report.json"
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("NSA_", "ASCEND_"))}
        env = {
            **clean,
            "LD_LIBRARY_PATH": str(library_path),
            "NSA_SIM_REPORT": str(report),
            "NSA_TEST_FOLDER": str(folder),
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            **environment,
        }
        done = subprocess.run(
            [CANN_PYTHON, *arguments], env=env, cwd=folder, capture_output=True, text=True, timeout=100
        )
        self.output = done.stdout + done.stderr
        self.returncode = done.returncode
        self.report = json.loads(report.read_text()) if report.exists() else None

    def left(self):
        return {key: count for key, count in self.report.items() if count and key not in ("calls", "device_bytes")}


@pytest.fixture
def run(packages, tmp_path):
    def run(case, *arguments, path=(), **keywords):
        command = (TESTS / "sim_cann" / "nsa.py", case, *arguments)
        child = Child(command, tmp_path, (*path, packages, TESTS), **keywords)
        assert child.returncode == 0, child.output
        return child

    return run


@pytest.mark.parametrize("case", CASES)
def test_on_the_device(case, run):
    assert run(case).left() == {}


@pytest.mark.parametrize("case", CASES_WITH_DEVICE_VALUES)
def test_on_the_device_with_values_there(case, run):
    assert run(case).left() == PROVIDERS_ARENA


@pytest.fixture(scope="module")
def demo_models(tmp_path_factory):
    """The two graphs of the demo, as it exports them."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, ROOT / "examples" / "nsa_decoder.py", "--steps", "32", "--output-dir", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", ["demo_prefill", "demo_decode"])
def test_the_demo_on_the_device(case, run, demo_models):
    assert run(case, NSA_TEST_MODELS=str(demo_models)).left() == {}


@pytest.mark.parametrize("missing", ["libascendcl.so", "libnnopbase.so", "libopapi.so"])
def test_a_missing_library_of_cann_is_named(missing, run, tmp_path):
    there = tmp_path / "cann"
    there.mkdir()
    for library in LIB.iterdir():
        if library.name != missing:
            # Copies: a link would find its missing neighbour beside its target.
            (there / library.name).write_bytes(library.read_bytes())
    run("cann_is_missing", library_path=there, NSA_TEST_MISSING=missing)


def test_numpy_2_is_explained(run, tmp_path):
    fake = tmp_path / "fake" / "numpy-2.1.0.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.1.0\n")
    run("numpy_2_is_explained", path=(fake.parent,))


def test_the_simulators_libraries_are_there():
    assert (LIB / "libopapi.so").is_file(), f"no simulated CANN in {LIB}: make test builds it"
    assert CANN_PYTHON.is_file(), f"no {CANN_PYTHON}: make test builds it"
