"""Writes files in one step: each is there completely or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from onnx import ModelProto, TensorProto

from .errors import NotWritableError as NotWritableError
from .walk import subgraphs_of


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


def temporary_beside(target: Path) -> Path:
    """A name that nobody has: neither another thread, nor a write that was killed with our process number."""
    return target.with_name(f".nsa-onnx-{secrets.token_hex(8)}")


def _replace(target: Path, data: bytes) -> None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        target.write_bytes(data)  # of a folder, the error says what it is
        return
    target = target.resolve()
    temporary = temporary_beside(target)
    with temporary.open("xb") as file:
        try:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink()
            raise


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
