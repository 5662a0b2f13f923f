"""Counts instructions and bytes of the Ascend C kernels on the look-alike, next to the least that is possible.

    python benchmarks/ascend_counters.py [--plot FILE.png]

Simulated: no times, and nothing was run on Ascend. The least (`floor`): each input byte and each output byte once;
vector instructions L N q + 2 per core, the least for a design that has one Axpy per window offset and head and splits
rows only (a design that also splits heads can be below 1); in decode a Cast, N q multiplications, a tree of additions
and a Cast per write. `busiest` is the core with most repeats, relative to an even split over 48.
"""

from __future__ import annotations

import argparse
import sys
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


def prefill_rows(kernels: lookalike.Kernels) -> list[list[str]]:
    rows = []
    for tokens, heads, dim, block, stride in PREFILL:
        for name, dtype in DTYPES.items():
            x, w = np.ones((tokens, heads, dim), dtype), np.ones((block, heads), dtype)
            launched = kernels.compress(x, w, block, stride, [tokens])
            axpys = block * heads * -(-dim // 64) + 2
            cores = min(lookalike.CORES, launched.output.shape[0])
            used = (launched.output.shape[0] - 1) * stride + block  # a tail that fills no window need not be read
            floors = (2 * used * heads * dim + w.nbytes, launched.output.nbytes, cores * axpys)
            rows.append(row(f"T={tokens} N={heads} D={dim} {block}/{stride}", name, launched, floors))
    return rows


def decode_rows(kernels: lookalike.Kernels) -> list[list[str]]:
    rows = []
    for batch, heads, dim, block, stride, page in DECODE:
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
            rows.append(row(f"B={batch} N={heads} D={dim} {block}/{stride} page {page}", name, launched, floors))
    return rows


def print_table(title: str, rows: list[list[str]]) -> None:
    print(f"\n{title}")
    widths = [max(len(line[i]) for line in [list(COLUMNS), *rows]) for i in range(len(COLUMNS))]
    for line in [list(COLUMNS), *rows]:
        cells = (
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def plot(rows: list[list[str]], path: Path) -> None:
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
    prefill, decode = prefill_rows(kernels), decode_rows(kernels)
    print("Counted on the look-alike (simulated), not timed, not run on Ascend.")
    print_table("Prefill, 48 cores", prefill)
    print_table("Decode, 48 cores", decode)
    if options.plot:
        plot([*prefill, *decode], options.plot)
        print(f"\nplot: {options.plot}")


if __name__ == "__main__":
    main()
