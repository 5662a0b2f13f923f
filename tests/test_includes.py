"""The layers of the C++ sources: which may include which. Nothing includes a higher layer, and there is no cycle."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A folder, and the folders below it that its files may include; a folder's own files it may always include.
FLOORS = {
    "plan": (),
    "ort_ext/cpu": ("plan",),
    "ort_ext/device": ("plan",),
    "ort_ext/device/cann": ("plan", "ort_ext/device", "ascend_kernels"),  # its C interface, launch.h
    "ort_ext/ort": ("plan", "ort_ext/cpu", "ort_ext/device"),
    "ort_ext/c_api": ("plan",),
    "ort_ext/operators": (
        *("plan", "ort_ext/cpu", "ort_ext/device", "ort_ext/device/cann", "ort_ext/ort", "ort_ext/c_api"),
    ),
    "ort_ext": ("plan", "ort_ext/cpu", "ort_ext/device/cann", "ort_ext/ort", "ort_ext/c_api", "ort_ext/operators"),
    "ascend_kernels": ("plan",),
}
SOURCES = sorted(
    path
    for folder in ("plan", "ort_ext", "ascend_kernels")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".h", ".cc", ".asc") and "onnx_plugin" not in path.parts
)
ROOTS = (ROOT, ROOT / "ort_ext", ROOT / "ascend_kernels")  # as the builds' include directories


def floor(path):
    """The folder of FLOORS that a source is in: the innermost one."""
    relative = path.relative_to(ROOT).as_posix()
    return max((name for name in FLOORS if relative.startswith(name + "/")), key=len)


def included(path):
    """Our files that `path` includes."""
    for name in re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
        found = [(root / name).resolve() for root in (path.parent, *ROOTS) if (root / name).is_file()]
        if found:
            yield found[0]


def test_the_floors_are_no_circle():
    names = list(FLOORS)
    below = {"ascend_kernels": "plan"}  # stands beside ort_ext; only its interface is seen from there
    for name, allowed in FLOORS.items():
        for other in allowed:
            assert other in below or names.index(other) < names.index(name), (name, other)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_includes_its_own_floor_or_lower_ones(path):
    name = floor(path)
    for other in included(path):
        assert floor(other) == name or floor(other) in FLOORS[name], other
        if name != "ascend_kernels" and floor(other) == "ascend_kernels":
            assert other.name == "launch.h"


def test_an_operator_does_not_include_another():
    rooms = ROOT / "ort_ext" / "operators"
    for path in rooms.glob("*/*"):
        for other in included(path):
            assert other.parent == path.parent or rooms not in other.parents, (path, other)


def test_no_file_is_included_by_what_it_includes():
    edges = {path: set(included(path)) for path in SOURCES}
    done, walking = set(), []

    def walk(path):
        assert path not in walking, [*walking, path]
        if path in done:
            return
        walking.append(path)
        for other in edges.get(path, ()):
            walk(other)
        done.add(walking.pop())

    for path in SOURCES:
        walk(path)


@pytest.mark.parametrize("what", ["WindowCount", "CompletesWindow"])
def test_the_formulas_of_windows_are_written_once(what):
    """T' and the trigger condition: where anything divides by the stride but the tilings, which count chunks."""
    pattern = {"WindowCount": r"[-+] ?block\) ?/ ?\w*\.?stride", "CompletesWindow": r"block\) ?% ?\w*\.?stride"}[what]
    found = [path for path in SOURCES if re.search(pattern, path.read_text(encoding="utf-8").replace("call.", ""))]
    assert found == [ROOT / "plan" / "windows.h"]
