"""Calls of the compress attentions and an independent float64 reference, written from the documentation alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
LOWEST = float(np.finfo(np.float32).min)


def one_row(queries, keys, values, scale, hidden, sizes, blocks):
    """One query token and one group of heads: the heads' outputs and the scores of the blocks.

    Args:
        queries: ``[G, D]``.
        keys, values: ``[L, D]`` and ``[L, Dv]``, L >= 1.
        hidden: ``[L]``.
        sizes: block, stride and selected block in tokens.
    """
    block, stride, select = sizes
    chances, outs = [], []
    for query in queries.astype(np.float64):
        logits = np.array([np.float64(np.float32(scale)) * sum(query * key) for key in keys.astype(np.float64)])
        logits[hidden] = LOWEST
        weights = np.exp(logits - logits.max())
        chances.append(weights / weights.sum())
        outs.append(sum(chance * value for chance, value in zip(chances[-1], values.astype(np.float64), strict=True)))
    of_group = np.sum(chances, axis=0)
    m, n = select // stride, block // stride
    scores = np.zeros(blocks)
    for s in range(blocks):
        for i in range(m + n - 1):
            j = m * (s + 1) - i
            if 0 <= j < len(keys):
                scores[s] += min(i + 1, n, m + n - 1 - i) * of_group[j]
    return np.array(outs), scores


def best(scores, count):
    """Highest first, equal ones by ascending index; scores that differ by rounding alone are equal."""
    order = sorted(range(len(scores)), key=lambda s: (-float(f"{scores[s]:.9e}"), s))[:count]
    return order + [-1] * (count - len(order))


@dataclass
class PrefillCall:
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scale: float
    sizes: tuple
    count: int
    lengths: list
    compressed: list
    atten_mask: np.ndarray | None = None
    topk_mask: np.ndarray | None = None

    name = "nsa_compress_attention"
    op_type = "NsaCompressAttention"

    @property
    def blocks(self):
        return [-(-tokens * self.sizes[1] // self.sizes[2]) for tokens in self.compressed]

    @property
    def arguments(self):
        """Of `nsa_onnx.nsa_compress_attention`, by name and in its order."""
        return {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "scale_value": self.scale,
            "head_num": self.query.shape[1],
            "compress_block_size": self.sizes[0],
            "compress_stride": self.sizes[1],
            "select_block_size": self.sizes[2],
            "select_block_count": self.count,
            "topk_mask": self.topk_mask,
            "atten_mask": self.atten_mask,
            "actual_seq_qlen": np.cumsum(self.lengths).tolist(),
            "actual_cmp_seq_kvlen": np.cumsum(self.compressed).tolist(),
            "actual_sel_seq_kvlen": np.cumsum(self.blocks).tolist(),
        }

    def oracle(self):
        """Outputs, and per row and group the scores."""
        rows, heads, _ = self.query.shape
        kv_heads = self.key.shape[1]
        group = heads // kv_heads
        out = np.zeros((rows, heads, self.value.shape[2]))
        topk, scores = np.full((rows, kv_heads, self.count), -1), {}
        t = token = 0
        for length, tokens, blocks in zip(self.lengths, self.compressed, self.blocks, strict=True):
            for row in range(length if tokens else 0):
                hidden = np.zeros(tokens, bool) if self.atten_mask is None else self.atten_mask[row, :tokens]
                for g in range(kv_heads):
                    own = slice(token, token + tokens)
                    of_heads = slice(g * group, (g + 1) * group)
                    out[t + row, of_heads], found = one_row(
                        self.query[t + row, of_heads], self.key[own, g], self.value[own, g], self.scale, hidden,
                        self.sizes, blocks,
                    )  # fmt: skip
                    if self.topk_mask is not None:
                        found[self.topk_mask[row, :blocks]] = np.inf
                    scores[t + row, g] = found
                    topk[t + row, g] = best(found, self.count)
            t, token = t + length, token + tokens
        return out, topk, scores


@dataclass
class DecodeCall:
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scale: float
    sizes: tuple
    count: int
    table: np.ndarray
    lengths: list = field(default_factory=list)

    name = "nsa_compress_attention_infer"
    op_type = "NsaCompressAttentionInfer"

    @property
    def arguments(self):
        """Of `nsa_onnx.nsa_compress_attention_infer`, by name and in its order."""
        return {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "scale_value": self.scale,
            "head_num": self.query.shape[1],
            "key_value_head_num": self.key.shape[2],
            "select_block_size": self.sizes[2],
            "select_block_count": self.count,
            "page_block_size": self.key.shape[1],
            "compress_block_size": self.sizes[0],
            "compress_stride": self.sizes[1],
            "block_table": self.table,
            "actual_cmp_seq_kvlen": list(self.lengths),
        }

    def oracle(self):
        batch, heads, _ = self.query.shape
        page, kv_heads = self.key.shape[1:3]
        group = heads // kv_heads
        out = np.zeros((batch, heads, self.value.shape[3]))
        topk, scores = np.full((batch, kv_heads, self.count), -1), {}
        for b, length in enumerate(self.lengths):
            blocks = -(-((length - 1) * self.sizes[1] + self.sizes[0]) // self.sizes[2]) if length else 1
            keys, values = (
                np.array([pages[self.table[b, t // page], t % page] for t in range(length)])
                for pages in (self.key, self.value)
            )
            for g in range(kv_heads):
                found = np.zeros(blocks)
                if length:
                    of_heads = slice(g * group, (g + 1) * group)
                    out[b, of_heads], found = one_row(
                        self.query[b, of_heads], keys[:, g], values[:, g], self.scale, np.zeros(length, bool),
                        self.sizes, blocks,
                    )  # fmt: skip
                found[0] = found[-1] = found[max(0, blocks - 2)] = np.inf
                scores[b, g] = found
                topk[b, g] = best(found, self.count)
        return out, topk, scores


def floats(rng, shape, dtype):
    return rng.standard_normal(shape).astype(np.float32).astype(DTYPES[dtype])


def prefill_call(
    rng, lengths, compressed, *, heads=4, kv_heads=2, dim=32, value_dim=16, sizes=(32, 16, 64), count=3,
    masks=(False, False), larger=0, dtype="float16", scale=None,
):  # fmt: skip
    """``masks``: whether there are atten_mask and topk_mask; ``larger``: by how much more than they need be."""
    call = PrefillCall(
        floats(rng, (sum(lengths), heads, dim), dtype),
        floats(rng, (sum(compressed), kv_heads, dim), dtype),
        floats(rng, (sum(compressed), kv_heads, value_dim), dtype),
        dim**-0.5 if scale is None else scale,
        sizes,
        count,
        list(lengths),
        list(compressed),
    )
    for given, name, columns in zip(masks, ("atten_mask", "topk_mask"), (compressed, call.blocks), strict=True):
        if given:
            mask = rng.random((max(lengths) + larger, max(columns) + larger)) < 0.3
            mask[rng.random(len(mask)) < 0.1] = True  # rows that see nothing
            setattr(call, name, mask)
    return call


def decode_call(
    rng, lengths, *, heads=4, kv_heads=2, dim=32, value_dim=16, sizes=(32, 16, 64), count=3, page=16, spare=1,
    dtype="float16", scale=None,
):  # fmt: skip
    """Entries of the table that are not read are garbage, and so is what lies on pages that nobody owns."""
    needed = [-(-length // page) for length in lengths]
    used = sum(needed)
    table = rng.choice([-1, -7, 2**31 - 1, used + spare], (len(lengths), max(needed, default=0) + spare))
    free = rng.permutation(used + spare).tolist()
    key = floats(rng, (used + spare, page, kv_heads, dim), dtype)
    value = floats(rng, (used + spare, page, kv_heads, value_dim), dtype)
    for b, pages in enumerate(needed):
        for p in range(pages):
            table[b, p] = free.pop()
    for b, length in enumerate(lengths):
        if length % page:
            key[table[b, length // page], length % page :] = np.nan
            value[table[b, length // page], length % page :] = np.nan
    key[free] = value[free] = np.nan
    return DecodeCall(
        floats(rng, (len(lengths), heads, dim), dtype),
        key,
        value,
        dim**-0.5 if scale is None else scale,
        sizes,
        count,
        table.astype(np.int32),
        list(lengths),
    )
