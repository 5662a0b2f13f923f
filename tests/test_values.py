"""bfloat16 in and out of onnxruntime's Python, on the newest and the oldest."""

from __future__ import annotations

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from test_ort import LIBRARY, ROOT, old_python

import nsa_onnx

SERVE = """
import sys
import ml_dtypes, numpy as np, onnx.parser, onnxruntime
from nsa_onnx.runtime.values import from_ortvalue, to_ortvalue
model = onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 18, "nsa_onnx" : 1]>
g (bfloat16[100,2,16] x, bfloat16[32,2] w) => (bfloat16[r,2,16] y) <int64[2] seq = {40, 100}>
{ y = nsa_onnx.NsaCompress <compress_block_size = 32, compress_stride = 16> (x, w, seq) }''')
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
rng = np.random.default_rng(0)
x, w = rng.standard_normal((100, 2, 16)).astype(ml_dtypes.bfloat16), rng.random((32, 2)).astype(ml_dtypes.bfloat16)
(value,) = session.run_with_ort_values(None, {"x": to_ortvalue(x), "w": to_ortvalue(w)})
y = from_ortvalue(value)
assert y.dtype == ml_dtypes.bfloat16 and y.shape == (3, 2, 16)
want, tokens, weights = [], x.astype(np.float32), w.astype(np.float32)
for start in (0, 40, 56):
    total = np.zeros((2, 16), np.float32)
    for j in range(32):
        total = total + tokens[start + j] * weights[j][:, None]
    want.append(total)
got = y.astype(np.float32)
assert np.array_equal(got, np.array(want).astype(ml_dtypes.bfloat16).astype(np.float32))
print(onnxruntime.__version__)
"""


@pytest.mark.parametrize("python", [sys.executable, old_python()], ids=["newest", "oldest"])
def test_bfloat16_is_served(python):
    done = subprocess.run(
        [python, "-c", SERVE, LIBRARY], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (done.stdout.strip() == "1.21.1") == (python != sys.executable)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32, np.int64, np.int32, np.bool_])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)])
def test_every_value_comes_back_as_it_went(dtype, shape):
    array = np.asarray(np.random.default_rng(0).random(shape) * 99).astype(dtype)
    back = nsa_onnx.from_ortvalue(nsa_onnx.to_ortvalue(array))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


def test_memory_is_shared_where_it_is_dense_and_lives_with_the_value():
    array = np.zeros((4, 4), ml_dtypes.bfloat16)
    value = nsa_onnx.to_ortvalue(array)
    array[1, 2] = 7
    assert nsa_onnx.from_ortvalue(value)[1, 2] == 7
    values = [nsa_onnx.to_ortvalue(np.full(1000, k, ml_dtypes.bfloat16)[::2]) for k in range(50)]
    assert all((nsa_onnx.from_ortvalue(one) == k).all() for k, one in enumerate(values))


def test_torch_tensors_are_taken():
    tensor = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    back = nsa_onnx.from_ortvalue(nsa_onnx.to_ortvalue(tensor.T))
    assert back.dtype == ml_dtypes.bfloat16 and back.tolist() == tensor.T.tolist()


@pytest.mark.parametrize("wrong", [[1.0], 3, "x", None, np.array([object()])])
def test_what_is_no_array_is_refused(wrong):
    with pytest.raises(TypeError, match="array"):
        nsa_onnx.to_ortvalue(wrong)
