"""How the cost grows with the work: nanoseconds per byte over tokens, segments, heads, dims and overlap.

Runs in a worker process, through the C interface into memory that is allocated already. A read of the same input is
measured with it: memory beyond the caches is slower for both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from nsa_onnx.operators.nsa_compress import call
from nsa_onnx.runtime import native

from . import limits, memory

_PERHAPS_CACHED = 256 << 20


@dataclass(frozen=True)
class Point:
    """One problem: `segments` segments of equal length, as far as they divide the tokens."""

    sweep: str
    tokens: int
    segments: int = 1
    heads: int = 4
    dim: int = 64
    block: int = 32
    stride: int = 16
    dtype: str = "float16"

    @property
    def input_bytes(self) -> int:
        return self.tokens * self.heads * self.dim * 2

    def ends(self) -> Any:
        return np.arange(1, self.segments + 1) * self.tokens // self.segments


def points(base_tokens: int, most_tokens: int) -> list[Point]:
    """Sweeps around one base; those over heads and dims keep the bytes as they are."""
    base = Point("tokens", base_tokens)
    result = [replace(base, tokens=4096 << i) for i in range(10) if 4096 << i <= most_tokens]
    result += [replace(base, sweep="segments", segments=4**i) for i in range(7)]
    for heads in (1, 2, 4, 8, 32, 128):
        result.append(replace(base, sweep="heads", heads=heads, tokens=base_tokens * base.heads // heads))
    for dim in (16, 32, 48, 64, 128, 256):
        result.append(replace(base, sweep="dim", dim=dim, tokens=base_tokens * base.dim // dim))
    result += [replace(base, sweep="overlap", block=16 * overlap) for overlap in (1, 2, 3, 4, 6, 8)]
    return result


class _Memory:
    """One input and one output, used by every point as far as it needs them."""

    def __init__(self, most_bytes: int) -> None:
        self.input = memory.Tokens(4, 64, "float16").fill(-(-most_bytes // 512)).reshape(-1)
        self.output = memory.aligned_empty((len(self.input) // 8,), self.input.dtype)
        self.output[:] = 0


def _compress(point: Point, x: Any, w: Any, ends: Any, y: Any, threads: int) -> float:
    buffers = [native.Buffer(array.ctypes.data, array.shape) for array in (x, w, y)]
    begin = time.perf_counter()
    call.kernel(point.dtype, *buffers[:2], point.block, point.stride, ends, buffers[2], threads)
    return time.perf_counter() - begin


def _warm(point: Point, *arguments: Any) -> float:
    """The second of two calls where the input may stay in a cache: the reads that follow find it there, too."""
    if point.input_bytes < _PERHAPS_CACHED:
        _compress(point, *arguments)
    return _compress(point, *arguments)


def _rows(point: Point, ends: Any) -> int:
    lengths = np.diff(ends, prepend=0)
    return int(np.maximum(0, 1 + (lengths - point.block) // point.stride).sum())


def measure(sweep: Sequence[dict[str, Any]], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Points (as dicts) with what they cost, the points taking turns."""
    todo = [Point(**fields) for fields in sweep]
    held = _Memory(max(point.input_bytes for point in todo))
    calls = []
    for point in todo:
        x = held.input[: point.input_bytes // 2].reshape(-1, point.heads, point.dim)
        ends = point.ends()
        rows = _rows(point, ends)
        y = held.output[: rows * point.heads * point.dim].reshape(rows, point.heads, point.dim)
        w = memory.weights(point.block, point.heads, point.dtype)
        runs = limits.shares(x.ctypes.data, x.nbytes, threads)
        reads = [limits.Reading(runs, native.cpu_target(), threads, form) for form in limits.READ_FORMS]
        calls.append(((point, x, w, ends, y, threads), reads, x.nbytes + y.nbytes))
    times = [[(_warm(*a), [read() for read in reads]) for a, reads, _ in calls] for _ in range(rounds + 1)][1:]
    results = []
    for i, (point, (_, reads, size)) in enumerate(zip(todo, calls, strict=True)):
        ours = statistics.median(round_[i][0] for round_ in times)
        read = min(statistics.median(round_[i][1][k] for round_ in times) for k in range(len(reads)))
        costs = {"ns_per_byte": 1e9 * ours / size, "read_ns_per_byte": 1e9 * read / point.input_bytes}
        of_limit = costs["read_ns_per_byte"] / costs["ns_per_byte"]
        results.append({**asdict(point), "input_bytes": point.input_bytes, **costs, "of_limit": of_limit})
    return results


def plan_time(segments: int, threads: int, rounds: int) -> dict[str, Any]:
    """The window plan of many ragged segments against the whole call.

    With D = 0 there is nothing to compute, and the same call checks the lengths, makes the plan and returns.
    """
    rng = np.random.default_rng(0)
    point = Point("ragged", 0, segments, heads=2, dim=64)
    ends = np.cumsum(rng.integers(1, 80, segments))
    point = replace(point, tokens=int(ends[-1]))
    rows = _rows(point, ends)
    held = _Memory(point.input_bytes)
    x = held.input[: point.input_bytes // 2].reshape(-1, point.heads, point.dim)
    y = np.zeros((rows, point.heads, point.dim), x.dtype)
    w = memory.weights(point.block, point.heads, point.dtype)
    nothing = x[:, :, :0], w, ends, y[:, :, :0], threads
    times = [(_compress(point, *nothing), _compress(point, x, w, ends, y, threads)) for _ in range(rounds + 1)][1:]
    plan, total = (statistics.median(each) for each in zip(*times, strict=True))
    return {
        "segments": segments,
        "tokens": point.tokens,
        "rows": rows,
        "input_bytes": point.input_bytes,
        "plan_ms": 1e3 * plan,
        "total_ms": 1e3 * total,
        "share": plan / total,
    }
