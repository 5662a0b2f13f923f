"""Counters of the Ascend C kernels on the look-alike, beside the floor. Simulated: neither timed nor run on Ascend.

    python benchmarks/ascend_counters.py [--plot FILE.svg]

Floor: each input byte once, each output byte once; for vector instructions L N q + 2 per core, the least a design
with one Axpy per window offset and head has when it splits rows only (a head split makes them longer and is below
1); for decode a Cast, N q multiplications, a tree of additions and a Cast per write. `busiest` is the core with
most repeats, relative to an even split over 48.
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

from nsa_onnx import spec  # noqa: E402

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
            writes = spec.infer_plan(slots, table, lengths, block, stride, page, pages)
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
    """Bars of two ratios to the floor per row (bytes read, vector instructions), as an SVG file."""
    height, left, scale = 22, 330, 110
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + 5 * scale}" height="{(len(rows) + 2) * height}" '
        'font-family="monospace" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="8" y="16">ratio to the floor, simulated: <tspan fill="#0072b2">bytes read</tspan>, '
        '<tspan fill="#d55e00">vector instructions</tspan>; the line is 1</text>',
    ]
    for i, line in enumerate(rows, 1):
        y = i * height + 4
        parts.append(f'<text x="8" y="{y + 14}">{line[0]} {line[1]}</text>')
        for column, offset, color in ((4, 0, "#0072b2"), (9, 9, "#d55e00")):
            ratio = float(line[column])
            width = min(ratio, 4.5) * scale
            parts.append(f'<rect x="{left}" y="{y + offset}" width="{width:.1f}" height="8" fill="{color}"/>')
            parts.append(f'<text x="{left + width + 4:.1f}" y="{y + offset + 8}" font-size="9">{ratio:.2f}</text>')
    bottom = (len(rows) + 1) * height
    parts.append(f'<line x1="{left + scale}" y1="{height}" x2="{left + scale}" y2="{bottom}" stroke="black"/>')
    path.write_text("\n".join([*parts, "</svg>"]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, help="write an SVG plot here")
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
