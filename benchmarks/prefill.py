"""Prefill: all contenders take turns on every case. Results: speeds, and ratios to the memory limit and to the peers.

The limit is the fastest way to read the same memory with the same threads. A ratio is the median of the rounds'
ratios: both of its sides were measured moments apart, so that other load on the machine slows both.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from . import contenders, limits, machine, memory
from .contenders import NODE, Case
from .worker import Worker

# A contender that would take longer than this for all rounds of a case, in seconds, runs in fewer of them.
MOST_SECONDS = 2.0
# Until a thread pool has gone to sleep after its run: its spinning would disturb the next one.
_PAUSE = 0.005
_CHECKED_ROWS = 8
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """One case, who takes part in it, and on how many tokens the peers do."""

    name: str
    case: Case
    names: tuple[str, ...]
    peer_tokens: int

    def case_of(self, name: str) -> Case:
        """Peers may get fewer tokens: their memory and time are many times ours."""
        return replace(self.case, tokens=self.peer_tokens) if name in contenders.PEERS else self.case


class Team:
    """The workers: one for our kernel and the limits, who read the same memory, one for each peer."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def of(self, name: str) -> Worker:
        group = name if name in contenders.PEERS else "memory"
        if group not in self._workers:
            self._workers[group] = Worker()
        return self._workers[group]

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def steps(plans: Sequence[Plan], rounds: int) -> int:
    """How often `measure` ticks, for a progress bar."""
    return sum(len(plan.names) * (1 + rounds) for plan in plans)


def measure(plan: Plan, team: Team, rounds: int, tick: Tick, gflops: float = math.inf) -> dict[str, Any]:
    """One case; a record for report.py and JSON. AssertionError if a contender computes something else.

    gflops: what the machine computes with the case's threads.
    """
    once = dict(_prepared(plan, team, tick))
    _check(plan, team)
    turns = _turns(once, rounds)
    seconds: dict[str, list[float | None]] = {name: [] for name in plan.names}
    for number in range(rounds):
        for name in random.Random(number).sample(plan.names, len(plan.names)):
            tick(f"{plan.name} {name}")
            if number in turns[name]:
                time.sleep(_PAUSE)
                seconds[name].append(team.of(name).call("worker:run", name=name))
            else:
                seconds[name].append(None)
    for name in plan.names:
        team.of(name).call("worker:forget")
    return _record(plan, seconds, gflops)


def _prepared(plan: Plan, team: Team, tick: Tick) -> Iterator[tuple[str, float]]:
    """Peers get ready at the same time, as long as they are different processes."""
    peers = [name for name in plan.names if name in contenders.PEERS]
    for name in peers:
        team.of(name).send("worker:prepare", name=name, case=asdict(plan.case_of(name)))
    for name in peers:
        tick(f"{plan.name} prepare {name}")
        yield name, team.of(name).receive()
    for name in plan.names:
        if name not in peers:
            tick(f"{plan.name} prepare {name}")
            yield name, team.of(name).call("worker:prepare", name=name, case=asdict(plan.case_of(name)))


def _turns(once: dict[str, float], rounds: int) -> dict[str, set[int]]:
    """The rounds in which each contender runs, evenly spread for the slow ones."""
    counts = {name: min(rounds, max(1, int(MOST_SECONDS / seconds))) for name, seconds in once.items()}
    return {name: {i * rounds // count for i in range(count)} for name, count in counts.items()}


def _check(plan: Plan, team: Team) -> None:
    """Who computes something else is no contender: some rows against NumPy."""
    case = plan.case
    tokens = memory.Tokens(case.heads, case.dim, case.dtype)
    weight = memory.weights(case.block, case.heads, case.dtype)
    last = replace(case, tokens=plan.peer_tokens).rows - 1
    rows = sorted({last * i // (_CHECKED_ROWS - 1) for i in range(_CHECKED_ROWS)})
    sums = memory.expected_rows(tokens, weight, case.stride, rows)
    exact = sums.astype(memory.DTYPES[case.dtype]).astype(np.float32)
    for name in plan.names:
        got = team.of(name).call("worker:output_rows", name=name, rows=rows)
        if got is not None:
            assert_equal(f"{plan.name}: {name}", np.array(got, np.float32), exact, case, name in contenders.EXACT)


def assert_equal(what: str, got: Any, exact: Any, case: Case, to_the_bit: bool) -> None:
    """Peers may sum in another order and round products to their 16-bit type."""
    if to_the_bit:
        assert np.array_equal(got, exact), f"{what}: {np.count_nonzero(got != exact)} numbers differ"
        return
    unit = {"float16": 2.0**-10, "bfloat16": 2.0**-7}[case.dtype]
    off = np.abs(got - exact) - 2 * unit * np.abs(exact)
    assert off.max() <= 4 * unit * case.block**0.5, f"{what}: off by {np.abs(got - exact).max():.3g}"


def _median_ratio(over: Sequence[float | None], under: Sequence[float | None]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True) if a is not None and b is not None)


def _record(plan: Plan, seconds: dict[str, list[float | None]], gflops: float) -> dict[str, Any]:
    moved = {name: _bytes(name, plan.case_of(name)) for name in plan.names}
    speeds = {name: [None if s is None else moved[name] / s / 1e9 for s in times] for name, times in seconds.items()}
    medians = {name: statistics.median(s for s in of if s is not None) for name, of in speeds.items()}
    limit = max(limits.READ_FORMS, key=lambda form: medians[form])
    results = {}
    for name in plan.names:
        of_limit = _median_ratio(speeds[name], speeds[limit])
        results[name] = {
            "gb_per_s": medians[name],
            "of_limit": of_limit,
            "node_over_it": _median_ratio(speeds[NODE], speeds[name]),
            "tokens": plan.case_of(name).tokens,
            "seconds": [s for s in seconds[name] if s is not None],
        }
    case = plan.case
    computing = max(case.operations / gflops, 1e-9) / 1e9
    bound = [speed and min(speed, case.moved_bytes / computing / 1e9) for speed in speeds[limit]]
    return {
        "name": plan.name,
        **asdict(case),
        "input_bytes": case.input_bytes,
        "peer_input_bytes": plan.case_of(contenders.PEERS[0]).input_bytes,
        "note": machine.cache_note(case.input_bytes),
        "operations_per_byte": case.operations / case.moved_bytes,
        "limit": limit,
        # The node against the lower of two limits: reading, and computing at the speed of multiply-adds.
        "of_both": _median_ratio(speeds[NODE], bound),
        "contenders": results,
    }


def _bytes(name: str, case: Case) -> int:
    if name in limits.READ_FORMS:
        return case.input_bytes
    return 2 * case.input_bytes if name == "copy" else case.moved_bytes
