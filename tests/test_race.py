"""Indices are used as they were checked, also when the caller changes them while a call runs.

Each case runs in a process of its own, which dies if an index is used that has not been checked.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

CALLS = """
import sys, threading, time
import numpy as np
import onnxruntime
from nsa_onnx.operators.nsa_compress import call as prefill
from nsa_onnx.operators.nsa_compress_infer import call as decode
from nsa_onnx.runtime import session
from nsa_onnx.runtime.native import Buffer

WHO, WHAT = sys.argv[1:]
FAR = 2**31 - 1
B, N, D = 300_000, 1, 16
rows = 1 if WHAT == "actual_seq_len" else 4
x, w = np.ones((rows, 64, N, D), np.float16), np.ones((32, N), np.float16)
slots, table = np.arange(B, dtype=np.int32), np.zeros((B, 1), np.int32)
cache, out = np.zeros((B, N, D), np.float16), np.zeros((0, N, D), np.float16)
lengths = np.full(B, 32, np.int64)
ends = np.arange(1, B + 1, dtype=np.int64)  # a window needs 32 tokens: no segment has one
tokens = np.ones((B, N, D), np.float16)
changed, wrong = {
    "slot_mapping": (slots, FAR), "block_table": (table[:, 0], FAR), "actual_seq_len": (lengths, 2**62),
    "prefix sums": (ends, 2**62),
}[WHAT]
right = int(changed[-1])
if WHAT == "prefix sums":
    changed, right = ends[B // 2 : B // 2 + 1], int(ends[B // 2])

def buffer(array):
    return Buffer(array.ctypes.data, array.shape)

def direct():
    if WHAT == "prefix sums":
        prefill.kernel("float16", buffer(tokens), buffer(w), 32, 16, ends, buffer(out), 1)
    else:
        decode.kernel(
            "float16", buffer(x), buffer(w), buffer(slots), 32, 16, 64, buffer(table), lengths, buffer(cache), 1
        )

def served():
    names = {"input": tokens if WHAT == "prefix sums" else x, "weight": w, "actual_seq_len": ends}
    if WHAT != "prefix sums":
        names |= {"slot_mapping": slots, "cache": cache, "actual_seq_len": lengths, "block_table": table}
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in names.items()}
    model = MODELS[WHAT == "prefix sums"]
    running = session.create_session(model, device="cpu")
    return lambda: running.run_with_ort_values(None, values)

import onnx.parser
HEAD = '<ir_version: 8, opset_import: ["" : 18, "nsa_onnx" : 1]> g '
MODELS = {
    True: '(float16[t,n,d] input, float16[b,n] weight, int64[s] actual_seq_len) => (float16[r,n,d] y) '
    '{ y = nsa_onnx.NsaCompress <compress_block_size = 32, compress_stride = 16> (input, weight, actual_seq_len) }',
    False: '(float16[p,g,n,d] input, float16[k,n] weight, int32[b] slot_mapping, float16[s,n,d] cache, '
    'int64[b] actual_seq_len, int32[b,m] block_table) => (float16[s,n,d] y) { y = nsa_onnx.NsaCompressInfer '
    '<compress_block_size = 32, compress_stride = 16, page_block_size = 64> '
    '(input, weight, slot_mapping, cache, actual_seq_len, block_table) }',
}
MODELS = {key: onnx.parser.parse_model(HEAD + text).SerializeToString() for key, text in MODELS.items()}
call = direct if WHO == "c_api" else served()
going = True

def change():
    while going:
        changed[-1] = wrong
        changed[-1] = right

thread = threading.Thread(target=change)
thread.start()
accepted = refused = 0
end = time.monotonic() + 2.5
while time.monotonic() < end or accepted + refused < 6:  # a busy machine takes longer
    try:
        call()
        accepted += 1
    except Exception as error:
        assert str(error).count(f"got {wrong}") or "must be >= the element before" in str(error), error
        refused += 1
going = False
thread.join()
print("survived")
"""


@pytest.mark.parametrize("who", ["c_api", "onnxruntime"])
@pytest.mark.parametrize("what", ["slot_mapping", "block_table", "actual_seq_len", "prefix sums"])
def test_an_index_that_changes_during_a_call_is_used_as_it_was_checked(who, what):
    done = subprocess.run([sys.executable, "-c", CALLS, who, what], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-2000:]
