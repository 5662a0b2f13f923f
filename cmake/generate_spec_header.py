"""Write the C++ header with the limits and messages of nsa_onnx/spec.py (stdout: nothing; file: argv[3]).

Usage: generate_spec_header.py SPEC_PY PYPROJECT_TOML HEADER

Runs at configure time with nothing but the standard library: spec.py is loaded from its path, so that
neither the package nor what it depends on must be installed.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType


def load_spec(path: Path) -> ModuleType:
    """The module at `path`, without importing the package around it."""
    module_spec = importlib.util.spec_from_file_location("nsa_onnx_spec", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses looks its module up by name
    sys.dont_write_bytecode = True
    module_spec.loader.exec_module(module)
    return module


def project_version(pyproject: str) -> str:
    """`version` of the [project] table. (tomllib is not in Python 3.10.)"""
    match = re.search(r'^\[project\]$.*?^version = "([^"]+)"$', pyproject, re.MULTILINE | re.DOTALL)
    if match is None:
        raise SystemExit('pyproject.toml has no line version = "..." in its [project] table')
    return match.group(1)


def quoted(text: str) -> str:
    """`text` as a C++ string literal; the messages are plain ASCII."""
    if not text.isascii() or not text.isprintable():
        raise SystemExit(f"spec.py: cannot put {text!r} into a C++ string literal")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def camel(name: str) -> str:
    return "k" + "".join(part.capitalize() for part in name.split("_"))


def header(spec: ModuleType, version: str) -> str:
    def constant(kind: str, name: str, value: str) -> str:
        return f"inline constexpr {kind} {name} = {value};"

    def limits(name: str, value: object) -> str:
        fields = ("min_heads", "max_heads", "min_block", "max_block")
        return constant("Limits", name, "{" + ", ".join(str(getattr(value, field)) for field in fields) + "}")

    lines = [
        "// Generated from nsa_onnx/spec.py by cmake/generate_spec_header.py. Do not edit.",
        "#ifndef NSA_ONNX_SPEC_H_",
        "#define NSA_ONNX_SPEC_H_",
        "#include <cstdint>",
        "#include <string_view>",
        "namespace nsa::spec {",
        "struct Limits {",
        "  int64_t min_heads, max_heads, min_block, max_block;",
        "};",
        constant("char", "kVersion[]", quoted(version)),
        constant("char", "kDomain[]", quoted(spec.DOMAIN)),
        constant("int", "kOpsetVersion", str(spec.OPSET_VERSION)),
        constant("char", "kCompressOp[]", quoted(spec.COMPRESS_OP)),
        constant("char", "kInferOp[]", quoted(spec.INFER_OP)),
        constant("int64_t", "kAlignment", str(spec.ALIGNMENT)),
        constant("int64_t", "kMaxHeadDim", str(spec.MAX_HEAD_DIM)),
        constant("int64_t", "kMaxPageRuns", str(spec.MAX_PAGE_RUNS)),
        constant("int64_t", "kPageBlockSizes[]", "{" + ", ".join(map(str, spec.PAGE_BLOCK_SIZES)) + "}"),
        limits("kCompressLimits", spec.COMPRESS_LIMITS),
        limits("kInferLimits", spec.INFER_LIMITS),
    ]
    for name in ("MAX_DECODE_BLOCK", "MAX_ODD_HEADS", "MAX_ELEMENTS", "MAX_BATCH"):
        lines.append(constant("int64_t", camel(f"VENDOR_{name}"), str(getattr(spec, f"VENDOR_{name}"))))
    for namespace, rows in (("compress_row", spec.COMPRESS_ROWS), ("infer_row", spec.INFER_ROWS)):
        lines.append(f"namespace {namespace} {{")
        lines += [constant("std::string_view", camel(name), quoted(row.message)) for name, row in rows.items()]
        lines.append(f"}}  // namespace {namespace}")
    lines += ["}  // namespace nsa::spec", "#endif  // NSA_ONNX_SPEC_H_", ""]
    return "\n".join(lines)


def main() -> None:
    spec_path, pyproject_path, header_path = map(Path, sys.argv[1:])
    text = header(load_spec(spec_path), project_version(pyproject_path.read_text(encoding="utf-8")))
    # An unchanged header keeps its time stamp, and nothing is compiled again.
    if not header_path.exists() or header_path.read_text(encoding="utf-8") != text:
        header_path.parent.mkdir(parents=True, exist_ok=True)
        header_path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
