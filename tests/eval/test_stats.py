"""Intervals: by hand where that is possible, by simulation where it is not (law 12)."""

import runpy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.eval.stats import Estimate, difference, holm, mean, paired, wilson
from llmhalluc.extras.constant import REPOSITORY

COVERAGE = runpy.run_path(str(REPOSITORY / "benchmarks" / "coverage.py"))

matrices = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1)).map(
    lambda shape: (np.random.default_rng(shape[2]).random(shape[:2]) < 0.6).astype(float)
)


def test_one_model_has_wilsons_interval():
    # R: prop.test(right, n, correct = FALSE)
    assert mean([[1] * 20])[:3] == pytest.approx((1.0, 0.8388748, 1.0), abs=1e-6)
    assert mean([[0, 1]])[:3] == pytest.approx((0.5, 0.0945312, 0.9054688), abs=1e-6)
    assert wilson(0, 4)[:3] == pytest.approx((0.0, 0.0, 0.4898908), abs=1e-6)


def test_few_problems_make_no_victory():
    three_of_five = difference([[1, 1, 1, 0, 0]], [[0, 0, 0, 0, 0]])
    assert three_of_five.mean == 0.6 and three_of_five.low < 0 < three_of_five.high and three_of_five.p > 0.05
    nothing = difference([[0, 0, 0, 0]], [[0, 0, 0, 0]])
    assert nothing.mean == 0 and nothing.low < -0.3 and nothing.high > 0.3
    assert paired(4, 0, 20).low < 0.05 and paired(15, 5, 100).p < 0.05 < paired(12, 6, 100).p
    for seeds in (2, 3):
        alike = difference(np.ones((seeds, 20)), np.ones((seeds, 20)))
        assert alike.low < 0 < alike.high and mean(np.ones((seeds, 20))).low < 1


@given(matrices)
def test_an_interval_holds_the_mean_and_stays_where_scores_are(matrix):
    found = mean(matrix)
    assert found.mean == pytest.approx(matrix.mean()) and 0 <= found.low <= found.mean <= found.high <= 1


@given(matrices, st.integers(0, 2**32 - 1))
def test_a_difference_turns_with_its_sign(matrix, seed):
    other = (np.random.default_rng(seed).random(matrix.shape) < 0.4).astype(float)
    found, turned = difference(matrix, other), difference(other, matrix)
    assert turned == pytest.approx((-found.mean, -found.high, -found.low, found.p))
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0) or abs(found.low * found.high) < 1e-6


def test_pairing_takes_out_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    easy = (rng.random((1, 400)) < 0.5).repeat(3, axis=0).astype(float)
    better = np.maximum(easy, rng.random((3, 400)) < 0.1)
    assert difference(better, easy).mean == pytest.approx((better - easy).mean())
    assert difference(better, easy).p < mean(better - easy + 0.5).p or difference(better, easy).low > 0 - 0.2


def test_other_values_have_t_intervals():
    found = mean([[1.0, 2.0, 3.0, 6.0]])
    assert found[:3] == pytest.approx((3.0, -0.437435, 6.437435), abs=1e-5)  # 3 ± 3.182446 · 1.080123
    both = mean([[1.5, 2.5, 3.5], [1.7, 2.2, 3.9]])
    assert both.low < both.mean < both.high
    assert mean([[7.5]])[:3] == (7.5, 7.5, 7.5)


def test_a_mean_of_one_seed_has_its_p_value():
    found = mean([[1.5, 2.0, 2.5, 1.0]])
    x = 1.75 / (np.std([1.5, 2.0, 2.5, 1.0], ddof=1) / 2) / 3**0.5  # t with three degrees of freedom in closed form
    assert found.p == pytest.approx(1 - 2 / np.pi * (np.arctan(x) + x / (1 + x * x)))
    assert mean([[0.5]]).p == 0 and mean([[0.5, 0.5]])[:3] == (0.5, 0.5, 0.5)
    assert difference([[2.5, 2.5]], [[2.5, 2.5]]).p == 1


def test_holm_asks_more_of_several_arms():
    assert holm([0.04]) == [True] and holm([0.04, 0.04]) == [False, False]
    assert holm([0.01, 0.04, 0.03]) == [True, False, False] and holm([0.001, 0.02, 0.04]) == [True, True, True]
    assert holm([]) == [] and holm([0.9, 0.001]) == [False, True]


@pytest.mark.parametrize("matrix", [[], [[]], [1, 2], [[[1]]]])
def test_a_matrix_of_another_shape_is_refused(matrix):
    with pytest.raises(ValueError, match="expected"):
        mean(matrix)
    with pytest.raises(ValueError):
        difference([[1, 0]], [[1]])


def test_an_estimate_is_what_its_fields_say():
    assert Estimate(0.5, 0.1, 0.9).p == 1.0


@pytest.mark.parametrize(
    ("n", "seeds", "spread"),
    [(10, 2, 0.6), (50, 1, 0.3), (100, 2, 0.0), (400, 3, 0.3), (400, 10, 0.6), (1000, 2, 0.6)],
)
def test_law12_intervals_cover(n, seeds, spread):
    for share in (0.03, 0.5):
        found = COVERAGE["cover"](n, share, seeds, spread, runs=1200, seed=1)
        assert found.accuracy >= 0.91 and found.difference >= 0.91, (share, found)  # 93% less three standard errors


def test_the_whole_grid_is_that_of_the_law():
    grid = COVERAGE["GRID"]
    assert grid["n"] == (10, 20, 50, 100, 400, 1000) and grid["seeds"][-1] == 10 and grid["spread"][-1] == 0.6
