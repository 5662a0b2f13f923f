"""The structure of the Python sources, drawn from the sources themselves.

- Each part imports itself or parts below it, and no modules import one another in a circle. Imports for types alone
  make no circle: modules have them that the build loads with the standard library alone.
- No import stands in a function, but for packages that a user may not have.
- What is true of one operator is in its rooms: no other file names it.

tests/test_includes.py says the same of the C++ sources. Each list of exceptions gives its reasons, and may not hold
anything that is no exception any more.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nsa_onnx.operators import OPERATORS

ROOT = Path(__file__).resolve().parent.parent

# The parts from the lowest to the highest: what is in a line may import what is in it or above it.
PARTS = (
    ("nsa_onnx.runtime.native", "nsa_onnx.runtime.imports", "nsa_onnx.console"),
    ("nsa_onnx.graph",),
    ("nsa_onnx.operators",),
    ("nsa_onnx.runtime",),
    ("nsa_onnx.recognise",),
    ("nsa_onnx.analysis",),
    ("nsa_onnx.rulebook",),
    ("nsa_onnx.targets",),
    ("nsa_onnx.checker",),
    ("nsa_onnx.fuse", "nsa_onnx.explain"),
    ("nsa_onnx.__main__", "nsa_onnx.cli", "nsa_onnx.commands", "nsa_onnx.pytest_plugin"),
    ("nsa_onnx.exporters",),
)

# (file, imported module): why.
IN_FUNCTIONS = {
    ("nsa_onnx/pytest_plugin.py", "nsa_onnx.checker"): "pytest loads every plugin: onnx is for those who use ours",
    ("nsa_onnx/pytest_plugin.py", "nsa_onnx.console"): "as above",
    ("nsa_onnx/pytest_plugin.py", "nsa_onnx.runtime.session"): "as above",
    ("nsa_onnx/runtime/hook/sitecustomize.py", "nsa_onnx"): "runs in programs that have no nsa_onnx",
    ("nsa_onnx/runtime/hook/sitecustomize.py", "nsa_onnx.runtime.everywhere"): "as above",
}


@dataclass(frozen=True)
class Import:
    """One import of a module of ours."""

    module: str
    line: int
    in_function: bool
    for_types: bool


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = ("nsa_onnx", *parts) if parts[0] == "exporters" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_of(path): path for folder in ("nsa_onnx", "exporters") for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports(name: str) -> Iterator[Import]:
    """The modules of ours that a module imports; of a package's attribute, the package."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    for_types = {id(node) for block in typing for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        else:
            continue
        for module in dict.fromkeys(found):
            if module in MODULES:
                yield Import(module, node.lineno, id(node) in inside, id(node) in for_types)


def part(module: str) -> int | None:
    """The line of PARTS that a module is in; None if it is in none.

    The package itself imports nothing before it is asked for: what it offers is in all parts.
    """
    if module == "nsa_onnx":
        return part("nsa_onnx.cli")
    found = [
        (len(name), number)
        for number, names in enumerate(PARTS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    return max(found)[1] if found else None


def relative(module: str) -> str:
    return MODULES[module].relative_to(ROOT).as_posix()


def test_every_module_is_in_a_part():
    assert [name for name in MODULES if part(name) is None] == []


def test_no_module_imports_a_higher_part():
    found = [(relative(name), one) for name in MODULES for one in imports(name) if part(one.module) > part(name)]
    assert [f"{path}:{one.line} imports {one.module}" for path, one in found if not one.in_function] == []


def test_no_module_imports_itself_in_a_circle():
    edges = {
        name: {one.module for one in imports(name) if not one.in_function and not one.for_types} - {name}
        for name in MODULES
    }
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(edges[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in MODULES:
        walk(name, ())


def test_no_import_of_ours_is_hidden_in_a_function():
    found = {(relative(name), one.module) for name in MODULES for one in imports(name) if one.in_function}
    assert found == set(IN_FUNCTIONS)


# --------------------------------------------------------------------------------------------------
# Rooms

SNAKE = {op_type: re.sub(r"(?<!^)(?=[A-Z])", "_", op_type).lower() for op_type in OPERATORS}
NAMES = re.compile(rf"\b({'|'.join((*SNAKE, *SNAKE.values()))})\b")
ROOMS = tuple(
    place for name in SNAKE.values() for place in (f"nsa_onnx/operators/{name}/", f"exporters/operators/{name}.py")
)

# Who names an operator outside its rooms, and why.
NAMING = {
    "nsa_onnx/__init__.py": "the eager calls, for users",
    "nsa_onnx/commands/demo.py": "it shows one of them, with words of its own",
    "nsa_onnx/operators/__init__.py": "the list of the operators",
    "nsa_onnx/targets/atc.py": "its rules have examples",
    "nsa_onnx/targets/cann.py": "limits of the target, one entry per operator",
    "nsa_onnx/targets/portable.py": "its rule has an example",
    "nsa_onnx/targets/vendor.py": "limits of the vendor's operators, one entry for each",
    "nsa_onnx/targets/vendor_attention.py": "limits of the vendor's attention operators, one entry for each",
    "nsa_onnx/targets/vendor_attention_rules.py": "its rules have examples",
    "nsa_onnx/targets/vendor_rules.py": "its rules have examples",
    "exporters/__init__.py": "the torch ops, for users",
    "exporters/operators/__init__.py": "the list of the operators' torch sides",
}
# The words for one kind of operator, of both languages; at most so many files may have them outside the rooms.
KIND = re.compile(r"(?<!\.)\bdecod(e|es|ing)\b|NsaCompressInfer|nsa_compress_infer", re.IGNORECASE)
MOST_NAMING_DECODE = 16


def said(path: Path) -> set[str]:
    """The operators that a file names in code: identifiers, imports and strings, not what is written for readers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    words: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str() as value) if id(node) not in texts:
                words.append(value)
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str() as name):
                words.append(name)
            case ast.alias(name=name) | ast.ImportFrom(module=str() as name):
                words.append(name)
    return {found for word in words for found in NAMES.findall(word)}


def test_no_file_outside_an_operators_rooms_names_it():
    found = {path for path in map(relative, MODULES) if not path.startswith(ROOMS) and said(ROOT / path)}
    assert found == set(NAMING)


def test_few_files_outside_the_rooms_name_decode():
    parts = ("nsa_onnx", "exporters", "plan", "ort_ext", "ascend_kernels", "cmake")
    kinds = {".py", ".h", ".cc", ".cpp", ".asc", ".cmake", ".in", ".txt"}
    sources = [path for part in parts for path in (ROOT / part).rglob("*") if path.suffix in kinds]
    folders = [path.parent.name for path in (ROOT / "nsa_onnx" / "operators").glob("*/contract.py")]
    rooms = {f"{folder}{kind}" for folder in folders for kind in ("", *kinds)}
    found = [path for path in sources if not rooms & set(path.parts) and KIND.search(path.read_text(encoding="utf-8"))]
    names = sorted(path.relative_to(ROOT).as_posix() for path in found)
    assert len(names) <= MOST_NAMING_DECODE, "\n".join(names)


# --------------------------------------------------------------------------------------------------
# Size


def test_no_source_is_longer_than_500_lines():
    folders = ("nsa_onnx", "exporters", "plan", "ort_ext", "ascend_kernels", "cmake", "benchmarks", "tools", "examples")
    kinds = {".py", ".h", ".cc", ".cpp", ".asc", ".cmake"}
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
    counts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count("\n") for path in sources}
    assert {name: count for name, count in counts.items() if count > 500} == {}
