"""Measures the selected attentions. Each function runs in a worker process of its own (worker.py).

Prefill against the multiply-adds that the machine can do, and against what torch offers: attention to all tokens, and
flex_attention with a mask of blocks. A decode step against a read of the same scattered memory, and against the
multiply-adds as well: with many query heads to a key it is these that take the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import nsa_onnx
from nsa_onnx.runtime import native

from . import attention, limits
from .attention import BLOCK, COUNT, DIM, DTYPE, GROUP, VALUE_DIM

PAGE = 64
PEERS = ("torch attention", "torch flex_attention")
_ROWS_ALIKE = 16  # neighbouring rows that select the same blocks, but for one each


def selection(tokens: int, kv_heads: int) -> Any:
    """Blocks of every row of one sequence, ``[tokens, N2, k]``: the first, its own, and others before it."""
    rng = np.random.default_rng(0)
    topk = np.full((tokens, kv_heads, COUNT), -1, np.int32)
    for first in range(0, tokens, _ROWS_ALIKE):
        own = first // BLOCK
        for head in range(kv_heads):
            others = rng.permutation(np.arange(1, own))[: COUNT - 1]
            base = [0, *([own] if own else []), *others[: COUNT - 2]]
            rows = topk[first : first + _ROWS_ALIKE, head]
            rows[:, : len(base)] = base
            if len(others) == COUNT - 1:
                rows[::2, -1] = others[-1]
    return topk


def _arrays(tokens: int, kv_heads: int) -> tuple[Any, Any, Any, Any]:
    query = attention.random(0, tokens, kv_heads * GROUP, DIM)
    return (
        query,
        attention.random(1, tokens, kv_heads, DIM),
        attention.random(2, tokens, kv_heads, VALUE_DIM),
        selection(tokens, kv_heads),
    )


def _pairs(topk: Any) -> int:
    """Of a row and a token that it sees, over all rows and key/value heads."""
    rows = np.arange(len(topk))[:, None, None]
    return int(np.where(topk >= 0, np.minimum(BLOCK, rows - topk * BLOCK + 1), 0).sum())


def _check(arrays: tuple[Any, Any, Any, Any], first_head: Any) -> None:
    """Some rows of the first head's output ``[tokens, Dv]``, in float64."""
    query, key, value, topk = arrays
    for row in (0, len(query) // 2, len(query) - 1):
        tokens = np.concatenate([np.arange(b * BLOCK, (b + 1) * BLOCK) for b in topk[row, 0].tolist() if b >= 0])
        tokens = tokens[tokens <= row]
        logits = key[tokens, 0].astype(np.float64) @ query[row, 0].astype(np.float64) * DIM**-0.5
        weights = np.exp(logits - logits.max())
        wanted = weights @ value[tokens, 0].astype(np.float64) / weights.sum()
        np.testing.assert_allclose(first_head[row].astype(np.float64), wanted, rtol=0.02, atol=0.02)


def prefill(tokens: int, kv_heads: int, threads: int, rounds: int) -> dict[str, Any]:
    """A causal prompt of one sequence."""
    query, key, value, topk = _arrays(tokens, kv_heads)
    native.default_threads = lambda: threads
    last: list[Any] = []

    def call() -> None:
        last[:] = [
            nsa_onnx.nsa_select_attention(
                *(query, key, value, topk, DIM**-0.5, kv_heads * GROUP, BLOCK, COUNT),
                causal=True,
                actual_seq_qlen=[tokens],
                actual_seq_kvlen=[tokens],
            )
        ]

    seconds = attention.median(call, rounds)
    _check((query, key, value, topk), last[0][:, 0])
    operations = 2 * _pairs(topk) * GROUP * (DIM + VALUE_DIM)
    limit = limits.operations_per_second(native.cpu_target(), threads)
    return {
        "tokens": tokens,
        "kv_heads": kv_heads,
        "threads": threads,
        "seconds": seconds,
        "gflops": operations / seconds / 1e9,
        "limit_gflops": limit / 1e9,
        "of_limit": operations / seconds / limit,
    }


def peer(name: str, tokens: int, kv_heads: int, threads: int, rounds: int) -> dict[str, Any]:
    """The same prompt in torch."""
    import torch

    torch.set_num_threads(threads)
    query, key, value, topk = _arrays(tokens, kv_heads)
    tensors = [tensor[None] for tensor in attention.torch_tensors(query, key, value)]
    make = {"torch attention": _all_tokens, "torch flex_attention": _block_mask}[name]
    with torch.inference_mode():
        call = make(tensors, topk)
        begin = time.perf_counter()
        out = call()
        seconds = time.perf_counter() - begin
        if name == "torch flex_attention":  # the first run compiled
            seconds = attention.median(call, rounds)
            _check((query, key, value, topk), out[0, 0].float().numpy())
    return {"name": name, "tokens": tokens, "kv_heads": kv_heads, "seconds": seconds}


def _all_tokens(tensors: Sequence[Any], topk: Any) -> Callable[[], Any]:
    import torch

    # Key and value are repeated in advance: with enable_gqa torch would do it in every call.
    query, key, value = tensors
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    return lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def _block_mask(tensors: Sequence[Any], topk: Any) -> Callable[[], Any]:
    import torch
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    query, key, value = tensors
    tokens, kv_heads = topk.shape[:2]
    blocks = -(-tokens // BLOCK)
    chosen = np.zeros((kv_heads, tokens, blocks + 1), bool)
    heads, rows = np.ogrid[:kv_heads, :tokens]
    chosen[heads[:, :, None], rows[:, :, None], topk.transpose(1, 0, 2)] = True  # -1 is the one too many
    chosen = chosen[:, :, :blocks]
    selected = torch.from_numpy(chosen)

    def sees(b: Any, h: Any, q: Any, kv: Any) -> Any:
        return selected[h // GROUP, q, kv // BLOCK] & (kv <= q)

    padded = np.zeros((kv_heads, blocks * BLOCK, blocks), bool)
    padded[:, :tokens] = chosen
    needed = torch.from_numpy(padded.reshape(kv_heads, blocks, BLOCK, blocks).any(2)).repeat_interleave(GROUP, 0)[None]
    counts = needed.sum(-1, dtype=torch.int32)
    order = torch.argsort(needed.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
    mask = BlockMask.from_kv_blocks(counts, order, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(tokens, tokens))
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(query, key, value, block_mask=mask, enable_gqa=True)


# --------------------------------------------------------------------------------------------------
# Decode


class _Pool:
    """Sequences in pages that are scattered over all of them, and steps on them."""

    def __init__(self, tokens: int, sequences: int, kv_heads: int, group: int) -> None:
        self.tokens, self.sequences, self.kv_heads, self.group = tokens, sequences, kv_heads, group
        self.pages_each = tokens // PAGE
        pages = sequences * self.pages_each
        self.key = attention.random(1, pages * PAGE, kv_heads, DIM).reshape(pages, PAGE, kv_heads, DIM)
        self.value = attention.random(2, pages * PAGE, kv_heads, VALUE_DIM).reshape(pages, PAGE, kv_heads, VALUE_DIM)
        self.query = attention.random(0, sequences, kv_heads * group, DIM)
        table = np.random.default_rng(0).permutation(pages).reshape(sequences, self.pages_each)
        self.table = table.astype(np.int32)

    def topk(self, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        blocks = self.tokens // BLOCK
        rows = [rng.permutation(blocks)[:COUNT] for _ in range(self.sequences * self.kv_heads)]
        return np.stack(rows).astype(np.int32).reshape(self.sequences, self.kv_heads, COUNT)

    def step(self, topk: Any) -> Callable[[], Any]:
        return lambda: nsa_onnx.nsa_select_attention_infer(
            *(self.query, self.key, self.value, topk, DIM**-0.5, self.kv_heads * self.group, self.kv_heads),
            *(BLOCK, COUNT, PAGE),
            block_table=self.table,
            actual_seq_kvlen=[self.tokens] * self.sequences,
        )

    def runs(self, topk: Any) -> limits.Runs:
        """What a step reads: whole blocks of one head, or a run per token where heads lie between."""
        assert BLOCK == PAGE
        found = []
        for b in range(self.sequences):
            for head in range(self.kv_heads):
                for block in topk[b, head].tolist():
                    for pages in (self.key, self.value):
                        part = pages[self.table[b, block], :, head]
                        if self.kv_heads == 1:
                            found.append((part.ctypes.data, part.nbytes))
                        else:
                            found += [(token.ctypes.data, token.nbytes) for token in part]
        return found


def decode(tokens: int, sequences: int, kv_heads: int, group: int, threads: int, rounds: int) -> dict[str, Any]:
    """A step, over new blocks each time, against the fastest read of the same memory."""
    pool = _Pool(tokens, sequences, kv_heads, group)
    native.default_threads = lambda: threads
    target = native.cpu_target()

    def prepare(seed: int) -> tuple[Callable[[], Any], limits.Runs]:
        topk = pool.topk(seed)
        return pool.step(topk), pool.runs(topk)

    seconds, read = attention.against_reads(prepare, target, threads, rounds)
    size = sequences * kv_heads * COUNT * BLOCK * (DIM + VALUE_DIM) * 2
    operations = size * group  # two for each element of two bytes and query head
    return {
        "tokens": tokens,
        "sequences": sequences,
        "kv_heads": kv_heads,
        "group": group,
        "threads": threads,
        **attention.of_limits(size, operations, seconds, read, target, threads),
    }


# --------------------------------------------------------------------------------------------------
# Report


def tables(record: dict[str, Any], table: Callable[..., str]) -> list[str]:
    """The section's tables, made by `report.table`."""
    prompt = (
        f"Selected attention, causal prefill, {DTYPE}, D {DIM}, Dv {VALUE_DIM}, G {GROUP}, {COUNT} blocks of {BLOCK}; "
        "of torch, how much longer it takes"
    )
    step = (
        "Selected attention, a decode step, against a read of the same scattered memory, against the multiply-adds of "
        "the machine, and against whichever of both takes longer"
    )
    return [attention.prefill_table(prompt, record, table), attention.decode_table(step, record, table)]
