"""What rules say, word for word, on both sides of each of their conditions."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import nsa_models as models
import onnx
import pytest
from onnx import TensorProto, helper

from nsa_onnx.analysis import analyse
from nsa_onnx.checker import RULES, TARGETS, Severity, check
from nsa_onnx.checker.rules.registry import rule_of_row
from nsa_onnx.graph.outline import steps
from nsa_onnx.graph.scopes import Scope
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.contract import Row
from nsa_onnx.operators.expand import expand
from nsa_onnx.operators.model_text import integers, model
from nsa_onnx.operators.nsa_compress.rule_examples import RULE_EXAMPLES, compress, compress_node
from nsa_onnx.operators.nsa_compress_attention.rule_examples import attention, attention_node
from nsa_onnx.operators.nsa_compress_infer.rule_examples import RULE_EXAMPLES as RULE_EXAMPLES_OF_DECODE
from nsa_onnx.operators.nsa_compress_infer.rule_examples import decode, decode_node
from nsa_onnx.rulebook.rule import made_by, note, rule


def said(made, rule, **more):
    """What one rule says: of which node or place, and about which argument."""
    made = onnx.parser.parse_model(made) if isinstance(made, str) else made
    found = [one for one in check(made, **more).findings if one.rule == rule]
    return [
        " | ".join(filter(None, (one.op_type and f"{one.op_type} {one.node}", one.place, one.argument, one.message)))
        for one in found
    ]


# --------------------------------------------------------------------------------------------------
# NSA020, NSA026, NSA043, NSA045: bodies and names

BODY = RULE_EXAMPLES["NSA026"].triggers
DIFFERS = "function nsa_onnx.NsaCompress | the portable body of NsaCompress differs from ours"
OTHERS = "function {!r} is neither an operator of ours nor a copy of one's portable body ({})"
COPY = "function {!r} is the portable body of NsaCompress under another name: no kernel runs for it ({})"


def renamed_body(domain="nsa_onnx", calls=1, spoiled=False):
    """A model whose graph calls the body of NsaCompress under another name."""
    made = expand(models.compress())
    function, (node,) = made.functions[0], made.graph.node
    function.domain, function.name = domain, "Copy"
    if spoiled:
        function.node[0].attribute[0].i = 5
    del made.graph.node[:]
    made.graph.node.append(helper.make_node("Neg", ["x"], ["n"]))
    for number in range(calls):
        made.graph.node.append(helper.make_node("Copy", node.input, [f"y{number}"], domain=domain))
        made.graph.node[-1].attribute.extend(node.attribute)
    made.graph.node.append(helper.make_node("Identity", ["y0" if calls else "n"], ["y"]))
    made.opset_import.add(domain=domain, version=1)
    other = helper.make_function("first", "F", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], made.opset_import)
    made.functions.insert(0, other)
    return made


@pytest.mark.parametrize(
    ("made", "rule", "words"),
    [
        (
            RULE_EXAMPLES["NSA020"].triggers,
            "NSA020",
            ["function nsa_onnx.NsaCompress | the portable body of NsaCompress imports opset 17, the model imports 18"],
        ),
        (
            BODY.replace('["" : 18]>\nNsa', "[]>\nNsa"),
            "NSA026",
            [
                "function nsa_onnx.NsaCompress | the portable body of NsaCompress imports opset None, "
                "ours need at least 16"
            ],
        ),
        *((BODY, "NSA043", []), (renamed_body("mine", spoiled=True), "NSA043", [])),
        *((text, "NSA026", [DIFFERS]) for text in (BODY, BODY.replace("18]>\nNsa", "16]>\nNsa"))),
        (renamed_body(), "NSA043", ["Copy #1 | graph | " + COPY.format("nsa_onnx.Copy", "1 node")]),
        (renamed_body("mine", 3), "NSA043", ["Copy #1 | graph | " + COPY.format("mine.Copy", "3 nodes")]),
        (renamed_body(calls=0), "NSA043", ["function nsa_onnx.Copy | " + COPY.format("nsa_onnx.Copy", "0 nodes")]),
        (renamed_body(spoiled=True), "NSA043", ["Copy #1 | graph | " + OTHERS.format("nsa_onnx.Copy", "1 node")]),
        (renamed_body("zoo", spoiled=True), "NSA043", []),
    ],
)
def test_bodies(made, rule, words):
    assert said(made, rule) == words


def test_a_function_under_another_name_has_the_hint_that_helps():
    for spoiled, hint in ((False, "nsa-onnx expand gives the nodes their operator back"), (True, "a function of your")):
        (found,) = (one for one in check(renamed_body(spoiled=spoiled)).findings if one.rule == "NSA043")
        assert found.hint.startswith(hint)


def elsewhere(domain, count, functions=""):
    call = f"{domain}.NsaCompress" if domain else "NsaCompress"
    text = model(
        ["float16[T, 4, 16] x"],
        ["float16[R, 4, 16] y"],
        ["y = Neg (x)", *(f"z{number} = {call} (x)" for number in range(count))],
        imports=f'"{domain}" : 1' if domain else "",
    )
    return text + functions.format(domain)


FUNCTION = '<domain: "{}", opset_import: ["" : 18]>\nNsaCompress (a) => (b)\n{{\n    b = Neg (a)\n}}\n'


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (elsewhere("mine", 1), ["the domain is 'mine'; NsaCompress is an operator of 'nsa_onnx'"]),
        (elsewhere("zoo", 3), ["the domain is 'zoo'; NsaCompress is an operator of 'nsa_onnx' (2 more like it)"]),
        (
            elsewhere("", 2),
            [
                "it has no domain, which is that of standard operators; "
                "NsaCompress is an operator of 'nsa_onnx' (1 more like it)"
            ],
        ),
        (elsewhere("mine", 1, FUNCTION), []),
        (elsewhere("mine", 1).replace("NsaCompress", "Compress"), []),
        (compress(), []),
    ],
)
def test_our_names_elsewhere(made, words):
    assert said(made, "NSA045") == [f"NsaCompress #1 | graph | domain | {one}" for one in words]


# --------------------------------------------------------------------------------------------------
# NSA024 and NSA025: caches

LOST = "NsaCompressInfer nsa | graph | cache | 'cache_out', the updated cache, is no output and {}: the update is lost"
UNREAD, INSIDE = LOST.format("is read by none"), LOST.format("is read by nodes of the graph only")
AGAIN = "x, w, slots, cache, seq, table"


def carried_by(*nodes, imports="", more=""):
    """A step whose cache leaves by these nodes, as z."""
    text = decode(carried=False, after=nodes, outputs=["z"])
    return text.replace('"nsa_onnx" : 1', f'"nsa_onnx" : 1{imports}') + more


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (decode(), []),
        (carried_by("z = Neg (x)"), [UNREAD]),
        (carried_by("z = Neg (cache_out)"), [INSIDE]),
        (carried_by("a = Identity (cache_out)", "z = Neg (a)"), [INSIDE]),
        (carried_by("a = Identity (b)", "b = Identity (a)", "z = Identity (cache_out)"), []),
        (carried_by("z = mine.Foo (cache_out)", imports=', "mine" : 1'), []),
        (carried_by("z = zoo.NsaCompressInfer (cache_out)", imports=', "zoo" : 1'), []),
        # A prefill reads the cache as what it compresses: of its output more is not known.
        (
            carried_by("z = nsa_onnx.NsaCompress <compress_block_size = 32, compress_stride = 16> (cache_out, w, seq)"),
            [],
        ),
        # A second step reads it as pages: what it hands on is its own cache.
        (carried_by(decode_node("cache_out, w, slots, cache, seq, table", "z", name="b")), [INSIDE]),
        (carried_by(decode_node("x, w, slots, cache_out, seq, table", "z", name="b")), []),
        # A node that names no cache is for NSA004.
        (decode().replace("(x, w, slots, cache, seq, table)", '(x, w, slots, "", seq, table)'), []),
        (carried_by("z = Neg (x)").replace("cache_out = ", "cache_out, b = "), [UNREAD]),
    ],
)
def test_lost_updates(made, words):
    assert said(made, "NSA024") == words


@pytest.mark.parametrize("outputs", [[], [""]])
def test_a_step_without_an_output_has_no_update_to_lose(outputs):
    made = onnx.parser.parse_model(decode(carried=False, after=["z = Neg (cache)"], outputs=["z"]))
    made.graph.node[0].output[:] = outputs
    assert {one.rule for one in check(made).findings} == {"NSA004"}


STALE = "NsaCompressInfer {} | {} | cache | 'cache', the cache before the update, is read by {} after this node"


def branches(then, otherwise="o = Neg (w)"):
    return f"z = If (go) <then_branch = t () => (t) {{ {then} }}, else_branch = e () => (o) {{ {otherwise} }}>"


def around(*after, before=()):
    made = decode(before=before, after=after)
    return made.replace("float16[32, 4] w", "float16[32, 4] w, bool go")


def step_within(*after):
    """A step in a branch, with nodes behind it there."""
    node = decode_node("x, w, slots, cache, seq, table", "c", name="inner").replace("\n", " ")
    return branches(f"{node} {' '.join(after)} t = Identity (c)")


@pytest.mark.parametrize(
    ("made", "who"),
    [
        (around("[late] l = Abs (cache)", "[later] m = Exp (cache)", before=["[early] e = Neg (cache)"]), "Abs 'late'"),
        (around("l = Abs (x)", "m = Exp (cache)", before=["e = Neg (cache)"]), "Exp '#3'"),
        (around("[s] s = Shape (cache)", "[n] n = Size (cache)"), ""),
        (around(before=["[early] e = Neg (cache)"]), ""),
        (around(branches("t = Abs (cache)"), "[later] m = Exp (cache)"), "Abs '#0'"),
        (around("[first] m = Exp (cache)", branches("t = Abs (cache)")), "Exp 'first'"),
        (around(branches("cache = Neg (x) t = Abs (cache)")), ""),  # a cache of its own
        (around(decode_node(AGAIN, "c", name="b"), branches("t = Abs (x)")), "NsaCompressInfer 'b'"),
    ],
)
def test_stale_reads(made, who):
    assert said(made, "NSA025") == ([STALE.format("nsa", "graph", who)] if who else [])


@pytest.mark.parametrize(
    ("nodes", "who"),
    [
        ([step_within("[in] i = Abs (cache)"), "[out] m = Exp (cache)"], "Abs 'in'"),
        ([step_within(), "[out] m = Exp (cache)"], "Exp 'out'"),
        (["[out] m = Exp (cache)", step_within()], ""),
        ([step_within().replace("Neg (w)", "Neg (cache)")], ""),
    ],
)
def test_stale_reads_of_a_step_in_a_branch(nodes, who):
    made = model(
        [
            *("float16[12, 64, 4, 16] x", "float16[32, 4] w", "float16[9, 4, 16] cache", "int64[3] seq"),
            *("int32[3] slots", "int32[3, 4] table", "bool go"),
        ],
        ["float16[9, 4, 16] z"],
        nodes,
    )
    assert said(made, "NSA025") == ([STALE.format("inner", "graph > t of '#0'", who)] if who else [])


# --------------------------------------------------------------------------------------------------
# NSA018 and NSA019: declared types and shapes

NSA = "NsaCompress nsa | graph | output | "
GIVEN = ["float16[100, 4, 16] x", "float16[32, 4] w", "bool go"]


def declared(y, **more):
    return compress(x="100, 4, 16", y=y, seq=[40, 100], **more)


def typed(change, **more):
    """With another type for y; three windows are complete."""
    made = onnx.parser.parse_model(declared("3, 4, 16", **more))
    change(made.graph.output[0].type)
    return made


def in_branch(result, inner, y="3, 4, 16"):
    """A node in the graph, which makes y, and one in a branch, which makes ``result`` with shape ``inner``."""
    node = compress_node(output=result, name="inner").replace("\n", " ")
    branch = f"then_branch = t () => (float16[{inner}] {result}) {{ {node} }}"
    nodes = [compress_node(), f"z = If (go) <{branch}, else_branch = e () => (o) {{ o = Neg (w) }}>"]
    return model(GIVEN, [f"float16[{y}] y", "z"], nodes, [integers("seq", [40, 100])])


# A node in a branch whose first output nobody declares.
SECOND = model(
    [
        *("float16[T1, 4, 32] q", "float16[Tc, 2, 32] k", "float16[Tc, 2, 16] v", "int64[B] ends", "int64[B] tokens"),
        *("int64[B] blocks", "bool go"),
    ],
    ["z"],
    [
        f"z = If (go) <then_branch = t () => (int32[T1, 2, 3] t) {{ {attention_node(outputs='o, t', name='inner')} }}, "
        "else_branch = e () => (o) { o = Neg (q) }>"
    ],
)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (declared("3, 4, 16"), []),
        (declared("2, 4, 16"), [NSA + "'y' is declared with dim 0 = 2, inferred is 3"]),
        (declared("4, 4, 16"), [NSA + "'y' is declared with dim 0 = 4, inferred is 3"]),
        (declared("3, 4, 8"), [NSA + "'y' is declared with dim 2 = 8, inferred is 16"]),
        (declared("R, 4, 16"), []),
        (declared("3, 64"), [NSA + "'y' is declared with rank 2, inferred with rank 3"]),
        (declared("3, 1, 4, 16"), [NSA + "'y' is declared with rank 4, inferred with rank 3"]),
        (declared("4, 4, 16", stride=8), []),  # for NSA011
        (typed(lambda y: y.tensor_type.ClearField("shape")), []),
        (typed(lambda y: y.tensor_type.ClearField("elem_type")), []),
        (typed(lambda y: y.sequence_type.elem_type.SetInParent()), []),
        (typed(lambda y: y.Clear()), []),
        (
            typed(lambda y: setattr(y.tensor_type, "elem_type", TensorProto.FLOAT)),
            [NSA + "'y' is declared as float32, inferred is float16"],
        ),
        (
            typed(lambda y: setattr(y.tensor_type, "elem_type", TensorProto.BFLOAT16)),
            [NSA + "'y' is declared as bfloat16, inferred is float16"],
        ),
        # What is behind the node is said of the value.
        (
            declared("3, 4, 16", after=["z = Neg (y)"], outputs=["float16[5, 4, 16] z"]),
            ["'z' is declared with dim 0 = 5, inferred is 3"],
        ),
        # Of what nothing is known, nothing is said; without onnx's inference, our own nodes are looked at.
        (declared("3, 4, 16", before=["v = other.Foo (x)"], inputs="x, v, seq"), []),
        (
            declared("4, 4, 16", before=["v = other.Foo (x)"]),
            [NSA + "'y' is declared with dim 0 = 4, inferred is 3"],
        ),
        (
            declared("R, 4, 16", after=["z = Reshape (x, s)"], outputs=["float16[2] z"]).replace(
                "] w", "] w, int64[K] s"
            ),
            [],
        ),
        (
            SECOND,
            ["NsaCompressAttention inner | graph > t of '#0' | output | 't' is declared with dim 2 = 3, inferred is 2"],
        ),
        (in_branch("i", "3, 4, 16"), []),
        (
            in_branch("i", "3, 4, 8"),
            ["NsaCompress inner | graph > t of '#1' | output | 'i' is declared with dim 2 = 8, inferred is 16"],
        ),
        (
            in_branch("i", "4, 4, 16"),
            ["NsaCompress inner | graph > t of '#1' | output | 'i' is declared with dim 0 = 4, inferred is 3"],
        ),
        (
            in_branch("y", "5, 4, 16", "4, 4, 16"),
            [
                NSA + "'y' is declared with dim 0 = 4, inferred is 3",
                "NsaCompress inner | graph > t of '#1' | output | 'y' is declared with dim 0 = 5, inferred is 3",
            ],
        ),
    ],
)
def test_declared_types(made, words):
    assert said(made, "NSA018") == words


@pytest.mark.parametrize(("dim", "words"), [("0", []), ("-1", ["'x' is declared with dim 1 = -1"]), ("N", [])])
def test_negative_dims(dim, words):
    assert said(compress(x=f"T, {dim}, 16"), "NSA019") == words


def test_that_shapes_cannot_be_inferred_is_said_unless_an_import_is_missing():
    unknown = onnx.parser.parse_model(compress(before=["z = other.Foo (x)"]))
    (words,) = said(unknown, "NSA021")
    assert words.startswith("shapes could not be inferred: ")
    del unknown.opset_import[1]
    assert said(unknown, "NSA021") == []
    assert said(compress(), "NSA021") == []


# --------------------------------------------------------------------------------------------------
# NSA001 to NSA005: the model and its nodes


def changed(change, make=compress):
    made = onnx.parser.parse_model(make())
    change(made, made.graph.node[0])
    return made


def version(number):
    return changed(lambda made, node: setattr(made.opset_import[1], "version", number))


def attribute(name, *values, make=compress):
    """The node with an attribute of each of these values."""

    def change(made, node):
        kept = [one for one in node.attribute if one.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(name, one) for one in values)])

    return changed(change, make)


def in_function(domain_version=1, imports=1, left_out="", names=("inner", "other")):
    """Nodes in a function whose stride the call gives, or leaves out as it may leave out lengths; one in the graph."""
    own = [models.node(outputs=[f"y{number}"], compress_stride=None) for number in range(len(names))]
    for one, name in zip(own, names, strict=True):
        one.attribute.add(name=STRIDE, ref_attr_name="stride", type=onnx.AttributeProto.INT)
        one.name = name
    opsets = [helper.make_opsetid("nsa_onnx", domain_version)]
    function = helper.make_function("f", "F", ["x", "w", "seq"], ["y0"], own, opsets, ["stride"])
    source = models.compress()
    call = helper.make_node("F", ["x", "w", "seq"], ["z"], domain="f", stride=16)
    if left_out:
        getattr(call, left_out).pop()
    others = [helper.make_node(one, ["x"], [one], name=names[0], domain="nsa_onnx") for one in ("A", "Z") if left_out]
    nodes = [call, *source.graph.node, *others]
    return models.model(
        nodes, source.graph.input, source.graph.output, functions=[function], imports=(("nsa_onnx", imports), ("f", 1))
    )


IMPORT = "NsaCompress nsa | {} | opset_import | opset import of domain nsa_onnx must be version 1, {}"
STRIDE = "compress_stride"
SCHEMA = "NsaCompress nsa | graph | {} | {}"
FUNCTION_OF_OURS = '<domain: "nsa_onnx", opset_import: ["" : 18]>\nFoo (a, b, c) => (d)\n{{\n    d = Neg (a)\n}}\n'


@pytest.mark.parametrize(
    ("made", "rule", "words"),
    [
        (onnx.ModelProto(), "NSA001", ["the model has no graph"]),
        (model([], [], []), "NSA001", ["the graph has no nodes"]),
        (compress(), "NSA001", []),
        (version(0), "NSA002", [IMPORT.format("graph", "got 0")]),
        (version(1), "NSA002", []),
        (version(2), "NSA002", [IMPORT.format("graph", "got 2")]),
        (changed(lambda made, node: made.opset_import.pop()), "NSA002", [IMPORT.format("graph", "it is not imported")]),
        (in_function(), "NSA002", []),
        (in_function(3), "NSA002", [IMPORT.format("function f.F", "got 3").replace("nsa |", "inner |")]),
        (
            in_function(3, 2),
            "NSA002",
            [IMPORT.format("graph", "got 2"), IMPORT.format("function f.F", "got 3").replace("nsa |", "inner |")],
        ),
        (
            compress().replace("NsaCompress", "Foo"),
            "NSA003",
            [
                "Foo nsa | graph | domain nsa_onnx has no operator 'Foo', only NsaCompress, NsaCompressInfer, "
                "NsaCompressAttention, NsaCompressAttentionInfer, NsaSelectedAttention, NsaSelectedAttentionInfer"
            ],
        ),
        (compress().replace("NsaCompress", "Foo") + FUNCTION_OF_OURS.format(), "NSA003", []),
        (
            compress(inputs="x, w"),
            "NSA004",
            [SCHEMA.format("actual_seq_len", "actual_seq_len is a required input and is not connected")],
        ),
        (compress(inputs="x, w, seq, x"), "NSA004", [SCHEMA.format("inputs", "takes at most 3 inputs, got 4")]),
        (compress(inputs="x, v, seq"), "NSA004", [SCHEMA.format("weight", "weight: no value 'v' in the graph")]),
        (
            changed(lambda made, node: node.ClearField("output")),
            "NSA004",
            [SCHEMA.format("outputs", "must have 1 output, got 0")],
        ),
        (
            changed(lambda made, node: node.output.__setitem__(0, "")),
            "NSA004",
            [SCHEMA.format("outputs", "must have 1 output, got 0")],
        ),
        (
            changed(lambda made, node: node.output.append("b")),
            "NSA004",
            [SCHEMA.format("outputs", "must have 1 output, got 2")],
        ),
        (decode(table=None), "NSA004", []),
        (attribute("compress_stride", 16), "NSA005", []),
        (
            attribute("compress_stride"),
            "NSA005",
            [SCHEMA.format(STRIDE, f"{STRIDE} is a required attribute and is missing")],
        ),
        (attribute(STRIDE, 16, 16), "NSA005", [SCHEMA.format(STRIDE, f"{STRIDE} is given 2 times")]),
        (attribute(STRIDE, 16, 16, 16), "NSA005", [SCHEMA.format(STRIDE, f"{STRIDE} is given 3 times")]),
        (attribute(STRIDE, 1.5), "NSA005", [SCHEMA.format(STRIDE, f"{STRIDE} must be an int, got float")]),
        (attribute("foo", 1, 1), "NSA005", [SCHEMA.format("foo", "'foo' is not an attribute of NsaCompress")]),
        (
            attribute("scale_value", 1, make=attention),
            "NSA005",
            [
                "NsaCompressAttention nsa | graph | scale_value | "
                "scale_value must be a float attribute, got an int one: 1"
            ],
        ),
        (
            changed(lambda made, node: setattr(node.attribute[1], "ref_attr_name", "s")),
            "NSA005",
            [SCHEMA.format(STRIDE, f"{STRIDE} refers to 's' of a function, and is in none")],
        ),
        (in_function(), "NSA005", []),
    ],
)
def test_models_and_nodes(made, rule, words):
    assert said(made, rule) == words


@pytest.mark.parametrize(
    ("names", "who"),
    [
        (("inner",), "inner | function f.F"),
        (("inner", "other"), "inner | function f.F"),
        (("",), "#0 | function f.F"),
        (("", "other"), "#0 | function f.F"),
        # Where several have the name, it is the one that onnx gives the node.
        (("same", "same"), "node NsaCompress[nsa_onnx] (same)"),
        (("", ""), "node NsaCompress[nsa_onnx]"),
    ],
)
def test_what_a_call_leaves_out_is_said_of_the_node_in_the_function(names, who):
    missing = f"NsaCompress {who} | {STRIDE} | {STRIDE} is a required attribute and is missing"
    assert said(in_function(left_out="attribute", names=names), "NSA005") == [missing]
    missing = f"NsaCompress {who} | actual_seq_len | actual_seq_len is a required input and is not connected"
    assert said(in_function(left_out="input", names=names), "NSA004") == [missing]
    assert said(in_function(names=names), "NSA005") == []


def test_what_a_target_refuses_is_said_there_alone():
    made = onnx.parser.parse_model(decode(x="12, 64, 51, 16", w="32, 51", cache="9, 51, 16"))
    assert check(made).ok
    (found,) = check(made, target="cann-aclnn").findings
    assert (found.rule, found.argument, found.message[:22]) == ("NSA031", "input", "input: N must be even ")


def test_an_operator_that_a_target_does_not_have(monkeypatch):
    words = ["NsaCompress nsa | graph | the target does not have the operator NsaCompress, only NsaCompressInfer"]
    assert said(compress(), "NSA102", target="cann") == []
    atc = TARGETS["atc"]
    limits = {"NsaCompressInfer": atc.limits["NsaCompressInfer"]}
    monkeypatch.setitem(TARGETS, "atc", replace(atc, limits=limits))
    assert said(compress(), "NSA102", target="atc") == words


def test_a_row_is_reported_by_one_rule():
    one, other = Row("a", TypeError, "x", "", "NSA001"), Row("a", TypeError, "y", "", "NSA002")
    assert rule_of_row([{"a": one}, {"a": one}]) == {"a": "NSA001"}
    for first, second in ((one, other), (other, one)):
        with pytest.raises(ValueError, match=f"row 'a' is reported by {first.rule} and by {second.rule}"):
            rule_of_row([{"a": first}, {"a": second}])


@pytest.mark.parametrize(
    ("made", "rule_id"),
    [(compress(dtype="float"), "NSA006"), (compress(stride=8), "NSA011"), (decode(seq=[257, 0, 0]), "NSA015")],
)
def test_a_row_is_reported_by_its_rule_alone(made, rule_id):
    assert {one.rule for one in check(onnx.parser.parse_model(made)).findings} == {rule_id}


@pytest.mark.parametrize(
    ("least", "words"), [(3, []), (4, ["the model has 3 NSA nodes, at least 4 are expected"]), (0, [])]
)
def test_the_count_of_nodes(least, words):
    made = in_function()
    made.graph.node.append(helper.make_node("Foo", ["x"], ["v"], domain="nsa_onnx"))  # is none of ours
    made.functions.add().CopyFrom(made.functions[0])
    made.functions[1].name = "NeverCalled"
    assert said(made, "NSA101", min_nodes=least) == words


def test_a_node_that_is_missing_is_counted_in_the_singular():
    assert said(compress(), "NSA101", min_nodes=1) == []
    assert said(compress(), "NSA101", min_nodes=2) == ["the model has 1 NSA node, at least 2 are expected"]


# --------------------------------------------------------------------------------------------------
# NSA022, NSA023, NSA027 to NSA029

MIXED = RULE_EXAMPLES_OF_DECODE["NSA023"]
DECODE = "NsaCompressInfer {} | graph | actual_seq_len | actual_seq_len "
ALSO = DECODE.format("decode") + "is also that of NsaCompress 'prefill', which takes it for prefix sums"
FROM_CUMSUM = DECODE.format("nsa") + "comes from CumSum, so it holds prefix sums and not lengths"
SUMMED = (
    "NsaCompress nsa | graph | actual_seq_len | actual_seq_len is also summed up by CumSum, "
    "so it holds lengths and not prefix sums"
)
AXIS = "axis = Constant <value_int = 0> ()"


def given(batch):
    """The same lengths for prefill and decode, as an input of the graph."""
    text = re.sub(r"<int64\[2\] ends = {40, 100}>\n", "", MIXED.triggers)
    return text.replace("float16[32, 4] w,", f"float16[32, 4] w, int64[{batch}] ends,")


def computed(*nodes, batch=3):
    """A step whose lengths are what nodes make of ``given``."""
    text = decode(before=[AXIS, *nodes], batch=str(batch), table=f"{batch}, 4")
    return text.replace("float16[32, 4] w", f"float16[32, 4] w, int64[{batch}] given")


def pages(there, *seq):
    return decode(x=f"{there}, 64, 4, 16", batch=str(len(seq)), table=f"{len(seq)}, 5", seq=seq)


def too_many(needed, there, otherwise):
    return [
        DECODE.format("nsa") + f"needs {needed} pages of 64 tokens and input has {there}; as prefix sums, it would "
        f"stand for lengths that need {otherwise}"
    ]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (MIXED.triggers, [ALSO]),
        (MIXED.accepted, []),
        (MIXED.accepted.replace("{40, 60}", "{40, 100}"), [ALSO]),
        *((given(batch), words) for batch, words in (("2", [ALSO]), ("B", [ALSO]), ("1", []), ("1, 2", []), ("0", []))),
        # A constant says itself how many there are, whatever is declared of it.
        (MIXED.triggers.replace("[2] ends = {40, 100}", "[1] ends = {9}, int64[B] ends"), []),
        (MIXED.triggers.replace("[2] ends = {40, 100}", "[1] ends = {9}, int64[] ends"), []),
        (computed("seq = CumSum (given, axis)"), [FROM_CUMSUM]),
        (computed("s = CumSum (given, axis)", "seq = Identity (s)"), [FROM_CUMSUM]),
        (computed("s = CumSum (given, axis)", "seq = Neg (s)"), []),
        (computed("seq = Abs (given)"), []),
        (pages(15, 64, 128, 192, 256, 320), []),
        (pages(14, 64, 128, 192, 256, 320), too_many(15, 14, 5)),
        (pages(5, 64, 128, 192, 256, 320), too_many(15, 5, 5)),
        (pages(4, 64, 128, 192, 256, 320), []),
        (pages(6, 65, 128, 192, 256, 320), too_many(16, 6, 6)),
        (pages(5, 65, 128, 192, 256, 320), []),
        (pages(5, 64, 128, 192, 256, 256), too_many(14, 5, 4)),  # the last sequence is empty
        (pages(12, 320, 256, 192, 128, 64), []),
        (pages(5, 64, 128, 192, 256, 255), []),
        (pages(14, 64, 128, 192, 256, 320).replace("12, 64", "P, 64"), too_many(15, 14, 5)),
        (pages(14, 64, 128, 192, 256, 320).replace("14, 64", "P, 64"), []),
        (pages(14, 64, 128, 192, 256, 321), []),  # for NSA015
        (compress(before=[AXIS], after=["s = CumSum (seq, axis)"], outputs=["int64[B] s"]), [SUMMED]),
        (compress(after=["s = CumSum (w, seq)"]), []),
        (compress(after=["s = CumSum ()"]), []),
        (compress(before=[AXIS], after=["s = Sum (seq)"], outputs=["int64[B] s"]), []),
        (compress(before=[AXIS], after=["s = Abs (seq)"], outputs=["int64[B] s"]), []),
    ],
)
def test_lengths_and_prefix_sums(made, words):
    assert said(made, "NSA023") == words


def segments(*ends):
    return compress(x=f"{ends[-1]}, 4, 16", seq=ends)


SHORT = "NsaCompress nsa | graph | actual_seq_len | T' = 0: {}"
UNUSED = ["domain nsa_onnx is imported, and no node is of it"]
SLOT = "NsaCompressInfer nsa | graph | slot_mapping | slot_mapping{}"
UNREADABLE = decode(slots=[1, 2, 3], pages=[99] * 12).replace("int32[3] slots", "int32[4] slots")
TABLE = "NsaCompressInfer nsa | graph | block_table | block_table{}"


@pytest.mark.parametrize(
    ("made", "rule", "words"),
    [
        (model(["float16[2] x"], ["float16[2] y"], ["y = Neg (x)"]), "NSA027", UNUSED),
        (model(["float16[2] x"], ["float16[2] y"], ["y = Neg (x)"], imports='"zoo" : 1'), "NSA027", []),
        (model(["float16[2] x"], ["float16[2] y"], ["y = Neg (x)"], imports='"mine" : 1'), "NSA027", []),
        (model([], [], []), "NSA027", []),
        (segments(31, 62), "NSA022", [SHORT.format("no segment has compress_block_size = 32 tokens")]),
        (segments(31, 63), "NSA022", []),
        (segments(31, 62).replace("stride = 16", "stride = 8"), "NSA022", []),  # for NSA011
        (compress(), "NSA027", []),
        (decode(slots=[1, -1, 8]), "NSA029", []),
        (decode(slots=[0, -1, -1]), "NSA029", []),
        (decode(slots=[1, 10, 9]), "NSA029", [SLOT.format("[1] should be < 9, got 10")]),
        (
            decode(slots=[9, 9, 1]),
            "NSA029",
            [SLOT.format(w) for w in ("[0] should be < 9, got 9", "[1] should differ from slot_mapping[0], got 9")],
        ),
        (decode(slots=[0, 0, 0]), "NSA029", [SLOT.format("[1] should differ from slot_mapping[0], got 0")]),
        (decode(slots=[1, 2, 2]), "NSA029", [SLOT.format("[2] should differ from slot_mapping[1], got 2")]),
        (decode(slots=[99, 98, 97], cache="S, 4, 16"), "NSA029", []),
        (decode(pages=[0] * 6 + [12] + [0] * 5), "NSA029", [TABLE.format("[1, 2] should be < 12, got 12")]),
        (decode(pages=[0] * 11 + [13]), "NSA029", [TABLE.format("[2, 3] should be < 12, got 13")]),
        (decode(pages=[11] * 12), "NSA029", []),
        (decode(seq=[33, 33, 33], slots=[9, 1, 1]), "NSA029", []),
        (decode(slots=[9, 1, 2], block=33, w="33, 4"), "NSA029", []),  # for NSA011
        # Constant lengths are of one node: the other one may write in any step.
        (
            decode(
                seq=[33, 33, 33],
                slots=[9, 1, 1],
                after=[decode_node("x, w, slots, cache_out, n, table", "c", name="b")],
            ).replace("] w,", "] w, int64[3] n,", 1),
            "NSA029",
            [
                SLOT.replace("nsa", "b").format(w)
                for w in ("[0] should be < 9, got 9", "[2] should differ from slot_mapping[1], got 1")
            ],
        ),
        (UNREADABLE, "NSA029", []),  # for NSA017
        (UNREADABLE, "NSA017", [SLOT.format(": the data of 'slots' does not fit its shape [4]")]),
    ],
)
def test_imports_and_indices(made, rule, words):
    assert said(made, rule) == words


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dims", ["", "B"])
def test_the_rank_of_a_constant_is_its_own_whatever_is_declared(dims, target):
    made = compress(seq=[40]).replace("int64[1] seq = {40}", f"int64[1, 1] seq = {{40}}, int64[{dims}] seq")
    words = "NsaCompress nsa | graph | actual_seq_len | actual_seq_len must have rank 1 [B], got rank 2"
    assert said(made, "NSA007", target=target) == [words]


def test_operators_are_named_that_a_rule_is_about():
    sums = "NsaCompress, NsaCompressAttention and NsaSelectedAttention take prefix sums"
    assert RULES["NSA015"].documentation.startswith(sums)
    assert RULES["NSA022"].documentation.startswith("T' of NsaCompress is not 0: ")


WRITTEN = RULE_EXAMPLES["NSA028"].triggers
ROUNDED = (
    WRITTEN.replace("Cast <to = 1> (windows)", "Identity (windows)")
    .replace("Cast <to = 1> (w)", "Identity (w)")
    .replace("products = Mul", "halves = Mul")
    .replace("    sums", "    products = Cast <to = 1> (halves)\n    sums")
)
# A compression that the operator does not take, D = 8: it is left alone.
FIRST = """{
    s1 = Gather <axis = 0> (s, indices)
    s2 = Cast <to = 1> (s1)
    s3 = Cast <to = 1> (w)
    s4 = Unsqueeze (s3, last)
    s5 = Mul (s2, s4)
    s6 = ReduceSum <keepdims = 0> (s5, first)
    s7 = Cast <to = 10> (s6)
"""


@pytest.mark.parametrize(
    ("made", "node", "output", "hint"),
    [
        (WRITTEN, "compress", "y", "nsa-onnx fuse puts the node in, where it has proven that it is the same"),
        (ROUNDED, "sums", "sums", "nsa-onnx fuse --allow-rounding puts the node in, which rounds only once"),
    ],
)
def test_what_is_written_in_standard_operators(made, node, output, hint):
    made = made.replace("(float16[32, 4, 16] x", "(float16[32, 4, 8] s, float16[32, 4, 16] x").replace("{\n", FIRST, 1)
    (found,) = check(onnx.parser.parse_model(made)).findings
    assert (found.rule, found.place, found.node, found.hint) == ("NSA028", "graph", node, hint)
    assert RULES["NSA028"].title == "what NsaCompress computes is a node of it"
    window = "compress_block_size = 16, compress_stride = 16"
    form = "written in standard operators (windows times weight, summed)"
    assert found.message == f"{output!r} is NsaCompress with {window}, {form}"


# --------------------------------------------------------------------------------------------------
# What rules are made of


def checks(_):
    """What is looked for."""
    return iter([note("own", hint="this way"), note("general", node="n", argument="a")])


def test_a_rule_stamps_what_it_finds_and_takes_its_words_from_its_function():
    made = rule("NSA022", "title", hint="out", severity=Severity.WARNING)(checks)
    (own, general) = made.check(analyse(models.compress()))
    assert (own.rule, own.severity, own.message, own.hint) == ("NSA022", Severity.WARNING, "own", "this way")
    assert (general.hint, general.node, general.argument) == ("out", "n", "a")
    assert (made.documentation, made.title, made.hint) == ("What is looked for.", "title", "out")
    assert (made.example, made.accepted) == RULE_EXAMPLES["NSA022"]
    other = rule("NSA022", "title", documentation="Other words.", example="", accepted="text")(lambda _: iter(()))
    assert (other.documentation, other.example, other.accepted) == ("Other words.", "", "text")
    assert other.severity is Severity.ERROR


def test_a_rule_s_examples_are_the_first_that_an_operator_has():
    given = [operator.rule_examples["NSA004"] for operator in OPERATORS.values() if "NSA004" in operator.rule_examples]
    assert given[0].accepted == "" != given[1].accepted  # the first operator has the mistake alone
    assert (RULES["NSA004"].example, RULES["NSA004"].accepted) == (given[0].triggers, given[1].accepted)


def test_lines_of_a_documentation_that_are_wider_than_a_page_are_broken():
    fits, wide = "word " * 23 + "end", "word " * 23 + "ends"
    made = rule("NSA999", "title", documentation=f"as\n{fits}\n\n{wide}\nbroken")(checks)
    assert len(fits) == 118
    assert made.documentation == f"as\n{fits}\n\n{wide[:114]}\nends broken"


def chain(length, first="Neg"):
    """Identities behind a node, the last of which makes "n"."""
    names = ["x", *(f"n{number}" for number in range(length)), "n"]
    nodes = [helper.make_node(first, names[:1], [names[1]])]
    nodes += [helper.make_node("Identity", [one], [other]) for one, other in pairwise(names[1:])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, [2])], [])
    return Scope("graph", graph, steps(graph.node), {}, 10)


def test_a_value_is_followed_back_to_what_made_it_and_not_for_ever():
    for length, found in ((1, "n0"), (4095, "n0"), (4096, None)):
        scope = chain(length)
        assert made_by(scope, "n", {"Identity"}) == (found and (scope, found))
    assert made_by(chain(1), "n", {"Identity", "Neg"}) is None  # an input of the graph
    for name in ("", "nowhere", "x"):
        assert made_by(chain(1), name, {"Identity"}) is None
    cut = chain(1)
    cut.graph.node[1].input.append("x")  # of several inputs it is the first
    assert made_by(cut, "n", {"Identity"}) == (cut, "n0")
    del cut.graph.node[1].input[:]
    assert made_by(cut, "n", {"Identity"}) is None
