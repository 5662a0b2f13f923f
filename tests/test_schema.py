"""ONNX schemas: exact T', names of dims, and an error for what is certainly wrong."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import nsa_models as models
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.checker import check_model
from onnx.shape_inference import InferenceError, infer_shapes

import nsa_onnx
from nsa_onnx.graph.tensors import TensorFacts, integer_values
from nsa_onnx.operators import OPERATORS, schema
from nsa_onnx.operators.base import dim_names
from nsa_onnx.operators.contract import DOMAIN
from nsa_onnx.operators.facts import NodeFacts
from nsa_onnx.operators.nsa_compress_attention.rule_examples import attention
from nsa_onnx.operators.schema import register

REJECTED = (InferenceError, onnx.checker.ValidationError)


def full_check(model):
    check_model(model, full_check=True, check_custom_domain=True)


def inferred(model, name="y", **options):
    """Dims of a value after inference: numbers, names, or None."""
    graph = infer_shapes(model, **options).graph
    (found,) = [v for v in (*graph.output, *graph.value_info) if v.name == name]
    dims = found.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims]


def without_output_shape(model):
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def test_registering_is_idempotent_and_public():
    assert nsa_onnx.register is register
    register()
    register()
    for op_type in OPERATORS:
        assert onnx.defs.get_schema(op_type, DOMAIN).since_version == 1


def test_schemas_are_gone_before_python_ends():
    for op_type in OPERATORS:
        schema._deregister(op_type)
        schema._deregister(op_type)
        assert not onnx.defs.has(op_type, 1, DOMAIN)
    register()
    assert all(onnx.defs.has(op_type, 1, DOMAIN) for op_type in OPERATORS)


def test_inputs_behind_one_that_is_left_out_are_looked_at():
    text = attention(ends=(40, 100), tokens=(5, 12), blocks=(2, 4), masks=["60, 7", "60, 1"])
    for inputs in ("hidden, always", '"", always'):
        with pytest.raises(InferenceError, match="topk_mask"):
            infer_shapes(onnx.parser.parse_model(text.replace("hidden, always)", f"{inputs})")), strict_mode=True)
    infer_shapes(onnx.parser.parse_model(text.replace("hidden, always)", "hidden)")), strict_mode=True)


@given(data=st.data())
def test_constant_lengths_give_the_exact_t(data):
    block = 16 * data.draw(st.integers(1, 8))
    stride = 16 * data.draw(st.integers(1, block // 16))
    segments = data.draw(st.lists(st.integers(0, 300), min_size=1, max_size=5).filter(lambda s: s[0] > 0))
    seq = np.cumsum(segments).tolist()
    made = models.compress(seq, w=(block, 4), compress_block_size=block, compress_stride=stride)
    want = sum(len(range(0, length - block + 1, stride)) for length in segments)
    assert inferred(without_output_shape(made)) == [want, 4, 16]


@pytest.mark.parametrize(
    "constant",
    [
        helper.make_node("Constant", [], ["seq"], value=models.lengths([40, 100])),
        helper.make_node("Constant", [], ["seq"], value_ints=[40, 100]),
    ],
    ids=["value", "value_ints"],
)
def test_lengths_from_a_constant_node_count_as_constant(constant):
    made = models.compress([1])
    del made.graph.initializer[:]
    made.graph.node.insert(0, constant)
    assert inferred(without_output_shape(made), data_prop=True)[0] == 1 + 2


def test_computed_lengths_are_known_with_data_propagation():
    made = models.compress([40, 100])
    made.graph.initializer[0].name = "seq_before"
    made.graph.node.insert(0, helper.make_node("Cast", ["seq_before"], ["seq"], to=TensorProto.INT64))
    assert inferred(without_output_shape(made), data_prop=True) == [3, 4, 16]


def test_lengths_of_a_run_give_a_dim_of_its_own_per_node():
    made = models.compress()
    made.graph.node.append(models.node(outputs=["y2"]))
    made.graph.output.append(models.value("y2", np.float16, None))
    made.graph.output[1].type.tensor_type.ClearField("shape")
    without_output_shape(made)
    first, second = inferred(made), inferred(made, "y2")
    assert isinstance(first[0], str)
    assert isinstance(second[0], str)
    assert first[0] != second[0]
    assert first[1:] == [4, 16]


def test_names_of_dims_reach_the_output():
    made = models.compress([40, 100], x=("T", "heads", "dim"), w=("block", 4))
    assert inferred(without_output_shape(made)) == [3, 4, "dim"]
    step = models.infer(x=("P", 64, "N", "D"), w=("block", "N"), cache=("slots", "heads", "dim"))
    assert inferred(without_output_shape(step)) == ["slots", "heads", "dim"]


def test_a_dim_that_is_no_size_gives_way_to_the_next_that_is():
    made = models.compress([40, 100], x=("T", -1, 0), w=(32, 4))
    assert inferred(without_output_shape(made)) == [3, 4, 0]
    step = models.infer(x=("P", 64, 4, "D"), w=(32, "N"), cache=(0, "heads", -1))
    assert inferred(without_output_shape(step)) == [0, 4, "D"]
    step = models.infer(x=("P", 64, -1, "D"), w=(32, 4), cache=("S", -1, "D"))
    assert inferred(without_output_shape(step)) == ["S", 4, "D"]


@pytest.mark.parametrize("known", [0, 1])
def test_one_input_s_type_is_the_output_s(known):
    made = models.compress(dtype=models.BFLOAT16)
    made.graph.input[1 - known].ClearField("type")
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.UNDEFINED
    assert infer_shapes(made).graph.output[0].type.tensor_type.elem_type == TensorProto.BFLOAT16


@pytest.mark.parametrize("dtype", [np.float16, models.BFLOAT16], ids=str)
@pytest.mark.parametrize("table", [("B", "M"), None])
def test_good_graphs_pass_the_full_check(dtype, table):
    full_check(models.compress(dtype=dtype))
    full_check(models.compress([40, 100], dtype=dtype, x=(100, 4, 16), y=(3, 4, 16)))
    full_check(models.compress([10], dtype=dtype, y=(0, 4, 16)))
    full_check(models.infer(dtype=dtype, table=table))
    full_check(models.infer([32, 0], dtype=dtype, table=table, x=(4, 64, 4, 16), batch=2))
    empty_name = models.infer(dtype=dtype, table=None)
    empty_name.graph.node[0].input.append("")
    full_check(empty_name)


def edited(model, change):
    change(model)
    return model


def set_type(index, element_type):
    return lambda m: setattr(m.graph.input[index].type.tensor_type, "elem_type", element_type)


COMPRESS_WRONG = {
    "T' declared": (lambda: models.compress([40, 100], y=(5, 4, 16)), "5"),
    "T' declared on an empty result": (lambda: models.compress([10], y=(1, 4, 16)), "1"),
    "rank declared": (lambda: models.compress([40, 100], y=(3, 4)), "rank"),
    "type declared": (lambda: edited(models.compress(), lambda m: m.graph.output[0].CopyFrom(
        models.value("y", TensorProto.FLOAT, ("R", 4, 16)))), "elem type"),
    "float32 input": (lambda: edited(models.compress(), set_type(0, TensorProto.FLOAT)), "float"),
    "mixed types": (lambda: edited(models.compress(), set_type(1, TensorProto.BFLOAT16)), "dtype|typestr|type"),
    "int32 lengths": (lambda: edited(models.compress(), set_type(2, TensorProto.INT32)), "int32|int64"),
    "input rank": (lambda: models.compress(x=("T", 64)), "rank 3 .* got rank 2"),
    "weight rank": (lambda: models.compress(w=(32, 4, 1)), "rank 2 .* got rank 3"),
    "lengths rank": (lambda: edited(models.compress(), lambda m: m.graph.input[2].type.tensor_type.shape.dim.add()),
                     "rank 1 .* got rank 2"),
    "weight rows": (lambda: models.compress(w=(16, 4)), r"weight.shape\[0\]"),
    "weight heads": (lambda: models.compress(w=(32, 5)), r"weight.shape\[1\]"),
    "head dim": (lambda: models.compress(x=("T", 4, 24)), "multiple of 16, got 24"),
    "large head dim": (lambda: models.compress(x=("T", 4, 272)), "<= 256, got 272"),
    "no heads": (lambda: models.compress(x=("T", 0, 16), w=(32, 0)), ">= 1, got 0"),
    "many heads": (lambda: models.compress(x=("T", 129, 16), w=(32, 129)), "<= 128, got 129"),
    "block": (lambda: models.compress(w=("b", 4), compress_block_size=40), "multiple of 16, got 40"),
    "large block": (lambda: models.compress(w=("b", 4), compress_block_size=144), r"\[16, 128\], got 144"),
    "stride": (lambda: models.compress(compress_stride=8), "multiple of 16, got 8"),
    "stride 0": (lambda: models.compress([40, 100], compress_stride=0), "got 0"),
    "stride over block": (lambda: models.compress(compress_stride=48), "= 32], got 48"),
    "no stride": (lambda: models.compress(compress_stride=None), "compress_stride"),
    "float stride": (lambda: models.compress(compress_stride=16.0), "compress_stride"),
    "surplus attribute": (lambda: models.compress(page_block_size=64), "page_block_size"),
    "empty lengths": (lambda: models.compress([]), "at least 1 element"),
    "decreasing": (lambda: models.compress([50, 40]), r"actual_seq_len\[1\] must be >= .* 50, got 40"),
    "leading 0": (lambda: models.compress([0, 40]), r"actual_seq_len\[0\] must be >= 1, got 0"),
    "not T": (lambda: models.compress([40, 99], x=(100, 4, 16)), r"must equal T = 100, got 99"),
    "no lengths": (lambda: edited(models.compress(), lambda m: m.graph.node[0].input.pop()), "seq_len|input size 2"),
    "another input": (lambda: edited(models.compress(), lambda m: m.graph.node[0].input.append("x")), "input"),
    "another output": (lambda: edited(models.compress(), lambda m: m.graph.node[0].output.append("z")), "output"),
}  # fmt: skip

INFER_WRONG = {
    "float16 table": (lambda: edited(models.infer(), set_type(5, TensorProto.INT64)), "int64|int32"),
    "cache type": (lambda: edited(models.infer(), set_type(3, TensorProto.BFLOAT16)), "dtype|typestr|type"),
    "input rank": (lambda: models.infer(x=("P", 64, 64)), "rank 4 .* got rank 3"),
    "cache rank": (lambda: models.infer(cache=("S", 64)), "rank 3 .* got rank 2"),
    "page": (lambda: models.infer(x=("P", "page", 4, 16), page_block_size=32), "64 or 128, got 32"),
    "page of input": (lambda: models.infer(page_block_size=128), "= 128, got 64"),
    "block of 128": (lambda: models.infer(w=(128, 4), compress_block_size=128), r"\[16, 127\], got 128"),
    "64 heads": (lambda: models.infer(x=("P", 64, 64, 16), w=(32, 64), cache=("S", 64, 16)), "<= 63, got 64"),
    "cache heads": (lambda: models.infer(cache=("S", 5, 16)), r"cache.shape\[1\] must equal N = 4, got 5"),
    "cache dim": (lambda: models.infer(cache=("S", 4, 32)), r"cache.shape\[2\] must equal D = 16, got 32"),
    "batch": (lambda: models.infer([32, 0], batch=3), "B = 3 elements, got 2"),
    "table rows": (lambda: models.infer(batch=3, table=(2, 4)), "B = 3, got 2"),
    "pages": (lambda: models.infer(table=None, batch=3, x=(4, 64, 4, 16)), "multiple of B = 3 .* got 4"),
    "length below": (lambda: models.infer([-1, 0]), r"actual_seq_len\[0\] must be >= 0, got -1"),
    "length above": (lambda: models.infer([32, 257], table=("B", 4)), r"\[1\] must be in \[0, 256\] .* got 257"),
    "default table": (lambda: models.infer([0, 129], table=None, x=(4, 64, 4, 16), batch=2), r"\[0, 128\].*129"),
    "no page size": (lambda: models.infer(page_block_size=None), "page_block_size"),
}


@pytest.mark.parametrize("case", [*COMPRESS_WRONG.items(), *INFER_WRONG.items()], ids=lambda case: case[0])
def test_what_is_certainly_wrong_is_rejected_in_words(case):
    make, words = case[1]
    with pytest.raises(REJECTED, match=words):
        full_check(make())


@pytest.mark.parametrize(
    "name", ["input rank", "weight heads", "stride 0", "no stride", "decreasing", "not T", "no lengths", "float stride"]
)
def test_strict_inference_refuses_it_without_the_checker(name):
    with pytest.raises(InferenceError):
        infer_shapes(COMPRESS_WRONG[name][0](), strict_mode=True)


def constant_index_model(slots, table, seq=(32, 33, 48)):
    made = models.infer(list(seq), x=(12, 64, 4, 16), cache=(9, 4, 16), batch=3, table=(3, 4))
    del made.graph.input[4], made.graph.input[2]
    made.graph.initializer.append(helper.make_tensor("slots", TensorProto.INT32, [3], slots))
    made.graph.initializer.append(helper.make_tensor("table", TensorProto.INT32, [3, 4], table))
    return made


def test_constant_indices_are_checked_where_they_are_read_and_only_there():
    good_table = [0, -1, -1, -1, -7, -7, -7, -7, 3, -1, -1, -1]
    full_check(constant_index_model([1, -1, 2], good_table))
    for slots, table, words in (
        ([1, -1, 1], good_table, r"slot_mapping\[2\] must differ from slot_mapping\[0\]"),
        ([1, -1, 9], good_table, r"slot_mapping\[2\] must be in \[0, 9\), got 9"),
        ([1, -1, 2], [12, *good_table[1:]], r"block_table\[0, 0\] must be in \[0, 12\), got 12"),
    ):
        with pytest.raises(InferenceError, match=words):
            full_check(constant_index_model(slots, table))


def forget(*names):
    def change(model):
        for entry in model.graph.input:
            if entry.name in names:
                entry.ClearField("type")

    return change


def forget_shapes(model):
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.ClearField("shape")


@pytest.mark.parametrize("make", [models.compress, models.infer, lambda: models.infer(table=None)])
@pytest.mark.parametrize(
    "change",
    [
        forget("x"),
        forget("w"),
        forget("seq"),
        forget("x", "w"),
        forget("x", "w", "seq", "cache", "slots", "table"),
        forget_shapes,
        lambda m: (
            m.graph.input[0].type.CopyFrom(models.value("x", np.float16, ["a", "b", "c", "d"][-3:]).type)
            if m.graph.node[0].op_type == "NsaCompress"
            else None
        ),
        lambda m: m.graph.input[1].type.CopyFrom(models.value("w", np.float16, [-1, -1]).type),
    ],
)
def test_an_unresolved_graph_is_no_error(make, change):
    made = edited(make(), change)
    for strict in (False, True):
        infer_shapes(made, strict_mode=strict, data_prop=True)


def test_a_function_s_attribute_that_is_not_known_yet_is_no_error():
    inner = models.node(compress_block_size=None, compress_stride=None)
    for name in ("compress_block_size", "compress_stride"):
        inner.attribute.add(name=name, ref_attr_name=name, type=onnx.AttributeProto.INT)
    imports = [helper.make_opsetid("nsa_onnx", 1)]
    function = helper.make_function(
        "f", "F", ["x", "w", "seq"], ["y"], [inner], imports, [a.name for a in inner.attribute]
    )
    source = models.compress([40, 100])
    call = helper.make_node("F", ["x", "w", "seq"], ["y"], domain="f", compress_block_size=32, compress_stride=16)
    made = models.model(
        [call],
        list(source.graph.input),
        list(source.graph.output),
        source.graph.initializer,
        functions=[function],
        imports=(("nsa_onnx", 1), ("f", 1)),
    )
    check_model(made, full_check=True)
    assert inferred(made)[0] == 3
    call.attribute[1].i = 48
    made.graph.node[0].CopyFrom(call)
    with pytest.raises(InferenceError, match="got 48"):
        infer_shapes(made)


@pytest.mark.parametrize("own", [True, False])
def test_nodes_in_branches_are_inferred_with_outer_types_and_their_own_constants(own):
    source = models.compress([40, 100])
    constants = source.graph.initializer
    branch = helper.make_graph(
        [models.node(outputs=["z"])], "branch", [], [models.value("z", np.float16, None)], constants if own else []
    )
    made = models.model(
        [helper.make_node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)],
        [*source.graph.input, helper.make_tensor_value_info("go", TensorProto.BOOL, [])],
        [models.value("y", np.float16, None)],
        [] if own else constants,
    )
    rows, *rest = inferred(made)
    assert rest == [4, 16]
    # onnx shows a node in a subgraph no constants from outside: T' is unknown then, and nothing is wrong.
    assert rows == 3 if own else not isinstance(rows, int)


def test_what_is_no_tensor_is_refused():
    made = models.compress()
    made.graph.input[0].type.Clear()
    made.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(InferenceError, match="weight must have the dtype of input, sequence"):
        infer_shapes(made)


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(data_type=TensorProto.INT64, dims=[3], raw_data=b"\0" * 16),
        TensorProto(data_type=TensorProto.INT64, dims=[2], raw_data=b"\0" * 15),
        TensorProto(data_type=TensorProto.INT64, dims=[-2], int64_data=[1, 2]),
        TensorProto(data_type=TensorProto.INT64, dims=[2**62, 2**62], int64_data=[1]),
        TensorProto(data_type=TensorProto.INT64, dims=[2**33, 2**33, 0]),
        TensorProto(data_type=TensorProto.INT64, dims=[1] * 65, int64_data=[1]),
        TensorProto(data_type=TensorProto.FLOAT, dims=[1], float_data=[1]),
        TensorProto(data_type=TensorProto.INT64, dims=[1], data_location=TensorProto.EXTERNAL),
        TensorProto(),
    ],
)
def test_malformed_constants_are_not_read(tensor):
    assert integer_values(tensor) is None


def test_constants_are_read_in_both_layouts():
    plain = helper.make_tensor("t", TensorProto.INT32, [2, 1], [-1, 7])
    raw = helper.make_tensor("t", TensorProto.INT32, [2, 1], np.array([-1, 7], "<i4").tobytes(), raw=True)
    for tensor in (plain, raw):
        values = integer_values(tensor)
        assert values is not None
        assert values.tolist() == [[-1], [7]]


def compress_node(tokens=None, sequences=None, block=32, stride=16, seq=None, **shapes):
    shapes = {"input": (tokens, 4, 16), "actual_seq_len": (sequences,)} | shapes
    inputs = {name: TensorFacts(None, shape) for name, shape in shapes.items()}
    sizes = {"compress_block_size": block, "compress_stride": stride}
    constants = {} if seq is None else {"actual_seq_len": np.array(seq)}
    return NodeFacts("NsaCompress", {name: size for name, size in sizes.items() if size}, inputs, constants)


@pytest.mark.parametrize(
    ("known", "why", "perhaps"),
    [
        ({}, None, True),
        ({"tokens": 62, "sequences": 2}, None, True),
        ({"tokens": 63, "sequences": 2}, None, False),
        ({"tokens": 63}, None, True),
        ({"sequences": 2}, None, True),
        ({"tokens": 63, "sequences": 2, "block": None}, None, True),
        ({"tokens": 32}, None, True),
        ({"tokens": 31}, ("input", "T = 31 is less than compress_block_size = 32"), True),
        ({"seq": [31, 62]}, ("actual_seq_len", "no segment has compress_block_size = 32 tokens"), True),
        ({"seq": [31, 63]}, None, True),
        ({"seq": [31, 62], "stride": None}, None, True),
    ],
)
def test_a_node_that_gives_no_row_is_told_from_one_that_may(known, why, perhaps):
    operator, facts = OPERATORS["NsaCompress"], compress_node(**known)
    assert (operator.empty_because(facts), operator.may_be_empty(facts)) == (why, perhaps)


def rows(facts):
    return [(found.row.id, *found.values) for found in OPERATORS[facts.op_type].contract_violations(facts)]


@pytest.mark.parametrize(
    ("known", "found"),
    [
        ({}, []),
        ({"block": None, "stride": 129}, [("stride_multiple", 129), ("stride_range", 16, 128, 129)]),
        ({"block": None, "stride": 128}, []),
        ({"block": 16, "stride": None}, []),
        ({"block": 15, "stride": None}, [("block_multiple", 15), ("block_range", 16, 128, 15)]),
        ({"sequences": 0}, [("seq_empty", 0)]),
        ({"sequences": 1}, []),
        ({"tokens": 64, "seq": [40, 63]}, [("seq_last", 1, 64, 63)]),
        ({"seq": [40, 39]}, [("seq_decreasing", 1, 40, 39)]),
        ({"seq": [[40, 39]]}, [("seq_rank", 2)]),
        ({"seq": 40}, [("seq_rank", 0)]),
        ({"actual_seq_len": None}, []),
        ({"actual_seq_len": ()}, [("seq_rank", 0)]),
        ({"input": None, "seq": [40]}, []),
        ({"input": (64, 4), "seq": [40]}, [("input_rank", 2)]),
        ({"input": (64, 4, 16, 1), "seq": [40]}, [("input_rank", 4)]),
    ],
)
def test_what_is_known_of_a_node_is_judged(known, found):
    assert rows(compress_node(**known)) == found


@pytest.mark.parametrize(
    ("dtypes", "found"),
    [
        ((None, None, None), []),
        ((None, "bfloat16", None), []),
        (("float16", None, "bfloat16"), [("cache_dtype", "float16", "bfloat16")]),
        ((None, "float16", "bfloat16"), [("cache_dtype", "float16", "bfloat16")]),
        ((None, "float32", None), [("input_dtype", "float32")]),
    ],
)
def test_an_unknown_type_is_that_of_the_others(dtypes, found):
    facts = step_node()
    known = zip(("input", "weight", "cache"), dtypes, strict=True)
    assert rows(replace(facts, inputs={name: TensorFacts(dtype) for name, dtype in known})) == found


def step_node(pages=(8, 64, 4, 16), batch=2, slots=9, table=(2, 4), sizes=(32, 16, 64), lengths=None, **constants):
    shapes = {"input": pages, "slot_mapping": (batch,), "cache": (slots, 4, 16), "block_table": table}
    shapes["actual_seq_len"] = lengths
    names = "compress_block_size", "compress_stride", "page_block_size"
    return NodeFacts(
        "NsaCompressInfer",
        {name: size for name, size in zip(names, sizes, strict=True) if size is not None},
        {name: TensorFacts(None, shape) for name, shape in shapes.items() if shape != "left out"},
        {name: np.array(values) for name, values in constants.items()},
    )


WRONG_STEP = {"actual_seq_len": [48, 32], "slot_mapping": [9, 9], "block_table": [[8, 0, 0, 0], [0, 0, 0, 0]]}
WRONG_ROWS = [("slot_range", 0, 9, 9), ("table_range", 0, 0, 8, 8), ("slot_range", 1, 9, 9)]
LONG = {**WRONG_STEP, "actual_seq_len": [48, 257]}
TOO_LONG = [("seq_range", 1, 256, 257)]


@pytest.mark.parametrize(
    ("known", "found"),
    [
        (WRONG_STEP, WRONG_ROWS),
        (LONG, TOO_LONG),
        ({name: WRONG_STEP[name] for name in ("actual_seq_len", "slot_mapping")}, []),
        ({name: WRONG_STEP[name] for name in ("actual_seq_len", "block_table")}, []),
        # Where one thing is not known, no index is judged, but lengths are.
        *[({**WRONG_STEP, **unknown}, []) for unknown in (
            {"sizes": (None, 16, 64)}, {"sizes": (32, None, 64)}, {"sizes": (32, 16, None)}, {"slots": None},
            {"pages": (None, 64, 4, 16)},
        )],
        *[({**LONG, **unknown}, TOO_LONG) for unknown in (
            {"sizes": (None, 16, 64)}, {"sizes": (32, None, 64)}, {"slots": None}, {"pages": (None, 64, 4, 16)},
            {"batch": None},
        )],
        # A constant has its own shape, whatever is declared.
        ({**WRONG_STEP, "table": None}, WRONG_ROWS),
        ({**WRONG_STEP, "slot_mapping": [9]}, [("seq_count", 1, 2), ("table_batch", 1, 2)]),
        ({**WRONG_STEP, "block_table": [[8] * 4] * 3}, [("table_batch", 2, 3)]),
        ({**WRONG_STEP, "actual_seq_len": 48}, [("seq_rank", 0)]),
        ({**LONG, "block_table": [[8]] * 2}, [("seq_range", 1, 64, 257)]),
        # The pages of each are the table's, or an equal part of all; without either, a length is not negative.
        ({**LONG, "table": "left out", "slot_mapping": [9, 0]}, TOO_LONG),
        ({"table": "left out", "actual_seq_len": [48, 32], "slot_mapping": [9, 1]}, [("slot_range", 0, 9, 9)]),
        ({"table": (2, None), "actual_seq_len": [-1, 9999]}, [("seq_negative", 0, -1)]),
        ({"table": "left out", "batch": 0, "actual_seq_len": []}, []),
        ({"table": "left out", "batch": None, "actual_seq_len": [0, -1]}, [("seq_negative", 1, -1)]),
        ({"table": "left out", "pages": (None, 64, 4, 16), "actual_seq_len": [0, -1]}, [("seq_negative", 1, -1)]),
        # A wrong shape is all that is said.
        ({"lengths": (3,)}, [("seq_count", 2, 3)]),
        ({"lengths": (2, 5)}, [("seq_rank", 2)]),
        ({"table": (3, 4)}, [("table_batch", 2, 3)]),
        ({**WRONG_STEP, "sizes": (None, 129, 64)}, [("stride_multiple", 129), ("stride_range", 16, 112, 129)]),
        ({"sizes": (None, 112, None), "pages": (8, 128, 4, 16)}, []),
        ({"sizes": (None, 128, None)}, [("stride_range", 16, 112, 128)]),
    ],
)  # fmt: skip
def test_what_is_known_of_a_step_is_judged(known, found):
    assert rows(step_node(**known)) == found


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_dims_of_the_same_size_have_the_same_name(operator):
    dims = {one.name: dim_names(one) for one in operator.inputs}
    assert [dims[name][axis] for name, axis in (one.below for one in operator.inputs if one.page_size)] == [
        "block_num" for one in operator.inputs if one.page_size
    ]
    for output in operator.outputs:
        for dim, sources in zip(dim_names(output), output.dims, strict=True):
            assert [dims[name][axis] for name, axis in sources] == [dim] * len(sources), output.name


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_lengths_that_are_a_tensor_have_a_type_and_a_rank(operator):
    for name in (one.name for one in operator.inputs if one.lengths):
        words = [one.message for one in operator.length_violations(name, "int32", 2)]
        assert words == [
            f"{name} must be int64, got int32 (cast it to int64)",
            f"{name} must have rank 1 [B], got rank 2",
        ]


def test_what_few_operators_have():
    assert [name for name, one in OPERATORS.items() if one.may_be_empty(NodeFacts(name, {}, {}))] == ["NsaCompress"]
    distinct = [(name, port.name) for name, one in OPERATORS.items() for port in one.inputs if port.distinct]
    assert distinct == [("NsaCompressInfer", "slot_mapping")]


def test_every_part_of_a_schema_is_documented():
    for op in schema.SCHEMAS.values():
        assert all(attribute.required for attribute in op.attributes.values())
        assert len(op.doc) > 500
        for part in (*op.inputs, *op.outputs, *op.type_constraints, *op.attributes.values()):
            assert part.description


def test_the_operators_page_is_the_schemas_documentation():
    path = Path(__file__).parents[1] / "docs" / "generate_operators.py"
    page = runpy.run_path(str(path))
    assert page["OUTPUT"].read_text() == page["render"](), f"stale: run python {path}"
