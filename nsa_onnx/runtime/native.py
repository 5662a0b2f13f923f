"""The native library's C interface (ort_ext/c_api.h) for Python: addresses and shapes in, errors out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .. import spec

LIBRARY_NAME = "libnsa_onnx_ort.so"
# Environment variable that forces an instruction set; the library reads it when its kernels are first asked for.
TARGET_VARIABLE = "NSA_ONNX_CPU_TARGET"
_ERROR_SIZE = 512


class Buffer(NamedTuple):
    """A dense, row-major, aligned array in host memory that outlives the call."""

    address: int
    shape: tuple[int, ...]


class _Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("shape", ctypes.POINTER(ctypes.c_int64)), ("rank", ctypes.c_int64))


def library_path() -> Path:
    """Where the native library lies.

    Asked of importlib.resources because in an editable install the library and the Python sources are
    in different folders.

    Raises:
        RuntimeError: the package was imported without having been built.
    """
    path = Path(str(resources.files("nsa_onnx") / LIBRARY_NAME))
    if not path.is_file():
        raise RuntimeError(
            f"{LIBRARY_NAME} is not at {path}: nsa_onnx was imported from a source tree that is not built; "
            "run `pip install .` (or `make build`) first"
        )
    return path


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    array, text, integer = ctypes.POINTER(_Array), ctypes.c_char_p, ctypes.c_int64
    lengths = ctypes.POINTER(ctypes.c_int64)
    library.nsa_compress.argtypes = [
        *(ctypes.c_int, array, array, integer, integer, lengths, integer, array, integer, text, integer)
    ]
    library.nsa_compress_infer.argtypes = [
        *(ctypes.c_int, array, array, array, integer, integer, integer, array, lengths, integer, array),
        *(integer, text, integer),
    ]
    library.nsa_set_cpu_target.argtypes = [text, text, integer]
    for name in ("nsa_cpu_target", "nsa_cpu_targets", "nsa_ascend_backends", "nsa_version"):
        getattr(library, name).restype = text
    return library


def _call(name: str, *arguments: object) -> None:
    error = ctypes.create_string_buffer(_ERROR_SIZE)
    if getattr(_library(), name)(*arguments, error, _ERROR_SIZE):
        raise RuntimeError(error.value.decode(errors="replace"))


def _array(buffer: Buffer) -> Any:
    shape = (ctypes.c_int64 * len(buffer.shape))(*buffer.shape)
    return ctypes.byref(_Array(buffer.address, shape, len(buffer.shape)))


Lengths = Sequence[int] | npt.NDArray[np.int64]


def _lengths(actual_seq_len: Lengths) -> tuple[Any, int]:
    values = np.require(actual_seq_len, np.int64, ("C", "ALIGNED"))
    return values.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)), values.size


def default_threads() -> int:
    """As many as the process may use."""
    return len(os.sched_getaffinity(0))


def compress(
    dtype: str,
    input: Buffer,
    weight: Buffer,
    compress_block_size: int,
    compress_stride: int,
    actual_seq_len: Lengths,
    output: Buffer,
    threads: int,
) -> None:
    """NsaCompress into ``output``, which must have T' rows. RuntimeError as `nsa_onnx.nsa_compress`."""
    lengths, count = _lengths(actual_seq_len)
    _call(
        "nsa_compress",
        spec.DTYPES.index(dtype),
        _array(input),
        _array(weight),
        compress_block_size,
        compress_stride,
        lengths,
        count,
        _array(output),
        threads,
    )


def compress_infer(
    dtype: str,
    input: Buffer,
    weight: Buffer,
    slot_mapping: Buffer,
    compress_block_size: int,
    compress_stride: int,
    page_block_size: int,
    block_table: Buffer | None,
    actual_seq_len: Lengths,
    cache: Buffer,
    threads: int,
) -> None:
    """NsaCompressInfer on ``cache`` in place. RuntimeError as `nsa_onnx.nsa_compress_infer`."""
    lengths, count = _lengths(actual_seq_len)
    _call(
        "nsa_compress_infer",
        spec.DTYPES.index(dtype),
        _array(input),
        _array(weight),
        _array(slot_mapping),
        compress_block_size,
        compress_stride,
        page_block_size,
        None if block_table is None else _array(block_table),
        lengths,
        count,
        _array(cache),
        threads,
    )


def cpu_target() -> str:
    """Instruction set that the CPU kernels run on."""
    return str(_library().nsa_cpu_target().decode())


def cpu_targets() -> list[str]:
    """Instruction sets that this machine can run, best first, "scalar" last."""
    return str(_library().nsa_cpu_targets().decode()).split(",")


def ascend_backends() -> dict[str, str]:
    """Who could compute on an Ascend device here, best first: ``ok``, or what it lacks."""
    lines = _library().nsa_ascend_backends().decode(errors="replace").splitlines()
    return dict(line.split(": ", 1) for line in lines)


def version() -> str:
    return str(_library().nsa_version().decode())
