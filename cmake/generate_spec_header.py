"""Writes the C++ header with the limits, messages and hints of the operators' contracts.

Usage: generate_spec_header.py PACKAGE PYPROJECT_TOML HEADER

PACKAGE is the folder nsa_onnx. Each folder in its operators/ that has a contract.py gets a namespace of its name.

Runs when the build is configured, with the standard library alone: the contracts are imported without the
``__init__.py`` of their packages, so that neither NumPy nor onnx must be installed.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


class Package:
    """The Python package at a path, whose modules are imported without running any ``__init__.py``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        sys.dont_write_bytecode = True

    def load(self, name: str) -> Any:
        """The module ``name``, as "operators.hints"."""
        folder, parent = self.path, self.path.name
        for part in ("", *name.split(".")[:-1]):
            folder, parent = folder / part, f"{parent}.{part}".rstrip(".")
            if parent not in sys.modules:
                sys.modules[parent] = ModuleType(parent)
                sys.modules[parent].__path__ = [str(folder)]
        return importlib.import_module(f"{self.path.name}.{name}")

    def rooms(self) -> list[str]:
        """The names of the operators' folders."""
        return sorted(path.parent.name for path in self.path.glob("operators/*/contract.py"))


def project_version(pyproject: str) -> str:
    """`version` of the [project] table. (tomllib is not in Python 3.10.)"""
    match = re.search(r'^\[project\]$.*?^version = "([^"]+)"$', pyproject, re.MULTILINE | re.DOTALL)
    if match is None:
        raise SystemExit('pyproject.toml has no line version = "..." in its [project] table')
    return match.group(1)


def quoted(text: str) -> str:
    """`text` as a C++ string literal; the messages are plain ASCII."""
    if not text.isascii() or not text.isprintable():
        raise SystemExit(f"cannot put {text!r} into a C++ string literal")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def camel(name: str) -> str:
    return "k" + "".join(part.capitalize() for part in name.split("_"))


def constant(kind: str, name: str, value: str) -> str:
    return f"inline constexpr {kind} {name} = {value};"


def numbers(name: str, value: int | Sequence[int]) -> str:
    """A constant of one or several ints."""
    if isinstance(value, int):
        return constant("int64_t", camel(name), str(value))
    return constant("int64_t", f"{camel(name)}[]", "{" + ", ".join(map(str, value)) + "}")


def strings(namespace: str, texts: dict[str, str]) -> Iterator[str]:
    yield f"namespace {namespace} {{"
    yield from (constant("std::string_view", camel(name), quoted(text)) for name, text in texts.items())
    yield f"}}  // namespace {namespace}"


def windows_rows(windows: Any) -> dict[str, str]:
    """The rows that all operators on windows have."""
    return {row_id: message for row_id, _, _, message, *_ in windows.DIM_ROWS} | {
        row.id: row.message for row in windows.TENSOR_ROWS.values()
    }


def attention_rows(contracts: Iterable[Any]) -> dict[str, str]:
    """The rows of attention stages that have the same words wherever they stand."""
    texts: dict[str, set[str]] = {}
    for contract in contracts:
        for row in contract.rows.values():
            texts.setdefault(row.id, set()).add(row.message)
    return {row_id: messages.pop() for row_id, messages in texts.items() if len(messages) == 1}


def structs(limits: Iterable[Any]) -> Iterator[str]:
    """The types of limits, each once."""
    for kind in dict.fromkeys(map(type, limits)):
        fields = ", ".join(field.name for field in dataclasses.fields(kind))
        yield from (f"struct {kind.__name__} {{", f"  int64_t {fields};", "};")


def struct(name: str, values: Any) -> str:
    """A constant of one of those types."""
    return constant(type(values).__name__, name, "{" + ", ".join(map(str, dataclasses.astuple(values))) + "}")


def room(name: str, contract: Any) -> Iterator[str]:
    """The namespace of one operator."""
    limits = contract.limits
    yield f"namespace {name} {{"
    yield constant("char", "kOp[]", quoted(contract.op_type))
    yield struct("kLimits", limits)
    yield from (numbers(constant_name, value) for constant_name, value in contract.constants.items())
    yield from strings("row", {row.id: row.message for row in contract.rows.values()})
    yield f"}}  // namespace {name}"


def header(package: Package, version: str) -> str:
    shared, windows = package.load("operators.contract"), package.load("operators.windows")
    hints, vendor = package.load("operators.hints").HINTS, package.load("targets.vendor")
    contracts = {name: package.load(f"operators.{name}.contract").CONTRACT for name in package.rooms()}
    attention = package.load("operators.attention").LIMITS
    stages = [contract for contract in contracts.values() if contract.limits == attention]
    lines = [
        "// Generated from nsa_onnx/operators by cmake/generate_spec_header.py. Do not edit.",
        "#ifndef NSA_ONNX_SPEC_H_",
        "#define NSA_ONNX_SPEC_H_",
        "#include <cstdint>",
        "#include <string_view>",
        "namespace nsa::spec {",
        *structs([*(contract.limits for contract in contracts.values()), *vendor.CPP_STRUCTS.values()]),
        constant("char", "kVersion[]", quoted(version)),
        constant("char", "kDomain[]", quoted(shared.DOMAIN)),
        constant("int", "kOpsetVersion", str(shared.OPSET_VERSION)),
        numbers("ALIGNMENT", windows.ALIGNMENT),
        numbers("MAX_HEAD_DIM", windows.MAX_HEAD_DIM),
        *(numbers(f"VENDOR_{name}", value) for name, value in vendor.CPP_CONSTANTS.items()),
        *(struct(f"kVendor{name}", sizes) for name, sizes in vendor.CPP_STRUCTS.items()),
        *strings("windows_row", windows_rows(windows)),
        struct("kAttentionLimits", attention),
        *strings("attention_row", attention_rows(stages)),
        *strings("hint", {hint.id: hint.ending for hint in hints.values()}),
    ]
    for name, contract in contracts.items():
        lines += room(name, contract)
    lines += ["}  // namespace nsa::spec", "#endif  // NSA_ONNX_SPEC_H_", ""]
    return "\n".join(lines)


def main() -> None:
    package_path, pyproject_path, header_path = map(Path, sys.argv[1:])
    text = header(Package(package_path), project_version(pyproject_path.read_text(encoding="utf-8")))
    # An unchanged header keeps its time stamp, and nothing is compiled again.
    if not header_path.exists() or header_path.read_text(encoding="utf-8") != text:
        header_path.parent.mkdir(parents=True, exist_ok=True)
        header_path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
