"""Device memory that launches share (tests/cpu/device_memory.cc), without a device whose timing decides."""

import subprocess
from pathlib import Path

TESTS = Path(__file__).parent
ROOM = TESTS.parent / "ort_ext" / "device"


def test_no_stream_gets_memory_that_another_one_uses(tmp_path):
    sources = [TESTS / "cpu" / "device_memory.cc", ROOM / "memory.cc", ROOM / "launch.cc"]
    command = ["g++", "-std=c++17", "-O1", "-fsanitize=address,undefined", "-Wall", "-Wextra", "-Werror"]
    program = tmp_path / "device_memory"
    built = subprocess.run([*command, "-I", ROOM.parent, *sources, "-o", program], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "lent rightly\n"), done.stderr
