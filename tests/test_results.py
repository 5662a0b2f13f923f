"""What is said of results: numbers within float32's bounds pass, ranks that no float32 sum could give do not."""

import math

import ml_dtypes
import numpy as np
import pytest

from nsa_onnx.graph.tensors import TensorFacts
from nsa_onnx.operators.attention_reference import Chances, block_scores, softmax
from nsa_onnx.operators.attention_sampling import Heads
from nsa_onnx.operators.facts import NodeFacts
from nsa_onnx.operators.numbers import gamma, rounded, ulps
from nsa_onnx.operators.results import Exact, Ranked
from nsa_onnx.operators.sampling import MAX_ELEMENTS
from nsa_onnx.operators.selected import attended, heads_of, rows_run, some_blocks, tokens_of

INF = np.inf
# Two rows of six candidates, of which the second has four. 0.5 and 0.5 + 2**-30 are closer than the slack.
SCORES = np.array([[0.1, 0.5, 0.5 + 2**-30, INF, 0.9, 0.2], [0.3, INF, 0.7, INF, -INF, -INF]])
SLACK = np.full(SCORES.shape, 2.0**-20)
RANKED = Ranked(SCORES, SLACK, 5)
RIGHT = [[3, 4, 2, 1, 5], [1, 3, 2, 0, -1]]


# The same three times.
STACKED = Ranked(np.stack([SCORES] * 3), np.stack([SLACK] * 3), 5)


def judged(rows, ranked=RANKED):
    verdict = ranked.judge("topk", np.array(rows, np.float64), "int32")
    assert verdict.ulps == 0
    return verdict.problem


def test_the_reference_s_own_ranks():
    for ranked, right in ((RANKED, RIGHT), (STACKED, [RIGHT] * 3)):
        assert ranked.values.tolist() == right
        assert judged(right, ranked) == ""
    more = Ranked(SCORES, SLACK, 8)
    assert more.values.tolist() == [[3, 4, 2, 1, 5, 0, -1, -1], [1, 3, 2, 0, -1, -1, -1, -1]]
    assert judged(more.values, more) == ""


def test_either_of_two_near_scores_may_come_first():
    assert judged([[3, 4, 1, 2, 5], RIGHT[1]]) == ""
    cut = Ranked(SCORES[:1], SLACK[:1], 3)
    assert judged([[3, 4, 1]], cut) == judged([[3, 4, 2]], cut) == ""


REFERENCE = "; the float64 reference says "


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1, 3, 2, 0, 4], "4] is 4, but this row has only 4 indices: the rest is -1"),
        ([1, 3, 2, 0, -2], "4] is -2, but this row has only 4 indices: the rest is -1"),
        ([1, 3, 2, -1, -1], f"3] is -1, which is no index of this row{REFERENCE}0"),
        ([1, 3, 5, 0, -1], f"2] is 5, which is no index of this row{REFERENCE}2"),
        ([1, 3, 6, 0, -1], f"2] is 6, which is no index of this row{REFERENCE}2"),
        ([1, 99, 2, 0, -1], f"1] is 99, which is no index of this row{REFERENCE}3"),
        ([1, 3, np.nan, 0, -1], f"2] is nan, which is no index of this row{REFERENCE}2"),
        ([1, 3, 2.5, 0, -1], f"2] is 2.5, which is no index of this row{REFERENCE}2"),
        ([1, 3, 2, 2, -1], "3] is 2, which stands in this row twice"),
        ([0, 3, 2, 0, -1], "3] is 0, which stands in this row twice"),
        ([3, 1, 2, 0, -1], "0] is 3, but 1 is certainly selected and comes here"),
        ([0, 3, 2, 1, -1], "0] is 0, but 1 is certainly selected and comes here"),
        ([1, 3, 0, 2, -1], f"3] is 2, whose score is certainly higher than one before it{REFERENCE}0"),
    ],
)
def test_wrong_ranks_are_named(row, words):
    assert judged([RIGHT, [RIGHT[0], row], RIGHT], STACKED) == f"topk[1, 1, {words}; 1 of 6 rows are off"


def test_the_last_candidate_is_not_taken_for_none():
    assert judged([[-1, 4, 2, 1, 5], RIGHT[1]]).startswith("topk[0, 0] is -1, which is no index of this row")
    one = Ranked(np.array([[0.5]]), np.zeros((1, 1)), 1)
    assert judged([[0]], one) == ""
    assert judged([[1]], one) == f"topk[0, 0] is 1, which is no index of this row{REFERENCE}0; 1 of 1 rows are off"


def test_scores_whose_bounds_touch_may_come_in_any_order():
    scores, slack = np.array([[1.0, 2.0, 5.0]]), np.array([[0.5, 0.5, 0.5]])
    assert judged([[2, 0]], Ranked(scores, slack, 2)) == ""
    assert judged([[2, 0, 1]], Ranked(scores, slack, 3)) == ""
    apart = np.array([[1.0, 2 + 2.0**-40, 5.0]])
    assert judged([[2, 0]], Ranked(apart, slack, 2)) == (
        f"topk[0, 1] is 0, whose score is certainly lower than one that is left out{REFERENCE}1; 1 of 1 rows are off"
    )
    assert "1, whose score is certainly higher" in judged([[2, 0, 1]], Ranked(apart, slack, 3))


def test_a_wide_score_between_two_hides_no_wrong_order():
    ranked = Ranked(np.array([[[0.1, 0.5, 0.9]]]), np.array([[[0.0, 1.0, 0.0]]]), 3)
    assert judged([[[2, 1, 0]]], ranked) == judged([[[1, 2, 0]]], ranked) == judged([[[2, 0, 1]]], ranked) == ""
    assert "2, whose score is certainly higher" in judged([[[0, 1, 2]]], ranked)


def test_a_better_one_that_is_left_out():
    cut = Ranked(SCORES[:1], SLACK[:1], 4)
    assert judged([[3, 4, 2, 1]], cut) == ""
    assert judged([[3, 4, 2, 5]], cut).startswith("topk[0, 3] is 5, whose score is certainly lower than one that is")
    assert judged([[3, 2, 1, 5]], cut) != ""


def test_rows_without_candidates_and_results_without_rows():
    none = Ranked(np.zeros((2, 3, 0)), np.zeros((2, 3, 0)), 2)
    assert judged(np.full((2, 3, 2), -1), none) == ""
    assert judged(np.zeros((2, 3, 2)), none).startswith("topk[0, 0, 0] is 0, but this row has only 0 indices")
    assert judged(np.zeros((0, 3, 2)), Ranked(np.zeros((0, 3, 4)), np.zeros((0, 3, 4)), 2)) == ""


def test_a_wrong_shape_is_told_of_both_kinds():
    for wanted in (RANKED, Exact(np.zeros((2, 5)), np.zeros((2, 5)))):
        verdict = wanted.judge("topk", np.zeros((2, 4)), "int32")
        assert (verdict.ulps, verdict.problem) == (None, "the result has shape [2, 4], expected [2, 5]")
        assert "shape [2, 6], expected [2, 5]" in wanted.judge("topk", np.zeros((2, 6)), "int32").problem


@pytest.mark.parametrize(
    ("dtype", "values", "slack", "got", "ulps", "problem"),
    [
        ("float16", [1.0, 2.0], [0.0, 0.0], [1.0, 2.0], 0, ""),
        ("float16", [], [], [], 0, ""),
        ("float16", [1.0, 2.0], [2.0**-10, 0.25], [1 + 2.0**-10, 1.75], 256, ""),
        ("float16", [1.0, 2.0], [2.0**-10, 0.25], [1 - 2.0**-10, 2.25], 128, ""),
        (
            "float16",
            [8.0, 1.0, 2.0, 4.0],
            [1.0, 0.0, 2.0**-9, 0.0],
            [9.0, 1 - 2.0**-11, 2 + 2.0**-8, 4.0],
            128,
            "y[2] is 2.00391, the float64 reference says 2 and float32 sums may give 1.99805 to 2.00195; "
            "2 of 4 elements are off, by up to 128 ulp",
        ),
        (
            "bfloat16",
            [1.0],
            [0.0],
            [np.nan],
            2**16,
            "y[0] is nan, the float64 reference says 1 and float32 sums may give 1 to 1; "
            "1 of 1 elements are off, by up to 65536 ulp",
        ),
        (
            "int32",
            [5.0, 7.0, 7.0],
            [0.0, 0.0, 0.0],
            [5.0, 8.0, 4.0],
            3,
            "y[2] is 4, the float64 reference says 7; 2 of 3 elements are off, by up to 3",
        ),
    ],
)
def test_numbers_may_be_off_by_the_slack_and_no_more(dtype, values, slack, got, ulps, problem):
    verdict = Exact(np.array(values), np.array(slack)).judge("y", np.array(got), dtype)
    assert (verdict.ulps, verdict.problem) == (ulps, problem)


# --------------------------------------------------------------------------------------------------
# The bounds of attention, number by number as attention_reference.py derives them

UNIT, TINY, EXP = 2.0**-24, 2.0**-125, 2.0**-21


def error_of(terms):
    return terms * UNIT / (1 - terms * UNIT)


def chance(products, sizes, dim, scale, hidden):
    """One row of `softmax`: probabilities and bounds."""
    factor = float(np.float32(scale))
    pairs = list(zip(products, hidden, strict=True))
    logits = [float(np.finfo(np.float32).min) if unseen else product * factor for product, unseen in pairs]
    numbers = [math.exp(logit - max(logits)) for logit in logits]
    chances = [number / math.fsum(numbers) for number in numbers]
    off = []
    for logit, size, unseen in zip(logits, sizes, hidden, strict=True):
        delta = error_of(dim + 3) * abs(factor) * size + 3 * UNIT * (abs(logit) + abs(max(logits)))
        off.append(0.0 if unseen else INF if delta > 700 else math.expm1(delta) * (1 + EXP) + EXP)
    pairs = list(zip(chances, off, strict=True))
    left = 1 - error_of(len(products)) - sum(p * error for p, error in pairs if p)
    slack = []
    for (p, error), unseen in zip(pairs, hidden, strict=True):
        relative = (1 + error) * (1 + 2 * UNIT) / left - 1 if left > 0 else INF
        slack.append(min(1, (p * relative if p else 0) + (0 if unseen else TINY)))
    return chances, slack


ROWS = [
    # products, sizes, scale, hidden
    ([1.0, -2.0, 0.5], [3.0, 2.0, 4.0], 0.1, [False] * 3),
    ([1.0, -2.0, 0.5], [3.0, 2.0, 4.0], -0.7, [False, True, False]),
    ([1.0, -2.0, 0.5], [3.0, 2.0, 4.0], 0.1, [True] * 3),
    ([1.0, -2000.0, 0.5], [3.0, 2000.0, 4.0], 1.0, [False] * 3),
    ([5e4, 5e4, 4e4], [2e4, 2e4, 2e4], 1.0, [False] * 3),
    ([1e6, 1e6 - 600, 1e6 - 1000], [3e6, 3e6, 3e6], 1.0, [False] * 3),
    ([1e6, 0.0, 0.0], [3e6, 3e6, 9e10], 1.0, [False] * 3),
]


@pytest.mark.parametrize(("products", "sizes", "scale", "hidden"), ROWS)
def test_the_bound_of_a_probability(products, sizes, scale, hidden):
    rows = [np.array([[one, one]]) for one in (products, sizes, hidden)]
    got = softmax(rows[0], rows[1], 16, scale, rows[2])
    values, slack = chance(products, sizes, 16, scale, hidden)
    for row in range(2):
        assert got.values[0, row] == pytest.approx(values, rel=1e-12, abs=0)
        assert got.slack[0, row] == pytest.approx(slack, rel=1e-7, abs=0)
    if not any(hidden):
        assert np.array_equal(softmax(rows[0], rows[1], 16, scale).slack, got.slack)


def test_the_bounds_of_what_probabilities_weigh():
    generator = np.random.default_rng(0)
    chances = Chances(generator.random((2, 4, 5)), generator.random((2, 4, 5)) * 2.0**-20)  # group, rows, tokens
    values = generator.standard_normal((5, 3))
    got = chances.weighted(values)
    slack = chances.slack @ np.abs(values)
    wanted = slack + error_of(7) * (chances.values @ np.abs(values) + slack)
    assert np.allclose(got.values, chances.values @ values, rtol=1e-12, atol=0)
    assert np.allclose(got.slack, wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("window", [3, 4])
def test_the_bounds_of_scores_of_blocks(window):
    generator = np.random.default_rng(0)
    chances = Chances(generator.random((2, 4, 5)), generator.random((2, 4, 5)) * 2.0**-20)  # group, rows, tokens
    sums, slack = np.zeros((2, 4, 3))
    for s in range(3):
        for i in range(1 + window):  # blocks of 2 strides
            if 0 <= (token := 2 * (s + 1) - i) < 5:
                weight = min(i + 1, 2, 1 + window - i)
                sums[:, s] += weight * chances.values[:, :, token].sum(0)
                slack[:, s] += weight * chances.slack[:, :, token].sum(0)
    scores = block_scores(chances, 3, 2, window)
    assert np.allclose(scores.values, sums, rtol=1e-12, atol=0)
    wanted = slack + error_of(2 * (2 + window) + 2) * (sums + slack)
    assert np.allclose(scores.slack, wanted, rtol=1e-9, atol=0)


# --------------------------------------------------------------------------------------------------
# Selected blocks: their tokens, and samples of them


def test_a_row_attends_to_the_tokens_of_its_blocks():
    tokens = tokens_of(np.array([2, -1, 0, 0]), 35, 16)
    assert tokens.tolist() == [32, 33, 34, *range(16), *range(16)]
    assert tokens_of(np.array([-1]), 35, 16).tolist() == []
    generator = np.random.default_rng(0)
    query, key, value = (generator.standard_normal(shape) for shape in ((3, 8), (5, 8), (5, 4)))
    hidden = np.array([False, True, False, False, True])
    got = attended(query, key, value, {"scale_value": 0.3}, hidden)
    chances = softmax(query @ key.T, np.abs(query) @ np.abs(key).T, 8, 0.3, np.array([hidden] * 3))
    wanted = chances.weighted(value)
    assert np.array_equal(got.values, wanted.values) and np.array_equal(got.slack, wanted.slack)
    nothing = attended(query, key[:0], value[:0], {"scale_value": 0.3}, hidden[:0])
    assert np.array_equal(nothing.values, np.zeros((3, 4))) and not nothing.slack.any()


def test_samples_of_blocks_are_as_many_and_as_large_as_is_run():
    sizes = {"head_num": 4, "select_block_size": 64, "select_block_count": 16}
    assert rows_run(sizes, Heads(4, 2, 32, 16)) == 2**31 // (4 * 48 * 64 * 16) == 10922
    assert (
        rows_run(sizes | {"select_block_size": 1, "select_block_count": 1}, Heads(4, 2, 32, 16)) == MAX_ELEMENTS // 192
    )
    assert rows_run({"select_block_size": 128, "select_block_count": 128}, Heads(2**11, 16, 512, 512)) == 1
    told = NodeFacts("", {}, {"topk_indices": TensorFacts("int32", (None, 4, 8)), "key": TensorFacts(None, (9, 1, 32))})
    assert heads_of(told, sizes).kv == 4
    assert heads_of(NodeFacts("", {}, {"key": told.inputs["key"]}), sizes).kv == 1


def test_samples_of_blocks_are_any_and_first_the_row_s_own():
    lengths, own = np.repeat([0, 40, 100], 200), np.tile([0, 17, 99, 15], 150)
    topk = some_blocks(lengths, own, 2, {"select_block_size": 16, "select_block_count": 4})
    assert topk.shape == (600, 2, 4) and topk.dtype == np.int64
    for length, last in ((0, -1), (40, 2), (100, 6)):
        rows = lengths == length
        assert np.unique(topk[rows][:, :, 1:]).tolist() == list(range(-1, last + 1))
        assert (topk[rows][:, :, 0] == np.minimum(own[rows] // 16, last)[:, None]).all()


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(np.float16, np.arange(0x7C00)), (ml_dtypes.bfloat16, np.arange(0x80, 0x7F80))],  # bfloat16's normal ones
    ids=["float16", "bfloat16"],
)
def test_numbers_between_two_are_rounded_to_the_nearest_or_even_one(dtype, bits):
    name = np.dtype(dtype).name
    low, high = (patterns.astype(np.uint16).view(dtype).astype(np.float64) for patterns in (bits, bits + 1))
    middle = low + np.append(np.diff(low), low[-1] - low[-2]) / 2
    for sign in (1, -1):
        given = sign * np.stack([low, np.nextafter(middle, 0), middle, np.nextafter(middle, np.inf)])
        assert np.array_equal(rounded(given, name), sign * np.stack([low, low, np.where(bits % 2, high, low), high]))
        assert set(ulps(sign * low[:-1], sign * high[:-1], name)) == {1}
    assert np.array_equal(ulps(low, -low, name), 2 * bits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_nan_is_far_from_numbers(dtype):
    numbers, others = np.array([0.0, np.nan, 1.0, np.nan, INF]), np.array([-0.0, np.nan, np.nan, -1.0, INF])
    assert ulps(numbers, others, dtype).tolist() == [0, 0, 65536, 65536, 0]


def test_integers_are_numbers_already():
    integers = np.array([2049.0, -3.0])
    assert rounded(integers, "int32").tolist() == [2049, -3]
    assert ulps(integers, np.array([2047.0, 4.0]), "int32").tolist() == [2, 7]


def test_the_bound_of_a_long_sum():
    assert gamma(1) == 1 / (2**24 - 1)
    assert gamma(2**20) == 1 / 15
