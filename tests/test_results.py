"""What is said of results: numbers within float32's bounds pass, ranks that no float32 sum could give do not."""

import numpy as np
import pytest

from nsa_onnx.operators.results import Exact, Ranked

INF = np.inf
# Two rows of six candidates, of which the second has four. 0.5 and 0.5 + 2**-30 are closer than the slack.
SCORES = np.array([[0.1, 0.5, 0.5 + 2**-30, INF, 0.9, 0.2], [0.3, INF, 0.7, INF, -INF, -INF]])
SLACK = np.full(SCORES.shape, 2.0**-20)
RANKED = Ranked(SCORES, SLACK, 5)
RIGHT = [[3, 4, 2, 1, 5], [1, 3, 2, 0, -1]]


def judged(rows, ranked=RANKED):
    return ranked.judge("topk", np.array(rows, np.float64), "int32").problem


def test_the_reference_s_own_ranks():
    assert RANKED.values.tolist() == RIGHT
    assert judged(RIGHT) == ""


def test_either_of_two_near_scores_may_come_first():
    assert judged([[3, 4, 1, 2, 5], RIGHT[1]]) == ""
    cut = Ranked(SCORES[:1], SLACK[:1], 3)
    assert judged([[3, 4, 1]], cut) == judged([[3, 4, 2]], cut) == ""


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1, 3, 2, 0, 4], r"topk[1, 4] is 4, but this row has only 4 indices: the rest is -1; 1 of 2 rows are off"),
        ([1, 3, 2, -1, -1], "topk[1, 3] is -1, which is no index of this row; the float64 reference says 0"),
        ([1, 3, 5, 0, -1], "topk[1, 2] is 5, which is no index of this row"),
        ([1, 3, 99, 0, -1], "topk[1, 2] is 99, which is no index of this row"),
        ([1, 3, np.nan, 0, -1], "topk[1, 2] is nan, which is no index of this row"),
        ([1, 3, 2.5, 0, -1], "topk[1, 2] is 2.5, which is no index of this row"),
        ([1, 3, 2, 2, -1], "topk[1, 3] is 2, which stands in this row twice"),
        ([3, 1, 2, 0, -1], "topk[1, 0] is 3, but 1 is certainly selected and comes here"),
        ([1, 3, 0, 2, -1], "topk[1, 3] is 2, whose score is certainly higher than one before it"),
    ],
)
def test_wrong_ranks_are_named(row, words):
    assert judged([RIGHT[0], row]).startswith(words)


def test_a_wide_score_between_two_hides_no_wrong_order():
    ranked = Ranked(np.array([[0.1, 0.5, 0.9]]), np.array([[0.0, 1.0, 0.0]]), 3)
    assert judged([[2, 1, 0]], ranked) == judged([[1, 2, 0]], ranked) == judged([[2, 0, 1]], ranked) == ""
    assert "2, whose score is certainly higher" in judged([[0, 1, 2]], ranked)


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
