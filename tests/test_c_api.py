"""The C interface: it refuses what the contracts refuse, in the same words, and survives everything else."""

import ctypes
import subprocess
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import DTYPES, LIBRARY, bits

from nsa_onnx.operators.hints import HINTS
from nsa_onnx.operators.nsa_compress import contract as prefill
from nsa_onnx.operators.nsa_compress_infer import contract as decode
from nsa_onnx.operators.windows import row_plan
from nsa_onnx.runtime import native

MAX, MIN = 2**63 - 1, -(2**63)
ERROR_SIZE = 400

ROOT = Path(__file__).resolve().parent.parent


def array(data, shape=None):
    """An NsaArray of a NumPy array, or of an address with any shape."""
    if data is None or isinstance(data, int):
        address = data
    else:
        address, shape = data.ctypes.data, data.shape if shape is None else shape
    return native._Array(address, (ctypes.c_int64 * len(shape))(*shape), len(shape))


def pointer(values):
    return None if values is None else values.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))


def call_compress(x, w, block, stride, seq, out, dtype=0, threads=1, segments=None, error_size=ERROR_SIZE):
    """The error, or None. Arrays are NsaArrays or None."""
    seq = None if seq is None else np.array(seq, np.int64)
    count = (0 if seq is None else len(seq)) if segments is None else segments
    error = ctypes.create_string_buffer(ERROR_SIZE)
    failed = LIBRARY.nsa_compress(dtype, x, w, block, stride, pointer(seq), count, out, threads, error, error_size)
    return error.value.decode() if failed else None


def call_infer(x, w, slots, block, stride, page, table, lengths, cache, dtype=0, threads=1, sequences=None):
    lengths = None if lengths is None else np.array(lengths, np.int64)
    count = (0 if lengths is None else len(lengths)) if sequences is None else sequences
    error = ctypes.create_string_buffer(ERROR_SIZE)
    failed = LIBRARY.nsa_compress_infer(
        *(dtype, x, w, slots, block, stride, page, table, pointer(lengths), count, cache),
        *(threads, error, ERROR_SIZE),
    )
    return error.value.decode() if failed else None


HALF = np.zeros(1 << 22, np.float16)  # memory for any array of these tests
ADDRESS = HALF.ctypes.data


# --------------------------------------------------------------------------------------------------
# The same words as the contracts, in the same order


def near(*values):
    return st.sampled_from(values)


def dims(rank, *choices):
    exact = st.tuples(*choices)
    return st.one_of(exact, exact, exact, st.lists(near(0, 1, 16), max_size=5).map(tuple)) if rank else exact


@settings(max_examples=400)
@given(data=st.data())
def test_compress_refuses_what_the_contract_refuses_in_its_words(data):
    block = data.draw(near(0, 16, 16, 32, 32, 33, 128, 144, -16, MAX, MIN), "block")
    stride = data.draw(near(0, 16, 16, 16, 17, 32, 48, -16, MAX, MIN), "stride")
    heads = data.draw(near(1, 2, 2, 0, 128, 129), "N")
    tokens = data.draw(near(0, 40, 64, 64), "T")
    x_shape = data.draw(dims(3, st.just(tokens), st.just(heads), near(16, 16, 32, 0, 24, 256, 272)), "input")
    w_shape = data.draw(dims(2, near(block, block, block, 16, 0), near(heads, heads, heads, 3)), "weight")
    w_shape = tuple(max(0, dim) for dim in w_shape)
    seq = data.draw(st.lists(near(0, 1, 32, 40, 64, 63, 65, -1, MAX, MIN), max_size=4), "seq")
    seq = data.draw(near(seq, sorted(seq), [tokens], [*sorted(s for s in seq if 0 < s < tokens), tokens]))

    violations = [*prefill.shape_violations(x_shape, w_shape, block, stride)]
    violations += prefill.prefix_sum_violations(seq, x_shape[0]) if len(x_shape) == 3 else ()
    rows = 0 if violations else sum(run.rows for run in row_plan(seq, block, stride))
    out_shape = (rows, *x_shape[1:3]) if len(x_shape) >= 3 else (0, 0, 0)
    error = call_compress(
        array(ADDRESS, x_shape), array(ADDRESS if 0 not in w_shape else None, w_shape), block, stride, seq,
        array(ADDRESS + 4 * HALF.size // 2, out_shape),
    ) if all(np.prod(s, dtype=object) < HALF.size // 2 for s in (x_shape, w_shape)) else "too large"  # fmt: skip
    if error != "too large":
        assert error == (violations[0].message if violations else None)


@settings(max_examples=400)
@given(data=st.data())
def test_infer_refuses_what_the_contract_refuses_in_its_words(data):
    block = data.draw(near(0, 16, 32, 32, 33, 112, 128, MAX, MIN), "block")
    stride = data.draw(near(0, 16, 16, 16, 17, 48, MAX, MIN), "stride")
    page = data.draw(near(64, 64, 64, 128, 32, MAX, MIN), "page")
    heads, batch = data.draw(near(1, 2, 2, 0, 63, 64), "N"), data.draw(near(1, 2, 3), "B")
    dim = data.draw(near(16, 16, 32, 0, 24, 272), "D")
    x_shape = data.draw(dims(4, near(6, 6, 7, 0), near(64, 64, 64, 128), st.just(heads), st.just(dim)), "input")
    w_shape = data.draw(dims(2, near(max(0, block), 32), near(heads, heads, 3)), "weight")
    cache_shape = data.draw(dims(3, near(4, 4, 0), near(heads, heads, heads, 1), near(dim, dim, dim, 16)), "cache")
    slots = np.array(data.draw(st.lists(near(0, 1, 2, 3, 4, -1), min_size=batch, max_size=batch)), np.int32)
    lengths = data.draw(st.lists(near(0, 32, 48, 64, 128, 128, 129, -1, MAX, MIN), min_size=batch, max_size=batch))
    lengths = data.draw(near(lengths, lengths, lengths, lengths[1:]), "lengths")
    table = None
    if data.draw(st.booleans(), "has a table"):
        entries = st.lists(near(0, 1, 5, 5, 6, -1), min_size=2, max_size=2)
        table = np.array(data.draw(st.lists(entries, min_size=1, max_size=3), "table"), np.int32)

    violations = [
        *decode.shape_violations(
            *(x_shape, w_shape, slots.shape, block, stride, page),
            *(None if table is None else table.shape, len(lengths), cache_shape),
        )
    ]
    if not violations:
        max_pages = x_shape[0] // batch if table is None else table.shape[1]
        violations += decode.index_violations(
            slots.tolist(), table, lengths, block, stride, page, x_shape[0], max_pages, cache_shape[0]
        )
    shapes = (x_shape, w_shape, cache_shape)
    if any(np.prod(shape, dtype=object) > HALF.size // 2 for shape in shapes):
        return
    error = call_infer(
        array(ADDRESS, x_shape), array(ADDRESS, w_shape), array(slots), block, stride, page,
        None if table is None else array(table), lengths, array(ADDRESS + HALF.size, cache_shape),
    )  # fmt: skip
    assert error == (violations[0].message if violations else None)


# --------------------------------------------------------------------------------------------------
# Input that only C can have


def good_compress():
    return {
        "x": array(ADDRESS, (64, 2, 16)),
        "w": array(ADDRESS, (32, 2)),
        "block": 32,
        "stride": 16,
        "seq": [64],
        "out": array(ADDRESS + HALF.size, (3, 2, 16)),
    }


def good_infer():
    return {
        "x": array(ADDRESS, (4, 64, 2, 16)),
        "w": array(ADDRESS, (32, 2)),
        "slots": array(np.array([0, 1], np.int32)),
        "block": 32,
        "stride": 16,
        "page": 64,
        "table": None,
        "lengths": [32, 33],
        "cache": array(ADDRESS + HALF.size, (3, 2, 16)),
    }


def test_the_good_calls_of_the_next_tests_are_good():
    assert call_compress(**good_compress()) is None
    slots = np.array([0, 1], np.int32)
    assert call_infer(**{**good_infer(), "slots": array(slots)}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": None}, "input must not be null"),
        ({"w": None}, "weight must not be null"),
        ({"out": None}, "output must not be null"),
        ({"x": array(None, (64, 2, 16))}, "input has no data"),
        ({"w": array(None, (32, 2))}, "weight has no data"),
        ({"out": array(None, (3, 2, 16))}, "output has no data"),
        ({"x": native._Array(ADDRESS, None, 3)}, "input has no shape"),
        ({"x": native._Array(ADDRESS, None, -1)}, "input must have a rank >= 0, got -1"),
        ({"x": native._Array(ADDRESS, None, MAX)}, f"input must have rank 3 [T, N, D], got rank {MAX}"),
        ({"x": array(ADDRESS, (-1, 2, 16))}, "input.shape[0] must be >= 0, got -1"),
        ({"x": array(ADDRESS, (64, 2, -16))}, "input.shape[2] must be >= 0, got -16"),
        ({"x": array(ADDRESS, (MAX, 2, 16))}, "input has more bytes than an int64 can count"),
        ({"w": array(ADDRESS, (MIN, 2))}, f"weight.shape[0] must be >= 0, got {MIN}"),
        ({"out": array(ADDRESS, (4, 2, 16))}, "output.shape[0] must equal 3, got 4"),
        ({"out": array(ADDRESS, (3, 2, 32))}, "output.shape[2] must equal 16, got 32"),
        ({"out": array(ADDRESS, (3, 2))}, "output must have rank 3 [T', N, D], got rank 2"),
        ({"dtype": 2}, "dtype must be 0 (float16) or 1 (bfloat16), got 2"),
        ({"dtype": -1}, "dtype must be 0 (float16) or 1 (bfloat16), got -1"),
        ({"threads": 0}, "threads must be >= 1, got 0"),
        ({"threads": MIN}, f"threads must be >= 1, got {MIN}"),
        ({"seq": None, "segments": 1}, "actual_seq_len has no data"),
        ({"seq": None, "segments": 0}, "actual_seq_len must have at least 1 element, got 0"),
        ({"segments": MIN}, f"actual_seq_len must have at least 1 element, got {MIN}"),
        ({"x": array(ADDRESS + 1, (64, 2, 16))}, "input must lie at a multiple of 2 bytes"),
        ({"w": array(ADDRESS + 3, (32, 2))}, "weight must lie at a multiple of 2 bytes"),
        ({"out": array(ADDRESS + HALF.size + 1, (3, 2, 16))}, "output must lie at a multiple of 2 bytes"),
    ],
)
def test_compress_refuses_what_only_c_can_pass(change, words):
    before = HALF[HALF.size // 2 :].copy()
    assert call_compress(**{**good_compress(), **change}) == words
    assert np.array_equal(HALF[HALF.size // 2 :], before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": None}, "slot_mapping must not be null"),
        ({"cache": None}, "cache must not be null"),
        ({"slots": array(None, (2,))}, "slot_mapping has no data"),
        ({"table": array(None, (2, 2))}, "block_table has no data"),
        ({"table": array(ADDRESS + 2, (2, 2))}, "block_table must lie at a multiple of 4 bytes"),
        ({"slots": array(ADDRESS + 2, (2,))}, "slot_mapping must lie at a multiple of 4 bytes"),
        ({"cache": array(ADDRESS + HALF.size + 1, (3, 2, 16))}, "cache must lie at a multiple of 2 bytes"),
        ({"table": array(ADDRESS, (2, MAX))}, "block_table has more bytes than an int64 can count"),
        ({"table": array(ADDRESS, (2, -2))}, "block_table.shape[1] must be >= 0, got -2"),
        ({"cache": array(ADDRESS, (MAX, 2, 16))}, "cache has more bytes than an int64 can count"),
        ({"lengths": None, "sequences": 2}, "actual_seq_len has no data"),
        ({"lengths": None, "sequences": MAX}, "actual_seq_len has no data"),
        ({"lengths": None, "sequences": MIN}, f"actual_seq_len must have B = 2 elements, got {MIN}"),
        ({"lengths": [MAX, 0]}, f"actual_seq_len[0] must be in [0, 128] (pages x page_block_size), got {MAX}"),
        ({"lengths": [0, MIN]}, f"actual_seq_len[1] must be in [0, 128] (pages x page_block_size), got {MIN}"),
    ],
)
def test_infer_refuses_what_only_c_can_pass(change, words):
    slots = np.array([0, 1], np.int32)
    assert call_infer(**{**good_infer(), "slots": array(slots), **change}) == words


def test_huge_dims_without_an_element_are_legal():
    """[2^62, 64, 1, 0] has no byte: pages x page_block_size overflows, and nothing may be made of it."""
    call = {**good_infer(), "x": array(None, (2**62, 64, 2, 0)), "cache": array(None, (3, 2, 0))}
    slots = np.array([0, 1], np.int32)
    assert call_infer(**{**call, "slots": array(slots), "lengths": [2**62, MAX]}) is None
    rows = 1 + (2**62 - 32) // 16
    x, out = array(None, (2**62, 128, 0)), array(None, (rows, 128, 0))
    assert call_compress(x, array(ADDRESS, (32, 128)), 32, 16, [2**62], out) is None


def test_lengths_at_an_odd_address_are_refused():
    call, bytes_ = good_compress(), np.frombuffer(bytes(9), np.uint8)
    misplaced = ctypes.cast(bytes_.ctypes.data | 4, ctypes.POINTER(ctypes.c_int64))
    error = ctypes.create_string_buffer(ERROR_SIZE)
    failed = LIBRARY.nsa_compress(
        *(0, call["x"], call["w"], 32, 16, misplaced, 1, call["out"], 1, error, ERROR_SIZE),
    )
    assert (failed, error.value) == (1, b"actual_seq_len must lie at a multiple of 8 bytes")


@pytest.mark.parametrize("size", [0, -1, MIN, 1, 2, 20])
def test_an_error_is_cut_to_the_callers_buffer(size):
    error = ctypes.create_string_buffer(b"#" * 40, 41)
    call = {**good_compress(), "threads": 0}
    seq = np.array(call["seq"], np.int64)
    failed = LIBRARY.nsa_compress(
        *(0, call["x"], call["w"], 32, 16, pointer(seq), 1, call["out"], 0, error, size),
    )
    assert failed == 1
    text = b"threads must be >= 1, got 0"[: max(size - 1, 0)]
    assert error.raw == (text + b"\0" if size > 0 else b"") + b"#" * (40 - (len(text) + 1 if size > 0 else 0)) + b"\0"
    assert LIBRARY.nsa_compress(0, None, call["w"], 32, 16, pointer(seq), 1, call["out"], 1, None, 100) == 1


def test_a_refused_call_leaves_the_cache_as_it_is():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 64, 2, 16)).astype(np.float16), np.ones((32, 2), np.float16)
    cache = rng.standard_normal((3, 2, 16)).astype(np.float16)
    before, slots = cache.copy(), np.array([0, 3], np.int32)  # the first is fine, the second is not
    error = call_infer(array(x), array(w), array(slots), 32, 16, 64, None, [32, 32], array(cache))
    assert error == "slot_mapping[1] must be in [0, 3), got 3"
    assert np.array_equal(bits(cache), bits(before))


def test_shared_slots_are_found_in_a_large_batch_without_comparing_all_pairs():
    batch = 300_000
    slots = np.arange(batch, dtype=np.int32) * 2
    slots[[7, 200_000, 250_000, 299_999]] = 12, 12, 12, 600  # 12 belongs to sequence 6, 600 to 300
    lengths = np.full(batch, 32, np.int64)
    x, w = np.zeros((1, 64, 1, 16), np.float16), np.ones((32, 1), np.float16)
    table = np.zeros((batch, 1), np.int32)
    cache = np.zeros((2 * batch, 1, 16), np.float16)
    begin = time.perf_counter()
    error = call_infer(array(x), array(w), array(slots), 32, 16, 64, array(table), lengths, array(cache))
    seconds = time.perf_counter() - begin
    assert error == "slot_mapping[7] must differ from slot_mapping[6] (both sequences write), got 12"
    assert seconds < 10  # all pairs would take a minute


# --------------------------------------------------------------------------------------------------
# At the bounds and next to them


LEADING_ZERO, LENGTHS, PREFIX_SUMS, TRANSPOSE = (
    HINTS[name].ending for name in ("leading_zero", "lengths", "prefix_sums", "transpose")
)
BLOCK = "weight.shape[0] must equal compress_block_size = 32, got {}"
DECREASES = "actual_seq_len[{}] must be >= the element before it, {}, got {}"
LAST = "actual_seq_len[1], the last element, must equal T = 64, got {}"
FIRST = "actual_seq_len[0] must be >= 1, got {}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": (64, 1, 256), "w": (16, 1), "block": 16, "out": (4, 1, 256)}, None),
        (
            {"x": (256, 128, 16), "w": (128, 128), "block": 128, "stride": 128, "seq": [256], "out": (2, 128, 16)},
            None,
        ),
        ({"seq": [1, 40, 40, 64], "out": (1, 2, 16)}, None),
        ({"seq": [32, 64], "out": (2, 2, 16)}, None),
        ({"seq": [20], "x": (20, 2, 16), "out": (0, 2, 16)}, None),
        ({"block": 0, "w": (0, 2)}, "compress_block_size must be in [16, 128], got 0"),
        ({"stride": 0}, "compress_stride must be in [16, compress_block_size = 32], got 0"),
        ({"w": (2, 32)}, BLOCK.format(2) + TRANSPOSE),
        ({"w": (2, 31)}, BLOCK.format(2)),
        ({"w": (2, 33)}, BLOCK.format(2)),
        ({"w": (1, 32)}, BLOCK.format(1)),
        ({"w": (3, 32)}, BLOCK.format(3)),
        ({"w": (32, 1)}, "weight.shape[1] must equal N = 2, got 1"),
        ({"w": (32,)}, "weight must have rank 2 [compress_block_size, N], got rank 1"),
        ({"x": (64, 2, 16, 1)}, "input must have rank 3 [T, N, D], got rank 4"),
        ({"seq": [0, 64]}, FIRST.format(0) + LEADING_ZERO),
        ({"seq": [0], "x": (0, 2, 16)}, FIRST.format(0)),
        ({"seq": [0, 70]}, FIRST.format(0)),
        ({"seq": [-1, 65]}, FIRST.format(-1)),
        ({"seq": [24, 40]}, LAST.format(40) + LENGTHS),
        ({"seq": [20, 30]}, LAST.format(30)),
        ({"seq": [64, 0]}, DECREASES.format(1, 64, 0) + LENGTHS),
        ({"seq": [60, 50, -46]}, DECREASES.format(1, 60, 50)),
        ({"seq": [0, 40, 30, 64]}, DECREASES.format(2, 40, 30)),
        ({"seq": [MAX, MAX, 66]}, DECREASES.format(2, MAX, 66)),  # the 64 bits of their sum are 64
    ],
)
def test_compress_at_the_bounds(change, words):
    call = {**good_compress(), **change}
    for name in {"x", "w", "out"} & change.keys():
        call[name] = array(ADDRESS + HALF.size * (name == "out"), change[name])
    assert call_compress(**call) == words


SLOTS = "slot_mapping[{}] must be in [0, 3), got {}"
TOO_LONG = "actual_seq_len[{}] must be in [0, 128] (pages x page_block_size), got {}"
SIX = {"x": (6, 64, 2, 16), "slots": [0, 1, 2]}
GARBAGE = [[4, -1, 99], [-1, -5, 0]]  # in what is not read


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lengths": [128, 0]}, None),
        ({"lengths": [32, 48], "slots": [2, 0]}, None),
        ({"lengths": [], "slots": []}, None),
        ({"lengths": [192], "slots": [0], "x": (3, 64, 2, 16)}, None),
        ({"lengths": [32, 192], "table": GARBAGE, "x": (5, 64, 2, 16)}, None),
        ({"lengths": [256, 32], "page": 128, "x": (4, 128, 2, 16)}, None),
        ({"x": (2, 64, 63, 16), "w": (32, 63), "cache": (3, 63, 16)}, None),
        ({"x": (2, 64, 1, 256), "w": (16, 1), "block": 16, "cache": (3, 1, 256)}, None),
        ({"x": (4, 64, 2, 16, 1)}, "input must have rank 4 [block_num, page_block_size, N, D], got rank 5"),
        ({"w": (32, 2, 1)}, "weight must have rank 2 [compress_block_size, N], got rank 3"),
        ({"w": (32, 3)}, "weight.shape[1] must equal N = 2, got 3"),
        ({"slots": 0}, "slot_mapping must have rank 1 [B], got rank 0"),
        ({"table": [[[0]]]}, "block_table must have rank 2 [B, max_pages], got rank 3"),
        ({"table": [[0, 1]]}, "block_table.shape[0] must equal B = 2, got 1"),
        ({"table": [[-1, 0], [1, 2]]}, "block_table[0, 0] must be in [0, 4), got -1"),
        ({"cache": (3, 2, 16, 1)}, "cache must have rank 3 [slots, N, D], got rank 4"),
        ({"cache": (3, 3, 16)}, "cache.shape[1] must equal N = 2, got 3"),
        ({"cache": (3, 2, 32)}, "cache.shape[2] must equal D = 16, got 32"),
        ({"x": (4, 128, 2, 16)}, "input.shape[1] must equal page_block_size = 64, got 128"),
        ({"lengths": [32, 33, 34]}, "actual_seq_len must have B = 2 elements, got 3"),
        ({"slots": [-1, 0]}, SLOTS.format(0, -1)),
        ({"slots": [3, 0]}, SLOTS.format(0, 3)),
        ({"lengths": [32, -1]}, TOO_LONG.format(1, -1)),
        ({"lengths": [129, 200]}, TOO_LONG.format(0, 129)),
        ({"lengths": [0, 129]}, TOO_LONG.format(1, 129)),
        ({"lengths": [128, 256]}, TOO_LONG.format(1, 256) + PREFIX_SUMS),
        ({"lengths": [40, 140, 140], **SIX}, TOO_LONG.format(1, 140) + PREFIX_SUMS),
        ({"lengths": [0, 128, 256], **SIX}, TOO_LONG.format(2, 256) + PREFIX_SUMS),
        ({"lengths": [100, 99, 200], **SIX}, TOO_LONG.format(2, 200)),
    ],
)
def test_infer_at_the_bounds(change, words):
    call = {**good_infer(), "slots": [0, 1], **change}
    for name in {"x", "w", "cache"} & change.keys():
        call[name] = array(ADDRESS + HALF.size * (name == "cache"), change[name])
    indices = {name: np.array(call[name], np.int32) for name in ("slots", "table") if call[name] is not None}
    assert call_infer(**call | {name: array(one) for name, one in indices.items()}) == words


# --------------------------------------------------------------------------------------------------
# The library


def test_the_version_is_the_packages():
    assert LIBRARY.nsa_version().decode() == metadata.version("nsa_onnx")


def test_nothing_else_is_exported():
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(native.library_path())], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1] for line in listing.splitlines()}
    assert names == {
        "RegisterCustomOps",
        *(path.parent.name for path in (ROOT / "ort_ext" / "operators").glob("*/c_api.h")),
        "nsa_version",
        *("nsa_cpu_target", "nsa_cpu_targets", "nsa_set_cpu_target", "nsa_ascend_backends"),
    }


def test_the_library_needs_nothing_but_the_systems_c_library():
    """Its C++ runtime is inside: a host that loaded an older libstdc++ first can still load it."""
    listing = subprocess.run(
        ["readelf", "-d", str(native.library_path())], capture_output=True, text=True, check=True
    ).stdout
    needed = [line.split("[")[1].rstrip("]") for line in listing.splitlines() if "(NEEDED)" in line]
    assert needed
    assert all(name.startswith(("libc.", "libm.", "libpthread.", "libdl.", "ld-linux")) for name in needed), needed


@pytest.mark.parametrize("dtype", [0, 1])
def test_a_good_call_gives_the_contracts_bits(dtype):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((70, 2, 32)).astype(DTYPES[dtype]), rng.standard_normal((32, 2)).astype(DTYPES[dtype])
    out = np.zeros((3, 2, 32), DTYPES[dtype])
    assert call_compress(array(x), array(w), 32, 16, [20, 70], array(out[:2]), dtype) is None
    assert oracle.same_bits(out[:2], oracle.compress_exact(x, w, 32, 16, [20, 70]))
    assert not bits(out)[2].any()
