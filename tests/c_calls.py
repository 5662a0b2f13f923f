"""Functions of the C interface called with anything at all, and a count of what they read."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest
from kernels import LIBRARY

from nsa_onnx.runtime import native

WATCH = Path(__file__).resolve().parent / "cpu" / "watch.cc"


def array(address, *shape):
    return native._Array(address, (ctypes.c_int64 * len(shape))(*shape), len(shape))


def pointer(values):
    return values if values is None or isinstance(values, int) else values.ctypes.data


def call_c(name, arguments):
    """The error, or None. Lengths are pairs of an array, or an address, and their number."""
    error = ctypes.create_string_buffer(400)
    passed = []
    for value in arguments.values():
        if isinstance(value, tuple):
            passed += [ctypes.c_void_p(pointer(value[0])), ctypes.c_int64(value[1])]
        elif value is None or isinstance(value, native._Array):
            passed.append(None if value is None else ctypes.byref(value))
        else:
            passed.append(ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value))
    function = getattr(LIBRARY, name)
    function.argtypes = None
    failed = function(*passed, error, ctypes.c_int64(400))
    return error.value.decode() if failed else None


# The beginning of a program whose first argument is the library that `watch` builds.
WATCHED = """
import ctypes, sys
import numpy as np
from nsa_onnx.runtime import native

WATCH = ctypes.CDLL(sys.argv[1])
WATCH.watch_memory.restype = ctypes.c_void_p
WATCH.watch_memory.argtypes, WATCH.watch_count.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]

def watched(array):
    address = WATCH.watch_memory(array.nbytes)
    copy = np.frombuffer((ctypes.c_char * array.nbytes).from_address(address), array.dtype).reshape(array.shape)
    copy[...] = array
    return copy

def counts(array):
    return [WATCH.watch_count(array.ctypes.data + i * array.itemsize) for i in range(array.size)]

def described(array):
    shape = watched(np.array(array.shape, np.int64))
    fields = watched(np.array([array.ctypes.data, shape.ctypes.data, array.ndim], np.int64))
    SHAPES.extend([shape, fields])
    return ctypes.c_void_p(fields.ctypes.data)

SHAPES = []
"""


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    library = tmp_path_factory.mktemp("watch") / "libwatch.so"
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", WATCH, "-o", library]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return library
