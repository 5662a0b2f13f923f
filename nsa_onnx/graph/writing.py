"""Writes files in one step: each is there completely or not at all.

A file is written under another name first. A process that is killed leaves that behind; whoever writes into the folder
next takes it away. What is still written is locked, so it stays. Without locks, as on some network file systems, what
is left stays, too.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from onnx import ModelProto, TensorProto

from .errors import NotWritableError as NotWritableError
from .walk import subgraphs_of

try:
    import fcntl
except ImportError:  # no locks there
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.nsa-onnx-[0-9a-f]{16}")


def write_model(model: ModelProto, source: Path, target: Path) -> None:
    """Write a model made from the file `source`: all of it or nothing, even where it is the input.

    Raises:
        NotWritableError: its weights are in files that the new place would not find, the new place is one of them, or
            it is beyond 2 GiB.
        OSError: with the file's name.
    """
    weights = list(external_tensors(model))
    _require_none_of(weights, source, target)
    if weights and source.parent.resolve() != target.parent.resolve():
        raise NotWritableError(f"{target}: the weights of {source} lie beside it: write the output to that folder")
    try:
        data = model.SerializeToString()
    except Exception as error:  # protobuf's own class, beyond 2 GiB
        raise NotWritableError(f"{target}: does not fit into one file ({type(error).__name__})") from error
    replace_file(target, data)


def require_no_weights(model: ModelProto, source: Path, target: Path) -> None:
    """Refuse a target that holds weights of the model, which has been read from `source`.

    Raises:
        NotWritableError: it does.
    """
    _require_none_of(external_tensors(model), source, target)


def _require_none_of(weights: Iterable[TensorProto], source: Path, target: Path) -> None:
    for tensor in weights:
        for entry in tensor.external_data:
            if entry.key == "location" and _same_file(source.parent / entry.value, target):
                raise NotWritableError(f"{target}: holds weights of {source}: write to another file")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # one of them does not exist, or cannot: the location is the model's word
        return False


def replace_file(target: Path, data: bytes) -> None:
    """Give a file new contents in one step; it keeps its permissions, and a link stays one.

    What is no file, say /dev/null or a pipe, is written to: root could replace it.

    Raises:
        OSError: with the file's name.
    """
    try:
        _replace(target, data)
    except (OSError, RuntimeError) as error:  # the latter for a link that leads to itself
        raise OSError(getattr(error, "errno", None), getattr(error, "strerror", str(error)), str(target)) from error


@contextmanager
def temporary_beside(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file in the target's folder, open for writing. It is gone afterwards, unless it has got another name."""
    _remove_left(target.parent)
    while True:
        # A name that nobody has: neither another thread, nor a process of our number in another container.
        temporary = target.with_name(f".nsa-onnx-{secrets.token_hex(8)}")
        with temporary.open("xb") as file:
            if not _keep(file):
                continue
            try:
                yield temporary, file
            finally:
                temporary.unlink(missing_ok=True)
            return


def _keep(file: BinaryIO) -> bool:
    """Lock a new file until it is closed. False if another process took it for one that was left, just before."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks there: nobody removes anything
        return True
    return os.fstat(file.fileno()).st_nlink > 0


def _remove_left(folder: Path) -> None:
    """Remove the files whose writers were killed: nobody holds their locks."""
    with suppress(OSError):  # we may not list the folder
        for entry in os.scandir(folder):
            if not _TEMPORARY.fullmatch(entry.name):
                continue
            with suppress(OSError):  # another user's, or another process removes it
                if entry.is_file(follow_symlinks=False) and (held := lock(Path(entry.path), wait=False)) is not None:
                    try:
                        os.unlink(entry.path)
                    finally:
                        os.close(held)


def lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of a file or folder until it is closed, or its process ends.

    None if another process holds it, or the file system has no locks.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _replace(target: Path, data: bytes) -> None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        target.write_bytes(data)  # of a folder, the error says what it is
        return
    target = target.resolve()
    with temporary_beside(target) as (temporary, file):
        if mode is not None:
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        temporary.replace(target)


def external_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Initializers, and values of nodes' attributes, that are in files of their own."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        tensors = [tensor for graph in graphs for tensor in graph.initializer]
        nodes.extend(node for graph in graphs for node in graph.node)
        graphs = []
        for attribute in (attribute for node in nodes for attribute in node.attribute):
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            else:
                graphs.extend(subgraphs_of(attribute))
        nodes = []
        yield from (tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL)
