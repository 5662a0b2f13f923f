"""Two comparisons that the documentation quotes. Each function runs in a worker process of its own.

docs/demo.md: a step of the demo's decode graph with its caches updated in place, against outputs in other memory.
nsa_onnx/operators/bodies.py: the portable body, a Loop, against gathering all windows for one ReduceSum.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import contenders, limits, memory
from .contenders import Case


def decode_in_place(megabytes: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of the demo's decode graph, whose caches have `megabytes`, both ways."""
    sys.path.insert(0, str(limits.ROOT / "examples"))
    import nsa_serving
    import torch
    from nsa_model import Config, Decoder

    config = Config()
    state = nsa_serving.DecodeState.empty(config, [1024] * 4)
    # More pages and slots than these sequences use, as a server has them; the shares are the demo's.
    have = sum(cache.nbytes for cache in state.caches.values())
    for name, cache in state.caches.items():
        rows = max(len(cache), len(cache) * (megabytes << 20) // have) // config.page * config.page
        state.caches[name] = torch.zeros(rows, *cache.shape[1:], dtype=cache.dtype)
    with tempfile.TemporaryDirectory() as folder, nsa_serving.quiet():
        path = Path(folder) / "decode.onnx"
        nsa_serving.export_decode(Decoder(config), path)
        bound = nsa_serving.BoundSession(path), nsa_serving.BoundSession(path)
    state.feed(torch.tensor([1, 2, 3, 4]), torch.tensor([1000] * 4))
    inputs = {**state.step, **state.caches}
    others = {name: torch.zeros_like(cache) for name, cache in state.caches.items()}
    for session, caches in zip(bound, (state.caches, others), strict=True):
        outputs = nsa_serving.step_outputs(config, 4)
        session.bind(inputs, {**outputs, **{f"{name}.out": cache for name, cache in caches.items()}})
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for session, of in zip(bound, times, strict=True):
            begin = time.perf_counter()
            session.run()
            of.append(time.perf_counter() - begin)
    in_place, copied = (1e3 * statistics.median(of[1:]) for of in times)
    size = sum(cache.nbytes for cache in state.caches.values())
    return {"cache_bytes": size, "in_place_ms": in_place, "own_outputs_ms": copied}


def portable(name: str, block: int, stride: int, rounds: int) -> dict[str, Any]:
    """One of the two bodies: milliseconds, memory beside input and output, ulps off our kernel."""
    case = Case(block, stride, 4, 128, "float16", 16384, 2)
    x = memory.Tokens(case.heads, case.dim, case.dtype).fill(case.tokens)
    w = memory.weights(case.block, case.heads, case.dtype)
    exact = contenders.MAKERS[contenders.NODE](case, x, w)
    exact.run(1)
    made = contenders.MAKERS[name](case, x, w)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made.run(1)
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = statistics.median(made.run(1) for _ in range(rounds))
    ulps = _ulps(made.output(), exact.output())
    return {"name": name, "block": block, "stride": stride, "ms": 1e3 * seconds, "extra_kib": extra, "ulps": ulps}


def _ulps(a: Any, b: Any) -> int:
    """The largest distance in steps of float16."""
    ordered = [
        np.where(bits < 0, -(bits & 0x7FFF), bits) for bits in (x.view(np.int16).astype(np.int32) for x in (a, b))
    ]
    return int(np.abs(ordered[0] - ordered[1]).max())
