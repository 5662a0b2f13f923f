"""`nsa-onnx check`: which models it reads, what it writes, its exit status, and that no file blocks it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import nsa_models as models
import onnx
import pytest
import yaml
from onnx import TensorProto

from nsa_onnx.checker import TARGETS, Finding, Report, Severity
from nsa_onnx.checker import command as checking_command
from nsa_onnx.checker.formats import FORMATS
from nsa_onnx.cli import main

pytest_plugins = ["pytester"]

WARNING = Report("", "cpu", ("nsa",), (Finding("NSA021", Severity.WARNING, "odd"),))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Relative paths are what people give, and short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def good(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(models.compress([40, 100]), path)
    return str(path)


def bad(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(models.compress([40, 50], x=(90, 4, 16)), path)
    return str(path)


def broken(path):
    Path(path).write_bytes(b"no model")
    return str(path)


def run(capsys, *arguments):
    """Exit status, stdout, stderr."""
    status = main(["check", *map(str, arguments)])
    return status, *capsys.readouterr()


def checked(out):
    """The models that a text reports on."""
    return re.findall(r"^(\S+\.onnx): ", out, re.M)


# --------------------------------------------------------------------------------------------------
# Exit status


def test_0_clean_1_findings_2_a_model_that_cannot_be_checked(capsys):
    names = [good("a.onnx"), bad("b.onnx"), broken("c.onnx")]
    assert run(capsys, names[0], good("d.onnx"))[0] == 0
    assert run(capsys, names[0], names[1])[0] == 1
    assert run(capsys, *names)[0] == 2
    assert run(capsys, names[0], "missing.onnx")[0] == 2


@pytest.mark.parametrize(("fail_on", "wanted"), [("warning", 1), ("error", 0)])
def test_fail_on_says_what_fails(capsys, monkeypatch, fail_on, wanted):
    assert run(capsys, bad("b.onnx"), "--fail-on", fail_on)[0] == 1
    monkeypatch.setattr(checking_command, "check", lambda path, **_: WARNING)
    assert run(capsys, good("a.onnx"), "--fail-on", fail_on)[0] == wanted


def test_a_warning_fails_unless_told_otherwise(capsys, monkeypatch):
    monkeypatch.setattr(checking_command, "check", lambda path, **_: WARNING)
    assert run(capsys, good("a.onnx"))[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["m", "--format", "xml"],
        ["m", "--format", "sarif="],
        ["m", "--format", "text", "--format", "json"],
        ["m", "--format", "json=a", "--format", "sarif=./a"],
        ["m", "--fail-on", "note"],
        ["m", "--target", "gpu"],
    ],
)
def test_wrong_usage_is_2(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(["check", *arguments])
    assert caught.value.code == 2
    assert "usage: nsa-onnx check" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------
# Which models


def test_what_cannot_be_read_does_not_stop_the_others(capsys):
    status, out, err = run(capsys, broken("a.onnx"), bad("b.onnx"), "missing.onnx", good("c.onnx"))
    assert status == 2
    assert checked(out) == ["b.onnx", "c.onnx"]
    assert err.splitlines() == [
        "nsa-onnx: a.onnx: not an ONNX model (DecodeError)",
        "nsa-onnx: missing.onnx: No such file or directory",
    ]
    assert out.splitlines()[-1] == "4 models: 1 ok, 1 error, 0 warnings, 2 could not be checked (2 NSA nodes checked)"


def test_a_fault_of_the_checker_is_no_success_and_stops_no_other_model(capsys, monkeypatch):
    names = [good("a.onnx"), good("b.onnx")]
    checking = checking_command.check

    def faulty(path, **arguments):
        if path == "a.onnx":
            raise RecursionError("too deep\nsecond line")
        return checking(path, **arguments)

    monkeypatch.setattr(checking_command, "check", faulty)
    status, out, err = run(capsys, *names)
    assert (status, checked(out)) == (2, ["b.onnx"])
    assert err == "nsa-onnx: a.onnx: cannot be checked (RecursionError: too deep)\n"


def test_a_folder_means_its_models_recursively(capsys):
    for path in ("m/b.onnx", "m/sub/deep/a.ONNX", "m/.git/hidden.onnx", "m/a.onnx"):
        good(path)
    Path("m/loop").symlink_to("..")
    broken("m/readme.txt")
    status, out, err = run(capsys, "m")
    assert (status, err) == (0, "")
    assert checked(out.replace(".ONNX", ".onnx")) == ["m/a.onnx", "m/b.onnx", "m/sub/deep/a.onnx"]


def test_a_folder_without_models_is_no_success(capsys):
    Path("m").mkdir()
    status, out, err = run(capsys, "m")
    assert (status, out, err) == (2, "", "nsa-onnx: m: no *.onnx file in this folder\n")


def test_a_pattern_is_matched_as_the_shell_would(capsys):
    for path in ("m/b.onnx", "m/x/y/c.onnx", "m/a1.onnx"):
        good(path)
    assert checked(run(capsys, "m/*.onnx")[1]) == ["m/a1.onnx", "m/b.onnx"]
    assert checked(run(capsys, "m/**/*.onnx")[1]) == ["m/a1.onnx", "m/b.onnx", "m/x/y/c.onnx"]
    assert checked(run(capsys, "m/x*")[1]) == ["m/x/y/c.onnx"]
    status, out, err = run(capsys, "m/*.pb")
    assert (status, out, err) == (2, "", "nsa-onnx: m/*.pb: no file matches\n")


def test_a_file_whose_name_looks_like_a_pattern_is_itself(capsys):
    good("m1.onnx")
    assert checked(run(capsys, good("m[1].onnx"))[1]) == ["m[1].onnx"]


def test_no_model_is_checked_twice(capsys):
    good("m/a.onnx")
    assert checked(run(capsys, "m", "m/a.onnx", "./m/../m/*.onnx")[1]) == ["m/a.onnx"]


def test_a_file_may_begin_with_a_dash(capsys):
    good("--format=json=x.onnx")
    assert checked(run(capsys, "--", "--format=json=x.onnx")[1]) == ["--format=json=x.onnx"]
    assert os.listdir() == ["--format=json=x.onnx"]


# --------------------------------------------------------------------------------------------------
# Outputs


def test_several_formats_at_once_each_to_its_file(capsys):
    names = [bad("b.onnx"), broken("c.onnx")]
    outputs = [
        "--format",
        "sarif=a=1.sarif",
        "--format",
        "junit=r.xml",
        "--format",
        "json=r.json",
        "--format",
        "github",
    ]
    status, out, err = run(capsys, *names, *outputs)
    assert status == 2
    assert out.startswith("::error title=NSA015 nsa,file=b.onnx::")
    assert err.startswith("nsa-onnx: c.onnx")
    (result,) = json.loads(Path("a=1.sarif").read_text())["runs"][0]["results"]
    assert result["ruleId"] == "NSA015"
    assert '<failure type="NSA015"' in Path("r.xml").read_text()
    assert len(json.loads(Path("r.json").read_text())["reports"]) == 2


def test_with_files_alone_nothing_is_printed_and_text_in_a_file_names_unreadable_models(capsys):
    status, out, _ = run(capsys, broken("a.onnx"), "--format", "text=r.txt")
    assert (status, out) == (2, "")
    assert Path("r.txt").read_text() == "a.onnx: not an ONNX model (DecodeError)\n"


@pytest.mark.parametrize("name", ["b.onnx", "./m/../b.onnx", "link"])
def test_no_output_replaces_a_model(capsys, name):
    before = Path(bad("b.onnx")).read_bytes()
    Path("m").mkdir()
    Path("link").symlink_to("b.onnx")
    status, out, err = run(capsys, "b.onnx", "--format", f"text={name}")
    assert (status, out, err) == (2, "", "nsa-onnx: --format: b.onnx is one of the models\n")
    assert Path("b.onnx").read_bytes() == before


def test_an_output_that_cannot_be_written_is_named_and_leaves_what_was_there(capsys, monkeypatch):
    name = good("a.onnx")
    status, _, err = run(capsys, name, "--format", "sarif=missing/out.sarif")
    assert status == 2
    assert "missing/out.sarif: No such file or directory" in err
    Path("out.sarif").write_text("before")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    status, _, err = run(capsys, name, "--format", "sarif=out.sarif")
    assert status == 2
    assert "out.sarif: No space left on device" in err
    assert Path("out.sarif").read_text() == "before"
    assert sorted(os.listdir()) == ["a.onnx", "out.sarif"]


def test_json_of_one_model_is_an_object_and_of_a_folder_a_list_of_them(capsys):
    name = good("m/a.onnx")
    assert json.loads(run(capsys, name, "--format", "json")[1])["model"] == name
    assert [one["model"] for one in json.loads(run(capsys, "m", "--format", "json")[1])["reports"]] == [name]


# --------------------------------------------------------------------------------------------------
# Terminals


def on_a_terminal(*arguments, **environment):
    """What the command writes to a terminal, stderr included."""
    main_end, end = pty.openpty()
    command = [sys.executable, "-m", "nsa_onnx.cli", "check", *arguments]
    names = ("NO_COLOR", "TERM")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    with subprocess.Popen(command, stdout=end, stderr=end, env={**clean, "TERM": "xterm", **environment}):
        os.close(end)
        written = b""
        while True:
            try:
                data = os.read(main_end, 2**16)
            except OSError:  # how Linux says that the other end is closed
                break
            if not data:
                break
            written += data
    os.close(main_end)
    return written.decode()


def test_a_terminal_gets_colour_and_progress_that_leaves_no_trace():
    names = [bad("b.onnx"), good("g.onnx")]
    text = on_a_terminal(*names)
    assert "\x1b[1;31merror\x1b[0m NSA015" in text
    assert "\r[2/2] g.onnx\x1b[K\r\x1b[K" in text
    assert "[1/1]" not in on_a_terminal(names[0])


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_minds_colour_gets_none(environment):
    assert "\x1b[1;31m" not in on_a_terminal(bad("b.onnx"), **environment)


def test_pipes_and_files_get_neither_colour_nor_progress():
    names = [bad("b.onnx"), good("g.onnx")]
    command = [sys.executable, "-m", "nsa_onnx.cli", "check", *names, "--format", "text", "--format", "junit=r.xml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "\x1b" not in done.stdout + Path("r.xml").read_text()
    text = on_a_terminal(*names, "--format", "text=r.txt")
    assert "\x1b[1;31m" not in text + Path("r.txt").read_text()


def test_a_terminal_without_unicode_is_no_error():
    made = models.compress([50, 40])
    made.graph.node[0].name = "é漢"
    onnx.save(made, "b.onnx")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "nsa_onnx.cli", "check", "b.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (1, "")
    assert r"NsaCompress '\xe9\u6f22'" in done.stdout


# --------------------------------------------------------------------------------------------------
# Large and odd files

# Not getrusage: its maximum counts the process that started this one, too.
PEAK = """
import re, sys
from pathlib import Path
from nsa_onnx.checker.formats import FORMATS
from nsa_onnx.cli import main
status = main(["check", *sys.argv[1:]])
sys.stdout.flush()
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(status, int(peak[1]) // 1024, file=sys.stderr)
"""


def measured(*arguments, timeout=120):
    """Exit status, stdout, the other lines of stderr, peak memory in MiB, seconds."""
    begin = time.monotonic()
    command = [sys.executable, "-c", PEAK, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout)
    *err, last = done.stderr.splitlines()
    status, peak = map(int, last.split())
    return status, done.stdout, err, peak, time.monotonic() - begin


def with_external_weights(path, size):
    """A model whose weights are in a sparse file of this many bytes."""
    made = models.compress([40, 100])
    big = TensorProto(name="big", data_type=TensorProto.FLOAT16, dims=[size // 2])
    big.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.bin"), ("length", size)):
        big.external_data.add(key=key, value=str(value))
    made.graph.initializer.append(big)
    onnx.save(made, path)
    with Path("weights.bin").open("wb") as file:
        file.truncate(size)


def test_external_weights_of_3_gib_are_checked_in_seconds_without_reading_them():
    with_external_weights("m.onnx", 3 * 2**30)
    status, out, err, peak, seconds = measured("m.onnx")
    assert (status, out, err) == (0, "m.onnx: ok (1 NSA node checked)\n", [])
    assert peak < 300
    assert seconds < 60  # alone, it is one: the machine may be busy with others


@pytest.mark.parametrize("size", [2**31, 10 * 2**30])
def test_a_file_that_no_model_can_be_is_refused_unread(size):
    with Path("huge.onnx").open("wb") as file:
        file.truncate(size)
    status, out, err, peak, seconds = measured("huge.onnx", good("g.onnx"))
    assert (status, checked(out)) == (2, ["g.onnx"])
    assert err == [f"nsa-onnx: huge.onnx: {size} bytes, a model is at most {2**31 - 1}"]
    assert peak < 300
    assert seconds < 60


def test_devices_and_pipes_do_not_hold_it_up():
    os.mkfifo("pipe.onnx")
    status, out, err, peak, _ = measured("/dev/zero", "pipe.onnx", good("g.onnx"))
    assert (status, checked(out)) == (2, ["g.onnx"])
    assert err == ["nsa-onnx: /dev/zero: not a file", "nsa-onnx: pipe.onnx: not a file"]
    assert peak < 300


def test_a_closed_stderr_is_no_error():
    command = f"{sys.executable} -m nsa_onnx.cli check {broken('a.onnx')} {good('g.onnx')} 2>&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert checked(done.stdout) == ["g.onnx"]


# --------------------------------------------------------------------------------------------------
# The guide

GUIDE = (Path(__file__).parents[1] / "docs/check.md").read_text()


def test_the_guide_names_every_option_format_and_input_of_the_action(capsys):
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help", "--list-rules"}
    inputs = yaml.safe_load((Path(__file__).parents[1] / "action.yml").read_text())["inputs"]
    missing = [name for name in options if name not in GUIDE]
    missing += [name for name in (*FORMATS, *inputs, *TARGETS) if f"`{name}`" not in GUIDE]
    assert missing == []


def test_what_the_guide_shows_is_what_is_printed(capsys):
    shown = re.findall(r"```text\n(.*?)```", GUIDE, re.S)
    assert run(capsys, bad("bad.onnx"))[1] == shown[0]
    good("good.onnx")
    assert run(capsys, "good.onnx", "--run")[1].startswith(shown[1])


def test_the_guides_yaml_is_yaml_and_its_hook_and_inputs_are_there():
    action, gitlab, hook = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", GUIDE, re.S))
    (used,) = [step for step in action["jobs"]["models"]["steps"] if "nsa_onnx" in step["uses"]]
    root = Path(__file__).parents[1]
    assert used["with"].keys() <= yaml.safe_load((root / "action.yml").read_text())["inputs"].keys()
    (named,) = hook["repos"][0]["hooks"]
    assert named["id"] == yaml.safe_load((root / ".pre-commit-hooks.yaml").read_text())[0]["id"]
    assert gitlab["models"]["artifacts"]["reports"]["junit"] == "nsa.xml"


def test_the_guides_test_runs(pytester):
    (example,) = re.findall(r"```python\n(from nsa_onnx.pytest_plugin.*?)```", GUIDE, re.S)
    assert 'target="cann", min_nodes=1' in example
    pytester.makepyfile(
        "import numpy as np, onnx, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import nsa_models as models\n"
        + example
        + "feeds = {'x': np.ones((100, 4, 16), np.float16), 'w': np.ones((32, 4), np.float16)}\n"
        "def export_my_model(folder):\n"
        "    onnx.save(models.compress([40, 100]), folder / 'm.onnx')\n"
        "    return folder / 'm.onnx'\n"
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
