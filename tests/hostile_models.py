"""Hostile models, and a process that runs every command and the Python API on them.

``python hostile_models.py JOBS`` does the jobs of a file, one JSON object a line, and prints one line for each: what
was wrong, or nothing. A job is ``{"model": path, "command": name}``. The memory of the process is limited, and a job
that takes too long ends it; the parent (`run_jobs`) then knows which job that was, and goes on with the next one.
``python hostile_models.py --fuzz SECONDS SEED FOLDER`` mutates good models for that long, and writes to FOLDER what
broke a command.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import io
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

import explain_models
import nsa_models as models
import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

MEMORY = 2_500 * 2**20  # address space; onnxruntime and its threads take up to 1 GB of it before they do anything
SLOW_SECONDS = 10  # of the processor; what a small file must not take
JOB_SECONDS = 60  # with slack for machines that are busy with something else; a job takes milliseconds

TARGETS = ("cpu", "cann", "cann-aclnn", "atc")
COMMANDS = (
    *(f"check {target}" for target in TARGETS),
    *("run", "infer-shapes", "expand", "prepare atc", "prepare cann", "fuse", "fuse rounding", "explain", "api"),
)


# --------------------------------------------------------------------------------------------------
# Jobs


def arguments_of(command, model, out):
    """The command line of a command, which writes nothing but files whose names begin with `out`."""
    kind, _, rest = command.partition(" ")
    files = [f"--format={name}={out}.{name}" for name in ("json", "sarif", "junit", "github")]
    return {
        "check": ["check", model, "--target", rest],
        "run": ["check", model, "--run", "--format=text", *files],
        "infer-shapes": ["infer-shapes", model, "-o", out],
        "expand": ["expand", model, "-o", out],
        "prepare": ["prepare", model, "-o", out, "--target", rest],
        "fuse": ["fuse", model, "-o", out, *(["--allow-rounding", "--verify"] if rest else [])],
        "explain": ["explain", model, "--html", out],
    }[kind]


def do(job):
    """What is wrong with how a command takes a model; empty if nothing is."""
    model = job["model"]
    out = Path(model).with_name("hostile-out")
    for old in out.parent.glob("hostile-out*"):
        old.unlink()
    if job["command"] == "api":
        return api(model)
    from nsa_onnx.cli import main

    stdout, stderr = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = main(arguments_of(job["command"], model, str(out)))
    except BaseException as error:  # SystemExit, too: the command line is right
        return f"raised {type(error).__name__}: {str(error)[:300]}"
    return complaint(status, stdout.getvalue(), stderr.getvalue(), out, is_check=job["command"] in COMMANDS[:5])


def complaint(status, stdout, stderr, out, is_check):
    for text, said in (("stdout", stdout), ("stderr", stderr)):
        bad = [char for char in said if not char.isprintable() and char != "\n"]
        if bad:
            return f"{text} has the control character {bad[0]!r}: {said[:300]!r}"
        for word in ("Traceback", "cannot be checked", "MemoryError", "bad_alloc", "RecursionError", "AssertionError"):
            if word in said:
                return f"{text}: {said[:500]!r}"
    if status not in (0, 1, 2):
        return f"exit status {status}"
    if status == 2 and not stderr:
        return "exit status 2 without a word on stderr"
    if not is_check and out.exists() != (status == 0):
        return f"exit status {status}, and the output file is {'there' if out.exists() else 'missing'}"
    return ""


def api(path):
    """The Python functions, on a model that has been parsed: nothing but the errors that they promise."""
    import nsa_onnx
    from nsa_onnx import fuse
    from nsa_onnx.explain import explain
    from nsa_onnx.operators import expand
    from nsa_onnx.targets import atc, cann

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # no model: there is nothing to give to the functions
        return ""
    calls = {
        "check": lambda: [nsa_onnx.check(model).to_json(), nsa_onnx.check(path, target="atc", run=True).to_text()],
        "explain": lambda: explain(model),
        "candidates": lambda: fuse.candidates(model),
        "fuse": lambda: fuse.fuse(model, folder=Path(path).parent),
        "expand": lambda: expand.expand(model),
        "prepare_atc": lambda: atc.prepare_atc(model),
        "prepare cann": lambda: cann.prepare(model),
    }
    for name, call in calls.items():
        try:
            call()
        except UnicodeError as error:  # a ValueError, but of Python's own making
            return f"{name} raised {type(error).__name__}: {error}"
        except ValueError:
            if name == "candidates":
                return "candidates raised a ValueError, and says that it never raises"
        except Exception as error:
            return f"{name} raised {type(error).__name__}: {str(error)[:300]}"
    return ""


def confine():
    """Limit the memory of this process. Its files need not survive a power cut, which would take most of the time."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.fsync = lambda file: None


def work(jobs):
    """In a process of its own: do the jobs, printing which one is begun and what was wrong with it."""
    confine()
    for job in jobs:
        faulthandler.dump_traceback_later(JOB_SECONDS, exit=True)
        print(json.dumps({"begun": job}), flush=True)
        begin = time.process_time()
        wrong = do(job)
        print(json.dumps({"done": job, "wrong": wrong, "seconds": time.process_time() - begin}), flush=True)
    faulthandler.cancel_dump_traceback_later()


def run_jobs(jobs, folder):
    """What is wrong with the jobs that went wrong: (job, text). A job that ends its process is one of them."""
    failures, left = [], list(jobs)
    while left:
        todo = Path(folder) / "jobs.json"
        todo.write_text(json.dumps(left))
        command = [sys.executable, __file__, str(todo)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
        finished = [line for line in lines if "done" in line]
        failures += [(line["done"], line["wrong"]) for line in finished if line["wrong"]]
        left = left[len(finished) :]
        if left:
            failures.append((left[0], f"the process ended with {done.returncode}: {done.stderr[-1500:]}"))
            del left[0]
    return failures


# --------------------------------------------------------------------------------------------------
# Good models


def in_branches(model):
    """The model's nodes in both branches of an If."""
    made = copy.deepcopy(model)
    graph = helper.make_graph(model.graph.node, "branch", [], [helper.make_empty_tensor_value_info("y")])
    del made.graph.node[:]
    made.graph.node.append(helper.make_node("If", ["go"], ["y"], name="if", then_branch=graph, else_branch=graph))
    made.graph.input.append(models.value("go", TensorProto.BOOL, []))
    return made


def in_function(model):
    """The model's only node called through a function that leaves its attributes to the caller."""
    made = copy.deepcopy(model)
    node = made.graph.node[0]
    inner = helper.make_node(node.op_type, ["a", "b", "c"], ["d"], domain=node.domain)
    for attribute in node.attribute:
        reference = AttributeProto(name=attribute.name, type=attribute.type, ref_attr_name=attribute.name)
        inner.attribute.append(reference)
    names = [attribute.name for attribute in node.attribute]
    made.functions.append(helper.make_function("f", "F", ["a", "b", "c"], ["d"], [inner], made.opset_import, names))
    node.domain, node.op_type = "f", "F"
    made.opset_import.add(domain="f", version=1)
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


def good_models():
    """Small models by name, each of which a command has much to do with."""
    from nsa_onnx.checker import RULES
    from nsa_onnx.operators.expand import expand

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


# --------------------------------------------------------------------------------------------------
# Mutations

INTEGERS = (
    0,
    1,
    -1,
    2,
    7,
    15,
    16,
    17,
    32,
    64,
    100,
    2**15,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)
TEXTS = (
    "",
    "x",
    "y",
    "seq",
    "nsa_onnx",
    "ai.onnx",
    "NsaCompress",
    "NsaCompressInfer",
    "If",
    "Loop",
    "Gather",
    "Reshape",
)
TEXTS += (
    "\0",
    "\x1b[31m",
    "a\nb",
    "../x",
    "/etc/passwd",
    "\u202e",
    "n" * 1000,
    "Concat",
    "Constant",
    "Shape",
    "Cast",
    "Add",
)
FLOATS = (float("nan"), float("inf"), -0.0, 1e38)


def messages(message, depth=0):
    """The message and all in it."""
    yield message
    if depth < 60:
        for descriptor, value in message.ListFields():
            if descriptor.message_type is not None:
                for one in value if hasattr(value, "add") else [value]:
                    yield from messages(one, depth + 1)


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


def mutated(rng, pool):
    """The bytes of a good model, made worse."""
    model = ModelProto()
    model.CopyFrom(rng.choice(pool))
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 10))):
        kind = rng.random()
        if kind < 0.7:
            mutate_field(rng, rng.choice(list(messages(model))))
        elif kind < 0.85:
            connect_anew(rng, model)
        elif kind < 0.9:
            nest(rng, model)
        else:  # of another model, a part
            other = rng.choice(pool)
            model.graph.node.extend(other.graph.node)
            model.graph.initializer.extend(other.graph.initializer)
            model.functions.extend(other.functions)
    data = bytearray(model.SerializeToString())
    if rng.random() < 0.3 and data:
        for _ in range(rng.choice((1, 1, 3, 10))):
            at = rng.randrange(len(data))
            way = rng.randrange(4)
            if way == 0:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1 << rng.randrange(8)))
            elif way == 1:
                del data[at : at + rng.choice((1, 2, 8))]
            elif way == 2:
                data[at:at] = data[at : at + rng.choice((1, 8, 64))]
            elif rng.random() < 0.2:
                del data[at:]
            if not data:
                break
    return bytes(data)


def fuzz(seconds, seed, folder):
    """Jobs on mutated models for some seconds; each mutated model meets some of the commands. Ends at a failure."""
    rng = random.Random(seed)
    pool = list(good_models().values())
    path = Path(folder) / "mutated.onnx"
    begin, count = time.process_time(), 0
    confine()
    while time.process_time() - begin < seconds:
        write(mutated(rng, pool), path)
        count += 1
        for command in rng.sample(COMMANDS, 4):
            job = {"model": str(path), "command": command}
            faulthandler.dump_traceback_later(JOB_SECONDS, exit=True)
            print(json.dumps({"begun": job}), flush=True)
            started = time.process_time()
            wrong = do(job)
            if not wrong and time.process_time() - started > SLOW_SECONDS:
                wrong = f"took {time.process_time() - started:.1f} s"
            if wrong:
                print(json.dumps({"done": job, "wrong": wrong}), flush=True)
                os._exit(1)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({"models": count}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--fuzz":
        fuzz(float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        work(json.loads(Path(sys.argv[1]).read_text()))
