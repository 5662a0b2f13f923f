"""The kernels' test programs (tests/cpu) on this machine: same bits for every instruction set, split and thread."""

import subprocess
import sys
from pathlib import Path

import pytest
from kernels import TARGETS
from library_build import library_build

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def same_bits():
    cmake = str(Path(sys.executable).with_name("cmake"))
    with library_build() as folder:
        for step in (["-D", "NSA_ONNX_TESTS=ON", folder], ["--build", folder, "--target", "same_bits", "fuzz"]):
            done = subprocess.run(
                [cmake, *step], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
            )
            assert done.returncode == 0, done.stdout
    return folder / "tests" / "cpu" / "same_bits"


@pytest.mark.parametrize(("cases", "sources"), [("operators", "kernel.cc"), ("fuzz", "c_api.cc")])
def test_every_operator_has_its_cases(cases, sources):
    operators = {path.parent.name for path in (ROOT / "ort_ext" / "operators").glob(f"*/{sources}")}
    assert operators == {path.stem for path in (ROOT / "tests" / "cpu" / cases).glob("*.cc")} != set()


def run(program, *arguments):
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300)


def test_random_calls_give_an_oracles_bits_on_every_instruction_set(same_bits):
    """`make test-sanitize` does this for longer, on fewer instruction sets, under sanitizers."""
    done = run(same_bits.with_name("fuzz"), "3", "1")
    assert (done.returncode, done.stderr) == (0, "")
    targets = [TARGETS[-1], *TARGETS[:-1]]  # the scalar kernel first
    assert done.stdout.startswith(f"fuzz: nothing found with seed 1 on {' '.join(targets)} in ")


def test_an_operator_that_the_fuzzer_does_not_have_fails(same_bits):
    done = run(same_bits.with_name("fuzz"), "0", "1", "nsa_unknown")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "fuzz: no operator nsa_unknown\n")


def test_every_instruction_set_of_this_machine_gives_the_same_bits(same_bits):
    done = run(same_bits)
    assert (done.returncode, done.stderr) == (0, "")
    # The binary and the library were compiled for the same instruction sets.
    assert done.stdout.startswith(f"same bits: {' '.join(TARGETS)};")


def test_a_target_that_was_asked_for_and_is_not_there_fails(same_bits):
    done = run(same_bits, "scalar", "mmx")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this machine has no target mmx, only" in done.stderr
