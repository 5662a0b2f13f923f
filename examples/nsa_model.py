"""A byte-level transformer whose attention reads compressed K and V, as two modules to export.

This is the compression branch of Native Sparse Attention (Yuan et al. 2025, arXiv:2502.11089): a window of ``block``
tokens, moved by ``stride``, becomes one key and one value per head, and a query attends to those instead of to the
tokens. The paper's selection and sliding-window branches are left out.

Causality: a query at position t sees the window of tokens [s, s + block) if it is complete before the query,
s + block <= t. Every query also sees the key and value of its own token. So the softmax has an entry even where no
window is complete yet, and nothing is ever NaN.

`Prefill` and `Decode` share one set of weights (random, from a seed) and must agree: the logits of a token do not
depend on which of the two computed them, up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nsa_onnx.exporters import nsa_compress, nsa_compress_infer


@dataclass(frozen=True)
class Config:
    """Sizes of the model. ``heads`` query heads share ``kv_heads`` K/V heads in equal groups."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocabulary: int = 256  # the bytes
    block: int = 32  # tokens per window
    stride: int = 16  # tokens between two windows' starts
    page: int = 64  # tokens per page of the K/V cache
    dtype: torch.dtype = torch.float16  # of K and V, cached and compressed; everything else is float32
    seed: int = 0


class Attention(nn.Module):
    """Projections, compression weights and the attention over [own token, visible windows]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        n, g, d = config.kv_heads, config.heads // config.kv_heads, config.head_dim
        self.query = nn.Linear(config.width, n * g * d, bias=False)
        self.key = nn.Linear(config.width, n * d, bias=False)
        self.value = nn.Linear(config.width, n * d, bias=False)
        self.out = nn.Linear(n * g * d, config.width, bias=False)
        # About the size that gives a compressed token the variance of a token.
        self.compress_key = nn.Parameter((torch.randn(config.block, n) / math.sqrt(config.block)).to(config.dtype))
        self.compress_value = nn.Parameter((torch.randn(config.block, n) / math.sqrt(config.block)).to(config.dtype))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [tokens, width] -> q [tokens, N, G, D] float32; k, v [tokens, N, D] in the cache's type."""
        n, d = self.config.kv_heads, self.config.head_dim
        q = self.query(x).unflatten(-1, (n, -1, d))
        k = self.key(x).unflatten(-1, (n, d)).to(self.config.dtype)
        v = self.value(x).unflatten(-1, (n, d)).to(self.config.dtype)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, windows_k: Tensor, windows_v: Tensor, visible: Tensor) -> Tensor:
        """Rows of queries, each row with its own windows.

        Args:
            q: [rows, queries, N, G, D] float32.
            k, v: [rows, queries, N, D], the queries' own tokens.
            windows_k, windows_v: [rows, windows, N, D].
            visible: [rows, queries, windows] bool.

        Returns:
            [rows * queries, width] float32.
        """
        k, v, windows_k, windows_v = (t.float() for t in (k, v, windows_k, windows_v))
        q = q.transpose(1, 2) / math.sqrt(self.config.head_dim)  # [rows, N, queries, G, D]
        own = (q * k.transpose(1, 2).unsqueeze(-2)).sum(-1, keepdim=True)
        scores = torch.matmul(q.flatten(2, 3), windows_k.permute(0, 2, 3, 1)).unflatten(2, q.shape[2:4])
        scores = scores.masked_fill(~visible[:, None, :, None, :], float("-inf"))
        share = torch.softmax(torch.cat([own, scores], -1), -1)
        mixed = torch.matmul(share[..., 1:].flatten(2, 3), windows_v.transpose(1, 2)).unflatten(2, q.shape[2:4])
        mixed = mixed + share[..., :1] * v.transpose(1, 2).unsqueeze(-2)
        return self.out(mixed.transpose(1, 2).flatten(2).flatten(0, 1))


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, 2 * config.width),
            nn.GELU(),
            nn.Linear(2 * config.width, config.width),
        )


class Decoder(nn.Module):
    """The weights; `Prefill` and `Decode` run them."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.embedding = nn.Embedding(config.vocabulary, config.width)
            self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
            self.norm = nn.LayerNorm(config.width)
            self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.config = config
        self.eval().requires_grad_(False)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Byte embeddings plus sinusoids: int64 [n], int64 [n] -> float32 [n, width]."""
        half = self.config.width // 2
        frequencies = torch.exp(torch.arange(half) * (-math.log(10000.0) / half))
        angles = positions.float()[:, None] * frequencies
        return self.embedding(tokens) + torch.cat([torch.sin(angles), torch.cos(angles)], -1)


class Prefill(nn.Module):
    """A ragged batch of whole sequences in TND layout: all tokens one behind the other.

    Inputs: tokens int64 [T]; actual_seq_len int64 [B], prefix sums of the lengths.
    Outputs: logits float32 [T, 256], then per layer k, v [T, N, D] and windows_k, windows_v [T', N, D].
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.eval()

    def forward(self, tokens: Tensor, actual_seq_len: Tensor) -> tuple[Tensor, ...]:
        config = self.decoder.config
        segment, positions = locate(tokens.shape[0], actual_seq_len)
        x = self.decoder.embed(tokens, positions)
        caches: list[Tensor] = []
        for layer in self.decoder.layers:
            q, k, v = layer.attention.project(layer.norm(x))
            windows_k, windows_v = (
                nsa_compress(t, weight, config.block, config.stride, actual_seq_len=actual_seq_len)
                for t, weight in ((k, layer.attention.compress_key), (v, layer.attention.compress_value))
            )
            visible = self._visible(segment, positions, actual_seq_len, windows_k.shape[0])
            rows = (t.unsqueeze(0) for t in (q, k, v, windows_k, windows_v, visible))
            x = x + layer.attention.attend(*rows)
            x = x + layer.mlp(x)
            caches += [k, v, windows_k, windows_v]
        return self.decoder.head(self.decoder.norm(x)), *caches

    def _visible(self, segment: Tensor, positions: Tensor, actual_seq_len: Tensor, windows: int) -> Tensor:
        """bool [T, T']: the window lies in the token's own segment and is complete before the token."""
        config = self.decoder.config
        lengths = torch.diff(actual_seq_len, prepend=actual_seq_len.new_zeros(1))
        counts = torch.clamp(lengths - config.block + config.stride, min=0) // config.stride
        window_segment, index = locate(windows, torch.cumsum(counts, 0))
        ends = index * config.stride + config.block
        return (segment[:, None] == window_segment) & (ends <= positions[:, None])


def locate(rows: int, prefix_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Which segment each of the rows 0 .. rows-1 belongs to, and its index there: two int64 [rows]."""
    row = torch.arange(rows)
    segment = (row[:, None] >= prefix_sums).sum(-1)
    starts = torch.cat([prefix_sums.new_zeros(1), prefix_sums])
    return segment, row - starts[segment]


class Decode(nn.Module):
    """One token for each of B sequences, over paged K/V and a cache of compressed windows.

    Inputs: tokens int64 [B]; actual_seq_len int64 [B], lengths with the new token; block_table int32
    [B, P], the pages of each sequence; slot_table int64 [B, W], the cache slots of each sequence's windows
    in order; slot_mapping int32 [B], the slot of the window this step completes, read only where one is.
    Then per layer pages_k, pages_v [block_num, page, N, D] and windows_k, windows_v [slots, N, D], which are
    updated in place.
    Output: logits float32 [B, 256].

    Padding of slot_table must be a legal index (0 will do): what it points to is finite and masked out.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.eval()

    def forward(
        self,
        tokens: Tensor,
        actual_seq_len: Tensor,
        block_table: Tensor,
        slot_table: Tensor,
        slot_mapping: Tensor,
        *caches: Tensor,
    ) -> Tensor:
        config = self.decoder.config
        positions = actual_seq_len - 1
        page = block_table.long().gather(1, (positions // config.page)[:, None]).squeeze(1)
        offset = positions % config.page
        ends = torch.arange(slot_table.shape[1]) * config.stride + config.block
        visible = ends <= positions[:, None]

        def store(token: Tensor, pages: Tensor, weight: Tensor, windows: Tensor) -> Tensor:
            """Write the token into its page and compress the window it completes, if any: [B, W, N, D]."""
            pages[page, offset] = token
            sizes = config.block, config.stride, config.page
            nsa_compress_infer(
                pages,
                weight,
                slot_mapping,
                *sizes,
                block_table=block_table,
                actual_seq_len=actual_seq_len,
                cache=windows,
            )
            return windows[slot_table]

        x = self.decoder.embed(tokens, positions)
        for index, layer in enumerate(self.decoder.layers):
            pages_k, pages_v, windows_k, windows_v = caches[4 * index : 4 * index + 4]
            q, k, v = layer.attention.project(layer.norm(x))
            seen_k = store(k, pages_k, layer.attention.compress_key, windows_k)
            seen_v = store(v, pages_v, layer.attention.compress_value, windows_v)
            queries = (t.unsqueeze(1) for t in (q, k, v))
            x = x + layer.attention.attend(*queries, seen_k, seen_v, visible.unsqueeze(1))
            x = x + layer.mlp(x)
        return self.decoder.head(self.decoder.norm(x))
