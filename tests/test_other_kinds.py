"""What general code takes of an operator beyond what the present ones have: float attributes, several outputs of
several types, no op in torch_npu."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto

from nsa_onnx.checker import Finding, Severity, run
from nsa_onnx.exporters import dynamo, torchscript
from nsa_onnx.exporters.operators import OPERATORS as TORCH_OPERATORS
from nsa_onnx.graph.tensors import TensorFacts, Unknown
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.base import Attribute, Exact, Input, Operator, Output, Sample, T
from nsa_onnx.operators.contract import Contract, is_float
from nsa_onnx.operators.facts import NodeFacts
from nsa_onnx.operators.numbers import rounded, ulps
from nsa_onnx.runtime import cann, native

X = np.arange(6, dtype=np.float64)


class Halved(Operator):
    """Everything times a factor, and which of three parts an element is in."""

    contract = Contract("Halved", {}, None)
    doc = "For tests."
    inputs = (Input("x", T, "`[T]`"),)
    outputs = (
        Output("y", T, "`[T]`", dims=((("x", 0),),)),
        Output("part", "tensor(int32)", "`[T]`", dims=((("x", 0),),)),
    )
    attributes = (Attribute("parts", "Their number."), Attribute("factor", "The factor.", is_float=True))
    body_text, rule_examples = "", {}

    def contract_violations(self, facts):
        return iter(())

    def sample(self, facts, attributes):
        return Sample(facts.tensor("x").dtype, {"x": X}, "six")

    def reference(self, values, attributes):
        # Above 2048, float16 does not hold every integer.
        product, part = values["x"] * attributes["factor"], 2049 + values["x"] // attributes["parts"]
        return Exact(product, np.zeros(6)), Exact(part, np.zeros(6))

    def call(self, inputs, attributes):
        raise NotImplementedError


HALVED = Halved()
FACTS = NodeFacts("Halved", {"parts": 2, "factor": 0.5}, {"x": TensorFacts("float16", (6,))})
RIGHT = [X / 2, 2049 + X // 2]


@pytest.fixture
def halved(monkeypatch):
    monkeypatch.setitem(OPERATORS, "Halved", HALVED)
    return HALVED


@pytest.mark.usefixtures("halved")
def test_every_output_of_a_run_is_compared_in_its_own_type(monkeypatch):
    results = list(RIGHT)
    monkeypatch.setattr(run, "_compute", lambda operator, model, values: results)
    assert run._run(FACTS) == run._Outcome(0, "six")
    results[1] = RIGHT[1] + (X == 4)
    wrong = run._run(FACTS)
    assert wrong.problem == "part[4] is 2052, the float64 reference says 2051; 1 of 6 elements are off, by up to 1"
    results[:] = [RIGHT[0] + (X == 3), RIGHT[1]]
    assert run._run(FACTS).problem.startswith("y[3] is 2.5, the float64 reference says 1.5 and float32 sums may give")


@pytest.mark.usefixtures("halved")
def test_an_attribute_that_a_caller_sets_is_not_run():
    facts = replace(FACTS, attributes={"parts": 2, "factor": Unknown()})
    assert run._run(facts).note == "factor is set by the caller of its function"
    assert run._identity(FACTS) != run._identity(replace(FACTS, attributes={"parts": 2, "factor": 0.25}))


def test_the_model_of_a_run_has_each_output_in_its_own_type():
    model = run._model(HALVED, {"parts": 2, "factor": 0.5}, Sample("bfloat16", {"x": X}, ""))
    node = next(node for node in model.graph.node if node.op_type == "Halved")
    kinds = {attribute.name: attribute.type for attribute in node.attribute}
    assert kinds == {"parts": AttributeProto.INT, "factor": AttributeProto.FLOAT}
    types = [output.type.tensor_type.elem_type for output in model.graph.output]
    assert types == [TensorProto.FLOAT, TensorProto.INT32]
    assert [node.op_type for node in model.graph.node].count("Cast") == 2  # x in, y out


@pytest.mark.usefixtures("halved")
@pytest.mark.parametrize(("off", "ulps"), [((0, 0), 0), ((0, 1), 1), ((2, 0), 2), ((3, 4), 4)])
def test_the_largest_difference_of_all_outputs_is_told(monkeypatch, off, ulps):
    """Where each may be off: from 8 on, float16 has steps of 1/128."""
    wanted = Exact(X + 8, np.ones(6)), Exact(X + 16, np.full(6, 9.0))
    monkeypatch.setattr(Halved, "reference", lambda *given: wanted)
    results = [wanted[0].values + (X == 1) * off[0] / 128, wanted[1].values + (X == 2) * off[1]]
    monkeypatch.setattr(run, "_compute", lambda *given: results)
    assert run._run(FACTS) == run._Outcome(ulps, "six")


@pytest.mark.usefixtures("halved")
@pytest.mark.parametrize(("said", "told"), [("first\nsecond", "first"), ("", "?")])
def test_what_onnxruntime_refuses_is_a_problem(monkeypatch, said, told):
    def refuse(*given):
        raise RuntimeError(said)

    monkeypatch.setattr(run, "_compute", refuse)
    assert run._run(FACTS) == run._Outcome(None, "six", f"onnxruntime does not run it: {told}")


MODELS_OF_RUNS = {
    "Halved": (
        {"parts": 2, "factor": 0.5},
        Sample("bfloat16", {"x": X}, ""),
        """node (float[6] x) => (float[] y, int32[] part) {
   x_16 = Cast <to: int = 16> (x)
   y_16, part = nsa_onnx.Halved <parts: int = 2, factor: float = 0.5> (x_16)
   y = Cast <to: int = 1> (y_16)
}""",
    ),
    # An input that is left out between others, and one at the end.
    "NsaCompressInfer": (
        {"compress_stride": 16},
        Sample(
            "float16",
            {"input": np.zeros((1, 64, 1, 16)), "cache": np.zeros((2, 1, 16)), "actual_seq_len": np.array([7])},
            "",
        ),
        """node (float[1,64,1,16] input, float[2,1,16] cache, int64[1] actual_seq_len) => (float[] cache_out) {
   input_16 = Cast <to: int = 10> (input)
   cache_16 = Cast <to: int = 10> (cache)
   cache_out_16 = nsa_onnx.NsaCompressInfer <compress_stride: int = 16> (input_16, "", "", cache_16, actual_seq_len, "")
   cache_out = Cast <to: int = 1> (cache_out_16)
}""",
    ),
}


@pytest.mark.usefixtures("halved")
@pytest.mark.parametrize("op_type", MODELS_OF_RUNS)
def test_the_model_of_a_run(op_type):
    attributes, sample, expected = MODELS_OF_RUNS[op_type]
    header = '<\n   ir_version: 8,\n   opset_import: ["" : 18, "nsa_onnx" : 1]\n>\n'
    made = run._model(OPERATORS[op_type], attributes, sample)
    assert onnx.printer.to_text(made).strip() == header + expected


RESHAPED = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[6] x, int64[2] s) => (float[A, B] y) { y = Reshape (x, s) }"""


def test_what_fails_in_onnxruntime_is_told_by_the_exception_alone(capfd):
    made = onnx.parser.parse_model(RESHAPED)
    (result,) = run._compute(HALVED, made, {"x": X, "s": np.array([3, 2])})
    assert result.tolist() == X.reshape(3, 2).tolist() and result.dtype == np.float64
    with pytest.raises(Exception, match="cannot be reshaped"):
        run._compute(HALVED, made, {"x": X, "s": np.array([4, 4])})
    assert capfd.readouterr() == ("", "")


def node(name, place="graph"):
    return SimpleNamespace(name=name, op_type="Halved", scope=SimpleNamespace(place=place), facts=FACTS)


@pytest.mark.usefixtures("halved")
def test_which_nodes_are_run(monkeypatch):
    """Those without an error of their own; alike ones once; so many different ones and no more."""
    runs, outcomes = [], (run._Outcome(1, "six"), run._Outcome(1, "six", "wrong"))
    monkeypatch.setattr(run, "_run", lambda facts: runs.append(facts) or outcomes[facts is bad])
    several = [replace(FACTS, inputs={"x": TensorFacts("float16", (size,))}) for size in range(100, 357)]
    bad = several[1]
    nodes = [node("a"), node("b"), node("b", "graph > t"), node("b", "graph"), node("none")]
    nodes[-1].facts = None
    for facts in several:
        nodes += [node("first"), node("again")]
        nodes[-1].facts = nodes[-2].facts = facts
    error = Finding("NSA003", Severity.ERROR, "", "b", place="graph")
    findings = [error, replace(error, severity=Severity.WARNING, node="a")]
    told, found = run.run_nodes(SimpleNamespace(nodes=nodes), findings)
    assert runs == [FACTS, *several[:255]]
    assert [(one.node, one.place, one.ulps, one.note) for one in told[:5]] == [
        ("a", "graph", 1, "six"),
        ("b", "graph", None, "it has errors"),
        ("b", "graph > t", 1, "six"),
        ("b", "graph", None, "it has errors"),
        ("none", "graph", None, "it has errors"),
    ]
    assert [(one.ulps, one.note) for one in told[5:]] == [(1, "six")] * 510 + [(None, "256 other nodes were run")] * 4
    message = "wrong (six)"
    hint = "nsa-onnx doctor tells whether the installation is sound"
    assert found == tuple(
        Finding("NSA100", Severity.ERROR, message, name, "Halved", "", "graph", hint) for name in ("first", "again")
    )


def test_integers_are_not_rounded():
    values = np.array([2049.0, 2.0**24 + 1])
    assert rounded(values, "int32").tolist() == values.tolist()
    assert rounded(values, "float16").tolist() != values.tolist()
    assert ulps(values, values + 2, "int32").tolist() == [2, 2]
    assert [one.dtype("bfloat16") for one in HALVED.outputs] == ["bfloat16", "int32"]


def test_a_float_attribute_is_told_from_others():
    for value in (0.5, np.float32(0.5), np.float64(0.5)):
        assert is_float(value)
        assert replace(FACTS, attributes={"a": value}).number("a") == 0.5
    for value in (1, True, "1", None, []):
        assert not is_float(value)
    assert FACTS.argument("missing", 0.0) == 0.0
    assert replace(FACTS, attributes={"a": Unknown()}).argument("a", 0.0) == 0.0
    assert replace(FACTS, attributes={"a": ""}).number("a") is None


def test_a_float_goes_to_the_library_as_a_double():
    (value,) = native._converted(0.1)
    assert value.value == 0.1


def test_an_operator_that_torch_npu_does_not_have_is_exported_all_the_same(monkeypatch):
    without = tuple(replace(operator, npu_schema="") for operator in TORCH_OPERATORS)
    registered = []
    monkeypatch.setattr(dynamo, "OPERATORS", without)
    monkeypatch.setattr(torchscript, "OPERATORS", without)
    monkeypatch.setattr(torchscript.utils, "register_custom_op_symbolic", lambda op, *rest: registered.append(op))
    torchscript.register()
    refused = {operator.name: [one.name for one in operator.more if one.not_in_graphs] for operator in without}
    assert registered == [f"nsa_onnx::{name}" for own in without for name in (own.name, *refused[own.name])]
    assert all(name.startswith("nsa_onnx::") for name in dynamo._translations())


def test_the_doctor_compares_every_output(monkeypatch):
    outputs = {"ascend": [np.array([1, 2], np.uint16), np.array([1, 2], np.int32)]}
    outputs["cpu"] = [one.copy() for one in outputs["ascend"]]
    monkeypatch.setattr(cann, "example_model", lambda *args: None)
    monkeypatch.setattr(cann, "_measure", lambda module, session, *rest: (outputs[session], 0.0))

    def verdict():
        return cann._run(None, lambda model, device, **rest: device, HALVED, TensorProto.FLOAT16, "aclnn")

    monkeypatch.setattr(HALVED, "example", None, raising=False)
    assert verdict().ok
    outputs["ascend"][1][1] = 5
    assert not verdict().ok
    assert "part differs from the CPU's in 1 of 2 elements" in verdict().to_text()


def test_the_doctor_does_not_count_what_a_backend_does_not_have(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no Ascend backend can be used: aclnn: does not have this operator")

    operator = OPERATORS["NsaCompress"]
    absent = cann._run(None, refuse, operator, TensorProto.FLOAT16, "aclnn")
    assert absent.ok
    assert "does not have this operator" in absent.to_text()
