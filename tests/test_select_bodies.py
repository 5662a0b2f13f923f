"""Portable bodies of the selected attentions: within the bound in runtimes that know only standard operators."""

from __future__ import annotations

import nsa_models as models
import numpy as np
import onnx
import onnxruntime
import pytest
import selected_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from test_select import NODES, ORACLES, decode_calls, prefill_calls

import nsa_onnx
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.bodies import MIN_OPSET
from nsa_onnx.operators.example import example_model
from nsa_onnx.operators.expand import expand

RUNTIMES = [models.run_ort, models.run_reference]


def model(call, opset=18):
    """The node of a call alone; every dim is open, so that it is the body that refuses, not a declared type."""
    operator, arguments = OPERATORS[NODES[type(call)]], call.arguments
    element = models.ELEMENT_TYPES[call.query.dtype]
    inputs = []
    for name in operator.input_names:
        value = np.asarray(arguments[name])
        kind = element if name in operator.float_inputs else TensorProto.INT32 if value.ndim > 1 else TensorProto.INT64
        inputs.append(helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(value.ndim)]))
    node = helper.make_node(operator.op_type, operator.input_names, ["out"], name="nsa", domain="nsa_onnx")
    for attribute in operator.attributes:
        value = arguments[attribute.name]
        node.attribute.append(helper.make_attribute(attribute.name, float(value) if attribute.is_float else int(value)))
    return models.model([node], inputs, [models.value("out", call.query.dtype, ["r", "h", "d"])], opset=opset)


def feeds(call):
    arguments, names = call.arguments, OPERATORS[NODES[type(call)]].input_names
    given = {name: arguments[name] for name in names}
    return {
        name: value if isinstance(value, np.ndarray) else np.array(value, np.int64) for name, value in given.items()
    }


def check(call, run, opset=18):
    (got,) = run(expand(model(call, opset)), feeds(call))
    wanted, bound = ORACLES[type(call)](call)
    assert got.shape == wanted.shape and got.dtype == call.query.dtype
    assert cases.off(got, wanted, bound) <= 0
    return got


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("lengths", "key_lengths"),
    [([9], [70]), ([0, 3, 0, 5], [0, 33, 20, 67]), ([4], [0]), ([0], [50]), ([0], [0]), ([0, 2], [7, 0])],
)
def test_prefill_is_within_the_bound(lengths, key_lengths, causal, dtype, run):
    check(cases.prefill_call(np.random.default_rng(0), lengths, key_lengths, causal=causal, dtype=dtype), run)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("page", [16, 48])
@pytest.mark.parametrize(("lengths", "spare"), [([70, 0, 33], 1), ([130, 1], 0), ([0, 0], 0), ([], 0), ([], 2)])
def test_decode_is_within_the_bound(lengths, spare, page, dtype, run):
    call = cases.decode_call(np.random.default_rng(1), lengths, page=page, spare=spare, select=32, dtype=dtype)
    check(call, run)


@settings(max_examples=15, deadline=None)
@given(prefill_calls() | decode_calls())
def test_any_call_is_within_the_bound(call):
    check(call, models.run_ort)


@pytest.mark.parametrize("run", RUNTIMES)
def test_more_rows_than_one_turn_takes_and_a_last_turn_that_is_not_full(run):
    call = cases.prefill_call(
        np.random.default_rng(2), [7, 5], [300, 260], select=128, count=32, causal=True, dim=16, heads=2, kv_heads=2
    )  # 8192 tokens a row: two rows a turn
    check(call, run)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("run", RUNTIMES)
def test_what_a_row_does_not_read_does_not_reach_it(run):
    call = cases.prefill_call(np.random.default_rng(3), [40], [40], causal=True, select=16, count=2)
    call.topk[:] = [0, 2]
    (before,) = run(expand(model(call)), feeds(call))
    call.key[16:32] = call.value[16:32] = np.nan  # in no block
    call.key[36:], call.value[36:] = np.inf, np.nan  # behind the position of the first 36 rows
    (after,) = run(expand(model(call)), feeds(call))
    assert np.array_equal(before[:36], after[:36])
    assert np.isnan(after[36:].astype(np.float32)).all()


def changed(name, value):
    return lambda call: setattr(call, name, value(call))


def put(name, at, value):
    def put(call):
        getattr(call, name)[at] = value

    return put


PREFILL = {
    "a block above": put("topk", (3, 1, 0), 3),
    "a block far above": put("topk", (3, 1, 0), 2**31 - 1),
    "a block below": put("topk", (0, 0, 0), -2),
    "a block of another sequence": put("topk", (8, 0, 0), 2),
    "more query tokens": changed("ends", lambda call: [4, 10]),
    "fewer key tokens": changed("key_ends", lambda call: [40, 69]),
    "a decreasing length": changed("ends", lambda call: [10, 9]),
    "a negative length": changed("key_ends", lambda call: [-1, 70]),
    "no length": changed("ends", lambda call: []),
    "another number of lengths": changed("key_ends", lambda call: [40, 60, 70]),
    "one length for all": changed("key_ends", lambda call: [70]),
    "fewer values": changed("value", lambda call: call.value[:-1]),
    "a key head less": changed("key", lambda call: call.key[:, :1]),
    "a value head less": changed("value", lambda call: call.value[:, :1]),
    "another D": changed("key", lambda call: call.key[..., :16]),
    "blocks of one head": changed("topk", lambda call: call.topk[:, :1]),
    "blocks of one row": changed("topk", lambda call: call.topk[:1]),
    "a row of blocks less": changed("topk", lambda call: call.topk[:-1]),
}
DECODE = {
    "a block above": put("topk", (0, 1, 0), 3),
    "a block below": put("topk", (0, 0, 0), -(2**31)),
    "a block of an empty sequence": put("topk", (1, 0, 0), 0),
    "a page above": put("table", (0, 0), 1000),
    "a page below": put("table", (0, 0), -1),
    "a length beyond the pages": changed("lengths", lambda call: [70, 10**6]),
    "a huge length": changed("lengths", lambda call: [70, 2**63 - 1]),
    "a negative length": changed("lengths", lambda call: [70, -1]),
    "a length less": changed("lengths", lambda call: [70]),
    "a row of the table less": changed("table", lambda call: call.table[:1]),
    "other pages": changed("value", lambda call: call.value[:, :16]),
    "fewer pages of values": changed("value", lambda call: call.value[:-1]),
    "a value head less": changed("value", lambda call: call.value[:, :, :1]),
    "another D": changed("key", lambda call: call.key[..., :16]),
    "a row of blocks less": changed("topk", lambda call: call.topk[:1]),
}


def prefill_example():
    call = cases.prefill_call(np.random.default_rng(4), [4, 5], [40, 30])
    call.topk[:] = [0, 1, -1]
    return call


def decode_example():
    call = cases.decode_call(np.random.default_rng(5), [70, 0], page=32, select=32, count=2)
    call.topk[0], call.topk[1] = [0, 2], -1
    call.table[0, :3] = [2, 0, 1]
    call.key, call.value = np.nan_to_num(call.key), np.nan_to_num(call.value)
    return call


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize(
    ("make", "case"), [*((prefill_example, case) for case in PREFILL), *((decode_example, case) for case in DECODE)]
)
def test_a_body_refuses_what_the_kernel_refuses(make, case, run):
    call = make()
    made = expand(model(call))
    (PREFILL if make is prefill_example else DECODE)[case](call)
    with pytest.raises(Exception):  # noqa: B017, PT011 - each runtime has its own classes and words
        run(made, feeds(call))


@pytest.mark.parametrize("make", [prefill_example, decode_example])
def test_the_examples_of_what_is_refused_are_right_themselves(make):
    for run in RUNTIMES:
        check(make(), run)


@pytest.mark.parametrize(
    ("make", "attribute", "value"),
    [
        (prefill_example, "head_num", 1),
        (prefill_example, "head_num", -(2**63)),
        (prefill_example, "select_block_size", 2**62),
        (prefill_example, "select_block_count", 2**20),
        (decode_example, "key_value_head_num", 1),
        (decode_example, "head_num", 0),
        (decode_example, "select_block_size", -1),
        (decode_example, "page_block_size", 8),
    ],
)
@pytest.mark.parametrize("run", RUNTIMES)
def test_attributes_that_the_shapes_contradict_are_refused(make, attribute, value, run):
    made = expand(model(make()))
    (one,) = [one for one in made.graph.node[0].attribute if one.name == attribute]
    one.i = value
    with pytest.raises(Exception):  # noqa: B017, PT011 - each runtime has its own classes and words
        run(made, feeds(make()))


@pytest.mark.parametrize("op_type", NODES.values())
def test_the_result_depends_on_every_check(op_type):
    """A runtime may drop nodes that nothing needs, so a check beside the computation would check nothing."""
    body = OPERATORS[op_type].body(18)
    needed = set(body.output)
    for node in reversed(body.node):
        if needed & set(node.output):
            needed.update(node.input)
            for attribute in node.attribute:
                needed.update(name for inner in attribute.g.node for name in inner.input)
    checks = {node.output[0] for node in body.node if node.output[0].startswith("check_")}
    lengths = {name for name in OPERATORS[op_type].input_names if name.startswith("actual")}
    assert checks >= {"check_shapes", "check_topk_indices", *(f"check_{name}" for name in lengths)}
    assert checks <= needed
    assert {node.name for node in body.node if node.name} == checks
    unused = {name for node in body.node for name in node.output} - needed
    # What bodies have in common has more constants and lengths than each needs.
    assert not unused - {"three_row", "infinity", "no_logit", "q_ends", "q_lengths"}


@pytest.mark.parametrize("opset", range(MIN_OPSET, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_gives_the_same(opset):
    for make in (prefill_example, decode_example):
        nsa_onnx.register()
        onnx.checker.check_model(expand(model(make(), opset)), full_check=True, check_custom_domain=True)
        check(make(), models.run_reference, opset)


def test_memory_does_not_grow_with_rows_times_tokens():
    """No value of a body has a dim of rows beside one of tokens: what a turn gathers is bounded."""
    call = cases.prefill_call(np.random.default_rng(6), [600], [64], select=64, count=16, heads=1, kv_heads=1, dim=16)
    made = expand(model(call))
    loop = next(node for node in made.functions[0].node if node.op_type == "Loop")
    gathered = next(node for node in loop.attribute[0].g.node if node.output[0] == "keys_16")
    loop.attribute[0].g.output.append(helper.make_tensor_value_info("gathered_shape", TensorProto.INT64, [3]))
    loop.attribute[0].g.node.append(helper.make_node("Shape", gathered.output, ["gathered_shape"]))
    loop.output.append("shapes")
    made.functions[0].output.append("shapes")
    made.graph.node[0].output.append("shapes")
    made.graph.output.append(helper.make_tensor_value_info("shapes", TensorProto.INT64, None))
    _, shapes = models.run_ort(made, feeds(call))
    assert len(shapes) > 30 and int(np.prod(shapes[0][:2])) <= 2**14


@given(st.data())
@settings(max_examples=5, deadline=None)
def test_the_turns_of_any_number_of_rows_cover_them(data):
    rows = data.draw(st.integers(0, 40))
    call = cases.prefill_call(
        np.random.default_rng(rows), [rows], [200], select=128, count=data.draw(st.integers(1, 64)), dim=16, heads=2
    )
    check(call, models.run_ort)


@pytest.mark.parametrize("op_type", OPERATORS)
def test_onnxruntime_has_nothing_to_say_when_it_loads_a_body(op_type, capfd):
    operator = OPERATORS[op_type]
    portable = expand(example_model(operator, operator.example))
    onnxruntime.InferenceSession(portable.SerializeToString(), providers=["CPUExecutionProvider"])
    assert not "".join(capfd.readouterr())
