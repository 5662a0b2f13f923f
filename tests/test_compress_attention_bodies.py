"""Portable bodies of the compress attentions: within the bound in runtimes that know only standard operators."""

from __future__ import annotations

import compress_cases as cases
import nsa_models as models
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper
from test_compress_attention import decode_calls, judge, prefill_calls, run

import nsa_onnx
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.bodies import MIN_OPSET
from nsa_onnx.operators.expand import expand

RUNTIMES = [models.run_ort, models.run_reference]
EACH = pytest.mark.parametrize("runtime", RUNTIMES)
OP_TYPES = (cases.PrefillCall.op_type, cases.DecodeCall.op_type)
KINDS = {
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(bool): TensorProto.BOOL,
}


def model(call, opset=18):
    """The node of a call alone; every dim is open, so that it is the body that refuses, not a declared type."""
    operator, arguments = OPERATORS[call.op_type], call.arguments
    inputs, names = [], []
    for name in operator.input_names:
        value = arguments[name]
        names.append("" if value is None else name)
        if value is None:
            continue
        array = np.array(value, np.int64) if isinstance(value, list) else value
        kind = models.ELEMENT_TYPES.get(array.dtype) or KINDS[array.dtype]
        inputs.append(helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(array.ndim)]))
    node = helper.make_node(operator.op_type, names, ["out", "topk"], name="nsa", domain="nsa_onnx")
    for attribute in operator.attributes:
        value = arguments[attribute.name]
        node.attribute.append(helper.make_attribute(attribute.name, float(value) if attribute.is_float else int(value)))
    outputs = [models.value("out", call.query.dtype, ["r", "h", "d"]), models.value("topk", TensorProto.INT32, "rgk")]
    return models.model([node], inputs, outputs, opset=opset)


def feeds(call):
    given = {name: call.arguments[name] for name in OPERATORS[call.op_type].input_names}
    return {
        name: np.array(value, np.int64) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }


def check(call, runtime, opset=18):
    out, topk = runtime(expand(model(call, opset)), feeds(call))
    judge(call, out, topk)
    return out, topk


@EACH
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("masks", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("lengths", "compressed"),
    [([9], [70]), ([0, 3, 0, 5], [0, 33, 20, 17]), ([4], [0]), ([0], [50]), ([0], [0]), ([0, 2], [7, 0])],
)
def test_prefill_is_within_the_bound(lengths, compressed, masks, dtype, runtime):
    rng = np.random.default_rng(0)
    check(cases.prefill_call(rng, lengths, compressed, masks=masks, larger=1, dtype=dtype), runtime)


@EACH
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("page", [16, 48])
@pytest.mark.parametrize(("lengths", "spare"), [([70, 0, 33], 1), ([130, 1], 0), ([0, 0], 0), ([], 0), ([], 2)])
def test_decode_is_within_the_bound(lengths, spare, page, dtype, runtime):
    call = cases.decode_call(np.random.default_rng(1), lengths, page=page, spare=spare, dtype=dtype)
    check(call, runtime)


@settings(max_examples=15)
@given(prefill_calls() | decode_calls())
def test_any_call_is_within_the_bound(call):
    check(call, models.run_ort)


@EACH
def test_more_rows_than_one_turn_takes_and_a_last_turn_that_is_not_full(runtime):
    call = cases.prefill_call(np.random.default_rng(2), [300, 5, 128], [40, 3, 20], heads=2, dim=16)
    check(call, runtime)


@EACH
def test_equal_scores_come_by_ascending_index(runtime):
    call = cases.prefill_call(np.random.default_rng(3), [2], [64], count=6, scale=0.0)
    assert (check(call, runtime)[1] == range(6)).all()
    call = cases.decode_call(np.random.default_rng(3), [128], count=6, scale=0.0)
    assert (check(call, runtime)[1] == [0, 31, 32, 1, 2, 3]).all()


@EACH
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_stays_in_its_rows_and_counts_as_infinite(runtime):
    call = cases.prefill_call(np.random.default_rng(4), [6], [40], masks=(True, False), count=4)
    call.atten_mask[:] = False
    call.atten_mask[:3, 20] = True
    call.key[20, 1] = np.nan
    call.query[0, 0, 0] = np.nan
    out, topk = runtime(expand(model(call)), feeds(call))
    wanted_out, wanted_topk = run(call)
    nan = np.isnan(wanted_out.astype(np.float32))
    assert 0 < nan.sum() < nan.size
    assert np.array_equal(np.isnan(out.astype(np.float32)), nan)
    assert np.allclose(out[~nan].astype(float), wanted_out[~nan].astype(float), rtol=1e-2, atol=1e-2)
    assert (topk[3:, 1] == range(4)).all() and (topk[0, 0] == range(4)).all()
    assert np.array_equal(topk, wanted_topk)


def changed(name, value):
    return lambda feeds: feeds.update({name: value(feeds[name])})


def put(name, at, value):
    return lambda feeds: feeds[name].__setitem__(at, value)


def numbers(*values):
    return lambda _: np.array(values, np.int64)


SHARED = {
    "fewer values": changed("value", lambda one: one[:-1]),
    "a key head less": changed("key", lambda one: one[..., :1, :]),
    "a value head less": changed("value", lambda one: one[..., :1, :]),
    "another D": changed("key", lambda one: one[..., :16]),
    "a query head less": changed("query", lambda one: one[:, :3]),
    "as many numbers, other heads": changed("query", lambda one: one.reshape(len(one), 8, 16)),
}
PREFILL = {
    **SHARED,
    "more query tokens": changed("actual_seq_qlen", numbers(4, 10)),
    "a huge length": changed("actual_seq_qlen", numbers(2**62, 9)),
    "no length": changed("actual_seq_qlen", numbers()),
    "fewer key tokens": changed("actual_cmp_seq_kvlen", numbers(10, 29)),
    "a negative length": changed("actual_cmp_seq_kvlen", numbers(-1, 30)),
    "the least length": changed("actual_cmp_seq_kvlen", numbers(-(2**63), 30)),
    "a decreasing length": changed("actual_cmp_seq_kvlen", numbers(31, 30)),
    "another number of lengths": changed("actual_cmp_seq_kvlen", numbers(10, 20, 30)),
    "one length for all": changed("actual_cmp_seq_kvlen", numbers(30)),
    "a block less": changed("actual_sel_seq_kvlen", numbers(3, 7)),
    "a block more": changed("actual_sel_seq_kvlen", numbers(3, 9)),
    "blocks of the other": changed("actual_sel_seq_kvlen", numbers(5, 8)),
    "a decreasing block": changed("actual_sel_seq_kvlen", numbers(3, 2)),
    "another number of blocks": changed("actual_sel_seq_kvlen", numbers(3, 8, 8)),
    "a mask row less": changed("atten_mask", lambda one: one[:-1]),
    "a mask column less": changed("atten_mask", lambda one: one[:, :-1]),
    "a block mask row less": changed("topk_mask", lambda one: one[:-1]),
    "a block mask column less": changed("topk_mask", lambda one: one[:, :-1]),
}
DECODE = {
    **SHARED,
    "a page above": put("block_table", (0, 0), 1000),
    "a page below": put("block_table", (0, 1), -1),
    "a length beyond the pages": changed("actual_cmp_seq_kvlen", numbers(70, 10**6)),
    "a huge length": changed("actual_cmp_seq_kvlen", numbers(70, 2**63 - 1)),
    "a negative length": changed("actual_cmp_seq_kvlen", numbers(70, -1)),
    "a length less": changed("actual_cmp_seq_kvlen", numbers(70)),
    "a row of the table less": changed("block_table", lambda one: one[:1]),
    "smaller pages of values": changed("value", lambda one: one[:, :16]),
    "smaller pages": lambda feeds: feeds.update(key=feeds["key"][:, :16], value=feeds["value"][:, :16]),
}


def prefill_example():
    return cases.prefill_call(np.random.default_rng(4), [4, 5], [10, 20], masks=(True, True))


def decode_example():
    return cases.decode_call(np.random.default_rng(5), [70, 0], page=32)


EXAMPLES = [prefill_example, decode_example]


@EACH
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("make", "case"), [*((prefill_example, case) for case in PREFILL), *((decode_example, case) for case in DECODE)]
)
def test_a_body_refuses_what_the_kernel_refuses(make, case, runtime):
    call = make()
    given = feeds(call)
    (PREFILL if make is prefill_example else DECODE)[case](given)
    with pytest.raises(Exception):  # noqa: B017, PT011 - each runtime has its own classes and words
        runtime(expand(model(call)), given)


@EACH
@pytest.mark.parametrize("make", EXAMPLES)
def test_the_examples_of_what_is_refused_are_right_themselves(make, runtime):
    check(make(), runtime)


@EACH
@pytest.mark.parametrize(
    ("make", "attribute", "value"),
    [
        (prefill_example, "head_num", 2),
        (prefill_example, "head_num", 3),
        (decode_example, "key_value_head_num", 1),
        (decode_example, "page_block_size", 16),
    ],
)
def test_sizes_that_the_shapes_do_not_have_are_refused(make, attribute, value, runtime):
    made = expand(model(make()))
    (one,) = [one for one in made.graph.node[0].attribute if one.name == attribute]
    one.i = value
    with pytest.raises(Exception, match=r"check_|out of bounds|out of data bounds"):
        runtime(made, feeds(make()))


@EACH
@pytest.mark.parametrize("lengths", [[2**62, 9], [-(2**63), 9], [5, 4, 9], [10]])
def test_masks_that_are_made_up_are_no_larger_than_the_input(lengths, runtime):
    """The lengths are not yet checked where they are made."""
    call = cases.prefill_call(np.random.default_rng(6), [4, 5], [10, 20])
    given = {**feeds(call), "actual_seq_qlen": np.array(lengths, np.int64)}
    with pytest.raises(Exception, match=r"check_|out of bounds|out of data bounds"):
        runtime(expand(model(call)), given)


@pytest.mark.parametrize("op_type", OP_TYPES)
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
    indices = {one.name for one in OPERATORS[op_type].inputs if one.type != "T"}
    assert checks >= {"check_query", *(f"check_{name}" for name in indices)}
    assert checks <= needed
    assert {node.name for node in body.node if node.name} == checks
    assert not {name for node in body.node for name in node.output} - needed


@pytest.mark.parametrize("opset", range(MIN_OPSET, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_gives_the_same(opset):
    nsa_onnx.register()
    for call in (
        decode_example(),
        prefill_example(),
        cases.prefill_call(np.random.default_rng(7), [3], [9], masks=(True, False)),
    ):
        made = expand(model(call, opset))
        onnx.checker.check_model(made, full_check=True, check_custom_domain=True)
        check(call, models.run_reference, opset)


def test_a_turn_takes_no_more_rows_than_its_memory():
    body = OPERATORS[OP_TYPES[0]].body(18)
    (tile,) = [node.attribute[0].i for node in body.node if node.output[0] == "tile"]
    (less,) = [node.attribute[0].i for node in body.node if node.output[0] == "tile_less"]
    assert (tile, less) == (128, 127)
