"""The custom ops in onnxruntime's CPU provider: every case of ort_cases.py, on the newest and the oldest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import ort_cases
import pytest

from nsa_onnx import _native

ROOT = Path(__file__).parent.parent
LIBRARY = str(_native.library_path())
OLDEST = "1.21.1"
cases = pytest.mark.parametrize("name", ort_cases.CASES)


@cases
def test_newest_onnxruntime(name):
    ort_cases.CASES[name](LIBRARY)


def old_python() -> str:
    """An interpreter that has the oldest onnxruntime; `make test` creates the default one."""
    default = ROOT / "build" / "venv-ort-1.21" / "bin" / "python"
    return os.environ.get("NSA_ONNX_OLD_ORT_PYTHON", str(default))


@pytest.fixture(scope="module")
def old_report():
    """What ort_cases.py says there. One process for all cases: each import costs a second."""
    python = old_python()
    assert Path(python).exists(), f"{python} is missing: run `make test`, or set NSA_ONNX_OLD_ORT_PYTHON"
    command = [python, str(ROOT / "tests" / "ort_cases.py"), LIBRARY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_old_onnxruntime_is_the_oldest_that_we_support_and_this_one_is_not(old_report):
    assert old_report["version"] == OLDEST
    assert onnxruntime.__version__ != OLDEST


@cases
def test_oldest_onnxruntime(name, old_report):
    assert old_report["cases"][name] == ""


def test_a_cache_that_onnxruntime_may_take_over_is_not_copied():
    """An intermediate with one reader: the op writes into it (GetMayInplace). Seen in the arena's statistics:
    the run needs no second cache."""
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r})
import numpy as np, ort_cases as c
from onnx import TensorProto, helper
nodes = [helper.make_node("Neg", ["cache"], ["own"]), c.infer_node(("x", "w", "slots", "own", "seq")),
         helper.make_node("ReduceMax", ["y"], ["z"], keepdims=0)]
s = c.session({LIBRARY!r}, c.model(nodes, c.infer_inputs(), {{"z": (TensorProto.FLOAT16, [])}}))
feeds = c.make_infer(np.float16)
feeds["cache"] = np.zeros((1 << 18, 3, 32), np.float16)  # 48 MB
import re
from pathlib import Path
c.run(s, feeds)
# Not getrusage: its maximum counts the process that started this one, too.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    baseline = subprocess.run(
        [sys.executable, "-c", code.replace("1 << 18", "1 << 10")], capture_output=True, text=True, timeout=120
    )
    megabytes = (int(done.stdout) - int(baseline.stdout)) / 1024
    # The NumPy array, its OrtValue's copy and Neg's output are three caches; a fourth would be the op's own.
    assert megabytes < 3.5 * 48, megabytes
