"""Each index of the caller's memory is read once, so that the checked value is the one that is used.

tests/cpu/watch.cc counts the reads, address by address; in tests/test_race.py another thread writes instead.
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent / "cpu" / "watch.cc"

CALLS = """
import ctypes, sys
import numpy as np
import onnx.parser
import onnxruntime
from nsa_onnx.runtime import native, session

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
    # An NsaArray whose shape and own fields are watched, too.
    shape = watched(np.array(array.shape, np.int64))
    fields = watched(np.array([array.ctypes.data, shape.ctypes.data, array.ndim], np.int64))
    SHAPES.extend([shape, fields])
    return ctypes.c_void_p(fields.ctypes.data)

SHAPES = []
B = 9
x, w = np.ones((4, 64, 2, 16), np.float16), np.ones((112, 2), np.float16)
cache = np.zeros((B, 2, 16), np.float16)
slots = watched(np.arange(B, dtype=np.int32))
table = watched(np.zeros((B, 4), np.int32))
lengths = watched(np.array([112, 5, 128, 176, 0, 240, 255, 113, 192], np.int64))
writes = [length >= 112 and (length - 112) % 16 == 0 for length in lengths.tolist()]
tokens = np.ones((300, 2, 16), np.float16)
ends = watched(np.array([112, 112, 120, 300], np.int64))

def c_api():
    LIBRARY = native._library()
    error = ctypes.create_string_buffer(400)
    out = np.zeros((6, 2, 16), np.float16)
    compress = [described(array) for array in (tokens, w, out)]
    decode = [described(array) for array in (x, w, slots, table, cache)]
    integer, pointer = ctypes.c_int64, lambda array: ctypes.c_void_p(array.ctypes.data)
    LIBRARY.nsa_compress.argtypes = LIBRARY.nsa_compress_infer.argtypes = None
    WATCH.watch_start()
    failed = LIBRARY.nsa_compress(
        0, *compress[:2], integer(112), integer(16), pointer(ends), integer(4), compress[2], integer(1), error,
        integer(400),
    ) or LIBRARY.nsa_compress_infer(
        0, *decode[:3], integer(112), integer(16), integer(64), decode[3], pointer(lengths), integer(B), decode[4],
        integer(1), error, integer(400),
    )
    WATCH.watch_stop()
    assert not failed, error.value
    assert all(count == 1 for shape in SHAPES[::2] for count in counts(shape)), [counts(shape) for shape in SHAPES]
    # Two fields may come in one read.
    assert all(max(counts(fields)) == 1 for fields in SHAPES[1::2]), [counts(fields) for fields in SHAPES]

HEAD = '<ir_version: 8, opset_import: ["" : 18, "nsa_onnx" : 1]> g '
MODELS = (
    '(float16[t,n,d] x, float16[b,n] w, int64[s] seq) => (float16[r,n,d] y) '
    '{ y = nsa_onnx.NsaCompress <compress_block_size = 112, compress_stride = 16> (x, w, seq) }',
    '(float16[p,g,n,d] x, float16[k,n] w, int32[b] slots, float16[s,n,d] cache, int64[b] seq, int32[b,m] table) => '
    '(float16[s,n,d] y) { y = nsa_onnx.NsaCompressInfer '
    '<compress_block_size = 112, compress_stride = 16, page_block_size = 64> (x, w, slots, cache, seq, table) }',
)

def onnxruntime_():
    feeds = (
        {"x": tokens, "w": w, "seq": ends},
        {"x": x, "w": w, "slots": slots, "cache": cache, "seq": lengths, "table": table},
    )
    running = []
    for text, arrays in zip(MODELS, feeds):
        made = session.create_session(onnx.parser.parse_model(HEAD + text).SerializeToString(), device="cpu")
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        for name, array in arrays.items():
            assert values[name].data_ptr() == array.ctypes.data
        running.append((made, values))
    WATCH.watch_start()
    for made, values in running:
        made.run_with_ort_values(None, values)
    WATCH.watch_stop()

{"c_api": c_api, "onnxruntime": onnxruntime_}[sys.argv[2]]()
read = {"lengths": counts(lengths), "ends": counts(ends), "slots": counts(slots), "table": counts(table)}
assert read["lengths"] == [1] * B and read["ends"] == [1] * 4, read
assert read["slots"] == [int(write) for write in writes], read
assert max(read["table"]) == 1 and sum(read["table"]) == sum(
    (length - 1) // 64 - (length - 112) // 64 + 1 for length, write in zip(lengths.tolist(), writes) if write
), read
print("read once")
"""


@pytest.fixture(scope="module")
def watch(tmp_path_factory):
    library = tmp_path_factory.mktemp("watch") / "libwatch.so"
    command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", SOURCE, "-o", library]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ctypes.CDLL(str(library)).watch_stop
    return library


@pytest.mark.parametrize("who", ["c_api", "onnxruntime"])
def test_every_index_dim_and_rank_is_read_once(watch, who):
    done = subprocess.run([sys.executable, "-c", CALLS, watch, who], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "read once\n"), done.stderr[-2000:]
