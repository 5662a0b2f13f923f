"""The contracts against the documentation's formulas, written again by brute force."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsa_onnx.operators.contract import Array, is_float, is_int, listed, plural, wrong_sequence
from nsa_onnx.operators.hints import HINTS
from nsa_onnx.operators.nsa_compress import contract as prefill
from nsa_onnx.operators.nsa_compress_infer import contract as decode
from nsa_onnx.operators.windows import (
    dim_violations,
    row_plan,
    seq_kind_violations,
    seq_tensor_violations,
    triggers,
    window_violations,
)

ALIGNED = st.integers(1, 8).map(lambda n: 16 * n)


@pytest.mark.parametrize(("block", "stride"), [(32, 16), (48, 32), (64, 48), (64, 64)])
def test_a_step_writes_where_a_window_is_complete(block, stride):
    assert [length for length in range(300) if triggers(length, block, stride)] == list(range(block, 300, stride))


@pytest.mark.parametrize(
    ("limits", "block", "stride", "found"),
    [
        (prefill.LIMITS, 16, 16, {}),
        (prefill.LIMITS, 128, 128, {}),
        (prefill.LIMITS, 0, 0, {"block_range": (16, 128, 0), "stride_range": (16, 0, 0)}),
        (prefill.LIMITS, 129, 15, {"block_multiple": (129,), "block_range": (16, 128, 129), "stride_multiple": (15,),
                                   "stride_range": (16, 129, 15)}),
        (decode.LIMITS, 127, 112, {"block_multiple": (127,)}),
        (decode.LIMITS, 128, 129, {"block_range": (16, 127, 128), "stride_multiple": (129,),
                                   "stride_range": (16, 128, 129)}),
    ],
)  # fmt: skip
def test_windows_are_judged_by_each_row(limits, block, stride, found):
    violations = window_violations(prefill.ROWS, limits, block, stride)
    assert {violation.row.id: violation.values for violation in violations} == found


@pytest.mark.parametrize(
    ("limits", "heads", "dim", "found"),
    [
        (prefill.LIMITS, 1, 0, {}),
        (prefill.LIMITS, 128, 256, {}),
        (prefill.LIMITS, 129, 257, {"head_dim_multiple": (257,), "head_dim_max": (257,), "heads_max": (128, 129)}),
        (decode.LIMITS, 63, 16, {}),
        (decode.LIMITS, 64, 16, {"heads_max": (63, 64)}),
        (decode.LIMITS, 0, 15, {"head_dim_multiple": (15,), "heads_min": (1, 0)}),
    ],
)
def test_heads_and_their_size_are_judged_by_each_row(limits, heads, dim, found):
    violations = dim_violations(prefill.ROWS, limits, (heads, dim), (32, heads), 32, 16)
    assert {violation.row.id: violation.values for violation in violations} == found


@st.composite
def segments(draw):
    block = draw(ALIGNED)
    stride = draw(ALIGNED.filter(lambda s: s <= block))
    lengths = draw(st.lists(st.integers(0, 400), min_size=1, max_size=8))
    lengths[0] = max(1, lengths[0])
    prefix_sums = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return prefix_sums, block, stride


@given(segments())
def test_compressed_length_counts_the_windows_that_fit(case):
    prefix_sums, block, stride = case
    rows = len(oracle.window_starts(prefix_sums, block, stride))
    assert prefill.compressed_length(prefix_sums, block, stride) == rows


@given(segments())
def test_the_plan_lists_every_window_once_in_order(case):
    prefix_sums, block, stride = case
    starts, next_row = [], 0
    for run in row_plan(prefix_sums, block, stride):
        assert run.first_row == next_row
        starts += [run.first_token + k * stride for k in range(run.rows)]
        next_row += run.rows
    assert starts == oracle.window_starts(prefix_sums, block, stride)


@given(
    st.integers(1, 7).map(lambda n: 16 * n),
    st.data(),
    st.sampled_from(decode.PAGE_BLOCK_SIZES),
    st.booleans(),
)
def test_the_decode_plan_covers_the_last_block_tokens_page_by_page(block, data, page, with_table):
    stride = data.draw(st.sampled_from(range(16, block + 1, 16)))
    complete = st.integers(0, (4 * page - block) // stride).map(lambda steps: block + steps * stride)
    lengths = data.draw(st.lists(st.integers(0, 4 * page) | complete, max_size=4))
    table = [[10 * b + p for p in range(4)] for b in range(len(lengths))] if with_table else None
    slots = [100 + b for b in range(len(lengths))]
    plan = decode.slot_plan(slots, table, lengths, block, stride, page, 4)
    writers = [b for b, n in enumerate(lengths) if n >= block and (n - block) % stride == 0]
    assert [write.sequence for write in plan] == writers
    for write in plan:
        b = write.sequence
        assert write.slot == slots[b]
        assert len(write.runs) <= decode.MAX_PAGE_RUNS
        tokens = [(run.page, run.offset + k) for run in write.runs for k in range(run.tokens)]
        first_page = 4 * b if table is None else 10 * b
        assert tokens == [(first_page + t // page, t % page) for t in range(lengths[b] - block, lengths[b])]


def test_a_window_of_a_step_touches_a_few_pages():
    block, page = decode.LIMITS.max_block, min(decode.PAGE_BLOCK_SIZES)
    touched = [(end - 1) // page - (end - block) // page + 1 for end in range(block, 4 * page)]
    assert max(touched) == decode.MAX_PAGE_RUNS


def test_unknown_dims_violate_nothing():
    assert not list(prefill.shape_violations((None, None, None), (None, None), 32, 16))
    assert not list(prefill.prefix_sum_violations([40, 64], None))
    nothing_known = ((None,) * 4, (None, None), (None,), 32, 16, 64, None, None, (None,) * 3)
    assert not list(decode.shape_violations(*nothing_known))


@pytest.mark.parametrize(
    ("input", "weight", "found"),
    [
        ((None, 129, 24), (None, None), ["head_dim_multiple", "heads_max"]),
        ((None, 4, None), (None, 5), ["weight_heads"]),
        ((None, None, 272), (16, 4), ["weight_block", "head_dim_max"]),
        ((None, 0, 16), (48, None), ["weight_block", "heads_min"]),
    ],
)
def test_a_known_dim_is_judged_beside_unknown_ones(input, weight, found):
    assert [violation.row.id for violation in prefill.shape_violations(input, weight, 32, 16)] == found


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"input": (None, 128, None, 16), "cache": (None, 4, 16)}, [("input_page", 64, 128)]),
        ({"input": (None, None, 4, 16), "cache": (None, 3, None)}, [("cache_heads", 4, 3)]),
        ({"input": (None, 64, 4, 16), "cache": (None, None, 32)}, [("cache_dim", 16, 32)]),
        ({"slots": (3,), "count": 2}, [("seq_count", 3, 2)]),
        ({"slots": (3,), "table": (2, None), "input": (4, 64, 4, 16)}, [("table_batch", 3, 2)]),
        ({"slots": (3,), "table": (None, 4)}, []),
        ({"slots": (3,), "input": (4, 64, 4, 16)}, [("pages_divide", 3, 4)]),
        ({"slots": (0,), "input": (4, 64, 4, 16)}, []),
        ({"page": 65}, [("page_size", 65)]),
        ({"page": 128}, []),
        ({"slots": (2, 2), "table": (2,), "page": 65}, [("slot_rank", 2), ("table_rank", 1)]),
        ({"input": (4, 64, 4), "cache": (3, 4, 16, 1)}, [("input_rank", 3), ("cache_rank", 4)]),
    ],
)
def test_a_known_dim_of_a_step_is_judged_beside_unknown_ones(changed, found):
    unknown = {"input": (None,) * 4, "slots": (None,), "page": 64, "table": None, "count": None, "cache": (None,) * 3}
    case = unknown | changed
    shapes = case["input"], (None, None), case["slots"], 32, 16, case["page"], case["table"], case["count"]
    violations = decode.shape_violations(*shapes, case["cache"])
    assert [(violation.row.id, *violation.values) for violation in violations] == found


@pytest.mark.parametrize(
    ("input", "weight", "row"),
    [
        ((4, 15), (48, 5), "input_rank"),
        ((1, 100, 4, 15), (48, 5), "input_rank"),
        ((100, 4, 15), (48,), "weight_rank"),
        ((100, 4, 15), (48, 5, 1), "weight_rank"),
    ],
)
def test_dims_of_an_array_of_another_rank_are_not_judged(input, weight, row):
    assert [violation.row.id for violation in prefill.shape_violations(input, weight, 32, 16)] == [row]


@pytest.mark.parametrize(
    ("ends", "tokens", "found"),
    [
        ([50, 40, 30], 30, [("seq_decreasing", 1, None)]),
        ([0, 0, 40], 40, [("seq_positive", 0, "leading_zero")]),
        ([0], 0, [("seq_positive", 0, None)]),
        ([-1, 41], 40, [("seq_positive", 0, None), ("seq_last", 1, None)]),
    ],
)
def test_each_row_names_the_first_element_that_breaks_it(ends, tokens, found):
    violations = hinted(prefill.prefix_sum_violations(ends, tokens))
    assert [(row, values[0], values[-1]) for row, *values in violations] == found


DECODE = {"slots": [0, 2], "table": [[0, 1], [2, 3]], "lengths": [48, 80], "block_num": 4, "count": 3}


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, []),
        ({"slots": [2, 0], "table": [[3, -1], [0, 0]], "lengths": [64, 128]}, []),
        ({"slots": [-1, 3]}, [("slot_range", 0, 3, -1), ("slot_range", 1, 3, 3)]),
        ({"slots": [1, 1]}, [("slot_duplicate", 1, 0, 1)]),
        ({"slots": [1, 1], "lengths": [48, 81], "table": [[0, 9], [9, 9]]}, []),
        (
            {"table": [[-1, 9], [4, 5]]},
            [("table_range", 0, 0, 4, -1), ("table_range", 1, 0, 4, 4), ("table_range", 1, 1, 4, 5)],
        ),
        ({"lengths": [0, 129]}, [("seq_range", 1, 128, 129)]),
        ({"lengths": [-1, 128], "slots": [9, 9]}, [("seq_range", 0, 128, -1)]),
        ({"lengths": [300, 100]}, [("seq_range", 0, 128, 300)]),
        ({"table": None, "lengths": [48, 128]}, []),
        ({"table": None, "slots": [-1, 3]}, [("slot_range", 0, 3, -1), ("slot_range", 1, 3, 3)]),
    ],
)
def test_each_index_that_a_step_uses_is_judged(changed, found):
    case = {**DECODE, **changed}
    indices = case["slots"], case["table"], case["lengths"]
    violations = decode.index_violations(*indices, 32, 16, 64, case["block_num"], 2, case["count"])
    assert [(violation.row.id, *violation.values) for violation in violations] == found


@pytest.mark.parametrize(
    ("lengths", "hint"),
    [
        ([0, 128, 256], True),
        ([129], False),
        ([128, 256], True),
        ([-1, 300], False),
        ([100, 99, 200], False),
        ([1, 130], False),
    ],
)
def test_lengths_that_could_be_prefix_sums_are_told_so(lengths, hint):
    hints = {violation.hint for violation in decode.length_violations(lengths, 128)}
    assert hints == {HINTS["prefix_sums"] if hint else None}


def hinted(violations):
    return [(violation.row.id, *violation.values, violation.hint and violation.hint.id) for violation in violations]


def test_a_cast_is_advised_for_the_type_that_habit_explains():
    def of(dtype, slots="int32", table=None, weight=None, cache=None):
        x, w, kept = (Array(name or dtype, ()) for name in (dtype, weight, cache))
        given = x, w, Array(slots, ()), 32, 16, 64, table and Array(table, ()), [], kept
        return hinted(decode.type_violations(*given))

    assert of("bfloat16", table="int32") == []
    assert of("bfloat16", weight="float16") == [("weight_dtype", "bfloat16", "float16", None)]
    assert of("bfloat16", cache="float32") == [("cache_dtype", "bfloat16", "float32", None)]
    assert of("float32") == [("input_dtype", "float32", "cast_float")]
    assert of("float64") == [("input_dtype", "float64", "cast_float")]
    assert of("int8") == [("input_dtype", "int8", None)]
    assert of("float16", "int64", "uint32") == [("slot_dtype", "int64", "cast_int32"), ("table_dtype", "uint32", None)]
    assert of("float16", "int16", "int64") == [("slot_dtype", "int16", None), ("table_dtype", "int64", "cast_int32")]


@pytest.mark.parametrize(
    ("dtype", "rank", "found"),
    [
        ("int64", 1, []),
        (None, None, []),
        ("int32", 0, [("seq_dtype", "int32", "cast_int64"), ("seq_rank", 0, None)]),
        ("float32", 2, [("seq_dtype", "float32", None), ("seq_rank", 2, None)]),
        ("uint32", 1, [("seq_dtype", "uint32", None)]),
    ],
)
def test_lengths_in_a_tensor_are_int64_of_rank_1(dtype, rank, found):
    assert hinted(seq_tensor_violations(dtype, rank)) == found


@pytest.mark.parametrize(
    ("lengths", "wrong", "hint"),
    [
        ((40, np.array(64)), "ndarray at index 1", "list_of_ints"),
        (np.array([40, 64]), "ndarray", "list_of_ints"),
        ([np.int64(40), 64.0], "float at index 1", None),
        (np.array([40.0]), "ndarray", None),
        (40, "int", None),
    ],
)
def test_integers_in_an_array_are_told_to_become_a_list(lengths, wrong, hint):
    assert hinted(seq_kind_violations(prefill.ROWS, lengths)) == [("seq_kind", wrong, hint)]


SYMBOLIC = type("SymInt", (), {"__module__": "torch"})()


def test_ints_and_floats_of_python_numpy_and_torch():
    ints, floats = [7, np.int8(7), np.uint64(7), SYMBOLIC], [0.5, np.float16(0.5), np.float64(0.5)]
    others = [True, np.bool_(True), np.complex64(1), "1", None, [1], b"1"]
    assert [value for value in [*ints, *floats, *others] if is_int(value)] == ints
    assert [value for value in [*ints, *floats, *others] if is_float(value)] == floats


def test_what_is_no_list_of_ints_is_named():
    assert wrong_sequence([]) is wrong_sequence((7, np.int64(7), SYMBOLIC)) is None
    assert wrong_sequence([7, True, "7"]) == "bool at index 1"
    assert wrong_sequence({7: 7}) == "dict"


def test_names_and_numbers_are_listed_as_people_do():
    assert listed(["A"]) == "A" and listed(["A"], "take") == "A takes"
    assert listed(["A", "B", "C"]) == "A, B and C" and listed(["A", "B"], "take") == "A and B take"
    assert [plural(number, "token") for number in range(3)] == ["0 tokens", "1 token", "2 tokens"]


def test_the_contracts_need_nothing_but_the_standard_library(tmp_path):
    root, header = Path(__file__).parents[1], tmp_path / "nsa_spec.h"
    script = [root / "cmake" / "generate_spec_header.py", root / "nsa_onnx", root / "pyproject.toml", header]
    # -I -S: neither this project nor any installed package can be imported.
    subprocess.run([sys.executable, "-I", "-S", *map(str, script)], check=True)
    assert "namespace nsa_compress_infer {" in header.read_text()
