"""The folder that `make build` compiles the library in, for tests that build there: one at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def library_build() -> Iterator[Path]:
    """Tests run in several processes, and neither CMake nor ninja keeps others out of a folder."""
    folders = list((ROOT / "build").glob("py3-none-*/CMakeCache.txt"))
    assert len(folders) == 1, f"run `make clean build`: {folders}"
    with open(folders[0].with_name(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folders[0].parent
