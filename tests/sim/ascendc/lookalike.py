"""The Ascend C kernels on the look-alike of Ascend C, from Python: build the library, launch, read counters.

Used by tests/test_ascend_kernels.py and benchmarks/ascend_counters.py. Arrays are NumPy's, float16 or
ml_dtypes.bfloat16. Lengths and plans come from the operators' contracts, of which plan/ is the C++ copy.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nsa_onnx.operators.nsa_compress.contract import compressed_length
from nsa_onnx.operators.nsa_compress_infer.contract import MAX_PAGE_RUNS, SlotWrite
from nsa_onnx.operators.windows import row_plan

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BUILD = ROOT / "build" / "ascendc"
CORES = 48  # vector cores of an Atlas A2
# Words of a plan, ascend_kernels/plan_layout.h and the operators' layout.h.
PLAN_BLOCKS, PLAN_GROUPS, PLAN_IN_BUFFERS = 1, 5, 8
COMPRESS_STRIDE, COMPRESS_SPLITS, COMPRESS_CHUNKS, COMPRESS_CLASSES, COMPRESS_HEADER = range(14, 19)
INFER_WRITES, INFER_SLICES, INFER_HEADER = range(14, 17)


class DeviceError(RuntimeError):
    """A check of the look-alike failed; the message names line and tensor."""


def _tool(name: str) -> str:
    beside_python = Path(sys.executable).with_name(name)
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is neither beside {sys.executable} nor on the PATH")
    return found


def build() -> Path:
    """Configure and build all of tests/sim/ascendc; the build folder."""
    cmake, ninja = _tool("cmake"), _tool("ninja")
    configure = [cmake, "-S", str(HERE), "-B", str(BUILD), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    for command in (configure, [cmake, "--build", str(BUILD), "-j", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return BUILD


class _Compress(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "dim", "block", "stride")),
        ("runs", ctypes.c_void_p),
        ("run_count", ctypes.c_int64),
    )


class _Infer(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("pages", "page", "heads", "dim", "block", "slots")),
        ("writes", ctypes.c_void_p),
        ("write_count", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Launched:
    """A finished launch: what it wrote, its plan (int64 words) and its counters."""

    output: Any
    plan: Any
    counters: dict[str, Any]


def _words(rows: Sequence[Sequence[int]], width: int) -> Any:
    """A contiguous int64 array of at least one row, so that it always has an address."""
    return np.array(rows or [[0] * width], np.int64)


class Kernels:
    """libnsa_ascend_kernels.so (simulated)."""

    def __init__(self, library: Path | None = None):
        self.library = ctypes.CDLL(str(library or BUILD / "lib" / "libnsa_ascend_kernels.so"))
        for name in ("compress_plan", "infer_plan", "plan_blocks", "sim_counters", "sim_error"):
            getattr(self.library, f"nsa_ascend_{name}").restype = ctypes.c_int64
        self.library.nsa_ascend_target.restype = ctypes.c_char_p
        self.target = self.library.nsa_ascend_target().decode()

    def compress_plan(
        self,
        bfloat16: bool,
        shape: Sequence[int],
        block: int,
        stride: int,
        seq: Sequence[int],
        cores: int = CORES,
    ) -> Any:
        """The launch plan for input [T, N, D] with prefix sums `seq`."""
        runs = [(run.first_row, run.rows, run.first_token) for run in row_plan(list(seq), block, stride)]
        rows = _words(runs, 3)
        call = _Compress(bfloat16, *shape, block, stride, rows.ctypes.data, len(runs))
        return self._plan(self.library.nsa_ascend_compress_plan, call, cores)

    def infer_plan(
        self,
        bfloat16: bool,
        shape: Sequence[int],
        slots: int,
        block: int,
        writes: Sequence[SlotWrite],
        cores: int = CORES,
    ) -> Any:
        """The launch plan for input [block_num, page, N, D] and a cache of `slots` slots."""
        rows = []
        for write in writes:
            runs = [(run.page, run.offset, run.tokens) for run in write.runs]
            runs += [(0, 0, 0)] * (MAX_PAGE_RUNS - len(runs))
            rows.append([write.sequence, write.slot, len(write.runs), *(word for run in runs for word in run)])
        words = _words(rows, 3 + 3 * MAX_PAGE_RUNS)
        call = _Infer(bfloat16, *shape, block, slots, words.ctypes.data, len(rows))
        return self._plan(self.library.nsa_ascend_infer_plan, call, cores)

    def _plan(self, function: Any, call: ctypes.Structure, cores: int) -> Any:
        count = function(ctypes.byref(call), ctypes.c_int64(cores), None, ctypes.c_int64(0))
        plan = np.zeros(count, np.int64)
        function(ctypes.byref(call), ctypes.c_int64(cores), plan.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(count))
        return plan

    def compress(
        self, x: Any, w: Any, block: int, stride: int, seq: Sequence[int], *, cores: int = CORES, seed: int = 0
    ) -> Launched:
        """NsaCompress of x [T, N, D] and w [block, N]; raises DeviceError."""
        bfloat16 = x.dtype != np.float16
        plan = self.compress_plan(bfloat16, x.shape, block, stride, seq, cores)
        rows = compressed_length(list(seq), block, stride)
        output = np.full((rows, *x.shape[1:]), np.nan, x.dtype)
        return Launched(output, plan, self._launch("compress", bfloat16, x, w, output, plan, seed))

    def infer(
        self,
        x: Any,
        w: Any,
        cache: Any,
        writes: Sequence[SlotWrite],
        block: int,
        *,
        cores: int = CORES,
        seed: int = 0,
    ) -> Launched:
        """NsaCompressInfer of pages x [block_num, page, N, D]; the cache is not changed in place."""
        bfloat16 = x.dtype != np.float16
        plan = self.infer_plan(bfloat16, x.shape, cache.shape[0], block, writes, cores)
        output = cache.copy()
        return Launched(output, plan, self._launch("infer", bfloat16, x, w, output, plan, seed))

    def _launch(self, name: str, bfloat16: bool, x: Any, w: Any, out: Any, plan: Any, seed: int) -> dict[str, Any]:
        blocks = int(self.library.nsa_ascend_plan_blocks(plan.ctypes.data_as(ctypes.c_void_p)))
        if blocks == 0:
            return {"blocks": 0}
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (x, w, out, plan)]
        self.library.nsa_ascend_sim_set_seed(ctypes.c_uint64(seed))
        launch = getattr(self.library, f"nsa_ascend_{name}")
        code = launch(None, ctypes.c_int32(bfloat16), *pointers, ctypes.c_int64(blocks))
        if code:
            raise DeviceError(f"{self._text(self.library.nsa_ascend_sim_error)} (error {code})")
        counters: dict[str, Any] = json.loads(self._text(self.library.nsa_ascend_sim_counters))
        return counters

    @staticmethod
    def _text(function: Any) -> str:
        size = function(None, ctypes.c_int64(0)) + 1
        text = ctypes.create_string_buffer(size)
        function(text, ctypes.c_int64(size))
        return text.value.decode()
