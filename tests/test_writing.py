"""Files are written whole or not at all, by several writers at once and after one that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

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
