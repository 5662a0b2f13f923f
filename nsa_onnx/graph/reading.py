"""Reads a model file that is not trusted, without its external data."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

import onnx
import onnx.serialization
from onnx import ModelProto

from .errors import UnreadableModelError as UnreadableModelError
from .wire import MAX_UNSCANNED_BYTES, WireError, scan

# Protobuf cannot hold more in one message, so a larger file is no model.
MAX_FILE_BYTES = 2**31 - 1


def load(path: Path) -> ModelProto:
    """The model without its external data.

    Raises:
        UnreadableModelError: no such file, not a regular file, too large, or not an ONNX model.

    A valid model takes twice its file while it is read, weights inside the file included; one whose messages would
    take much more is refused before.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise UnreadableModelError(f"{path}: not a file")
        if _is_ort(path):
            raise UnreadableModelError(f"{path}: {_ORT}")
        if info.st_size > MAX_FILE_BYTES:
            raise UnreadableModelError(f"{path}: {info.st_size} bytes, a model is at most {MAX_FILE_BYTES}")
        if info.st_size > MAX_UNSCANNED_BYTES:
            _require_frugal(path, info.st_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some formats are "experimental", which is none of the user's business
            return onnx.load(path, load_external_data=False)
    except UnreadableModelError:
        raise
    except OSError as error:
        raise UnreadableModelError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # onnx has a parser per file type, each with exceptions of its own
        raise UnreadableModelError(f"{path}: not an ONNX model ({type(error).__name__})") from error


def load_graph(path: Path) -> ModelProto:
    """The same; UnreadableModelError as well for a model without a graph."""
    model = load(path)
    if not model.HasField("graph"):
        raise UnreadableModelError(f"{path}: the model has no graph")
    return model


_ORT = (
    "a model in onnxruntime's own format (.ort), which is made from an ONNX file for one version and machine: "
    "check, or convert, the ONNX file"
)


def _is_ort(path: Path) -> bool:
    """FlatBuffers' identifier of onnxruntime's format, whatever the file is called."""
    with path.open("rb", buffering=0) as file:
        return file.read(8)[4:] == b"ORTM"


def _require_frugal(path: Path, size: int) -> None:
    """Refuse a large file that is no model, or takes many times its size in memory."""
    kind = onnx.serialization.registry.get_format_from_file_extension(path.suffix)
    if kind not in (None, "protobuf"):
        raise UnreadableModelError(f"{path}: {size} bytes of text, a model as text is at most {MAX_UNSCANNED_BYTES}")
    with path.open("rb", buffering=0) as file:
        try:
            scan(file, size)
        except WireError as error:
            raise UnreadableModelError(f"{path}: not an ONNX model ({error})") from error
