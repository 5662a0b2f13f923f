"""Puts an exported file in its place so that a reader finds the old model or the new one, each with its own weights.

External weights are named after their content, ``<model>.<hash>.data``, so no weights are ever overwritten. They take
their place first, then the model in one step, then the old model's weights are removed. A process that is killed at
any moment leaves a complete model, and at worst extra files, which the next export to the same path removes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from nsa_onnx.graph.writing import external_tensors

try:
    import fcntl
except ImportError:  # no locks there: what a killed process leaves stays
    fcntl = None  # type: ignore[assignment]

_HASH_LENGTH = 16


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A file of the same name in a directory of its own, on the same file system, which is gone afterwards."""
    prefix = f".{path.name}.draft-"
    with _locked(path.parent) as alone:
        if alone:
            _remove_stale(path.parent, prefix)
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
        in_use = _lock(directory, wait=False)
    try:
        yield directory / path.name
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if in_use is not None:
            os.close(in_use)


def _remove_stale(folder: Path, prefix: str) -> None:
    """Remove drafts whose process is gone: nobody holds their lock."""
    for draft in folder.iterdir():
        if draft.name.startswith(prefix) and draft.is_dir() and (lock := _lock(draft, wait=False)) is not None:
            shutil.rmtree(draft, ignore_errors=True)
            os.close(lock)


def name_weights(draft: Path, weights: Path) -> None:
    """Call external weights after their content, in the draft as well. Both lie in the draft's directory."""
    digest = hashlib.sha256()
    with weights.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    name = f"{draft.name}.{digest.hexdigest()[:_HASH_LENGTH]}.data"
    os.replace(weights, draft.parent / name)
    model = onnx.load(draft, load_external_data=False)
    for tensor in external_tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    onnx.save(model, draft)


def publish(draft: Path, path: Path) -> None:
    """Move the draft, and the weights that lie beside it, into place."""
    path = path.resolve()  # a link stays one
    weights = [file for file in draft.parent.iterdir() if file != draft]
    with _locked(path.parent) as alone:
        for file in weights:
            _flush(file)
            os.replace(file, path.parent / file.name)
        _flush(draft)
        if path.exists():
            shutil.copymode(path, draft)
        os.replace(draft, path)
        if not alone:
            return
        old = re.compile(re.escape(path.name) + rf"\.[0-9a-f]{{{_HASH_LENGTH}}}\.data")
        for file in path.parent.iterdir():
            if old.fullmatch(file.name) and file.name not in {new.name for new in weights}:
                file.unlink(missing_ok=True)


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether we are alone in the folder: other exports wait. False where the file system has no locks."""
    lock = _lock(folder, wait=True)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the folder's lock until it is closed, or its process ends."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
