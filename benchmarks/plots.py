"""Plots of a run, as PNG files by matplotlib: a roofline of prefill, and the cost over the size of the work."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot

from .contenders import EAGER, NODE, PEERS

Record = dict[str, Any]
_MARKERS = dict(zip((NODE, EAGER, *PEERS), "oDsv^<>pPX*", strict=False))


def roofline(run: Record, path: Path) -> None:
    """GB/s over operations per byte: the read limit, the ceiling of computing, and all contenders."""
    counts = run["threads"]
    figure, axes = pyplot.subplots(1, len(counts), figsize=(7 * len(counts), 6), sharey=True, squeeze=False)
    for axis, threads in zip(axes[0], counts, strict=True):
        records = [r for r in run["prefill"] if r["threads"] == threads and not r["note"]]
        records = records or [r for r in run["prefill"] if r["threads"] == threads]
        _roofline(axis, records, run["machine"]["gflops"][str(threads)])
        axis.set_title(f"threads: {threads}")
    axes[0][0].set_ylabel("GB/s, input and output")
    handles = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"NsaCompress, {run['machine']['processor']}; filled: float16, hollow: bfloat16", fontsize=10)
    _save(figure, path)


def _roofline(axis: Any, records: list[Record], gflops: float) -> None:
    low, high = (edge(r["operations_per_byte"] for r in records) for edge in (min, max))
    x = np.geomspace(low / 2, high * 2)
    limit = statistics.median(r["contenders"][r["limit"]]["gb_per_s"] for r in records)
    axis.plot(x, np.full_like(x, limit), color="black", label="read")
    axis.plot(x, gflops / x, color="black", linestyle="--", label="multiply-adds")
    for index, (name, marker) in enumerate(_MARKERS.items()):
        color = f"C{index % 10}"
        for record in (r for r in records if name in r["contenders"]):
            filled = color if record["dtype"] == "float16" else "none"
            speed = record["contenders"][name]["gb_per_s"]
            axis.plot(*(record["operations_per_byte"], speed), marker, color=color, markerfacecolor=filled, label=name)
    for record in {r["operations_per_byte"]: r for r in records}.values():
        label = f"{record['block']}/{record['stride']}"
        place = record["operations_per_byte"], 0.98
        axis.annotate(label, place, xycoords=("data", "axes fraction"), rotation=90, fontsize=7, va="top")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("operations per byte")
    axis.grid(True, which="both", alpha=0.2)


def growth(record: Record, path: Path) -> None:
    """ns per byte of every sweep, beside a read of the same input."""
    sweeps = list(dict.fromkeys(point["sweep"] for point in record["points"]))
    figure, axes = pyplot.subplots(1, len(sweeps), figsize=(3.4 * len(sweeps), 4), sharey=True)
    for axis, sweep in zip(axes, sweeps, strict=True):
        some = [point for point in record["points"] if point["sweep"] == sweep]
        x = [point["block"] // point["stride"] if sweep == "overlap" else point[sweep] for point in some]
        axis.plot(x, [point["ns_per_byte"] for point in some], "o-", label="NsaCompress")
        axis.plot(x, [point["read_ns_per_byte"] for point in some], color="black", label="read")
        axis.set_xscale("log", base=2)
        axis.set_xlabel({"tokens": "tokens T", "segments": "segments B", "heads": "heads N"}.get(sweep, sweep))
        axis.grid(True, alpha=0.2)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("ns per byte")
    axes[0].legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def step(record: Record, path: Path) -> None:
    """Time of a decode step over the context's length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    lines = {"ours": [(r["tokens"], r["ms"]) for r in record["sparse"]]}
    for r in record["dense"]:
        lines.setdefault(r["name"], []).append((r["tokens"], r["ms"]))
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("ms per decode step")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.set_layout_engine("constrained")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
