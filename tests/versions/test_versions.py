"""All operators work with this environment's versions of Python, numpy, onnx and onnxruntime.

`make test-versions` runs this on the installed wheel in each environment of tox's table in pyproject.toml, `make test`
on the sources. Small on purpose: what does not hang on versions is tested elsewhere.
"""

from __future__ import annotations

import os
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
from nsa_onnx.checker import RULES
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.example import example_model
from nsa_onnx.operators.numbers import rounded
from nsa_onnx.operators.sampling import floats
from nsa_onnx.runtime import native

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ.get("TOX_ENV_NAME", "")
SAME_BITS = "every instruction set and thread count gives the same bits"

operators = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
dtypes = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])


def numbers(version):
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def test_the_versions_are_those_of_the_environment():
    text = (ROOT / "pyproject.toml").read_text()
    declared = {name: numbers(minimum) for name, minimum in re.findall(r'"([\w-]+)>=([\d.]+)"', text)}
    (python,) = re.findall(r'requires-python = ">=([\d.]+)"', text)
    minimums = {name: declared[name] for name in ("numpy", "onnx", "onnxruntime")} | {"python": numbers(python)}
    here = {name: numbers(metadata.version(name)) for name in minimums if name != "python"}
    here["python"] = sys.version_info[:3]
    for name, minimum in minimums.items():
        assert here[name] >= minimum, name
        if ENVIRONMENT == "oldest":
            assert here[name][: len(minimum)] == minimum, name
            assert name == "python" or not any(here[name][len(minimum) :]), name
    if ENVIRONMENT:
        assert not Path(nsa_onnx.__file__).is_relative_to(ROOT / "nsa_onnx"), "the wheel is tried, not the sources"


# --------------------------------------------------------------------------------------------------
# Computing


class Call:
    """An operator's example with numbers: its model, and what each way of running it gives."""

    def __init__(self, operator, dtype):
        self.operator, self.dtype = operator, dtype
        self.model = example_model(operator, operator.example, getattr(TensorProto, dtype.upper()))
        self.exact = floats(operator.example.shapes, dtype)
        as_written = onnx.helper.tensor_dtype_to_np_dtype(self.model.graph.input[0].type.tensor_type.elem_type)
        self.feeds = {name: values.astype(as_written) for name, values in self.exact.items()}

    def eager(self):
        values = {**self.feeds, **self.operator.example.indices}
        inputs = [values.get(name) for name in self.operator.input_names]
        return self.operator.call(inputs, self.operator.example.attributes)

    def served(self, session):
        values = {name: nsa_onnx.to_ortvalue(array) for name, array in self.feeds.items()}
        outputs = [output.name for output in session.get_outputs()]
        return [nsa_onnx.from_ortvalue(value) for value in session.run_with_ort_values(outputs, values)]

    def problems(self, results):
        """What the float64 reference has against these outputs."""
        wanted = self.operator.reference(
            {**self.exact, **self.operator.example.indices}, self.operator.example.attributes
        )
        outputs = zip(self.operator.outputs, results, wanted, strict=True)
        return [
            verdict.problem
            for output, got, one in outputs
            if (verdict := one.judge(output.name, got.astype(np.float64), output.dtype(self.dtype))).problem
        ]


def same(results, others):
    pairs = list(zip(results, others, strict=True))
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)


@dtypes
@operators
def test_a_session_gives_the_bits_of_the_eager_call(operator, dtype):
    call = Call(operator, dtype)
    eager = call.eager()
    assert call.problems(eager) == []
    assert call.problems([np.zeros_like(result) for result in eager])
    assert same(call.served(nsa_onnx.create_session(call.model)), eager)


@dtypes
@operators
def test_numpy_kernels_compute_the_same(operator, dtype, monkeypatch):
    call = Call(operator, dtype)
    eager = call.eager()
    monkeypatch.setattr(native, "is_here", lambda: False)
    monkeypatch.setattr(native, "call", lambda *_: pytest.fail("the library is called"))
    own = call.eager()
    assert call.problems(own) == []
    assert same(own, eager) or SAME_BITS not in operator.doc


def test_some_operators_promise_their_bits():
    assert 0 < sum(SAME_BITS in operator.doc for operator in OPERATORS.values()) < len(OPERATORS)


@operators
def test_every_session_and_the_reference_evaluator_run_it(operator):
    import onnxruntime

    call = Call(operator, "float16")
    wanted = call.eager()
    with nsa_onnx.everywhere():
        session = onnxruntime.InferenceSession(call.model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert same(session.run(None, call.feeds), wanted)
    evaluator = onnx.reference.ReferenceEvaluator(call.model, new_ops=nsa_onnx.reference_ops())
    assert same(evaluator.run(None, call.feeds), wanted)


@operators
def test_the_portable_body_computes_it_without_the_library(operator, tmp_path):
    import onnxruntime

    call = Call(operator, "float16")
    source, target = tmp_path / "m.onnx", tmp_path / "portable.onnx"
    onnx.save(call.model, source)
    assert cli.main(["expand", str(source), "-o", str(target)]) == 0
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    assert call.problems(session.run(None, call.feeds)) == []


@operators
def test_wrong_input_is_an_error_in_words(operator):
    call = Call(operator, "float16")
    name = operator.float_inputs[0]
    call.feeds[name] = call.feeds[name].astype(np.float32)
    with pytest.raises(TypeError, match=name):
        call.eager()


# --------------------------------------------------------------------------------------------------
# Models


@operators
def test_shapes_are_inferred_and_a_sound_model_is_accepted(operator, tmp_path, capsys):
    model = example_model(operator, operator.example)
    wanted = [list(output.type.tensor_type.shape.dim) for output in model.graph.output]
    onnx.save(model, tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    command = ["check", str(tmp_path / "m.onnx"), "--run", "--fail-on", "error"]
    assert cli.main(command) == 0, capsys.readouterr()
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert [list(output.type.tensor_type.shape.dim) for output in inferred.graph.output] == wanted


@pytest.mark.parametrize("rule", [rule for rule in RULES.values() if rule.example], ids=lambda rule: rule.id)
def test_a_rule_finds_its_example_and_not_what_is_just_inside(rule):
    def found(text):
        report = nsa_onnx.check(onnx.parser.parse_model(text), target=rule.targets[0] if rule.targets else None)
        return [finding.rule for finding in report.findings]

    assert rule.id in found(rule.example)
    assert rule.id not in found(rule.accepted)


def test_mean_pooling_is_fused_and_explained(tmp_path):
    """Windows that do not overlap, as people write them."""
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
    source, target, page = tmp_path / "m.onnx", tmp_path / "fused.onnx", tmp_path / "page.html"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), source)
    assert cli.main(["fuse", str(source), "-o", str(target)]) == 0
    assert {node.op_type for node in onnx.load(target).graph.node} & set(OPERATORS)
    x = np.random.default_rng(0).standard_normal((128, 2, 16)).astype(np.float16)
    (pooled,) = nsa_onnx.create_session(target).run(None, {"x": x})
    exact = x.astype(np.float64).reshape(4, 32, 2, 16).mean(1)
    assert np.array_equal(pooled, rounded(exact, "float16"))
    assert cli.main(["explain", str(target), "--html", str(page)]) == 0
    assert "<svg" in page.read_text()


@pytest.mark.parametrize("command", [["doctor"], ["demo"]], ids=" ".join)
def test_commands(command, capsys):
    assert cli.main(command) == 0, capsys.readouterr()
