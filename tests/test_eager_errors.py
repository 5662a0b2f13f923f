"""Every row of the error table, on NumPy arrays and on torch tensors, and which error wins where several apply."""

import itertools
import re
from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest
import torch

import nsa_onnx
from nsa_onnx.operators.nsa_compress import contract as prefill
from nsa_onnx.operators.nsa_compress_infer import contract as decode
from nsa_onnx.operators.nsa_compress_infer.call import refuse_overlap, refuse_shared

F16 = np.float16


def _compress_call():
    return {
        "input": np.ones((64, 2, 32), F16),
        "weight": np.ones((32, 2), F16),
        "compress_block_size": 32,
        "compress_stride": 16,
        "actual_seq_len": [40, 64],
    }


# Row id -> the arguments that break it, and the words that must be in the message: argument, value, bound.
COMPRESS_CASES = {
    "input_kind": ({"input": [[1.0]]}, "input .*NumPy array or a torch tensor, got list"),
    "weight_kind": ({"weight": 3.0}, "weight .*NumPy array or a torch tensor, got float"),
    "weight_dtype": ({"weight": np.ones((32, 2), ml_dtypes.bfloat16)}, "weight .*float16, got bfloat16"),
    "input_dtype": (
        {"input": np.ones((64, 2, 32), np.float32), "weight": np.ones((32, 2), np.float32)},
        "input .*float16 or bfloat16, got float32",
    ),
    "block_kind": ({"compress_block_size": True}, "compress_block_size must be an int, got bool"),
    "stride_kind": ({"compress_stride": 16.0}, "compress_stride must be an int, got float"),
    "seq_kind": ({"actual_seq_len": (40, "64")}, "actual_seq_len .*ints, got str at index 1"),
    "input_rank": ({"input": np.ones((64, 64), F16)}, r"input must have rank 3 .*got rank 2"),
    "weight_rank": ({"weight": np.ones((32, 2, 1), F16)}, "weight must have rank 2 .*got rank 3"),
    "weight_block": ({"weight": np.ones((48, 2), F16)}, r"weight.shape\[0\] .*compress_block_size = 32, got 48"),
    "weight_heads": ({"weight": np.ones((32, 3), F16)}, r"weight.shape\[1\] must equal N = 2, got 3"),
    "head_dim_multiple": ({"input": np.ones((64, 2, 24), F16)}, "D must be a multiple of 16, got 24"),
    "head_dim_max": ({"input": np.ones((64, 2, 272), F16)}, "D must be <= 256, got 272"),
    "heads_min": ({"input": np.ones((64, 0, 32), F16), "weight": np.ones((32, 0), F16)}, "N must be >= 1, got 0"),
    "heads_max": (
        {"input": np.ones((64, 129, 16), F16), "weight": np.ones((32, 129), F16)},
        "N must be <= 128, got 129",
    ),
    "block_multiple": (
        {"compress_block_size": 24, "weight": np.ones((24, 2), F16)},
        "compress_block_size must be a multiple of 16, got 24",
    ),
    "block_range": (
        {"compress_block_size": 144, "weight": np.ones((144, 2), F16)},
        r"compress_block_size must be in \[16, 128\], got 144",
    ),
    "stride_multiple": ({"compress_stride": 20}, "compress_stride must be a multiple of 16, got 20"),
    "stride_range": ({"compress_stride": 48}, r"compress_stride must be in \[16, compress_block_size = 32\], got 48"),
    "seq_empty": ({"actual_seq_len": []}, "actual_seq_len must have at least 1 element, got 0"),
    "seq_decreasing": ({"actual_seq_len": [40, 39, 64]}, r"actual_seq_len\[1\] must be >= .*40, got 39"),
    "seq_positive": ({"actual_seq_len": (0, 64)}, r"actual_seq_len\[0\] must be >= 1, got 0"),
    "seq_last": ({"actual_seq_len": [40, 63]}, r"actual_seq_len\[1\].*T = 64, got 63"),
}


def _infer_call():
    return {
        "input": np.ones((4, 64, 2, 32), F16),
        "weight": np.ones((32, 2), F16),
        "slot_mapping": np.array([0, 2], np.int32),
        "compress_block_size": 32,
        "compress_stride": 16,
        "page_block_size": 64,
        "block_table": np.array([[0, 1], [2, 3]], np.int32),
        "actual_seq_len": [48, 80],
        "cache": np.full((3, 2, 32), 7, F16),
    }


_BF16 = ml_dtypes.bfloat16
INFER_CASES = {
    "input_kind": ({"input": None}, "input .*got NoneType"),
    "weight_kind": ({"weight": "w"}, "weight .*got str"),
    "slot_kind": ({"slot_mapping": [0, 2]}, "slot_mapping .*got list"),
    "table_kind": ({"block_table": [[0, 1], [2, 3]]}, "block_table .*got list"),
    "cache_kind": ({"cache": None}, "cache .*got NoneType"),
    "weight_dtype": ({"weight": np.ones((32, 2), _BF16)}, "weight .*float16, got bfloat16"),
    "cache_dtype": ({"cache": np.ones((3, 2, 32), _BF16)}, "cache .*float16, got bfloat16"),
    "input_dtype": (
        {
            "input": np.ones((4, 64, 2, 32), np.float64),
            "weight": np.ones((32, 2), np.float64),
            "cache": np.ones((3, 2, 32), np.float64),
        },
        "input .*float16 or bfloat16, got float64",
    ),
    "slot_dtype": ({"slot_mapping": np.array([0, 2], np.int64)}, "slot_mapping must be int32, got int64"),
    "table_dtype": ({"block_table": np.zeros((2, 2), np.uint8)}, "block_table must be int32, got uint8"),
    "block_kind": ({"compress_block_size": "32"}, "compress_block_size must be an int, got str"),
    "stride_kind": ({"compress_stride": False}, "compress_stride must be an int, got bool"),
    "page_kind": ({"page_block_size": 64.0}, "page_block_size must be an int, got float"),
    "seq_kind": ({"actual_seq_len": np.array([48, 80])}, "actual_seq_len .*ints, got ndarray"),
    "input_rank": ({"input": np.ones((4, 64, 64), F16)}, "input must have rank 4 .*got rank 3"),
    "weight_rank": ({"weight": np.ones(32, F16)}, "weight must have rank 2 .*got rank 1"),
    "slot_rank": ({"slot_mapping": np.zeros((2, 1), np.int32)}, "slot_mapping must have rank 1 .*got rank 2"),
    "table_rank": ({"block_table": np.zeros(2, np.int32)}, "block_table must have rank 2 .*got rank 1"),
    "cache_rank": ({"cache": np.ones((3, 64), F16)}, "cache must have rank 3 .*got rank 2"),
    "weight_block": ({"weight": np.ones((16, 2), F16)}, "compress_block_size = 32, got 16"),
    "weight_heads": ({"weight": np.ones((32, 1), F16)}, "N = 2, got 1"),
    "head_dim_multiple": (
        {"input": np.ones((4, 64, 2, 8), F16), "cache": np.ones((3, 2, 8), F16)},
        "D must be a multiple of 16, got 8",
    ),
    "head_dim_max": (
        {"input": np.ones((4, 64, 2, 288), F16), "cache": np.ones((3, 2, 288), F16)},
        "D must be <= 256, got 288",
    ),
    "heads_min": (
        {"input": np.ones((4, 64, 0, 32), F16), "weight": np.ones((32, 0), F16), "cache": np.ones((3, 0, 32), F16)},
        "N must be >= 1, got 0",
    ),
    "heads_max": (
        {"input": np.ones((4, 64, 64, 16), F16), "weight": np.ones((32, 64), F16), "cache": np.ones((3, 64, 16), F16)},
        "N must be <= 63, got 64",
    ),
    "block_multiple": (
        {"compress_block_size": 40, "weight": np.ones((40, 2), F16)},
        "compress_block_size must be a multiple of 16, got 40",
    ),
    "block_range": (
        {"compress_block_size": 128, "weight": np.ones((128, 2), F16)},
        r"compress_block_size must be in \[16, 127\], got 128",
    ),
    "stride_multiple": ({"compress_stride": 8}, "compress_stride must be a multiple of 16, got 8"),
    "stride_range": ({"compress_stride": 48}, r"compress_stride must be in \[16, compress_block_size = 32\], got 48"),
    "page_size": ({"page_block_size": 32}, "page_block_size must be 64 or 128, got 32"),
    "input_page": ({"page_block_size": 128}, r"input.shape\[1\] must equal page_block_size = 128, got 64"),
    "cache_heads": ({"cache": np.ones((3, 1, 32), F16)}, r"cache.shape\[1\] must equal N = 2, got 1"),
    "cache_dim": ({"cache": np.ones((3, 2, 16), F16)}, r"cache.shape\[2\] must equal D = 32, got 16"),
    "seq_count": ({"actual_seq_len": [48]}, "actual_seq_len must have B = 2 elements, got 1"),
    "table_batch": ({"block_table": np.zeros((3, 2), np.int32)}, r"block_table.shape\[0\] must equal B = 2, got 3"),
    "pages_divide": (
        {"block_table": None, "input": np.ones((5, 64, 2, 32), F16)},
        r"input.shape\[0\] must be a multiple of B = 2 .*got 5",
    ),
    "seq_range": ({"actual_seq_len": [48, 129]}, r"actual_seq_len\[1\] must be in \[0, 128\].*got 129"),
    "slot_range": ({"slot_mapping": np.array([-1, 2], np.int32)}, r"slot_mapping\[0\] must be in \[0, 3\), got -1"),
    "slot_duplicate": (
        {"slot_mapping": np.array([2, 2], np.int32)},
        r"slot_mapping\[1\] must differ from slot_mapping\[0\].*got 2",
    ),
    "table_range": (
        {"block_table": np.array([[0, 1], [2, 4]], np.int32)},
        r"block_table\[1, 1\] must be in \[0, 4\), got 4",
    ),
}

OPS = {
    "compress": (nsa_onnx.nsa_compress, _compress_call, COMPRESS_CASES, prefill.ROWS),
    "infer": (nsa_onnx.nsa_compress_infer, _infer_call, INFER_CASES, decode.ROWS),
}
ALL_ROWS = [(op, row) for op, (_, _, cases, _) in OPS.items() for row in cases]


def _to_torch(value):
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(value.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def _call(op, arguments, library):
    arguments = dict(arguments)
    if library == "torch":
        # An ndarray in place of the list of lengths is the error under test, not an array argument.
        arguments = {k: v if k == "actual_seq_len" else _to_torch(v) for k, v in arguments.items()}
    positional = {k: v for k, v in arguments.items() if k not in ("block_table", "actual_seq_len", "cache")}
    keywords = {k: v for k, v in arguments.items() if k not in positional}
    return OPS[op][0](*positional.values(), **keywords)


def test_the_cases_cover_the_whole_table_in_its_order():
    assert len(prefill.ROWS) == 23
    for _, _, cases, rows in OPS.values():
        assert list(cases) == list(rows)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(("op", "row"), ALL_ROWS, ids=lambda v: v)
def test_each_row_raises_its_class_and_names_argument_value_and_bound(op, row, library):
    _, base, cases, rows = OPS[op]
    broken, words = cases[row]
    arguments = {**base(), **broken}
    before = np.array(arguments["cache"], copy=True) if op == "infer" and row != "cache_kind" else None
    with pytest.raises((TypeError, RuntimeError)) as raised:
        _call(op, arguments, library)
    assert type(raised.value) is rows[row].error
    assert re.search(words, str(raised.value))
    if before is not None:
        assert arguments["cache"].tobytes() == before.tobytes(), "a refused call must not touch the cache"


@pytest.mark.parametrize("op", OPS)
def test_where_two_rows_apply_the_earlier_one_of_the_table_wins(op):
    _, base, cases, rows = OPS[op]
    pairs = 0
    for first, second in itertools.combinations(cases, 2):
        broken, words = cases[first]
        other = cases[second][0]
        # Two breakages can be had together where they touch different arguments.
        if broken.keys() & other.keys():
            continue
        pairs += 1
        with pytest.raises((TypeError, RuntimeError)) as raised:
            _call(op, {**base(), **other, **broken}, "numpy")
        if type(raised.value) is rows[first].error and re.search(words, str(raised.value)):
            continue
        # A pair can mean something else than its parts (a wrong page size makes other lengths legal); it must
        # then be an error of the first row all the same, seen by the argument that it names.
        assert rows[first].argument in str(raised.value), (first, second, str(raised.value))
    assert pairs > 100


@pytest.mark.parametrize(
    ("op", "changed", "words"),
    [
        ("compress", {"actual_seq_len": [40, 2**70]}, "T = 64, got 1180591620717411303424"),
        ("compress", {"actual_seq_len": [-(2**70), 64]}, "must be >= 1, got -1180591620717411303424"),
        ("compress", {"compress_stride": 2**64}, r"compress_stride must be in .*got 18446744073709551616"),
        ("compress", {"compress_block_size": -(2**63)}, "compress_block_size = -9223372036854775808, got 32"),
        ("infer", {"actual_seq_len": [48, 2**63]}, r"\[0, 128\].*got 9223372036854775808"),
        ("infer", {"actual_seq_len": [48, 2**63], "block_table": np.zeros((2, 3), np.int32)}, r"\[0, 192\]"),
        ("infer", {"actual_seq_len": [48, 2**63], "block_table": None}, r"\[0, 128\]"),
        ("infer", {"page_block_size": 2**64}, "page_block_size must be 64 or 128, got 18446744073709551616"),
    ],
)
def test_ints_beyond_64_bits_are_refused_in_the_same_words(op, changed, words):
    with pytest.raises(RuntimeError, match=words):
        _call(op, {**OPS[op][1](), **changed}, "numpy")


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([10**15], "must equal T = 64, got 1000000000000000$"),
        ([1, 2**63 - 1], "must equal T = 64, got 9223372036854775807$"),
        ([2**62, 64], "must be >= the element before it, 4611686018427387904, got 64$"),
    ],
)
def test_lengths_beyond_the_input_are_refused_before_an_output_of_their_size_is_made(lengths, words):
    with pytest.raises(RuntimeError, match=words):
        nsa_onnx.nsa_compress(**{**_compress_call(), "actual_seq_len": lengths})


def test_a_foreign_byte_order_is_another_dtype():
    arguments = {**_compress_call(), "input": np.ones((64, 2, 32), ">f2")}
    with pytest.raises(TypeError, match="got float16"):
        _call("compress", arguments, "numpy")


def test_a_read_only_cache_is_refused():
    arguments = _infer_call()
    arguments["cache"].flags.writeable = False
    with pytest.raises(RuntimeError, match="cache must be writable"):
        _call("infer", arguments, "numpy")


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_cache_that_overlaps_itself_is_refused(library):
    """The error table's rows win: a stride without elements is no overlap."""
    arguments = _infer_call()
    row = arguments["cache"][:1].copy()
    arguments["cache"] = np.lib.stride_tricks.as_strided(row, arguments["cache"].shape, (0, *row.strides[1:]))
    before = row.copy()
    with pytest.raises(RuntimeError, match=r"cache must not overlap itself: .* got strides \(0, "):
        _call("infer", arguments, library)
    assert np.array_equal(row, before)


@pytest.mark.parametrize(
    ("shape", "strides", "refused"),
    [
        ((2, 1, 16), (0, 32, 2), True),
        ((3, 2, 16), (64, 0, 2), True),
        ((3, 2, 16), (64, 32, 0), True),
        ((1, 2, 16), (0, 32, 2), False),
        ((3, 0, 16), (0, 0, 0), False),
        ((3, 2, 16), (-64, 32, 2), False),
    ],
)
def test_rows_that_are_one_place_overlap(shape, strides, refused):
    with pytest.raises(RuntimeError, match=f"got strides {re.escape(str(strides))}") if refused else nullcontext():
        refuse_overlap(shape, strides)


def test_memory_of_which_it_is_too_hard_to_tell_is_taken_and_the_rest_is_looked_at():
    memory = np.zeros(192163377, np.int8)  # the example of numpy.shares_memory; no page of it is touched
    hard = np.lib.stride_tricks.as_strided(memory, (1049,) * 3, (36674, 61119, 85569))
    other = np.lib.stride_tricks.as_strided(memory[64023025:], (1049, 1049, 1), (12223, 12224, 1))
    refuse_shared(hard, input=other)
    with pytest.raises(RuntimeError, match=r"^cache must not overlap weight: "):
        refuse_shared(hard, input=other, weight=hard[:1])


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["input", "weight"])
def test_a_cache_in_the_memory_of_what_is_read_is_refused(name, library):
    """A window could see another's result, or not: that depends on the order of the work."""
    arguments = _infer_call()
    memory = np.zeros(arguments["cache"].size + arguments[name].size, F16)
    arguments[name] = memory[: arguments[name].size].reshape(arguments[name].shape)
    start = arguments[name].size - arguments["cache"].shape[-1]
    arguments["cache"] = memory[start : start + arguments["cache"].size].reshape(arguments["cache"].shape)
    before = memory.copy()
    with pytest.raises(RuntimeError, match=f"cache must not overlap {name}: .* got views of the same memory"):
        _call("infer", arguments, library)
    assert np.array_equal(memory, before)
    arguments["cache"] = memory[arguments[name].size :].reshape(arguments["cache"].shape)
    _call("infer", arguments, library)  # side by side


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_odd_ranks_are_named_as_they_are(op, rank):
    arguments = {**OPS[op][1](), "input": np.ones((1,) * rank, F16)}
    with pytest.raises(RuntimeError, match=f"input must have rank . .*got rank {rank}"):
        _call(op, arguments, "numpy")


def test_numpy_integers_are_ints():
    arguments = _compress_call()
    expected = _call("compress", arguments, "numpy")
    arguments["compress_block_size"] = np.int32(32)
    arguments["actual_seq_len"] = (np.int64(40), np.uint8(64))
    assert np.array_equal(_call("compress", arguments, "numpy"), expected)
