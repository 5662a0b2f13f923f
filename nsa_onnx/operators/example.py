"""Builds a model of one node from an operator's example call, to try the operator on a machine."""

from __future__ import annotations

from onnx import ModelProto, TensorProto, helper, numpy_helper

from ..graph.tensors import tensor_facts
from .base import Example, Operator
from .contract import DOMAIN, OPSET_VERSION
from .facts import NodeFacts


def example_model(operator: Operator, example: Example, elem_type: int = TensorProto.FLOAT16) -> ModelProto:
    """The smallest model that makes the call: inputs and outputs have the operator's names, indices are constant."""
    constants = [numpy_helper.from_array(values, name) for name, values in example.indices.items()]
    types = {name: helper.make_tensor_type_proto(elem_type, shape) for name, shape in example.shapes.items()}
    types |= {one.name: helper.make_tensor_type_proto(one.data_type, one.dims) for one in constants}
    known = {name: tensor_facts(type_proto) for name, type_proto in types.items()}
    facts = NodeFacts(operator.op_type, example.attributes, known, example.indices)
    results = dict(zip((one.name for one in operator.outputs), operator.output_types(facts, types), strict=True))
    names = [name if name in types else "" for name in operator.input_names]
    while not names[-1]:
        names.pop()
    node = helper.make_node(operator.op_type, names, [*results], name=operator.op_type, domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in example.attributes.items())
    graph = helper.make_graph(
        [node],
        "example",
        [helper.make_value_info(name, types[name]) for name in example.shapes],
        [helper.make_value_info(name, type_proto) for name, type_proto in results.items()],
        constants,
    )
    # Old enough for every onnxruntime that we support.
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
