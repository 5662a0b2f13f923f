"""A model with constants in a file beside it, as torch's exporter writes them, gives what the model in one file gives.

For every command, and for every function that takes a path.
"""

import nsa_models as models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from nsa_onnx import check
from nsa_onnx.cli import main
from nsa_onnx.explain import explain
from nsa_onnx.fuse import candidates, fuse
from nsa_onnx.graph.external import data_size, external_bytes, inside
from nsa_onnx.targets.atc import prepare_atc


def in_standard_operators():
    """Windows of 16 tokens, gathered, weighted by a constant and summed."""
    constants = {
        "indices": np.arange(32, dtype=np.int64).reshape(2, 16),
        "w_column": np.linspace(0, 1, 64, dtype=np.float16).astype(np.float32).reshape(16, 4, 1),
        "first": np.array([1], np.int64),
    }
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float16[32, 4, 16] x) => (float16[2, 4, 16] y) {'
        "windows = Gather <axis = 0> (x, indices) windows_32 = Cast <to = 1> (windows)"
        "products = Mul (windows_32, w_column) sums = ReduceSum <keepdims = 0> (products, first)"
        "y = Cast <to = 10> (sums) }"
    )
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return model


def with_lengths():
    model = models.compress([40, 100])
    for tensor in model.graph.initializer:  # only raw data is put in files
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return model


@pytest.fixture(params=[in_standard_operators, with_lengths])
def both(request, tmp_path):
    """The paths of one model as one file and as two."""
    model = request.param()
    for kind in ("one", "two"):
        (tmp_path / kind).mkdir()
        onnx.save(
            model, tmp_path / kind / "m.onnx", save_as_external_data=kind == "two", location="w.bin", size_threshold=0
        )
    return tmp_path / "one" / "m.onnx", tmp_path / "two" / "m.onnx"


def test_check_finds_the_same(both):
    one, two = (check(path) for path in both)
    assert one.findings == two.findings == check(onnx.load(both[1])).findings


def test_check_finds_a_compression_whose_indices_are_beside_it(tmp_path):
    onnx.save(in_standard_operators(), tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    assert [finding.rule for finding in check(tmp_path / "m.onnx").findings] == ["NSA028"]


def test_fuse_and_explain_see_the_same(both):
    one, two = (fuse(path) for path in both)
    assert (one.fused, one.left) == (two.fused, two.left)
    assert candidates(onnx.load(both[0])) == candidates(
        onnx.load(both[1], load_external_data=False), folder=both[1].parent
    )
    pages = [explain(path).replace(str(path.parent), "") for path in both]  # but for the folder, which fuse's line has
    assert pages[0] == pages[1]


def test_prepare_says_the_same(both):
    one, two = (prepare_atc(path) for path in both)
    assert (set(one.changes), one.notes) == (set(two.changes), two.notes)


@pytest.mark.parametrize("command", ["fuse", "infer-shapes", "expand", "prepare-atc"])
def test_commands_say_and_write_the_same(both, capsys, command):
    said = []
    for path in both:
        assert main([command, str(path), "-o", str(path.parent / "out.onnx")]) == 0
        said.append(sorted(capsys.readouterr().out.replace(str(path.parent), "").splitlines()))
    assert said[0] == said[1]
    one, two = (onnx.load(path.parent / "out.onnx").graph for path in both)
    assert [node.op_type for node in one.node] == [node.op_type for node in two.node]
    assert {value.name: value.type.SerializeToString() for value in (*one.output, *one.value_info)} == {
        value.name: value.type.SerializeToString() for value in (*two.output, *two.value_info)
    }


def test_inferring_shapes_leaves_the_data_where_it_is(both):
    target = both[1].parent / "out.onnx"
    assert main(["infer-shapes", str(both[1]), "-o", str(target)]) == 0
    written = onnx.load(target, load_external_data=False)
    assert {tensor.data_location for tensor in written.graph.initializer} == {TensorProto.EXTERNAL}


SIZES = {"float64": 8, "uint64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "int8": 1, "bool": 1}


@pytest.mark.parametrize("name", SIZES)
def test_as_many_bytes_are_read_as_the_type_has(name, tmp_path):
    array = np.arange(6).astype(name)
    (tmp_path / "data.bin").write_bytes(array.tobytes() + b"more")
    tensor = TensorProto(name="t", data_type=numpy_helper.from_array(array).data_type, dims=[6])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data.bin")
    assert data_size(tensor) == 6 * SIZES[name]
    assert external_bytes(tensor, tmp_path) == array.tobytes()
    assert np.array_equal(numpy_helper.to_array(inside(tensor, tmp_path)), array)
    assert inside(tensor, tmp_path, most=6 * SIZES[name] - 1) is tensor


def test_what_has_no_size_is_not_read(tmp_path):
    (tmp_path / "data.bin").write_bytes(bytes(100))
    for made in (TensorProto(data_type=TensorProto.STRING, dims=[1]), TensorProto(data_type=1, dims=[-1])):
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value="data.bin")
        assert data_size(made) is None
        assert inside(made, tmp_path) is made
