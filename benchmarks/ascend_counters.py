"""Counts instructions and bytes of the Ascend C kernels on the look-alike, next to the least that is possible.

    python benchmarks/ascend_counters.py [--plot FILE.png]

Simulated: no times, and nothing was run on Ascend. The least (`floor`): each input byte and each output byte once;
vector instructions L N q + 2 per core, the least for a design that has one Axpy per window offset and head and splits
rows only (a design that also splits heads can be below 1); in decode a Cast, N q multiplications, a tree of additions
and a Cast per write. `busiest` is the core with most repeats, relative to an even split over 48.

The tables of what is left name every byte and instruction above the least; `other` is what they leave unexplained.
ascend_kernels/README.md says why each is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "sim" / "ascendc"))

import lookalike  # noqa: E402

from nsa_onnx.operators.nsa_compress_infer.contract import slot_plan  # noqa: E402

# T, N, D, block, stride
PREFILL = [
    (16384, 4, 128, 32, 16),
    (16384, 4, 128, 128, 16),
    (16384, 4, 128, 64, 16),
    (16384, 4, 128, 32, 32),
    (16384, 1, 64, 32, 16),
    (4096, 8, 256, 32, 16),
    (2048, 4, 128, 32, 16),
    (512, 4, 128, 32, 16),
    (512, 1, 128, 128, 16),
]
# batch, N, D, block, stride, page
DECODE = [
    (1, 4, 128, 32, 16, 128),
    (1, 32, 128, 32, 16, 128),
    (16, 4, 128, 32, 16, 128),
    (64, 4, 128, 32, 16, 128),
    (64, 8, 128, 64, 32, 64),
    (48, 16, 192, 112, 16, 64),
]
DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
COLUMNS = (
    *("shape", "type", "cores", "read MB", "/floor", "written MB", "/floor", "burst B", "vector", "/floor"),
    *("repeats", "busiest", "barriers", "all", "buffer KiB"),
)


# The parts of what is above the least: bytes read, vector instructions.
LEFT_COLUMNS = (
    *("shape", "type", "groups", "splits", "read above KB", "halo", "bytes of weights", "bytes other"),
    *("least here", "above", "Casts of bf16", "groups", "slices", "weights", "other"),
)
# Places of plan_layout.h and the operators' layout.h.
_GROUPS, _SPLITS, _SLICES = 5, 15, 15


@dataclass(frozen=True)
class Left:
    """What a launch does above the least, by reason; the reasons' sums are known from the plan alone.

    Attributes:
        cut: head groups, and row splits in prefill or slices of a window in decode.
        halo, weights: bytes that more than one core reads.
        least: vector instructions that this cut of the work needs.
        casts, groups, slices, weight_steps: instructions above the floor.
    """

    cut: tuple[int, int]
    halo: int = 0
    weights: int = 0
    least: int = 0
    casts: int = 0
    groups: int = 0
    slices: int = 0
    weight_steps: int = 0

    def row(self, label: str, dtype: str, launched: lookalike.Launched, read_floor: int) -> list[str]:
        """One line of the table."""
        counters: dict[str, Any] = launched.counters
        read = sum(counters["read"][name]["bytes"] for name in ("input", "weight")) - read_floor
        above = counters["vector_instructions"] - self.least
        steps = self.casts, self.groups, self.slices, self.weight_steps
        sizes = (f"{size / 1e3:.1f}" for size in (read, self.halo, self.weights, read - self.halo - self.weights))
        return [label, dtype, *map(str, self.cut), *sizes, *map(str, (self.least, above, *steps, above - sum(steps)))]


def left_in_prefill(launched: lookalike.Launched, shape: tuple[int, ...], bfloat16: bool, weights: int) -> Left:
    """Cores that take neighbouring rows both read the tokens between; each split reads its heads' weights."""
    _, heads, dim, block, stride = shape
    groups, splits = int(launched.plan[_GROUPS]), int(launched.plan[_SPLITS])
    count = launched.counters["instructions"]
    units = splits * groups
    return Left(
        (groups, splits),
        halo=2 * heads * dim * (block - stride) * (splits - 1),
        weights=(splits - 1) * weights,
        least=splits * block * heads * -(-dim // 64) + 2 * units,
        casts=count["Cast"] - units if bfloat16 else 0,
    )


def left_in_decode(launched: lookalike.Launched, shape: tuple[int, ...], weights: int) -> Left:
    """Each head group of a window has Casts and additions of its own; each core widens and spreads its weights."""
    batch, heads, dim, block, _, _ = shape
    groups, slices = int(launched.plan[_GROUPS]), int(launched.plan[_SLICES])
    count, units = launched.counters["instructions"], batch * groups
    adds, muls = (block - 1).bit_length(), heads * -(-dim // 64)
    of_slice = (-(-block // slices) - 1).bit_length()
    spread = count["Cast"] - units * (slices + 1)  # Casts of weights, one for each Brcb
    return Left(
        (groups, slices),
        weights=launched.counters["read"]["weight"]["bytes"] - weights,
        least=batch * (2 + muls + adds),
        groups=batch * (groups - 1) * (2 + adds),
        slices=units * (slices * (1 + of_slice) - 1 - adds + (slices - 1)) + (slices - 1) * batch * muls
        if slices > 1
        else 0,
        weight_steps=spread + count["Brcb"],
    )


def row(label: str, dtype: str, launched: lookalike.Launched, floors: tuple[int, int, int]) -> list[str]:
    """One line of the table. Floors: bytes read, bytes written, vector instructions."""
    counters: dict[str, Any] = launched.counters
    read = sum(counters["read"][name]["bytes"] for name in ("input", "weight"))
    written = counters["written"]["output"]["bytes"]
    vector = counters["vector_instructions"]
    even = counters["repeats"] / lookalike.CORES
    return [
        label,
        dtype,
        str(counters["blocks"]),
        f"{read / 1e6:.2f}",
        f"{read / floors[0]:.3f}",
        f"{written / 1e6:.2f}",
        f"{written / floors[1]:.3f}",
        str(counters["read"]["input"]["shortest_burst"]),
        str(vector),
        f"{vector / floors[2]:.2f}",
        str(counters["repeats"]),
        f"{counters['busiest_repeats'] / even:.2f}",
        str(counters["barriers_v"]),
        str(counters["barriers_all"]),
        f"{counters['ub_peak'] / 1024:.0f}",
    ]


Rows = list[list[str]]
Shapes = Sequence[tuple[int, ...]]


def prefill_rows(kernels: lookalike.Kernels, shapes: Shapes = PREFILL) -> tuple[Rows, Rows]:
    rows, left = [], []
    for tokens, heads, dim, block, stride in shapes:
        for name, dtype in DTYPES.items():
            x, w = np.ones((tokens, heads, dim), dtype), np.ones((block, heads), dtype)
            launched = kernels.compress(x, w, block, stride, [tokens])
            axpys = block * heads * -(-dim // 64) + 2
            cores = min(lookalike.CORES, launched.output.shape[0])
            used = (launched.output.shape[0] - 1) * stride + block  # a tail that fills no window need not be read
            floors = (2 * used * heads * dim + w.nbytes, launched.output.nbytes, cores * axpys)
            label = f"T={tokens} N={heads} D={dim} {block}/{stride}"
            rows.append(row(label, name, launched, floors))
            above = left_in_prefill(launched, (tokens, heads, dim, block, stride), name == "bf16", w.nbytes)
            left.append(above.row(label, name, launched, floors[0]))
    return rows, left


def decode_rows(kernels: lookalike.Kernels, shapes: Shapes = DECODE) -> tuple[Rows, Rows]:
    rows, left = [], []
    for batch, heads, dim, block, stride, page in shapes:
        for name, dtype in DTYPES.items():
            pages = -(-(block + 8 * stride) // page)
            x = np.ones((batch * pages, page, heads, dim), dtype)
            w, cache = np.ones((block, heads), dtype), np.zeros((batch, heads, dim), dtype)
            lengths = [block + stride * (b % 8) for b in range(batch)]
            table = np.arange(batch * pages, dtype=np.int32).reshape(batch, pages)
            slots = np.arange(batch, dtype=np.int32)
            writes = slot_plan(slots, table, lengths, block, stride, page, pages)
            launched = kernels.infer(x, w, cache, writes, block)
            window = 2 * heads * dim * block
            least = 2 + heads * -(-dim // 64) + (block - 1).bit_length()
            floors = (batch * window + w.nbytes, cache.nbytes, batch * least)
            label = f"B={batch} N={heads} D={dim} {block}/{stride} page {page}"
            rows.append(row(label, name, launched, floors))
            above = left_in_decode(launched, (batch, heads, dim, block, stride, page), w.nbytes)
            left.append(above.row(label, name, launched, floors[0]))
    return rows, left


def print_table(title: str, columns: Sequence[str], rows: Rows) -> None:
    print(f"\n{title}")
    widths = [max(len(line[i]) for line in [list(columns), *rows]) for i in range(len(columns))]
    for line in [list(columns), *rows]:
        cells = (
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def plot(rows: Rows, path: Path) -> None:
    """Bars of two ratios to the floor per row, bytes read and vector instructions, as a PNG file."""
    import matplotlib  # not needed for the tables

    matplotlib.use("Agg")  # no display is needed
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(9, 0.28 * len(rows) + 1.5), layout="constrained")
    places = np.arange(len(rows))
    for column, offset, label in ((4, -0.2, "bytes read"), (9, 0.2, "vector instructions")):
        bars = axis.barh(places + offset, [float(line[column]) for line in rows], 0.36, label=label)
        axis.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(places, [f"{line[0]} {line[1]}" for line in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("ratio to the floor, simulated")
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="write a PNG plot here")
    options = parser.parse_args()
    lookalike.build()
    kernels = lookalike.Kernels()
    (prefill, left_of_prefill), (decode, left_of_decode) = prefill_rows(kernels), decode_rows(kernels)
    print("Counted on the look-alike (simulated), not timed, not run on Ascend.")
    print_table("Prefill, 48 cores", COLUMNS, prefill)
    print_table("Decode, 48 cores", COLUMNS, decode)
    print_table("Prefill, what is left above the least", LEFT_COLUMNS, left_of_prefill)
    print_table("Decode, what is left above the least (splits: slices of a window)", LEFT_COLUMNS, left_of_decode)
    if options.plot:
        plot([*prefill, *decode], options.plot)
        print(f"\nplot: {options.plot}")


if __name__ == "__main__":
    main()
