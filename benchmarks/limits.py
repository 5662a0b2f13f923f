"""What the machine can do, measured by limits.cc: reading, copying, multiplying and adding.

The library is built at its first use, under build/bench.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from . import memory

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
TARGET = "nsa_bench_limits"

HINTS = ("no prefetch", "first level", "second level", "past the caches")
# Which way to read is fastest differs between machines, numbers of threads and moments. `search` tries all of them;
# the best few then take their turns with everything that is measured, and the fastest of these is the limit.
READ_FORMS = ("read", "read 2", "read 3")
# The ways that a search has found, for the processes of this run.
_FOUND = "NSA_ONNX_BENCH_WAYS"


@dataclass(frozen=True)
class Way:
    """A way to read memory: in that many streams, of which each reads a piece in turn."""

    half: int = 0  # 1: vectors half as long as the kernels'
    streams: int = 1
    hint: int = 0  # HINTS: which cache a software prefetch fills
    ahead: int = 0  # bytes that it runs before the reading

    def __str__(self) -> str:
        vectors = ", half vectors" if self.half else ""
        prefetch = f"{HINTS[self.hint]} {self.ahead} B ahead" if self.hint else HINTS[0]
        return f"{self.streams} stream{'s' * (self.streams > 1)}{vectors}, {prefetch}"


def ways() -> Iterator[Way]:
    """All that a search tries."""
    for streams in (1, 2, 4, 8):
        yield Way(0, streams)
        yield Way(1, streams)
        for hint, ahead in itertools.product((1, 2, 3), (512, 1024, 2048, 4096, 8192)):
            yield Way(0, streams, hint, ahead)


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
        *(ctypes.c_int,) * 3,
        *(integer,) * 3,
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

    def __init__(self, runs: Runs, target: str, threads: int, form: str | Way = READ_FORMS[0]) -> None:
        way = form if isinstance(form, Way) else best(threads)[READ_FORMS.index(form)]
        self.size = sum(size for _, size in runs)
        self.sum = ctypes.c_uint32()  # of all 32-bit words, modulo 2**32, after a call
        count = len(runs)
        addresses = (ctypes.c_void_p * count)(*(address for address, _ in runs))
        sizes = (ctypes.c_int64 * count)(*(size for _, size in runs))
        how = way.half, way.streams.bit_length() - 1, way.hint, way.ahead
        self._arguments = target.encode(), addresses, sizes, count, *how, threads

    def __call__(self, repeats: int = 1) -> float:
        """Seconds for `repeats` passes."""
        return _checked(_library().nsa_bench_read(*self._arguments, repeats, ctypes.byref(self.sum)))


def shares(address: int, size: int, threads: int) -> Runs:
    """One block of memory as one run per thread, cut at lines of memory."""
    cuts = [size * thread // threads // 64 * 64 for thread in range(threads)] + [size]
    return [(address + begin, end - begin) for begin, end in itertools.pairwise(cuts)]


def search(target: str, threads: int, megabytes: int, huge: bool = True) -> list[dict[str, Any]]:
    """All ways to read `megabytes` of memory, fastest first: ``{"way": numbers, "name": text, "gb_per_s": speed}``.

    huge: in huge pages, where the system gives them, as all memory of the benchmarks is; without, in ordinary ones.
    """
    array = memory.aligned_empty((megabytes << 20,), np.dtype(np.uint8), huge)
    array[:] = 1
    runs = shares(array.ctypes.data, array.nbytes, threads)
    readings = {way: Reading(runs, target, threads, way) for way in ways()}
    best_seconds = {way: min(reading() for _ in range(2)) for way, reading in readings.items()}
    for way in sorted(best_seconds, key=best_seconds.__getitem__)[:12]:
        best_seconds[way] = min(best_seconds[way], *(readings[way]() for _ in range(4)))
    ranked = sorted(best_seconds.items(), key=lambda of: of[1])
    return [{"way": astuple(way), "name": str(way), "gb_per_s": array.nbytes / s / 1e9} for way, s in ranked]


def choose(found: dict[int, list[dict[str, Any]]]) -> None:
    """Makes the best ways of a search, by the number of threads, those of this process and the ones it starts."""
    os.environ[_FOUND] = json.dumps({str(n): [of["way"] for of in ranked] for n, ranked in found.items()})


def best(threads: int) -> list[Way]:
    """The ways that READ_FORMS stand for: the fastest that were found, or a guess where nothing was searched."""
    found = json.loads(os.environ.get(_FOUND, "{}")).get(str(threads))
    return [Way(*of) for of in found][: len(READ_FORMS)] if found else [Way(), Way(0, 1, 2, 1024), Way(0, 8, 2, 512)]


def copy_seconds(source: int, target: int, size: int, threads: int, repeats: int = 1) -> float:
    """Seconds for `repeats` copies of `size` bytes from one address to another."""
    return float(_library().nsa_bench_copy(source, target, size, threads, repeats))


def operations_per_second(target: str, threads: int, turns: int = 10_000_000) -> float:
    """Floating point operations, a multiply-add being two, that all threads together do in a second: the best of 5."""
    operations = ctypes.c_double()
    arguments = target.encode(), threads, turns, ctypes.byref(operations)
    seconds = min(_checked(_library().nsa_bench_multiply_add(*arguments)) for _ in range(5))
    return operations.value / seconds
