"""Models for the tests of `nsa-onnx explain`, with and without a browser."""

from __future__ import annotations

import nsa_models as models
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from nsa_onnx.checker.rules import RULES

# What a page must show as text and never as markup. If one of them became markup, `window.pwned` would tell.
ATTACKS = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "</style></title><script>window.pwned=1</script>",
    "' onmouseover='window.pwned=1",
    "javascript:window.pwned=1",
    "&lt;script&gt;",
    "\u202e\x00\x1b[31m",
)


def hostile():
    """A model whose names, documentation and messages are all attacks."""
    a = ATTACKS
    attacked = models.node(inputs=(a[0], a[1], a[2]), outputs=(a[3],))
    attacked.name = "".join(a)
    attacked.doc_string = "".join(a)
    attacked.attribute.append(helper.make_attribute(a[1], 1))  # a rule's message has its name
    before = helper.make_node(a[0], [a[4]], [a[0]], name=a[1], domain=a[2])
    after = helper.make_node(a[5], [a[3]], [a[6]], name=a[2], domain=a[4])
    inputs = [
        models.value(a[4], np.float16, (a[0], 4, 20)),
        models.value(a[1], np.float16, (a[1], 4)),
        models.value(a[2], TensorProto.INT64, (a[2],)),
    ]
    outputs = [models.value(a[6], np.float16, (a[3], 4, 16)), models.value(a[3], np.float16, (a[3], 4, 20))]
    made = models.model([before, attacked, after], inputs, outputs, imports=(("nsa_onnx", 1), (a[2], 1), (a[4], 1)))
    made.doc_string = made.graph.doc_string = made.graph.name = made.producer_name = "".join(a)
    inner = helper.make_graph(
        [models.node(inputs=(a[0], a[1], a[2]))], a[1], [], [models.value("y", np.float16, (a[1],))]
    )
    made.graph.node.append(helper.make_node("If", [a[4]], [a[7]], name=a[0], then_branch=inner, else_branch=inner))
    function = helper.make_function(a[2], a[0], list(a[:3]), ["y"], [attacked], made.opset_import)
    function.node[0].output[0] = "y"
    made.functions.append(function)
    return made


def ragged(lengths, block=32, stride=16, heads=8, dim=128):
    """One NsaCompress on constant lengths (not prefix sums)."""
    total = int(np.sum(lengths))
    made = models.compress(
        np.cumsum(lengths).tolist(),
        x=(total, heads, dim),
        w=(block, heads),
        y=("R", heads, dim),
        compress_block_size=block,
        compress_stride=stride,
    )
    made.graph.node[0].name = "/model/layers.0/attn/compress_k"
    return made


def decode(lengths=(31, 32, 100, 160, 2000, 0)):
    """One NsaCompressInfer on constant lengths, slots and pages: sequences 1, 3 and 4 of the default write."""
    batch = len(lengths)
    made = models.infer(list(lengths), x=(240, 64, 4, 128), cache=(400, 4, 128), table=(batch, 40), batch=batch)
    kept = [value for value in made.graph.input if value.name not in ("slots", "table")]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    table = np.random.default_rng(0).permutation(batch * 40) % 240
    slots = [7 * b if length else -1 for b, length in enumerate(lengths)]
    made.graph.initializer.append(helper.make_tensor("slots", TensorProto.INT32, [batch], slots))
    made.graph.initializer.append(helper.make_tensor("table", TensorProto.INT32, [batch, 40], table.tolist()))
    return made


def many(count):
    """A chain of `count` NsaCompress nodes side by side, all on the same constant lengths."""
    nodes, outputs = [], []
    for index in range(count):
        nodes.append(models.node(outputs=(f"y{index}",)))
        nodes[-1].name = f"layer {index}"
        outputs.append(models.value(f"y{index}", np.float16, ("R", 4, 16)))
    inputs = [models.value("x", np.float16, (100, 4, 16)), models.value("w", np.float16, (32, 4))]
    return models.model(nodes, inputs, outputs, [models.lengths([40, 100])])


def layered(count):
    """`count` layers of two NsaCompress nodes, named as PyTorch's dynamo exporter names them; lengths are inputs."""
    nodes, weights, outputs = [], [], []
    for index in range(2 * count):
        weight = f"decoder.layers.{index // 2}.attention.compress_{'value' if index % 2 else 'key'}"
        nodes.append(models.node(inputs=("x", weight, "seq"), outputs=(f"windows.{index}",)))
        nodes[-1].name = f"node_nsa_compress_{index}"
        weights.append(numpy_helper.from_array(np.zeros((32, 4), np.float16), weight))
        outputs.append(models.value(f"windows.{index}", np.float16, (None, 4, 16)))
    inputs = [models.value("x", np.float16, (None, 4, 16)), models.value("seq", TensorProto.INT64, ["B"])]
    return models.model(nodes, inputs, outputs, weights)


def decomposed():
    """The compression in standard operators."""
    return onnx.parser.parse_model(RULES["NSA028"].example)


def almost():
    """What looks like the compression, but whose D no node takes."""
    return onnx.parser.parse_model(RULES["NSA028"].example.replace("4, 16]", "4, 8]"))


def without():
    """A model that has nothing to do with any of it."""
    return models.model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [models.value("x", np.float16, (4, 4))],
        [models.value("y", np.float16, (4, 4))],
        imports=(),
    )
