"""Measures what an eager call costs beside the same work as an onnxruntime node, whose output lies where it lies.

The difference is the result's memory: it is new in every call, and the system clears each page of it. Runs in a worker
process.
"""

from __future__ import annotations

import random
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nsa_onnx
import nsa_onnx.exporters  # registers the torch op
from nsa_onnx.operators import arrays
from nsa_onnx.runtime import native

from . import graphs, memory
from .contenders import Case

_NODE = "node"
_PAUSE = 0.03  # until a thread pool has gone to sleep after its run


def _plain(address: int, size: int) -> None:
    """In the place of `native.advise_huge_pages`: torch's memory as it is."""


@contextmanager
def _as(huge: bool, op: bool) -> Iterator[None]:
    """Results of tensors in huge pages or not; through the torch op or without the exporters."""
    advise, ops = arrays.advise_huge_pages, dict(arrays._torch_ops)
    try:
        if not huge:
            arrays.advise_huge_pages = _plain
        if not op:
            arrays._torch_ops.clear()
        yield
    finally:
        arrays.advise_huge_pages = advise
        arrays._torch_ops.update(ops)


def huge_share(address: int, size: int) -> float:
    """How much of memory lies in huge pages: of the mapping that holds its middle, /proc/self/smaps."""
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text("utf-8")):
        begin, end = (int(one, 16) for one in mapping.split(" ", 1)[0].split("-"))
        if begin <= address + size // 2 < end:
            found = re.search(r"AnonHugePages: +(\d+) kB", mapping)
            return (int(found[1]) << 10) / (end - begin) if found else 0.0
    return 0.0


def results(threads: int, rounds: int, megabytes: int, block: int = 32, stride: int = 16) -> list[dict[str, Any]]:
    """The node and each way to call eagerly on one input; they take turns.

    A result below 32 MiB would say little: glibc keeps such memory when it is given back, and hands it out again.
    """
    case = Case(block, stride, 4, 128, "float16", (megabytes << 20) // 1024, threads)
    x = memory.Tokens(case.heads, case.dim, case.dtype).fill(case.tokens)
    w = memory.weights(block, case.heads, case.dtype)
    native.default_threads = lambda: threads
    torch.set_num_threads(threads)
    y = memory.aligned_empty((case.rows, case.heads, case.dim), x.dtype)
    graph = graphs.compress(w, stride, case.tokens, case.dim, case.dtype)
    tensors = torch.from_numpy(x), torch.from_numpy(w)

    def eager(operands: Any, huge: bool = True, op: bool = False) -> Callable[[], Any]:
        def call() -> Any:
            with _as(huge, op):
                return nsa_onnx.nsa_compress(*operands, block, stride, actual_seq_len=[case.tokens])

        return call

    calls: dict[str, Callable[[], Any]] = {
        _NODE: graphs.bound(graphs.session(graph, threads), {"x": x}, {"y": y}),
        "NumPy": eager((x, w)),
        "torch, small pages": eager(tensors, huge=False),
        "torch": eager(tensors),
        "torch op, small pages": eager(tensors, huge=False, op=True),
        "torch op": eager(tensors, op=True),
    }
    shares = {_NODE: huge_share(y.ctypes.data, y.nbytes)}
    for name, call in calls.items():
        result = call()
        if result is not None:
            pointer = result.data_ptr() if isinstance(result, torch.Tensor) else result.ctypes.data
            shares[name] = huge_share(pointer, result.nbytes)
            assert np.array_equal(np.asarray(result).view(np.uint16), y.view(np.uint16)), f"{name} gives other bits"
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in random.Random(number).sample(list(calls), len(calls)):
            time.sleep(_PAUSE)
            calls[name]()  # a core that has slept is slow for a millisecond
            begin = time.perf_counter()
            calls[name]()  # its result is given back within the time, as by who uses it and forgets it
            times[name].append(time.perf_counter() - begin)
    return [
        {
            **{"name": name, "block": block, "stride": stride, "threads": threads, "result_bytes": y.nbytes},
            "ms": 1e3 * statistics.median(of),
            "over_node": statistics.median(a / b for a, b in zip(of, times[_NODE], strict=True)),
            "huge_share": shares[name],
        }
        for name, of in times.items()
    ]
