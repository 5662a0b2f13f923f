"""Measures NsaCompressInfer as an onnxruntime node, its cache updated in place. Each function runs in a worker process.

Two questions: does a step cost more when the cache or the pool of pages is larger? How near are 256 windows to a plain
read of the same scattered memory? What a step costs at least is in decode_cost.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nsa_onnx.operators.nsa_compress_infer.contract import SlotWrite, slot_plan
from nsa_onnx.operators.windows import window_count
from nsa_onnx.runtime import native

from . import graphs, limits, machine, memory

HEADS, DIM, BLOCK, STRIDE, PAGE, DTYPE = 4, 128, 32, 16, 128, "float16"
ROW_BYTES = HEADS * DIM * 2
PAGE_BYTES = PAGE * ROW_BYTES
# Different steps that take turns: one alone would find its slots and table in the nearest cache.
_STEPS = 8


class Pool:
    """Pages, cache and weights, and steps on them. Sequences are `LOGICAL` pages long at most."""

    LOGICAL = 2

    def __init__(self, pages: int, slots: int) -> None:
        tokens = memory.Tokens(HEADS, DIM, DTYPE).fill(pages * PAGE)
        self.pages = tokens.reshape(pages, PAGE, HEADS, DIM)
        self.cache = memory.aligned_empty((slots, HEADS, DIM), self.pages.dtype)
        self.cache[:] = 0  # so that its memory is there
        self.weight = memory.weights(BLOCK, HEADS, DTYPE)

    def step(self, batch: int, seed: int, slots: int, pages: Any) -> dict[str, Any]:
        """Inputs of one step; every sequence completes a window. `pages`: physical pages to deal out."""
        rng = np.random.default_rng(seed)
        table = rng.permutation(pages)[: batch * self.LOGICAL].reshape(batch, self.LOGICAL)
        windows = rng.integers(window_count(self.LOGICAL * PAGE - 1, BLOCK, STRIDE), size=batch)  # room for one more
        return {
            "x": self.pages,
            "w": self.weight,
            "slots": rng.permutation(slots)[:batch].astype(np.int32),
            "cache": self.cache[:slots],
            "seq": BLOCK + STRIDE * windows.astype(np.int64),
            "table": table.astype(np.int32),
        }

    def runs(self, step: dict[str, Any]) -> limits.Runs:
        """What a step must read: runs of memory, address and bytes."""
        base = self.pages.ctypes.data
        return [
            (base + run.page * PAGE_BYTES + run.offset * ROW_BYTES, run.tokens * ROW_BYTES)
            for write in self.plan(step)
            for run in write.runs
        ]

    def plan(self, step: dict[str, Any]) -> list[SlotWrite]:
        indices = (step[name].tolist() for name in ("slots", "table", "seq"))
        return slot_plan(*indices, BLOCK, STRIDE, PAGE, self.LOGICAL)


def _check(pool: Pool, step: dict[str, Any]) -> None:
    """The first window of a step that was run, against NumPy."""
    (write, *_) = pool.plan(step)
    parts = [pool.pages[run.page, run.offset : run.offset + run.tokens] for run in write.runs]
    total = np.zeros((HEADS, DIM), np.float32)
    for token, weight in zip(np.concatenate(parts).astype(np.float32), pool.weight.astype(np.float32), strict=True):
        total += token * weight[:, None]
    assert np.array_equal(step["cache"][write.slot], total.astype(pool.pages.dtype)), "decode computes a wrong window"


def _session(threads: int) -> Any:
    return graphs.session(graphs.infer(HEADS, DIM, BLOCK, STRIDE, PAGE, DTYPE), threads)


def _bound(running: Any, step: dict[str, Any]) -> Callable[[], None]:
    """A run of one step, in place."""
    return graphs.bound(running, step, {"y": step["cache"]})


def _seconds(calls: Sequence[Callable[[], Any]], repeats: int) -> float:
    """Seconds of one call, the mean over all of them."""
    begin = time.perf_counter()
    for _ in range(repeats):
        for call in calls:
            call()
    return (time.perf_counter() - begin) / (repeats * len(calls))


def growth(threads: int, rounds: int, megabytes: Sequence[int], batch: int = 64) -> list[dict[str, Any]]:
    """Microseconds of a step over the size of the cache, and over the size of the pool of pages."""
    most = max(megabytes) << 20
    used = _STEPS * batch * Pool.LOGICAL  # the same number of pages, however many there are
    small_pool, small_cache = 128 << 20, 1 << 20
    pool = Pool(max(most, small_pool) // PAGE_BYTES, max(most, small_cache) // ROW_BYTES)
    running = _session(threads)
    points = [("cache", size << 20, small_pool) for size in megabytes]
    points += [("pages", small_cache, size << 20) for size in megabytes if size << 20 >= small_pool]
    calls = []
    for _, cache_bytes, pool_bytes in points:
        pages = np.random.default_rng(0).permutation(pool_bytes // PAGE_BYTES)[:used]
        steps = [pool.step(batch, seed, cache_bytes // ROW_BYTES, pages) for seed in range(_STEPS)]
        calls.append([_bound(running, step) for step in steps])
        calls[-1][0]()
        _check(pool, steps[0])
    times = [[_seconds(of, 4) for of in calls] for _ in range(rounds + 1)][1:]
    return [
        {
            "grows": name,
            "cache_bytes": cache_bytes,
            "pool_bytes": pool_bytes,
            "batch": batch,
            "threads": threads,
            "us": 1e6 * statistics.median(round_[i] for round_ in times),
        }
        for i, (name, cache_bytes, pool_bytes) in enumerate(points)
    ]


def scattered(threads: int, rounds: int, megabytes: int, batch: int = 256) -> dict[str, Any]:
    """256 windows against a read of the same runs of memory, neither of them in a cache."""
    pool = Pool((megabytes << 20) // PAGE_BYTES, 1 << 16)
    running = _session(threads)
    shuffled = np.random.default_rng(0).permutation(len(pool.pages))
    sets = len(shuffled) // (batch * Pool.LOGICAL)
    steps = [pool.step(batch, seed, len(pool.cache), part) for seed, part in enumerate(np.array_split(shuffled, sets))]
    calls = [_bound(running, step) for step in steps]
    target = native.cpu_target()
    reads = {f: [limits.Reading(pool.runs(step), target, threads, f) for step in steps] for f in limits.READ_FORMS}
    calls[0]()
    _check(pool, steps[0])

    def seconds(call: Callable[[], Any]) -> float:
        return call() if isinstance(call, limits.Reading) else _seconds([call], 1)

    sizes = {name: reads["read"][0].size + (batch * ROW_BYTES if name == "node" else 0) for name in ("node", *reads)}
    runs: dict[str, Sequence[Callable[[], Any]]] = {"node": calls, **reads}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        # All steps one after the other: what one touches has left the caches before its turn comes again. The
        # first ones of a contender find cores that sleep, so that the median is not theirs.
        for name, of in runs.items():
            speeds[name].extend(sizes[name] / seconds(call) / 1e9 for call in of)
            time.sleep(5e-3)  # a thread pool's spinning ends
    medians = {name: statistics.median(of) for name, of in speeds.items()}
    limit = max(reads, key=lambda form: medians[form])
    touched = sets * reads["read"][0].size
    return {
        "windows": batch,
        "threads": threads,
        "pool_bytes": megabytes << 20,
        "touched_bytes": touched,
        "note": machine.cache_note(touched),
        "node_gb_per_s": medians["node"],
        "node_us": sizes["node"] / medians["node"] / 1e3,
        "limit": limit,
        "limit_gb_per_s": medians[limit],
        "of_limit": medians["node"] / medians[limit],
    }
