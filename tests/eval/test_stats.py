"""Intervals: by hand where that is possible, by simulation where it is not (law 12)."""

import math
import runpy
from statistics import fmean, variance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from llmhalluc.eval.stats import (
    Estimate,
    accuracy,
    clustered,
    clustered_difference,
    clustered_share,
    difference,
    holm,
    independent,
    mean,
    paired,
    wilson,
)
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


def test_accuracy_has_its_error_and_interval_and_nothing_without_scores():
    keys = ("accuracy", "accuracy_stderr", "accuracy_low", "accuracy_high")
    assert accuracy([]) == dict.fromkeys(keys)
    found = accuracy([1, 1, 0, 1])
    assert tuple(found) == keys
    assert tuple(found.values()) == pytest.approx((0.75, 0.25, wilson(3, 4).low, wilson(3, 4).high))
    assert accuracy([1])["accuracy_stderr"] is None


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


@pytest.mark.parametrize("problems", [10, 20, 50])
@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_law12_the_interval_of_clustered_means_covers(problems, draw):
    rng, hits, runs = np.random.default_rng(problems), 0, 200
    for seed in range(runs):
        effects = rng.normal(size=problems) if draw == "normal" else rng.exponential(size=problems) - 1
        sizes = rng.integers(1, 4, size=problems)
        values = np.repeat(effects, sizes) + rng.normal(size=sizes.sum()) * 0.3
        (found,) = clustered(values[:, None], np.repeat(np.arange(problems), sizes), draws=1000, seed=seed)
        hits += found.low <= 0 <= found.high
    assert hits >= 0.89 * runs  # 93% less what 200 runs leave to chance


@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
@pytest.mark.parametrize("alike", [0.01, 0.5, 0.95])
def test_law12_the_interval_of_a_clustered_share_covers(share, alike):
    rng, hits, runs = np.random.default_rng(1), 0, 300
    a, b = share * (1 - alike) / alike, (1 - share) * (1 - alike) / alike
    for _ in range(runs):
        scores = rng.random((24, 2)) < rng.beta(a, b, size=(24, 1))
        found = clustered_share(scores.ravel(), np.repeat(np.arange(24), 2))
        hits += found.low <= share <= found.high
    assert hits >= 0.9 * runs


def slow_clustered(values, clusters, draws, seed):
    """The bootstrap-t by loops: one column, clusters in the order of their names."""
    names = sorted({str(cluster) for cluster in clusters})
    by_name = [[v for v, cluster in zip(values, clusters, strict=True) if str(cluster) == name] for name in names]
    means = [sum(own) / len(own) for own in by_name]
    n, center = len(means), sum(means) / len(means)
    error = math.sqrt(sum((m - center) ** 2 for m in means) / (n - 1) / n)
    ratios = []
    for count in np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=draws):
        drawn = [m for m, times in zip(means, count, strict=True) for _ in range(times)]
        mean_of, spread = sum(drawn) / n, 0.0
        spread = math.sqrt(sum((m - mean_of) ** 2 for m in drawn) / n / (n - 1))
        ratios.append((mean_of - center) / spread if spread > 1e-9 else math.inf)
    lowest = sorted(-math.inf if math.isinf(r) else r for r in ratios)[int(0.025 * (draws - 1))]
    highest = sorted(ratios)[math.ceil(0.975 * (draws - 1))]
    p = (1 + sum(abs(r) >= abs(center) / error for r in ratios)) / (draws + 1)
    return center, center - highest * error, center - lowest * error, p


def test_clustered_means_equal_a_slow_reference():
    rng = np.random.default_rng(5)
    clusters = [10, 9, 2, 2, 11, 11, 11, 3, 5, 7, 2]
    first, second = rng.normal(1, 1, len(clusters)), rng.normal(0.2, 3, len(clusters))
    found = clustered(np.stack([np.full(len(clusters), 2.5), first, second], 1), clusters, draws=300, seed=4)
    assert found[0] == Estimate(2.5, 2.5, 2.5, 0.0)
    for estimate, values in ((found[1], first), (found[2], second)):
        assert estimate == pytest.approx(slow_clustered(values, clusters, 300, 4), rel=1e-9)
    assert found == clustered(np.stack([np.full(len(clusters), 2.5), first, second], 1), clusters, draws=300, seed=4)


def test_the_design_effect_is_that_of_the_clusters_sums():
    scores, clusters = [1, 1, 0, 1, 0, 0, 1, 0], [1, 1, 2, 2, 3, 3, 10, 10]
    # Sums off the mean 1/2: 1, 0, -1, 0; their variance 2/64 · 4/3 over that of 8 single scores, 1/32: 4/3.
    effect = 4 / 3
    assert clustered_share(scores, clusters) == pytest.approx(wilson(4 / effect, 8 / effect))
    apart = clustered_share([1, 0] * 4, clusters)
    assert apart == pytest.approx(wilson(4, 8))
    both = clustered_share([1, 1, 0, 0], ["a", "a", "b", "b"])
    assert both == pytest.approx(wilson(1, 2))


def test_a_clustered_difference_is_a_t_interval_with_two_clusters_added():
    differences, clusters = [1.0, 0.0, 0.5, -0.5, 1.0, 0.0], [10, 10, 2, 2, 3, 4]
    means = [0.5, 0.0, 1.0, 0.0]
    expected = scipy_stats.ttest_1samp([*means, 1.0, -1.0], 0.0)
    low, high = expected.confidence_interval()
    found = clustered_difference(differences, clusters)
    assert found == pytest.approx((sum(means) / 4, low, min(high, 1.0), expected.pvalue))
    wide = clustered_difference([1.0, 0.0], [1, 2])
    assert (wide.low, wide.high) == (-1.0, 1.0)


def test_every_cluster_weighs_alike_and_quantities_are_judged_together():
    found = clustered([[1.0, 0.0], [3.0, 0.0], [8.0, 0.0]], ["a", "a", "b"])
    assert (found[0].mean, found[1]) == (5.0, Estimate(0.0, 0.0, 0.0, 1.0))
    assert found[0].low == -math.inf and found[0].high == math.inf  # two clusters say nothing of their spread
    (alone,) = clustered([[2.0], [4.0]], ["a", "a"])
    assert alone == Estimate(3.0, -math.inf, math.inf)
    with pytest.raises(ValueError, match=r"values have shape \(2, 1\), expected"):
        clustered([[1.0], [2.0]], ["a"])


def test_p_values_of_clustered_means_hold_their_level_and_see_an_effect():
    rng, below, seen = np.random.default_rng(0), 0, 0
    for seed in range(200):
        values = rng.normal(size=(20, 1))
        below += clustered(values, range(20), draws=1000, seed=seed)[0].p < 0.05
        seen += clustered(values + 1, range(20), draws=1000, seed=seed)[0].p < 0.05
    assert below <= 20 and seen > 180


def test_scores_that_all_agree_are_worth_as_many_as_there_are_clusters():
    assert clustered_share([1] * 40, [i // 4 for i in range(40)]) == wilson(10, 10)
    independent = clustered_share([0, 1] * 20, range(40))
    assert (independent.low, independent.high) == (wilson(20, 40).low, wilson(20, 40).high)
    same = clustered_share([0] * 20 + [1] * 20, [i // 4 for i in range(40)])
    assert (same.low, same.high) == pytest.approx((wilson(5, 10).low, wilson(5, 10).high))


def test_independent_means_have_welchs_interval():
    # scipy: ttest_ind([1, 2, 4], [0, 1, 1, 2], equal_var=False)
    found = independent([1, 2, 4], [0, 1, 1, 2])
    assert found == pytest.approx((1.3333333, -1.8459588, 4.5126255, 0.2677301), abs=1e-6)
    assert independent([1, 1], [0, 0]) == Estimate(1.0, 1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="the sides have 1 and 2 values"):
        independent([1], [1, 2])


def test_a_clustered_difference_keeps_its_mean_and_never_shrinks_to_nothing():
    found = clustered_difference([1.0] * 12, range(12))
    assert found.mean == 1.0 and found.low < 1.0 and found.p < 0.05
    none = clustered_difference([0.0] * 12, range(12))
    assert none.mean == 0.0 and none.low < 0.0 < none.high


def slow_crossed(rows, added=(), prior=0.0):
    """The interval of several seeds by loops, as docs/statistics.md writes it down."""
    full, seeds = [[*row, *added] for row in rows], len(rows)
    problems = len(full[0])
    by_seed, by_problem = [fmean(row) for row in full], [fmean(column) for column in zip(*full, strict=True)]
    center = fmean(by_seed)
    left = [row[j] - by_seed[i] - by_problem[j] + center for i, row in enumerate(full) for j in range(problems)]
    noise = sum(x * x for x in left) / (seeds - 1) / (problems - 1) / problems
    of_problems, worth = variance(by_problem) / problems, 4 if prior else 0
    of_a_seed = (worth * (prior * prior + noise) + (seeds - 1) * variance(by_seed)) / (worth + seeds - 1)
    of_mean = of_problems + (of_a_seed - noise if of_a_seed > noise else 0) / seeds
    freedom = of_mean**2 / (of_problems**2 / (problems - 1) + of_a_seed**2 / seeds**2 / (worth + seeds - 1))
    freedom, error = max(freedom, 1), math.sqrt(of_mean)
    half = scipy_stats.t.ppf(0.975, freedom) * error
    p = 2 * scipy_stats.t.sf(abs(center) / error, freedom)
    return fmean(x for row in rows for x in row), center - half, center + half, p


def slow_prior(rows):
    """Half of what one unit of the logit moves the share by, two right and two wrong answers added."""
    share = (fmean(map(sum, rows)) + 2) / (len(rows[0]) + 4)
    slope = share - share * share
    return (slope - slope * slope) / 2


def clipped(estimate, least, most):
    average, low, high, p = estimate
    return average, max(low, least), min(high, most), p


SHAPES = [(2, 1), (2, 2), (2, 3), (2, 30), (3, 2), (3, 8), (5, 4), (10, 40)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_several_seeds_of_scores_equal_a_slow_reference(shape, share):
    rng = np.random.default_rng(3)
    for spread in (0.0, 0.4):
        easy = share + spread * (rng.random((1, shape[1])) - 0.5) + spread * (rng.random((shape[0], 1)) - 0.5)
        arm, baseline = ((rng.random(shape) < easy).astype(float) for _ in range(2))
        rows, other = arm.tolist(), baseline.tolist()
        expected = slow_crossed(rows, (0, 0, 1, 1), slow_prior(rows))
        assert mean(rows) == pytest.approx(clipped(expected, 0, 1), rel=1e-9)
        both = [[(x + y) / 2 for x, y in zip(a, b, strict=True)] for a, b in zip(rows, other, strict=True)]
        apart = [[x - y for x, y in zip(a, b, strict=True)] for a, b in zip(rows, other, strict=True)]
        expected = slow_crossed(apart, (1, -1), math.sqrt(2) * slow_prior(both))
        assert difference(rows, other) == pytest.approx(clipped(expected, -1, 1), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("of_a_seed", [0.0, 3.0])
def test_several_seeds_of_other_values_equal_a_slow_reference(shape, of_a_seed):
    rng = np.random.default_rng(4)
    for _ in range(3):
        arm = rng.normal(2, 1, shape) + of_a_seed * rng.normal(0, 1, (shape[0], 1))
        baseline = rng.normal(1, 1, shape)
        assert mean(arm) == pytest.approx(slow_crossed(arm.tolist()), rel=1e-9)
        assert difference(arm, baseline) == pytest.approx(slow_crossed((arm - baseline).tolist()), rel=1e-9)
        assert difference(arm, baseline > 1) == pytest.approx(slow_crossed((arm - (baseline > 1)).tolist()), rel=1e-9)


def test_several_seeds_of_one_problem_or_of_one_value_have_the_ends_they_show():
    assert mean([[1.5], [2.5], [5.0]]) == Estimate(3.0, 1.5, 5.0, 1.0)
    assert mean([[2.5, 2.5], [2.5, 2.5]]) == Estimate(2.5, 2.5, 2.5, 0.0)
    assert difference([[2.5, 3.5], [2.5, 3.5]], [[2.5, 3.5], [2.5, 3.5]]) == Estimate(0.0, 0.0, 0.0, 1.0)
    assert difference([[2.5, 3.5]], [[2.0, 3.0]]) == Estimate(0.5, 0.5, 0.5, 0.0)
    assert mean([[1.5, 2.5]])[:3] == pytest.approx((2.0, 2 - 12.706205 / 2, 2 + 12.706205 / 2), abs=1e-6)
    assert difference([[True, False]], [[True, True]]) == difference([[1, 0]], [[1, 1]])
    assert mean([[0, 0, 0, 0.5]])[:3] == pytest.approx((0.125, 0.125 - 3.182446 / 8, 0.125 + 3.182446 / 8), abs=1e-6)


def test_ends_of_shares_and_of_their_differences_stay_in_bounds():
    for n in range(1, 300):
        assert wilson(0, n).low == 0 and wilson(n, n).high == 1
        assert 0 < wilson(0.5, n).low < wilson(n - 0.5, n).high < 1
    assert paired(4, 0, 4).high == 1 and paired(0, 4, 4).low == -1
    assert wilson(1, 2).p == 1


def test_a_paired_difference_by_hand():
    # 5/12 and 2/12 after two are added; their difference 1/4 has the variance (7/12 - 1/16) / 12.
    error = math.sqrt((7 / 12 - 1 / 16) / 12)
    ends = (0.25 - 1.9599640 * error, 0.25 + 1.9599640 * error)
    assert paired(4, 1, 10) == pytest.approx((0.3, *ends, math.erfc(0.25 / error / math.sqrt(2))))


def test_holm_lets_fall_what_is_at_the_level():
    assert holm([0.05]) == [True] and holm([0.025, 0.06]) == [True, False]
    assert holm([0.2, 0.1], level=0.2) == [True, True]


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-9, 1e9)])
def test_few_clusters_of_any_scale_equal_a_slow_reference(n, scales):
    rng = np.random.default_rng(n)
    values = np.stack([rng.normal(1, 1, 2 * n), rng.normal(0.2, 3, 2 * n)], 1)
    names = [i % n for i in range(2 * n)]
    found = clustered(values * scales, names, draws=200, seed=1)
    for estimate, column, scale in zip(found, values.T, scales, strict=True):
        center, low, high, p = slow_clustered(column, names, 200, 1)
        assert estimate == pytest.approx((center * scale, low * scale, high * scale, p), rel=1e-9, abs=0)


def test_clustered_means_draw_4000_times_from_seed_0_and_refuse_other_shapes():
    values, names = np.random.default_rng(2).normal(size=(6, 1)), list("aabcde")
    assert clustered(values, names) == clustered(values, names, draws=4000, seed=0)
    for other, clusters in (([1.0, 2.0], "ab"), (np.zeros((0, 1)), ""), ([[1.0]], "ab"), ([[[1.0]]], "a")):
        with pytest.raises(ValueError, match=r"^values have shape .*, expected \(observations, quantities\), and a cl"):
            clustered(other, list(clusters))


@pytest.mark.filterwarnings("error")
def test_a_draw_of_one_cluster_alone_gives_no_warning():
    assert clustered([[1.0], [2.0], [3.0]], list("abc"))[0].low == -math.inf


def test_a_mean_of_0_has_a_p_value_of_1():
    assert clustered([[-1.0], [0.0], [1.0]], list("abc"))[0].p == 1


def test_clusters_have_keys_of_any_kind():
    assert clustered_share([1, 0, 0, 1], [None, 1, "a", 1]) == clustered_share([1, 0, 0, 1], list("abcb"))
    assert clustered_difference([1, 0, 0, 1], [None, 1, "a", 1]) == clustered_difference([1, 0, 0, 1], list("abcb"))
    assert clustered([[1], [0], [5]], [None, 1, "a"]) == clustered([[1], [0], [5]], list("b1c"))


def test_a_single_cluster_is_worth_one_score():
    for scores in ([1, 0], [1, 1], [0, 0]):
        assert clustered_share(scores, ["a", "a"]) == wilson(sum(scores) / 2, 1)
    assert clustered_share([0, 0], ["a", "b"]) == wilson(0, 2)
    assert clustered_share([1, 0, 1, 0], list("aabb")) == wilson(2, 4)  # clusters that agree: as good as single ones
    # Off the mean 1/2: 3/2, -1/2, -1/2, -1/2; variance 3/36 · 4/3 over 1/24: 8/3, and no more than 6/4.
    assert clustered_share([1, 1, 1, 0, 0, 0], list("aaabcd")) == pytest.approx(wilson(2, 4))


def test_independent_values_without_a_spread_differ_or_do_not():
    assert independent([1, 1], [1, 1]) == Estimate(0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="the sides have 2 and 1 values, expected two or more each"):
        independent([1, 2], [1])
    low, high = scipy_stats.ttest_ind([1, 2, 4], [3, 3.5], equal_var=False).confidence_interval()
    assert independent([1, 2, 4], [3, 3.5])[1:3] == pytest.approx((low, high))


@pytest.mark.parametrize("baseline", [[[1]], [[1, 0], [0, 1]]])
def test_matrices_of_two_shapes_are_named(baseline):
    with pytest.raises(ValueError, match=r"^paired matrices have one shape, these have \(1, 2\) and \("):
        difference([[1, 0]], baseline)
    with pytest.raises(ValueError, match=r"^the matrix has shape \(0,\), expected \(seeds, problems\) with at least"):
        difference(baseline, [])
