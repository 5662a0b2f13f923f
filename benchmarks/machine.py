"""Describes the machine of a run: processor, caches, versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from nsa_onnx.runtime import native

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cache_bytes() -> dict[int, int]:
    """Level -> bytes of one data or unified cache, as far as the system tells."""
    sizes: dict[int, int] = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (folder / "type").read_text().strip() != "Instruction":
            size = (folder / "size").read_text().strip()
            sizes[int((folder / "level").read_text())] = int(size[:-1]) * _UNITS[size[-1]]
    return sizes


def last_level_bytes() -> int | None:
    """The last-level cache, None where the system does not tell."""
    sizes = cache_bytes()
    return sizes[max(sizes)] if sizes else None


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def describe() -> dict[str, Any]:
    """All of it, for the table's head and for JSON."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "caches": {f"L{level}": size for level, size in sorted(cache_bytes().items())},
        "cpu_target": native.cpu_target(),
        "versions": {name: metadata.version(name) for name in ("nsa_onnx", "onnxruntime", "torch", "numpy")},
    }


def cache_note(size: int) -> str:
    """How the size of an input compares with the last-level cache, or '' if it is well beyond it."""
    sizes = cache_bytes()
    cache = last_level_bytes()
    if cache is None:
        return "last-level cache unknown"
    if size < sizes.get(2, 0):
        return "fits L2"
    return "" if size >= 2 * cache else f"NOT beyond the last-level cache of {cache / 1e6:.0f} MB"
