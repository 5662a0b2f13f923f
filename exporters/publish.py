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

from nsa_onnx.graph.writing import external_tensors, lock

_HASH_LENGTH = 16


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A file of the same name in a directory of its own, on the same file system, which is gone afterwards."""
    prefix = f".{path.name}.draft-"
    with _locked(path.parent) as alone:
        if alone:
            _remove_stale(path.parent, prefix)
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
        in_use = lock(directory, wait=False)
    try:
        yield directory / path.name
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if in_use is not None:
            os.close(in_use)


def _remove_stale(folder: Path, prefix: str) -> None:
    """Remove drafts whose process is gone: nobody holds their lock."""
    for draft in folder.iterdir():
        if draft.name.startswith(prefix) and draft.is_dir() and (held := lock(draft, wait=False)) is not None:
            shutil.rmtree(draft, ignore_errors=True)
            os.close(held)


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
    held = lock(folder, wait=True)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)
