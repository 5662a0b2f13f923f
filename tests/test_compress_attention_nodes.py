"""The nodes of the compress attentions: shape inference, what is certainly wrong with one, ``check --run``."""

from __future__ import annotations

import compress_cases as cases
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import InferenceError, infer_shapes
from test_compress_attention import decode_calls, prefill_calls, run
from test_compress_attention_bodies import feeds, model

import nsa_onnx
from nsa_onnx.analysis import analyse
from nsa_onnx.checker import Severity, check
from nsa_onnx.checker import run as running
from nsa_onnx.graph.tensors import TensorFacts
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.base import NotRunError
from nsa_onnx.operators.facts import NodeFacts
from nsa_onnx.operators.nsa_compress_attention.rule_examples import attention
from nsa_onnx.operators.nsa_compress_attention_infer.rule_examples import attention_step

OP_TYPES = (cases.PrefillCall.op_type, cases.DecodeCall.op_type)
CONSTANT = {
    "q": "100, 4, 32", "k": "12, 2, 32", "v": "12, 2, 16", "y": "100, 4, 16", "topk": "100, 2, 2",
    "ends": (40, 100), "tokens": (5, 12), "blocks": (2, 4),
}  # fmt: skip


def parsed(text):
    return onnx.parser.parse_model(text)


def inferred(text):
    """The dims of both outputs, and the second one's type."""
    made = parsed(text)
    for output in made.graph.output:
        output.type.tensor_type.ClearField("shape")
    outputs = [output.type.tensor_type for output in infer_shapes(made, strict_mode=True).graph.output]
    assert outputs[1].elem_type == onnx.TensorProto.INT32
    return [
        [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in output.shape.dim]
        for output in outputs
    ]


def test_the_outputs_have_query_s_rows_and_the_heads_that_are_told():
    assert inferred(attention()) == [["T1", 4, 16], ["T1", 2, 2]]
    assert inferred(attention(q="7, 4, 32", count=5)) == [[7, 4, 16], [7, 2, 5]]
    open_dims = attention(q="a, b, c", k="d, e, f", v="d, e, h")
    assert inferred(open_dims) == [["a", 4, "h"], ["a", "e", 2]]
    assert inferred(attention_step()) == [[2, 4, 16], [2, 2, 2]]
    open_dims = attention_step(q="B, N, c", k="p, l, n, c", v="p, l, n, 16", table="B, P").replace(
        "int64[2]", "int64[B]"
    )
    assert inferred(open_dims) == [["B", 4, 16], ["B", 2, 2]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (attention(heads=6), r"query.shape\[1\] must equal head_num = 6, got 4"),
        (attention(block=80), r"compress_block_size must be in \[16, select_block_size = 64\], got 80"),
        (attention(count=129), r"select_block_count must be in \[1, 128\], got 129"),
        (attention(**{**CONSTANT, "blocks": (2, 5)}), "sequence 1 has 7 compressed tokens, so it has 2 blocks, got 3"),
        (attention(**CONSTANT, masks=["60, 6"]), r"atten_mask.shape\[1\] must be >= 7, .* got 6"),
        (attention(**CONSTANT, masks=["60, 7", "60, 1"]), r"topk_mask.shape\[1\] must be >= 2, .* got 1"),
        (attention_step(k="6, 64, 3, 32"), r"key.shape\[2\] must equal key_value_head_num = 2, got 3"),
        (attention_step(lengths=[1, -1]), r"actual_cmp_seq_kvlen\[1\] must be >= 0, got -1"),
        (attention_step(lengths=[0, 65], pages=[9, 9, 9, 0, 6, 9]), r"block_table\[1, 1\] must be in \[0, 6\), got 6"),
    ],
)
def test_what_is_certainly_wrong_stops_inference(text, words):
    with pytest.raises(InferenceError, match=words):
        infer_shapes(parsed(text))


def test_of_what_is_not_known_nothing_is_wrong():
    for op_type in OP_TYPES:
        operator = OPERATORS[op_type]
        unknown = {name: TensorFacts() for name in operator.input_names}
        assert not list(operator.violations(NodeFacts(op_type, operator.example.attributes, unknown)))
        nothing = operator.violations(NodeFacts(op_type, operator.example.attributes, {}))
        assert {violation.row.id for violation in nothing} == {"input_missing"}


def test_a_table_whose_shape_disagrees_is_left_to_others():
    made = parsed(attention_step(lengths=[0, 100], pages=[9] * 6))
    for tensor in made.graph.initializer:
        if tensor.name == "table":
            tensor.dims.insert(0, 1)
    assert "NSA016" not in {found.rule for found in check(made).findings}


# --------------------------------------------------------------------------------------------------
# check --run

RUN = [
    attention(),
    attention(masks=["M, L", "M, S"]),
    attention(dtype="bfloat16", masks=["M, L"]),
    attention(q="T1, 16, 192", k="Tc, 1, 192", v="Tc, 1, 128", y="T1, 16, 128", topk="T1, 1, 16", heads=16, count=16),
    attention(**CONSTANT, masks=["60, 7", "60, 2"]),
    attention(blocks=(2, 2, 9)),
    attention(k="30, 2, 32", v="30, 2, 16", blocks=(2, 2, 9)),
    attention(k="0, 2, 32", v="0, 2, 16", tokens=(0, 0)),
    attention(q="0, 4, 32", y="0, 4, 16", topk="0, 2, 2"),
    attention(ends=[2**40], tokens=[2**40]),
    attention_step(),
    attention_step(dtype="bfloat16", page=16, k="9, 16, 2, 32", v="9, 16, 2, 16"),
    attention_step(lengths=[40, 100], pages=[0, -1, -1, 5, 4, -1]),
    attention_step(pages=[0, -1, -1, -1, -1, -1]),
    attention_step(k="0, 64, 2, 32", v="0, 64, 2, 16"),
    attention_step(table="2, 1099511627776", k="1099511627776, 64, 2, 32", v="1099511627776, 64, 2, 16"),
]


@pytest.mark.parametrize("text", RUN)
def test_nodes_run_within_the_bound_of_the_reference(text):
    report = check(parsed(text), run=True)
    assert not report.count(Severity.ERROR), report.to_text()
    (one,) = report.runs
    assert one.ulps is not None and one.ulps <= 2, one


def change(number, how):
    compute = running._compute

    def computed(*arguments):
        results = compute(*arguments)
        results[number] = how(results[number])
        return results

    return computed


@pytest.mark.parametrize("text", [attention(), attention_step()])
@pytest.mark.parametrize(
    ("number", "how", "words"),
    [
        (0, lambda out: 1.01 * out, "attention_out"),
        (1, lambda topk: np.where(topk > 0, topk - 1, topk), "topk_indices"),
        (1, lambda topk: topk + 1, "topk_indices"),
        (1, lambda topk: topk[..., ::-1], "topk_indices"),
    ],
)
def test_a_run_that_is_off_is_a_finding(text, number, how, words, monkeypatch):
    monkeypatch.setattr(running, "_compute", change(number, how))
    (found,) = [found for found in check(parsed(text), run=True).findings if found.rule == "NSA100"]
    assert found.message.startswith(words), found.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (attention(k="40, 2, 32", v="40, 2, 16", blocks=(2, 2, 9)), "40 compressed tokens do not make 9 blocks"),
        (attention(k="27, 2, 32", v="27, 2, 16", blocks=(2, 2, 9)), "27 compressed tokens do not make 9 blocks"),
        (attention_step(lengths=[0, 300], table="2, 5", k="0, 64, 2, 32", v="0, 64, 2, 16"), "block_table"),
        (attention().replace("int64[B]", "int64[0]"), "no sequence"),
    ],
)
def test_where_no_input_is_valid_it_is_said(text, words):
    (node,) = analyse(parsed(text), target="cpu").nodes
    operator, facts = OPERATORS[node.op_type], node.facts
    with pytest.raises(NotRunError, match=words):
        operator.sample(facts, {name: facts.number(name) for name in operator.attribute_names})


@settings(max_examples=30)
@given(prefill_calls() | decode_calls(), st.sets(st.sampled_from(["shapes", "query", "key", "block", "block_table"])))
def test_any_sample_is_valid_and_judged_right(call, known):
    """Whatever is declared of a node: its sample breaks no row, and the eager call is within the reference's bound."""
    operator, arguments = OPERATORS[call.op_type], call.arguments
    given = {name: np.array(value, np.int64) if isinstance(value, list) else value for name, value in arguments.items()}
    # Which of the integer inputs are constant.
    parts = {"query": "qlen", "key": "cmp", "block": "sel", "block_table": "table"}
    constants = {
        name: given[name].astype(np.int64)
        for name in operator.input_names
        if any(part in name for one, part in parts.items() if one in known)
    }
    shown = {
        name: TensorFacts(call.query.dtype.name if name in operator.float_inputs else None, given[name].shape)
        if "shapes" in known or name in constants
        else TensorFacts()
        for name in operator.input_names
        if given[name] is not None
    }
    attributes = {name: arguments[name] for name in operator.attribute_names}
    facts = NodeFacts(operator.op_type, attributes, shown, constants)
    try:
        made = operator.sample(facts, attributes)
    except NotRunError:
        assert constants  # without them there is always an input
        return
    dtype = cases.DTYPES[made.dtype]
    inputs = [made.values.get(name) for name in operator.input_names]
    results = operator.call(
        [one.astype(dtype) if one is not None and one.dtype == np.float64 else one for one in inputs], attributes
    )
    wanted = operator.reference(made.values, attributes)
    for output, got, one in zip(operator.outputs, results, wanted, strict=True):
        assert one.judge(output.name, got.astype(np.float64), output.dtype(made.dtype)).problem == ""
    for name, constant in constants.items():
        assert np.array_equal(made.values[name], constant)


# --------------------------------------------------------------------------------------------------
# Runtimes


@settings(max_examples=12)
@given(prefill_calls() | decode_calls())
def test_onnxruntime_and_onnx_s_evaluator_give_the_eager_bits(call):
    wanted = run(call)
    made = model(call)
    session = nsa_onnx.create_session(made)
    given = {name: nsa_onnx.to_ortvalue(value) for name, value in feeds(call).items()}
    results = [nsa_onnx.from_ortvalue(value) for value in session.run_with_ort_values(None, given)]
    evaluator = ReferenceEvaluator(made, new_ops=nsa_onnx.reference_ops())
    for out, topk in (results, evaluator.run(None, feeds(call))):
        assert np.array_equal(out.view(np.uint16), wanted[0].view(np.uint16))
        assert np.array_equal(topk, wanted[1])
