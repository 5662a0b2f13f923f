"""Measures a whole decode step of a sparse layer, attention to all tokens beside it. Each function runs in a worker.

Ours: compressed attention to all windows, selected attention to the blocks that it chose, and selected attention again
to the newest blocks, as a sliding window. Theirs: onnxruntime's GroupQueryAttention, its cache updated in place.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import nsa_onnx
from nsa_onnx.operators.windows import window_count
from nsa_onnx.runtime import native

from . import graphs, memory

HEADS, KV_HEADS, DIM = 64, 4, 128
BLOCK, STRIDE, SELECT, COUNT, PAGE = 32, 16, 64, 16, 64
WINDOW = 512  # tokens
PEERS = {"GroupQueryAttention, float16": "float16", "GroupQueryAttention, float32": "float32"}


def _pages(seed: int, tokens: int) -> tuple[Any, Any, Any]:
    """Keys, values and the table of one sequence, whose pages are shuffled."""
    count = -(-tokens // PAGE)
    key, value = (
        memory.Tokens(KV_HEADS, DIM, "float16", seed + i).fill(count * PAGE).reshape(count, PAGE, KV_HEADS, DIM)
        for i in range(2)
    )
    return key, value, np.random.default_rng(seed).permutation(count).astype(np.int32)[None]


def _median(call: Callable[[], Any], rounds: int) -> float:
    call()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def sparse(tokens: list[int], threads: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of our step and of its parts, over the context's length."""
    native.default_threads = lambda: threads
    query = memory.Tokens(HEADS, DIM, "float16", 9).fill(1)
    scale = DIM**-0.5
    points = []
    for length in tokens:
        compressed = window_count(length, BLOCK, STRIDE)
        key, value, table = _pages(0, length)
        small_key, small_value, small_table = _pages(2, compressed)
        newest = np.arange(-(-length // SELECT))[::-1][: WINDOW // SELECT].astype(np.int32)
        window = np.broadcast_to(newest, (1, KV_HEADS, len(newest)))
        chosen: list[Any] = []

        def compress() -> None:
            chosen[:] = nsa_onnx.nsa_compress_attention_infer(  # noqa: B023
                *(query, small_key, small_value, scale, HEADS, KV_HEADS, SELECT, COUNT, PAGE, BLOCK, STRIDE),  # noqa: B023
                block_table=small_table,  # noqa: B023
                actual_cmp_seq_kvlen=[compressed],  # noqa: B023
            )

        def attend(blocks: Any) -> None:
            nsa_onnx.nsa_select_attention_infer(
                *(query, key, value, blocks, scale, HEADS, KV_HEADS, SELECT, blocks.shape[2], PAGE),  # noqa: B023
                block_table=table,  # noqa: B023
                actual_seq_kvlen=[length],  # noqa: B023
            )

        def step() -> None:
            compress()
            attend(chosen[1])  # noqa: B023
            attend(window)  # noqa: B023

        points.append(
            {
                "tokens": length,
                "threads": threads,
                "ms": 1e3 * _median(step, rounds),
                "compress_ms": 1e3 * _median(compress, rounds),
                "selected_ms": 1e3 * _median(lambda: attend(chosen[1]), rounds),  # noqa: B023
                "window_ms": 1e3 * _median(lambda: attend(window), rounds),  # noqa: B023
            }
        )
    return points


def dense(name: str, tokens: list[int], threads: int, rounds: int) -> list[dict[str, Any]]:
    """The same over all tokens."""
    dtype = np.dtype(PEERS[name])
    points = []
    for length in tokens:
        past = [
            memory.Tokens(KV_HEADS, DIM, "float16", seed).fill(length).astype(dtype).transpose(1, 0, 2)[None].copy()
            for seed in (0, 1)
        ]
        query = memory.Tokens(HEADS, DIM, "float16", 9).fill(1).astype(dtype).reshape(1, 1, -1)
        token = np.ones((1, 1, KV_HEADS * DIM), dtype)
        output = np.empty_like(query)
        feeds = {
            "query": query,
            "key": token,
            "value": token,
            "past_key": past[0],
            "past_value": past[1],
            "before": np.array([length - 1], np.int32),
            "total": np.array([length], np.int32),
        }
        running = graphs.session(graphs.group_query_attention(HEADS, KV_HEADS, dtype.name, length, DIM), threads, False)
        run = graphs.bound(running, feeds, {"output": output, "new_key": past[0], "new_value": past[1]})
        seconds = _median(run, rounds)
        points.append({"name": name, "tokens": length, "threads": threads, "ms": 1e3 * seconds})
        _check(query[0, 0, :DIM], past[0][0, 0], past[1][0, 0], output[0, 0, :DIM])
    return points


def _check(query: Any, key: Any, value: Any, got: Any) -> None:
    """The first head, in float64: that the peer is asked for the right thing."""
    logits = key.astype(np.float64) @ query.astype(np.float64) * DIM**-0.5
    weights = np.exp(logits - logits.max())
    wanted = weights @ value.astype(np.float64) / weights.sum()
    assert np.abs(wanted - got).max() < 0.01


def tables(record: dict[str, Any], table: Callable[..., str]) -> list[str]:
    """The section's table, made by `report.table`."""
    dense_ms = {(r["name"], r["tokens"]): r["ms"] for r in record["dense"]}
    peers = [name for name in PEERS if any(name == of for of, _ in dense_ms)]
    rows = [
        [
            *(str(r["tokens"]), f"{r['ms']:.2f}"),
            *(f"{r[f'{part}_ms']:.2f}" for part in ("compress", "selected", "window")),
            *(f"{dense_ms[name, r['tokens']]:.1f} ({dense_ms[name, r['tokens']] / r['ms']:.0f}x)" for name in peers),
        ]
        for r in record["sparse"]
    ]
    title = (
        f"A decode step, one sequence, float16, N1 {HEADS}, N2 {KV_HEADS}, D {DIM}, threads: "
        f"{record['sparse'][0]['threads']}. Milliseconds; in brackets, over ours"
    )
    return [table(title, ["tokens", "ours", "compressed", "selected", "window", *peers], rows)]
