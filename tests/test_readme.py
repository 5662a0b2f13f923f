"""The README's code runs, and its links, folders and make targets exist."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_ten_lines_run_as_written(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "compress.onnx").is_file()


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
