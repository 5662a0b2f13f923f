"""What rules say, word for word, on both sides of each of their conditions."""

from __future__ import annotations

import nsa_models as models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nsa_onnx.checker import check
from nsa_onnx.operators.expand import expand
from nsa_onnx.operators.model_text import integers, model
from nsa_onnx.operators.nsa_compress.rule_examples import RULE_EXAMPLES, compress, compress_node
from nsa_onnx.operators.nsa_compress_infer.rule_examples import decode, decode_node


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
            ["function nsa_onnx.NsaCompress | the portable body of NsaCompress imports opset None, ours need at least 16"],
        ),
        (BODY, "NSA026", ["function nsa_onnx.NsaCompress | the portable body of NsaCompress differs from ours"]),
        (BODY, "NSA043", []),
        (renamed_body(), "NSA043", ["Copy #1 | graph | " + COPY.format("nsa_onnx.Copy", "1 node")]),
        (renamed_body("mine", 3), "NSA043", ["Copy #1 | graph | " + COPY.format("mine.Copy", "3 nodes")]),
        (renamed_body(calls=0), "NSA043", ["function nsa_onnx.Copy | " + COPY.format("nsa_onnx.Copy", "0 nodes")]),
        (renamed_body(spoiled=True), "NSA043", ["Copy #1 | graph | " + OTHERS.format("nsa_onnx.Copy", "1 node")]),
        (renamed_body("mine", spoiled=True), "NSA043", []),
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
        (carried_by("z = nsa_onnx.NsaCompress <compress_block_size = 32, compress_stride = 16> (cache_out, w, seq)"), []),
        # A second step reads it as pages: what it hands on is its own cache.
        (carried_by(decode_node("cache_out, w, slots, cache, seq, table", "z", name="b")), [INSIDE]),
        (carried_by(decode_node("x, w, slots, cache_out, seq, table", "z", name="b")), []),
        # Nodes that do not name a cache, or have no or too many outputs, are for NSA004.
        (decode().replace("(x, w, slots, cache, seq, table)", '(x, w, slots, "", seq, table)'), []),
        (carried_by("z = Neg (x)").replace("cache_out = ", "cache_out, b = "), []),
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
