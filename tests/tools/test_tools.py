"""The table in docs/tools.md, each row with the real tool: what it does to our nodes, their bodies and the results.

`make test-tools` runs this, with the tools in build/tools.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import layers
import numpy as np
import onnx
import onnxruntime
import pytest
from rows import ROOT, ROWS

import nsa_onnx
from nsa_onnx import cli
from nsa_onnx.operators.expand import expand

OURS = {"NsaCompress", "NsaCompressInfer"}
LOSSY = {"onnxruntime.quantization.quantize_dynamic", "onnxruntime.quantization.quantize_static",
         "onnxruntime.transformers.float16"}  # fmt: skip
WANT = dict(
    zip(("y", "cache_out"), nsa_onnx.create_session(layers.PLAIN, device="cpu").run(None, layers.FEEDS), strict=True)
)


def table():
    """{tool: (plain, portable, what check says)} as docs/tools.md has it."""
    text = (ROOT / "docs" / "tools.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:3] == "| `"]
    return {row[0].strip("`"): row[1:4] for row in rows if len(row) == 5}


def test_every_row_of_the_table_is_run():
    assert list(table()) == list(ROWS)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def converted(tool, model, folder, inside):
    """The file that a tool makes of a model, bare or inside `everywhere`; its own programs under `nsa-onnx with`."""
    suffix = ".ort" if "convert_onnx_models_to_ort" in tool else ".onnx"
    source, target = folder / f"model-{inside}.onnx", folder / f"result-{inside}{suffix}"
    onnx.save(model, source)
    if not inside:
        ROWS[tool](source, target)
        return target
    code = "import sys, pathlib, rows; rows.ROWS[sys.argv[1]](*map(pathlib.Path, sys.argv[2:]))"
    words = [sys.executable, "-m", "nsa_onnx.cli", "with", "--", "python", "-c", code, tool, str(source), str(target)]
    path = os.pathsep.join([str(ROOT / "tests" / "tools"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": path}, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def outcome(path):
    """What became of the two nodes and their bodies, in the table's words."""
    if path.suffix == ".ort":  # only onnxruntime reads it
        try:
            without_us(path)
        except Exception:
            return "kept"
        return "inlined"
    model = onnx.load(path)
    called = {node.op_type for node in model.graph.node if node.domain == "nsa_onnx"}
    bodies = {function.name for function in model.functions if function.domain == "nsa_onnx"}
    if not called:
        return "inlined"
    if called != OURS:
        return "renamed"
    return "kept" if bodies == OURS else "bodies lost"


def right(tool, session):
    """Whether a session computes what the model computed before the tool had it."""
    inputs = [value.name for value in session.get_inputs()]
    got = session.run(None, {name: layers.FEEDS[name.removeprefix("a_")] for name in inputs})
    names = [value.name.removeprefix("a_") for value in session.get_outputs()]
    found = {"y" if name == "z" else name: value for name, value in zip(names, got, strict=True)}
    scale = 0.03 * np.abs(WANT["y"]).max() if tool in LOSSY else 0
    near = np.abs(found["y"] - WANT["y"]).max() <= scale
    return near and np.array_equal(found["cache_out"].view(np.uint16), WANT["cache_out"].view(np.uint16))


def without_us(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture
def findings(capsys):
    """What `nsa-onnx check` says of a file: the rules, or that it does not read it."""

    def find(path):
        capsys.readouterr()
        status = cli.main(["check", str(path)])
        rules = sorted(set(re.findall(r"NSA\d{3}", capsys.readouterr().out)))
        return ", ".join(rules) or ("nothing" if status == 0 else "not read")

    return find


@pytest.mark.parametrize("tool", ROWS)
def test_a_plain_file(tool, tmp_path, findings):
    says = table()[tool][0]
    if says == "refused":
        with pytest.raises(ValueError, match="already converted to float16"):
            converted(tool, layers.PLAIN, tmp_path, False)
        return
    result = None
    if says == "fails":
        with pytest.raises(Exception, match="nsa_onnx:NsaCompress"):
            converted(tool, layers.PLAIN, tmp_path, False)
        result = converted(tool, layers.PLAIN, tmp_path, True)
    else:
        assert says == "kept"
        result = converted(tool, layers.PLAIN, tmp_path, False)
    assert outcome(result) == ("kept" if result.suffix == ".ort" else "bodies lost")  # it had none
    assert right(tool, nsa_onnx.create_session(result, device="cpu"))
    if result.suffix == ".onnx":
        assert findings(result) == "nothing"
        # What the page says of all: expanded last, it runs anywhere.
        onnx.save(expand(onnx.load(result)), tmp_path / "expanded.onnx")
        assert findings(tmp_path / "expanded.onnx") == "nothing"
        assert right(tool, without_us(tmp_path / "expanded.onnx"))


@pytest.mark.parametrize("tool", ROWS)
def test_a_portable_file(tool, tmp_path, findings):
    _, says, check = table()[tool]
    if says == "refused":
        with pytest.raises(ValueError, match="already converted to float16"):
            converted(tool, layers.PORTABLE, tmp_path, False)
        return
    result = converted(tool, layers.PORTABLE, tmp_path, False)
    assert outcome(result) == says
    assert findings(result) == check
    assert right(tool, nsa_onnx.create_session(result, device="cpu"))
    if says == "bodies lost":
        with pytest.raises(Exception, match="nsa_onnx:NsaCompress"):
            without_us(result)
    else:
        assert right(tool, without_us(result))
