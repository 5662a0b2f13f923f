"""Exports a small NSA decoder, serves a text file with onnxruntime, and compares every result with PyTorch.

Two graphs are exported from one byte-level decoder (nsa_model.py, random weights): prefill for sequences of different
lengths, and a paged decode step. onnxruntime serves the text with them (nsa_serving.py). Four sequences are prefilled
in one batch; then decode steps feed the bytes that follow, fill pages, compress every window that becomes complete, and
choose the blocks to read. The exit code is 0 only if all of this holds:

- nsa_onnx.check finds nothing wrong with either graph;
- both graphs choose the blocks that PyTorch chooses in one prefill of the whole sequences; where they do not, the
  blocks' scores are almost equal;
- the logits of both graphs equal PyTorch's for the same choice, up to a stated tolerance;
- the compressed caches that prefill and the decode steps filled equal NsaCompress over the whole sequences, bit for
  bit, for K and V of every layer.

At the end, the decode step is timed against a third graph, the same decoder with attention to all tokens.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from nsa_model import Config, Decoder, Prefill, block_counts
from nsa_serving import (
    Batch,
    BoundSession,
    DecodeState,
    Result,
    StepTimes,
    export_decode,
    export_dense,
    export_prefill,
    prefix_sums,
    quiet,
    serve,
    time_steps,
)
from torch import Tensor

import nsa_onnx
from nsa_onnx.operators import attention
from nsa_onnx.operators.contract import raise_first
from nsa_onnx.operators.nsa_compress_attention_infer.contract import ROWS, block_count, forced_blocks
from nsa_onnx.operators.nsa_compress_infer import contract
from nsa_onnx.operators.windows import window_count, window_violations

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
MAX_BYTES = 4096  # of the text; more would only take longer

# Largest |onnxruntime - PyTorch| over the largest |logit|. Both compute in float32 but sum matrix products
# in different orders, so that now and then a query, K or V rounds to the other 16-bit neighbour: 2**-11 of one
# element, 2**-8 in bfloat16. Measured: 4e-5 and 2e-4, see docs/demo.md; ten times that is allowed. One wrong
# compression weight gives 1e-1, a block that is not read 2e-2.
TOLERANCE = {torch.float16: 5e-4, torch.bfloat16: 2e-3}
# Scores of blocks that may change places, as a share of the greater one.
NEAR_TIE = {torch.float16: 1e-3, torch.bfloat16: 1e-2}


class UsageError(Exception):
    """What the user gave cannot be served; the message is one line."""


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


class Choices:
    """Lets PyTorch's prefill read the blocks that the graphs chose, and compares them with its own choice.

    Rounding may change the order of two blocks with almost the same score. From there on, two computations differ by a
    whole block. So the choice is compared first, and then the numbers for the same choice.
    """

    def __init__(self, config: Config, lengths: Sequence[int], served: Sequence[Tensor]) -> None:
        self.config = config
        self.lengths = lengths
        self.served = served  # per layer
        self.blocks = torch.cat([block_counts(config, torch.arange(length) + 1) for length in lengths])[:, None, None]
        self.made = 0
        self.gaps: list[float] = []  # of each choice that differs: between the scores of its other blocks, relative

    def __call__(self, layer: int, query: Tensor, compressed_key: Tensor, chosen: Tensor) -> Tensor:
        served = self.served[layer]
        # Prefill also has blocks of the future, which it does not read.
        ours, theirs = (torch.where(blocks < self.blocks, blocks, -1).sort(-1).values for blocks in (served, chosen))
        different = (ours != theirs).any(-1)
        self.made += different.numel()
        for row, group in different.nonzero().tolist():
            scores = self._scores(query[row], compressed_key[:, group], row, group)
            others = set(ours[row, group].tolist()) ^ set(theirs[row, group].tolist())
            swapped = [scores.get(block, -math.inf) for block in others]
            self.gaps.append((max(swapped) - min(swapped)) / max(swapped) if swapped else math.inf)
        return served

    def check(self) -> Check:
        limit = NEAR_TIE[self.config.dtype]
        passed = all(gap <= limit for gap in self.gaps)  # a forced block's score is infinite, its gap NaN
        if not self.gaps:
            return Check("chosen blocks equal PyTorch's", True, f"{self.made:,} choices")
        detail = f"{len(self.gaps)} of {self.made:,} differ, by {max(self.gaps):.1e} of a score (limit {limit:.0e})"
        return Check("chosen blocks equal PyTorch's", passed, detail)

    def _scores(self, query: Tensor, keys: Tensor, row: int, group: int) -> dict[int, float]:
        """The score of each block that a row can choose, in float64 (docs/from-the-paper.md, step 3)."""
        config = self.config
        for length in self.lengths:
            windows = window_count(length, config.block, config.stride)
            if row < length:
                break
            row, keys = row - length, keys[windows:]
        seen = window_count(row + 1, config.block, config.stride)
        blocks = max(1, block_count(seen, config.block, config.stride, config.select))
        queries = query.unflatten(0, (config.kv_heads, -1))[group].double()
        share = torch.softmax(queries @ keys[:seen].double().T * config.scale, -1).sum(0).tolist()
        m, n = config.select // config.stride, config.block // config.stride

        def score(block: int) -> float:
            weights = ((m * (block + 1) - i, min(i + 1, n, m + n - 1 - i)) for i in range(m + n - 1))
            return sum(weight * share[window] for window, weight in weights if 0 <= window < seen)

        forced = forced_blocks(blocks)
        return {block: math.inf if block in forced else score(block) for block in range(blocks)}


def check_caches(decoder: Decoder, state: DecodeState, lengths: Sequence[int]) -> Check:
    """The compressed tokens cached step by step against NsaCompress over the cached tokens, to the bit."""
    config = decoder.config
    windows = [window_count(length, config.block, config.stride) for length in lengths]
    wrong = []
    for index, layer in enumerate(decoder.layers):
        for kind, weight in (("k", layer.attention.compress_key), ("v", layer.attention.compress_value)):
            tokens = [state.sequence(f"cmp_{kind}.{index}", b, length) for b, length in enumerate(lengths)]
            cached = [state.sequence(f"compressed_{kind}.{index}", b, count) for b, count in enumerate(windows)]
            wanted = nsa_onnx.nsa_compress(
                torch.cat(tokens), weight, config.block, config.stride, actual_seq_len=prefix_sums(lengths).tolist()
            )
            differ = (torch.cat(cached).view(torch.int16) != wanted.view(torch.int16)).flatten(1).any(1)
            if differ.any():
                wrong.append(f"{kind.upper()} of layer {index}: {int(differ.sum())} of {len(differ)} windows differ")
    detail = "; ".join(wrong) or f"{sum(windows)} windows, K and V of {config.layers} layers, bit for bit"
    return Check("cache filled by steps equals NsaCompress", not wrong, detail)


def check_result(decoder: Decoder, batch: Batch, result: Result) -> list[Check]:
    """Compare what onnxruntime served with one prefill of the whole sequences in PyTorch."""
    tolerance = TOLERANCE[decoder.config.dtype]
    choices = Choices(decoder.config, batch.lengths, result.chosen)
    with torch.inference_mode():
        wanted = Prefill(decoder, choices)(torch.cat(batch.sequences), prefix_sums(batch.lengths))[0]
    checks = [choices.check()]
    for name, part in (("prefill", slice(None, -batch.steps)), ("decode", slice(-batch.steps, None))):
        got = torch.cat([logits[part] for logits in result.logits])
        right = torch.cat([logits[part] for logits in wanted.split(batch.lengths)])
        checks.append(check_logits(name, got, right, tolerance))
    return [*checks, check_caches(decoder, result.state, batch.lengths)]


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
    """What was served, and what was compared."""
    tokens = sum(batch.lengths)
    windows = sum(window_count(length, config.block, config.stride) for length in batch.lengths)
    by_prefill = sum(window_count(length, config.block, config.stride) for length in batch.prompts)
    step = sorted(result.step_times)[len(result.step_times) // 2]
    rows = [
        (
            "tokens",
            f"{tokens} in {len(batch.lengths)} sequences ({sum(batch.prompts)} prefilled, "
            f"{tokens - sum(batch.prompts)} decoded)",
        ),
        ("windows", f"{windows} per layer ({by_prefill} by prefill, {windows - by_prefill} by decode steps)"),
        (
            "time",
            f"prefill {1e3 * result.prefill_time:.1f} ms, decode step {1e3 * step:.2f} ms (median of {batch.steps})",
        ),
        *((check.name, f"{'ok' if check.passed else 'FAILED'}, {check.detail}") for check in checks),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def step_table(times: Sequence[StepTimes]) -> str:
    """What a decode step reads, and how long it takes, by the length of its sequence."""
    heads = "sequence", "compressed", "chosen", "latest", "read", "of dense", "NSA step", "dense step", "faster"
    rows = [
        (
            *(f"{n:,}" for n in (t.tokens, t.compressed, t.chosen, t.latest, t.read)),
            f"{t.read / t.tokens:.0%}",
            f"{1e3 * t.sparse:.2f} ms",
            f"{1e3 * t.dense:.2f} ms",
            f"{t.dense / t.sparse:.1f}x",
        )
        for t in times
    ]
    lines = [" ".join(f"{cell:>10}" for cell in row) for row in (heads, *rows)]
    return "\n".join(["Tokens that a query of a decode step reads, and time of the step in onnxruntime:", *lines])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="nsa_decoder.py",
        description="Export a small decoder of Native Sparse Attention layers, serve a text file with it through "
        "onnxruntime, check every result against PyTorch, and compare its speed with dense attention.",
        epilog="exit codes: 0 everything holds, 1 a check failed, 2 the input cannot be used",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    default = Config()
    parser.add_argument(
        "--text", metavar="FILE", type=Path, default=ROOT / "README.md", help="file to serve, taken as bytes"
    )
    parser.add_argument("--layers", metavar="N", type=int, default=default.layers, help="layers of the model")
    parser.add_argument(
        "--kv-heads",
        metavar="N",
        type=int,
        default=default.kv_heads,
        help=f"key/value heads, which share the {default.heads} query heads",
    )
    parser.add_argument("--steps", metavar="N", type=int, default=128, help="decode steps, at least one window")
    parser.add_argument(
        "--block", metavar="N", type=int, default=default.block, help="tokens per window (compress_block_size)"
    )
    parser.add_argument(
        "--stride",
        metavar="N",
        type=int,
        default=default.stride,
        help="tokens between two windows' starts (compress_stride)",
    )
    parser.add_argument(
        "--select", metavar="N", type=int, default=default.select, help="tokens per block (select_block_size)"
    )
    parser.add_argument(
        "--count", metavar="N", type=int, default=default.count, help="blocks that are chosen (select_block_count)"
    )
    parser.add_argument("--latest", metavar="N", type=int, default=default.latest, help="tokens of the sliding window")
    parser.add_argument(
        "--page", type=int, default=default.page, choices=contract.PAGE_BLOCK_SIZES, help="tokens per page"
    )
    parser.add_argument("--dtype", default="float16", choices=DTYPES, help="of queries, K and V")
    parser.add_argument(
        "--contexts",
        metavar="N",
        type=int,
        nargs="*",
        default=[1024, 4096, 16384, 32768],
        help="lengths of sequences whose decode steps are timed against dense attention; none: no such graph",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", type=Path, default=ROOT / "build" / "demo", help="where the ONNX files go"
    )
    return parser.parse_args(argv)


def configure(args: argparse.Namespace) -> tuple[Config, Batch]:
    """The model's sizes and the text, or a UsageError."""
    sizes = {attention.BLOCK: args.block, attention.STRIDE: args.stride}
    heads = {attention.HEADS: Config.heads, attention.KV_HEADS: args.kv_heads}
    chosen = {attention.SELECT: args.select, attention.COUNT: args.count}
    try:
        raise_first(window_violations(contract.ROWS, contract.LIMITS, args.block, args.stride))
        raise_first(attention.attribute_violations(ROWS, {**sizes, **heads, **chosen}))
    except RuntimeError as error:
        raise UsageError(str(error)) from None
    for name, value, least in (
        ("--layers", args.layers, 1),
        ("--latest", args.latest, 1),
        ("--contexts", min(args.contexts, default=1), 1),
        ("--count", args.count, 3),
    ):
        if value < least:
            why = ", the blocks that a decode step always chooses" if name == "--count" else ""
            raise UsageError(f"{name} must be >= {least}{why}, got {value}")
    if args.steps < args.block:
        raise UsageError(
            f"--steps must be >= --block = {args.block}, so that decoding completes windows, got {args.steps}"
        )
    config = Config(
        layers=args.layers,
        kv_heads=args.kv_heads,
        block=args.block,
        stride=args.stride,
        select=args.select,
        count=args.count,
        latest=args.latest,
        page=args.page,
        dtype=DTYPES[args.dtype],
    )
    return config, read_batch(args.text, args.steps, args.block)


def run(config: Config, batch: Batch, contexts: Sequence[int], folder: Path, progress: Progress) -> int:
    decoder = Decoder(config)
    exports = {"prefill": export_prefill, "decode": export_decode}
    if contexts:
        exports["dense"] = export_dense
    paths = {name: folder / f"{name}.onnx" for name in exports}
    with quiet():
        for name, export in exports.items():
            progress.stage(f"export {paths[name]}")
            export(decoder, paths[name])
    checks = [check_graph(paths[name]) for name in ("prefill", "decode")]

    progress.stage(f"prefill {sum(batch.prompts)} bytes in {len(batch.prompts)} sequences")
    decode = BoundSession(paths["decode"])
    result = serve(BoundSession(paths["prefill"]), decode, config, batch, progress.steps("decode", batch.steps))
    progress.stage("compare with PyTorch")
    checks += check_result(decoder, batch, result)
    print(summary(config, batch, result, checks))
    if contexts:
        progress.stage("compare with dense attention")
        dense = BoundSession(paths["dense"])
        print(f"\n{step_table([time_steps(decode, dense, config, tokens) for tokens in contexts])}")

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
    return run(config, batch, args.contexts, args.output_dir, Progress(sys.stderr))


if __name__ == "__main__":
    sys.exit(main())
