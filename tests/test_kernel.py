"""The CPU kernels give the contract's bits on every instruction set and with any number of threads."""

import os
import platform
import subprocess
import sys

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import DTYPES, LIBRARY, TARGETS, bits, buffer, compress, infer, target

from nsa_onnx.operators.nsa_compress import call as prefill

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
targets = pytest.mark.parametrize("name", TARGETS)


def random_bits(rng, shape, dtype):
    """Any bit pattern: subnormals, infinities and NaNs are as likely as their share of all patterns."""
    return rng.integers(0, 1 << 16, shape, dtype=np.uint16).view(dtype)


def moderate(rng, shape, dtype):
    return (rng.standard_normal(shape) * 4).astype(dtype)


def has_contract_bits(out, expected):
    """Equal bits; a NaN is the one NaN of the kernels, positive and quiet."""
    one_nan = {"float16": 0x7E00, "bfloat16": 0x7FC0}[out.dtype.name]
    nan = np.isnan(out.astype(np.float32))
    return oracle.same_bits(out, expected) and bool(np.all(bits(out)[nan] == one_nan))


def test_this_machine_has_a_vector_kernel_and_the_scalar_one_is_last():
    assert TARGETS[-1] == "scalar"
    if platform.machine() in ("x86_64", "aarch64"):
        assert len(TARGETS) > 1


@targets
@dtypes
def test_every_16_bit_value_survives_the_round_trip(name, dtype):
    x = np.zeros((32, 128, 256), dtype)  # two windows of 16 tokens; their first tokens hold all values
    x[::16] = np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(2, 128, 256)
    w = np.zeros((16, 128), dtype)
    w[0] = 1
    with target(name):
        out = compress(x, w, 16, [32])
    with np.errstate(invalid="ignore"):
        assert has_contract_bits(out, x[::16] + np.zeros((), dtype))  # -0 + 0 is 0


@targets
@dtypes
@pytest.mark.parametrize("nudge", [-1, 0, 1])
def test_results_round_to_nearest_even_between_all_neighbours(name, dtype, nudge):
    """Value + half a unit in the last place + a nudge, for every finite positive value, subnormals too."""
    digits, smallest = {"float16": (11, -24), "bfloat16": (8, -133)}[dtype.name]
    values = np.arange(1 << 15, dtype=np.uint16).view(dtype).reshape(128, 256)
    values = np.where(np.isfinite(values.astype(np.float32)), values, dtype.type(0)).astype(dtype)
    _, exponent = np.frexp(values.astype(np.float64))
    ulp = np.where(values == 0, smallest, np.maximum(exponent - digits, smallest))
    x = np.zeros((16, 128, 256), dtype)
    w = np.zeros((16, 128), dtype)
    x[0], w[0] = values, 1
    # Factors that are in range themselves: half an ulp is 2^(ulp + 3) * 2^-4, the nudge a 64th of it.
    x[1] = np.ldexp(1.0, ulp + 3).astype(dtype)
    w[1] = 2.0**-4
    x[2] = nudge * np.ldexp(1.0, ulp + 3).astype(np.float64)
    w[2] = 2.0**-10
    with target(name):
        out = compress(x, w, 16, [16])
    assert has_contract_bits(out, oracle.compress_exact(x, w, 16, 16, [16]))
    if nudge:  # not a tie: the value itself, or the pattern after it
        assert np.array_equal(bits(out)[0], bits(values) + (nudge > 0))


@targets
@dtypes
@pytest.mark.parametrize(("block", "stride"), [(16, 16), (32, 16), (48, 32), (128, 16), (128, 112)])
def test_any_bit_pattern_gives_the_contracts_bits(name, dtype, block, stride):
    rng = np.random.default_rng(block + stride)
    x, w = random_bits(rng, (400, 3, 48), dtype), random_bits(rng, (block, 3), dtype)
    seq = [200, 210, 400]
    with target(name):
        out = compress(x, w, stride, seq)
    assert has_contract_bits(out, oracle.compress_exact(x, w, block, stride, seq))


@targets
def test_bfloat16_products_that_overflow_or_vanish_are_rounded_before_the_sum(name):
    """3e38 * 2 is infinite although the sum with -4e38 would not be; 1e-30 * 1e-15 is subnormal."""
    dtype = DTYPES[1]
    x = np.zeros((16, 1, 16), dtype)
    w = np.zeros((16, 1), dtype)
    x[0], w[0] = -2e38, 1
    x[1, :, :8], w[1] = 3e38, 2
    x[2, :, 8:], w[2] = 1e-30, 1.1e-15
    x[0, :, 8:] = 1e-38
    with target(name):
        out = compress(x, w, 16, [16])
    assert np.all(np.isinf(out[0, 0, :8].astype(np.float32)))
    assert has_contract_bits(out, oracle.compress_exact(x, w, 16, 16, [16]))


@targets
@pytest.mark.parametrize(
    ("tokens", "weights", "fused"),
    [
        # A tie of subnormals less 2^-149, plus 2^-150, which is 0 when rounded by itself: no tie. Fused, a tie.
        ([3 * 2.0**-130, -(2.0**-100), 2.0**-100], [2.0**-4, 2.0**-49, 2.0**-50], 2 * 2.0**-133),
        # 2^128 is infinite by itself. Fused, 2^128 - 1.5 * 2^127 is finite.
        ([-1.5 * 2.0**100, 2.0**100], [2.0**27, 2.0**28], 2.0**126),
        # A subnormal factor, of which the exponent says little.
        ([3 * 2.0**-130, -(2.0**-133), 2.0**-133], [2.0**-4, 2.0**-16, 2.0**-17], 2 * 2.0**-133),
    ],
    ids=["vanishes", "overflows", "subnormal"],
)
def test_many_windows_do_not_fuse_bfloat16_products_that_are_inexact(name, tokens, weights, fused):
    """Four windows at once are fused where a look at the exponents allows it: here it must not."""
    dtype = DTYPES[1]
    x, w = np.zeros((160, 1, 32), dtype), np.zeros((64, 1), dtype)
    x[48 : 48 + len(tokens), :, 16:] = np.array(tokens)[:, None, None]  # window 3, among zeros
    w[: len(weights), 0] = weights
    with target(name):
        out = compress(x, w, 16, [160])
    assert has_contract_bits(out, oracle.compress_exact(x, w, 64, 16, [160]))
    assert float(out[3, 0, 16]) != fused


@pytest.mark.parametrize(("block", "stride", "heads", "dim"), [(64, 16, 3, 48), (96, 32, 40, 112)])
@pytest.mark.parametrize("in_weight", [False, True], ids=["token", "weight"])
@pytest.mark.parametrize(
    ("weight", "first", "bad_token", "bad_weight", "fused"),
    [
        # Twice -1.5 * 2^126, which is exact, then 2^128.
        (2.0**28, [-1.5 * 2.0**98] * 2, (2.0**100, 2.0**28), (2.0**98, 2.0**30), 2.0**126),
        # 261 * 2^-133, which is exact and a tie, then 1.25 * 2^-149: 2^-149 by itself, too little for the sum.
        (29 * 2.0**-84, [9 * 2.0**-49], (1.25 * 2.0**-69, 2.0**-80), (1.25 * 2.0**-46, 2.0**-103), 262 * 2.0**-133),
    ],
    ids=["overflows", "vanishes"],
)
def test_one_inexact_bfloat16_product_is_seen_wherever_it_is(
    weight, first, bad_token, bad_weight, fused, in_weight, block, stride, heads, dim
):
    """One element among exact ones, in corners of a chunk and of the weights; also with chunks in parts."""
    dtype = DTYPES[1]
    overlapping = block // stride
    tokens, row = block + stride * (2 * overlapping + 1), overlapping
    start = row * stride
    for j, n, d in [(stride, 0, 0), (2 * stride - 1, heads - 1, dim - 1), (block - 1, heads - 1, 0)]:
        x, w = np.zeros((tokens, heads, dim), dtype), np.full((block, heads), weight, dtype)
        x[start : start + len(first)] = np.array(first)[:, None, None]
        (x[start + j, n, d], w[j, n]) = bad_weight if in_weight else bad_token
        expected = oracle.compress_exact(x, w, block, stride, [tokens])
        assert float(expected[row, n, d]) != fused
        for name in TARGETS:
            with target(name):
                assert has_contract_bits(compress(x, w, stride, [tokens]), expected), (name, j, n, d)


@dtypes
@settings(max_examples=40)
@given(data=st.data())
def test_compress_equals_the_oracle_on_every_target(dtype, data):
    block = 16 * data.draw(st.integers(1, 8), "block / 16")
    stride = 16 * data.draw(st.integers(1, block // 16), "stride / 16")
    heads, dim = data.draw(st.sampled_from([(1, 256), (2, 16), (3, 80), (5, 32), (128, 16)]), "N, D")
    short = st.integers(1, 40)
    lengths = data.draw(st.lists(short | st.just(block) | st.integers(1, 4 * block), min_size=1, max_size=5))
    seq = np.cumsum([lengths[0], *(n * data.draw(st.sampled_from([0, 1, 1])) for n in lengths[1:])]).tolist()
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, w = moderate(rng, (seq[-1], heads, dim), dtype), moderate(rng, (block, heads), dtype)
    expected = oracle.compress_exact(x, w, block, stride, seq)
    for name in TARGETS:
        with target(name):
            assert has_contract_bits(compress(x, w, stride, seq, threads=2), expected), name


@dtypes
@settings(max_examples=40)
@given(data=st.data())
def test_infer_equals_the_oracle_on_every_target(dtype, data):
    block = 16 * data.draw(st.integers(1, 7), "block / 16")
    stride = 16 * data.draw(st.integers(1, block // 16), "stride / 16")
    page = data.draw(st.sampled_from([64, 128]))
    heads, dim = data.draw(st.sampled_from([(1, 256), (2, 16), (3, 80), (63, 16)]), "N, D")
    batch, max_pages = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 4))
    block_num = batch * max_pages
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    table = rng.integers(0, block_num, (batch, max_pages)) if data.draw(st.booleans(), "table") else None
    windows = (max_pages * page - block) // stride
    lengths = [block + stride * data.draw(st.integers(0, windows)) for _ in range(batch)]
    lengths = [length - data.draw(st.sampled_from([0, 0, 1])) for length in lengths]
    x, w = moderate(rng, (block_num, page, heads, dim), dtype), moderate(rng, (block, heads), dtype)
    cache = moderate(rng, (batch + 3, heads, dim), dtype)
    slots = rng.permutation(batch + 3)[:batch]
    expected = oracle.infer_exact(x, w, slots, block, stride, page, table, lengths, cache)
    for name in TARGETS:
        with target(name):
            out = infer(x, w, slots, stride, table, lengths, cache, threads=2)
        assert has_contract_bits(out, expected), name


@targets
@dtypes
def test_a_window_over_three_pages_is_read_in_order(name, dtype):
    rng = np.random.default_rng(3)
    x, w = moderate(rng, (4, 64, 2, 32), dtype), moderate(rng, (112, 2), dtype)
    cache = np.zeros((1, 2, 32), dtype)
    length, table = 112 + 48, [[2, 0, 3]]  # tokens 48 .. 159: the end of page 2, page 0, half of page 3
    with target(name):
        out = infer(x, w, [0], 16, table, [length], cache)
    tokens = np.concatenate([x[2, 48:], x[0], x[3, :32]])
    assert oracle.same_bits(out, oracle.compress_exact(tokens, w, 112, 16, [112]))


@targets
@dtypes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_stay_in_their_window_head_and_channel(name, dtype, bad):
    rng = np.random.default_rng(4)
    x, w = moderate(rng, (160, 3, 32), dtype), np.ones((32, 3), dtype)
    x[70, 1, 5] = bad
    with target(name):
        out = compress(x, w, 16, [160]).astype(np.float32)
    touched = {(row, n, d) for row, n, d in np.argwhere(~np.isfinite(out)).tolist()}
    assert touched == {(3, 1, 5), (4, 1, 5)}  # windows of tokens 48 .. 79 and 64 .. 95
    assert np.array_equal(out[[3, 4], 1, 5], np.float32([bad, bad]), equal_nan=True)


@targets
@dtypes
@pytest.mark.parametrize("threads", [2, 5, 10**9])
def test_the_number_of_threads_does_not_change_a_bit(name, dtype, threads):
    rng = np.random.default_rng(5)
    x, w = moderate(rng, (10000, 4, 64), dtype), moderate(rng, (48, 4), dtype)  # 5 MB: enough for five
    seq = [700, 701, 2500, 10000]
    with target(name):
        assert np.array_equal(bits(compress(x, w, 16, seq)), bits(compress(x, w, 16, seq, threads)))


@dtypes
@pytest.mark.parametrize(("heads", "dim"), [(128, 16), (43, 48)])
def test_a_large_output_has_the_same_bits_wherever_it_lies(dtype, heads, dim):
    """Above 2 MiB an aligned output is written past the caches: nothing beside it is touched."""
    rng = np.random.default_rng(8)
    rows = (2 << 20) // (heads * dim * 2) + 1
    x, w = moderate(rng, (rows * 16, heads, dim), dtype), moderate(rng, (16, heads), dtype)
    with target("scalar"):
        expected = bits(compress(x, w, 16, [len(x)])).ravel()
    memory = np.empty(expected.nbytes + 128, np.uint8)
    for name in TARGETS:
        for offset in (32, 48):
            memory[:] = 0xA5
            at = (-memory.ctypes.data) % 64 + offset
            out = memory[at : at + expected.nbytes].view(dtype).reshape(rows, heads, dim)
            with target(name):
                prefill.kernel(dtype.name, buffer(x), buffer(w), 16, 16, np.array([len(x)]), buffer(out), 3)
            assert np.array_equal(bits(out).ravel(), expected), (name, offset)
            assert np.all(memory[:at] == 0xA5) and np.all(memory[at + expected.nbytes :] == 0xA5), (name, offset)


def test_all_targets_agree_on_decode_with_many_threads():
    rng = np.random.default_rng(6)
    batch = 40
    x, w = random_bits(rng, (batch, 64, 4, 64), DTYPES[0]), random_bits(rng, (32, 4), DTYPES[0])
    cache = random_bits(rng, (batch, 4, 64), DTYPES[0])
    arguments = (x, w, rng.permutation(batch), 16, None, [48] * batch, cache)
    expected = infer(*arguments)
    for name in TARGETS:
        with target(name):
            assert np.array_equal(bits(infer(*arguments, threads=5)), bits(expected)), name


@targets
def test_a_host_that_flushes_subnormals_gets_the_same_bits(name):
    import torch

    x = np.full((16, 1, 16), 2.0**-130, DTYPES[1])
    w = np.ones((16, 1), DTYPES[1])
    try:
        assert torch.set_flush_denormal(True)
        with target(name):
            out = compress(x, w, 16, [16])
        assert np.float32(1e-39) * np.float32(1) == 0  # the host's mode is back
    finally:
        torch.set_flush_denormal(False)
    assert np.all(out.astype(np.float64) == 2.0**-126)


@targets
def test_no_window_gives_no_row(name):
    with target(name):
        out = compress(np.ones((31, 2, 16), np.float16), np.ones((32, 2), np.float16), 16, [15, 31])
    assert out.shape == (0, 2, 16)


@pytest.mark.parametrize("wanted", [*TARGETS, "auto", "AVX2", "no such target", ""])
def test_the_environment_variable_chooses_a_target_or_leaves_the_best(wanted):
    code = "import nsa_onnx.runtime.native as n; print(n._library().nsa_cpu_target().decode())"
    environment = {**os.environ, "NSA_ONNX_CPU_TARGET": wanted}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    expected = wanted if wanted in TARGETS else TARGETS[0]
    assert (done.returncode, done.stdout, done.stderr) == (0, expected + "\n", "")


def test_an_unknown_target_is_refused_and_changes_nothing():
    import ctypes

    error = ctypes.create_string_buffer(200)
    with target("scalar"):
        assert LIBRARY.nsa_set_cpu_target(b"mmx", error, 200) == 1
        assert LIBRARY.nsa_cpu_target() == b"scalar"
    assert error.value.decode() == f"CPU target must be auto or one of {','.join(TARGETS)}, got mmx"
