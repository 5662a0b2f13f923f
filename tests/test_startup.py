"""What is imported before work begins: modules are counted, since times would fail on a busy machine.

`make bench BENCH_ARGS="--sections startup"` measures the times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import nsa_models as models
import onnx
import pytest

from nsa_onnx.cli import COMMANDS

MODULES = {f"nsa_onnx.{command.module}" for command in COMMANDS.values()}


def imported_by(code, folder):
    """The modules that a fresh process has imported because of this code."""
    code = (
        "import sys; before = {*sys.modules}\n"
        "try:\n"
        f"    {code}\n"
        "finally:\n"
        "    names = {*sys.modules} - before\n"
        "    import json; open('names', 'w').write(json.dumps([*names]))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    with open(os.path.join(folder, "names"), encoding="utf-8") as file:
        return set(json.load(file))


def packages(names):
    return {name.partition(".")[0] for name in names}


def test_the_package_waits_for_no_other(tmp_path):
    names = imported_by("import nsa_onnx", tmp_path)
    # Of Python's library: pytest's own start has nothing of ours to wait for.
    assert not {"numpy", "onnx", "pathlib", "tempfile", "importlib.abc", "nsa_onnx.operators"} & names


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_what_knows_no_model_waits_for_no_onnx(word, tmp_path):
    names = imported_by(f"import nsa_onnx.cli; nsa_onnx.cli.main([{word!r}])", tmp_path)
    assert "nsa_onnx.cli" in names
    assert not {"numpy", "onnx"} & packages(names)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_waits_for_no_other_command(name, tmp_path):
    names = imported_by(f"import nsa_onnx.cli; nsa_onnx.cli.main([{name!r}, '--help'])", tmp_path)
    assert names & MODULES == {f"nsa_onnx.{COMMANDS[name].module}"}


def test_check_waits_for_nothing_that_it_does_not_use(tmp_path):
    onnx.save(models.compress([40, 100]), tmp_path / "m.onnx")
    names = imported_by("import nsa_onnx.cli; assert nsa_onnx.cli.main(['check', 'm.onnx']) == 0", tmp_path)
    assert "nsa_onnx.checker.rules" in names
    assert not {"onnxruntime", "torch", "onnxscript"} & packages(names)
    unused = ("nsa_onnx.fuse", "nsa_onnx.explain", "nsa_onnx.commands", "nsa_onnx.runtime.everywhere", "onnx.reference")
    assert not [name for name in names if name.startswith(unused)]
