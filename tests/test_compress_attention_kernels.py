"""The native kernels of the compress attentions: every instruction set, threads, and what only C can pass."""

from __future__ import annotations

import functools
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from c_calls import WATCHED, array, call_c, watch  # noqa: F401 (a fixture)
from kernels import TARGETS, bits, buffer, target

from nsa_onnx.operators import OPERATORS
from nsa_onnx.operators.nsa_compress_attention import call as prefill
from nsa_onnx.operators.nsa_compress_attention_infer import call as decode
from nsa_onnx.runtime import native

MAX, MIN = 2**63 - 1, -(2**63)
DTYPES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
targets = pytest.mark.parametrize("name", TARGETS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# --------------------------------------------------------------------------------------------------
# Calls, as the arguments of the public functions by name


def floats(rng, dtype, *shape):
    return rng.standard_normal(shape).astype(dtype)


def prefill_call(rng, dtype, rows, tokens, heads, kv_heads, dim, value_dim, masks=True, count=5):
    """Windows of 32 tokens, 16 apart, blocks of 64: four compressed tokens a block."""
    blocks = [-(-n // 4) for n in tokens]
    atten = np.arange(max(tokens)) > np.arange(max(rows))[:, None] * 3  # query t sees 3 * t + 1 compressed tokens
    atten[::7] = True  # and some see nothing
    return {
        "query": floats(rng, dtype, sum(rows), heads, dim),
        "key": floats(rng, dtype, sum(tokens), kv_heads, dim),
        "value": floats(rng, dtype, sum(tokens), kv_heads, value_dim),
        "scale_value": dim**-0.5,
        "head_num": heads,
        "compress_block_size": 32,
        "compress_stride": 16,
        "select_block_size": 64,
        "select_block_count": count,
        "topk_mask": rng.random((max(rows), max(blocks))) < 0.1 if masks else None,
        "atten_mask": atten if masks else None,
        "actual_seq_qlen": np.cumsum(rows),
        "actual_cmp_seq_kvlen": np.cumsum(tokens),
        "actual_sel_seq_kvlen": np.cumsum(blocks),
    }


def decode_call(rng, dtype, lengths, heads, kv_heads, dim, value_dim, page=32, count=5):
    pages = [-(-length // page) for length in lengths]
    table = np.full((len(lengths), max(pages)), -1, np.int32)
    order = rng.permutation(sum(pages)).tolist()
    for b, n in enumerate(pages):
        table[b, :n] = [order.pop() for _ in range(n)]
    return {
        "query": floats(rng, dtype, len(lengths), heads, dim),
        "key": floats(rng, dtype, sum(pages), page, kv_heads, dim),
        "value": floats(rng, dtype, sum(pages), page, kv_heads, value_dim),
        "scale_value": dim**-0.5,
        "head_num": heads,
        "key_value_head_num": kv_heads,
        "select_block_size": 64,
        "select_block_count": count,
        "page_block_size": page,
        "compress_block_size": 32,
        "compress_stride": 16,
        "block_table": table,
        "actual_cmp_seq_kvlen": np.array(lengths),
    }


def kernel(call, threads=1):
    """Both outputs of the native kernel."""
    query, paged = call["query"], "block_table" in call
    out = np.full((*query.shape[:2], call["value"].shape[-1]), 7, query.dtype)
    topk = np.full((len(query), call["key"].shape[-2], call["select_block_count"]), 77, np.int32)
    arguments = {
        name: buffer(value) if isinstance(value, np.ndarray) and not name.startswith("actual") else value
        for name, value in call.items()
    }
    room = decode if paged else prefill
    room.kernel(query.dtype.name, *arguments.values(), buffer(out), buffer(topk), threads)
    return out, topk


def reference(call):
    """What the operator's float64 reference says: judges of both outputs."""
    operator = OPERATORS["NsaCompressAttentionInfer" if "block_table" in call else "NsaCompressAttention"]
    values = {name: np.asarray(call[name]) for name in operator.input_names if call[name] is not None}
    values |= {name: values[name].astype(np.float64) for name in operator.float_inputs}
    return operator.reference(values, {name: call[name] for name in operator.attribute_names})


def some_calls(dtype):
    """Groups below, at and above the lanes of vectors; several tiles of queries and tokens, and parts of a step."""
    rng = np.random.default_rng(0)
    for heads, kv_heads, dim, value_dim in ((3, 3, 16, 16), (5, 1, 80, 48), (16, 1, 192, 128), (34, 2, 64, 64)):
        sizes = heads, kv_heads, dim, value_dim
        yield prefill_call(rng, dtype, [3, 0, 40], [50, 4, 130], *sizes)
        yield prefill_call(rng, dtype, [2, 1], [70, 0], *sizes, masks=False)
        yield decode_call(rng, dtype, [130, 0, 70], *sizes)
    yield decode_call(rng, dtype, [2500, 3], 4, 1, 32, 16)
    yield prefill_call(rng, dtype, [1], [20], 128, 1, 32, 16)


@functools.cache
def judged_calls(dtype):
    """Once for all instruction sets."""
    return [(call, *reference(call)) for call in some_calls(dtype)]


@targets
@dtypes
def test_every_instruction_set_is_within_the_bound_and_threads_change_no_bit(name, dtype):
    for call, exact, ranked in judged_calls(dtype):
        with target(name):
            out, topk = kernel(call)
            assert exact.judge("attention_out", out.astype(np.float64), out.dtype.name).problem == ""
            assert ranked.judge("topk_indices", topk.astype(np.float64), "int32").problem == ""
            for threads in (2, 7):
                again, selected = kernel(call, threads)
                assert np.array_equal(bits(again), bits(out)) and np.array_equal(selected, topk)


@targets
@dtypes
def test_nan_stays_in_its_own_head_and_takes_its_group_s_selection(name, dtype):
    """A NaN score counts as infinite: the selection of its query and group is the first blocks."""
    call = prefill_call(np.random.default_rng(1), dtype, [20], [60], 8, 2, 32, 16, masks=False)
    with target(name):
        out, topk = kernel(call)
        call["query"][7, 5, 3] = np.nan  # group 1
        bad, selected = kernel(call)
    others = np.ones(out.shape, bool)
    others[7, 5] = False
    assert np.isnan(bad[7, 5].astype(np.float32)).all()
    assert np.array_equal(bits(bad)[others], bits(out)[others])
    assert selected[7, 1].tolist() == [0, 1, 2, 3, 4]
    selected[7, 1] = topk[7, 1]
    assert np.array_equal(selected, topk)


@targets
def test_a_query_that_sees_nothing_is_uniform_and_hidden_tokens_of_others_do_not_matter(name):
    call = prefill_call(np.random.default_rng(2), DTYPES[0], [9], [200], 4, 1, 32, 16)
    call["atten_mask"][:] = True
    call["atten_mask"][1:, :3] = False
    with target(name):
        out, topk = kernel(call)
        call["key"][100:] = np.inf  # hidden: the logits are replaced
        again, selected = kernel(call)
    assert np.array_equal(bits(again), bits(out)) and np.array_equal(selected, topk)
    mean = call["value"].astype(np.float64).mean(0)
    assert np.allclose(out[0].astype(np.float64), mean, atol=1e-3)


@targets
def test_infinite_logits_weigh_all_or_nothing(name):
    """A logit of +infinity makes its head NaN; one of -infinity has no weight, and NaN where all are."""
    call = prefill_call(np.random.default_rng(3), DTYPES[1], [4], [16], 1, 1, 16, 16, masks=False, count=2)
    query, key = call["query"], call["key"]
    query[:], key[:], call["scale_value"] = 0, 0, 1.0
    query[1, 0, 0] = query[2, 0, 1] = query[3, 0, 2] = 3e38
    key[5, 0, 0], key[6, 0, 1], key[:, 0, 2] = 100, -100, -100
    values = call["value"][:, 0].astype(np.float64)
    with target(name):
        got = kernel(call)[0].astype(np.float64)
    assert np.allclose(got[0, 0], values.mean(0), atol=1e-2)
    assert np.isnan(got[1]).all() and np.isnan(got[3]).all()
    assert np.allclose(got[2, 0], np.delete(values, 6, 0).mean(0), atol=1e-2)


@targets
def test_equal_scores_are_selected_by_ascending_index(name):
    """Equal keys: every block but those at the ends has the same score."""
    call = decode_call(np.random.default_rng(4), DTYPES[0], [100], 2, 1, 16, 16, page=112, count=8)
    call["key"][:] = 1
    with target(name):
        topk = kernel(call)[1]
    # 26 blocks: 0, 24 and 25 always. Of the others all have 8 whole windows.
    assert topk.tolist() == [[[0, 24, 25, 1, 2, 3, 4, 5]]]


# --------------------------------------------------------------------------------------------------
# The C interface

HALF = np.zeros(1 << 16, np.float16)  # memory for any array of these tests
ADDRESS, OUT = HALF.ctypes.data, HALF.ctypes.data + HALF.size
BYTES = np.zeros(256, np.uint8)
TABLE = np.zeros(64, np.int32)


def good(name):
    """Two queries of sequences of 4 and 8 compressed tokens, one and two blocks."""
    common = {
        "dtype": 0,
        "query": array(ADDRESS, 2, 4, 32),
        "key": array(ADDRESS, 12, 2, 32),
        "value": array(ADDRESS, 12, 2, 16),
        "scale": 0.5,
        "heads": 4,
    }
    end = {"out": array(OUT, 2, 4, 16), "topk": array(OUT + 1024, 2, 2, 3), "threads": 1}
    windows = {"block": 32, "stride": 16}
    selection = {"select": 64, "count": 3}
    if name == "nsa_compress_attention":
        masks = {"topk_mask": array(BYTES.ctypes.data, 1, 2), "atten_mask": array(BYTES.ctypes.data, 1, 8)}
        lengths = {name: (np.array(ends), 2) for name, ends in (("ends", [1, 2]), ("lengths", [4, 12]))}
        return {**common, **windows, **selection, **masks, **lengths, "blocks": (np.array([1, 3]), 2), **end}
    paged = {"key": array(ADDRESS, 3, 16, 2, 32), "value": array(ADDRESS, 3, 16, 2, 16)}
    table = {"table": array(TABLE.ctypes.data, 2, 2), "lengths": (np.array([4, 20]), 2)}
    return {**common, **paged, "kv_heads": 2, **selection, "page": 16, **windows, **table, **end}


LEAST = "must be >= {}, the most of a sequence, got {}"
OPERATOR_NAMES = ("nsa_compress_attention", "nsa_compress_attention_infer")
ONLY_C = [
    ({"query": None}, "query must not be null"),
    ({"key": None}, "key must not be null"),
    ({"value": None}, "value must not be null"),
    ({"out": None}, "attention_out must not be null"),
    ({"topk": None}, "topk_indices must not be null"),
    ({"query": array(None, 2, 4, 32)}, "query has no data"),
    ({"out": array(None, 2, 4, 16)}, "attention_out has no data"),
    ({"query": native._Array(ADDRESS, None, 3)}, "query has no shape"),
    ({"query": array(ADDRESS, -1, 4, 32)}, "query.shape[0] must be >= 0, got -1"),
    ({"query": array(ADDRESS, MAX, 4, 32)}, "query has more bytes than an int64 can count"),
    ({"topk": array(OUT + 2, 2, 2, 3)}, "topk_indices must lie at a multiple of 4 bytes"),
    ({"out": array(OUT + 1, 2, 4, 16)}, "attention_out must lie at a multiple of 2 bytes"),
    ({"out": array(OUT, 3, 4, 16)}, "attention_out.shape[0] must equal 2, got 3"),
    ({"out": array(OUT, 2, 4)}, "attention_out must have rank 3, got rank 2"),
    ({"topk": array(OUT, 2, 4, 3)}, "topk_indices.shape[1] must equal 2, got 4"),
    ({"topk": array(OUT, 2, 2, 4)}, "topk_indices.shape[2] must equal 3, got 4"),
    ({"dtype": 2}, "dtype must be 0 (float16) or 1 (bfloat16), got 2"),
    ({"threads": 0}, "threads must be >= 1, got 0"),
    ({"lengths": (None, 2)}, "actual_cmp_seq_kvlen has no data"),
    ({"lengths": (ADDRESS + 4, 2)}, "actual_cmp_seq_kvlen must lie at a multiple of 8 bytes"),
    ({"lengths": (None, MAX)}, "actual_cmp_seq_kvlen has no data"),
    ({"scale": float("nan")}, "scale_value must be a finite float32, got nan"),
    ({"scale": -1e39}, "scale_value must be a finite float32, got -1e+39"),
    ({"heads": MIN}, f"head_num must be >= 1, got {MIN}"),
    ({"select": MAX}, f"select_block_size must be a multiple of 16, got {MAX}"),
    ({"block": 80}, "compress_block_size must be in [16, select_block_size = 64], got 80"),
    ({"stride": 48}, "compress_stride must be in [16, compress_block_size = 32], got 48"),
    ({"stride": MIN}, f"compress_stride must be in [16, compress_block_size = 32], got {MIN}"),
    ({"count": MIN}, f"select_block_count must be in [1, 128], got {MIN}"),
]
ONLY_ITS_OWN = {
    "nsa_compress_attention": [
        ({"ends": (None, 2)}, "actual_seq_qlen has no data"),
        ({"ends": (None, MIN)}, f"actual_seq_qlen must have at least 1 element, got {MIN}"),
        ({"lengths": (None, 0)}, "actual_cmp_seq_kvlen must have at least 1 element, got 0"),
        ({"blocks": (None, 2)}, "actual_sel_seq_kvlen has no data"),
        ({"ends": (np.array([MIN, 2]), 2)}, f"actual_seq_qlen[0] must be >= 0, got {MIN}"),
        (
            {"blocks": (np.array([1, MAX]), 2)},
            f"actual_sel_seq_kvlen: sequence 1 has 8 compressed tokens, so it has 2 blocks, got {MAX - 1}",
        ),
        ({"atten_mask": array(None, 1, 8)}, "atten_mask has no data"),
        ({"atten_mask": array(BYTES.ctypes.data, 1, 7)}, f"atten_mask.shape[1] {LEAST.format(8, 7)}"),
        ({"topk_mask": array(BYTES.ctypes.data, 0, 2)}, f"topk_mask.shape[0] {LEAST.format(1, 0)}"),
    ],
    "nsa_compress_attention_infer": [
        ({"table": None}, "block_table must not be null"),
        ({"table": array(TABLE.ctypes.data + 1, 2, 2)}, "block_table must lie at a multiple of 4 bytes"),
        ({"lengths": (None, MIN)}, f"actual_cmp_seq_kvlen must have B = 2 elements, got {MIN}"),
        (
            {"lengths": (np.array([33, 0]), 2)},
            "actual_cmp_seq_kvlen[0] must be <= 32 (pages x page_block_size), got 33",
        ),
        ({"page": MAX}, f"page_block_size must be a multiple of 16, got {MAX}"),
        ({"kv_heads": 0}, "key_value_head_num must be >= 1, got 0"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATOR_NAMES)
def test_the_good_calls_of_the_next_test_are_good(name):
    assert call_c(name, good(name)) is None
    HALF[:] = 0


@pytest.mark.parametrize(
    ("name", "change", "words"), [(name, *one) for name in OPERATOR_NAMES for one in (*ONLY_C, *ONLY_ITS_OWN[name])]
)
def test_what_only_c_can_pass_is_refused_before_anything_is_written(name, change, words):
    HALF[HALF.size // 2 :] = 7
    assert call_c(name, {**good(name), **change}) == words
    assert (HALF[HALF.size // 2 :] == 7).all()
    HALF[:] = 0


@pytest.mark.parametrize("entry", [-1, 3, 2**31 - 1, -(2**31)])
def test_a_bad_page_is_found_before_anything_is_written_and_one_that_is_not_read_is_none(entry):
    name, table = OPERATOR_NAMES[1], np.array([[0, entry], [2, 1]], np.int32)
    assert call_c(name, {**good(name), "table": array(table.ctypes.data, 2, 2)}) is None
    table[1, 1] = entry
    HALF[HALF.size // 2 :] = 7
    error = call_c(name, {**good(name), "table": array(table.ctypes.data, 2, 2)})
    assert error == f"block_table[1, 1] must be in [0, 3), got {entry}"
    assert (HALF[HALF.size // 2 :] == 7).all()
    HALF[:] = 0


# --------------------------------------------------------------------------------------------------
# Memory that others change

READ_ONCE = (
    WATCHED
    + """
number, real, pointer = ctypes.c_int64, ctypes.c_double, lambda array: ctypes.c_void_p(array.ctypes.data)
ends, tokens, blocks = watched(np.array([2, 2, 5])), watched(np.array([40, 41, 90])), watched(np.array([10, 11, 24]))
query, key, value = np.ones((5, 4, 32), np.float16), np.ones((90, 2, 32), np.float16), np.ones((90, 2, 16), np.float16)
outputs = np.zeros((5, 4, 16), np.float16), np.zeros((5, 2, 3), np.int32)
prefill = [described(array) for array in (query, key, value, *outputs)]
masks = [described(array) for array in (np.zeros((3, 13), np.uint8), np.zeros((3, 49), np.uint8))]

lengths, table = watched(np.array([70, 0, 33])), watched(np.zeros((3, 5), np.int32))
pages, page_values = np.ones((4, 16, 2, 32), np.float16), np.ones((4, 16, 2, 16), np.float16)
step_outputs = np.zeros((3, 4, 16), np.float16), np.zeros((3, 2, 3), np.int32)
decode = [described(array) for array in (query[:3], pages, page_values, table, *step_outputs)]

LIBRARY, error = native._library(), ctypes.create_string_buffer(400)
LIBRARY.nsa_compress_attention.argtypes = LIBRARY.nsa_compress_attention_infer.argtypes = None
end = number(2), error, number(400)
WATCH.watch_start()
failed = LIBRARY.nsa_compress_attention(
    0, *prefill[:3], real(1), number(4), number(32), number(16), number(64), number(3), *masks, pointer(ends),
    number(3), pointer(tokens), number(3), pointer(blocks), number(3), *prefill[3:], *end,
) or LIBRARY.nsa_compress_attention_infer(
    0, *decode[:3], real(1), number(4), number(2), number(64), number(3), number(16), number(32), number(16),
    decode[3], pointer(lengths), number(3), *decode[4:], *end,
)
WATCH.watch_stop()
assert not failed, error.value
for array in (ends, tokens, blocks, lengths, *SHAPES[::2]):
    assert set(counts(array)) == {1}, counts(array)
# Two fields may come in one read.
assert all(max(counts(fields)) == 1 for fields in SHAPES[1::2])
assert counts(table) == [1] * 5 + [0] * 5 + [1, 1, 1, 0, 0], counts(table)
print("read once")
"""
)


def test_every_index_dim_and_rank_is_read_once_and_of_the_table_what_is_needed(watch):  # noqa: F811
    done = subprocess.run([sys.executable, "-c", READ_ONCE, watch], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "read once\n"), done.stderr[-2000:]


RACE = """
import sys, threading, time
import numpy as np
from nsa_onnx.operators.nsa_compress_attention import call as prefill
from nsa_onnx.operators.nsa_compress_attention_infer import call as decode
from nsa_onnx.runtime.native import Buffer

WHAT = sys.argv[1]
ROWS = 20_000
query, out = np.ones((ROWS, 1, 16), np.float16), np.zeros((ROWS, 1, 16), np.float16)
tokens, pages = np.ones((16, 1, 16), np.float16), np.ones((1, 16, 1, 16), np.float16)
topk, table = np.zeros((ROWS, 1, 1), np.int32), np.zeros((ROWS, 1), np.int32)
ends, key_ends, block_ends = np.array([ROWS, ROWS]), np.array([16, 16]), np.array([4, 4])
lengths = np.full(ROWS, 16)

def buffer(array):
    return Buffer(array.ctypes.data, array.shape)

def prefill_call():
    arrays = map(buffer, (query, tokens, tokens))
    outputs = map(buffer, (out, topk))
    prefill.kernel("float16", *arrays, 1.0, 1, 32, 16, 64, 1, None, None, ends, key_ends, block_ends, *outputs, 1)

def decode_call():
    arrays = map(buffer, (query, pages, pages))
    outputs = map(buffer, (out, topk))
    decode.kernel("float16", *arrays, 1.0, 1, 1, 64, 1, 16, 32, 16, buffer(table), lengths, *outputs, 1)

call, changed, wrong = {
    "actual_seq_qlen": (prefill_call, ends[:1], 2**62), "actual_cmp_seq_kvlen": (prefill_call, key_ends[:1], 2**62),
    "actual_sel_seq_kvlen": (prefill_call, block_ends[:1], 2**62),
    "block_table": (decode_call, table[:, 0], 2**31 - 1), "lengths": (decode_call, lengths, 2**62),
}[WHAT]
right, going = int(changed[-1]), True

def change():
    while going:
        changed[-1] = wrong
        changed[-1] = right

thread = threading.Thread(target=change)
thread.start()
calls, end = 0, time.monotonic() + 1
while time.monotonic() < end or calls < 6:  # a busy machine takes longer
    calls += 1
    try:
        call()
    except RuntimeError as error:
        words = str(error)
        assert f"got {wrong}" in words or "must be >= the element before" in words or "so it has" in words, words
going = False
thread.join()
print("survived")
"""


@pytest.mark.parametrize(
    "what", ["actual_seq_qlen", "actual_cmp_seq_kvlen", "actual_sel_seq_kvlen", "block_table", "lengths"]
)
def test_an_index_that_changes_during_a_call_is_used_as_it_was_checked(what):
    done = subprocess.run([sys.executable, "-c", RACE, what], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-2000:]
