"""Rule NSA042: the nodes that an empty axis (T' = 0) reaches. Its table of operators: tests/test_empty_dims.py."""

from __future__ import annotations

import onnx
import pytest

from nsa_onnx.checker import RULES, check
from nsa_onnx.operators.model_text import model
from nsa_onnx.operators.nsa_compress.rule_examples import compress, compress_node
from nsa_onnx.targets.cpu import ONNXRUNTIME, STOPS

EINSUM = '[scores] z = Einsum <equation = "qhd,khd->hqk"> (q, {})'
QUERY = "float16[Q, 4, 16] q"


def found(text, more=(QUERY,), **arguments):
    text = text.replace("float16[32, 4] w", ", ".join(["float16[32, 4] w", *more]))
    report = check(onnx.parser.parse_model(text), **arguments)
    assert not [one for one in report.findings if one.rule in ("NSA021", "NSA004")], report.to_text()
    return [one for one in report.findings if one.rule == "NSA042"]


def with_after(*after, more=(QUERY,), output="float16 z", **arguments):
    return found(compress(after=after, outputs=[output], **arguments), more)


def test_the_documentation_says_where_the_process_dies_and_where_the_run_fails():
    _, dying, _, failing, _ = RULES["NSA042"].documentation.split("\n\n")
    for text, dies in ((dying, True), (failing, False)):
        listed = text.replace("\n", " ").removesuffix(".").split(", ")
        assert listed == [name for name, stop in STOPS.items() if stop.dies is dies]


def test_the_prompt_that_is_shorter_than_a_window():
    (one,) = with_after(EINSUM.format("y"))
    assert (one.op_type, one.node, one.severity.value) == ("Einsum", "scores", "warning")
    assert "'nsa' may be 0" in one.message
    assert "dies" in one.message
    assert "MatMul" in one.hint


@pytest.mark.parametrize(
    "between",
    [
        ["k = Cast <to = 1> (y)", "z = CastLike (k, y)"],
        [
            *("s = Constant <value_ints = [-1, 64]> ()", "a = Reshape (y, s)", "b = Relu (a)"),
            *("t = Constant <value_ints = [-1, 4, 16]> ()", "z = Reshape (b, t)"),
        ],
        ["a = Transpose <perm = [1, 0, 2]> (y)", "b = Softmax <axis = 1> (a)", "z = Transpose <perm = [1, 0, 2]> (b)"],
        ["i = Constant <value_ints = [0]> ()", "a = Unsqueeze (y, i)", "z = Squeeze (a, i)"],
        ["a, b = Split <axis = 2, num_outputs = 2> (y)", "z = Concat <axis = 2> (a, b)"],
        ["e = Constant <value_float = 1.0> ()", "f = CastLike (e, y)", "z = Mul (f, y)"],
    ],
)
def test_through_nodes_that_keep_the_axis(between):
    nodes = [one.replace("z = ", "k_last = ") for one in between]
    (one,) = with_after(*nodes, EINSUM.format("k_last"))
    assert one.op_type == "Einsum"


@pytest.mark.parametrize(
    "between",
    [
        ["k = Concat <axis = 0> (null, y)"],
        ["k = Concat <axis = 0> (y, null)"],
        ["p = Constant <value_ints = [1, 0, 0, 0, 0, 0]> ()", "k = Pad (y, p)"],
        ["r = Shape <start = 0, end = 1> (y)", "k = SomeReshape (y, r)"],
    ],
)
def test_not_where_a_null_row_is_in_front(between):
    between = [one.replace("SomeReshape", "Expand").replace("(y, r)", "(null, r)") for one in between]
    assert not with_after(*between, EINSUM.format("k"), more=(QUERY, "float16[1, 4, 16] null"))


def test_not_where_the_empty_axis_goes_elsewhere():
    # Summed over the compressed tokens: none of the sum's axes is theirs.
    nodes = ["i = Constant <value_ints = [0]> ()", "k = ReduceSum (y, i)", EINSUM.format("k")]
    assert not with_after(*nodes)
    gemm = ["a = Transpose <perm = [1, 2, 0]> (y)", "b = Transpose <perm = [1, 0, 2]> (y)", "k = MatMul (a, b)"]
    assert not with_after(*gemm, EINSUM.format("k"))


def test_not_where_a_window_is_certain():
    assert not with_after(EINSUM.format("y"), seq=[40, 100], x="100, 4, 16")
    assert not with_after(EINSUM.format("y"), y="3, 4, 16")
    # Two sequences of 63 tokens together: one has at least 32.
    text = compress(x="63, 4, 16", after=[EINSUM.format("y")], outputs=["float16 z"])
    assert not found(text.replace("int64[B] seq", "int64[2] seq"))
    text = text.replace("int64[B] seq", "int64[2] seq").replace("63, 4", "62, 4")
    assert len(found(text)) == 1


def test_with_constant_lengths_that_give_nothing():
    (one,) = with_after(EINSUM.format("y"), seq=[31], x="31, 4, 16", y="0, 4, 16")
    assert one.op_type == "Einsum"


def test_attention_top_k_and_reshape():
    kv = ["i = Constant <value_ints = [0]> ()", "k = Unsqueeze (y, i)", "t = Transpose <perm = [0, 2, 1, 3]> (k)"]
    text = compress(after=[*kv, "[a] z = Attention (q, t, t)"], outputs=["float16 z"]).replace('"" : 18', '"" : 23')
    (one,) = found(text, ("float16[1, 4, Q, 16] q",))
    assert one.op_type == "Attention"
    assert "fails" in one.message
    nodes = ["a = Transpose <perm = [1, 2, 0]> (y)", "n = Constant <value_ints = [{}]> ()", "z, i = TopK (a, n)"]
    assert len(with_after(nodes[0], nodes[1].format(2), nodes[2])) == 1
    assert not with_after(nodes[0], nodes[1].format(0), nodes[2])
    reshaped = ["s = Constant <value_ints = [0, -1]> ()", "z = Reshape (y, s)"]
    (one,) = with_after(*reshaped)
    assert "numbers" in one.hint


def test_in_functions_and_subgraphs():
    body = 's = Einsum <equation = "qhd,khd->hqk"> (q, k)'
    function = f'<domain: "f", opset_import: ["" : 18]>\nF (q, k) => (s)\n{{\n    {body}\n}}\n'
    imports = '"nsa_onnx" : 1, "f" : 1'
    text = compress(after=["z = f.F (q, y)"], outputs=["float16 z"], imports=imports) + function
    (one,) = found(text)
    assert one.place == "function f.F"
    branch = "{}_branch = g{} () => (float16 {}) {{ {} }}"
    inside = branch.format("then", 1, "s", EINSUM.format("y").replace("z = ", "s = "))
    other = branch.format("else", 2, "e", "e = Identity (q)")
    guarded = with_after(f"z = If (go) <{inside}, {other}>", more=(QUERY, "bool go"))
    assert not guarded
    made = compress_node(output="c").replace("\n", " ")
    inside = branch.format("then", 1, "s", f"{made} {EINSUM.format('c').replace('z = ', 's = ')}")
    text = model(
        ["float16[T, 4, 16] x", "float16[32, 4] w", "int64[B] seq", QUERY, "bool go"],
        ["float16 z"],
        [f"z = If (go) <{inside}, {other}>"],
    )
    (one,) = found(text, ())
    assert "then_branch" in one.place or "g1" in one.place
    returned = branch.format("then", 1, "c", made)
    text = (
        text.replace(inside, returned).replace("z = If", "k = If").replace("}\n", f"    {EINSUM.format('k')}\n}}\n", 1)
    )
    (one,) = found(text, ())
    assert one.place == "graph"


@pytest.mark.parametrize(
    "node",
    [
        'z = Transpose <perm = "no"> (y)',
        "z = Transpose <perm = [7, 8, 9]> (y)",
        'z = Einsum <equation = "a"> (y)',
        "z = Flatten <axis = [1]> (y)",
        'z = TopK <axis = "x"> (y, seq)',
        "z = Gather (y)",
        "z = Pad (y)",
        "z = Concat (y)",
        'z = Scan <num_scan_inputs = "a"> (y)',
        "z = Scan <num_scan_inputs = 1099511627776> (y)",
    ],
)
def test_a_broken_node_ends_nothing(node):
    check(onnx.parser.parse_model(compress(after=[node], outputs=["float16 z"])))


@pytest.mark.parametrize("op_type", ["Relu", "Einsum", "Split", "If", "Reshape"])
def test_a_node_without_outputs_ends_nothing(op_type):
    made = onnx.parser.parse_model(compress())
    made.graph.node.add(op_type=op_type, input=["y"])
    assert check(made).nodes == ("nsa",)
    del made.graph.node[0].output[:]
    assert not check(made).ok


# --------------------------------------------------------------------------------------------------
# Each condition on both sides


def words(report):
    return [(one.op_type, one.node, one.place, one.message) for one in report.findings if one.rule == "NSA042"]


DIES = (
    "T' of NsaCompress {!r} may be 0, and reaches this node: the process dies there "
    f"(onnxruntime {ONNXRUNTIME}: {STOPS['Einsum'].reason})"
)
ANOTHER = EINSUM.format("y").replace("[scores] z", "again")
MADE = compress_node("x, w, seq", "v").replace("\n", " ")
SCORES = 's = Einsum <equation = "qhd,khd->hqk"> (q, y)'
PAIR = f'<domain: "f", opset_import: ["" : 18]>\nPair (q, y) => (s)\n{{\n    {SCORES}\n}}\n'
SAME = '<domain: "f", opset_import: ["" : 18]>\nSame (a) => (b)\n{\n    b = Relu (a)\n}\n'
AGAIN = '<domain: "f", opset_import: ["f" : 1]>\nAgain (a) => (b)\n{\n    b = f.Same (a)\n}\n'
NODE = compress_node("x, w, n", "v").replace("\n", " ")
OWN = f'<domain: "f", opset_import: ["nsa_onnx" : 1, "f" : 1]>\nOwn (x, w, n) => (k) {{ {NODE} k = f.Same (v) }}\n'
# onnxruntime computes an operator that it has itself.
HIDDEN = '<domain: "", opset_import: ["" : 18]>\nEinsum (a, b) => (c)\n{\n    c = MatMul (a, b)\n}\n'


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([EINSUM.format("y")], [("Einsum", "scores", "graph")]),
        ([EINSUM.format("y"), ANOTHER], [("Einsum", "scores", "graph"), ("Einsum", "#2", "graph")]),
        # A node of another domain is not known; one that is, is.
        (["k = Eff (q) <body = g () => (s) { " + SCORES + " }>"], [("Einsum", "#0", "graph > g of '#1'")]),
        (["k = other.Relu (y)", EINSUM.format("k")], []),
        (["k = Relu (y)", EINSUM.format("k")], [("Einsum", "scores", "graph")]),
        # What a loop's body, or that of an operator that nobody knows, reads from outside is as empty as there.
        (
            [f"z = Loop (n, c, q) <body = g (int64 i, bool b, a) => (b, s) {{ {SCORES} }}>"],
            [("Einsum", "#0", "graph > g of '#1'")],
        ),
        (
            [f"z = other.Foo (q) <body = g () => (s) {{ {SCORES} }}>"],
            [("Einsum", "#0", "graph > g of '#1'")],
        ),
        # What is not empty has not come from a compression.
        (
            ["k = Concat <axis = 0> (q, y)", compress_node(output="c", name="second"), EINSUM.format("c, k")],
            [("Einsum", "scores", "graph", "second")],
        ),
        # A function may be called with fewer inputs than it has.
        (["k = f.Pair (q, y)", "z = f.Pair (y)"], [("Einsum", "#0", "function f.Pair")]),
        # What a function makes of its inputs is as empty as those of the call.
        (["k = f.Same (y)", EINSUM.format("k")], [("Einsum", "scores", "graph")]),
        (["u = f.Same (y)", "k = f.Same (q)", EINSUM.format("k")], []),
        (["u = f.Again (y)", "k = f.Again (q)", EINSUM.format("k")], []),
        (["k = f.Own (x, w, seq)", EINSUM.format("k")], [("Einsum", "scores", "graph")]),
        # What an If returns is as empty as in its branches, what another operator returns is not known.
        (["k = If (c) <a = g () => (v) { v = Relu (y) }>", EINSUM.format("k")], []),
        ([f"k = If (c) <a = g () => (v) {{ {MADE} }}>", EINSUM.format("k")], [("Einsum", "scores", "graph")]),
        ([f"k = Eff (c) <a = g () => (v) {{ {MADE} }}>", EINSUM.format("k")], []),
        ([f"k = Loop (n, c) <a = g () => (v) {{ {MADE} }}>", EINSUM.format("k")], []),
        # What an If of another domain returns is not known, nor what is beyond the node's outputs.
        (["k = other.If (c) <a = g () => (y) { u = Neg (q) }>", EINSUM.format("k")], []),
        (
            ["k = If (c) <a = g () => (v, u) { v = Relu (y) u = Neg (q) }>", EINSUM.format("k")],
            [],
        ),
    ],
)
def test_what_is_reached(after, expected):
    text = compress(after=after, outputs=["float16 z"]).replace("32, 4] w", f"32, 4] w, {QUERY}, int64 n, bool c")
    text = text.replace('"nsa_onnx" : 1', '"nsa_onnx" : 1, "f" : 1') + PAIR + SAME + AGAIN + OWN + HIDDEN
    assert words(check(onnx.parser.parse_model(text))) == [
        (*node, DIES.format(*origin or ["nsa"])) for *node, origin in ((*one[:3], one[3:]) for one in expected)
    ]


def nested(depth):
    """Functions that call one another, the outermost first, and return what the innermost one compresses."""
    functions = [
        f'<domain: "f", opset_import: ["" : 18, "f" : 1]>\nF{level} (x, w, n) => (y)\n'
        f"{{\n    y = f.F{level + 1} (x, w, n)\n}}\n"
        for level in range(depth - 1)
    ]
    node = compress_node("x, w, n").replace("\n", " ")
    functions.append(
        f'<domain: "f", opset_import: ["nsa_onnx" : 1]>\nF{depth - 1} (x, w, n) => (y)\n{{\n    {node}\n}}\n'
    )
    return model(
        ["float16[T, 4, 16] x", "float16[32, 4] w", "int64[B] seq", QUERY],
        ["float16 z"],
        ["y = f.F0 (x, w, seq)", EINSUM.format("y")],
        imports='"nsa_onnx" : 1, "f" : 1',
        functions="".join(functions),
    )


@pytest.mark.parametrize(("depth", "count"), [(1, 1), (8, 1), (9, 0)])
def test_functions_within_functions_are_looked_at_to_a_depth(depth, count):
    report = check(onnx.parser.parse_model(nested(depth)))
    assert [one[:3] for one in words(report)] == [("Einsum", "scores", "graph")] * count, report.to_text()
