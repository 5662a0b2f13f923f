"""The C++ sources as a graph: which layer may include which, and that an operator is named in its own folders only."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# The floors, from the bottom up: a folder, and the folders below it that its files may include. A folder's own files
# it may always include. ascend_kernels stands beside ort_ext: of it, only the C interface (launch.h) is seen there.
FLOORS = {
    "plan": (),
    "ascend_kernels": ("plan",),
    "ort_ext/cpu": ("plan",),
    "ort_ext/device": ("plan",),
    "ort_ext/device/cann": ("plan", "ort_ext/device", "ascend_kernels"),
    "ort_ext/ort": ("plan", "ort_ext/cpu", "ort_ext/device"),
    "ort_ext/c_api": ("plan",),
    "ort_ext/operators": (
        *("plan", "ort_ext/cpu", "ort_ext/device", "ort_ext/device/cann", "ort_ext/ort", "ort_ext/c_api"),
        "ascend_kernels",
    ),
    "ort_ext": ("plan", "ort_ext/cpu", "ort_ext/device/cann", "ort_ext/ort", "ort_ext/c_api", "ort_ext/operators"),
}
SOURCES = sorted(
    path
    for folder in ("plan", "ort_ext", "ascend_kernels")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".h", ".cc", ".asc")
)
# As the builds' include directories.
ROOTS = (ROOT, ROOT / "ort_ext", ROOT / "ascend_kernels", ROOT / "ascend_kernels" / "onnx_plugin")

OPERATORS = sorted(path.parent.name for path in (ROOT / "ort_ext" / "operators").glob("*/op.h"))
# Files that may name an operator without being of its room, each with its reason.
EXCEPTIONS = {
    "ort_ext/operators/list.h": "the list of the operators: what is done for each of them is done for this list",
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def floor(path):
    """The folder of FLOORS that a source is in: the innermost one."""
    return max((name for name in FLOORS if name_of(path).startswith(name + "/")), key=len)


def room(path):
    """The operator whose room a file is in, or None: a folder of its name, or plan/ and a file of its name."""
    parts = (path.parent.name, path.stem if path.parent == ROOT / "plan" else "")
    return next((operator for operator in OPERATORS if operator in parts), None)


def included(path):
    """Our files that `path` includes."""
    for name in re.findall(r'^#include "([^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
        found = [(root / name).resolve() for root in (path.parent, *ROOTS) if (root / name).is_file()]
        if found:
            yield found[0]


def all_included(path):
    """And what these include, and so on."""
    found, left = set(), [path]
    while left:
        new = set(included(left.pop())) - found
        found |= new
        left += new
    return found


def operators_named(text):
    """The operators that a text names, by their own names or by what they are called."""
    for operator in OPERATORS:
        op_type = "".join(map(str.capitalize, operator.split("_")))
        if re.search(rf"\b({operator}|{op_type})\b", text):
            yield operator
    yield from re.findall(r"decode|prefill|\bcompress::", text, re.IGNORECASE)


def test_each_floor_is_above_those_it_includes():
    names = list(FLOORS)
    for name, allowed in FLOORS.items():
        assert [other for other in allowed if names.index(other) >= names.index(name)] == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_source_includes_its_own_floor_or_lower_ones(path):
    name = floor(path)
    for other in included(path):
        assert floor(other) == name or floor(other) in FLOORS[name], other
        if name != "ascend_kernels" and floor(other) == "ascend_kernels":
            assert other.name == "launch.h"


def test_an_operator_does_not_include_another():
    assert len(OPERATORS) > 1
    for path in SOURCES:
        if room(path):
            assert [other for other in included(path) if room(other) not in (None, room(path))] == [], path


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_cpu_kernel_is_compiled_without_onnxruntime_and_devices(operator):
    """Its test on other processors (tests/cpu) links it, and the operator's function of the C interface, alone."""
    folder = ROOT / "ort_ext" / "operators" / operator
    for file, floors in (("kernel.cc", ()), ("c_api.cc", ("ort_ext/c_api",))):
        for other in all_included(folder / file):
            assert floor(other) in ("plan", "ort_ext/cpu", *floors) or other.parent == folder, (file, other)


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


def test_an_operator_is_named_in_its_own_room_only():
    cmake = [ROOT / "CMakeLists.txt", *(ROOT / "ascend_kernels").rglob("CMakeLists.txt"), *(ROOT / "cmake").iterdir()]
    outside = [path for path in (*SOURCES, *cmake) if path.is_file() and not room(path)]
    named = {name_of(path): list(operators_named(path.read_text(encoding="utf-8"))) for path in outside}
    assert {name: operators for name, operators in named.items() if operators and name not in EXCEPTIONS} == {}
    assert [name for name in EXCEPTIONS if not named[name]] == []  # an exception that is not needed goes


def test_an_operator_s_room_does_not_name_another():
    for path in SOURCES:
        named = set(OPERATORS) & set(operators_named(path.read_text(encoding="utf-8")))
        assert room(path) is None or named <= {room(path)}, path


@pytest.mark.parametrize("what", ["WindowCount", "CompletesWindow"])
def test_the_formulas_of_windows_are_written_once(what):
    """T' and the trigger condition: where anything divides by the stride but the tilings, which count chunks."""
    pattern = {"WindowCount": r"[-+] ?block\) ?/ ?\w*\.?stride", "CompletesWindow": r"block\) ?% ?\w*\.?stride"}[what]
    found = [path for path in SOURCES if re.search(pattern, path.read_text(encoding="utf-8").replace("call.", ""))]
    assert found == [ROOT / "plan" / "windows.h"]
