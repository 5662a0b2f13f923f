"""Makes good models worse: fields, graphs, NSA nodes and bytes, all decided by a `random.Random`."""

from __future__ import annotations

import copy

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.contract import DOMAIN

INTEGERS = (
    *(0, 1, -1, 2, 7, 15, 16, 17, 32, 64, 100, 2**15, 2**31 - 1, 2**31, -(2**31), 2**32, 2**40),
    *(2**62, 2**63 - 1, -(2**63), 2**63 - 16),
)
WORDS = ("x", "y", "seq", "ai.onnx", "If", "Loop", "Gather", "Reshape", "Concat", "Constant", "Shape", "Cast", "Add")
NAMES = (
    *("", "\0", "\x1b[31m", "\x1b]0;title\x07", "a\nb", "\r\n", "\x9b2J", "\u2028::error::x", "\u202e", "\ufeff"),
    *("::error::x", "\n::set-output name=a::b", "##vso[task.setvariable variable=a]b", "##[error]x", "%0A::error::x"),
    *("<script>alert(1)</script>", '" onload="alert(1)', "&amp;]]>", "]]>", "{}", "%s%n", "{x.__class__}"),
    *("../x", "/etc/passwd", "n" * 1000, "n" * 70_000, "\U0001f600" * 50, "a/b", "-o", "~", "None", "nan"),
)
TEXTS = (*WORDS, *OPERATORS, DOMAIN, *NAMES)
FLOATS = (float("nan"), float("inf"), -float("inf"), -0.0, 1e38, 1e-45)


def messages(message):
    """The message and all in it."""
    found, todo = [], [message]
    while todo:
        one = todo.pop()
        found.append(one)
        for descriptor, value in one.ListFields():
            if descriptor.message_type is not None:
                todo.extend(value if hasattr(value, "add") else [value])
    return found


def mutate_field(rng, message):
    """Change one field of a message: drop, repeat, swap or replace what is there, or set what is not."""
    descriptor = rng.choice(message.DESCRIPTOR.fields)
    there = [one for one, _ in message.ListFields()]
    if there and rng.random() < 0.8:
        descriptor = rng.choice(there)
    name = descriptor.name
    value = getattr(message, name)
    if rng.random() < 0.1:
        message.ClearField(name)
    elif hasattr(value, "extend"):
        mutate_repeated(rng, value, descriptor)
    elif descriptor.message_type is not None:
        value.SetInParent()
    else:
        setattr(message, name, scalar(rng, descriptor))


def scalar(rng, descriptor):
    kind = descriptor.type
    if kind == descriptor.TYPE_STRING:
        return rng.choice(TEXTS)
    if kind == descriptor.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 8, 16, 100)))
    if kind in (descriptor.TYPE_FLOAT, descriptor.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    if kind == descriptor.TYPE_ENUM:
        return rng.choice([value.number for value in descriptor.enum_type.values])
    bound = 2**31 if kind == descriptor.TYPE_INT32 else 2**63
    low = 0 if kind == descriptor.TYPE_UINT64 else -bound
    return rng.choice([value for value in INTEGERS if low <= value < bound])


def mutate_repeated(rng, values, descriptor):
    way = rng.choice(("delete", "repeat", "swap", "set", "flood"))
    if not values or way == "set":
        if descriptor.message_type is not None:
            values.add()
        elif values:
            values[rng.randrange(len(values))] = scalar(rng, descriptor)
        else:
            values.append(scalar(rng, descriptor))
        return
    first, second = (rng.randrange(len(values)) for _ in range(2))
    if way == "delete":
        del values[first]
    elif way == "repeat":
        values.extend([values[first]])
    elif way == "flood":
        values.extend([values[first]] * rng.choice((2, 10, 100)))
    elif descriptor.message_type is None:
        values[first], values[second] = values[second], values[first]
    else:
        kept = copy.deepcopy(values[first])
        values[first].CopyFrom(copy.deepcopy(values[second]))
        values[second].CopyFrom(kept)


def connect_anew(rng, model):
    """Give a node another value of the model as an input or output, itself included: cycles, two makers."""
    nodes = [one for one in messages(model) if isinstance(one, NodeProto)]
    names = [name for node in nodes for name in (*node.input, *node.output)]
    if nodes and names:
        node = rng.choice(nodes)
        side = rng.choice((node.input, node.output))
        if side:
            side[rng.randrange(len(side))] = rng.choice(names)


def nest(rng, model):
    """Put the main graph into a branch, a loop's body or a function of itself, some times."""
    for _ in range(rng.choice((1, 2, 20))):
        if model.ByteSize() > 100_000:
            return
        inner = GraphProto()
        inner.CopyFrom(model.graph)
        if rng.random() < 0.5:
            del inner.input[:], inner.initializer[:]
        node = helper.make_node(rng.choice(("If", "Loop", "Scan", "Foo")), ["go"], [o.name for o in inner.output])
        for name in rng.choice((("body",), ("then_branch", "else_branch"))):
            node.attribute.append(helper.make_attribute(name, inner))
        if rng.random() < 0.7:
            del model.graph.node[:]
        model.graph.node.append(node)


def attribute(rng, name):
    """An attribute of any type, its value at an edge."""
    made = AttributeProto(name=name, type=rng.choice(list(AttributeProto.AttributeType.values())))
    way = rng.randrange(8)
    if way == 0:
        made.i = rng.choice(INTEGERS)
    elif way == 1:
        made.f = rng.choice(FLOATS)
    elif way == 2:
        made.s = rng.choice(NAMES).encode()
    elif way == 3:
        made.ints.extend(rng.choice(INTEGERS) for _ in range(rng.choice((1, 2, 30))))
    elif way == 4:
        made.t.CopyFrom(tensor(rng, "t"))
    elif way == 5:
        made.ref_attr_name = rng.choice((name, "other", ""))
    elif way == 6:
        made.g.name = "no nodes"
    if way < 4 and rng.random() < 0.8:  # the type that belongs to the value
        made.type = (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING, AttributeProto.INTS)[way]
    return made


def tensor(rng, name):
    """A constant whose type, dims and data need not fit together, or lie elsewhere."""
    made = TensorProto(name=name, data_type=rng.choice((TensorProto.INT64, TensorProto.INT32, *range(24), 12345)))
    made.dims.extend(rng.choice((0, 1, 2, 3, 3, *INTEGERS)) for _ in range(rng.choice((0, 1, 1, 2, 3, 9))))
    way = rng.randrange(5)
    if way == 0:
        made.raw_data = rng.randbytes(rng.choice((0, 7, 8, 24, 100)))
    elif way == 1:
        made.int64_data.extend(rng.choice(INTEGERS) for _ in range(rng.choice((1, 2, 3, 4))))
    elif way == 2:
        made.int32_data.extend(rng.choice((0, -1, 7, 2**31 - 1)) for _ in range(rng.choice((1, 2, 3, 4))))
    elif way == 3:
        made.data_location = TensorProto.EXTERNAL
        locations = ("weights.bin", "../outside.bin", "link", "loop", "folder", "/dev/zero", *NAMES)
        for key, values in (
            ("location", locations),
            ("offset", ("0", "8", "-1", "9" * 18, "9" * 30, "x")),
            ("length", ("16", "0", "-1", "9" * 30)),
        ):
            if rng.random() < 0.8:
                made.external_data.add(key=key, value=rng.choice(values))
    return made


def spoil_node(rng, model):
    """Change what an NSA node is given: an attribute, an input, or a constant behind one."""
    nodes = [one for one in messages(model) if isinstance(one, NodeProto) and one.op_type in OPERATORS]
    if not nodes:
        return
    node = rng.choice(nodes)
    operator = OPERATORS[node.op_type]
    way = rng.randrange(6)
    if way == 0:
        name = rng.choice(operator.attribute_names)
        kept = [one for one in node.attribute if one.name != name or rng.random() < 0.1]
        del node.attribute[:]
        node.attribute.extend([*kept, attribute(rng, name)])
    elif way == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice((*node.input, "", "nobody makes this"))
    elif way == 2 and node.input:
        index = rng.randrange(len(node.input))
        node.input[index] = f"spoilt {index}"
        model.graph.initializer.append(tensor(rng, node.input[index]))
    elif way == 3:
        constants = [one for one in model.graph.initializer if one.name in node.input]
        if constants:
            spoil_values(rng, rng.choice(constants))
    elif way == 4:
        node.op_type = rng.choice(list(OPERATORS))
    else:
        for name in ("name", "domain", "overload"):
            if rng.random() < 0.3:
                setattr(node, name, rng.choice(TEXTS))


def spoil_values(rng, constant):
    """Change some of an index constant's elements."""
    items = {TensorProto.INT64: 8, TensorProto.INT32: 4}
    size = items.get(constant.data_type, 1)
    data = bytearray(constant.raw_data)
    for _ in range(rng.choice((1, 1, 3))):
        if len(data) >= size:
            at = rng.randrange(len(data) // size) * size
            value = rng.choice(INTEGERS) % 2 ** (8 * size)
            data[at : at + size] = value.to_bytes(size, "little")
    constant.raw_data = bytes(data)


def spoil_shape(rng, model):
    """Change the shape that the model says a value has."""
    values = [one for one in messages(model.graph) if one.DESCRIPTOR.name == "ValueInfoProto"]
    if not values:
        return
    value = rng.choice(values).type.tensor_type
    if value.shape.dim and rng.random() < 0.8:
        dim = rng.choice(value.shape.dim)
        if rng.random() < 0.6:
            dim.dim_value = rng.choice(INTEGERS)
        else:
            dim.dim_param = rng.choice(NAMES)
    elif rng.random() < 0.5:
        value.shape.dim.add()
    else:
        value.elem_type = rng.randrange(24)


def spoil_functions(rng, model):
    """A function that calls itself, another one, or has the name of an operator; imports of odd versions."""
    if model.functions and rng.random() < 0.7:
        function = rng.choice(model.functions)
        callee = rng.choice(model.functions)
        way = rng.randrange(4)
        if way == 0 and function.node:
            node = rng.choice(function.node)
            node.op_type, node.domain = callee.name, callee.domain
        elif way == 1:
            function.domain, function.name = DOMAIN, rng.choice(list(OPERATORS))
        elif way == 2:
            function.name = rng.choice(NAMES)
        else:
            model.functions.append(callee)
    elif model.opset_import:
        imported = rng.choice(model.opset_import)
        imported.version = rng.choice((0, 1, 7, 13, 18, 99, *INTEGERS))
        if rng.random() < 0.3:
            imported.domain = rng.choice(TEXTS)


SPOILERS = (spoil_node, spoil_node, spoil_node, spoil_shape, spoil_functions, connect_anew, nest)


def spoil_bytes(rng, data):
    for _ in range(rng.choice((1, 1, 3, 10))):
        if not data:
            return
        at = rng.randrange(len(data))
        way = rng.randrange(5)
        if way == 0:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.randrange(8)))
        elif way == 1:
            del data[at : at + rng.choice((1, 2, 8))]
        elif way == 2:
            data[at:at] = data[at : at + rng.choice((1, 8, 64))]
        elif way == 3:
            data[at : at + 10] = b"\xff" * rng.choice((1, 5, 10))
        elif rng.random() < 0.2:
            del data[at:]


def mutated(rng, pool):
    """The bytes of a good model, made worse."""
    model = ModelProto()
    model.CopyFrom(rng.choice(pool))
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 10))):
        if rng.random() < 0.5:
            rng.choice(SPOILERS)(rng, model)
        elif rng.random() < 0.9:
            mutate_field(rng, rng.choice(messages(model)))
        else:  # of another model, a part
            other = rng.choice(pool)
            model.graph.node.extend(other.graph.node)
            model.graph.initializer.extend(other.graph.initializer)
            model.functions.extend(other.functions)
    data = bytearray(model.SerializeToString())
    if rng.random() < 0.2:
        spoil_bytes(rng, data)
    return bytes(data)
