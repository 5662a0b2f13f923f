"""The selected attentions by their documentation alone, without nsa_onnx: a dense float64 oracle, and random calls.

The oracle does not gather: it counts how often every token of the sequence is chosen, and weighs all tokens by that.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch

DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
TINY = {"float16": 2.0**-25, "bfloat16": 2.0**-130}
EPS = 2.0**-24


def counted(topk, length, select):
    """How often a row's blocks choose each token: [rows, k] -> [rows, length]."""
    counts = np.zeros((len(topk), length))
    for row, blocks in enumerate(topk.tolist()):
        for block in blocks:
            if block >= 0:
                counts[row, block * select : (block + 1) * select] += 1
    return counts


def one_sequence(query, key, value, topk, scale, select, causal=False):
    """[rows, N1, D], [L, N2, D], [L, N2, Dv], [rows, N2, k] -> the output and by how much float32 may be off."""
    query, key, value = (one.astype(np.float64) for one in (query, key, value))
    scale = float(np.float32(scale))
    rows, heads, dim = query.shape
    length, kv_heads = key.shape[:2]
    group = heads // kv_heads
    out, bound = np.zeros((2, rows, heads, value.shape[2]))
    for g in range(kv_heads) if length and rows else ():
        counts = counted(topk[:, g], length, select)
        if causal:
            seen = counts * (np.arange(length) <= np.arange(rows)[:, None])
            blind = (seen.sum(1) == 0) & (counts.sum(1) > 0)
            seen[blind] = counts[blind]
        else:
            seen, blind = counts, np.zeros(rows, bool)
        for h in range(g * group, (g + 1) * group):
            logits = scale * (query[:, h] @ key[:, g].T)
            sizes = abs(scale) * (np.abs(query[:, h]) @ np.abs(key[:, g]).T)
            logits[blind], sizes[blind] = 0, 0
            top = np.where(seen > 0, logits, -np.inf).max(1, keepdims=True)
            weights = np.where(seen > 0, seen * np.exp(logits - np.where(np.isfinite(top), top, 0)), 0)
            total = weights.sum(1, keepdims=True)
            chances = weights / np.where(total == 0, 1, total)
            out[:, h] = chances @ value[:, g]
            # A product of D terms, its scaling and the change of base; exp; the sums of n terms and the division.
            error = ((dim + 16) * EPS * sizes * (seen > 0)).max(1, keepdims=True)
            relative = np.expm1(2 * error) + (4 * seen.sum(1, keepdims=True) + 64) * EPS
            bound[:, h] = relative * (chances @ np.abs(value[:, g])) + 2.0**-100
    return out, bound


def prefill(call):
    """The output of a `PrefillCall`, and its bound."""
    out, bound = np.zeros((2, *call.query.shape[:2], call.value.shape[2]))
    row = token = 0
    for end, key_end in zip(call.ends, call.key_ends, strict=True):
        own, keys = slice(row, end), slice(token, key_end)
        out[own], bound[own] = one_sequence(
            call.query[own], call.key[keys], call.value[keys], call.topk[own], call.scale, call.select, call.causal
        )
        row, token = end, key_end
    return out, bound


def decode(call):
    """The output of a `DecodeCall`, and its bound. Pages that no token of a sequence lies on are not looked at."""
    out, bound = np.zeros((2, *call.query.shape[:2], call.value.shape[3]))
    page = call.key.shape[1]
    for b, length in enumerate(call.lengths):
        keys, values = (np.zeros((length, *pages.shape[2:]), pages.dtype) for pages in (call.key, call.value))
        for t in range(length):
            entry = call.table[b, t // page]
            if 0 <= entry < len(call.key):  # else no block that is chosen lies there
                keys[t], values[t] = call.key[entry, t % page], call.value[entry, t % page]
        one = slice(b, b + 1)
        out[one], bound[one] = one_sequence(call.query[one], keys, values, call.topk[one], call.scale, call.select)
    return out, bound


def off(got, wanted, bound):
    """By how much a result leaves its bound, rounding to its own type included: at most 0 where it does not."""
    name = got.dtype.name
    size = np.abs(wanted) + bound
    return float((np.abs(got.astype(np.float64) - wanted) - bound - UNIT[name] * size - TINY[name]).max(initial=0))


# --------------------------------------------------------------------------------------------------
# Calls


@dataclass
class PrefillCall:
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    topk: np.ndarray
    scale: float
    select: int
    causal: bool
    ends: list
    key_ends: list

    @property
    def arguments(self):
        """Of `nsa_onnx.nsa_select_attention`, by name and in its order."""
        return {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "topk_indices": self.topk,
            "scale_value": self.scale,
            "head_num": self.query.shape[1],
            "select_block_size": self.select,
            "select_block_count": self.topk.shape[2],
            "causal": self.causal,
            "actual_seq_qlen": self.ends,
            "actual_seq_kvlen": self.key_ends,
        }


@dataclass
class DecodeCall:
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    topk: np.ndarray
    scale: float
    select: int
    table: np.ndarray
    lengths: list

    @property
    def arguments(self):
        """Of `nsa_onnx.nsa_select_attention_infer`, by name and in its order."""
        return {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "topk_indices": self.topk,
            "scale_value": self.scale,
            "head_num": self.query.shape[1],
            "key_value_head_num": self.key.shape[2],
            "select_block_size": self.select,
            "select_block_count": self.topk.shape[2],
            "page_block_size": self.key.shape[1],
            "block_table": self.table,
            "actual_seq_kvlen": self.lengths,
        }


def floats(rng, shape, dtype):
    return rng.standard_normal(shape).astype(np.float32).astype(DTYPES[dtype])


def some_blocks(rng, rows, kv_heads, count, blocks):
    """Any blocks or none; now and then a row without any, and one with the same block everywhere."""
    topk = rng.integers(-1, blocks, (rows, kv_heads, count)).astype(np.int32)
    topk[rng.random((rows, kv_heads)) < 0.1] = -1
    same = rng.random((rows, kv_heads)) < 0.1
    topk[same] = topk[same][:, :1]
    return topk


def prefill_call(
    rng, lengths, key_lengths, *, heads=4, kv_heads=2, dim=32, value_dim=16, select=16, count=3, causal=False,
    dtype="float16", scale=None,
):  # fmt: skip
    ends, key_ends = np.cumsum(lengths).tolist(), np.cumsum(key_lengths).tolist()
    pairs = zip(lengths, key_lengths, strict=True)
    topk = [some_blocks(rng, rows, kv_heads, count, -(-length // select)) for rows, length in pairs]
    return PrefillCall(
        floats(rng, (ends[-1], heads, dim), dtype),
        floats(rng, (key_ends[-1], kv_heads, dim), dtype),
        floats(rng, (key_ends[-1], kv_heads, value_dim), dtype),
        np.concatenate(topk),
        dim**-0.5 if scale is None else scale,
        select,
        causal,
        ends,
        key_ends,
    )


def decode_call(
    rng, lengths, *, heads=4, kv_heads=2, dim=32, value_dim=16, select=16, count=3, page=16, dtype="float16",
    scale=None, spare=1,
):  # fmt: skip
    """Entries of the table that are not read are garbage, and so is what lies on pages that nobody owns."""
    batch, pages = len(lengths), max([-(-n // page) for n in lengths], default=0) + spare
    used = sum(-(-n // page) for n in lengths)
    table = rng.choice([-1, -7, 2**31 - 1, used + spare], (batch, pages)).astype(np.int32)
    free = rng.permutation(used + spare).tolist()
    key = floats(rng, (used + spare, page, kv_heads, dim), dtype)
    value = floats(rng, (used + spare, page, kv_heads, value_dim), dtype)
    topk = np.zeros((batch, kv_heads, count), np.int32)
    for b, length in enumerate(lengths):
        topk[b] = some_blocks(rng, 1, kv_heads, count, -(-length // select))
        chosen = {block for block in topk[b].ravel().tolist() if block >= 0}
        tokens = {t for block in chosen for t in range(block * select, min((block + 1) * select, length))}
        for p in {t // page for t in tokens}:
            table[b, p] = free.pop()
    for unowned in free:
        key[unowned] = value[unowned] = np.nan
    return DecodeCall(
        floats(rng, (batch, heads, dim), dtype),
        key,
        value,
        topk,
        dim**-0.5 if scale is None else scale,
        select,
        table,
        list(lengths),
    )


def tensor(array):
    """The same memory as a torch tensor."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def from_tensor(made):
    if made.dtype == torch.bfloat16:
        return made.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return made.numpy()
