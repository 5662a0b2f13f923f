"""The native library's C interface (ort_ext/c_api/) for Python: addresses and shapes in, errors out."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LIBRARY_NAME = "libnsa_onnx_ort.so"
# Environment variable that forces an instruction set; the library reads it when its kernels are first asked for.
TARGET_VARIABLE = "NSA_ONNX_CPU_TARGET"
_ERROR_SIZE = 512
_DTYPES = ("float16", "bfloat16")  # NSA_FLOAT16, NSA_BFLOAT16


class Buffer(NamedTuple):
    """A dense, row-major, aligned array in host memory that outlives the call."""

    address: int
    shape: tuple[int, ...]


class _Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("shape", ctypes.POINTER(ctypes.c_int64)), ("rank", ctypes.c_int64))


def library_path() -> Path:
    """Where the native library lies.

    In an editable install, and where a checkout is imported, the library and the Python sources are in different
    folders: all that the package is searched in are looked at.

    Raises:
        RuntimeError: it is missing; the message says what to do.
    """
    path = _expected_path()
    if not path.is_file():
        in_source_tree = (path.parents[1] / "CMakeLists.txt").is_file()
        raise RuntimeError(f"{LIBRARY_NAME} is not at {path}: {_NOT_BUILT if in_source_tree else _PURE}")
    return path


_NOT_BUILT = (
    "nsa_onnx was imported from a source tree that is not built; run `make build`, or `NSA_ONNX_FETCH=1 pip install .` "
    "with a C++17 compiler, first"
)
_PURE = (
    "this is the pure Python package, which is also what `pip install .` makes without a C++17 compiler or the headers "
    "that the build needs (NSA_ONNX_FETCH=1 downloads them). On Linux, install the platform's wheel "
    "(nsa_onnx-VERSION-py3-none-manylinux_....whl), or the sources: `NSA_ONNX_FETCH=1 pip install --force-reinstall "
    "--no-deps -C wheel.cmake=true .`, which says why where it cannot"
)


def _expected_path() -> Path:
    paths = [Path(folder, LIBRARY_NAME) for folder in sys.modules["nsa_onnx"].__path__]
    return next((path for path in paths if path.is_file()), paths[0])


@lru_cache(maxsize=1)
def is_here() -> bool:
    """Whether there is a library. Without one, eager calls are computed in NumPy."""
    return _expected_path().is_file()


def has(function: str) -> bool:
    """Whether there is a library, and it has this function."""
    return is_here() and hasattr(_library(), function)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(library_path()))
    except OSError as error:
        raise RuntimeError(f"the native library cannot be loaded: {error}") from error
    for name in ("nsa_cpu_target", "nsa_cpu_targets", "nsa_ascend_backends", "nsa_version"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


Argument = Buffer | npt.NDArray[np.int64] | ctypes.c_int | int | float | None


def call(name: str, *arguments: Argument) -> None:
    """Call an operator's function; RuntimeError with its message where it refuses.

    A Buffer becomes an ``NsaArray*``, None a null pointer, an int an ``int64_t``, a float a ``double``; an int64 array
    becomes two arguments, its data and its size. The buffer for the message comes last.
    """
    error = ctypes.create_string_buffer(_ERROR_SIZE)
    converted = [part for argument in arguments for part in _converted(argument)]
    if getattr(_library(), name)(*converted, error, ctypes.c_int64(_ERROR_SIZE)):
        raise RuntimeError(error.value.decode(errors="replace"))


def _converted(argument: Argument) -> list[Any]:
    if isinstance(argument, Buffer):
        shape = (ctypes.c_int64 * len(argument.shape))(*argument.shape)
        return [ctypes.byref(_Array(argument.address, shape, len(argument.shape)))]
    if isinstance(argument, np.ndarray):
        values = np.require(argument, np.int64, ("C", "ALIGNED"))
        # The pointer keeps a copy alive until the call has returned.
        return [values.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)), ctypes.c_int64(values.size)]
    if isinstance(argument, float):
        return [ctypes.c_double(argument)]
    return [ctypes.c_int64(argument) if isinstance(argument, int) else argument]


def dtype(name: str) -> ctypes.c_int:
    """The element type as the library numbers it (c_api.h)."""
    return ctypes.c_int(_DTYPES.index(name))


_WORTH_HUGE_PAGES = 4 << 20  # bytes; NumPy's own bound


def advise_huge_pages(address: int, size: int) -> None:
    """Ask Linux to back memory that nobody has written to with huge pages, if it is large. It may not have any."""
    if size >= _WORTH_HUGE_PAGES and hasattr(mmap, "MADV_HUGEPAGE"):
        begin = address + -address % mmap.PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(address + size - begin), mmap.MADV_HUGEPAGE)


def default_threads() -> int:
    """As many as the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


# What is installed for C and C++ users beside the library, as the build names it (cmake/package.cmake).
_BESIDE = ("include", "cmake", "pkgconfig")
PATHS = ("library", *_BESIDE)


def path_of(name: str) -> Path:
    """Where one of PATHS lies: a file or a folder.

    Raises:
        RuntimeError: as library_path, or it is missing there.
    """
    library = library_path()
    path = library.parent / name if name in _BESIDE else library
    if not path.exists():
        raise RuntimeError(f"{path} is missing: install nsa_onnx again")
    return path
