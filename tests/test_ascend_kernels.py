"""Our Ascend C kernels on a look-alike of Ascend C (tests/sim/ascendc), and the look-alike itself.

Simulated, not run on Ascend. The kernels sum in an order of their own, so they are compared with the contract within
1 ulp, and to the bit where the sums are exact. Where terms cancel, float32 itself does not determine the result to an
ulp of a 16-bit type: there the bound is the rounding error of a sum in any order.
"""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import oracle
import pytest

from nsa_onnx.operators.nsa_compress.contract import compressed_length
from nsa_onnx.operators.nsa_compress_infer.contract import slot_plan
from nsa_onnx.operators.windows import row_plan

ROOT = Path(__file__).resolve().parent.parent
SIM = ROOT / "tests" / "sim" / "ascendc"
sys.path.insert(0, str(SIM))

import lookalike  # noqa: E402
import mutants  # noqa: E402

from benchmarks import ascend_counters  # noqa: E402

DTYPES = [np.float16, ml_dtypes.bfloat16]
BLOCKS_AND_STRIDES = [(block, stride) for block in range(16, 129, 16) for stride in range(16, block + 1, 16)]


@pytest.fixture(scope="module")
def kernels():
    lookalike.build()
    return lookalike.Kernels()


# ---- data and comparison


def whole_numbers(rng, shape, dtype):
    """Products and sums of these are exact in float32: every order of the sum gives the same bits."""
    return rng.integers(-4, 5, shape).astype(dtype)


def normal(rng, shape, dtype):
    return rng.standard_normal(shape).astype(dtype)


def positive(rng, shape, dtype):
    return rng.random(shape).astype(dtype)


def assert_within_an_ulp(got, exact, term_sum):
    """`term_sum`: float64 sum of the terms' absolute values, which bounds what the order of a sum can change."""
    assert got.shape == exact.shape
    nan = np.isnan(exact.astype(np.float64))
    assert np.array_equal(nan, np.isnan(got.astype(np.float64)))
    toward = np.where(got.astype(np.float32) > exact.astype(np.float32), np.inf, -np.inf).astype(exact.dtype)
    ulp = np.abs(np.nextafter(exact, toward).astype(np.float64) - exact.astype(np.float64))
    with np.errstate(invalid="ignore"):
        difference = np.abs(got.astype(np.float64) - exact.astype(np.float64))
    # At most 128 additions, each off by half a unit of 2^-23 of what has been added up.
    allowed = ulp + 128 * 2.0**-24 * term_sum
    same = got.view(np.uint16) == exact.view(np.uint16)
    assert np.all(nan | same | (difference <= allowed))


# ---- prefill


def check_compress(kernels, dtype, heads, dim, block, stride, seq, *, cores=48, seed=0):
    rng = np.random.default_rng([heads, dim, block, stride, *seq])
    shape = (seq[-1], heads, dim)
    x, w = whole_numbers(rng, shape, dtype), whole_numbers(rng, (block, heads), dtype)
    launched = kernels.compress(x, w, block, stride, seq, cores=cores, seed=seed)
    assert oracle.same_bits(launched.output, oracle.compress_exact(x, w, block, stride, seq))

    x, w = positive(rng, shape, dtype), positive(rng, (block, heads), dtype)
    launched = kernels.compress(x, w, block, stride, seq, cores=cores, seed=seed)
    assert oracle.ulp_distance(launched.output, oracle.compress_exact(x, w, block, stride, seq)) <= 1
    assert_compress_counters(launched, x, w, block, stride, seq)
    return launched


def compress_tiles(plan, heads, block, stride):
    """(row splits, pieces, window heads of every tile) of a launch plan."""
    shifts = -(-block // stride)
    groups, splits = int(plan[lookalike.PLAN_GROUPS]), int(plan[lookalike.COMPRESS_SPLITS])
    chunks = int(plan[lookalike.COMPRESS_CHUNKS])
    ends = plan[lookalike.COMPRESS_HEADER :][: splits + 1]
    pieces = plan[lookalike.COMPRESS_HEADER + splits + 1 :].reshape(-1, 3)
    group_heads = [heads // groups + (group < heads % groups) for group in range(groups)]
    tiles = []
    for begin, end in itertools.pairwise(ends):
        positions = int(sum(pieces[begin:end, 1])) + (end - begin) * (shifts - 1)
        tiles += group_heads * int(-(-positions // chunks))
    return splits, len(pieces), tiles


def assert_compress_counters(launched, x, w, block, stride, seq):
    counters, plan = launched.counters, launched.plan
    heads, dim = x.shape[1:]
    rows, shifts, columns = launched.output.shape[0], -(-block // stride), -(-dim // 64)
    splits, pieces, tiles = compress_tiles(plan, heads, block, stride)

    read = counters["read"]
    assert read["input"]["bytes"] <= 2 * heads * dim * stride * (rows + pieces * (shifts - 1))
    assert read["weight"]["bytes"] <= 2 * splits * block * heads
    assert counters["written"]["output"]["bytes"] == launched.output.nbytes
    assert counters["vector_instructions"] <= 1.1 * sum(block * h * columns + 2 for h in tiles)
    assert counters["barriers_all"] == 0 and counters["barriers_mte"] == 0
    assert counters["barriers_v"] <= sum(block + stride + 3 for _ in tiles)
    assert read["input"]["shortest_burst"] >= 512
    if int(plan[lookalike.PLAN_GROUPS]) > 1:
        assert counters["written"]["output"]["shortest_burst"] >= 512


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("block", "stride"), BLOCKS_AND_STRIDES)
def test_prefill_every_block_and_stride_over_ragged_segments(kernels, dtype, block, stride):
    # Too short, exactly one window, a tail, two equal neighbours (an empty segment), many windows.
    lengths = [block - 1, block, block + stride + 5, 0, 3, block + 4 * stride, 2 * block + 7]
    check_compress(kernels, dtype, 2, 48, block, stride, list(map(int, np.cumsum(lengths))), cores=3, seed=block)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("dim", range(16, 257, 16))
def test_prefill_every_head_dim(kernels, dtype, dim):
    check_compress(kernels, dtype, 3, dim, 32, 16, [100, 190])
    check_compress(kernels, dtype, 1, dim, 48, 32, [200], cores=2, seed=5)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 96, 127, 128])
def test_prefill_head_counts(kernels, dtype, heads):
    check_compress(kernels, dtype, heads, 16, 32, 16, [70, 130], seed=heads)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("heads", "dim", "block", "stride"),
    [
        (9, 256, 128, 16),
        (128, 256, 16, 16),
        (8, 256, 32, 16),
        (16, 128, 64, 64),
        (5, 256, 128, 128),
        (128, 16, 128, 16),
    ],
)
def test_prefill_wide_tokens(kernels, dtype, heads, dim, block, stride):
    """More than 2040 elements of a token do not fit the 8-bit repeat stride: the heads are split."""
    launched = check_compress(kernels, dtype, heads, dim, block, stride, [3 * block, 4 * block + stride])
    if heads * dim > 2040:
        assert launched.plan[lookalike.PLAN_GROUPS] > 1


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("cores", [1, 2, 48])
def test_prefill_carries_partial_sums_over_the_tiles_of_a_core(kernels, dtype, cores):
    """One core has many tiles; nothing but the stream's first chunks is read twice (the counters say so)."""
    launched = check_compress(kernels, dtype, 2, 128, 64, 16, [1500, 3000], cores=cores, seed=cores)
    splits, _, tiles = compress_tiles(launched.plan, 2, 64, 16)
    assert cores > 1 or len(tiles) > 2 * splits


@pytest.mark.parametrize("cores", [1, 7])
def test_prefill_with_more_head_groups_than_cores(kernels, cores):
    check_compress(kernels, np.float16, 128, 240, 128, 48, [140, 400], cores=cores)


def test_prefill_without_an_output_row_launches_nothing(kernels):
    x, w = np.ones((40, 2, 32), np.float16), np.ones((32, 2), np.float16)
    launched = kernels.compress(x, w, 32, 16, [20, 31, 31, 40])
    assert launched.output.shape == (0, 2, 32) and launched.counters == {"blocks": 0}


def test_prefill_with_fewer_rows_than_cores(kernels):
    launched = check_compress(kernels, np.float16, 4, 128, 32, 16, [48])
    assert 2 <= launched.counters["blocks"] < 48


def test_prefill_signed_data_is_within_an_ulp_of_the_contract(kernels):
    rng = np.random.default_rng(3)
    for dtype in DTYPES:
        for block, stride in ((32, 16), (128, 16), (64, 48)):
            seq = [700, 1500]
            x, w = normal(rng, (1500, 4, 80), dtype), normal(rng, (block, 4), dtype)
            launched = kernels.compress(x, w, block, stride, seq)
            exact = oracle.compress_exact(x, w, block, stride, seq)
            x64, w64 = np.abs(x.astype(np.float64)), np.abs(w.astype(np.float64))
            assert_within_an_ulp(launched.output, exact, oracle.compress_float64(x64, w64, block, stride, seq))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
def test_prefill_nan_and_inf_stay_inside_their_windows(kernels, dtype):
    rng = np.random.default_rng(4)
    x, w = positive(rng, (400, 3, 64), dtype), positive(rng, (48, 3), dtype)
    for token, head, d, value in ((0, 0, 5, np.nan), (170, 1, 63, np.inf), (199, 2, 0, np.nan), (399, 0, 1, -np.inf)):
        x[token, head, d] = value
    seq = [200, 400]
    exact = oracle.compress_exact(x, w, 48, 32, seq)
    launched = kernels.compress(x, w, 48, 32, seq)
    assert np.isnan(exact.astype(np.float32)).any() and np.isinf(exact.astype(np.float32)).any()
    assert oracle.ulp_distance(launched.output, exact) <= 1


def test_prefill_rounds_halves_to_even_once(kernels):
    """2048 + 1 and 2048 + 3 lie between two float16 numbers; the vendor's kernel would round both away from zero."""
    x, w = np.zeros((32, 1, 16), np.float16), np.ones((16, 1), np.float16)
    x[0], x[1] = 2048, 1
    x[16], x[17] = 2048, 3
    launched = kernels.compress(x, w, 16, 16, [32])
    assert launched.output[:, 0, 0].tolist() == [2048.0, 2052.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("block", "stride", "limit"), [(32, 16, 13_000), (128, 16, 52_000)])
def test_prefill_needs_an_order_of_magnitude_fewer_vector_instructions(kernels, dtype, block, stride, limit):
    """T = 16384, N = 4, D = 128 on 48 cores; the vendor's kernel needs 146 253 and 681 722 (field notes)."""
    rng = np.random.default_rng(5)
    x, w = positive(rng, (16384, 4, 128), dtype), positive(rng, (block, 4), dtype)
    launched = kernels.compress(x, w, block, stride, [16384], seed=1)
    assert launched.counters["blocks"] == 48
    assert launched.counters["vector_instructions"] <= limit
    name = "float16" if dtype == np.float16 else "bfloat16"
    documented = f"| {block}/{stride} | {name} | {launched.counters['vector_instructions']:,} |".replace(",", " ")
    assert documented in (ROOT / "ascend_kernels" / "nsa_compress" / "README.md").read_text(encoding="utf-8")
    assert_compress_counters(launched, x, w, block, stride, [16384])
    some = oracle.compress_exact(x[: 40 * stride + block], w, block, stride, [40 * stride + block])
    assert oracle.ulp_distance(launched.output[: len(some)], some) <= 1


def test_every_byte_and_instruction_above_the_least_has_a_reason(kernels):
    """benchmarks/ascend_counters.py says of each shape what is left; nothing may be left that it does not name."""
    prefill = [(2048, 4, 128, 32, 16), (512, 1, 128, 128, 16), (512, 2, 80, 48, 32)]
    decode = [(1, 4, 128, 32, 16, 128), (5, 8, 128, 64, 32, 64), (3, 16, 192, 112, 16, 64)]
    for rows in (ascend_counters.prefill_rows(kernels, prefill)[1], ascend_counters.decode_rows(kernels, decode)[1]):
        for line in rows:
            found = dict(zip(ascend_counters.LEFT_COLUMNS, line, strict=True))
            assert (found["bytes other"], found["other"]) == ("0.0", "0"), found


@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1024, 1, 128), (1024, 4, 128), (512, 8, 64), (2048, 1, 64)])
def test_short_sequences_and_few_heads_use_all_cores(kernels, tokens, heads, dim):
    """All cores have work, and the busiest has less of it than if fewer cores shared it."""
    rng = np.random.default_rng(6)
    x, w = positive(rng, (tokens, heads, dim), np.float16), positive(rng, (32, heads), np.float16)
    rows = compressed_length([tokens], 32, 16)
    groups = max(heads * dim // 256, 1)
    all_cores = kernels.compress(x, w, 32, 16, [tokens])
    each = -(-rows * groups // 48)  # rows of the busiest core; with fewer cores it would have more
    assert all_cores.counters["blocks"] >= -(-rows * groups // each)
    for cores in (12, 24):
        fewer = kernels.compress(x, w, 32, 16, [tokens], cores=cores)
        assert work_of_busiest(all_cores) < work_of_busiest(fewer)


def work_of_busiest(launched):
    """Cycles by the tiling's own measure: a repeat is one, an instruction 20 more (ascend_kernels/tiling.h)."""
    return launched.counters["busiest_repeats"] + 20 * launched.counters["busiest_instructions"]


def test_many_short_segments_share_tiles(kernels):
    """200 segments of 3 windows: a tile holds many of them, so that an Axpy has many rows."""
    lengths = [70] * 200
    launched = check_compress(kernels, np.float16, 2, 128, 32, 16, list(map(int, np.cumsum(lengths))), cores=4)
    _, pieces, tiles = compress_tiles(launched.plan, 2, 32, 16)
    assert pieces >= 200 and len(tiles) < 20


# ---- decode


def decode_case(rng, dtype, make, batch, heads, dim, block, stride, page):
    pages = -(-(block + 3 * stride) // page) + 1
    x = make(rng, (batch * pages, page, heads, dim), dtype)
    w = make(rng, (block, heads), dtype)
    table = rng.permutation(batch * pages).reshape(batch, pages).astype(np.int32)
    lengths = [int(block + stride * rng.integers(0, (pages * page - block) // stride + 1)) for _ in range(batch)]
    if batch > 2:
        lengths[1] += 1 if lengths[1] < pages * page else -1  # does not write; its slot and pages are garbage
        table[1] = -1
    slots = rng.permutation(batch + 4)[:batch].astype(np.int32)
    if batch > 2:
        slots[1] = -1
    cache = make(rng, (batch + 4, heads, dim), dtype)
    return x, w, slots, table, lengths, cache, pages


def check_decode(kernels, dtype, batch, heads, dim, block, stride, page, *, cores=48, seed=0):
    rng = np.random.default_rng([batch, heads, dim, block, stride, page])
    for make in (whole_numbers, positive):
        x, w, slots, table, lengths, cache, pages = decode_case(
            rng, dtype, make, batch, heads, dim, block, stride, page
        )
        writes = slot_plan(slots, table, lengths, block, stride, page, pages)
        launched = kernels.infer(x, w, cache, writes, block, cores=cores, seed=seed)
        exact = oracle.infer_exact(x, w, slots, block, stride, page, table, lengths, cache)
        if make is whole_numbers:
            assert oracle.same_bits(launched.output, exact)
        else:
            assert oracle.ulp_distance(launched.output, exact) <= 1
        assert_decode_counters(launched, writes, heads, dim, block)
    return launched


def assert_decode_counters(launched, writes, heads, dim, block):
    counters, plan = launched.counters, launched.plan
    groups, slices = int(plan[lookalike.PLAN_GROUPS]), int(plan[lookalike.INFER_SLICES])
    row = 2 * heads * dim
    assert counters["read"]["input"]["bytes"] == len(writes) * block * row
    assert counters["written"]["output"]["bytes"] == len(writes) * row
    runs = sum(len(write.runs) for write in writes)
    copies = counters["read"]["input"]["copies"]
    if slices == 1:
        assert copies == groups * runs
    else:
        assert copies <= groups * (runs + len(writes) * (slices - 1))
    shortest_run = min(run.tokens for write in writes for run in write.runs)
    if groups > 1 or slices == 1:
        assert counters["read"]["input"]["shortest_burst"] >= min(512, row * shortest_run)
    # The weights are broadcast once per core, and once more where a core begins another group.
    instructions = counters["instructions"]
    broadcasts = -(-block * -(-heads // groups // 8 * 8 + 8) // 8 // 255) + 1
    assert instructions["Brcb"] <= broadcasts * (counters["blocks"] + groups)
    assert counters["barriers_all"] == 0 and counters["barriers_mte"] == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("block", "stride"), [bs for bs in BLOCKS_AND_STRIDES if bs[0] < 128])
def test_decode_every_block_and_stride(kernels, dtype, block, stride):
    check_decode(kernels, dtype, 4, 3, 48, block, stride, 64 if stride % 32 else 128, cores=3, seed=stride)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("dim", range(16, 257, 16))
def test_decode_every_head_dim(kernels, dtype, dim):
    check_decode(kernels, dtype, 3, 5, dim, 32, 16, 64)
    check_decode(kernels, dtype, 2, 2, dim, 112, 32, 64, cores=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("heads", [1, 2, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 62, 63])
def test_decode_head_counts(kernels, dtype, heads):
    check_decode(kernels, dtype, 3, heads, 64, 32, 16, 64)
    check_decode(kernels, dtype, 2, heads, 16, 112, 16, 128, cores=3, seed=2)


def test_decode_large_batch_keeps_all_cores_busy(kernels):
    launched = check_decode(kernels, np.float16, 96, 4, 128, 32, 16, 128, seed=9)
    assert launched.counters["blocks"] == 48


def test_decode_one_sequence_spreads_its_heads_over_cores(kernels):
    launched = check_decode(kernels, np.float16, 1, 32, 128, 32, 32, 64)
    assert launched.counters["blocks"] == 16  # 2 heads each: shorter bursts than 512 bytes are not made


def test_decode_without_a_write_launches_nothing(kernels):
    rng = np.random.default_rng(0)
    x, w, cache = (positive(rng, shape, np.float16) for shape in ((2, 64, 1, 16), (32, 1), (3, 1, 16)))
    launched = kernels.infer(x, w, cache, [], 32)
    assert oracle.same_bits(launched.output, cache) and launched.counters == {"blocks": 0}


def test_decode_signed_data_is_within_an_ulp_of_the_contract(kernels):
    rng = np.random.default_rng(8)
    for dtype in DTYPES:
        x, w, slots, table, lengths, cache, pages = decode_case(rng, dtype, normal, 20, 4, 128, 112, 16, 64)
        writes = slot_plan(slots, table, lengths, 112, 16, 64, pages)
        launched = kernels.infer(x, w, cache, writes, 112)
        arguments = (slots, 112, 16, 64, table, lengths)
        exact = oracle.infer_exact(x, w, *arguments, cache)
        positive_x, positive_w = np.abs(x.astype(np.float64)), np.abs(w.astype(np.float64))
        terms = oracle.infer_float64(positive_x, positive_w, *arguments, cache)
        assert_within_an_ulp(launched.output, exact, terms)


def test_a_cores_block_order_changes_nothing(kernels):
    rng = np.random.default_rng(10)
    x, w = normal(rng, (900, 4, 128), np.float16), normal(rng, (64, 4), np.float16)
    outputs = [kernels.compress(x, w, 64, 16, [333, 900], seed=seed).output for seed in (0, 1, 2)]
    assert all(oracle.same_bits(outputs[0], other) for other in outputs[1:])


# ---- the launch interface on a runtime of its own

SUBMIT = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)
BYTES = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
TASK = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)


class Device(ctypes.Structure):
    """NsaAscendSimDevice of tests/sim/ascendc/simulated.h."""

    _fields_ = (("submit", SUBMIT), ("bytes", BYTES))


def launch_on_device(kernels, tasks, offset):
    """Puts a launch on a made-up stream whose device addresses are the host's plus `offset`; the arrays."""
    library = kernels.library
    submit = SUBMIT(lambda stream, name, task, argument: tasks.append((stream, name, TASK(task), argument)) or 0)
    address = BYTES(lambda where, size: None if where < offset else where - offset)
    device = Device(submit, address)
    library.nsa_ascend_sim_use_device(ctypes.byref(device))
    try:
        x, w = np.ones((64, 1, 16), np.float16), np.ones((32, 1), np.float16)
        plan, out = kernels.compress_plan(False, x.shape, 32, 16, [64]), np.zeros((3, 1, 16), np.float16)
        pointers = [ctypes.c_void_p(array.ctypes.data + (1 << 60)) for array in (x, w, out, plan)]
        blocks = ctypes.c_int64(int(plan[lookalike.PLAN_BLOCKS]))
        assert library.nsa_ascend_compress(ctypes.c_void_p(77), ctypes.c_int32(0), *pointers, blocks) == 0
    finally:
        library.nsa_ascend_sim_use_device(None)
    return out, (x, w, plan, device)  # all of which the task still needs


def test_a_launch_goes_through_the_runtimes_stream_and_memory(kernels):
    tasks = []
    out, _alive = launch_on_device(kernels, tasks, 1 << 60)
    [(stream, name, task, argument)] = tasks
    assert (stream, name) == (77, b"nsa_ascend_compress") and not out.any()  # nothing has run yet
    assert task(argument) == 0 and np.all(out == 32)


def test_a_launch_with_memory_of_the_host_fails_on_the_stream(kernels):
    tasks = []
    out, _alive = launch_on_device(kernels, tasks, 1 << 61)
    [(_, _, task, argument)] = tasks
    assert task(argument) == 507015 and not out.any()


# ---- the look-alike


def broken_kernels():
    """Parameters for every marked line of broken_kernels.cc: kernel, line, tensor."""
    found = []
    lines = (SIM / "broken_kernels.cc").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 2):  # the place is the line below the mark
        if match := re.fullmatch(r" *// broken: (\w+) (\S+)", line):
            found.append(pytest.param(match[1], number, match[2], id=match[1]))
    return found


@pytest.fixture(scope="module")
def run_broken(kernels):
    function = ctypes.CDLL(str(lookalike.BUILD / "lib" / "libascendc_broken.so")).ascendc_sim_run_broken
    function.restype = ctypes.c_char_p
    return lambda name, broken: function(name.encode(), int(broken)).decode()


@pytest.mark.parametrize(("name", "line", "tensor"), broken_kernels())
def test_the_look_alike_finds_the_mistake_and_names_line_and_tensor(run_broken, name, line, tensor):
    message = run_broken(name, True)
    assert message.startswith(f"broken_kernels.cc:{line}: ")
    assert tensor == "-" or f"'{tensor}'" in message
    assert run_broken(name, False) == ""


def test_every_broken_kernel_is_marked(run_broken):
    source = (SIM / "broken_kernels.cc").read_text(encoding="utf-8")
    registered = set(re.findall(r"KERNEL\((\w+)\)", source)) - {"name"}
    assert registered == {parameters.values[0] for parameters in broken_kernels()}


# ---- mutants

# (dtype, heads, dim, block, stride, prefix sums, cores): between them they reach every line of the kernels.
COMPRESS_CASES = [
    (1, 4, 128, 48, 32, [480, 1000, 1003, 2000], 2),
    (0, 2, 80, 48, 32, [200, 700], 1),
    (0, 9, 256, 64, 16, [600], 2),
    (1, 128, 16, 32, 16, [80], 48),
    (0, 1, 16, 16, 16, [16 * 255], 1),
    (0, 128, 16, 32, 16, [80], 1),
    (0, 4, 128, 32, 16, [3000], 1),
    (0, 1, 256, 128, 16, [3472], 1),  # the last tile has one chunk
    (0, 1, 32, 128, 16, [50 * 16 + 128, 60 * 16 + 128], 1),
    (1, 7, 256, 128, 16, [128 + 16 * 40], 1),
    (0, 3, 64, 32, 16, [40, 80, 130], 2),
    (0, 1, 64, 32, 16, [2000], 2),
    (0, 128, 240, 16, 16, [40], 1),
]
# (dtype, batch, heads, dim, block, stride, page, cores)
INFER_CASES = [
    (0, 5, 3, 80, 32, 16, 64, 2),
    (1, 3, 9, 256, 112, 16, 64, 3),
    (0, 4, 63, 16, 112, 16, 64, 2),
    (1, 2, 1, 16, 16, 16, 64, 1),
    (0, 2, 40, 16, 80, 16, 128, 1),
    (0, 1, 8, 256, 16, 16, 64, 1),
    (1, 2, 12, 32, 112, 16, 128, 1),
    (0, 3, 5, 48, 96, 48, 64, 2),
    (0, 2, 1, 16, 112, 16, 128, 1),
    (0, 1, 2, 64, 32, 16, 64, 48),
]


def mutant_library():
    library = ctypes.CDLL(str(mutants.build(mutants.all_mutants())))
    library.mutant_plan.restype = ctypes.c_int64
    library.mutant_run.restype = ctypes.c_char_p
    return library


def prepared_cases():
    """Per operator: (name, dtype, shape words, work words, cores, input, weight, output before, output after)."""
    cases = {"compress": [], "infer": []}
    for bfloat16, heads, dim, block, stride, seq, cores in COMPRESS_CASES:
        rng, dtype = np.random.default_rng([heads, dim]), DTYPES[bfloat16]
        x, w = whole_numbers(rng, (seq[-1], heads, dim), dtype), whole_numbers(rng, (block, heads), dtype)
        want = oracle.compress_exact(x, w, block, stride, seq)
        work = [(run.first_row, run.rows, run.first_token) for run in row_plan(seq, block, stride)]
        shape = [bfloat16, seq[-1], heads, dim, block, stride]
        cases["compress"].append((shape, np.array(work, np.int64), cores, x, w, np.full_like(want, np.nan), want))
    for bfloat16, batch, heads, dim, block, stride, page, cores in INFER_CASES:
        rng, dtype = np.random.default_rng([batch, heads]), DTYPES[bfloat16]
        x, w, slots, table, lengths, cache, pages = decode_case(
            rng, dtype, whole_numbers, batch, heads, dim, block, stride, page
        )
        want = oracle.infer_exact(x, w, slots, block, stride, page, table, lengths, cache)
        work = []
        for write in slot_plan(slots, table, lengths, block, stride, page, pages):
            runs = [(run.page, run.offset, run.tokens) for run in write.runs] + [(0, 0, 0)] * 3
            work.append([write.sequence, write.slot, len(write.runs), *(word for run in runs[:3] for word in run)])
        shape = [bfloat16, x.shape[0], page, heads, dim, cache.shape[0], block]
        cases["infer"].append((shape, np.array(work, np.int64), cores, x, w, cache, want))
    return cases


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def fault(library, number, op, case):
    """What is wrong with a mutant's result of a case; "" if nothing is."""
    shape, work, cores, x, w, before, want = case
    words = np.array(shape, np.int64)
    plan = np.zeros(1 << 16, np.int64)
    infer = ctypes.c_int(op == "infer")
    arguments = (pointer(words), pointer(work), ctypes.c_int64(len(work)), ctypes.c_int64(cores))
    library.mutant_plan(ctypes.c_int(number), infer, *arguments, pointer(plan), ctypes.c_int64(len(plan)))
    parts = len(work) if op == "infer" else int(plan[lookalike.COMPRESS_SPLITS])
    units = parts * int(plan[lookalike.PLAN_GROUPS])
    if not (units >= cores or op == "infer" or cores > 2) or plan[lookalike.PLAN_BLOCKS] != min(units, cores):
        return f"a plan for {plan[lookalike.PLAN_BLOCKS]} cores"
    output = before.copy()
    burst = ctypes.c_uint64()
    pointers = (pointer(x), pointer(w), pointer(output), pointer(plan))
    blocks = ctypes.c_int(int(plan[lookalike.PLAN_BLOCKS]))
    message = library.mutant_run(
        ctypes.c_int(number), infer, ctypes.c_int(shape[0]), *pointers, blocks, ctypes.byref(burst)
    ).decode()
    if message:
        return message
    if not oracle.same_bits(output, want):
        return "wrong numbers"
    return "short bursts" if op == "compress" and burst.value < 512 else ""


def found_out(library, number, op, cases):
    """Whether any case shows the mutant's fault. In a child process: a mutant may crash or never end."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        signal.alarm(20)
        os._exit(0 if any(fault(library, number, op, case) for case in cases) else 1)
    _, status = os.waitpid(child, 0)
    return status != 1 << 8


# Mutants that behave like the original, and why nothing can tell them apart.
NEVER_CHOSEN = "a safeguard: the cost model prefers others, but nothing else promises it"
SAME_BEHAVIOUR = {
    "nsa_compress/tiling.cc: without if (most <= halo) return -1;": NEVER_CHOSEN,
    "nsa_compress/tiling.cc: (chip.unified_buffer - fixed) / each instead of "
    "std::min(kRepeatLimit, (chip.unified_buffer - fixed) / each)": "at most 175 chunks fit",
    "nsa_compress/tiling.cc: MostChunks(shape, tiling, chip) instead of "
    "std::min(cut.room, MostChunks(shape, tiling, chip))": "a larger buffer than is used",
    "nsa_compress_infer/tiling.cc: without if (width * 4 / kGrain > kRepeatLimit) return -1;": "so wide a window "
    "does not fit: 16 tokens of 2048 elements take more than the unified buffer",
    **{
        f"nsa_compress_infer/tiling.cc: {change}": "the window's tokens always take as much as its weights"
        for change in (
            "tokens * width * 2 instead of std::max(tokens * width * 2, shape.block * RoundUp(heads * 2, kGrain))",
            "tokens * width * 4 instead of std::max(tokens * width * 4, shape.block * RoundUp(heads * 4, kGrain))",
            "heads * 2 instead of RoundUp(heads * 2, kGrain)",
            "heads * 4 instead of RoundUp(heads * 4, kGrain)",
        )
    },
}


def test_taking_away_any_synchronization_alignment_or_bound_turns_red(kernels):
    library, cases = mutant_library(), prepared_cases()
    for op in cases:
        assert [fault(library, 0, op, case) for case in cases[op]] == [""] * len(cases[op])
    survivors = []
    for number, mutant in enumerate(mutants.all_mutants()):
        if number and not found_out(library, number, mutant.op, cases[mutant.op]):
            survivors.append(f"{mutant.path}: {mutant.change}")
    assert sorted(survivors) == sorted(SAME_BEHAVIOUR)


# ---- the sources


def test_the_kernels_have_no_ifdef_per_compiler():
    for path in (ROOT / "ascend_kernels").rglob("*.h"):
        conditions = re.findall(r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*", path.read_text(encoding="utf-8"), re.MULTILINE)
        if path.name == "launch.h":  # plain C for any compiler
            continue
        assert len(conditions) == 1 and conditions[0].startswith("#ifndef NSA_ONNX_ASCEND_KERNELS_"), path


def test_the_launch_interface_is_plain_c():
    headers = [path.relative_to(ROOT) for path in (ROOT / "ascend_kernels").rglob("launch.h")]
    assert len(headers) > 2
    source = "".join(f'#include "{header}"\n' for header in headers)
    source += "int main(void) { return nsa_ascend_abi() == NSA_ASCEND_ABI ? 0 : 1; }\n"
    command = ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-x", "c"]
    done = subprocess.run([*command, f"-I{ROOT}", "-"], input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_says_that_it_is_simulated(kernels):
    assert kernels.target == "simulated"
    assert json.loads(json.dumps(kernels.compress_plan(False, (64, 1, 16), 32, 16, [64]).tolist()))[0] > 0


# ---- the ONNX parser plugin, against declarations of the graph engine's classes


@pytest.fixture(scope="module")
def probe(kernels):
    function = ctypes.CDLL(str(lookalike.BUILD / "lib" / "libnsa_plugin_probe.so")).plugin_probe
    function.restype = ctypes.c_char_p
    return lambda origin, text: function(origin.encode(), None if text is None else text.encode()).decode().split("\n")


def attribute_json(**values):
    """As CANN's parser writes a node; an attribute of another type and a nested one are in the way."""
    attributes = [{"i": value, "name": name, "type": 2} for name, value in values.items()]
    attributes += [{"name": "note", "s": 'a \\"quoted\\" }]', "type": 3}, {"name": "t", "t": {"dims": [1, [2]]}}]
    return json.dumps({"attribute": attributes, "domain": "nsa_onnx", "output": ["y"]})


def test_plugin_maps_the_prefill_node(probe):
    got = probe("nsa_onnx::1::NsaCompress", attribute_json(compress_stride=16, compress_block_size=32))
    attributes = ["actSeqLenType=0", "compressBlockSize=32", "compressStride=16", "layoutOptional=TND"]
    assert got[0] == "NsaCompress" and sorted(got[1:]) == attributes


def test_plugin_maps_the_decode_node(probe):
    text = attribute_json(compress_block_size="64", compress_stride=16, page_block_size=128)  # 64-bit as a string
    got = probe("nsa_onnx::1::NsaCompressInfer", text)
    attributes = ["act_seq_len_type=1", "compress_block_size=64", "compress_stride=16", "layout=TND"]
    assert got[0] == "NsaCompressWithCache" and sorted(got[1:]) == [*attributes, "page_block_size=128"]


def test_plugin_registers_only_our_nodes_and_version(probe):
    assert probe("nsa_onnx::2::NsaCompress", attribute_json()) == ["not registered"]
    assert probe("ai.onnx::1::NsaCompress", attribute_json()) == ["not registered"]


def test_plugin_refuses_missing_and_malformed_attributes(probe):
    good = attribute_json(compress_stride=16, compress_block_size=32)
    whole = probe("nsa_onnx::1::NsaCompress", good)
    assert whole[0] == "NsaCompress"
    bad = [None, "", "{}", "[]", "{" * 5000, '{"a":' + "[" * 5000, attribute_json(compress_stride=16)]
    bad += [good.replace('"i": 32', text) for text in ('"i": "x"', '"i": ' + "9" * 40, '"i": ', '"i": null')]
    for text in bad:
        assert probe("nsa_onnx::1::NsaCompress", text) == ["failed"], text
    for cut in range(len(good)):  # cut off anywhere
        assert probe("nsa_onnx::1::NsaCompress", good[:cut]) == ["failed"]


def test_plugin_links_the_graph_engine_by_name(tmp_path):
    """It is opened with RTLD_LOCAL: what it does not name is not found. Built by its own CMake on a stand-in."""
    home = tmp_path / "cann"
    shutil.copytree(ROOT / "tests" / "sim" / "ascendc" / "graph_engine", home / "include")
    (home / "lib64").mkdir()
    for name in ("graph", "register"):
        library = home / "lib64" / f"lib{name}.so"
        subprocess.run(["g++", "-shared", "-o", library, "-x", "c++", "/dev/null"], check=True)
    environment = {**os.environ, "ASCEND_HOME_PATH": str(home), "ASCEND_OPP_PATH": str(tmp_path / "opp")}
    cmake = str(Path(sys.executable).with_name("cmake"))
    source, build = ROOT / "ascend_kernels" / "onnx_plugin", tmp_path / "build"
    for step in ([cmake, "-S", source, "-B", build], [cmake, "--build", build], [cmake, "--install", build]):
        done = subprocess.run([*map(str, step)], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (plugin,) = (tmp_path / "opp" / "vendors" / "nsa_onnx" / "framework" / "onnx").iterdir()
    needed = subprocess.run(["readelf", "-d", plugin], capture_output=True, text=True, check=True).stdout
    assert "[libgraph.so]" in needed and "[libregister.so]" in needed


@pytest.mark.parametrize("page", ["ascend_kernels/onnx_plugin/README.md", "docs/ascend.md"])
def test_the_step_without_which_the_plugin_is_never_loaded_is_written_down(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "load_priority" in text
    assert "ASCEND_CUSTOM_OPP_PATH=$ASCEND_OPP_PATH/vendors/nsa_onnx" in text


# ---- the launchers for CANN's compiler, their launch syntax put into a function for g++


ACL = """
#pragma once
#include <cstdint>
enum aclrtLastErrLevel { ACL_RT_THREAD_LEVEL = 0 };
inline int32_t last_error = 0;
inline int32_t aclrtGetLastError(aclrtLastErrLevel) { const int32_t error = last_error; last_error = 0; return error; }
"""
LAUNCH = """
#include "acl/acl.h"
inline int32_t launch_error = 0;
template <class... Arguments>
void Launch(void (*)(Arguments...), uint32_t, int, void*, Arguments...) { if (launch_error) last_error = launch_error; }
"""
ENTRY = """
#include "launch.h"
#include "nsa_compress/launch.h"
#include "nsa_compress_infer/launch.h"
extern "C" __attribute__((visibility("default"))) int32_t launch(int decode, int dtype, int before, int during) {
  last_error = before;
  launch_error = during;
  return (decode ? nsa_ascend_infer : nsa_ascend_compress)(nullptr, dtype, nullptr, nullptr, nullptr, nullptr, 1);
}
"""


@pytest.fixture(scope="module")
def launch_npu(kernels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch_npu")
    kernels_copy = folder / "ascend_kernels"
    shutil.copytree(ROOT / "ascend_kernels", kernels_copy)
    sources = [SIM / "machine.cc", kernels_copy / "target_npu.cc", kernels_copy / "entry.cc"]
    for path in sorted(kernels_copy.rglob("*.asc")):
        source = path.read_text(encoding="utf-8")
        source, launches = re.subn(r"(\w+)<<<(\w+), (\w+), (\w+)>>>\(", r"Launch(\1, \2, \3, \4, ", source)
        assert launches == 2  # one a type
        sources.append(path.with_suffix(".cc"))
        sources[-1].write_text(LAUNCH + source)
    (folder / "acl").mkdir()
    (folder / "acl" / "acl.h").write_text(ACL)
    (kernels_copy / "entry.cc").write_text(LAUNCH + ENTRY)
    includes = [f"-I{path}" for path in (folder, SIM, kernels_copy)]
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *includes]
    command += [*sources, "-o", folder / "launch_npu.so"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "launch_npu.so")).launch


@pytest.mark.parametrize("decode", [0, 1])
@pytest.mark.parametrize("dtype", [0, 1])
def test_an_earlier_error_of_the_thread_is_not_taken_for_the_launch_s(launch_npu, decode, dtype):
    assert launch_npu(decode, dtype, 0, 0) == 0
    assert launch_npu(decode, dtype, 507015, 0) == 0
    assert launch_npu(decode, dtype, 107002, 507899) == 507899


# ---- what a launch may use of the chip


@pytest.mark.parametrize(("heads", "block", "stride"), [(16, 32, 16), (24, 48, 32)])
def test_tiles_leave_the_end_of_the_unified_buffer_alone(kernels, heads, block, stride):
    """Two of the shapes whose tiles would fill it to the last byte."""
    rng, dtype = np.random.default_rng(9), ml_dtypes.bfloat16
    x, w = positive(rng, (4096, heads, 16), dtype), positive(rng, (block, heads), dtype)
    peak = kernels.compress(x, w, block, stride, [4096], cores=1).counters["ub_peak"]
    assert 184 * 1024 < peak <= 192 * 1024 - 256


def test_nothing_to_compute_is_nothing_to_launch(kernels):
    """D = 0 is legal."""
    for bfloat16 in (False, True):
        assert kernels.compress_plan(bfloat16, (64, 2, 0), 32, 16, [64])[lookalike.PLAN_BLOCKS] == 0
        writes = slot_plan([0], [[0]], [32], 32, 16, 64, 1)
        assert kernels.infer_plan(bfloat16, (1, 64, 2, 0), 4, 32, writes)[lookalike.PLAN_BLOCKS] == 0
