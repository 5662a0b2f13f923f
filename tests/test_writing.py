"""Files are written completely or not at all, by several writers at once and after one that was killed."""

from __future__ import annotations

import argparse
import errno
import fcntl
import io
import os
import resource
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from pathlib import Path

import nsa_models as models
import onnx
import pytest

from nsa_onnx import cli
from nsa_onnx.checker.formats import FORMATS
from nsa_onnx.graph.writing import replace_file, temporary_beside


def test_threads_write_into_one_folder_at_once(tmp_path):
    contents = {tmp_path / f"{number % 4}.bin": bytes([number]) * 2**20 for number in range(4)}
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(replace_file, target, data) for _ in range(8) for target, data in contents.items()]
        for job in jobs:
            job.result()
    assert {target: target.read_bytes() for target in tmp_path.iterdir()} == contents


LEFT = ".nsa-onnx-0123456789abcdef"  # what a killed writer leaves


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_writer_left_goes_with_the_next_file(tmp_path):
    (tmp_path / LEFT).write_bytes(b"half")
    replace_file(tmp_path / "m.bin", b"new")
    assert names(tmp_path) == ["m.bin"]


def test_what_is_still_written_or_not_ours_stays(tmp_path):
    """In a container every process may have number 1: numbers say nothing."""
    for name in (".nsa-onnx-1", f"{LEFT}0", "nsa-onnx-0123456789abcdef", ".nsa-onnx-0123456789ABCDEF"):
        (tmp_path / name).write_bytes(b"not ours")
    (tmp_path / LEFT).mkdir()
    (tmp_path / LEFT.replace("0", "1")).symlink_to("m.bin")
    kept = names(tmp_path)
    with temporary_beside(tmp_path / "m.bin") as (path, file):
        replace_file(tmp_path / "other.bin", b"new")
        file.write(b"late")
        file.flush()
        assert path.read_bytes() == b"late"
    assert names(tmp_path) == sorted([*kept, "other.bin"])


def test_a_file_that_another_process_takes_for_a_left_one_is_made_again(tmp_path, monkeypatch):
    real, made, held = Path.open, [], []

    def taken_at_once(path, mode="r", *rest, **more):
        file = real(path, mode, *rest, **more)
        if mode == "xb":
            made.append(path)
            if len(made) == 2:  # the other one is about to remove it
                held.append(os.open(path, os.O_RDONLY))
                fcntl.flock(held[0], fcntl.LOCK_EX)
            if len(made) < 3:
                path.unlink()
        return file

    monkeypatch.setattr(Path, "open", taken_at_once)
    replace_file(tmp_path / "m.bin", b"new")
    os.close(held[0])
    assert len(made) == 3
    assert (tmp_path / "m.bin").read_bytes() == b"new"
    assert names(tmp_path) == ["m.bin"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_to_and_nothing_is_removed(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / LEFT).write_bytes(b"who knows whose")
    replace_file(tmp_path / "m.bin", b"new")
    assert names(tmp_path) == [LEFT, "m.bin"]


def test_processes_write_one_file_at_once(tmp_path):
    """None takes what another one writes for left over."""
    target, size = tmp_path / "m.bin", 100_000

    def write_often(char):
        for _ in range(100):
            replace_file(target, char * size)

    children = [forked(lambda char=char: write_often(char), wait=False) for char in (b"a", b"b", b"c")]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert target.read_bytes() in (b"a" * size, b"b" * size, b"c" * size)
    assert names(tmp_path) == ["m.bin"]


def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    target = tmp_path / "m.bin"
    old, new = b"o" * 3_000_000, b"n" * 3_000_000

    def write_often():
        while True:
            replace_file(target, new)
            replace_file(target, old)

    for round_ in range(20):
        target.write_bytes(old)
        child = forked(write_often, wait=False)
        time.sleep(0.002 + 0.0037 * round_)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
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


def forked(work, wait=True):
    """Do something in a fork of this process: its exit code, 0 for None; or its number, if it is not waited for."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = work() or 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if wait else child


def killed_before_step(count, work):
    """Do something, and be killed before the count-th call of a function of the system from `replace_file` on."""
    left = None

    def step(frame, event, function):
        nonlocal left
        if event == "call" and frame.f_code is replace_file.__code__:
            left = count
        if event != "c_call" or left is None:
            return
        if function.__module__ in ("posix", "fcntl", "_io") or type(function.__self__).__module__ == "_io":
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.setprofile(step)
    try:
        return work()
    finally:
        sys.setprofile(None)


@WRITERS
def test_killed_before_any_step_a_command_leaves_the_old_file_or_the_new_one(line, folder):
    target = folder / "out"
    assert forked(lambda: write(line, "out")) == 0
    new, seen, left = target.read_bytes(), [], 0
    for count in range(100):
        target.write_bytes(b"old")
        code = forked(lambda count=count: killed_before_step(count, lambda: write(line, "out")))
        seen.append(target.read_bytes())
        if code == 0:
            break
        assert code == -signal.SIGKILL
        left += len(names(folder)) > 2
    assert seen == [b"old"] * seen.count(b"old") + [new] * seen.count(new)  # there is one moment
    assert seen.count(b"old") > 8
    assert seen.count(new) >= 2
    assert left >= 4
    assert names(folder) == ["m.onnx", "out"], "what the killed processes have left is gone"


def fails_in_words(line):
    with redirect_stderr(io.StringIO()) as said:
        return write(line, "out") != 2 or said.getvalue() != "nsa-onnx: out: File too large\n"


def limited(size, action, work):
    """Do something while no file can grow beyond a size; what happens to the process that tries is the action."""
    signal.signal(signal.SIGXFSZ, action)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return work()


@WRITERS
@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_stopped_in_the_middle_of_a_file_the_old_one_stays(part, line, folder):
    """The disk is full, or the process is killed, when that much of the file is written."""
    target = folder / "out"
    assert forked(lambda: write(line, "out")) == 0
    size = int(part * target.stat().st_size)
    target.write_bytes(b"old")
    assert forked(lambda: limited(size, signal.SIG_IGN, lambda: fails_in_words(line))) == 0
    assert names(folder) == ["m.onnx", "out"]
    assert forked(lambda: limited(size, signal.SIG_DFL, lambda: write(line, "out"))) == -signal.SIGXFSZ
    assert target.read_bytes() == b"old"
    (left,) = set(names(folder)) - {"m.onnx", "out"}
    assert (folder / left).stat().st_size == size
    assert forked(lambda: write(line, "out")) == 0
    assert names(folder) == ["m.onnx", "out"]


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
