"""The custom ops in onnxruntime's CPU provider: every case of ort_cases.py, on the newest and the oldest version."""

import json
import os
import subprocess
import sys
from pathlib import Path

import compress_attention_ort_cases  # noqa: F401 (further cases)
import oldest
import onnxruntime
import ort_cases
import pytest
import selected_ort_cases  # noqa: F401 (further cases)

from nsa_onnx.runtime import native

ROOT = Path(__file__).parent.parent
LIBRARY = str(native.library_path())
cases = pytest.mark.parametrize("name", ort_cases.CASES)


@cases
def test_newest_onnxruntime(name):
    ort_cases.CASES[name](LIBRARY)


@pytest.fixture(scope="module")
def old_report():
    """What ort_cases.py says there. One process for all cases: each import costs a second."""
    assert Path(oldest.PYTHON).exists(), f"{oldest.PYTHON} is missing: run `make test`, or set NSA_ONNX_OLDEST_PYTHON"
    command = [oldest.PYTHON, str(ROOT / "tests" / "ort_cases.py"), LIBRARY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_old_onnxruntime_is_the_oldest_that_we_support_and_this_one_is_not(old_report):
    assert old_report["version"] == oldest.ONNXRUNTIME
    assert onnxruntime.__version__ != oldest.ONNXRUNTIME


@cases
def test_oldest_onnxruntime(name, old_report):
    assert old_report["cases"][name] == ""


# 48 MiB of cache: an intermediate, because onnxruntime never takes over an input. The operators take float16 as it is.
TAKEN_OVER = """
import re, sys
from pathlib import Path
import numpy as np, ort_cases as c
from onnx import TensorProto, helper
library, *readers = sys.argv[1:]
nodes = [helper.make_node("Concat", ["half", "half"], ["own"], axis=0), c.infer_node(("x", "w", "slots", "own", "seq"))]
# "own" is read after the node, by a place that depends on its output.
nodes += [helper.make_node("Size", ["y"], ["n"]), helper.make_node("Sub", ["n", "n"], ["zero"])]
nodes += [helper.make_node("Gather", [name, "zero"], [f"first_{name}"]) for name in readers]
inputs = {"half" if name == "cache" else name: kind for name, kind in c.infer_inputs().items()}
outputs = {f"first_{name}": (TensorProto.FLOAT16, None) for name in readers}
options = c.options(library)
options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # which ask for more than they use
s = c.ort.InferenceSession(c.model(nodes, inputs, outputs), options, providers=["CPUExecutionProvider"])
feeds = c.make_infer(np.float16)
del feeds["cache"]
half = np.ones((1 << 17, 3, 32), np.float16)
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
c.run(s, {**feeds, "half": half[:8]})
before = peak()
c.run(s, {**feeds, "half": half})
print(peak() - before)
"""


def megabytes(*readers):
    command = [sys.executable, "-c", TAKEN_OVER, LIBRARY, *readers]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_a_cache_that_onnxruntime_may_take_over_is_not_copied():
    """An intermediate with one reader: the op writes into it (GetMayInplace). With another reader there are two."""
    assert megabytes("y", "own") - megabytes("y") > 40
