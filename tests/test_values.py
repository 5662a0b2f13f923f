"""bfloat16 in and out of onnxruntime from Python, with the newest version and with the oldest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import nsa_models as models
import numpy as np
import oldest
import onnx
import oracle
import pytest
import torch

import nsa_onnx
from nsa_onnx import from_ortvalue, to_ortvalue

BFLOAT16 = ml_dtypes.bfloat16
ROOT = Path(__file__).parents[1]

SERVE = """
import sys
import ml_dtypes, numpy as np, onnxruntime
from nsa_onnx import from_ortvalue, to_ortvalue
model, library, saved = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
feeds = {name: to_ortvalue(bits, dtype="bfloat16") for name, bits in np.load(saved).items()}
outputs = session.run_with_ort_values(None, feeds)
(y,) = map(from_ortvalue, outputs)
assert y.dtype == ml_dtypes.bfloat16
np.savez(saved, y=y.view(np.uint16))

# The same memory goes in and comes out, kept alive by the value; an empty and a scalar array are arrays as well.
values = [to_ortvalue((np.arange(6) + i).astype(ml_dtypes.bfloat16).reshape(2, 3)) for i in range(50)]
assert all(np.array_equal(from_ortvalue(value), (np.arange(6) + i).reshape(2, 3)) for i, value in enumerate(values))
for shape in ((0, 4), ()):
    assert from_ortvalue(to_ortvalue(np.ones(shape, ml_dtypes.bfloat16))).shape == shape
print(onnxruntime.__version__)
"""


@pytest.mark.parametrize(
    ("python", "version"), [(sys.executable, None), (oldest.PYTHON, oldest.ONNXRUNTIME)], ids=["newest", "oldest"]
)
def test_bfloat16_is_served_from_python(python, version, tmp_path):
    onnx.save(models.compress([40, 100], ml_dtypes.bfloat16), tmp_path / "m.onnx")
    generator = np.random.default_rng(0)
    x = generator.standard_normal((100, 4, 16)).astype(ml_dtypes.bfloat16)
    w = generator.standard_normal((32, 4)).astype(ml_dtypes.bfloat16)
    saved = tmp_path / "bits.npz"
    np.savez(saved, x=x.view(np.uint16), w=w.view(np.uint16))
    words = [python, "-c", SERVE, str(tmp_path / "m.onnx"), nsa_onnx.get_library_path(), str(saved)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert version is None or done.stdout.strip() == version
    want = nsa_onnx.nsa_compress(x, w, 32, 16, actual_seq_len=[40, 100])
    assert oracle.same_bits(np.load(saved)["y"].view(ml_dtypes.bfloat16), want)


def test_the_recipe_of_the_documentation_runs_as_written(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "export.md").read_text()
    (code,) = re.findall(r"## Serving bfloat16 .*?```python\n(.*?)```", text, re.DOTALL)
    made = models.model(
        [models.node(inputs=("kv", "weight", "seq"))],
        [models.value("kv", BFLOAT16, ("T", 4, 64)), models.value("weight", BFLOAT16, (32, 4))],
        [models.value("y", BFLOAT16, ("R", 4, 64))],
        [models.lengths([40, 128])],
    )
    onnx.save(made, tmp_path / "bfloat16.onnx")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    want = nsa_onnx.nsa_compress(found["kv"], found["weight"], 32, 16, actual_seq_len=[40, 128])
    assert oracle.same_bits(found["compressed"], want)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32, np.int64, np.bool_, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (4, 6)])
def test_other_types_shapes_and_strides_come_back_as_they_went(dtype, shape):
    array = np.asarray(np.random.default_rng(0).random(shape) * 99).astype(dtype)
    for view in (array, array.T, array[..., ::2] if shape else array):
        got = from_ortvalue(to_ortvalue(view))
        assert (got.dtype, got.shape) == (view.dtype, view.shape) and np.array_equal(got, view)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_tensors_are_taken(dtype):
    tensor = torch.arange(24).reshape(4, 6).to(dtype)
    for view in (tensor, tensor.T):
        got = from_ortvalue(to_ortvalue(view))
        assert np.array_equal(got.astype(np.float32), view.to(torch.float32).numpy())
    assert from_ortvalue(to_ortvalue(torch.ones(2, requires_grad=True))).tolist() == [1, 1]
    bits = from_ortvalue(to_ortvalue(torch.tensor([1.5], dtype=torch.bfloat16))).view(np.uint16)
    assert torch.from_numpy(bits).view(torch.bfloat16).tolist() == [1.5]


def test_memory_is_shared_where_it_is_dense():
    array = np.zeros((2, 3), ml_dtypes.bfloat16)
    value = to_ortvalue(array)
    array[1, 2] = 7
    assert from_ortvalue(value)[1, 2] == 7
    copy = from_ortvalue(value)
    array[1, 2] = 8
    assert copy[1, 2] == 7


@pytest.mark.parametrize(
    ("array", "dtype", "error", "message"),
    [
        ([1.0], None, TypeError, "array must be a NumPy array or a torch tensor, got list"),
        (np.float32(1), None, TypeError, "array must be a NumPy array or a torch tensor, got float32"),
        (
            np.zeros(2, ">f4"),
            None,
            TypeError,
            r"the machine's byte order, got >f4: array.astype\('float32'\)",
        ),
        (np.zeros(2, "M8[s]"), None, TypeError, r"of a type that onnxruntime knows, got datetime64\[s\]"),
        (np.zeros(2, np.uint16), "float16", ValueError, "dtype must be 'bfloat16' or None, got 'float16'"),
        (np.zeros(2, np.float16), "bfloat16", ValueError, "array must be uint16, the bits of bfloat16, got float16"),
        (torch.zeros(2, device="meta"), None, RuntimeError, r"on the CPU, got a tensor on meta: array.cpu\(\)"),
    ],
)
def test_what_is_no_array_is_refused(array, dtype, error, message):
    with pytest.raises(error, match=message):
        to_ortvalue(array, dtype=dtype)
