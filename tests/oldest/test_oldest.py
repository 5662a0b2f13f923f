"""The installed wheel works with the oldest Python, numpy, onnx and onnxruntime that pyproject.toml allows.

`make test-oldest` runs this in a separate environment. All other tests run with newer versions; the oldest
onnxruntime-cann is in tests/test_cann.py.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper

import nsa_onnx
from nsa_onnx import cli

ROOT = Path(__file__).parents[2]
SEQ = [40, 100]


def model():
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node(
                "NsaCompress", ["x", "w", "seq"], ["y"], domain="nsa_onnx", compress_block_size=32, compress_stride=16
            )
        ],
        "graph",
        [value("x", TensorProto.FLOAT16, [100, 2, 16]), value("w", TensorProto.FLOAT16, [32, 2])],
        [value("y", TensorProto.FLOAT16, [3, 2, 16])],
        [helper.make_tensor("seq", TensorProto.INT64, [2], SEQ)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nsa_onnx", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


X = np.random.default_rng(0).standard_normal((100, 2, 16)).astype(np.float16)
W = np.random.default_rng(1).random((32, 2)).astype(np.float16)


def want():
    """The contract's numbers: float32 in the order of j, one rounding."""
    rows = []
    for start in (0, 40, 56):
        row = np.zeros((2, 16), np.float32)
        for j in range(32):
            row = row + X[start + j].astype(np.float32) * W[j].astype(np.float32)[:, None]
        rows.append(row.astype(np.float16))
    return np.array(rows)


def test_these_are_the_oldest_that_are_declared():
    text = (ROOT / "pyproject.toml").read_text()
    minimums = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', text))
    for name in ("numpy", "onnx", "onnxruntime"):
        assert f"{metadata.version(name)}.".startswith(f"{minimums[name]}."), name
    (python,) = re.findall(r'requires-python = ">=([\d.]+)"', text)
    assert python == "{}.{}".format(*sys.version_info[:2])
    assert not Path(nsa_onnx.__file__).is_relative_to(ROOT / "nsa_onnx"), "the wheel is tried, not the sources"


def test_eager_schema_and_check():
    assert np.array_equal(nsa_onnx.nsa_compress(X, W, 32, 16, actual_seq_len=SEQ), want())
    with pytest.raises(RuntimeError, match="actual_seq_len"):
        nsa_onnx.nsa_compress(X, W, 32, 16, actual_seq_len=[0, 100])
    made = model()
    made.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(made).graph.output[0].type.tensor_type.shape
    assert [dim.dim_value for dim in inferred.dim] == [3, 2, 16]
    onnx.checker.check_model(model(), full_check=True)
    assert nsa_onnx.check(model()).ok
    broken = model()
    broken.graph.node[0].attribute[0].i = 24
    assert [finding.rule for finding in nsa_onnx.check(broken).findings]


def test_sessions_bodies_and_values(tmp_path):
    path, portable = tmp_path / "m.onnx", tmp_path / "portable.onnx"
    onnx.save(model(), path)
    feeds = {"x": X, "w": W}
    assert np.array_equal(nsa_onnx.create_session(path).run(None, feeds)[0], want())
    assert cli.main(["expand", str(path), "-o", str(portable)]) == 0
    import onnxruntime

    session = onnxruntime.InferenceSession(str(portable), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, feeds)[0], want())
    with nsa_onnx.everywhere():
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = {name: nsa_onnx.to_ortvalue(array) for name, array in feeds.items()}
    assert np.array_equal(nsa_onnx.from_ortvalue(session.run_with_ort_values(None, values)[0]), want())
    (got,) = onnx.reference.ReferenceEvaluator(model(), new_ops=nsa_onnx.reference_ops()).run(None, feeds)
    assert np.array_equal(got, want())


def test_fuse(tmp_path):
    """Mean pooling of windows that do not overlap, as people write it."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["x", "shape"], ["windows"]),
            helper.make_node("ReduceMean", ["windows", "axes"], ["y"], keepdims=0),
        ],
        "graph",
        [value("x", TensorProto.FLOAT16, [128, 2, 16])],
        [value("y", TensorProto.FLOAT16, [4, 2, 16])],
        [
            helper.make_tensor("shape", TensorProto.INT64, [4], [4, 32, 2, 16]),
            helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        ],
    )
    source, target = tmp_path / "m.onnx", tmp_path / "fused.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), source)
    assert cli.main(["fuse", str(source), "-o", str(target)]) == 0
    assert "NsaCompress" in [node.op_type for node in onnx.load(target).graph.node]


@pytest.mark.parametrize("command", [["doctor"], ["demo"]])
def test_commands(command, capsys):
    assert cli.main(command) == 0, capsys.readouterr()
