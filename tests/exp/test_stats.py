import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhalluc.exp.stats import difference, interval, resampled_means

matrices = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1)).map(
    lambda shape: (np.random.default_rng(shape[2]).random(shape[:2]) < 0.6).astype(float)
)


def all_resamples(matrix):
    """Every equally likely resample's mean, by brute force: rows and columns drawn with replacement."""
    n_seeds, n_problems = matrix.shape
    return [
        matrix[np.ix_(seeds, problems)].mean()
        for seeds in itertools.product(range(n_seeds), repeat=n_seeds)
        for problems in itertools.product(range(n_problems), repeat=n_problems)
    ]


@pytest.mark.parametrize("matrix", [[[0, 1]], [[0, 1, 1]], [[1, 0], [0, 0]], [[1, 0, 1], [0, 1, 1]]])
def test_resamples_have_the_exact_distribution(matrix):
    matrix = np.array(matrix, float)
    drawn = np.round(resampled_means(matrix, 40_000), 9)
    values, counts = np.unique(np.round(all_resamples(matrix), 9), return_counts=True)
    assert set(drawn) <= set(values)
    for value, share in zip(values, counts / counts.sum(), strict=True):
        assert abs(np.mean(drawn == value) - share) < 0.012  # 4.8 standard errors at worst


def test_one_problem_of_two_right_by_hand():
    # Means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: 2.5% and 97.5% fall on the ends.
    assert interval([[0, 1]]) == (0.5, 0.0, 1.0)


def test_what_every_seed_and_problem_shares_has_no_spread():
    assert difference([[1, 1], [1, 1]], [[0, 0], [0, 0]]) == (1.0, 1.0, 1.0)


def test_pairing_takes_out_what_is_hard_for_both():
    rng = np.random.default_rng(0)
    easy = (rng.random((1, 400)) < 0.5).repeat(3, axis=0).astype(float)
    better = np.maximum(easy, rng.random((3, 400)) < 0.1)
    gain = difference(better, easy)
    alone = interval(better)
    assert gain.low > 0 and gain.high - gain.low < (alone.high - alone.low) / 2


@given(matrices)
def test_interval_holds_the_mean_and_turns_with_its_sign(matrix):
    found, turned = interval(matrix, 300), interval(-matrix, 300)
    assert found.mean == pytest.approx(matrix.mean())
    assert matrix.min() <= found.low <= found.high <= matrix.max()
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))


@given(matrices, st.integers(0, 2**32 - 1))
def test_difference_is_the_interval_of_the_differences(matrix, seed):
    other = (np.random.default_rng(seed).random(matrix.shape) < 0.4).astype(float)
    assert difference(matrix, other, 200) == interval(matrix - other, 200)
    assert difference(matrix, matrix, 200) == (0, 0, 0)


def test_chunks_leave_no_resample_out():
    means = resampled_means(np.ones((2, 3)), 1000)
    assert means.shape == (1000,) and (means == 1).all()


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.2), (5, 0.2)])
def test_coverage_on_simulated_accuracies(seeds, spread):
    """The interval of a paired difference holds the true one about 95 times of 100."""
    rng, hits, runs = np.random.default_rng(1), 0, 200

    def simulate(n_seeds, n_problems):
        hard = rng.normal(0, 2, n_problems)
        arms = (
            centre + hard + rng.normal(0, spread, (n_seeds, 1)) + rng.normal(0, 1, (n_seeds, n_problems))
            for centre in (1.5, 0.7)
        )
        return [(rng.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(float) for logit in arms]

    true_gain = np.subtract(*simulate(2000, 1000)).mean()
    for _ in range(runs):
        found = difference(*simulate(seeds, 300), 300)
        hits += found.low <= true_gain <= found.high
    assert 0.90 <= hits / runs <= 1.0


@pytest.mark.parametrize("matrix", [[], [[]], [1, 0], np.ones((1, 1, 1))])
def test_a_matrix_without_values_is_refused(matrix):
    with pytest.raises(ValueError, match="expected \\(seeds, problems\\)"):
        interval(matrix)


def test_arms_of_other_shape_are_not_compared():
    with pytest.raises(ValueError, match="paired"):
        difference(np.ones((2, 3)), np.ones((1, 3)))
