"""Our operators on Ascend: the real onnxruntime-cann on the simulated CANN of tests/sim.

Everything runs in child processes with the environment of onnxruntime-cann (numpy < 2), which `make test` builds. The
cases are in tests/sim_cann/nsa.py. Without that environment these tests fail: they are not optional.
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

BACKENDS = ("aclnn", "ascend_kernels")
KERNELS = "libnsa_ascend_kernels.so"

# With either backend.
CASES = (
    *("prefill", "prefill_sizes", "no_window_no_call", "nothing_to_compute_no_call"),
    *("decode", "decode_sizes", "large_batches", "launches_are_asynchronous"),
    *("concurrent_runs", "two_nodes_and_standard_ones", "nodes_in_a_row"),
    *("failing_allocations", "failing_tasks", "a_failed_run_does_not_fall_back"),
)
CASES_WITH_DEVICE_VALUES = (
    *("bad_indices", "in_place", "input_cache_survives", "uploads_do_not_grow_with_the_table"),
    *("failing_calls", "failing_first_calls"),
)
CASES_OF_ONE_BACKEND = (
    ("aclnn", "vendor_limits"),
    *(("ascend_kernels", case) for case in ("no_vendor_limits", "unknown_number_of_cores")),
    ("ascend_kernels", "device_faults_name_the_kernel"),
    *(("auto", case) for case in ("placement", "placement_is_asserted", "auto_is_ascend", "backends", "graph_mode")),
    *(("auto", case) for case in ("doctor", "the_provider_cannot_broadcast_both_inputs")),
)


# The attention stages, which have the vendor's operators only.
ATTENTION_CASES = (
    *("compress_attention_prefill", "compress_attention_decode", "selected_attention_prefill"),
    *("selected_attention_decode", "no_rows_no_call", "vendor_limits", "bad_indices_on_the_device"),
    *("unchecked_indices", "a_layer_stays_on_the_device", "failures", "no_other_backend"),
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with nsa_onnx as it is here, library included, for another Python."""
    return link_package(tmp_path_factory.mktemp("packages"))


def link_package(folder):
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
    def run(case, *arguments, path=(), program="nsa.py", **keywords):
        command = (TESTS / "sim_cann" / program, case, *arguments)
        child = Child(command, tmp_path, (*path, packages, TESTS), **keywords)
        assert child.returncode == 0, child.output
        return child

    return run


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_on_the_device(case, backend, run):
    assert run(case, NSA_ONNX_ASCEND_BACKEND=backend).left() == {}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES_WITH_DEVICE_VALUES)
def test_on_the_device_with_values_there(case, backend, run):
    assert run(case, NSA_ONNX_ASCEND_BACKEND=backend).left() == PROVIDERS_ARENA


@pytest.mark.parametrize(("backend", "case"), CASES_OF_ONE_BACKEND)
def test_on_the_device_with_one_backend(case, backend, run):
    assert run(case, NSA_ONNX_ASCEND_BACKEND=backend).left() == {}


@pytest.mark.parametrize("case", ATTENTION_CASES)
def test_attention_on_the_device(case, run):
    assert run(case, program="attention.py", NSA_ONNX_ASCEND_BACKEND="auto").left() == {}


def cann_without(folder, *names):
    folder.mkdir()
    for library in LIB.iterdir():
        if library.name not in names:
            # Copies: a link would find its missing neighbour beside its target.
            (folder / library.name).write_bytes(library.read_bytes())
    return folder


@pytest.fixture(scope="module")
def demo_models(tmp_path_factory):
    """The two graphs of the demo, as it exports them; with one key/value head, for the vendor's decode step."""
    folder = tmp_path_factory.mktemp("demo")
    options = ["--steps", "32", "--kv-heads", "1", "--count", "3", "--contexts"]
    command = [sys.executable, ROOT / "examples" / "nsa_decoder.py", "--output-dir", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", ["prefill", "decode"])
def test_the_demo_on_the_device(case, run, demo_models):
    assert run(case, program="demo.py", NSA_TEST_MODELS=str(demo_models)).left() == {}


@pytest.mark.parametrize("missing", ["libascendcl.so", "libnnopbase.so", "libopapi.so"])
def test_a_missing_library_of_cann_is_named(missing, run, tmp_path):
    run("cann_is_missing", library_path=cann_without(tmp_path / "cann", missing, KERNELS), NSA_TEST_MISSING=missing)


def test_our_kernels_are_preferred_where_they_are_found(run):
    run("preferred_backend", NSA_TEST_EXPECTED="ascend_kernels")


def test_without_our_kernels_the_vendors_operators_compute(run, tmp_path):
    run("preferred_backend", library_path=cann_without(tmp_path / "cann", KERNELS), NSA_TEST_EXPECTED="aclnn")


def test_our_kernels_need_no_operators_of_the_vendor(run, tmp_path):
    cann = cann_without(tmp_path / "cann", "libopapi.so")
    run("preferred_backend", library_path=cann, NSA_TEST_EXPECTED="ascend_kernels")


def test_our_kernels_are_found_beside_our_library(run, tmp_path):
    folder = tmp_path / "beside"
    folder.mkdir()
    own = link_package(folder) / "nsa_onnx"
    for name, source in (("libnsa_onnx_ort.so", Path(nsa_onnx.get_library_path())), (KERNELS, LIB / KERNELS)):
        (own / name).unlink(missing_ok=True)
        (own / name).write_bytes(source.read_bytes())
    cann = cann_without(tmp_path / "cann", KERNELS)
    run("preferred_backend", path=(folder,), library_path=cann, NSA_TEST_EXPECTED="ascend_kernels")


def test_our_kernels_can_be_named(run, tmp_path):
    cann, kernels = cann_without(tmp_path / "cann", KERNELS), tmp_path / "ours.so"
    kernels.write_bytes((LIB / KERNELS).read_bytes())
    run(
        "preferred_backend",
        library_path=cann,
        NSA_ONNX_ASCEND_KERNELS=str(kernels),
        NSA_TEST_EXPECTED="ascend_kernels",
    )


def test_a_named_file_that_is_not_there_is_not_replaced_by_another_one(run):
    name = "/nowhere/kernels.so"
    run("kernels_are_missing", NSA_ONNX_ASCEND_KERNELS=name, NSA_TEST_WORDS=name)
    run("preferred_backend", NSA_ONNX_ASCEND_KERNELS=name, NSA_TEST_EXPECTED="aclnn")


def test_kernels_that_are_not_there_say_where_they_were_looked_for(run, tmp_path):
    cann = cann_without(tmp_path / "cann", KERNELS)
    run("kernels_are_missing", library_path=cann, NSA_TEST_WORDS="NSA_ONNX_ASCEND_KERNELS may name it")


def test_a_library_that_is_not_ours_is_refused(run):
    words = "libnsa_ascend_kernels.so has no nsa_ascend_abi"
    run("kernels_are_missing", NSA_ONNX_ASCEND_KERNELS=str(LIB / "libhccl.so"), NSA_TEST_WORDS=words)


def test_kernels_of_other_operators_only_are_refused(run, tmp_path):
    library = tmp_path / "others.so"
    source = "int nsa_ascend_abi(void) { return 1; } long nsa_ascend_plan_blocks(const long* p) { return p[1]; }"
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"]
    subprocess.run(command, input=source, text=True, check=True)
    words = "libnsa_ascend_kernels.so has no nsa_ascend_compress_plan"
    run("kernels_are_missing", NSA_ONNX_ASCEND_KERNELS=str(library), NSA_TEST_WORDS=words)


def test_numpy_2_is_explained(run, tmp_path):
    fake = tmp_path / "fake" / "numpy-2.1.0.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 2.1.0\n")
    run("numpy_2_is_explained", path=(fake.parent,))


def test_the_simulators_libraries_are_there():
    assert (LIB / "libopapi.so").is_file(), f"no simulated CANN in {LIB}: make test builds it"
    assert CANN_PYTHON.is_file(), f"no {CANN_PYTHON}: make test builds it"
