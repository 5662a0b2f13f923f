"""What the machine can do, measured by limits.cc: reading, copying, multiplying and adding.

The library is built at its first use, under build/bench.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
TARGET = "nsa_bench_limits"

# Ways to read: 0 loads vectors as long as the kernels', 1 half as long; and how many bytes a software prefetch runs
# before the reading. Which is fastest differs between machines and numbers of threads: the fastest is the limit.
READ_FORMS = {"read": (0, 0), "read, prefetch": (0, 4096), "read, half vectors": (1, 0)}


def _tool(name: str) -> str:
    beside_python = Path(sys.executable).with_name(name)
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is neither beside {sys.executable} nor on the PATH")
    return found


def build() -> Path:
    """Build the library of limits if it is not there in its newest form; where it lies."""
    configure = [_tool("cmake"), "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DNSA_ONNX_BUILD_BENCH=ON"]
    configure.append(f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}")
    for command in (configure, [_tool("cmake"), "--build", str(BUILD), "--target", TARGET]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return BUILD / "benchmarks" / f"lib{TARGET}.so"


@lru_cache(maxsize=1)
def _library() -> Any:
    library = ctypes.CDLL(str(BUILD / "benchmarks" / f"lib{TARGET}.so"))
    integer, pointer, text = ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p
    library.nsa_bench_read.argtypes = [
        text,
        pointer,
        pointer,
        integer,
        ctypes.c_int,
        integer,
        integer,
        integer,
        pointer,
    ]
    library.nsa_bench_copy.argtypes = [pointer, pointer, integer, integer, integer]
    library.nsa_bench_multiply_add.argtypes = [text, integer, integer, pointer]
    for name in ("read", "copy", "multiply_add"):
        getattr(library, f"nsa_bench_{name}").restype = ctypes.c_double
    return library


def _checked(seconds: float) -> float:
    if seconds < 0:
        raise RuntimeError("limits.cc was not compiled for the instruction set that the kernels run on")
    return float(seconds)


Runs = Sequence[tuple[int, int]]


class Reading:
    """Reads runs of memory, each an address and a size in bytes. The memory must outlive this."""

    def __init__(self, runs: Runs, target: str, threads: int, form: str = "read") -> None:
        self.size = sum(size for _, size in runs)
        self.sum = ctypes.c_uint32()  # of all 32-bit words, modulo 2**32, after a call
        count = len(runs)
        addresses = (ctypes.c_void_p * count)(*(address for address, _ in runs))
        sizes = (ctypes.c_int64 * count)(*(size for _, size in runs))
        self._arguments = target.encode(), addresses, sizes, count, *READ_FORMS[form], threads

    def __call__(self, repeats: int = 1) -> float:
        """Seconds for `repeats` passes."""
        return _checked(_library().nsa_bench_read(*self._arguments, repeats, ctypes.byref(self.sum)))


def shares(address: int, size: int, threads: int) -> Runs:
    """One block of memory as one run per thread, cut at lines of memory."""
    cuts = [size * thread // threads // 64 * 64 for thread in range(threads)] + [size]
    return [(address + begin, end - begin) for begin, end in itertools.pairwise(cuts)]


def copy_seconds(source: int, target: int, size: int, threads: int, repeats: int = 1) -> float:
    """Seconds for `repeats` copies of `size` bytes from one address to another."""
    return float(_library().nsa_bench_copy(source, target, size, threads, repeats))


def operations_per_second(target: str, threads: int, turns: int = 10_000_000) -> float:
    """Floating point operations, a multiply-add being two, that all threads together do in a second: the best of 5."""
    operations = ctypes.c_double()
    arguments = target.encode(), threads, turns, ctypes.byref(operations)
    seconds = min(_checked(_library().nsa_bench_multiply_add(*arguments)) for _ in range(5))
    return operations.value / seconds
