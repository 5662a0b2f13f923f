"""Measures the compress attentions. Each function runs in a worker process of its own (worker.py).

Prefill against the multiply-adds that the machine can do, and against the dense form in torch: two matrix products, a
softmax, a weighted sum and topk. A decode step against a read of the same scattered pages, and against the
multiply-adds as well: with many query heads to a key it is these that take the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import nsa_onnx
from nsa_onnx.operators.windows import window_count
from nsa_onnx.runtime import native

from . import attention, limits
from .attention import BLOCK, COUNT, DIM, DTYPE, GROUP, VALUE_DIM

WINDOW, STRIDE, PAGE = 32, 16, 128
PEERS = ("torch dense",)
_ROWS_AT_ONCE = 1024  # of the dense form: more only takes more memory


class _Prompt:
    """A causal prompt of one sequence, and its masks."""

    def __init__(self, tokens: int, kv_heads: int) -> None:
        self.tokens, self.kv_heads = tokens, kv_heads
        self.compressed = window_count(tokens, WINDOW, STRIDE)
        self.blocks = -(-self.compressed * STRIDE // BLOCK)
        self.query = attention.random(0, tokens, kv_heads * GROUP, DIM)
        self.key = attention.random(1, self.compressed, kv_heads, DIM)
        self.value = attention.random(2, self.compressed, kv_heads, VALUE_DIM)
        rows = np.arange(tokens)[:, None]
        self.atten_mask = np.arange(self.compressed) * STRIDE + WINDOW - 1 > rows
        own = rows // BLOCK
        blocks = np.arange(self.blocks)
        self.topk_mask = (blocks == 0) | (blocks == own) | (blocks == own - 1)

    @property
    def operations(self) -> int:
        """Of the two products over what is seen."""
        return 2 * int((~self.atten_mask).sum()) * self.kv_heads * GROUP * (DIM + VALUE_DIM)

    def check(self, rows: Any, topk: Any) -> None:
        """Some rows of the first head, and the blocks that are always selected."""
        for row in (self.tokens // 2, self.tokens - 1):
            seen = ~self.atten_mask[row]
            logits = self.key[seen, 0].astype(np.float64) @ self.query[row, 0].astype(np.float64) * DIM**-0.5
            weights = np.exp(logits - logits.max())
            wanted = weights @ self.value[seen, 0].astype(np.float64) / weights.sum()
            np.testing.assert_allclose(rows[row].astype(np.float64), wanted, rtol=0.02, atol=0.02)
            assert set(np.flatnonzero(self.topk_mask[row]).tolist()) <= set(topk[row].tolist())


def prefill(tokens: int, kv_heads: int, threads: int, rounds: int) -> dict[str, Any]:
    prompt = _Prompt(tokens, kv_heads)
    native.default_threads = lambda: threads
    last: list[Any] = []

    def call() -> None:
        last[:] = nsa_onnx.nsa_compress_attention(
            *(prompt.query, prompt.key, prompt.value, DIM**-0.5, kv_heads * GROUP, WINDOW, STRIDE, BLOCK, COUNT),
            topk_mask=prompt.topk_mask,
            atten_mask=prompt.atten_mask,
            actual_seq_qlen=[tokens],
            actual_cmp_seq_kvlen=[prompt.compressed],
            actual_sel_seq_kvlen=[prompt.blocks],
        )

    seconds = attention.median(call, rounds)
    prompt.check(last[0][:, 0], last[1][:, 0])
    limit = limits.operations_per_second(native.cpu_target(), threads)
    return {
        "tokens": tokens,
        "kv_heads": kv_heads,
        "threads": threads,
        "seconds": seconds,
        "gflops": prompt.operations / seconds / 1e9,
        "limit_gflops": limit / 1e9,
        "of_limit": prompt.operations / seconds / limit,
    }


def peer(name: str, tokens: int, kv_heads: int, threads: int, rounds: int) -> dict[str, Any]:
    """The same prompt in torch, some rows at a time."""
    import torch

    torch.set_num_threads(threads)
    prompt = _Prompt(tokens, kv_heads)
    query, key, value = attention.torch_tensors(prompt.query, prompt.key, prompt.value)
    query = query.reshape(kv_heads, GROUP, tokens, DIM)
    key, value = key.transpose(1, 2)[:, None], value[:, None]
    hidden, forced = torch.from_numpy(prompt.atten_mask), torch.from_numpy(prompt.topk_mask)
    m, n = BLOCK // STRIDE, WINDOW // STRIDE
    weights = torch.tensor([min(i + 1, n, m + n - 1 - i) for i in range(m + n - 1)][::-1], dtype=torch.float32)
    last: list[Any] = []

    def rows(part: slice) -> tuple[Any, Any]:
        logits = (query[:, :, part] @ key * DIM**-0.5).masked_fill_(hidden[part], torch.finfo(query.dtype).min)
        chances = logits.float().softmax(-1)
        out = chances.to(value.dtype) @ value
        # Block s takes the tokens m * s - n + 2 .. m * (s + 1).
        padded = torch.nn.functional.pad(chances.sum(1), (n - 2, prompt.blocks * m + 1 - prompt.compressed))
        scores = (padded.unfold(-1, m + n - 1, m) * weights).sum(-1)
        return out, scores.masked_fill_(forced[part], torch.inf).topk(min(COUNT, prompt.blocks)).indices

    def call() -> None:
        parts = [rows(slice(i, min(i + _ROWS_AT_ONCE, tokens))) for i in range(0, tokens, _ROWS_AT_ONCE)]
        last[:] = torch.cat([out for out, _ in parts], 2), torch.cat([topk for _, topk in parts], 1)

    with torch.inference_mode():
        seconds = attention.median(call, rounds)
    prompt.check(last[0][0, 0].float().numpy(), last[1][0].numpy())
    return {"name": name, "tokens": tokens, "kv_heads": kv_heads, "seconds": seconds}


def decode(tokens: int, sequences: int, kv_heads: int, group: int, threads: int, rounds: int) -> dict[str, Any]:
    """A step of sequences of so many tokens, whose compressed ones lie on pages in any order."""
    compressed = window_count(tokens, WINDOW, STRIDE)
    each = -(-compressed // PAGE)
    pages = sequences * each
    key = attention.random(1, pages * PAGE, kv_heads, DIM).reshape(pages, PAGE, kv_heads, DIM)
    value = attention.random(2, pages * PAGE, kv_heads, VALUE_DIM).reshape(pages, PAGE, kv_heads, VALUE_DIM)
    query = attention.random(0, sequences, kv_heads * group, DIM)
    native.default_threads = lambda: threads
    target = native.cpu_target()

    def prepare(seed: int) -> tuple[Callable[[], Any], limits.Runs]:
        table = np.random.default_rng(seed).permutation(pages).astype(np.int32).reshape(sequences, each)
        runs = []
        for row in table:
            for p, page in enumerate(row.tolist()):
                of_page = min(PAGE, compressed - p * PAGE)
                runs += [(part.ctypes.data, part.nbytes) for part in (key[page, :of_page], value[page, :of_page])]

        def call() -> Any:
            return nsa_onnx.nsa_compress_attention_infer(
                *(query, key, value, DIM**-0.5, kv_heads * group, kv_heads, BLOCK, COUNT, PAGE, WINDOW, STRIDE),
                block_table=table,
                actual_cmp_seq_kvlen=[compressed] * sequences,
            )

        return call, runs

    seconds, read = attention.against_reads(prepare, target, threads, rounds)
    size = sequences * kv_heads * compressed * (DIM + VALUE_DIM) * 2
    return {
        "tokens": tokens,
        "sequences": sequences,
        "kv_heads": kv_heads,
        "group": group,
        "threads": threads,
        **attention.of_limits(size, size * group, seconds, read, target, threads),
    }


def tables(record: dict[str, Any], table: Callable[..., str]) -> list[str]:
    """The section's tables, made by `report.table`."""
    prompt = (
        f"Compress attention, causal prefill, {DTYPE}, D {DIM}, Dv {VALUE_DIM}, G {GROUP}, windows of {WINDOW} tokens, "
        f"{STRIDE} apart, {COUNT} blocks of {BLOCK}; of torch, how much longer it takes"
    )
    step = (
        "Compress attention, a decode step over the compressed tokens of so many tokens, against a read of the same "
        "scattered pages, against the multiply-adds of the machine, and against whichever of both takes longer"
    )
    return [attention.prefill_table(prompt, record, table), attention.decode_table(step, record, table)]
