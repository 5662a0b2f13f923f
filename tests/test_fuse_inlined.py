"""Our own portable bodies, inlined by tools, become nodes again."""

from __future__ import annotations

import nsa_models as models
import numpy as np
import onnx
import onnx.inliner
import onnxscript.optimizer
import oracle
import pytest
from fuse_models import op_types, run
from onnx import TensorProto, helper, numpy_helper

import nsa_onnx
from nsa_onnx.fuse import fuse
from nsa_onnx.operators.expand import expand

TOOLS = pytest.mark.parametrize(
    "inline", [onnxscript.optimizer.optimize, onnx.inliner.inline_local_functions], ids=["onnxscript", "onnx"]
)

COMPRESS = {
    "lengths as an input": models.compress(),
    "fixed sizes, lengths as an input": models.compress(x=(100, 4, 16), w=(32, 4)),
    "open sizes": models.compress(x=("T", "N", "D"), w=("L", "M"), y=("R", "N", "D")),
    "other attributes": models.compress(w=(64, 4), compress_block_size=64, compress_stride=48),
    "opset 20": models.compress(opset=20),
}
INFER = {
    "open": models.infer(),
    "fixed": models.infer(x=(6, 64, 4, 16), cache=(8, 4, 16), table=(3, 2), batch=3),
    "no table": models.infer(table=None),
    "page 128": models.infer(x=("P", 128, 4, 16), page_block_size=128, compress_stride=32),
}


def the_node(result):
    (node,) = (node for node in result.model.graph.node if node.domain == "nsa_onnx")
    return node


@TOOLS
@pytest.mark.parametrize("name", COMPRESS)
def test_the_body_of_compress_is_the_node_again(name, inline):
    model = COMPRESS[name]
    inlined = inline(expand(model))
    assert not any(node.domain for node in inlined.graph.node)
    result = fuse(inlined)
    assert op_types(result.model) == ["NsaCompress"]
    (before,) = model.graph.node
    assert list(the_node(result).input) == list(before.input)
    assert sorted(a.SerializeToString() for a in the_node(result).attribute) == sorted(
        a.SerializeToString() for a in before.attribute
    )
    assert (result.fused[0].form, result.fused[0].inexact) == ("our own portable body, inlined", "")
    assert not [tensor.name for tensor in result.model.graph.initializer if tensor.name not in before.input]
    assert nsa_onnx.check(result.model).ok


@TOOLS
@pytest.mark.parametrize("name", INFER)
def test_the_body_of_decode_is_the_node_again(name, inline):
    model = INFER[name]
    result = fuse(inline(expand(model)))
    (before,) = model.graph.node
    after = the_node(result)
    assert list(after.input)[: len(before.input)] == list(before.input)
    assert {a.name: a.i for a in after.attribute} == {a.name: a.i for a in before.attribute}
    assert result.fused[0].op_type == "NsaCompressInfer"
    assert "Loop" not in op_types(result.model)
    assert (op_types(result.model) == ["NsaCompressInfer"]) == (name != "no table")
    assert nsa_onnx.check(result.model).ok


def test_lengths_that_were_folded_away_are_found_from_the_windows():
    model = models.compress([40, 100], x=(100, 4, 16), w=(32, 4))
    result = fuse(onnxscript.optimizer.optimize(expand(model)))
    assert op_types(result.model) == ["NsaCompress"]
    assert result.fused[0].actual_seq_len == (40, 100)
    x, w = np.random.default_rng(0).standard_normal((100, 4, 16)).astype(np.float16), np.ones((32, 4), np.float16)
    assert oracle.same_bits(run(result.model, x=x, w=w)[0], oracle.compress_exact(x, w, 32, 16, (40, 100)))


def test_the_rest_of_the_model_stays():
    """Two layers, one after the other, with something in between."""
    model = models.compress()
    first, second = model.graph.node[0], onnx.NodeProto()
    second.CopyFrom(first)
    first.output[0] = "c"
    second.input[0], second.name = "z", "nsa_2"
    nodes = [first, helper.make_node("Neg", ["c"], ["z"]), second]
    model.graph.node.remove(model.graph.node[0])
    model.graph.node.extend(nodes)
    second.input[2] = "seq_2"
    model.graph.input.append(helper.make_tensor_value_info("seq_2", TensorProto.INT64, ["C"]))
    result = fuse(onnxscript.optimizer.optimize(expand(model)))
    assert op_types(result.model) == ["NsaCompress", "Neg", "NsaCompress"]


def changes():
    """Ways in which a body is no longer ours."""

    def other_operator(model):
        next(node for node in model.graph.node if node.op_type == "Max").op_type = "Min"

    def other_order(model):
        node = next(node for node in model.graph.node if node.op_type == "Sub")
        node.input[:] = reversed(node.input)

    def other_constant(model):
        constant = next(t for t in model.graph.initializer if t.name == "offsets")
        constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) + 1, "offsets"))

    def other_number_of_turns(model):
        loop = next(node for node in model.graph.node if node.op_type == "Loop")
        model.graph.initializer.append(helper.make_tensor("turns", TensorProto.INT64, [], [31]))
        loop.input[0] = "turns"

    def other_start(model):
        loop = next(node for node in model.graph.node if node.op_type == "Loop")
        start = next(node for node in model.graph.node if node.output[0] == loop.input[2])
        start.attribute[0].t.CopyFrom(helper.make_tensor("", TensorProto.FLOAT, [1], [1.0]))

    def other_sum(model):
        loop = next(node for node in model.graph.node if node.op_type == "Loop")
        body = next(a.g for a in loop.attribute if a.name == "body")
        next(node for node in body.node if node.op_type == "Add").op_type = "Sub"

    def other_axis(model):
        loop = next(node for node in model.graph.node if node.op_type == "Loop")
        body = next(a.g for a in loop.attribute if a.name == "body")
        next(node for node in body.node if node.op_type == "Gather").attribute[0].i = 1

    def no_check(model):
        add = next(node for node in model.graph.node if node.input[-1:] == ["check_actual_seq_len"])
        model.graph.initializer.append(helper.make_tensor("nothing", TensorProto.INT64, [1], [0]))
        add.input[1] = "nothing"

    return [
        other_operator,
        other_order,
        other_constant,
        other_number_of_turns,
        other_start,
        other_sum,
        other_axis,
        no_check,
    ]


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_a_body_that_was_changed_is_left(change):
    model = onnxscript.optimizer.optimize(expand(models.compress()))
    assert fuse(model).fused
    change(model)
    assert not fuse(model).fused
