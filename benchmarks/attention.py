"""What the benchmarks of the attention stages share. Sizes of models: D 192, Dv 128, 16 query heads to a key."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import limits, memory

DIM, VALUE_DIM, GROUP, BLOCK, COUNT, DTYPE = 192, 128, 16, 64, 16, "bfloat16"


def random(seed: int, rows: int, heads: int, dim: int) -> Any:
    """``[rows, heads, dim]``."""
    return memory.Tokens(heads, dim, DTYPE, seed).fill(rows)


def median(call: Callable[[], Any], rounds: int) -> float:
    """Seconds of a call, after one that warms up."""
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def torch_tensors(*arrays: Any) -> list[Any]:
    """``[tokens, heads, dim]`` as ``[heads, tokens, dim]``, of the same memory."""
    import torch

    return [torch.from_numpy(array.view(np.uint16)).view(getattr(torch, DTYPE)).transpose(0, 1) for array in arrays]


def against_reads(
    prepare: Callable[[int], tuple[Callable[[], Any], limits.Runs]], target: str, threads: int, rounds: int
) -> tuple[float, float]:
    """Seconds of a call, and of the fastest read of the memory that it reads. ``prepare(seed)`` gives both.

    Whoever comes first finds none of it in a cache: they take turns.
    """
    ours: list[float] = []
    reads: dict[str, list[float]] = {form: [] for form in limits.READ_FORMS}
    for seed in range(rounds + 1):
        call, runs = prepare(seed)
        contenders: list[tuple[list[float], Callable[[], Any]]] = [(ours, call)]
        contenders += [(reads[form], limits.Reading(runs, target, threads, form)) for form in limits.READ_FORMS]
        turn = seed % len(contenders)
        for seconds, contender in contenders[turn:] + contenders[:turn]:
            _flush()
            begin = time.perf_counter()
            told = contender()
            seconds.append(told if isinstance(told, float) else time.perf_counter() - begin)
    return statistics.median(ours[1:]), min(statistics.median(of[1:]) for of in reads.values())


def of_limits(size: int, operations: int, seconds: float, read: float, target: str, threads: int) -> dict[str, float]:
    """How near a step is to what the machine can do."""
    limit = limits.operations_per_second(target, threads)
    return {
        "us": 1e6 * seconds,
        "gb_per_s": size / seconds / 1e9,
        "read_gb_per_s": size / read / 1e9,
        "of_read": read / seconds,
        "of_limit": operations / seconds / limit,
        # Whichever of both takes longer: no program that multiplies in float32 is faster.
        "of_bound": max(read, operations / limit) / seconds,
    }


def prefill_table(title: str, record: dict[str, Any], table: Callable[..., str]) -> str:
    """Of `prefill` and `peers` of a section's record, made by `report.table`."""
    rows = [
        [
            *(str(r["tokens"]), str(r["kv_heads"]), str(r["threads"]), f"{1e3 * r['seconds']:.0f}"),
            *(f"{r['gflops']:.0f}", f"{r['limit_gflops']:.0f}", f"{r['of_limit']:.2f}"),
            *(
                f"{of['seconds'] / r['seconds']:.1f}x ({of['seconds']:.2f} s)"
                for of in record["peers"]
                if (of["tokens"], of["kv_heads"]) == (r["tokens"], r["kv_heads"])
            ),
        ]
        for r in record["prefill"]
    ]
    peers = dict.fromkeys(of["name"] for of in record["peers"])
    return table(title, ["T", "N2", "threads", "ms", "Gflop/s", "limit", "of limit", *peers], rows)


def decode_table(title: str, record: dict[str, Any], table: Callable[..., str]) -> str:
    rows = [
        [
            *(str(r["sequences"]), str(r["tokens"]), str(r["kv_heads"]), str(r["group"]), str(r["threads"])),
            *(f"{r['us']:.0f}", f"{r['gb_per_s']:.1f}", f"{r['read_gb_per_s']:.1f}", f"{r['of_read']:.2f}"),
            *(f"{r['of_limit']:.2f}", f"{r['of_bound']:.2f}"),
        ]
        for r in record["decode"]
    ]
    columns = ["sequences", "tokens", "N2", "G", "threads", "us", "GB/s", "read", "of read", "of Gflop/s", "of both"]
    return table(title, columns, rows)


_other = np.zeros(1 << 24, np.uint64)


def _flush() -> None:
    """Puts 128 MiB of something else into the caches."""
    _other.__iadd__(1)
