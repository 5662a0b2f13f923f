"""Exports a small transformer, serves a text file with onnxruntime, and compares every result with PyTorch.

Two graphs are exported from one byte-level transformer (nsa_model.py, random weights): prefill for sequences of
different lengths, and a paged decode step. onnxruntime serves the text with them. Four sequences are prefilled in one
batch; then decode steps feed the bytes that follow, fill pages and compress every window that becomes complete. The
exit code is 0 only if all of this holds:

- nsa_onnx.check finds nothing wrong with either graph;
- the logits of both graphs equal PyTorch's for the whole sequences, up to a stated tolerance;
- the caches that prefill and the decode steps filled equal NsaCompress over the whole sequences, bit for
  bit, for K and V of every layer.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch
from nsa_model import Config, Decode, Decoder, Prefill
from torch import Tensor

import nsa_onnx
from nsa_onnx import exporters
from nsa_onnx.operators.contract import raise_first
from nsa_onnx.operators.nsa_compress.contract import compressed_length
from nsa_onnx.operators.nsa_compress_infer import contract as decode
from nsa_onnx.operators.windows import triggers, window_count, window_violations

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_BYTES = 4096  # of the text; more would only take longer

# Largest |onnxruntime - PyTorch| over the largest |logit|. Both compute in float32 but sum matrix products
# in different orders, so that now and then a K or V rounds to the other 16-bit neighbour: 2**-11 of one
# element, 2**-8 in bfloat16. Measured: at most 5e-5 and 2e-4, see docs/demo.md; ten times that is allowed.
# One wrong compression weight or a window seen one step late gives about 1e-1.
TOLERANCE = {torch.float16: 5e-4, torch.bfloat16: 2e-3}


class UsageError(Exception):
    """What the user gave cannot be served; the message is one line."""


# --------------------------------------------------------------------------------------------------
# The input


@dataclass(frozen=True)
class Batch:
    """Pieces of the text. Sequence b is prefilled with ``prompts[b]`` bytes and decodes the rest."""

    sequences: list[Tensor]  # uint8 values as int64, prompts[b] + steps of them
    prompts: list[int]
    steps: int

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self.sequences]


def read_batch(path: Path, steps: int, block: int) -> Batch:
    """Cut the file into four sequences: less than a window, exactly one, and two long ones."""
    short = [block // 2, block]
    used = sum(short) + 4 * steps
    needed = used + 3 * block
    text = bytearray()
    try:
        with path.open("rb", buffering=0) as file:  # of a device or a large file, no more than is served
            while len(text) < max(MAX_BYTES, needed) and (chunk := file.read(MAX_BYTES)):
                text += chunk
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if not text:
        raise UsageError(f"{path} is empty")
    if len(text) < needed:
        raise UsageError(f"{path} is too short: {needed} bytes are needed for --steps {steps}, it has {len(text)}")
    rest = max(min(len(text), MAX_BYTES), needed) - used
    prompts = [*short, rest // 3, rest - rest // 3]
    tokens = torch.tensor(list(text[: used + rest]))
    return Batch(list(tokens.split([prompt + steps for prompt in prompts])), prompts, steps)


# --------------------------------------------------------------------------------------------------
# Export


def prefix_sums(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(lengths).cumsum(0)


def cache_names(layers: int, kinds: Sequence[str]) -> list[str]:
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


PREFILL_CACHES = ("k", "v", "windows_k", "windows_v")
DECODE_CACHES = ("pages_k", "pages_v", "windows_k", "windows_v")


def export_prefill(decoder: Decoder, path: Path) -> None:
    """Tokens [T] and prefix sums [B], both of any size, to logits and per-layer K, V and windows."""
    exporters.export(
        Prefill(decoder),
        (torch.zeros(100, dtype=torch.int64), torch.tensor([40, 100])),
        path,
        dynamic_shapes=({0: torch.export.Dim("T")}, {0: torch.export.Dim("B")}),
        input_names=["tokens", "actual_seq_len"],
        output_names=["logits", *cache_names(decoder.config.layers, PREFILL_CACHES)],
        verify=True,
    )


def export_decode(decoder: Decoder, path: Path) -> None:
    """One token for each of B sequences; batch, table and cache sizes are all free."""
    config = decoder.config
    batch, pages, windows, blocks, slots = (torch.export.Dim(d) for d in ("B", "P", "W", "block_num", "slots"))
    example = DecodeState.empty(config, [3 * config.page] * 2)
    caches = cache_names(config.layers, DECODE_CACHES)
    exporters.export(
        Decode(decoder),
        (*example.step.values(), *example.caches.values()),
        path,
        dynamic_shapes=(
            {0: batch},
            {0: batch},
            {0: batch, 1: pages},
            {0: batch, 1: windows},
            {0: batch},
            tuple({0: slots if name.startswith("windows") else blocks} for name in caches),
        ),
        input_names=[*example.step, *caches],
        output_names=["logits", *(f"{name}.out" for name in caches)],
        verify=True,
    )


# --------------------------------------------------------------------------------------------------
# Serving


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

    def run(self) -> None:
        self.session.run_with_iobinding(self.binding)


@dataclass
class DecodeState:
    """Inputs of the decode graph: what changes in every step, and the caches that live on."""

    config: Config
    step: dict[str, Tensor]  # tokens, actual_seq_len, block_table, slot_table, slot_mapping
    caches: dict[str, Tensor]  # DECODE_CACHES of every layer

    @classmethod
    def empty(cls, config: Config, lengths: Sequence[int]) -> DecodeState:
        """Room for sequences of at most these lengths. Pages and slots are dealt out in random order."""
        batch = len(lengths)
        pages = -(-max(lengths) // config.page)
        windows = max(1, window_count(max(lengths), config.block, config.stride))
        shuffle = torch.Generator().manual_seed(config.seed)
        token_shape = config.kv_heads, config.head_dim
        shapes = {
            "pages": (batch * pages, config.page, *token_shape),
            "windows": (batch * windows, *token_shape),
        }
        names = cache_names(config.layers, DECODE_CACHES)
        return cls(
            config,
            {
                "tokens": torch.zeros(batch, dtype=torch.int64),
                "actual_seq_len": torch.ones(batch, dtype=torch.int64),
                "block_table": torch.randperm(batch * pages, generator=shuffle).int().view(batch, pages),
                "slot_table": torch.randperm(batch * windows, generator=shuffle).view(batch, windows),
                "slot_mapping": torch.full((batch,), -1, dtype=torch.int32),
            },
            {name: torch.zeros(shapes[name.split("_")[0]], dtype=config.dtype) for name in names},
        )

    def take_prefill(self, outputs: dict[str, Tensor], lengths: Sequence[int]) -> None:
        """Put the prefilled K and V into pages, and the windows into slots."""
        windows = [window_count(length, self.config.block, self.config.stride) for length in lengths]
        for name, cache in self.caches.items():
            paged = name.startswith("pages")
            pieces = outputs[name.removeprefix("pages_")].split(list(lengths) if paged else windows)
            for b, piece in enumerate(pieces):
                cache.flatten(0, -3)[self._rows(b, len(piece), paged)] = piece

    def sequence(self, name: str, b: int, rows: int) -> Tensor:
        """The first tokens (or windows) of sequence b in one of the caches: [rows, N, D]."""
        return self.caches[name].flatten(0, -3)[self._rows(b, rows, name.startswith("pages"))]

    def _rows(self, b: int, count: int, paged: bool) -> Tensor:
        """Where the first tokens (or windows) of sequence b lie, in rows of the flattened cache."""
        if not paged:
            return self.step["slot_table"][b, :count]
        page = self.config.page
        token = torch.arange(count)
        return self.step["block_table"][b].long()[token // page] * page + token % page

    def feed(self, tokens: Tensor, lengths: Tensor) -> None:
        """Set the inputs of one step, in place: the next bytes and the lengths that include them."""
        config = self.config
        self.step["tokens"].copy_(tokens)
        self.step["actual_seq_len"].copy_(lengths)
        self.step["slot_mapping"].fill_(-1)  # read only for the sequences that complete a window
        for b, length in enumerate(lengths.tolist()):
            if triggers(length, config.block, config.stride):
                window = (length - config.block) // config.stride
                self.step["slot_mapping"][b] = self.step["slot_table"][b, window]


@dataclass
class Result:
    """What serving gave: logits per byte, the final caches, and times in seconds."""

    prefill_logits: list[Tensor]
    decode_logits: list[Tensor]
    state: DecodeState
    prefill_time: float
    step_times: list[float] = field(default_factory=list)


def serve(prefill: BoundSession, decode: BoundSession, config: Config, batch: Batch, progress: Progress) -> Result:
    """Prefill the prompts in one ragged batch, then feed every sequence its following bytes."""
    outputs, elapsed = run_prefill(prefill, config, batch)
    state = DecodeState.empty(config, batch.lengths)
    state.take_prefill(outputs, batch.prompts)
    logits = torch.empty(len(batch.sequences), config.vocabulary)
    decode.bind({**state.step, **state.caches}, {"logits": logits, **{f"{n}.out": c for n, c in state.caches.items()}})

    result = Result(list(outputs["logits"].split(batch.prompts)), [], state, elapsed)
    prompts = torch.tensor(batch.prompts)
    for step in progress.steps("decode", batch.steps):
        fed = [tokens[prompt + step] for tokens, prompt in zip(batch.sequences, batch.prompts, strict=True)]
        begin = time.perf_counter()
        state.feed(torch.stack(fed), prompts + step + 1)
        decode.run()
        result.step_times.append(time.perf_counter() - begin)
        result.decode_logits.append(logits.clone())
    return result


def run_prefill(prefill: BoundSession, config: Config, batch: Batch) -> tuple[dict[str, Tensor], float]:
    """Outputs of the prefill graph by name, and the seconds it took. T' is known beforehand."""
    ends = prefix_sums(batch.prompts)
    rows = {"k": int(ends[-1]), "windows": compressed_length(ends.tolist(), config.block, config.stride)}
    rows["v"] = rows["k"]
    outputs = {"logits": torch.empty(rows["k"], config.vocabulary)}
    for name in cache_names(config.layers, PREFILL_CACHES):
        count = rows["windows" if name.startswith("windows") else name[0]]
        outputs[name] = torch.empty(count, config.kv_heads, config.head_dim, dtype=config.dtype)
    tokens = torch.cat([s[:prompt] for s, prompt in zip(batch.sequences, batch.prompts, strict=True)])
    prefill.bind({"tokens": tokens, "actual_seq_len": ends}, outputs)
    begin = time.perf_counter()
    prefill.run()
    return outputs, time.perf_counter() - begin


# --------------------------------------------------------------------------------------------------
# Checks


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    detail: str


def check_graph(path: Path) -> Check:
    report = nsa_onnx.check(path)
    return Check(f"nsa_onnx.check {path.name}", report.ok, report.to_text().splitlines()[0])


def check_logits(name: str, got: Tensor, wanted: Tensor, tolerance: float) -> Check:
    """Largest difference over the largest logit; a NaN anywhere fails."""
    difference = float((got - wanted).abs().max() / wanted.abs().max())
    return Check(f"{name} logits equal PyTorch's", difference <= tolerance, f"{difference:.1e} (limit {tolerance:.0e})")


def check_caches(decoder: Decoder, state: DecodeState, lengths: Sequence[int]) -> Check:
    """The windows cached step by step against NsaCompress over the cached tokens, to the bit."""
    config = decoder.config
    windows = [window_count(length, config.block, config.stride) for length in lengths]
    wrong = []
    for index, layer in enumerate(decoder.layers):
        for kind, weight in (("k", layer.attention.compress_key), ("v", layer.attention.compress_value)):
            tokens = [state.sequence(f"pages_{kind}.{index}", b, length) for b, length in enumerate(lengths)]
            cached = [state.sequence(f"windows_{kind}.{index}", b, count) for b, count in enumerate(windows)]
            wanted = nsa_onnx.nsa_compress(
                torch.cat(tokens), weight, config.block, config.stride, actual_seq_len=prefix_sums(lengths).tolist()
            )
            differ = (torch.cat(cached).view(torch.int16) != wanted.view(torch.int16)).flatten(1).any(1)
            if differ.any():
                wrong.append(f"{kind.upper()} of layer {index}: {int(differ.sum())} of {len(differ)} windows differ")
    detail = "; ".join(wrong) or f"{sum(windows)} windows, K and V of {config.layers} layers, bit for bit"
    return Check("cache filled by steps equals NsaCompress", not wrong, detail)


def check_result(decoder: Decoder, batch: Batch, result: Result) -> list[Check]:
    """Compare what onnxruntime served with PyTorch over the whole sequences."""
    tolerance = TOLERANCE[decoder.config.dtype]
    with torch.inference_mode():
        logits = Prefill(decoder)(torch.cat(batch.sequences), prefix_sums(batch.lengths))[0]
    wanted = [
        w.split([prompt, batch.steps]) for w, prompt in zip(logits.split(batch.lengths), batch.prompts, strict=True)
    ]
    return [
        check_logits("prefill", torch.cat(result.prefill_logits), torch.cat([w for w, _ in wanted]), tolerance),
        check_logits("decode", torch.stack(result.decode_logits, 1), torch.stack([w for _, w in wanted]), tolerance),
        check_caches(decoder, result.state, batch.lengths),
    ]


# --------------------------------------------------------------------------------------------------
# What the user sees


class Progress:
    """A line that is redrawn on a terminal, a few plain lines elsewhere."""

    WIDTH = 30

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.redraw = stream.isatty()

    def stage(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def steps(self, label: str, count: int) -> Iterator[int]:
        """Yield 0 .. count-1 and show how far it got."""
        for step in range(count):
            yield step
            done = step + 1
            if self.redraw:
                bar = "#" * (self.WIDTH * done // count)
                end = "\n" if done == count else ""
                print(f"\r{label} [{bar:<{self.WIDTH}}] {done}/{count}", end=end, file=self.stream, flush=True)
            elif done * 4 // count != step * 4 // count:
                self.stage(f"{label} {done}/{count}")


def summary(config: Config, batch: Batch, result: Result, checks: Sequence[Check]) -> str:
    """The table at the end."""
    tokens = sum(batch.lengths)
    windows = sum(window_count(length, config.block, config.stride) for length in batch.lengths)
    by_prefill = sum(window_count(length, config.block, config.stride) for length in batch.prompts)
    row_bytes = 2 * config.layers * config.kv_heads * config.head_dim * 2  # K and V, two bytes each
    full, compressed = tokens * row_bytes, windows * row_bytes
    step = sorted(result.step_times)[len(result.step_times) // 2]
    rows = [
        (
            "tokens",
            f"{tokens} in {len(batch.lengths)} sequences ({sum(batch.prompts)} prefilled, "
            f"{tokens - sum(batch.prompts)} decoded)",
        ),
        ("windows", f"{windows} per layer ({by_prefill} by prefill, {windows - by_prefill} by decode steps)"),
        (
            "bytes saved",
            f"{full - compressed:,} of the {full:,} of K/V that attention would read ({full / compressed:.1f}x)",
        ),
        (
            "time",
            f"prefill {1e3 * result.prefill_time:.1f} ms, decode step {1e3 * step:.2f} ms (median of {batch.steps})",
        ),
        *((check.name, f"{'ok' if check.passed else 'FAILED'}, {check.detail}") for check in checks),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="nsa_decoder.py",
        description="Export a small decoder that attends to compressed K/V, serve a text file with it through "
        "onnxruntime, and check every result against PyTorch.",
        epilog="exit codes: 0 everything holds, 1 a check failed, 2 the input cannot be used",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--text", metavar="FILE", type=Path, default=ROOT / "README.md", help="file to serve, taken as bytes"
    )
    parser.add_argument("--layers", metavar="N", type=int, default=2, help="layers of the model")
    parser.add_argument("--steps", metavar="N", type=int, default=128, help="decode steps, at least one window")
    parser.add_argument("--block", metavar="N", type=int, default=32, help="tokens per window (compress_block_size)")
    parser.add_argument(
        "--stride", metavar="N", type=int, default=16, help="tokens between two windows' starts (compress_stride)"
    )
    parser.add_argument("--page", type=int, default=64, choices=decode.PAGE_BLOCK_SIZES, help="tokens per page")
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help="of K and V")
    parser.add_argument(
        "--output-dir", metavar="DIR", type=Path, default=ROOT / "build" / "demo", help="where the ONNX files go"
    )
    return parser.parse_args(argv)


def configure(args: argparse.Namespace) -> tuple[Config, Batch]:
    """The model's sizes and the text, or a UsageError."""
    try:
        raise_first(window_violations(decode.ROWS, decode.LIMITS, args.block, args.stride))
    except RuntimeError as error:
        raise UsageError(str(error)) from None
    if args.layers < 1:
        raise UsageError(f"--layers must be >= 1, got {args.layers}")
    if args.steps < args.block:
        raise UsageError(
            f"--steps must be >= --block = {args.block}, so that decoding completes windows, got {args.steps}"
        )
    config = Config(layers=args.layers, block=args.block, stride=args.stride, page=args.page, dtype=DTYPES[args.dtype])
    return config, read_batch(args.text, args.steps, args.block)


def run(config: Config, batch: Batch, folder: Path, progress: Progress) -> int:
    decoder = Decoder(config)
    prefill_path, decode_path = folder / "prefill.onnx", folder / "decode.onnx"
    with quiet():
        progress.stage(f"export {prefill_path}")
        export_prefill(decoder, prefill_path)
        progress.stage(f"export {decode_path}")
        export_decode(decoder, decode_path)
    checks = [check_graph(prefill_path), check_graph(decode_path)]

    progress.stage(f"prefill {sum(batch.prompts)} bytes in {len(batch.prompts)} sequences")
    result = serve(BoundSession(prefill_path), BoundSession(decode_path), config, batch, progress)
    progress.stage("compare with PyTorch")
    checks += check_result(decoder, batch, result)

    print(summary(config, batch, result, checks))
    for check in checks:
        if not check.passed:
            print(f"nsa_decoder: check failed: {check.name}: {check.detail}", file=sys.stderr)
    return 0 if all(check.passed for check in checks) else 1


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        config, batch = configure(args)
        try:
            args.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write to {args.output_dir}: {error.strerror}") from None
    except UsageError as error:
        print(f"nsa_decoder: error: {error}", file=sys.stderr)
        return 2
    return run(config, batch, args.output_dir, Progress(sys.stderr))


if __name__ == "__main__":
    sys.exit(main())
