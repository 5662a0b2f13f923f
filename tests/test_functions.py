"""Portable bodies: the same bits as the contract in runtimes that know only standard operators."""

from __future__ import annotations

import nsa_models as models
import numpy as np
import onnx
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import nsa_onnx
from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.expand import expand

nsa_onnx.register()

DTYPES = [np.dtype(np.float16), models.BFLOAT16]
RUNTIMES = [models.run_ort, models.run_reference]


def random(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def compress_feeds(seq, dtype, block=32, heads=4, dim=16):
    x = random((seq[-1], heads, dim), dtype)
    return {"x": x, "w": random((block, heads), dtype, 1), "seq": np.array(seq, np.int64)}


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "seq", [[32], [31], [1], [100], [40, 60], [10, 10, 74, 74, 200], [47, 130, 131]], ids=lambda seq: f"{seq}"
)
def test_compress_body_gives_the_contract_s_bits(run, dtype, seq):
    feeds = compress_feeds(seq, dtype)
    (got,) = run(expand(models.compress(dtype=dtype)), feeds)
    assert oracle.same_bits(got, oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, seq))


@settings(max_examples=25)
@given(data=st.data())
def test_compress_body_holds_for_any_window_and_segments(data):
    block = 16 * data.draw(st.integers(1, 8))
    stride = 16 * data.draw(st.integers(1, block // 16))
    segments = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=5).filter(lambda s: s[0] > 0))
    seq = np.cumsum(segments).tolist()
    dtype = data.draw(st.sampled_from(DTYPES))
    feeds = compress_feeds(seq, dtype, block, heads=2)
    made = models.compress(
        dtype=dtype, x=("T", 2, 16), w=(block, 2), y=("R", 2, 16), compress_block_size=block, compress_stride=stride
    )
    (got,) = models.run_ort(expand(made), feeds)
    assert oracle.same_bits(got, oracle.compress_exact(feeds["x"], feeds["w"], block, stride, seq))


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_inf_stay_in_their_window(run, dtype):
    feeds = compress_feeds([40, 200], dtype)
    feeds["x"][0, 0, 0] = np.nan
    feeds["x"][60, 1, 3] = np.inf
    feeds["x"][199, 2, 5] = -np.inf
    (got,) = run(expand(models.compress(dtype=dtype)), feeds)
    want = oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, [40, 200])
    assert oracle.same_bits(got, want)
    assert 0 < np.count_nonzero(~np.isfinite(got.astype(np.float32))) <= 4


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize(
    "seq", [[0, 200], [-1, 200], [10, 5, 200], [199], [201], [2**62], [], [-(2**63), 200]], ids=lambda seq: f"{seq}"
)
def test_compress_body_refuses_what_are_not_prefix_sums(run, seq):
    feeds = {**compress_feeds([200], np.float16), "seq": np.array(seq, np.int64)}
    with pytest.raises(Exception, match=r"check_actual_seq_len|out of bounds|out of data bounds|empty"):
        run(expand(models.compress()), feeds)


def test_a_constant_that_is_wrong_is_refused_too():
    feeds = compress_feeds([200], np.float16)
    feeds.pop("seq")
    with pytest.raises(Exception, match="check_actual_seq_len"):
        models.run_ort(expand(models.compress([50, 40, 200])), feeds)


def infer_feeds(seq, dtype, *, table=True, pages=12, page=64, block=32, stride=16, max_pages=4, slots=9):
    """Indices are garbage wherever the contract does not read them."""
    generator = np.random.default_rng(len(seq))
    batch = len(seq)
    slot_mapping = generator.permutation(slots)[:batch].astype(np.int32)
    block_table = generator.integers(0, pages, (batch, max_pages)).astype(np.int32)
    for b, length in enumerate(seq):
        garbage = [-1, 2**31 - 1, -(2**31)][b % 3]
        if length < block or (length - block) % stride:
            slot_mapping[b] = block_table[b] = garbage
        else:
            block_table[b, : (length - block) // page] = garbage
            block_table[b, (length - 1) // page + 1 :] = garbage
    feeds = {
        "x": random((pages, page, 4, 16), dtype),
        "w": random((block, 4), dtype, 1),
        "slots": slot_mapping,
        "cache": random((slots, 4, 16), dtype, 2),
        "seq": np.array(seq, np.int64),
    }
    return {**feeds, "table": block_table} if table else feeds


def infer_want(feeds, block=32, stride=16, page=64):
    return oracle.infer_exact(
        feeds["x"],
        feeds["w"],
        feeds["slots"],
        block,
        stride,
        page,
        feeds.get("table"),
        feeds["seq"].tolist(),
        feeds["cache"],
    )


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("table", [True, False], ids=["table", "no table"])
@pytest.mark.parametrize("seq", [[32, 0, 192], [31, 5, 33], [], [176], [48, 64, 128, 49]], ids=lambda seq: f"{seq}")
def test_infer_body_gives_the_contract_s_bits(run, dtype, table, seq):
    feeds = infer_feeds(seq, dtype, table=table)
    made = expand(models.infer(dtype=dtype, table=("B", "M") if table else None))
    (got,) = run(made, feeds)
    assert oracle.same_bits(got, infer_want(feeds))


@pytest.mark.parametrize(("block", "stride", "page"), [(112, 48, 64), (16, 16, 128), (96, 96, 64)])
def test_infer_body_holds_for_windows_across_pages(block, stride, page):
    seq = [block, block + stride, block + 2 * stride - 1, 192]
    feeds = infer_feeds(seq, np.float16, page=page, block=block, stride=stride, max_pages=5)
    made = models.infer(
        x=("P", page, 4, 16),
        w=(block, 4),
        compress_block_size=block,
        compress_stride=stride,
        page_block_size=page,
    )
    (got,) = models.run_ort(expand(made), feeds)
    assert oracle.same_bits(got, infer_want(feeds, block, stride, page))


GOOD_TABLE = np.array([[0, -1, -1, -1], [-1, -1, -1, -1], [3, -1, -1, -1]], np.int32)
BAD_INDICES = {
    "slot below": ("slots", [-1, -1, 2]),
    "slot above": ("slots", [9, -1, 2]),
    "slot twice": ("slots", [2, -1, 2]),
    "length below": ("seq", [32, -1, 48]),
    "length above": ("seq", [32, 257, 48]),
    "too few slots": ("slots", [1, 2]),
    "too many slots": ("slots", [1, -1, 2, 3]),
    "page below": ("table", np.where(GOOD_TABLE == 3, -1, GOOD_TABLE)),
    "page above": ("table", np.where(GOOD_TABLE == 3, 12, GOOD_TABLE)),
    "table rows": ("table", GOOD_TABLE[:2]),
    "weight heads": ("w", np.zeros((32, 1), np.float16)),
    "weight rows": ("w", np.zeros((16, 4), np.float16)),
    "cache heads": ("cache", np.zeros((9, 1, 16), np.float16)),
    "page size": ("x", np.zeros((12, 32, 4, 16), np.float16)),
}


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("case", [None, *BAD_INDICES])
def test_infer_body_refuses_what_the_kernel_refuses(run, case):
    # All shapes are open, so that it is the body that says no, not the declared types.
    made = expand(
        models.infer(x=("a", "b", "c", "d"), w=("e", "f"), cache=("g", "h", "i"), table=("j", "k"), batch=None)
    )
    feeds = infer_feeds([32, 33, 48], np.float16)
    feeds |= {"slots": np.array([1, -1, 2], np.int32), "table": GOOD_TABLE}
    if case is None:
        (got,) = run(made, feeds)
        assert oracle.same_bits(got, infer_want(feeds))
        return
    name, value = BAD_INDICES[case]
    feeds[name] = np.asarray(value, feeds[name].dtype)
    with pytest.raises(Exception):  # noqa: B017, PT011 - each runtime has its own classes and words
        run(made, feeds)


@pytest.mark.parametrize("run", RUNTIMES)
def test_without_a_table_the_pages_must_divide(run):
    made = expand(models.infer(table=None))
    feeds = infer_feeds([32, 33, 48], np.float16, table=False, pages=11)
    with pytest.raises(Exception, match=r"check_block_num|out of bounds"):
        run(made, feeds)
    (divided,) = [node for node in made.graph.node if node.output[0].endswith("pages_each")]
    assert any(name.endswith("check_block_num") for name in divided.input)


@pytest.mark.parametrize("op_type", ["NsaCompress", "NsaCompressInfer"])
def test_the_result_depends_on_every_check(op_type):
    """A runtime may drop nodes that nothing needs, so a check beside the computation would check nothing."""
    nodes = OPERATORS[op_type].body(18).node
    needed = set(OPERATORS[op_type].body(18).output)
    for node in reversed(nodes):
        if needed & set(node.output):
            needed.update(node.input)
            for attribute in node.attribute:
                needed.update(name for inner in attribute.g.node for name in inner.input)
    checks = {node.output[0] for node in nodes if node.output[0].startswith("check_")}
    assert len(checks) == {"NsaCompress": 2, "NsaCompressInfer": 4}[op_type]
    assert checks <= needed
    assert {node.name for node in nodes if node.name} == checks


@pytest.mark.parametrize("opset", range(16, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_gives_the_same(opset):
    feeds = compress_feeds([40, 60, 200], np.float16)
    made = expand(models.compress(opset=opset))
    onnx.checker.check_model(made, full_check=True, check_custom_domain=True)
    assert {entry.version for function in made.functions for entry in function.opset_import} == {opset}
    (got,) = models.run_reference(made, feeds)
    assert oracle.same_bits(got, oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, [40, 60, 200]))


def test_an_older_opset_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"need opset 16 or newer .* got 15: convert the model first"):
        expand(models.compress(opset=15))


@pytest.mark.parametrize("made", [models.compress(), models.infer(), models.infer(table=None)])
def test_expanding_again_changes_nothing_and_the_input_is_left_alone(made):
    before = made.SerializeToString()
    once = expand(made)
    assert made.SerializeToString() == before
    assert expand(once) == once
    onnx.checker.check_model(once, full_check=True, check_custom_domain=True)


def test_a_model_without_our_nodes_is_returned_as_it_is():
    made = models.model(
        [helper.make_node("Neg", ["x"], ["y"])],
        [models.value("x", np.float16, [2])],
        [models.value("y", np.float16, [2])],
        opset=9,
    )
    assert expand(made) == made


def test_nodes_in_branches_and_functions_are_expanded_with_tables_of_their_own():
    feeds = infer_feeds([32, 33, 48], np.float16, table=False)
    names = ["x", "w", "slots", "cache", "seq"]
    branches = [
        helper.make_graph(
            [models.node("NsaCompressInfer", [*names, ""][: 5 + n], ["z"])],
            f"branch{n}",
            [],
            [models.value("z", np.float16, None)],
        )
        for n in range(2)
    ]
    inner = models.node("NsaCompressInfer", names, ["out"])
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("nsa_onnx", 1)]
    function = helper.make_function("local", "Step", names, ["out"], [inner], imports)
    source = models.infer(table=None)
    made = models.model(
        [
            helper.make_node("If", ["go"], ["mid"], then_branch=branches[0], else_branch=branches[1]),
            helper.make_node("Step", ["x", "w", "slots", "mid", "seq"], ["y"], domain="local"),
        ],
        [*source.graph.input, helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        source.graph.output,
        functions=[function],
        imports=(("nsa_onnx", 1), ("local", 1)),
    )
    expanded = expand(made)
    assert expand(expanded) == expanded
    for go in (True, False):
        for run in RUNTIMES:
            (got,) = run(expanded, {**feeds, "go": np.array(go)})
            assert oracle.same_bits(got, infer_want(feeds))


def test_a_function_of_nothing_but_our_node_gets_the_standard_operators_of_its_table():
    inner = models.node("NsaCompressInfer", ["x", "w", "slots", "cache", "seq"], ["y"])
    imports = [helper.make_opsetid("nsa_onnx", 1)]
    made = models.infer(table=None)
    made.functions.append(helper.make_function("f", "F", list(inner.input), ["y"], [inner], imports))
    made.opset_import.add(domain="f", version=1)
    made.graph.node[0].CopyFrom(helper.make_node("F", inner.input, ["y"], domain="f"))
    feeds = infer_feeds([32, 33, 48], np.float16, table=False)
    for run in RUNTIMES:
        (got,) = run(expand(made), feeds)
        assert oracle.same_bits(got, infer_want(feeds))


def test_new_names_do_not_meet_the_model_s():
    made = models.infer(table=None)
    made.graph.node.insert(0, helper.make_node("Identity", ["w"], ["nsa_onnx_0_block_table"], name="nsa_onnx_1_zero"))
    made.graph.node[1].input[1] = "nsa_onnx_0_block_table"
    feeds = infer_feeds([32, 33, 48], np.float16, table=False)
    (got,) = models.run_ort(expand(made), feeds)
    assert oracle.same_bits(got, infer_want(feeds))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.graph.node[0].attribute.pop(),
            r"node 'nsa' \(NsaCompress\): compress_stride is required and missing",
        ),
        (lambda m: m.graph.node[0].input.pop(), r"node 'nsa' \(NsaCompress\): actual_seq_len is required and missing"),
        (lambda m: setattr(m.graph.node[0], "op_type", "NsaOther"), r"domain nsa_onnx has no such operator"),
        (lambda m: setattr(m.opset_import[1], "version", 2), r"version 1 of domain nsa_onnx must be imported"),
        (lambda m: m.opset_import.pop(), r"version 1 of domain nsa_onnx must be imported"),
    ],
)
def test_what_a_body_would_not_notice_is_refused(change, message):
    made = models.compress()
    change(made)
    with pytest.raises(ValueError, match=message):
        expand(made)


def test_a_model_of_nothing_but_our_node_gets_the_standard_operators():
    made = models.compress()
    del made.opset_import[0]
    made.ir_version = 7
    feeds = compress_feeds([200], np.float16)
    expanded = expand(made)
    assert expanded.ir_version >= 8
    (got,) = models.run_ort(expanded, feeds)
    assert oracle.same_bits(got, oracle.compress_exact(feeds["x"], feeds["w"], 32, 16, [200]))
