"""The native kernels of the selected attentions: every instruction set, threads, and what only C can pass."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import selected_cases as cases
from c_calls import WATCHED, array, call_c, watch  # noqa: F401 (a fixture)
from kernels import TARGETS, bits, buffer, target

from nsa_onnx.operators.nsa_selected_attention import call as prefill
from nsa_onnx.operators.nsa_selected_attention_infer import call as decode
from nsa_onnx.runtime import native

MAX, MIN = 2**63 - 1, -(2**63)
targets = pytest.mark.parametrize("name", TARGETS)


def kernel(call, threads=1):
    """The result of the native kernel for a call of selected_cases.py."""
    out = np.full((*call.query.shape[:2], call.value.shape[-1]), 7, call.query.dtype)
    arguments = {
        name: buffer(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
        for name, value in call.arguments.items()
    }
    for name in ("actual_seq_qlen", "actual_seq_kvlen"):
        if name in arguments:
            arguments[name] = np.array(arguments[name], np.int64)
    if "causal" in arguments:
        arguments["causal"] = int(arguments["causal"])
    arguments["scale_value"] = float(arguments["scale_value"])
    room = prefill if isinstance(call, cases.PrefillCall) else decode
    room.kernel(out.dtype.name, *arguments.values(), buffer(out), threads)
    return out


def some_calls(dtype):
    """Groups below, at and above the lanes of vectors; D and Dv of one and of many vectors."""
    rng = np.random.default_rng(0)
    for heads, kv_heads, dim, value_dim in ((3, 3, 16, 16), (5, 1, 80, 48), (16, 1, 192, 128), (34, 2, 64, 64)):
        sizes = {"heads": heads, "kv_heads": kv_heads, "dim": dim, "value_dim": value_dim, "dtype": dtype}
        for causal in (False, True):
            yield cases.prefill_call(rng, [3, 0, 20], [50, 4, 130], select=48, causal=causal, **sizes)
        yield cases.decode_call(rng, [130, 0, 70], select=48, page=32, **sizes)
        yield cases.decode_call(rng, [2000], select=64, count=16, page=64, **sizes)  # its blocks are divided


@targets
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_every_instruction_set_is_within_the_bound_and_threads_change_no_bit(name, dtype):
    for call in some_calls(dtype):
        oracle = cases.prefill if isinstance(call, cases.PrefillCall) else cases.decode
        wanted, bound = oracle(call)
        with target(name):
            one = kernel(call)
            assert cases.off(one, wanted, bound) <= 0
            assert np.array_equal(bits(kernel(call, threads=3)), bits(one))


@targets
def test_infinite_logits_weigh_all_or_nothing(name):
    """A logit of +infinity makes its row NaN; one of -infinity has no weight, and NaN where all are."""
    call = cases.prefill_call(np.random.default_rng(1), [4], [16], heads=1, kv_heads=1, dim=16, count=1, scale=1e36)
    call.topk[:], call.query[:], call.key[:] = 0, 0, 0
    call.query[1, 0, 0] = call.query[2, 0, 1] = call.query[3, 0, 2] = 100
    call.key[5, 0, 0], call.key[6, 0, 1], call.key[:, 0, 2] = 100, -100, -100
    with target(name):
        got = kernel(call).astype(np.float64)
    values = call.value[:, 0].astype(np.float64)
    assert np.allclose(got[0, 0], values.mean(0), atol=2e-3)
    assert np.isnan(got[1]).all() and np.isnan(got[3]).all()
    assert np.allclose(got[2, 0], np.delete(values, 6, 0).mean(0), atol=2e-3)


# --------------------------------------------------------------------------------------------------
# The C interface

HALF = np.zeros(1 << 16, np.float16)  # memory for any array of these tests
ADDRESS, OUT = HALF.ctypes.data, HALF.ctypes.data + HALF.size
INDICES = np.zeros(64, np.int32)


def good(name):
    """Two sequences of one row each, or a step of two sequences: [2, 4, 32], two blocks of 16 each."""
    lengths = np.array([20, 40]), 2
    common = {
        "dtype": 0,
        "query": array(ADDRESS, 2, 4, 32),
        "key": array(ADDRESS, 40, 2, 32),
        "value": array(ADDRESS, 40, 2, 16),
        "topk": array(INDICES.ctypes.data, 2, 2, 2),
        "scale": 0.5,
        "heads": 4,
    }
    end = {"out": array(OUT, 2, 4, 16), "threads": 1}
    if name == "nsa_selected_attention":
        return {
            **common,
            "block": 16,
            "count": 2,
            "causal": 1,
            "ends": (np.array([1, 2]), 2),
            "lengths": lengths,
            **end,
        }
    paged = {"key": array(ADDRESS, 3, 32, 2, 32), "value": array(ADDRESS, 3, 32, 2, 16)}
    sizes = {"kv_heads": 2, "block": 16, "count": 2, "page": 32, "table": array(INDICES.ctypes.data, 2, 2)}
    return {**common, **paged, **sizes, "lengths": lengths, **end}


OPERATORS = ("nsa_selected_attention", "nsa_selected_attention_infer")
ONLY_C = [
    ({"query": None}, "query must not be null"),
    ({"key": None}, "key must not be null"),
    ({"value": None}, "value must not be null"),
    ({"topk": None}, "topk_indices must not be null"),
    ({"out": None}, "attention_out must not be null"),
    ({"query": array(None, 2, 4, 32)}, "query has no data"),
    ({"out": array(None, 2, 4, 16)}, "attention_out has no data"),
    ({"query": native._Array(ADDRESS, None, 3)}, "query has no shape"),
    ({"query": array(ADDRESS, -1, 4, 32)}, "query.shape[0] must be >= 0, got -1"),
    ({"query": array(ADDRESS, MAX, 4, 32)}, "query has more bytes than an int64 can count"),
    ({"topk": array(INDICES.ctypes.data + 2, 2, 2, 2)}, "topk_indices must lie at a multiple of 4 bytes"),
    ({"out": array(OUT + 1, 2, 4, 16)}, "attention_out must lie at a multiple of 2 bytes"),
    ({"out": array(OUT, 3, 4, 16)}, "attention_out.shape[0] must equal 2, got 3"),
    ({"out": array(OUT, 2, 4, 32)}, "attention_out.shape[2] must equal 16, got 32"),
    ({"out": array(OUT, 2, 4)}, "attention_out must have rank 3, got rank 2"),
    ({"dtype": 2}, "dtype must be 0 (float16) or 1 (bfloat16), got 2"),
    ({"threads": 0}, "threads must be >= 1, got 0"),
    ({"lengths": (None, 2)}, "actual_seq_kvlen has no data"),
    ({"lengths": (ADDRESS + 4, 2)}, "actual_seq_kvlen must lie at a multiple of 8 bytes"),
    ({"lengths": (None, MAX)}, "actual_seq_kvlen has no data"),
    ({"scale": float("nan")}, "scale_value must be a finite float32, got nan"),
    ({"scale": -1e39}, "scale_value must be a finite float32, got -1e+39"),
    ({"heads": MIN}, f"head_num must be >= 1, got {MIN}"),
    ({"block": MAX}, f"select_block_size must be a multiple of 16, got {MAX}"),
    ({"count": MIN}, f"select_block_count must be in [1, 128], got {MIN}"),
]
ONLY_ITS_OWN = {
    "nsa_selected_attention": [
        ({"ends": (None, 2)}, "actual_seq_qlen has no data"),
        ({"ends": (None, MIN)}, f"actual_seq_qlen must have at least 1 element, got {MIN}"),
        ({"lengths": (None, 0)}, "actual_seq_kvlen must have at least 1 element, got 0"),
        ({"ends": (np.array([MIN, 2]), 2)}, f"actual_seq_qlen[0] must be >= 0, got {MIN}"),
        ({"causal": MIN}, f"causal must be 0 or 1, got {MIN}"),
    ],
    "nsa_selected_attention_infer": [
        ({"table": None}, "block_table must not be null"),
        ({"table": array(INDICES.ctypes.data + 1, 2, 2)}, "block_table must lie at a multiple of 4 bytes"),
        ({"lengths": (None, MIN)}, f"actual_seq_kvlen must have B = 2 elements, got {MIN}"),
        ({"lengths": (np.array([65, 0]), 2)}, "actual_seq_kvlen[0] must be <= 64 (pages x page_block_size), got 65"),
        ({"page": MAX}, f"page_block_size must be a multiple of 16, got {MAX}"),
        ({"kv_heads": 0}, "key_value_head_num must be >= 1, got 0"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_the_good_calls_of_the_next_test_are_good(name):
    assert call_c(name, good(name)) is None


@pytest.mark.parametrize(
    ("name", "change", "words"), [(name, *one) for name in OPERATORS for one in (*ONLY_C, *ONLY_ITS_OWN[name])]
)
def test_what_only_c_can_pass_is_refused_before_anything_is_written(name, change, words):
    HALF[HALF.size // 2 :] = 7
    assert call_c(name, {**good(name), **change}) == words
    assert (HALF[HALF.size // 2 :] == 7).all()
    HALF[:] = 0


@pytest.mark.parametrize("where", [(0, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_bad_block_is_found_before_anything_is_written(name, where):
    topk = np.zeros((2, 2, 2), np.int32)
    HALF[HALF.size // 2 :] = 7
    for block in (-2, 3, 2**31 - 1, -(2**31)):
        topk[where] = block
        error = call_c(name, {**good(name), "topk": array(topk.ctypes.data, 2, 2, 2)})
        blocks = 2 + (name.endswith("infer") and where[0])  # 20 tokens, or the 20 after them; in pages 20 and 40
        if 0 <= block < blocks:
            assert error is None
            continue
        assert error == (
            f"topk_indices[{where[0]}, {where[1]}, {where[2]}] must be in [-1, {blocks}) (blocks of select_block_size "
            f"tokens in its sequence), got {block}"
        )
        assert (HALF[HALF.size // 2 :] == 7).all()
    HALF[:] = 0


def test_the_last_block_that_an_index_can_name_is_read_where_it_lies():
    """2^35 tokens in pages that are all the same one; in a process of its own, which a wrong place may end."""
    done = subprocess.run([sys.executable, "-c", LAST_BLOCK], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr[-2000:]


LAST_BLOCK = """
import numpy as np
from nsa_onnx.operators.nsa_selected_attention_infer import call
from nsa_onnx.runtime.native import Buffer

def buffer(array):
    return Buffer(array.ctypes.data, array.shape)

PAGE = 1024
tokens, out = np.full((1, PAGE, 1, 16), 2, np.float16), np.zeros((1, 1, 16), np.float16)
table, topk = np.zeros((1, 2**31 * 16 // PAGE), np.int32), np.full((1, 1, 1), 2**31 - 1, np.int32)
query, lengths = np.ones((1, 1, 16), np.float16), np.array([table.size * PAGE])
arrays = [buffer(array) for array in (query, tokens, tokens, topk)]
call.kernel("float16", *arrays, 1.0, 1, 1, 16, 1, PAGE, buffer(table), lengths, buffer(out), 1)
assert (out == out[0, 0, 0]).all()
print(out[0, 0, 0])
"""


# --------------------------------------------------------------------------------------------------
# Memory that others change

READ_ONCE = (
    WATCHED
    + """
number, real, pointer = ctypes.c_int64, ctypes.c_double, lambda array: ctypes.c_void_p(array.ctypes.data)
ends, key_ends = watched(np.array([2, 2, 5])), watched(np.array([40, 41, 90]))
topk = watched(np.array([[[0, 2], [1, -1]]] * 2 + [[[3, 3], [-1, -1]]] * 3, np.int32))
query, key, value = np.ones((5, 4, 32), np.float16), np.ones((90, 2, 32), np.float16), np.ones((90, 2, 16), np.float16)
prefill = [described(array) for array in (query, key, value, topk, np.zeros((5, 4, 16), np.float16))]

lengths = watched(np.array([70, 0, 33]))
step_topk = watched(np.array([[[0, 4], [2, 2]], [[-1, -1], [-1, -1]], [[2, -1], [2, 0]]], np.int32))
table = watched(np.zeros((3, 5), np.int32))
pages, page_values = np.ones((4, 16, 2, 32), np.float16), np.ones((4, 16, 2, 16), np.float16)
decode = [
    described(array)
    for array in (query[:3], pages, page_values, step_topk, table, np.zeros((3, 4, 16), np.float16))
]

LIBRARY, error = native._library(), ctypes.create_string_buffer(400)
LIBRARY.nsa_selected_attention.argtypes = LIBRARY.nsa_selected_attention_infer.argtypes = None
end = number(2), error, number(400)
WATCH.watch_start()
failed = LIBRARY.nsa_selected_attention(
    0, *prefill[:4], real(1), number(4), number(16), number(2), number(1), pointer(ends), number(3), pointer(key_ends),
    number(3), prefill[4], *end,
) or LIBRARY.nsa_selected_attention_infer(
    0, *decode[:4], real(1), number(4), number(2), number(16), number(2), number(16), decode[4], pointer(lengths),
    number(3), decode[5], *end,
)
WATCH.watch_stop()
assert not failed, error.value
for array in (ends, key_ends, topk, lengths, step_topk, *SHAPES[::2]):
    assert set(counts(array)) == {1}, counts(array)
# Two fields may come in one read.
assert all(max(counts(fields)) == 1 for fields in SHAPES[1::2])
assert counts(table) == [1, 0, 1, 0, 1] + [0] * 5 + [1, 0, 1, 0, 0], counts(table)
print("read once")
"""
)


def test_every_index_dim_and_rank_is_read_once_and_of_the_table_what_is_needed(watch):  # noqa: F811
    done = subprocess.run([sys.executable, "-c", READ_ONCE, watch], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "read once\n"), done.stderr[-2000:]


RACE = """
import sys, threading, time
import numpy as np
from nsa_onnx.operators.nsa_selected_attention import call as prefill
from nsa_onnx.operators.nsa_selected_attention_infer import call as decode
from nsa_onnx.runtime.native import Buffer

WHAT = sys.argv[1]
ROWS = 20_000
query, out = np.ones((ROWS, 1, 16), np.float16), np.zeros((ROWS, 1, 16), np.float16)
tokens, pages = np.ones((16, 1, 16), np.float16), np.ones((1, 16, 1, 16), np.float16)
topk, table = np.zeros((ROWS, 1, 1), np.int32), np.zeros((ROWS, 1), np.int32)
ends, key_ends = np.array([ROWS, ROWS]), np.array([16, 16])
lengths = np.full(ROWS, 16)

def buffer(array):
    return Buffer(array.ctypes.data, array.shape)

def prefill_call():
    arrays = map(buffer, (query, tokens, tokens, topk))
    prefill.kernel("float16", *arrays, 1.0, 1, 16, 1, 0, ends, key_ends, buffer(out), 1)

def decode_call():
    arrays = map(buffer, (query, pages, pages, topk))
    decode.kernel("float16", *arrays, 1.0, 1, 1, 16, 1, 16, buffer(table), lengths, buffer(out), 1)

call, changed, wrong = {
    "topk_indices": (prefill_call, topk[:, 0, 0], 2**31 - 1), "prefix sums": (prefill_call, key_ends[:1], 2**62),
    "topk_indices of a step": (decode_call, topk[:, 0, 0], -2), "block_table": (decode_call, table[:, 0], 2**31 - 1),
    "lengths": (decode_call, lengths, 2**62),
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
        assert str(error).count(f"got {wrong}") or "must be >= the element before" in str(error), error
going = False
thread.join()
print("survived")
"""


@pytest.mark.parametrize("what", ["topk_indices", "prefix sums", "topk_indices of a step", "block_table", "lengths"])
def test_an_index_that_changes_during_a_call_is_used_as_it_was_checked(what):
    done = subprocess.run([sys.executable, "-c", RACE, what], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-2000:]
