"""Measures what is waited for before work begins, each time in a fresh process. Runs in a worker process.

All modules are there as bytecode, as after a package's first use. Three questions: how long does a program or command
take, which packages' imports are it, and what does a first session wait for?
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.example import example_model

Command = tuple[str, ...]

PROGRAMS: Mapping[str, Command] = {
    "python": ("-c", "pass"),
    "import numpy": ("-c", "import numpy"),
    "import onnx": ("-c", "import onnx"),
    "import onnxruntime": ("-c", "import onnxruntime"),
    "import nsa_onnx": ("-c", "import nsa_onnx"),
    "nsa-onnx --version": ("-m", "nsa_onnx", "--version"),
    "nsa-onnx check": ("-m", "nsa_onnx", "check", "MODEL"),
}
# Whose imports are told apart; the others are Python's own library. onnx's are those of what it imports, too.
PACKAGES = {
    "numpy": "numpy",
    **dict.fromkeys(("onnx", "google", "ml_dtypes", "typing_extensions"), "onnx"),
    "onnxruntime": "onnxruntime",
    "nsa_onnx": "nsa_onnx",
}
OWNERS = (*dict.fromkeys(PACKAGES.values()), "Python")

# Each line is timed by itself, in one process.
STAGES = {
    "import nsa_onnx": "import nsa_onnx",
    "import onnx, with numpy": "import onnx, onnx.shape_inference",
    "onnx's own schemas (defs.has)": "onnx.defs.has('Relu')",
    "nsa_onnx.create_session: our modules and schemas": "create = nsa_onnx.create_session",
    "import onnxruntime": "import onnxruntime",
    "our library: dlopen": "import ctypes; ctypes.CDLL(nsa_onnx.get_library_path())",
    "our library: registration": "nsa_onnx.session_options()",
    "create_session": "session = create('MODEL', device='cpu')",
    "first run": "session.run(None, inputs(session))",
    "second run": "session.run(None, inputs(session))",
    "first eager call": "eager()",
    "second eager call": "eager()",
}
_SCRIPT = """
import json, time
def inputs(session):
    import numpy
    return {one.name: numpy.ones(one.shape, numpy.float16) for one in session.get_inputs()}
def eager():
    import numpy
    nsa_onnx.nsa_compress(numpy.ones((100, 4, 64), 'f2'), numpy.ones((32, 4), 'f2'), 32, 16, actual_seq_len=[100])
seconds, variables = {}, globals()
for name, line in STAGES.items():
    begin = time.perf_counter()
    exec(line, variables)
    seconds[name] = time.perf_counter() - begin
print(json.dumps(seconds))
"""


@contextmanager
def _place() -> Iterator[tuple[Path, dict[str, str]]]:
    """A model of one node in a folder, and an environment in which bytecode is kept there."""
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model.onnx"
        operator, *_ = OPERATORS.values()
        onnx.save(example_model(operator, operator.example), model)
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(Path(name) / "bytecode")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        yield model, environment


def _run(command: Sequence[str], model: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *(word.replace("MODEL", str(model)) for word in command)]
    return subprocess.run(words, env=environment, cwd=model.parent, check=True, capture_output=True, text=True)


def programs(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of whole processes, which take turns, and of their imports by package."""
    with _place() as (model, environment):
        times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
        for _ in range(rounds + 1):
            for name, command in PROGRAMS.items():
                begin = time.perf_counter()
                _run(command, model, environment)
                times[name].append(time.perf_counter() - begin)
        imports = {
            name: _imports(_run(("-X", "importtime", *command), model, environment).stderr)
            for name, command in PROGRAMS.items()
        }
    return [
        {"program": name, "ms": 1e3 * statistics.median(of[1:]), "imports_ms": imports[name]}
        for name, of in times.items()
    ]


def _imports(text: str) -> dict[str, float]:
    """Python's own account of a process's imports: milliseconds of each owner's modules, without what these import."""
    found: Counter[str] = Counter()
    for microseconds, module in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", text, re.MULTILINE):
        found[PACKAGES.get(module.partition(".")[0], "Python")] += int(microseconds)
    return {owner: found[owner] / 1e3 for owner in OWNERS}


def session(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each stage on the way to a session's first run, one after the other."""
    with _place() as (model, environment):
        script = f"STAGES = {json.dumps(STAGES)}{_SCRIPT}"
        runs = [json.loads(_run(("-c", script), model, environment).stdout) for _ in range(rounds + 1)][1:]
    return [{"stage": name, "ms": 1e3 * statistics.median(run[name] for run in runs)} for name in STAGES]
