"""The GitHub action and the pre-commit hook: valid by their formats' schemas, and their commands work.

The action's steps are run as GitHub's runner does it: inputs and contexts put into `env:`, the script given to bash.
Only pip is replaced: by a script that notes what it is asked to install and links the command that is installed here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nsa_models as models
import onnx
import pytest
import yaml
from jsonschema import ValidationError
from stored_schemas import validated

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
STEPS = ACTION["runs"]["steps"]

PYTHON = """#!/bin/sh
# Stands for: python3 -m venv FOLDER
mkdir -p "$3/bin"
cp pip "$3/bin/pip"
"""
PIP = f"""#!/bin/sh
printf '%s\\n' "$@" > pip.log
printf '#!/bin/sh\\nexec {shlex.quote(sys.executable)} -m nsa_onnx.cli "$@"\\n' > "$RUNNER_TEMP/nsa-onnx/bin/nsa-onnx"
chmod +x "$RUNNER_TEMP/nsa-onnx/bin/nsa-onnx"
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with models, and a runner's folders beside it."""
    work = tmp_path / "work"
    (work / "models").mkdir(parents=True)
    (tmp_path / "temp dir").mkdir()
    for name, text in (("python", PYTHON), ("pip", PIP)):
        (work / name).write_text(text)
        (work / name).chmod(0o755)
    onnx.save(models.compress([40, 100]), work / "models/good.onnx")
    onnx.save(models.compress([50, 40]), work / "bad.onnx")
    monkeypatch.chdir(work)
    return work


def filled(text, inputs, checkout):
    """Expressions of the form that the action uses, with their values."""
    contexts = {f"inputs.{name}": value for name, value in inputs.items()} | {"github.action_path": str(ROOT)}
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: contexts[found.group(1)], text)


def run_action(checkout, **given):
    """Exit status of the step that failed (or 0), all output, and the action's outputs."""
    inputs = {name: value.get("default", "") for name, value in ACTION["inputs"].items()}
    inputs |= {"python": "./python"} | {name.replace("_", "-"): value for name, value in given.items()}
    assert inputs.keys() == ACTION["inputs"].keys()
    output = checkout.parent / "output"
    output.write_text("")
    shown = ""
    for step in STEPS:
        assert step["shell"] == "bash"
        environment = {
            **os.environ,
            "RUNNER_TEMP": str(checkout.parent / "temp dir"),
            "GITHUB_OUTPUT": str(output),
            **{name: filled(value, inputs, checkout) for name, value in step.get("env", {}).items()},
        }
        script = checkout.parent / "script.sh"
        script.write_text(step["run"])
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        shown += done.stdout + done.stderr
        if done.returncode:
            break
    return done.returncode, shown, dict(line.split("=", 1) for line in output.read_text().splitlines())


# --------------------------------------------------------------------------------------------------
# The action


def test_both_files_are_valid_by_their_schemas():
    validated(ACTION, "github-action.json")
    validated(HOOKS, "pre-commit-hooks.json")
    for data, name in ((ACTION | {"runs": {"using": "compost"}}, "github-action"), ([{"id": "x"}], "pre-commit-hooks")):
        with pytest.raises(ValidationError):
            validated(data, f"{name}.json")


def test_no_input_is_put_into_a_script():
    assert all("${{" not in step["run"] for step in STEPS)
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(STEPS)))
    assert used == set(ACTION["inputs"])


def test_a_clean_repository_passes(checkout):
    status, shown, outputs = run_action(checkout, paths="models")
    assert (status, outputs) == (0, {"status": "0"})
    assert shown == "1 model: 1 ok, 0 errors, 0 warnings (1 NSA node checked)\n"


def test_findings_are_annotations_and_fail_the_step(checkout):
    status, shown, outputs = run_action(checkout)  # of the whole repository
    assert (status, outputs) == (1, {"status": "1"})
    assert "::error title=NSA015 nsa,file=bad.onnx::NsaCompress 'nsa': actual_seq_len[1] must be" in shown


def test_reports_are_written_even_when_the_step_fails(checkout):
    status, _, _ = run_action(checkout, sarif="out.sarif", junit="out.xml")
    assert status == 1
    assert json.loads(Path("out.sarif").read_text())["runs"][0]["results"][0]["ruleId"] == "NSA015"
    assert "<failure" in Path("out.xml").read_text()


def test_every_input_is_heeded(checkout):
    Path("empty.onnx").write_bytes(b"no model")
    assert run_action(checkout, paths="empty.onnx")[2] == {"status": "2"}
    onnx.save(models.compress([31], x=(31, 4, 16), y=(0, 4, 16)), "warning.onnx")  # no window in it
    assert run_action(checkout, paths="warning.onnx")[0] == 1
    assert run_action(checkout, paths="warning.onnx", fail_on="error")[0] == 0
    wide = models.infer(x=("P", 128, 4, 16), w=(112, 4), compress_block_size=112, page_block_size=128)
    onnx.save(wide, "wide.onnx")
    assert run_action(checkout, paths="wide.onnx")[0] == 0
    assert run_action(checkout, paths="wide.onnx", target="cann-aclnn")[0] == 1
    assert run_action(checkout, paths="models", min_nodes="1")[0] == 0
    assert run_action(checkout, paths="models", min_nodes="2")[0] == 1
    assert run_action(checkout, paths="models", run="true", junit="out.xml")[0] == 0
    assert "largest difference 0 ulp" in Path("out.xml").read_text()


def test_paths_are_lines_patterns_too(checkout):
    onnx.save(models.compress([50, 40]), "with space.onnx")
    _, shown, _ = run_action(checkout, paths="with space.onnx\n\nmod*/*.onnx\n")
    assert "file=with space.onnx" in shown
    assert "2 models: 1 ok, 1 error" in shown


@pytest.mark.parametrize(
    "hostile", ["$(touch owned)", '"; touch owned; "', "x); touch owned; (x", "x --format=text=owned"]
)
def test_no_input_is_run_as_a_command(checkout, hostile):
    names = ("paths", "target", "fail_on", "min_nodes", "sarif", "junit", "run")
    run_action(checkout, **dict.fromkeys(names, hostile))
    assert not Path("owned").exists()


def test_a_path_is_no_option(checkout):
    status, shown, _ = run_action(checkout, paths="--format=text=owned")
    assert status == 2
    assert "nsa-onnx: --format=text=owned: No such file or directory" in shown
    assert not Path("owned").exists()


@pytest.mark.parametrize(("run", "wanted"), [("false", str(ROOT)), ("true", f"{ROOT}[ort]")])
def test_it_installs_the_actions_own_checkout(checkout, run, wanted):
    run_action(checkout, paths="models", run=run)
    assert Path("pip.log").read_text().split("\n")[0] == "install"
    assert Path("pip.log").read_text().splitlines()[-1] == wanted


# --------------------------------------------------------------------------------------------------
# The hook


def run_hook(*files, args=None):
    """As pre-commit does it: the entry, the arguments, the names of changed files."""
    (hook,) = HOOKS
    program, *entry = shlex.split(hook["entry"])
    assert program == "nsa-onnx"
    command = [sys.executable, "-m", "nsa_onnx.cli", *entry, *(hook["args"] if args is None else args), *files]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_hook_refuses_a_wrong_model(checkout):
    assert run_hook("models/good.onnx").returncode == 0
    done = run_hook("models/good.onnx", "bad.onnx")
    assert done.returncode == 1
    assert "error NSA015" in done.stdout
    assert run_hook("models/good.onnx", args=["--min-nodes=1", "--"]).returncode == 0
    assert run_hook("models/good.onnx", args=["--min-nodes=2", "--"]).returncode == 1
    assert run_hook("bad.onnx", args=["--format=github", "--"]).stdout.startswith("::error")


def test_the_hook_takes_no_file_for_an_option(checkout):
    onnx.save(models.compress([50, 40]), "--format=text=owned.onnx")
    assert run_hook("--format=text=owned.onnx").returncode == 1
    assert not Path("text=owned.onnx").exists()


def test_the_hook_looks_at_models_only():
    (hook,) = HOOKS
    assert re.search(hook["files"], "a/b.onnx")
    assert not re.search(hook["files"], "a/b.onnx.md")


def test_the_command_of_both_is_one_that_the_package_installs():
    assert 'nsa-onnx = "nsa_onnx.cli:main"' in (ROOT / "pyproject.toml").read_text()
    assert "bin/nsa-onnx" in STEPS[1]["run"]
