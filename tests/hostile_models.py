"""Models and files that tests of untrusted input use: good ones, and ones made by hand that attack the reader."""

from __future__ import annotations

import base64
import copy
import itertools
import zlib

import explain_models
import nsa_models as models
import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from nsa_onnx.checker import RULES
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.example import example_model
from nsa_onnx.operators.expand import expand

# --------------------------------------------------------------------------------------------------
# Good models


def in_branches(model):
    """The model's nodes in both branches of an If."""
    made = copy.deepcopy(model)
    outputs = [one.name for one in model.graph.output]
    inner = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(model.graph.node, "branch", [], inner)
    del made.graph.node[:]
    made.graph.node.append(helper.make_node("If", ["go"], outputs, name="if", then_branch=graph, else_branch=graph))
    made.graph.input.append(models.value("go", TensorProto.BOOL, []))
    return made


def in_function(model):
    """The model's only node called through a function that leaves its attributes to the caller."""
    made = copy.deepcopy(model)
    node = made.graph.node[0]
    inputs, outputs = [f"in{i}" for i in range(len(node.input))], [f"out{i}" for i in range(len(node.output))]
    inner = helper.make_node(node.op_type, inputs, outputs, domain=node.domain)
    for attribute in node.attribute:
        reference = AttributeProto(name=attribute.name, type=attribute.type, ref_attr_name=attribute.name)
        inner.attribute.append(reference)
    names = [attribute.name for attribute in node.attribute]
    made.functions.append(helper.make_function("f", "F", inputs, outputs, [inner], made.opset_import, names))
    node.domain, node.op_type = "f", "F"
    made.opset_import.add(domain="f", version=1)
    return made


def with_open_indices(model):
    """The model with its constants as inputs."""
    made = copy.deepcopy(model)
    for tensor in made.graph.initializer:
        made.graph.input.append(models.value(tensor.name, tensor.data_type, tensor.dims))
    del made.graph.initializer[:]
    return made


def external(model, location="weights.bin", offset="0", length=None):
    """The model with its constants in a file beside it."""
    made = copy.deepcopy(model)
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor)
        entries = {"location": location, "offset": offset, "length": str(array.nbytes) if length is None else length}
        tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
    return made


BASIC = ("compress", "infer", "portable", "pages", "ragged", "attacks", "many", "branches", "function", "external")


def good_models():
    """Small models by name, each of which a command has much to do with."""
    compress = models.compress([40, 100], x=(100, 4, 16), y=(3, 4, 16))
    found = {
        "compress": compress,
        "infer": models.infer(),
        "open lengths": models.compress(),
        "portable": expand(models.infer(table=None, x=(12, 64, 4, 16), batch=3)),
        "pages": explain_models.decode(),
        "ragged": explain_models.ragged([31, 32, 100, 160]),
        "attacks": explain_models.hostile(),
        "many": explain_models.many(5),
        "branches": in_branches(compress),
        "function": in_function(compress),
        "external": external(compress),
    }
    for operator in OPERATORS.values():
        example = example_model(operator, operator.example)
        found |= {
            f"{operator.op_type} example": example,
            f"{operator.op_type} bfloat16": example_model(operator, operator.example, TensorProto.BFLOAT16),
            f"{operator.op_type} open": with_open_indices(example),
            f"{operator.op_type} portable": expand(example),
            f"{operator.op_type} branches": in_branches(example),
            f"{operator.op_type} function": in_function(example),
            f"{operator.op_type} external": external(example),
        }
    for rule in RULES.values():
        for name, text in (("example", rule.example), ("accepted", rule.accepted)):
            if text:
                found[f"{rule.id} {name}"] = onnx.parser.parse_model(text)
    return found


# --------------------------------------------------------------------------------------------------
# Hostile models, by hand


def edited(model, edit):
    made = copy.deepcopy(model)
    edit(made)
    return made


def chain(op_type, count, **attributes):
    """NsaCompress on the end of a long chain of one operator."""
    made = models.compress([40, 100], x=(100, 4, 16))
    for index in range(count):
        names = [f"c{index}" if index else "x"], ["x2" if index == count - 1 else f"c{index + 1}"]
        inputs = names[0] * (2 if op_type == "Gather" else 1)
        made.graph.node.insert(index, helper.make_node(op_type, inputs, names[1], **attributes))
    made.graph.node[-1].input[0] = "x2"
    return made


def long_rank(rank, count):
    """A value of many dims, and many nodes that hand it on."""
    made = chain("Relu", count)
    made.graph.input[0].CopyFrom(models.value("x", np.float16, (1,) * rank))
    return made


def reshaped_to_rank(rank, count):
    made = chain("Relu", count)
    made.graph.initializer.append(models.lengths([1] * rank, "dims"))
    made.graph.node.insert(0, helper.make_node("Reshape", ["x", "dims"], ["many"]))
    made.graph.node[1].input[0] = "many"
    return made


def self_gathering(model):
    """The innermost function, and the chain of a graph, gather values by themselves."""
    model.functions[-1].node[0].CopyFrom(helper.make_node("Gather", ["x", "x"], ["y"]))


def nested(depth, kind="If"):
    inner = models.node(outputs=["y"])
    for _ in range(depth):
        graph = helper.make_graph([inner], "g", [], [helper.make_empty_tensor_value_info("y")])
        if kind == "If":
            inner = helper.make_node("If", ["go"], ["y"], then_branch=graph, else_branch=graph if depth < 8 else None)
        else:
            inner = helper.make_node("Loop", ["", "go"], ["y"], body=graph)
    source = models.compress()
    return models.model([inner], source.graph.input, source.graph.output)


def nested_file(depth):
    """The bytes of a model in a model's branch, and so on, which protobuf would not write."""

    def field(number, payload):
        size, length = len(payload), bytearray()
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2, *length, size]) + payload

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))  # graph.node.attribute.g
    return field(7, graph)


def calls(depth, width):
    """Functions that call the next one several times, the last one the first if depth is negative."""
    made = models.compress([40, 100])
    imports = [helper.make_opsetid("f", 1), helper.make_opsetid("", 18)]
    for level in range(abs(depth)):
        callee = f"F{level + 1}" if depth > 0 or level < -depth - 1 else "F0"
        names = ["x", *(f"m{i}" for i in range(width - 1)), "y"]
        pairs = itertools.pairwise(names)
        nodes = [helper.make_node(callee, [a], [b], domain="f") for a, b in pairs]
        made.functions.append(helper.make_function("f", f"F{level}", ["x"], ["y"], nodes, imports))
    if depth > 0:
        last = helper.make_node("Neg", ["x"], ["y"])
        made.functions.append(helper.make_function("f", f"F{depth}", ["x"], ["y"], [last], imports))
    made.opset_import.add(domain="f", version=1)
    made.graph.node.insert(0, helper.make_node("F0", ["x"], ["z"], domain="f"))
    return made


def huge_input(model):
    model.graph.input.append(models.value("z", np.float16, (2**62, 2**62)))


def propagating(node, size=30_000_000, more=()):
    inputs = [models.value("x", TensorProto.FLOAT, (size,))]
    return models.model([node, *more], inputs, [models.value("y", TensorProto.FLOAT, None)])


def computed(*nodes):
    """Lengths that nodes compute from the constant `big`."""
    made = models.compress([40, 100], x=(100, 4, 16))
    made.graph.initializer.append(models.lengths([2**31, 2**31], "big"))
    for index, node in enumerate(nodes):
        made.graph.node.insert(index, node)
    made.graph.node[-1].input[2] = nodes[-1].output[0]
    return made


def hand_made():
    """Models and files by name, none of which is right."""
    compress = models.compress([40, 100], x=(100, 4, 16), y=(3, 4, 16))
    infer = models.infer([31, 32, 48], x=(12, 64, 4, 16), cache=(9, 4, 16), table=(3, 4), batch=3)
    node = helper.make_node
    extremes = (2**63 - 1, -(2**63), 0, -1, 2**31, 2**62)
    sparse = edited(
        compress, lambda m: m.graph.sparse_initializer.add(dims=[2**40]).values.CopyFrom(m.graph.initializer[0])
    )
    found = {
        "empty file": b"",
        "zeros": b"\0" * 1000,
        "no graph": ModelProto(ir_version=10).SerializeToString(),
        "text": b"\x89PNG\r\n\x1a\n" * 20,
        "nested 34": nested(20),
        "nested loops": nested(20, "Loop"),
        "nested 2 to the 7": nested(7),
        "nested 500": nested_file(500),
        "nested 20000": nested_file(20000),
        "cycle": edited(compress, lambda m: m.graph.node[0].input.__setitem__(0, "y")),
        "cycle of lengths": computed(node("Add", ["b", "big"], ["a"]), node("Add", ["a", "big"], ["b"])),
        "two makers": edited(compress, lambda m: m.graph.node.append(m.graph.node[0])),
        "long chain": chain("Relu", 1000),
        "long chain of lengths": computed(
            node("Identity", ["big"], ["l0"]), *(node("Neg", [f"l{i}"], [f"l{i + 1}"]) for i in range(800))
        ),
        "many dims": long_rank(100_000, 300),
        "reshaped to many dims": reshaped_to_rank(100_000, 300),
        "ranks doubled": chain("Gather", 40),
        "ranks doubled in a function": edited(calls(12, 2), self_gathering),
        "a row of 30 million": propagating(node("Add", ["x", "x"], ["y"])),
        "doubled rows": computed(
            *(node("Concat", ["big" if not i else f"l{i}"] * 2, [f"l{i + 1}"], axis=0) for i in range(60))
        ),
        "a range": computed(node("Range", ["big", "big", "big"], ["l"])),
        "huge tile": computed(node("Tile", ["big", "big"], ["l"])),
        "huge shape": computed(node("ConstantOfShape", ["big"], ["l"])),
        "calls doubled": calls(40, 2),
        "calls to themselves": calls(-3, 1),
        "a function that calls itself": calls(-1, 2),
        "deep calls": calls(800, 1),
        "sparse": sparse,
        "1 MB names": edited(compress, lambda m: setattr(m.graph.node[0], "name", "n" * 2**20)),
        "control characters": edited(compress, lambda m: setattr(m.graph.node[0], "name", "\x1b[2J\r\n\0\x9b\u202e")),
        "control characters in an operator": edited(
            compress, lambda m: setattr(m.graph.node[0], "op_type", "\x1b[2J\n::error::x")
        ),
        "not UTF-8": compress.SerializeToString().replace(b"nsa\x22", b"\xff\xfe\xfd\x22"),
        "value not UTF-8": compress.SerializeToString().replace(b"seq", b"\xc3\x28\xff"),
        "odd domains": edited(
            compress,
            lambda m: [m.opset_import.add(domain=d, version=-1) for d in ("ai.onnx", "\n", "nsa_onnx", "n" * 999)],
        ),
        "versions": edited(compress, lambda m: [setattr(one, "version", 2**62) for one in m.opset_import]),
        "no imports": edited(compress, lambda m: m.ClearField("opset_import")),
        "dims do not fit": edited(compress, lambda m: m.graph.initializer[0].dims.append(2**62)),
        "a product of dims beyond float": edited(compress, lambda m: m.graph.initializer[0].dims.extend([2**62] * 40)),
        "100000 dims": edited(compress, lambda m: m.graph.initializer[0].dims.extend([2**62] * 100_000)),
        "no channels": models.compress([40, 100], x=(100, 4, 0), y=(3, 4, 0)),
        "no channels to decode": models.infer(x=("P", 64, 4, 0), cache=("S", 4, 0)),
        "the shape of more than NumPy counts": edited(
            chain("Relu", 1), lambda m: [m.graph.node.insert(0, node("Shape", ["z"], ["s"])), huge_input(m)]
        ),
        "dims below zero": edited(compress, lambda m: m.graph.initializer[0].dims.__setitem__(0, -(2**63))),
        "lengths at the end of int64": models.compress([2**63 - 1] * 3, x=(2**62, 4, 16)),
        "lengths below zero": models.compress([-(2**63), 2**63 - 1], x=(2**62, 4, 16)),
        "decode at the end of int64": models.infer([2**63 - 1] * 3, batch=3),
        "huge tokens": models.compress(x=(2**62, 128, 256), w=(32, 128)),
        "huge pages": models.infer(x=(2**60, 128, 63, 256), cache=(2**60, 63, 256), table=(2**40, 2**40), batch=2**40),
        "huge batch": models.infer([1], x=(2**31, 64, 4, 16), table=None, batch=2**62),
        "negative dims": models.compress(x=(-5, -(2**60), 16), w=(32, -1)),
        "float attributes": models.compress(compress_block_size=float("nan"), compress_stride=float("inf")),
        "string attributes": models.compress(compress_block_size="32", compress_stride=[16, 16]),
        "an attribute that is a graph": models.compress(compress_block_size=compress.graph),
        "an attribute without a value": edited(
            compress, lambda m: m.graph.node[0].attribute[0].CopyFrom(AttributeProto(name="compress_block_size"))
        ),
        "attributes twice": edited(
            compress, lambda m: m.graph.node[0].attribute.extend(list(m.graph.node[0].attribute))
        ),
        "100000 inputs": edited(compress, lambda m: m.graph.node[0].input.extend(["x"] * 100_000)),
        "many outputs": edited(compress, lambda m: m.graph.node[0].output.extend(["y", "", "x"])),
        "no output": edited(compress, lambda m: m.graph.node[0].ClearField("output")),
        "many segments": models.compress(list(range(1, 100_001)), x=(100_000, 4, 16)),
        "a table of garbage": edited(
            infer,
            lambda m: m.graph.initializer.append(
                helper.make_tensor("table", TensorProto.INT32, [3, 4], [2**31 - 1] * 12)
            ),
        ),
        "unknown element type": edited(compress, lambda m: setattr(m.graph.initializer[0], "data_type", 12345)),
        "strings as lengths": edited(
            compress,
            lambda m: m.graph.initializer[0].CopyFrom(helper.make_tensor("seq", TensorProto.STRING, [1], [b"\xff"])),
        ),
        "a model of NSA nodes": explain_models.many(300),
    }
    for value in extremes:
        found[f"attributes of {value}"] = models.compress([40, 100], compress_block_size=value, compress_stride=value)
        found[f"page of {value}"] = models.infer(page_block_size=value, compress_block_size=value)
    for location in ("../outside.bin", "/etc/passwd", "link", "folder", "", ".", "\0", "a" * 5000, "loop", "/dev/zero"):
        found[f"external {location[:20]!r}"] = external(compress, location)
    for offset in ("-1", "99999999999999999999", str(2**62), "x", "\u0663", ""):
        found[f"external offset {offset}"] = external(compress, offset=offset)
        found[f"external length {offset}"] = external(compress, length=offset)
    return found


SCALARS = (None, 0, -1, 17, 2**31, 2**63 - 1, -(2**63), float("nan"), float("inf"), 0.5, "x", [16, 16], [])
SHAPES = ((), (1,) * 9, (0, 0, 0), (2**62,) * 3, (2**31,) * 4, (-1, -(2**63), 16), (3, 16))


def spoilt_indices(values):
    """Index constants made of good ones, none of which is right."""
    yield from (values.reshape(()) if values.size == 1 else values.flat[0], values[:0], values[None], values[:-1])
    yield from (
        np.full_like(values, value) for value in (-1, 0, np.iinfo(values.dtype).max, np.iinfo(values.dtype).min)
    )
    yield from (values.astype(other) for other in (np.float32, np.uint8, np.bool_))
    yield values.astype(np.int32 if values.dtype == np.int64 else np.int64)
    yield values[::-1]
    if values.dtype == np.int64:
        yield from (np.full_like(values, value) for value in (2**31, 2**33, 2**62))


def spoilt(operator):
    """One model with a node for each way to spoil the operator's example: attributes, shapes, index constants."""
    example = example_model(operator, operator.example)
    made = models.model([], [], [])
    node, count = example.graph.node[0], itertools.count()

    def variant():
        one, prefix = copy.deepcopy(example.graph), f"n{next(count)}_"
        one.node[0].name = prefix
        for names in (one.node[0].input, one.node[0].output):
            names[:] = [name and prefix + name for name in names]
        for value in (*one.input, *one.output, *one.initializer):
            value.name = prefix + value.name
        return one

    def add(one):
        made.graph.MergeFrom(one)

    for index, attribute in enumerate(node.attribute):
        for value in SCALARS:
            one = variant()
            del one.node[0].attribute[index]
            if value is not None:
                kind = AttributeProto.INTS if value == [] else None
                one.node[0].attribute.append(helper.make_attribute(attribute.name, value, attr_type=kind))
            add(one)
    for index in range(len(node.input)):
        one = variant()
        one.node[0].input[index] = ""
        add(one)
    for index in range(len(example.graph.input)):
        for shape in SHAPES:
            one = variant()
            tensor = one.input[index].type.tensor_type
            tensor.CopyFrom(helper.make_tensor_type_proto(tensor.elem_type, shape).tensor_type)
            add(one)
    for index, constant in enumerate(example.graph.initializer):
        for values in spoilt_indices(numpy_helper.to_array(constant)):
            one = variant()
            one.initializer[index].CopyFrom(numpy_helper.from_array(np.asarray(values), one.initializer[index].name))
            add(one)
    made.graph.name = "spoilt"
    return made


def packed(text):
    """The bytes of a case as the fuzzer prints it."""
    return zlib.decompress(base64.b64decode(text))


def found():
    """What the fuzzer has found: files that broke a command once, by what they did."""
    return {}


def write(model, path):
    """A model, or bytes, as a file, with what its external data may be beside it."""
    folder = path.parent
    outside = folder.parent / "outside.bin"
    if not outside.exists():
        outside.write_bytes(np.array([40, 100], "<i8").tobytes())
    if not (folder / "weights.bin").exists():
        (folder / "weights.bin").write_bytes(np.array([40, 100], "<i8").tobytes())
        (folder / "link").symlink_to(outside)
        (folder / "loop").symlink_to("loop")
        (folder / "folder").mkdir()
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
