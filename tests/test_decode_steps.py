"""Decode steps of several tokens: the recipe in docs/export.md writes every window once, as the reference does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import oracle
import pytest

import nsa_onnx

DOCUMENT = Path(__file__).parents[1] / "docs" / "export.md"
BLOCK, STRIDE, PAGE, HEADS, DIM, SEQUENCES = 32, 16, 64, 2, 16, 3


@pytest.fixture(scope="module")
def recipe():
    (code,) = re.findall(r"```python\n(def window_ends.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def pages():
    generator = np.random.default_rng(0)
    tokens = generator.standard_normal((SEQUENCES * 4, PAGE, HEADS, DIM)).astype(np.float16)
    table = generator.permutation(SEQUENCES * 4).reshape(SEQUENCES, 4).astype(np.int32)
    return tokens, generator.random((BLOCK, HEADS)).astype(np.float16), table


@pytest.mark.parametrize(("block", "stride"), [(32, 16), (32, 32), (16, 16), (64, 16), (112, 48)])
def test_window_ends_are_the_lengths_that_write(recipe, block, stride):
    for before in range(0, 230, 7):
        for after in range(before, 240, 5):
            wanted = [n for n in range(before + 1, after + 1) if n >= block and (n - block) % stride == 0]
            assert list(recipe["window_ends"](before, after, block, stride)) == wanted


@pytest.mark.parametrize("steps", [[256], [31, 1, 1, 47, 64], [100, 3, 130], [16] * 16])
def test_steps_of_several_tokens_write_what_single_tokens_do(recipe, pages, steps):
    tokens, weight, table = pages
    slots_each = (4 * PAGE - BLOCK) // STRIDE + 1

    def slot_of(b, end):
        return b * slots_each + (end - BLOCK) // STRIDE

    def run(lengths, slots, cache):
        return nsa_onnx.nsa_compress_infer(
            *(tokens, weight, np.array(slots, np.int32), BLOCK, STRIDE, PAGE),
            block_table=table,
            actual_seq_len=lengths,
            cache=cache.copy(),
        )

    cache = np.zeros((SEQUENCES * slots_each, HEADS, DIM), np.float16)
    wanted, jumped = cache.copy(), cache.copy()
    before = [0, 5, 40]  # three sequences that are not at the same place
    for step in steps:
        after = [min(4 * PAGE, length + step) for length in before]
        cache = recipe["decode"](run, cache, before, after, BLOCK, STRIDE, slot_of)
        jumped = run(after, [slot_of(b, max(BLOCK, end)) for b, end in enumerate(after)], jumped)
        for b in range(SEQUENCES):  # token by token, the oracle
            for end in range(before[b] + 1, after[b] + 1):
                lengths = [end if other == b else 0 for other in range(SEQUENCES)]
                slots = [slot_of(b, max(BLOCK, end))] * SEQUENCES
                arguments = (tokens, weight, slots, BLOCK, STRIDE, PAGE, table, lengths)
                wanted = oracle.infer_exact(*arguments, wanted)
        before = after
    assert oracle.same_bits(cache, wanted)
    assert not oracle.same_bits(jumped, wanted)  # one call a step jumps over windows
