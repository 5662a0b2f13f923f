"""Runs the tests of with_torch_npu/ in separate processes, where the real torch_npu can be imported.

torch_npu is installed beside the environment (NSA_ONNX_TORCH_NPU_DIR); CANN's libraries are the simulated ones
(NSA_ONNX_SIM_DIR). Where either is missing, the tests fail: they are not optional.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TORCH_NPU = Path(os.environ.get("NSA_ONNX_TORCH_NPU_DIR", TESTS.parent / "build" / "torch_npu"))
SIMULATED_CANN = Path(os.environ.get("NSA_ONNX_SIM_DIR", TESTS.parent / "build" / "sim" / "lib"))
FILES = sorted((TESTS / "with_torch_npu").glob("test_*.py"))


def environment():
    paths = [str(TORCH_NPU), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "LD_LIBRARY_PATH": str(SIMULATED_CANN),
        "NSA_ONNX_WITH_TORCH_NPU": "1",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        # Inductor's cache on disk does not notice that a kernel has changed.
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_with_the_real_torch_npu(file):
    assert (TORCH_NPU / "torch_npu").is_dir(), f"no torch_npu in {TORCH_NPU}: make test installs it"
    assert (SIMULATED_CANN / "libascendcl.so").is_file(), f"no simulated CANN in {SIMULATED_CANN}: make test builds it"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--no-header", "-rfE", str(file)]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    print(ran.stdout, ran.stderr, sep="\n")
    assert ran.returncode == 0
    # Not the last line: what torch's C++ side has printed is flushed after pytest's summary.
    summary = r"^\d+ passed(, \d+ warnings?)? in "
    assert re.search(summary, ran.stdout, re.MULTILINE), "nothing but passed counts"


def test_without_torch_npu_nothing_happens():
    code = """
import sys
import torch
import nsa_onnx.exporters
assert "torch_npu" not in sys.modules
assert not [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("npu::")]
assert not nsa_onnx.exporters.torch_npu.attach()
try:
    import torch_npu
except ModuleNotFoundError as error:
    assert error.name == "torch_npu"
else:
    raise AssertionError("this test is about a machine without torch_npu")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TESTS, timeout=300)
