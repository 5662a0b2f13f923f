"""What prefill measures: our kernel, its peers, and memory. Each runs in a worker process (worker.py).

A contender is made for one case and then called: `run(repeats)` gives the seconds of that many runs over the whole
input, `output()` the last result, or None where nothing is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import nsa_onnx
from nsa_onnx.operators.windows import window_count
from nsa_onnx.runtime import native

from . import limits, memory


@dataclass(frozen=True)
class Case:
    """One problem. Input ``[tokens, heads, dim]``, one segment."""

    block: int
    stride: int
    heads: int
    dim: int
    dtype: str
    tokens: int
    threads: int

    @property
    def token_bytes(self) -> int:
        return self.heads * self.dim * 2

    @property
    def rows(self) -> int:
        return window_count(self.tokens, self.block, self.stride)

    @property
    def input_bytes(self) -> int:
        return self.tokens * self.token_bytes

    @property
    def moved_bytes(self) -> int:
        """Input and output, each once: what every contender is credited with."""
        return self.input_bytes + self.rows * self.token_bytes

    @property
    def operations(self) -> int:
        """Multiplications and additions that the definition asks for."""
        return 2 * self.block * self.rows * self.heads * self.dim


@dataclass(frozen=True)
class Made:
    """A contender that is ready to run."""

    run: Callable[[int], float]
    output: Callable[[], Any]
    compiles: bool = False  # in its first run


def _timed(call: Callable[[], Any]) -> tuple[Callable[[int], float], Callable[[], Any]]:
    """`run` and `output` of a plain function."""
    last = []

    def run(repeats: int) -> float:
        begin = time.perf_counter()
        for _ in range(repeats):
            last[:] = [call()]
        return time.perf_counter() - begin

    return run, lambda: last[0]


# --------------------------------------------------------------------------------------------------
# Memory


def _read(form: str) -> Callable[[Case, Any, Any], Made]:
    def make(case: Case, x: Any, w: Any) -> Made:
        runs = limits.shares(x.ctypes.data, x.nbytes, case.threads)
        return Made(limits.Reading(runs, native.cpu_target(), case.threads, form), lambda: None)

    return make


def _copy(case: Case, x: Any, w: Any) -> Made:
    to = memory.aligned_empty(x.shape, x.dtype)

    def run(repeats: int) -> float:
        return limits.copy_seconds(x.ctypes.data, to.ctypes.data, x.nbytes, case.threads, repeats)

    return Made(run, lambda: None)


# --------------------------------------------------------------------------------------------------
# onnxruntime and our kernel


def _eager(case: Case, x: Any, w: Any) -> Made:
    """`nsa_onnx.nsa_compress`; it allocates its output in every call."""

    def call() -> Any:
        native.default_threads = lambda: case.threads
        return nsa_onnx.nsa_compress(x, w, case.block, case.stride, actual_seq_len=[case.tokens])

    return Made(*_timed(call))


def _graph(name: str, library: bool = False) -> Callable[[Case, Any, Any], Made]:
    def make(case: Case, x: Any, w: Any) -> Made:
        from . import graphs  # onnxruntime, only in processes that need it

        graph = getattr(graphs, name)(w, case.stride, case.tokens, case.dim, case.dtype)
        running = graphs.session(graph, case.threads, library)
        y = memory.aligned_empty((case.rows, case.heads, case.dim), x.dtype)
        run, _ = _timed(graphs.bound(running, {"x": x}, {"y": y}))
        return Made(run, lambda: y)

    return make


# --------------------------------------------------------------------------------------------------
# torch


def _unfolded(x: Any, w: Any, stride: int) -> Any:
    """In the tensors' own type: as float32 it is slower still."""
    return (x.unfold(0, len(w), stride) * w.T[None, :, None, :]).sum(-1)


def _unfolded_float32(x: Any, w: Any, stride: int) -> Any:
    """What a compiler fuses: products and sums in float32, no intermediate in memory."""
    return (x.unfold(0, len(w), stride).float() * w.float().T[None, :, None, :]).sum(-1).to(x.dtype)


def _grouped_conv(x: Any, w: Any, stride: int) -> Any:
    """A depthwise Conv on channels-last memory, float16 through float32: the fastest of six forms that were tried.

    bfloat16 has a kernel of its own in oneDNN; float16 in its own type is five times slower than through
    float32, a 1-D Conv with N or N * D groups five to nine times.
    """
    import torch

    kind = torch.float32 if x.dtype == torch.float16 else x.dtype
    tokens, heads, dim = x.shape
    channels = x.to(kind).reshape(1, tokens, 1, heads * dim).permute(0, 3, 1, 2)
    filters = w.to(kind).T.repeat_interleave(dim, 0)[:, None, :, None]
    y = torch.nn.functional.conv2d(channels, filters, stride=(stride, 1), groups=heads * dim)
    return y[0, :, :, 0].T.reshape(-1, heads, dim).to(x.dtype)


def _torch(function: Callable[[Any, Any, int], Any], compiled: bool = False) -> Callable[[Case, Any, Any], Made]:
    def make(case: Case, x: Any, w: Any) -> Made:
        import torch

        torch.set_num_threads(case.threads)
        called = function
        if compiled:
            torch.compiler.reset()
            called = torch.compile(function, dynamic=False)
        tensors = [torch.from_numpy(a.view(np.uint16)).view(getattr(torch, case.dtype)) for a in (x, w)]

        def call() -> Any:
            with torch.inference_mode():
                return called(*tensors, case.stride)

        run, output = _timed(call)
        return Made(run, lambda: output().view(torch.uint16).numpy().view(x.dtype), compiled)

    return make


LIMITS = (*limits.READ_FORMS, "copy")
NODE, EAGER = "nsa_onnx node", "nsa_onnx eager"
OURS = (NODE, EAGER)
# Of the contract's bits: float32 sums in the order j = 0, 1, 2, ...
EXACT = (*OURS, "portable body")
MAKERS: dict[str, Callable[[Case, Any, Any], Made]] = {
    **{form: _read(form) for form in limits.READ_FORMS},
    "copy": _copy,
    NODE: _graph("compress", library=True),
    EAGER: _eager,
    "portable body": _graph("portable"),
    "ort conv": _graph("conv"),
    "ort conv 1-D": _graph("conv_1d"),
    "ort gather": _graph("gather"),
    "torch eager": _torch(_unfolded),
    "torch conv": _torch(_grouped_conv),
    "torch compile": _torch(_unfolded_float32, compiled=True),
}
PEERS = tuple(name for name in MAKERS if name not in (*LIMITS, *OURS))
