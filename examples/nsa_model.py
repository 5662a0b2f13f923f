"""A byte-level decoder of Native Sparse Attention layers (Yuan et al. 2025, arXiv:2502.11089), as modules to export.

A layer has three branches, each with keys and values of its own, whose results are weighed by gates and added:

- cmp: attention to compressed tokens. A window of ``block`` tokens, moved by ``stride``, becomes one key and one value.
- slc: attention to the ``count`` blocks of ``select`` tokens that branch cmp found important.
- win: attention to the latest ``latest`` tokens, in standard operators.

Queries and keys have rotary positions (RoPE). docs/from-the-paper.md takes such a layer apart.

`Prefill` and `Decode` share one set of weights (random, from a seed) and must agree: the logits of a token do not
depend on which of the two computed them, up to rounding. `Dense` is what they are compared with: the same decoder with
attention to all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nsa_onnx.exporters import (
    nsa_compress,
    nsa_compress_attention,
    nsa_compress_attention_infer,
    nsa_compress_infer,
    nsa_select_attention,
    nsa_select_attention_infer,
)

BRANCHES = ("cmp", "slc", "win")


@dataclass(frozen=True)
class Config:
    """Sizes of the model. ``heads`` query heads share ``kv_heads`` key/value heads in equal groups."""

    layers: int = 2
    width: int = 128
    heads: int = 8
    kv_heads: int = 2
    key_dim: int = 192  # these two as in the paper; the vendor's operators take no others in prefill
    value_dim: int = 128
    vocabulary: int = 256  # the bytes
    block: int = 32  # tokens per window
    stride: int = 16  # tokens between two windows' starts
    select: int = 64  # tokens per block
    count: int = 8  # blocks that a query chooses; three are always the same ones
    latest: int = 128  # tokens of the sliding window
    page: int = 64  # tokens per page of the K/V caches
    dtype: torch.dtype = torch.float16  # of queries, K and V, cached and compressed; everything else is float32
    seed: int = 0

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.key_dim)


class Projected(NamedTuple):
    """What a layer makes of its input, row by row."""

    query: Tensor  # [rows, N1, D]
    tokens: dict[str, tuple[Tensor, Tensor]]  # keys [rows, N2, D] and values [rows, N2, Dv] of each branch


class Attention(nn.Module):
    """The weights of the three branches, and what does not depend on how K and V are kept."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        kept = config.kv_heads * len(BRANCHES)  # key/value heads of all branches
        self.queries_and_keys = nn.Linear(config.width, (config.heads + kept) * config.key_dim, bias=False)
        self.values = nn.Linear(config.width, kept * config.value_dim, bias=False)
        self.gates = nn.Linear(config.width, config.heads * len(BRANCHES))
        self.out = nn.Linear(config.heads * config.value_dim, config.width, bias=False)
        nn.init.normal_(self.queries_and_keys.weight, std=1.2 / math.sqrt(config.width))  # so that some keys stand out
        # About the size that gives a compressed token the variance of a token.
        shape = config.block, config.kv_heads
        self.compress_key = nn.Parameter((torch.randn(shape) / math.sqrt(config.block)).to(config.dtype))
        self.compress_value = nn.Parameter((torch.randn(shape) / math.sqrt(config.block)).to(config.dtype))

    def project(self, x: Tensor, turns: Turns) -> Projected:
        """x [rows, width]; queries and keys are turned by the rows' positions. All in the caches' type."""
        config = self.config
        queries_and_keys = turns.apply(self.queries_and_keys(x).unflatten(-1, (-1, config.key_dim)))
        heads = [config.heads, *(config.kv_heads for _ in BRANCHES)]
        query, *keys = queries_and_keys.to(config.dtype).split(heads, dim=1)
        values = self.values(x).unflatten(-1, (-1, config.value_dim)).to(config.dtype).split(config.kv_heads, dim=1)
        return Projected(query, dict(zip(BRANCHES, zip(keys, values, strict=True), strict=True)))

    def mix(self, x: Tensor, *branches: Tensor) -> Tensor:
        """Results of the branches, [rows, N1, Dv] each, weighed by the gates: [rows, width]."""
        gates = torch.sigmoid(self.gates(x)).unflatten(-1, (len(BRANCHES), -1, 1))
        mixed = sum(gates[:, index] * result.float() for index, result in enumerate(branches))
        return self.out(mixed.flatten(1))


class Turns(NamedTuple):
    """Rotary positions: element i and element i + D/2 of a head are turned by position * frequency i."""

    cos: Tensor  # [rows, 1, D/2]
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, dim: int) -> Turns:
        frequencies = torch.exp(torch.arange(dim // 2) * (-math.log(10000.0) / (dim // 2)))
        angles = positions.float()[:, None, None] * frequencies
        return cls(torch.cos(angles), torch.sin(angles))

    def apply(self, x: Tensor) -> Tensor:
        """x [rows, N, D] float32."""
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    """Attention in standard operators, in float32.

    Args:
        query: [rows, queries, N1, D].
        key, value: [rows, tokens, N2, D] and [rows, tokens, N2, Dv].
        seen: [rows, queries, tokens] bool. Each query sees a token.

    Returns:
        [rows, queries, N1, Dv].
    """
    groups = query.float().unflatten(2, (key.shape[2], -1)).permute(0, 2, 3, 1, 4)  # [rows, N2, G, queries, D]
    logits = torch.matmul(groups, key.float().permute(0, 2, 3, 1).unsqueeze(2)) * scale
    share = torch.softmax(logits.masked_fill(~seen[:, None, None], float("-inf")), -1)
    result = torch.matmul(share, value.float().transpose(1, 2).unsqueeze(2))
    return result.permute(0, 3, 1, 2, 4).flatten(2, 3)


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
    """The weights; `Prefill`, `Decode` and `Dense` run them."""

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

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


# --------------------------------------------------------------------------------------------------
# Prefill


class Prefill(nn.Module):
    """A ragged batch of whole sequences in TND layout: all tokens one behind the other.

    Inputs: tokens int64 [T]; actual_seq_len int64 [B], prefix sums of the lengths.
    Outputs: logits float32 [T, 256], then per layer the keys and values of each branch, the compressed keys and
    values, and the chosen blocks int32 [T, N2, count].

    Args:
        choose: for comparisons in PyTorch: given the layer, its queries and compressed keys, and the blocks that
            it chose, says which blocks are read instead.
    """

    def __init__(self, decoder: Decoder, choose: Callable[[int, Tensor, Tensor, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.decoder = decoder
        self.choose = choose
        self.eval()

    def forward(self, tokens: Tensor, actual_seq_len: Tensor) -> tuple[Tensor, ...]:
        config = self.decoder.config
        rows = Rows.of(config, tokens.shape[0], actual_seq_len)
        turns = Turns.at(rows.positions, config.key_dim)
        x = self.decoder.embedding(tokens)
        caches: list[Tensor] = []
        for index, layer in enumerate(self.decoder.layers):
            attention, normed = layer.attention, layer.norm(x)
            query, kept = attention.project(normed, turns)
            compressed = tuple(
                nsa_compress(t, weight, config.block, config.stride, actual_seq_len=actual_seq_len)
                for t, weight in zip(kept["cmp"], (attention.compress_key, attention.compress_value), strict=True)
            )
            cmp, chosen = nsa_compress_attention(
                query,
                *compressed,
                config.scale,
                config.heads,
                config.block,
                config.stride,
                config.select,
                config.count,
                topk_mask=rows.forced,
                atten_mask=rows.hidden,
                actual_seq_qlen=actual_seq_len,
                actual_cmp_seq_kvlen=rows.compressed_ends,
                actual_sel_seq_kvlen=rows.block_ends,
            )
            cmp = torch.where(rows.windows[:, None, None] > 0, cmp.float(), 0)
            chosen = rows.as_in_decode(chosen)
            if self.choose is not None:
                chosen = self.choose(index, query, compressed[0], chosen)
            slc = nsa_select_attention(
                query,
                *kept["slc"],
                chosen,
                config.scale,
                config.heads,
                config.select,
                config.count,
                causal=True,
                actual_seq_qlen=actual_seq_len,
                actual_seq_kvlen=actual_seq_len,
            )
            win = self._latest(query, *kept["win"], rows.first)
            x = x + attention.mix(normed, cmp, slc, win)
            x = x + layer.mlp(x)
            caches += [t for branch in BRANCHES for t in kept[branch]]
            caches += [*compressed, chosen]
        return self.decoder.logits(x), *caches

    def _latest(self, query: Tensor, key: Tensor, value: Tensor, first: Tensor) -> Tensor:
        """Branch win: pieces of as many queries as the window has tokens see their own piece and the one before."""
        size, last = self.decoder.config.latest, query.shape[0] - 1
        piece = torch.arange((last + size) // size)[:, None] * size
        row, token = piece + torch.arange(size), piece + torch.arange(-size, size)
        row_, token_ = row[:, :, None], token[:, None, :]
        row, token = row.clamp(max=last), token.clamp(0, last)  # behind the last row lies nothing
        seen = (token_ <= row_) & (token_ > row_ - size) & (token_ >= first[row][:, :, None])
        result = attend(query[row], key[token], value[token], seen, self.decoder.config.scale)
        return result.flatten(0, 1)[: query.shape[0]]


class Rows(NamedTuple):
    """What each row of a ragged batch sees. The same in all layers.

    ``windows`` and ``blocks`` are what a decode step has at the row's position: the complete windows, and the blocks
    that can be chosen.
    """

    positions: Tensor  # [T], in the row's own sequence
    first: Tensor  # [T], the row where the sequence begins
    windows: Tensor  # [T]
    blocks: Tensor  # [T]
    prefill_blocks: Tensor  # [T], blocks that NsaCompressAttention can choose: of the row's whole sequence
    behind: Tensor  # [T] bool: the row's token lies behind the blocks that decode can choose
    future: Tensor  # [T], a block of the future that such a row has not chosen; -1 where the sequence has none
    compressed_ends: Tensor  # [B], prefix sums of the sequences' windows
    block_ends: Tensor  # [B], prefix sums of their blocks
    hidden: Tensor  # [longest, windows] bool: the window is not complete at the position
    forced: Tensor  # [longest, blocks] bool: decode always chooses the block at the position

    @classmethod
    def of(cls, config: Config, rows: int, ends: Tensor) -> Rows:
        segment, positions = locate(rows, ends)
        lengths = torch.diff(ends, prepend=ends.new_zeros(1))
        per_sequence = window_counts(config, lengths)
        per_block = config.select // config.stride
        blocks = (per_sequence + per_block - 1) // per_block
        # The masks are for positions, and all sequences share them.
        position = torch.arange(size(lengths))
        hidden = torch.arange(size(per_sequence)) >= window_counts(config, position + 1)[:, None]
        count = block_counts(config, position + 1)[:, None]
        block = torch.arange(size(blocks))
        forced = (block == 0) | (block == count - 2) | (block == count - 1)
        blocks_there = block_counts(config, positions + 1)
        # A row behind its blocks has fewer than `count`, so it has chosen the first `count` of its sequence.
        longer = (lengths > config.count * config.select)[segment]
        return cls(
            positions,
            torch.arange(rows) - positions,
            window_counts(config, positions + 1),
            blocks_there,
            blocks[segment],
            blocks_there * config.select <= positions,
            torch.where(longer, config.count, -1),
            torch.cumsum(per_sequence, 0),
            torch.cumsum(blocks, 0),
            hidden,
            forced,
        )

    def as_in_decode(self, chosen: Tensor) -> Tensor:
        """Chosen blocks [T, N2, count] of prefill, so that a row reads what a decode step at its position would.

        Most blocks that decode does not have lie in the future, where ``causal`` hides them. One may not: the block
        behind decode's last one, if the row's own token is in it. A block of the future takes its place.

        And decode always chooses its last block, even where only the end of a window reaches that; prefill then does
        not have it. The last of the chosen blocks makes room.
        """
        blocks, prefill_blocks, future = (
            t[:, None, None].int() for t in (self.blocks, self.prefill_blocks, self.future)
        )
        chosen = torch.where((chosen == blocks) & self.behind[:, None, None], future, chosen)
        last = torch.where(prefill_blocks < blocks, blocks - 1, chosen[..., -1:])
        return torch.cat([chosen[..., :-1], last], -1)


def size(counts: Tensor) -> int:
    """The largest of some counts, as a size: in a graph, one that is known when it runs."""
    largest = counts.max().item()  # int() would be asked for its value in the export
    torch._check(largest >= 0)
    return largest


def window_counts(config: Config, lengths: Tensor) -> Tensor:
    """Windows that are complete after so many tokens."""
    return torch.clamp(lengths - config.block + config.stride, min=0) // config.stride


def block_counts(config: Config, lengths: Tensor) -> Tensor:
    """Blocks that a decode step can choose after so many tokens: those of the tokens in windows, but at least one."""
    reach = window_counts(config, lengths) * config.stride + config.block - config.stride
    return torch.clamp((reach + config.select - 1) // config.select, min=1)


def locate(rows: int, prefix_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Which segment each of the rows 0 .. rows-1 belongs to, and its index there: two int64 [rows]."""
    row = torch.arange(rows)
    segment = (row[:, None] >= prefix_sums).sum(-1)
    starts = torch.cat([prefix_sums.new_zeros(1), prefix_sums])
    return segment, row - starts[segment]


# --------------------------------------------------------------------------------------------------
# Decode


class Decode(nn.Module):
    """One token for each of B sequences, over paged caches of tokens and of compressed tokens.

    Inputs: tokens int64 [B]; actual_seq_len int64 [B], lengths with the new token; block_table int32 [B, P], the
    pages of each sequence; compressed_table int32 [B, Q], the pages of its compressed tokens; slot_mapping int32 [B],
    the row of the compressed cache for the window that this step completes, read only where one is.
    Then per layer the caches, which are updated in place: pages of the keys and values of each branch, [block_num,
    page, N2, D or Dv], and the compressed keys and values, [compressed_num * page, N2, D or Dv].
    Outputs: logits float32 [B, 256], and per layer the chosen blocks int32 [B, N2, count].
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
        compressed_table: Tensor,
        slot_mapping: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        config = self.decoder.config
        positions = actual_seq_len - 1
        windows = window_counts(config, actual_seq_len)
        turns = Turns.at(positions, config.key_dim)
        page, offset = paged(block_table, positions[:, None], config.page)
        newest = positions[:, None] - torch.arange(config.latest)  # [B, latest]
        newest_at = paged(block_table, newest.clamp(min=0), config.page)
        seen = (newest >= 0).unsqueeze(1)
        sizes = config.scale, config.heads, config.kv_heads, config.select, config.count, config.page

        x = self.decoder.embedding(tokens)
        choices = []
        for layer, (kept, compressed) in zip(self.decoder.layers, by_layer(caches), strict=True):
            attention, normed = layer.attention, layer.norm(x)
            query, new = attention.project(normed, turns)
            for branch in BRANCHES:
                for pages, token in zip(kept[branch], new[branch], strict=True):
                    pages[page, offset] = token.unsqueeze(1)
            weights = attention.compress_key, attention.compress_value
            for pages, weight, cache in zip(kept["cmp"], weights, compressed, strict=True):
                nsa_compress_infer(
                    pages,
                    weight,
                    slot_mapping,
                    config.block,
                    config.stride,
                    config.page,
                    block_table=block_table,
                    actual_seq_len=actual_seq_len,
                    cache=cache,
                )
            cmp, chosen = nsa_compress_attention_infer(
                query,
                *(cache.unflatten(0, (-1, config.page)) for cache in compressed),
                *sizes,
                config.block,
                config.stride,
                block_table=compressed_table,
                actual_cmp_seq_kvlen=windows,
            )
            slc = nsa_select_attention_infer(
                query, *kept["slc"], chosen, *sizes, block_table=block_table, actual_seq_kvlen=actual_seq_len
            )
            key, value = (pages[newest_at] for pages in kept["win"])
            win = attend(query.unsqueeze(1), key, value, seen, config.scale).squeeze(1)
            x = x + attention.mix(normed, cmp, slc, win)
            x = x + layer.mlp(x)
            choices.append(chosen)
        return self.decoder.logits(x), *choices


CACHES = (*(f"{branch}_{kind}" for branch in BRANCHES for kind in "kv"), "compressed_k", "compressed_v")


def by_layer(caches: tuple[Tensor, ...]) -> list[tuple[dict[str, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]]:
    """Per layer: keys and values of each branch, and the compressed ones; from caches in the order of `CACHES`."""
    layers = []
    for start in range(0, len(caches), len(CACHES)):
        k_and_v = [(caches[i], caches[i + 1]) for i in range(start, start + len(CACHES), 2)]
        layers.append((dict(zip(BRANCHES, k_and_v, strict=False)), k_and_v[-1]))
    return layers


def paged(block_table: Tensor, tokens: Tensor, page: int) -> tuple[Tensor, Tensor]:
    """Where tokens [B, n] of the sequences lie: their pages and the offsets in these."""
    return block_table.long().gather(1, tokens // page), tokens % page


class Dense(nn.Module):
    """`Decode` with attention to all tokens in the place of the three branches, over the K and V of branch slc.

    Inputs: tokens, actual_seq_len and block_table as in `Decode`; per layer the two caches of branch slc.
    Output: logits float32 [B, 256].
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.eval()

    def forward(self, tokens: Tensor, actual_seq_len: Tensor, block_table: Tensor, *caches: Tensor) -> Tensor:
        config = self.decoder.config
        positions = actual_seq_len - 1
        turns = Turns.at(positions, config.key_dim)
        page, offset = paged(block_table, positions[:, None], config.page)
        seen = torch.arange(block_table.shape[1] * config.page) < actual_seq_len[:, None]
        x = self.decoder.embedding(tokens)
        for index, layer in enumerate(self.decoder.layers):
            attention, normed = layer.attention, layer.norm(x)
            query, new = attention.project(normed, turns)
            for pages, token in zip(caches[2 * index : 2 * index + 2], new["slc"], strict=True):
                pages[page, offset] = token.unsqueeze(1)
            key, value = (pages[block_table.long()].flatten(1, 2) for pages in caches[2 * index : 2 * index + 2])
            result = attend(query.unsqueeze(1), key, value, seen.unsqueeze(1), config.scale).squeeze(1)
            x = x + attention.out(result.flatten(1))
            x = x + layer.mlp(x)
        return self.decoder.logits(x)
