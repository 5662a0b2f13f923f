"""pyproject.toml declares what the sources import."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "pyproject.toml").read_text()
# Whoever loads the plugin has pytest; tests/test_packaging.py has the wheel without torch_npu.
BROUGHT_BY_THE_USER = {"pytest"}


def declared(pattern):
    (block,) = re.findall(rf"^{pattern} = \[(.*?)\]", TEXT, re.MULTILINE | re.DOTALL)
    return {name.replace("-", "_") for name in re.findall(r'"([\w-]+)[<>=]', block)}


def imported(folder):
    """The top-level packages that the sources of a folder import, ours and Python's own left out."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], path.relative_to(ROOT))
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, "nsa_onnx"}}


BASE = declared("dependencies")


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("nsa_onnx", ("ort", "torch", "completion")), ("exporters", ("torch", "ort"))],
)
def test_every_import_is_declared(folder, extras):
    allowed = BASE.union(*map(declared, extras), BROUGHT_BY_THE_USER)
    assert {name: path for name, path in imported(folder).items() if name not in allowed} == {}


def test_every_declaration_is_imported():
    names = {**imported("nsa_onnx"), **imported("exporters")}
    assert BASE.union(declared("torch"), declared("ort")) - set(names) == set()


def test_the_minimums_of_torch_are_the_versions_that_all_tests_run_with():
    """An older torch would be another gigabyte for CI; what is not tested is not promised."""
    minimums = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', TEXT))
    pins = dict(re.findall(r'"([\w-]+)==([\w.]+)"', TEXT))
    for name in ("torch", "onnxscript", "onnx_ir"):
        assert f"{pins[name]}.".startswith(f"{minimums[name]}."), name
