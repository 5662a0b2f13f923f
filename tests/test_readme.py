"""The README's code runs, and its links, folders and make targets exist."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_ten_lines_run_as_written_and_print_what_is_shown(tmp_path):
    ((code, shown),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")
    assert (tmp_path / "compress.onnx").is_file()


@pytest.mark.parametrize(("name", "page"), [("overview", "README.md"), ("layer", "docs/from-the-paper.md")])
def test_pictures_are_what_their_scripts_draw(name, page):
    script = runpy.run_path(str(ROOT / "docs" / f"generate_{name}.py"))
    assert script["TARGET"].read_text("utf-8") == script["svg"](), f"run python docs/generate_{name}.py"
    assert f"images/{name}.svg)" in (ROOT / page).read_text()
    ElementTree.fromstring(script["svg"]())


def test_links_and_folders_of_the_readme_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    folders = re.findall(r"`([\w/]+/)`", README)
    assert links and folders
    assert [path for path in (*links, *folders) if not (ROOT / path).exists()] == []


def test_the_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= targets
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
