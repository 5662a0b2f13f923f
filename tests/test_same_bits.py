"""The kernels' test program (tests/cpu) on this machine: the same bits for every instruction set, split and thread."""

import subprocess
import sys
from pathlib import Path

import pytest
from kernels import TARGETS

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "same_bits"


def tool(name):
    """Of the environment that runs the tests."""
    return str(Path(sys.executable).parent / name)


@pytest.fixture(scope="module")
def same_bits():
    options = ["-D", "NSA_ONNX_TESTS=ON", "-D", f"CMAKE_MAKE_PROGRAM={tool('ninja')}", "--log-level=WARNING"]
    for command in (
        [tool("cmake"), "-S", str(ROOT), "-B", str(FOLDER), "-G", "Ninja", *options],
        [tool("cmake"), "--build", str(FOLDER), "--target", "same_bits"],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
        assert done.returncode == 0, done.stdout
    return FOLDER / "tests" / "cpu" / "same_bits"


def test_every_cpu_kernel_has_its_cases():
    kernels = {path.parent.name for path in (ROOT / "ort_ext" / "operators").glob("*/kernel.cc")}
    assert kernels == {path.stem for path in (ROOT / "tests" / "cpu" / "operators").glob("*.cc")} != set()


def run(same_bits, *targets):
    return subprocess.run([same_bits, *targets], capture_output=True, text=True, timeout=300)


def test_every_instruction_set_of_this_machine_gives_the_same_bits(same_bits):
    done = run(same_bits)
    assert (done.returncode, done.stderr) == (0, "")
    # The binary and the library were compiled for the same instruction sets.
    assert done.stdout.startswith(f"same bits: {' '.join(TARGETS)};")


def test_a_target_that_was_asked_for_and_is_not_there_fails(same_bits):
    done = run(same_bits, "scalar", "mmx")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this machine has no target mmx, only" in done.stderr
