"""All output is cleaned: of every command, with every option, in every format, for a model with hostile names.

The commands and their options are read from the parser, so that a new one is tested without a change here.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys

import fuse_models
import nsa_models as models
import onnx
import pytest
from onnx import helper

from nsa_onnx import cli, console
from nsa_onnx.commands import expand

EVIL = "n\n::error title=x::y\n##vso[task.complete]##[error]\x1b[31m\x9b1m\u202e\r\x7f"


def evil_model():
    """Every name in it attacks: of the graph and subgraphs, nodes, values, functions, domains, attributes."""
    made = models.compress([40, 100], x=(100, 4, 16))
    made.producer_name = made.doc_string = made.graph.doc_string = made.domain = EVIL
    made.graph.name = EVIL
    made.metadata_props.add(key=EVIL, value=EVIL)
    for node in made.graph.node:
        node.name = node.doc_string = EVIL
    spare = models.node(name=EVIL, outputs=[EVIL])
    spare.attribute.add(name=EVIL, type=onnx.AttributeProto.INT, i=1)
    windows = helper.make_tensor(f"{EVIL}i", onnx.TensorProto.INT64, [2, 32], [*range(32), *range(16, 48)])
    graphs = []
    for rank in ("1", "2"):  # what looks like the compression and is none, inside a subgraph
        values = [f"{EVIL}{rank}{k}" for k in range(3)]
        nodes = [
            helper.make_node("Gather", ["x", windows.name], [values[0]], name=EVIL, axis=0),
            helper.make_node("Mul", [values[0], "w3"], [values[1]], name=EVIL),
            helper.make_node("ReduceSum", [values[1], "axes"], [values[2]], name=EVIL, keepdims=0),
        ]
        graphs.append(helper.make_graph(nodes, EVIL, [], [helper.make_empty_tensor_value_info(values[2])]))
    made.graph.initializer.append(windows)
    made.graph.initializer.append(models.lengths([1], "axes"))
    made.graph.input.append(models.value("go", onnx.TensorProto.BOOL, []))
    made.graph.input.append(models.value("w3", onnx.TensorProto.FLOAT16, [32, 4, 1]))
    branch = helper.make_node("If", ["go"], [f"{EVIL}if"], name=EVIL, then_branch=graphs[0], else_branch=graphs[1])
    made.graph.node.extend([spare, branch])
    made.functions.append(helper.make_function(EVIL, EVIL, [EVIL], ["y"], [spare], made.opset_import))
    made.opset_import.add(domain=EVIL, version=1)
    return made


def renamed(made):
    """The model with names that attack."""
    made.graph.name = EVIL
    for number, node in enumerate(made.graph.node):
        node.name = f"{EVIL}{number}"  # onnxruntime wants each once
        node.input[:] = [EVIL + name for name in node.input]
        node.output[:] = [EVIL + name for name in node.output]
    for value in (*made.graph.input, *made.graph.output, *made.graph.initializer):
        value.name = EVIL + value.name
    return made


def unrunnable():
    """A model with a compression that can be fused, and a node whose names an error of onnxruntime repeats."""
    made = fuse_models.gathered()
    made.graph.node.add(op_type=EVIL, domain=EVIL, input=["x"], output=["unused"])
    made.opset_import.add(domain=EVIL, version=1)
    return renamed(made)


MODELS = {
    "full of names": lambda: evil_model().SerializeToString(),
    "fusable": lambda: renamed(fuse_models.gathered()).SerializeToString(),
    "unrunnable": lambda: unrunnable().SerializeToString(),
    "no model": lambda: EVIL.encode() * 9,
}


def commands():
    """Names and parsers of all commands."""
    (actions,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return actions.choices


def values_of(action, folder):
    """What may be given for an option: nothing for a flag, a name that attacks where there is no choice."""
    if action.nargs == 0:
        return [[]]
    if action.choices:
        return [[str(choice)] for choice in action.choices]
    if action.dest == "outputs":
        return [[name] for name in ("text", "json", "sarif", "junit", "github", f"json={folder}/{EVIL}")]
    return [[f"{folder}/out{EVIL}".replace("/n\n", "/n")], ["1"]]


def lines_of(name, parser, model, folder):
    """Command lines: the shortest one, one with each option and value, and one with the same for no model."""
    positional = [a for a in parser._actions if not a.option_strings]
    options = [a for a in parser._actions if a.option_strings and not isinstance(a, argparse._HelpAction)]
    needed = [[a.option_strings[0], *values_of(a, folder)[0]] for a in options if a.required]
    shortest = [name, *itertools.chain(*needed), *([model] if positional else [])]
    yield shortest
    yield [name, *itertools.chain(*needed), f"no{EVIL}"]
    for option in options:
        for value in values_of(option, folder):
            yield [*shortest, option.option_strings[0], *value]


LINES = sorted(commands())


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("made", MODELS)
def test_no_command_repeats_what_steers_a_terminal_or_a_runner(name, made, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model = tmp_path / f"m{EVIL}.onnx".replace("::", ":").replace("/", "")
    model.write_bytes(MODELS[made]())
    said = 0
    for line in lines_of(name, commands()[name], str(model), str(tmp_path)):
        with contextlib.suppress(SystemExit):
            cli.main(line)
        text = "".join(capfd.readouterr())  # what C++ writes, too
        said += len(text)
        bad = {char for char in text if not char.isprintable() and char != "\n"}
        starts = [row[:16] for row in text.splitlines() if row.lstrip().startswith("::")]
        if "github" in line:  # where they are the format
            starts = [start for start in starts if not start.startswith(("::error title=", "::warning title"))]
        assert (bad, "##" in text, starts) == (set(), False, []), (line, text)
    assert said, "a command that says nothing is not tried"


def test_json_keeps_the_data_that_it_makes_inert():
    import json

    text = console.to_json({"##vso[x]": EVIL})
    assert "##" not in text and text.isascii() and json.loads(text) == {"##vso[x]": EVIL}


@pytest.mark.parametrize(
    ("line", "stream", "status"),
    [
        (["check", "missing.onnx"], "2>/dev/full", 2),
        (["check", "missing.onnx"], ">/dev/full", 2),
        (["check", "m.onnx"], ">/dev/full", 2),
        (["check", "m.onnx"], "2>/dev/full", 0),
        (["check", "m.onnx"], ">&- 2>&-", 0),
        (["check", "--list-rules"], ">/dev/full", 2),
        (["nonsense"], "2>/dev/full", 2),
        (["doctor"], ">/dev/full", 2),
        (["fuse", "m.onnx", "-o", "f.onnx"], ">/dev/full", 2),
        (["prepare-atc", "m.onnx", "-o", "p.onnx"], ">/dev/full", 2),
        (["infer-shapes", "missing.onnx", "-o", "i.onnx"], "2>/dev/full", 2),
        (["expand", "m.onnx", "-o", "e.onnx"], ">/dev/full", 2),
        (["explain", "missing.onnx", "--html", "i.html"], ">/dev/full 2>/dev/full", 2),
    ],
)
def test_a_full_stream_is_status_2_and_no_traceback(line, stream, status, tmp_path):
    onnx.save(models.compress([40, 100], x=(100, 4, 16)), tmp_path / "m.onnx")
    command = f'"$0" -m nsa_onnx.cli "$@" {stream}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, *line], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_is_named(unbuffered, tmp_path):
    onnx.save(models.compress([40, 100], x=(100, 4, 16)), tmp_path / "m.onnx")
    done = subprocess.run(
        ["sh", "-c", '"$0" -m nsa_onnx.cli check m.onnx >/dev/full', sys.executable],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "nsa-onnx: standard output: No space left on device\n")


@pytest.mark.parametrize(("model", "status"), [("m.onnx", 1), ("missing.onnx", 2)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_changes_no_status(model, status, unbuffered, tmp_path):
    onnx.save(models.compress([40, 90], x=(100, 4, 16)), tmp_path / "m.onnx")
    command = '"$0" -m nsa_onnx.cli check "$1" | true; exit ${PIPESTATUS[0]}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, model],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr


def test_a_fault_of_the_program_is_status_2_and_clean(monkeypatch, capfd, tmp_path):
    def broken(_):
        raise KeyError(EVIL)

    monkeypatch.setattr(expand, "load_graph", broken)
    assert cli.main(["expand", "m.onnx", "-o", str(tmp_path / "o.onnx")]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "Traceback" in err and "KeyError" in err
    assert "##" not in err and not {char for char in err if not char.isprintable() and char != "\n"}
    assert all(line.startswith("nsa-onnx: ") for line in err.splitlines())
