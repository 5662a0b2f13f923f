"""The command line: exit statuses, one-line errors, files written completely or not at all."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import nsa_models as models
import numpy as np
import onnx
import oracle
import pytest
from onnx import TensorProto, helper

import nsa_onnx
from nsa_onnx.cli import main
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.example import example_model


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.onnx"
    onnx.save(models.compress([40, 100]), path)
    return path


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.onnx"
    onnx.save(models.compress([50, 40]), path)
    return path


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    return path


def run(capsys, *arguments):
    """Exit status, stdout, stderr."""
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_check_exits_0_1_2(capsys, good, bad, broken, tmp_path):
    assert run(capsys, "check", good) == (0, f"{good}: ok (1 NSA node checked)\n", "")
    status, out, err = run(capsys, "check", bad)
    assert (status, err) == (1, "")
    assert "error NSA015 NsaCompress 'nsa': actual_seq_len[1] must be >=" in out
    for path in (broken, tmp_path / "missing.onnx"):
        status, out, err = run(capsys, "check", path)
        assert (status, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert str(path) in err


@pytest.mark.parametrize("arguments", [["check"], ["check", "m", "--format", "xml"], ["expand", "m"], ["nonsense"]])
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: nsa-onnx" in capsys.readouterr().err


def test_a_bare_command_is_wrong_usage_and_prints_the_help(capsys):
    status, out, err = run(capsys)
    assert (status, out) == (2, "")
    assert "usage: nsa-onnx" in err and "infer-shapes" in err


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        (["chekc", "m"], "check"),
        (["infer_shapes", "m"], "infer-shapes"),
        (["check", "m", "--target", "cann-acl"], "cann-aclnn"),
        (["check", "m", "--format", "jsn"], "json"),
        (["nothing-like-it"], None),
        (["expand", "m", "-o", "x", "--quite"], "--quiet"),
        (["check", "m", "--fail_on=error"], "--fail-on"),
        (["check", "m", "--nothing-like-it"], None),
        (["check", "m", "--quite-another-thing-that-is-much-longer-than-all-options-there-are"], None),
    ],
)
def test_what_was_mistyped_gets_a_suggestion(line, meant, capsys):
    with pytest.raises(SystemExit) as caught:
        main(line)
    last = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2
    assert last.endswith(f"; did you mean {meant!r}?") if meant else "did you mean" not in last


def test_a_mistyped_option_is_told_where_the_right_one_is_missed(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "m", "-o", "x", "--traget", "atc"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        "nsa-onnx: prepare: the following arguments are required: --target; did you mean '--target', not '--traget'?"
    )


@pytest.mark.parametrize("name", ["expand", "infer-shapes", "fuse", "prepare", "explain"])
def test_an_output_is_a_file_and_not_standard_output(name, capsys, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    option = "--html" if name == "explain" else "-o"
    more = ["--target", "atc"] if name == "prepare" else []
    with pytest.raises(SystemExit) as caught:
        main([name, str(good), option, "-", *more])
    assert caught.value.code == 2
    assert "must be a file, not standard output; a file of that name is ./-" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [good.name]
    assert run(capsys, name, good, option, "./-", *more)[0] == 0
    assert (tmp_path / "-").is_file()


@pytest.mark.parametrize("name", ["expand", "infer-shapes", "fuse", "prepare", "explain"])
def test_quiet_converters_write_and_say_nothing(name, capsys, good, tmp_path):
    target = tmp_path / "out"
    options = ["--html" if name == "explain" else "-o", target, *(["--target", "atc"] if name == "prepare" else [])]
    status, out, err = run(capsys, name, good, *options)
    assert (status, err) == (0, "")
    assert f"wrote {target}" in out.splitlines()[-1]
    wrote = target.read_bytes()
    target.unlink()
    assert run(capsys, name, good, *options, "--quiet") == (0, "", "")
    assert target.read_bytes() == wrote


def test_a_shell_completes_commands(tmp_path):
    """As bash asks: argcomplete answers on file descriptor 8."""
    answer = tmp_path / "answer"
    line = "nsa-onnx ex"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = f"{sys.executable} -m nsa_onnx 8>{answer}"
    subprocess.run(["bash", "-c", command], env={**os.environ, **asked}, capture_output=True, check=False)
    assert {word.strip() for word in answer.read_text().splitlines()} == {"expand", "explain"}


def test_check_as_json(capsys, good, bad):
    for path, wanted in ((good, 0), (bad, 1)):
        status, out, _ = run(capsys, "check", path, "--format", "json")
        data = json.loads(out)
        assert status == wanted
        assert data["summary"]["ok"] is (wanted == 0)
        assert data["model"] == str(path)
        assert len(data["entries"]) == wanted


def test_infer_shapes_writes_the_exact_t(capsys, tmp_path):
    model = models.compress([40, 100])
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "R"
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    assert run(capsys, "infer-shapes", source, "-o", target) == (0, f"wrote {target}: the shapes of 1 value\n", "")
    dims = onnx.load(target).graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [3, 4, 16]


def test_infer_shapes_says_what_stands_against_it(capsys, bad, tmp_path):
    target = tmp_path / "out.onnx"
    status, out, err = run(capsys, "infer-shapes", bad, "-o", target)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert str(bad) in err
    assert "got 40" in err
    assert not target.exists()


def test_expand_lists_what_it_has_added(capsys, tmp_path):
    operators = sorted(OPERATORS.values(), key=lambda operator: operator.op_type)[:3]
    models_of = [onnx.compose.add_prefix(example_model(one, one.example), f"{one.op_type}_") for one in operators]
    model = models_of[0]
    for other in models_of[1:]:
        model.graph.MergeFrom(other.graph)
    onnx.save(model, tmp_path / "in.onnx")
    status, out, _ = run(capsys, "expand", tmp_path / "in.onnx", "-o", tmp_path / "out.onnx")
    names = "NsaCompress, NsaCompressAttention and NsaCompressAttentionInfer"
    assert (status, out) == (0, f"wrote {tmp_path / 'out.onnx'}: {names} in standard operators\n")


def test_expand_writes_a_model_for_any_runtime(capsys, good, tmp_path):
    target = tmp_path / "out.onnx"
    wrote = f"wrote {target}: NsaCompress in standard operators\n"
    assert run(capsys, "expand", good, "-o", target) == (0, wrote, "")
    generator = np.random.default_rng(0)
    x = generator.standard_normal((100, 4, 16)).astype(np.float16)
    w = generator.standard_normal((32, 4)).astype(np.float16)
    (got,) = models.run_ort(onnx.load(target), {"x": x, "w": w})
    assert oracle.same_bits(got, oracle.compress_exact(x, w, 32, 16, [40, 100]))


@pytest.mark.parametrize("command", ["expand", "infer-shapes"])
def test_the_output_may_be_the_input_and_is_written_whole(command, capsys, good, monkeypatch):
    before = good.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    status, _, err = run(capsys, command, good, "-o", good)
    assert status == 2
    assert f"{good}: No space left on device" in err
    assert good.read_bytes() == before
    assert [path.name for path in good.parent.iterdir()] == [good.name]
    monkeypatch.undo()
    assert run(capsys, command, good, "-o", good)[0] == 0
    assert good.read_bytes() != before or command == "infer-shapes"
    onnx.checker.check_model(onnx.load(good), full_check=True, check_custom_domain=True)


@pytest.mark.parametrize("command", ["expand", "infer-shapes"])
def test_what_cannot_be_written_is_named(command, capsys, good, tmp_path):
    target = tmp_path / "no such folder" / "out.onnx"
    status, _, err = run(capsys, command, good, "-o", target)
    assert status == 2
    assert str(target) in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["", ".", "folder"])
def test_a_folder_is_no_output(name, capsys, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    status, _, err = run(capsys, "expand", good, "-o", name)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "Is a directory" in err


def test_what_is_no_file_is_written_to_and_not_replaced(good, tmp_path):
    """As root, a file would otherwise take the place of /dev/null for the whole machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert main(["expand", str(good), "-o", str(pipe)]) == 0
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        onnx.checker.check_model(onnx.load_from_string(os.read(reader, 2**16)))
    finally:
        os.close(reader)


def test_the_output_keeps_its_permissions_and_a_link_stays_one(capsys, good, tmp_path):
    before = good.read_bytes()
    good.chmod(0o640)
    link = tmp_path / "link.onnx"
    link.symlink_to(good.name)
    assert run(capsys, "expand", good, "-o", link)[0] == 0
    assert link.is_symlink()
    assert good.read_bytes() != before
    assert stat.S_IMODE(good.stat().st_mode) == 0o640


def test_a_closed_stdout_is_no_error(good):
    code = f"{sys.executable} -m nsa_onnx.cli check {good} >&-"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["expand", "infer-shapes"])
def test_a_model_without_a_graph_is_refused(command, capsys, tmp_path):
    empty = tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    status, _, err = run(capsys, command, empty, "-o", tmp_path / "out.onnx")
    assert status == 2
    assert f"{empty}: the model has no graph" in err


def test_expand_names_the_file_and_the_opset(capsys, tmp_path):
    source = tmp_path / "old.onnx"
    onnx.save(models.compress([40, 100], opset=13), source)
    status, _, err = run(capsys, "expand", source, "-o", tmp_path / "out.onnx")
    assert status == 1
    assert f"{source}: the portable bodies need opset 16" in err


def save_external(folder):
    model = models.compress([40, 100])
    model.graph.input.pop(1)
    weight = helper.make_tensor("w", TensorProto.FLOAT16, [32, 4], np.ones(128, np.float16).tobytes(), raw=True)
    model.graph.initializer.append(weight)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    return folder / "m.onnx"


def test_external_weights_stay_where_they_are(capsys, tmp_path):
    source = save_external(tmp_path)
    (tmp_path / "other").mkdir()
    for command in ("expand", "infer-shapes"):
        target = tmp_path / f"{command}.onnx"
        assert run(capsys, command, source, "-o", target)[0] == 0
        written = onnx.load(target)
        rows = written.graph.output[0].type.tensor_type.shape.dim[0].dim_value
        assert rows == (3 if command == "infer-shapes" else 0)  # the lengths, too, are in a file of their own
        assert written.graph.initializer[-1].raw_data == np.ones(128, np.float16).tobytes()
        status, _, err = run(capsys, command, source, "-o", tmp_path / "other" / "out.onnx")
        assert status == 2
        assert "write the output to that folder" in err


def test_external_weights_lie_where_the_model_is_named(capsys, tmp_path):
    """A store of blobs with links to them (as download caches keep it): data is looked for beside the link."""
    (tmp_path / "blobs").mkdir()
    source = save_external(tmp_path)
    blob = tmp_path / "blobs" / "0123"
    source.rename(blob)
    source.symlink_to(blob)
    target = tmp_path / "out.onnx"
    assert run(capsys, "expand", source, "-o", target)[0] == 0
    assert onnx.load(target).graph.initializer[-1].raw_data == np.ones(128, np.float16).tobytes()


def test_doctor_and_demo_are_well(capsys):
    status, out, err = run(capsys, "doctor")
    assert (status, err) == (0, "")
    assert nsa_onnx.get_library_path() in out
    status, out, err = run(capsys, "demo")
    assert (status, err) == (0, "")
    assert "(T' = 10)" in out
    assert "the same bits as the eager call" in out


@pytest.mark.parametrize("module", ["nsa_onnx", "nsa_onnx.cli"])
def test_the_installed_command_is_this_one(module, good):
    command = [sys.executable, "-m", module, "check", str(good)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{good}: ok (1 NSA node checked)\n", "")
    (script,) = [e for e in _entry_points() if e.name == "nsa-onnx"]
    assert script.load() is main


def _entry_points():
    from importlib.metadata import entry_points

    return entry_points(group="console_scripts")


def test_a_reader_that_leaves_is_no_error(good):
    code = f"{sys.executable} -m nsa_onnx.cli check {good} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("0", "")


@pytest.fixture
def weighted(tmp_path):
    """A model, and the file of its weights."""
    model = models.compress([40, 100])
    big = TensorProto(name="big", data_type=TensorProto.FLOAT16, dims=[8], data_location=TensorProto.EXTERNAL)
    big.external_data.add(key="location", value="weights.bin")
    model.graph.initializer.append(big)
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "weights.bin").write_bytes(b"w" * 16)
    return tmp_path / "m.onnx", tmp_path / "weights.bin"


@pytest.mark.parametrize(
    "command",
    [
        ("expand", "-o"),
        ("infer-shapes", "-o"),
        ("prepare-atc", "-o"),
        ("fuse", "-o"),
        ("explain", "--html"),
        ("check", "--format", "json="),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("through", ["name", "link"])
def test_no_output_replaces_the_models_weights(capsys, weighted, tmp_path, command, through):
    model, weights = weighted
    if through == "link":
        os.link(weights, tmp_path / "other")
    target = weights if through == "name" else tmp_path / "other"
    name, *options = command
    options = [f"{options[-1]}{target}"] if name == "check" else [options[0], str(target)]
    options = ["--format", *options] if name == "check" else options
    status, out, err = run(capsys, name, model, *options)
    assert (status, out) == (2, "")
    assert err.startswith("nsa-onnx: ") and f"{target}: holds weights of {model}: write to another file" in err
    assert weights.read_bytes() == b"w" * 16


def test_explain_does_not_replace_the_model(capsys, good):
    before = good.read_bytes()
    assert run(capsys, "explain", good, "--html", good) == (2, "", f"nsa-onnx: {good}: is the model\n")
    assert good.read_bytes() == before


def test_rules_can_be_ignored(capsys, bad):
    assert run(capsys, "check", bad, "--ignore", "nsa015")[0] == 0
    assert nsa_onnx.check(bad, ignore=["NSA015"]).ok
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(bad), "--ignore", "NSA999"])
    assert stopped.value.code == 2
    assert "no rule has the id 'NSA999'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="ignore must hold ids of rules, got 'NSA999'"):
        nsa_onnx.check(bad, ignore=["NSA999"])


def test_fuse_and_prepare_atc_take_a_path(good):
    from nsa_onnx.fuse import fuse
    from nsa_onnx.targets.atc import prepare_atc

    assert fuse(good).model == onnx.load(good)
    assert prepare_atc(good).model.graph.node[0].op_type == "NsaCompress"
