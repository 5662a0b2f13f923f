"""T' = 0: the operators at which onnxruntime stops, found again; where an empty axis goes; rule NSA042."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from nsa_onnx.checker import check
from nsa_onnx.graph.emptiness import Extent, results
from nsa_onnx.operators.model_text import model
from nsa_onnx.operators.nsa_compress.rule_examples import compress, compress_node
from nsa_onnx.targets.cpu import ONNXRUNTIME, STOPS, stop

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import empty_dims


@pytest.fixture(scope="module")
def outcomes():
    return empty_dims.survey(list(empty_dims.cases()))


def extents(case):
    """A case's node, with the extents of its inputs and their values."""
    node = onnx.load_from_string(case.model).graph.node[0]
    arrays = [case.feeds.get(name) for name in node.input]

    def constant(index):
        array = arrays[index] if index < len(arrays) else None
        return array if array is not None and array.dtype.kind == "i" else None

    inputs = [
        None if array is None else Extent(array.ndim, frozenset(np.flatnonzero(np.array(array.shape) == 0).tolist()))
        for array in arrays
    ]
    return node, inputs, constant


def test_the_operators_at_which_onnxruntime_dies_are_those_of_the_table(outcomes):
    assert onnxruntime.__version__ == ONNXRUNTIME
    assert {one.case.op_type for one in outcomes if one.result == "dies"} == {n for n, s in STOPS.items() if s.dies}
    assert not [one for one in outcomes if one.result == "hangs"]
    assert len({one.case.op_type for one in outcomes if one.result == "ok"}) > 120  # it did try them


def test_every_death_is_foreseen_from_the_node_alone(outcomes):
    for one in outcomes:
        if one.result == "dies":
            assert stop(*extents(one.case)) is STOPS[one.case.op_type], one.case


def test_what_runs_is_not_said_to_stop(outcomes):
    # Of Einsum's equations, the ones that run are as many, and others with each release.
    wrong = [one.case for one in outcomes if one.result == "ok" and stop(*extents(one.case)) is not None]
    assert {case.op_type for case in wrong} <= {"Einsum"}, [case for case in wrong if case.op_type != "Einsum"]


def test_where_an_empty_axis_goes_is_where_onnxruntime_has_it(outcomes):
    seen = set()
    for one in outcomes:
        if one.result != "ok" or one.case.op_type == "Concat":  # which drops empty parts that do not fit the others
            continue
        node, inputs, constant = extents(one.case)
        for extent, shape in zip(results(node, inputs, constant), one.shapes, strict=False):
            if extent is not None and extent.empty:
                seen.add(node.op_type)
                assert extent.rank == len(shape), one.case
                assert all(shape[axis] == 0 for axis in extent.empty), one
    assert len(seen) > 70


@pytest.mark.parametrize("name", sorted(empty_dims.PROBES))
def test_each_probe_runs_with_one_and_stops_with_none(name, outcomes):
    op_type = name.split()[0]
    entry = STOPS.get(op_type)
    wanted = "ok" if entry is None else "dies" if entry.dies else "fails"
    one, nothing = empty_dims.probe(name, 1), empty_dims.probe(name, 0)
    session = onnxruntime.InferenceSession(one.model, providers=["CPUExecutionProvider"])
    session.run(None, one.feeds)
    assert next(o.result for o in outcomes if o.case.name == nothing.name) == wanted
    assert stop(*extents(nothing)) is entry
    assert stop(*extents(one)) is None


def test_every_operator_of_the_table_has_a_probe():
    assert set(STOPS) <= {name.split()[0] for name in empty_dims.PROBES}


# --------------------------------------------------------------------------------------------------
# The rule

EINSUM = '[scores] z = Einsum <equation = "qhd,khd->hqk"> (q, {})'
QUERY = "float16[Q, 4, 16] q"


def found(text, more=(QUERY,), **arguments):
    text = text.replace("float16[32, 4] w", ", ".join(["float16[32, 4] w", *more]))
    report = check(onnx.parser.parse_model(text), **arguments)
    assert not [one for one in report.findings if one.rule in ("NSA021", "NSA004")], report.to_text()
    return [one for one in report.findings if one.rule == "NSA042"]


def with_after(*after, more=(QUERY,), output="float16 z", **arguments):
    return found(compress(after=after, outputs=[output], **arguments), more)


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
    ],
)
def test_a_broken_node_ends_nothing(node):
    check(onnx.parser.parse_model(compress(after=[node], outputs=["float16 z"])))
