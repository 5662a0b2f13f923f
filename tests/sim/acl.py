"""The simulated CANN through ctypes, for the child processes of tests/test_sim.py.

A child process says ``from acl import *``; it needs nothing but NumPy. Every function here raises AclError where the
library returns an error code, except ``code()``, which returns it.
"""

import ctypes
import os
from pathlib import Path

import numpy as np

LIB = Path(os.environ["NSA_ONNX_SIM_DIR"])

H2H, H2D, D2H, D2D = range(4)
FLOAT, FLOAT16, INT32, BF16 = 0, 1, 3, 27


def load(name):
    return ctypes.CDLL(str(LIB / f"lib{name}.so"), mode=ctypes.RTLD_GLOBAL)


cl, op_compiler, nnopbase, opapi = map(load, ("ascendcl", "acl_op_compiler", "nnopbase", "opapi"))
cl.aclGetRecentErrMsg.restype = ctypes.c_char_p
cl.aclrtGetSocName.restype = ctypes.c_char_p
cl.nsa_sim_calls.restype = ctypes.c_uint64
cl.nsa_sim_live.restype = ctypes.c_int64
cl.nsa_sim_pending_tasks.restype = ctypes.c_uint64
for library, pointers in (
    (cl, ("aclCreateDataBuffer", "aclCreateTensorDesc", "aclGetDataBufferAddr")),
    (op_compiler, ("aclopCreateAttr",)),
    (nnopbase, ("aclCreateTensor", "aclCreateIntArray")),
):
    for symbol in pointers:
        getattr(library, symbol).restype = ctypes.c_void_p


class AclError(Exception):
    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


def message():
    """The thread's recent error message, or None. Asking takes it away."""
    text = cl.aclGetRecentErrMsg()
    return None if text is None else text.decode()


def _argument(value):
    """Pointers and sizes are 64 bits wide, whatever Python's int looks like."""
    if isinstance(value, bytes) or value is None:
        return value
    if isinstance(value, (int, np.integer)):
        return ctypes.c_uint64(int(value) & (1 << 64) - 1)
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    return value


def code(name, *arguments, library=cl):
    return getattr(library, name)(*map(_argument, arguments))


def call(name, *arguments, library=cl):
    error = code(name, *arguments, library=library)
    if error:
        raise AclError(error, message())


def failure(function, *arguments, **options):
    """(code, message) of a call that must fail."""
    try:
        function(*arguments, **options)
    except AclError as error:
        return error.code, error.message
    raise AssertionError(f"{function.__name__}{arguments} did not fail")


def make(name, *arguments):
    """A handle that the function writes through its first parameter."""
    handle = ctypes.c_void_p()
    call(name, ctypes.byref(handle), *arguments)
    return handle.value


def start(device=0):
    call("aclInit", None)
    call("aclrtSetDevice", device)


def malloc(size):
    return make("aclrtMalloc", size, 0)


def malloc_host(size):
    return make("aclrtMallocHost", size)


def create_stream():
    return make("aclrtCreateStream")


def create_event():
    return make("aclrtCreateEvent")


def synchronize(stream=None):
    call("aclrtSynchronizeStream", stream)


def upload(array):
    """A new allocation that holds the array."""
    address = malloc(max(array.nbytes, 1))
    call("aclrtMemcpy", address, array.nbytes, np.ascontiguousarray(array), array.nbytes, H2D)
    return address


def download(address, like):
    """A copy of what lies there, with the shape and dtype of ``like``."""
    out = np.empty_like(like)
    call("aclrtMemcpy", out, out.nbytes, address, out.nbytes, D2H)
    return out


def copy_async(dst, src, size, kind, stream=None):
    call("aclrtMemcpyAsync", dst, size, src, size, kind, stream)


def pinned_array(shape, dtype):
    """A NumPy view of new pinned host memory, and its address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    address = malloc_host(size)
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape), address


# aclnn --------------------------------------------------------------------------------------------------


def tensor(address, shape, acl_type):
    dims = (ctypes.c_int64 * len(shape))(*shape)
    strides = [1] * len(shape)
    for d in range(len(shape) - 1, 0, -1):
        strides[d - 1] = strides[d] * shape[d]
    strides = (ctypes.c_int64 * len(shape))(*strides)
    count = ctypes.c_uint64(len(shape))
    return nnopbase.aclCreateTensor(
        dims, count, acl_type, strides, ctypes.c_int64(0), 2, dims, count, ctypes.c_void_p(address)
    )


def int_array(values):
    return nnopbase.aclCreateIntArray((ctypes.c_int64 * len(values))(*values), ctypes.c_uint64(len(values)))


def first_step(function, *arguments):
    """(workspace size, executor) of an aclnn function."""
    size, executor = ctypes.c_uint64(), ctypes.c_void_p()
    call(f"{function}GetWorkspaceSize", *arguments, ctypes.byref(size), ctypes.byref(executor), library=opapi)
    return size.value, executor.value


def second_step(function, workspace, size, executor, stream=None):
    call(function, workspace, size, executor, stream, library=opapi)


def run(function, *arguments, stream=None):
    """Both steps, then wait."""
    size, executor = first_step(function, *arguments)
    workspace = malloc(size)
    try:
        second_step(function, workspace, size, executor, stream)
        synchronize(stream)
    finally:
        call("aclrtFree", workspace)


class Prefill:
    """Arguments of aclnnNsaCompress on the device. ``x`` and ``w`` hold 16-bit patterns of ``acl_type``."""

    function = "aclnnNsaCompress"

    def __init__(self, x, w, block, stride, ends, rows, acl_type=FLOAT16, **change):
        self.out = np.zeros((rows, *x.shape[1:]), x.dtype)
        self.memory = [upload(x), upload(w), malloc(max(self.out.nbytes, 1))]
        shapes = (x.shape, w.shape, self.out.shape)
        self.tensors = [tensor(a, s, acl_type) for a, s in zip(self.memory, shapes, strict=True)]
        self.ends = int_array(ends)
        named = {"layout": b"TND", "block": block, "stride": stride, "seq_type": 0, **change}
        self.arguments = (*self.tensors[:2], self.ends, *named.values(), self.tensors[2])

    def __call__(self):
        run(self.function, *self.arguments)
        return download(self.memory[-1], self.out)

    def close(self):
        for t in self.tensors:
            call("aclDestroyTensor", t, library=nnopbase)
        call("aclDestroyIntArray", self.ends, library=nnopbase)
        for address in self.memory:
            call("aclrtFree", address)


class Decode(Prefill):
    """Arguments of aclnnNsaCompressWithCache on the device."""

    function = "aclnnNsaCompressWithCache"

    def __init__(self, x, w, slots, table, lengths, block, stride, page, cache, acl_type=FLOAT16, **change):
        self.out = cache
        arrays = (x, w, slots, table, cache)
        types = (acl_type, acl_type, INT32, INT32, acl_type)
        self.memory = [upload(a) for a in arrays]
        self.tensors = [tensor(m, a.shape, t) for m, a, t in zip(self.memory, arrays, types, strict=True)]
        self.ends = int_array(lengths)
        named = {"layout": b"TND", "block": block, "stride": stride, "seq_type": 1, "page": page, **change}
        t = self.tensors
        no_table = named.pop("no_table", False)
        self.arguments = (*t[:3], self.ends, None if no_table else t[3], *named.values(), t[4])
