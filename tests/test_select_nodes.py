"""The nodes of the selected attentions: shape inference, what is certainly wrong with one, ``check --run``."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import selected_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import InferenceError, infer_shapes
from test_select import NODES, decode_calls, prefill_calls
from test_select_bodies import feeds, model

import nsa_onnx
from nsa_onnx.analysis import analyse
from nsa_onnx.checker import check, run
from nsa_onnx.graph.tensors import TensorFacts
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.base import NotRunError
from nsa_onnx.operators.facts import NodeFacts
from nsa_onnx.operators.nsa_selected_attention.rule_examples import select
from nsa_onnx.operators.nsa_selected_attention_infer.rule_examples import select_step

PREFILL, DECODE = NODES.values()


def parsed(text):
    return onnx.parser.parse_model(text)


def inferred(text):
    made = parsed(text)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    dims = infer_shapes(made, strict_mode=True).graph.output[0].type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]


def test_the_output_has_query_s_rows_and_heads_and_value_s_channels():
    assert inferred(select()) == ["T1", 4, 16]
    assert inferred(select(q="7, 4, 32", topk="7, 2, 2")) == [7, 4, 16]
    assert inferred(select(q="a, b, c", k="d, e, f", v="d, e, h", topk="a, e, 2")) == ["a", 4, "h"]
    assert inferred(select_step()) == [2, 4, 16]
    assert inferred(select_step(q="B, N, 32", topk="B, 2, 2", table="B, 3").replace("int64[2]", "int64[B]")) == [
        "B",
        4,
        16,
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (select(heads=6), "query.shape\\[1\\] must equal head_num = 6, got 4"),
        (select(topk="T1, 2, 4"), "must equal select_block_count = 2, got 4"),
        (select(causal=2), "causal must be 0 or 1, got 2"),
        (select().replace("scale_value = 0.25", "scale_value = 1"), "scale_value must be a float attribute"),
        (select_step(k="6, 64, 3, 32"), "key.shape\\[2\\] must equal key_value_head_num = 2, got 3"),
        (select_step(lengths=[1, -1]), "actual_seq_kvlen\\[1\\] must be >= 0, got -1"),
    ],
)
def test_what_is_certainly_wrong_stops_inference(text, words):
    with pytest.raises(InferenceError, match=words):
        infer_shapes(parsed(text))


def test_of_what_is_not_known_nothing_is_wrong():
    for op_type in (PREFILL, DECODE):
        operator = OPERATORS[op_type]
        unknown = {name: TensorFacts() for name in operator.input_names}
        assert not list(operator.violations(NodeFacts(op_type, operator.example.attributes, unknown)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            select(
                q="2, 4, 32", topk="2, 2, 2", k="70, 2, 32", v="70, 2, 16", ends=(2,), key_ends=(70,), blocks=[-2] * 8
            ),
            "topk_indices[0, 0, 0] must be in [-1, 3) (blocks of select_block_size tokens in its sequence), got -2",
        ),
        (
            select_step(lengths=[0, 100], blocks=[-1, -1, -1, -1, 0, 0, 4, 0]),
            "topk_indices[1, 1, 0] must be in [-1, 4) (blocks of select_block_size tokens in its sequence), got 4",
        ),
        (
            select_step(lengths=[0, 100], blocks=[-1] * 4 + [2] * 4, pages=[7, 7, 7, 7, -1, 7]),
            "block_table[1, 1] must be in [0, 6), got -1",
        ),
    ],
)
def test_constant_blocks_and_pages_are_looked_at(text, message):
    (found,) = check(parsed(text)).findings
    assert (found.rule, found.message) == ("NSA016", message)


def test_constants_whose_shapes_disagree_are_left_to_others():
    for text in (
        select(q="2, 4, 32", topk="2, 2, 2", k="70, 2, 32", v="70, 2, 16", ends=(2,), key_ends=(70,), blocks=[9] * 8),
        select_step(lengths=[0, 100], blocks=[9] * 8, pages=[9] * 6),
    ):
        made = parsed(text)
        for tensor in made.graph.initializer:
            if tensor.name in ("topk", "table"):
                tensor.dims.insert(0, 1)
        assert "NSA016" not in {found.rule for found in check(made).findings}


# --------------------------------------------------------------------------------------------------
# check --run

RUN = [
    select(),
    select(q="2, H, 32", k="T2, N, 32", v="T2, N, 16", topk="2, 1, 2", y="2, H, 16", ends=(2,), blocks=[0, 1, -1, -1]),
    select(dtype="bfloat16", causal=0),
    select(q="T1, 16, 192", k="T2, 1, 192", v="T2, 1, 128", topk="T1, 1, 2", y="T1, 16, 128", heads=16, block=64),
    select(q="3, 4, 32", topk="3, 2, 2", y="3, 4, 16", k="70, 2, 32", v="70, 2, 16", ends=(0, 3), key_ends=(0, 70)),
    select(q="2, 4, 32", topk="2, 2, 2", k="70, 2, 32", v="70, 2, 16", ends=(2,), key_ends=(70,), blocks=[0, 2] * 4),
    select_step(),
    select_step(dtype="bfloat16", page=16, k="9, 16, 2, 32", v="9, 16, 2, 16"),
    select_step(lengths=[40, 100], blocks=[0, 1, -1, 0, 3, 2, 1, 0], pages=[0, -1, -1, 5, 4, -1]),
    select_step(pages=[0, -1, -1, -1, -1, -1]),
    select_step(k="0, 64, 2, 32", v="0, 64, 2, 16"),
]


@pytest.mark.parametrize("text", RUN)
def test_nodes_run_within_the_bound_of_the_reference(text):
    report = check(parsed(text), run=True, ignore=["NSA047"])  # causal = 0 on purpose
    assert report.ok and not report.findings, report.to_text()
    (one,) = report.runs
    assert one.ulps is not None and one.ulps <= 2, one


@pytest.mark.parametrize("text", RUN[:2])
def test_a_run_that_is_off_is_a_finding(text, monkeypatch):
    compute = run._compute
    monkeypatch.setattr(run, "_compute", lambda *arguments: [2 * one for one in compute(*arguments)])
    report = check(parsed(text), run=True, ignore=["NSA047"])
    assert [found.rule for found in report.findings] == ["NSA100"]
    assert "attention_out" in report.findings[0].message and "float64 reference says" in report.findings[0].message


def facts_of(text):
    (node,) = analyse(parsed(text), target="cpu").nodes
    return node.facts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (select_step(lengths=[0, 0], k="0, 64, 2, 32", v="0, 64, 2, 16", blocks=[-1] * 8), ""),
        (select_step(blocks=[0] * 8, k="0, 64, 2, 32", v="0, 64, 2, 16"), "block_table"),
        (select_step(blocks=[6] * 8), "topk_indices"),
    ],
)
def test_where_no_input_is_valid_it_is_said(text, words):
    facts = facts_of(text)
    attributes = {name: facts.number(name) for name in OPERATORS[facts.op_type].attribute_names}
    if not words:
        assert OPERATORS[facts.op_type].sample(facts, attributes).values["query"].shape == (2, 4, 32)
        return
    with pytest.raises(NotRunError, match=words):
        OPERATORS[facts.op_type].sample(facts, attributes)


@settings(max_examples=25, deadline=None)
@given(prefill_calls() | decode_calls(), st.sets(st.sampled_from(["shapes", "lengths", "topk_indices", "block_table"])))
def test_any_sample_is_valid_and_judged_right(call, known):
    """Whatever is declared of a node: its sample breaks no row, and the eager call is within the reference's bound."""
    operator, arguments = OPERATORS[NODES[type(call)]], call.arguments
    given = {name: np.asarray(value) for name, value in arguments.items()}
    constants = {
        name: given[name].astype(np.int64)
        for name in operator.input_names
        if name in known or ("lengths" in known and name.startswith("actual"))
    }
    if "block_table" in constants:
        constants["block_table"] = np.where(constants["block_table"] < len(call.key), constants["block_table"], -1)
    shown = {
        name: TensorFacts(call.query.dtype.name if name in operator.float_inputs else None, given[name].shape)
        if "shapes" in known or name in constants
        else TensorFacts()
        for name in operator.input_names
    }
    attributes = {name: arguments[name] for name in operator.attribute_names}
    try:
        made = operator.sample(NodeFacts(operator.op_type, attributes, shown, constants), attributes)
    except NotRunError:
        assert constants  # without them there is always an input
        return
    dtype = cases.DTYPES[made.dtype]
    values = [made.values[name] for name in operator.input_names]
    inputs = [one.astype(dtype) if one.dtype == np.float64 else one for one in values]
    (got,) = operator.call(inputs, attributes)
    (wanted,) = operator.reference(made.values, attributes)
    assert wanted.judge("attention_out", got.astype(np.float64), made.dtype).problem == ""


# --------------------------------------------------------------------------------------------------
# Runtimes


@settings(max_examples=12, deadline=None)
@given(prefill_calls() | decode_calls())
def test_onnxruntime_and_onnx_s_evaluator_give_the_eager_bits(call):
    eager = getattr(nsa_onnx, "nsa_select_attention" if hasattr(call, "causal") else "nsa_select_attention_infer")
    wanted = eager(**call.arguments)
    made = model(call)
    (reference,) = ReferenceEvaluator(made, new_ops=nsa_onnx.reference_ops()).run(None, feeds(call))
    assert np.array_equal(reference.view(np.uint16), wanted.view(np.uint16))
    session = nsa_onnx.create_session(made)
    (got,) = session.run_with_ort_values(
        None, {name: nsa_onnx.to_ortvalue(value) for name, value in feeds(call).items()}
    )
    assert np.array_equal(nsa_onnx.from_ortvalue(got).view(np.uint16), wanted.view(np.uint16))
