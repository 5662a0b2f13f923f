"""What serves the graphs of nsa_model.py: their export, sessions that work in place, and the state of decoding."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from nsa_model import CACHES, Config, Decode, Decoder, Dense, Prefill
from torch import Tensor

import nsa_onnx
from nsa_onnx import exporters
from nsa_onnx.operators.nsa_compress.contract import compressed_length
from nsa_onnx.operators.windows import triggers, window_count

DENSE_CACHES = ("slc_k", "slc_v")


@dataclass(frozen=True)
class Batch:
    """Pieces of a text. Sequence b is prefilled with ``prompts[b]`` bytes and decodes the rest."""

    sequences: list[Tensor]  # uint8 values as int64, prompts[b] + steps of them
    prompts: list[int]
    steps: int

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self.sequences]


def prefix_sums(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(lengths).cumsum(0)


# --------------------------------------------------------------------------------------------------
# Export


def names(layers: int, kinds: Sequence[str]) -> list[str]:
    return [f"{kind}.{layer}" for layer in range(layers) for kind in kinds]


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's remarks on every export: that torchvision is absent, that axes share their names."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (UserWarning, FutureWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        log.setLevel(level)


def export_prefill(decoder: Decoder, path: Path) -> None:
    """Tokens [T] and prefix sums [B], both of any size, to logits, caches and chosen blocks."""
    exporters.export(
        Prefill(decoder),
        (torch.zeros(100, dtype=torch.int64), torch.tensor([40, 100])),
        path,
        dynamic_shapes=({0: torch.export.Dim("T")}, {0: torch.export.Dim("B")}),
        input_names=["tokens", "actual_seq_len"],
        output_names=["logits", *names(decoder.config.layers, (*CACHES, "chosen"))],
        verify=True,
    )


def export_decode(decoder: Decoder, path: Path) -> None:
    """One token for each of B sequences; batch, tables and cache sizes are all free."""
    config = decoder.config
    example = DecodeState.empty(config, [3 * config.page] * 2)
    batch, pages, compressed_pages, blocks = (torch.export.Dim(d) for d in ("B", "P", "Q", "block_num"))
    slots = config.page * torch.export.Dim("compressed_num")
    exporters.export(
        Decode(decoder),
        (*example.step.values(), *example.caches.values()),
        path,
        dynamic_shapes=(
            {0: batch},
            {0: batch},
            {0: batch, 1: pages},
            {0: batch, 1: compressed_pages},
            {0: batch},
            tuple({0: slots if is_compressed(name) else blocks} for name in example.caches),
        ),
        input_names=[*example.step, *example.caches],
        output_names=[
            "logits",
            *names(config.layers, ["chosen"]),
            *(f"{name}.out" for name in example.caches),
        ],
        verify=True,
    )


def export_dense(decoder: Decoder, path: Path) -> None:
    """The same step with attention to all tokens."""
    config = decoder.config
    example = DecodeState.empty(config, [3 * config.page] * 2)
    batch, pages, blocks = (torch.export.Dim(d) for d in ("B", "P", "block_num"))
    steps, caches = example.dense()
    exporters.export(
        Dense(decoder),
        (*steps.values(), *caches.values()),
        path,
        dynamic_shapes=({0: batch}, {0: batch}, {0: batch, 1: pages}, tuple({0: blocks} for _ in caches)),
        input_names=[*steps, *caches],
        output_names=["logits", *(f"{name}.out" for name in caches)],
        verify=True,
    )


# --------------------------------------------------------------------------------------------------
# Sessions and caches


class BoundSession:
    """A session whose inputs and outputs are torch tensors: onnxruntime reads and writes their memory.

    An output bound to the tensor of an input is updated in place; nothing is copied.
    """

    def __init__(self, path: Path) -> None:
        self.session = nsa_onnx.create_session(path, device="cpu")
        self.binding = self.session.io_binding()

    def bind(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """Tensors that `run` reads and writes, until the next bind."""
        self.tensors = [*inputs.values(), *outputs.values()]  # onnxruntime does not keep them alive
        for name, tensor in inputs.items():
            self.binding.bind_ortvalue_input(name, nsa_onnx.to_ortvalue(tensor))
        for name, tensor in outputs.items():
            self.binding.bind_ortvalue_output(name, nsa_onnx.to_ortvalue(tensor))

    def bind_in_place(self, step: dict[str, Tensor], caches: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """Bind a decode graph, which updates the caches."""
        self.bind({**step, **caches}, {**outputs, **{f"{name}.out": cache for name, cache in caches.items()}})

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


def is_compressed(cache: str) -> bool:
    """Whether a cache, by its name, has compressed tokens: one row each. The others have pages of tokens."""
    return cache.startswith("compressed")


@dataclass
class DecodeState:
    """Inputs of the decode graph: what changes in every step, and the caches that live on."""

    config: Config
    step: dict[str, Tensor]  # tokens, actual_seq_len, block_table, compressed_table, slot_mapping
    caches: dict[str, Tensor]  # CACHES of every layer

    @classmethod
    def empty(cls, config: Config, lengths: Sequence[int]) -> DecodeState:
        """Room for sequences of at most these lengths. Pages are dealt out in random order."""
        batch, longest = len(lengths), max(lengths)
        pages = -(-longest // config.page)
        compressed_pages = max(1, -(-window_count(longest, config.block, config.stride) // config.page))
        shuffle = torch.Generator().manual_seed(config.seed)

        def table(columns: int) -> Tensor:
            return torch.randperm(batch * columns, generator=shuffle).int().view(batch, columns)

        def cache(name: str) -> Tensor:
            rows = (batch * compressed_pages * config.page,) if is_compressed(name) else (batch * pages, config.page)
            dim = config.key_dim if "_k" in name else config.value_dim
            return torch.zeros(*rows, config.kv_heads, dim, dtype=config.dtype)

        return cls(
            config,
            {
                "tokens": torch.zeros(batch, dtype=torch.int64),
                "actual_seq_len": torch.ones(batch, dtype=torch.int64),
                "block_table": table(pages),
                "compressed_table": table(compressed_pages),
                "slot_mapping": torch.full((batch,), -1, dtype=torch.int32),
            },
            {name: cache(name) for name in names(config.layers, CACHES)},
        )

    def dense(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs of the dense graph: of the step, and caches."""
        step = {name: self.step[name] for name in ("tokens", "actual_seq_len", "block_table")}
        return step, {name: self.caches[name] for name in names(self.config.layers, DENSE_CACHES)}

    def take_prefill(self, outputs: dict[str, Tensor], lengths: Sequence[int]) -> None:
        """Put the prefilled K and V into pages, the compressed ones into theirs."""
        windows = [window_count(length, self.config.block, self.config.stride) for length in lengths]
        for name, cache in self.caches.items():
            pieces = outputs[name].split(windows if is_compressed(name) else list(lengths))
            for b, piece in enumerate(pieces):
                cache.flatten(0, -3)[self._rows(name, b, len(piece))] = piece

    def sequence(self, name: str, b: int, rows: int) -> Tensor:
        """The first tokens (or compressed tokens) of sequence b in one of the caches: [rows, N2, D]."""
        return self.caches[name].flatten(0, -3)[self._rows(name, b, rows)]

    def _rows(self, name: str, b: int, count: int) -> Tensor:
        """Where the first tokens of sequence b lie, in rows of the flattened cache."""
        page, token = self.config.page, torch.arange(count)
        table = self.step["compressed_table" if is_compressed(name) else "block_table"]
        return table[b].long()[token // page] * page + token % page

    def feed(self, tokens: Tensor, lengths: Tensor) -> None:
        """Set the inputs of one step, in place: the next bytes and the lengths that include them."""
        config = self.config
        self.step["tokens"].copy_(tokens)
        self.step["actual_seq_len"].copy_(lengths)
        self.step["slot_mapping"].fill_(-1)  # read only for the sequences that complete a window
        for b, length in enumerate(lengths.tolist()):
            if triggers(length, config.block, config.stride):
                window = (length - config.block) // config.stride
                self.step["slot_mapping"][b] = self._rows("compressed", b, window + 1)[-1]


# --------------------------------------------------------------------------------------------------
# Serving


@dataclass
class Result:
    """What serving gave: logits and chosen blocks per byte, the final caches, and times in seconds."""

    logits: list[Tensor]  # of each sequence, [prompt + steps, vocabulary]
    chosen: list[Tensor]  # of each layer, [tokens of all sequences, N2, count]
    state: DecodeState
    prefill_time: float
    step_times: list[float] = field(default_factory=list)


def serve(prefill: BoundSession, decode: BoundSession, config: Config, batch: Batch, steps: Iterable[int]) -> Result:
    """Prefill the prompts in one ragged batch, then feed every sequence its following bytes."""
    outputs, prefill_time = run_prefill(prefill, config, batch)
    state = DecodeState.empty(config, batch.lengths)
    state.take_prefill(outputs, batch.prompts)
    served = step_outputs(config, len(batch.prompts))
    decode.bind_in_place(state.step, state.caches, served)

    step_times, history = [], {name: [] for name in served}
    prompts = torch.tensor(batch.prompts)
    for step in steps:
        fed = [tokens[prompt + step] for tokens, prompt in zip(batch.sequences, batch.prompts, strict=True)]
        begin = time.perf_counter()
        state.feed(torch.stack(fed), prompts + step + 1)
        decode.run()
        step_times.append(time.perf_counter() - begin)
        for name, output in served.items():
            history[name].append(output.clone())

    def whole(name: str) -> list[Tensor]:
        """An output for each sequence, of its prompt and then of its steps."""
        decoded = torch.stack(history[name], 1)
        return [torch.cat(pair) for pair in zip(outputs[name].split(batch.prompts), decoded, strict=True)]

    chosen = [torch.cat(whole(name)) for name in served if name != "logits"]
    return Result(whole("logits"), chosen, state, prefill_time, step_times)


def step_outputs(config: Config, rows: int) -> dict[str, Tensor]:
    """Room for the outputs of the decode graph that are not caches, and for prefill's of as many tokens."""
    shape = rows, config.kv_heads, config.count
    chosen = {name: torch.empty(shape, dtype=torch.int32) for name in names(config.layers, ["chosen"])}
    return {"logits": torch.empty(rows, config.vocabulary), **chosen}


def run_prefill(prefill: BoundSession, config: Config, batch: Batch) -> tuple[dict[str, Tensor], float]:
    """Outputs of the prefill graph by name, and the seconds it took. T' is known beforehand."""
    ends = prefix_sums(batch.prompts)
    tokens, windows = int(ends[-1]), compressed_length(ends.tolist(), config.block, config.stride)
    outputs = step_outputs(config, tokens)
    for name in names(config.layers, CACHES):
        dim = config.key_dim if "_k" in name else config.value_dim
        rows = windows if is_compressed(name) else tokens
        outputs[name] = torch.empty(rows, config.kv_heads, dim, dtype=config.dtype)
    text = torch.cat([s[:prompt] for s, prompt in zip(batch.sequences, batch.prompts, strict=True)])
    prefill.bind({"tokens": text, "actual_seq_len": ends}, outputs)
    begin = time.perf_counter()
    prefill.run()
    return outputs, time.perf_counter() - begin


# --------------------------------------------------------------------------------------------------
# Sparse against dense


@dataclass(frozen=True)
class StepTimes:
    """A decode step of one sequence of ``tokens`` tokens: what a query reads, and seconds."""

    tokens: int
    compressed: int
    chosen: int
    latest: int
    sparse: float
    dense: float

    @property
    def read(self) -> int:
        return self.compressed + self.chosen + self.latest


def time_steps(decode: BoundSession, dense: BoundSession, config: Config, tokens: int, rounds: int = 5) -> StepTimes:
    """Median times of a step of both graphs, on caches of random numbers."""
    state = DecodeState.empty(config, [tokens])
    random = torch.Generator().manual_seed(config.seed)
    for cache in state.caches.values():
        cache.uniform_(-1, 1, generator=random)
    state.feed(torch.tensor([0]), torch.tensor([tokens]))
    outputs = step_outputs(config, 1)
    decode.bind_in_place(state.step, state.caches, outputs)
    dense.bind_in_place(*state.dense(), {"logits": torch.empty(1, config.vocabulary)})

    def median(session: BoundSession) -> float:
        times = []
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            session.run()
            times.append(time.perf_counter() - begin)
        return sorted(times[1:])[rounds // 2]

    chosen = outputs["chosen.0"][0, 0]
    sparse = median(decode)
    starts = chosen[chosen >= 0].long() * config.select
    return StepTimes(
        tokens,
        window_count(tokens, config.block, config.stride),
        int((tokens - starts).clamp(max=config.select).sum()),
        min(tokens, config.latest),
        sparse,
        median(dense),
    )
