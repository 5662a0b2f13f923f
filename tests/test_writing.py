"""Files are written completely or not at all, by several writers at once and after one that was killed."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nsa_models as models
import onnx
import pytest

from nsa_onnx import cli
from nsa_onnx.checker.formats import FORMATS
from nsa_onnx.graph.writing import replace_file


def test_threads_write_into_one_folder_at_once(tmp_path):
    contents = {tmp_path / f"{number % 4}.bin": bytes([number]) * 2**20 for number in range(4)}
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(replace_file, target, data) for _ in range(8) for target, data in contents.items()]
        for job in jobs:
            job.result()
    assert {target: target.read_bytes() for target in tmp_path.iterdir()} == contents


def test_what_a_killed_writer_left_is_in_nobodys_way(tmp_path):
    """In a container every process may have number 1."""
    (tmp_path / f".nsa-onnx-{os.getpid()}").write_bytes(b"left")
    replace_file(tmp_path / "m.bin", b"new")
    assert (tmp_path / "m.bin").read_bytes() == b"new"


def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    target = tmp_path / "m.bin"
    old, new = b"o" * 3_000_000, b"n" * 3_000_000
    code = (
        "import sys; from pathlib import Path; from nsa_onnx.graph.writing import replace_file\n"
        "print('go', flush=True)\n"
        f"while True:\n    for char in (b'n', b'o'): replace_file(Path(sys.argv[1]), char * {len(new)})"
    )
    target.write_bytes(old)
    for round_ in range(6):
        child = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"go\n"
        time.sleep(0.01 + 0.013 * round_)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert target.read_bytes() in (old, new)


def test_a_new_file_has_the_permissions_that_the_user_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "m.bin", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "m.bin").stat().st_mode & 0o777 == 0o640


def writers():
    """A command line, its output left out, for each command and format that writes a file."""
    parser = cli._parser()
    (actions,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in actions.choices.items():
        outputs = [action for action in command._actions if action.metavar == "OUT"]
        needed = [action for action in command._actions if action.required and action.choices]
        more = [word for action in needed for word in (action.option_strings[0], next(iter(action.choices)))]
        yield from ([name, "m.onnx", action.option_strings[0], "{}", *more] for action in outputs)
    yield from (["check", "m.onnx", "--format", f"{name}={{}}"] for name in FORMATS)


WRITERS = pytest.mark.parametrize("line", list(writers()), ids=" ".join)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(models.compress([40, 100]), "m.onnx")
    return tmp_path


def write(line, target):
    return cli.main([part.replace("{}", target) for part in line])


@WRITERS
def test_a_full_disk_leaves_the_old_file_and_nothing_else(line, folder, monkeypatch, capsys):
    (folder / "out").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert write(line, "out") == 2
    assert capsys.readouterr().err == "nsa-onnx: out: No space left on device\n"
    assert (folder / "out").read_bytes() == b"old"
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "out"]


@WRITERS
def test_a_folder_that_takes_no_file_is_named_as_the_user_wrote_it(line, folder, monkeypatch, capsys):
    """A read-only folder; root may write into that, too, so the refusal is made here."""
    real = Path.open

    def refuse(path, mode="r", *rest, **more):
        if "x" in mode:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", refuse)
    assert write(line, "out") == 2
    assert capsys.readouterr().err == "nsa-onnx: out: Permission denied\n"
    assert [path.name for path in folder.iterdir()] == ["m.onnx"]


@WRITERS
def test_a_link_stays_one_and_permissions_are_kept(line, folder):
    (folder / "real").write_bytes(b"old")
    (folder / "real").chmod(0o640)
    (folder / "out").symlink_to("real")
    assert write(line, "out") == 0
    assert (folder / "out").is_symlink()
    assert (folder / "real").read_bytes() != b"old"
    assert (folder / "real").stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "out", "real"]
