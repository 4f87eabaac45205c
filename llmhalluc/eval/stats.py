"""Intervals that cover (law 12): one method a question, the same for run_eval, run_exp and the benchmark.

A matrix holds one arm's value for each training seed (row) and problem (column). With one row the claim is about that
one trained model on problems like these; with two or more it is about the way of training, over new seeds and problems.
docs/statistics.md has the sources, the simulated coverage and the widths.
"""

from collections.abc import Sequence
from math import inf, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, t

Z95 = NormalDist().inv_cdf(0.975)
PRIOR_SPREAD, PRIOR_DF = 0.5, 4  # of a seed's effect: in the logit, and what that is worth in degrees of freedom


class Estimate(NamedTuple):
    """A mean with its 95% interval, in the unit of the values, and the two-sided p value of its being 0."""

    mean: float
    low: float
    high: float
    p: float = 1.0


def accuracy(correct: Sequence[float]) -> dict[str, float | None]:
    """Return the share of 1s among 0/1 scores, its standard error, and Wilson's interval; all None without scores."""
    n = len(correct)
    if not n:
        return dict.fromkeys(("accuracy", "accuracy_stderr", "accuracy_low", "accuracy_high"))
    found = wilson(sum(correct), n)
    return {
        "accuracy": found.mean,
        "accuracy_stderr": sqrt(found.mean * (1 - found.mean) / (n - 1)) if n > 1 else None,
        "accuracy_low": found.low,
        "accuracy_high": found.high,
    }


def wilson(right: float, n: float) -> Estimate:
    """Return a share of `n` with E. B. Wilson's interval (J. Am. Stat. Assoc. 22, 1927); it stays within 0..1."""
    p = right / n
    center, spread = p + Z95**2 / (2 * n), Z95 * sqrt(p * (1 - p) / n + Z95**2 / (4 * n * n))
    low = (center - spread) / (1 + Z95**2 / n) if p > 0 else 0.0
    high = (center + spread) / (1 + Z95**2 / n) if p < 1 else 1.0
    return Estimate(p, low, high)


def paired(won: int, lost: int, n: int) -> Estimate:
    """Return the difference of two models' accuracies on the same `n` problems.

    The adjusted Wald interval of Bonett & Price (J. Educ. Behav. Stat. 37, 2012): two problems are added, one that each
    model alone has right, so that it does not shrink to nothing where few problems all agree.
    """
    up, down = (won + 1) / (n + 2), (lost + 1) / (n + 2)
    error = sqrt((up + down - (up - down) ** 2) / (n + 2))
    low, high = up - down - Z95 * error, up - down + Z95 * error
    return Estimate((won - lost) / n, max(low, -1.0), min(high, 1.0), float(2 * norm.sf(abs(up - down) / error)))


def mean(matrix) -> Estimate:
    """Return the mean of a matrix (seeds, problems) with its interval.

    One seed of 0/1 scores: `wilson`. Two seeds or more: `_crossed`, of 0/1 scores with two problems added that all
    seeds have right and two that none has (Agresti & Coull, Am. Stat. 52, 1998). Other values of one seed: a t interval
    over the problems. Raises ValueError for an empty matrix.
    """
    matrix = _matrix(matrix)
    scores = bool(np.isin(matrix, (0, 1)).all())
    if len(matrix) == 1:
        return wilson(float(matrix.sum()), matrix.size) if scores else _of_one_seed(matrix[0])
    if not scores:
        return _crossed(matrix, (), 0.0)
    return _within(_crossed(matrix, (0, 0, 1, 1), _prior(matrix)), 0.0, 1.0)


def difference(arm, baseline) -> Estimate:
    """Return the mean of `arm - baseline`, matrices (seeds, problems) of the same seeds and problems.

    One seed of 0/1 scores: `paired`. Two seeds or more: `_crossed` of the differences, of 0/1 scores with two problems
    added as in `paired`; the seeds of two arms are independent. Raises ValueError for two shapes or an empty matrix.
    """
    arm, baseline = _matrix(arm), _matrix(baseline)
    if arm.shape != baseline.shape:
        raise ValueError(f"paired matrices have one shape, these have {arm.shape} and {baseline.shape}")
    differences = arm - baseline
    scores = bool(np.isin([arm, baseline], (0, 1)).all())
    if len(arm) == 1 and scores:
        return paired(int((differences > 0).sum()), int((differences < 0).sum()), differences.size)
    if len(arm) == 1:
        return _of_one_seed(differences[0])
    if not scores:
        return _crossed(differences, (), 0.0)
    return _within(_crossed(differences, (1, -1), sqrt(2) * _prior((arm + baseline) / 2)), -1.0, 1.0)


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Return which of several hypotheses fall at `level` for all together (Holm, Scand. J. Stat. 6, 1979)."""
    fallen = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] > level / (len(p_values) - rank):
            break
        fallen[i] = True
    return fallen


def clustered(values, clusters: Sequence[object], draws: int = 4000, seed: int = 0) -> list[Estimate]:
    """Return the mean of each column of `values` (observations, quantities); every cluster weighs alike.

    The bootstrap-t over clusters (Efron & Tibshirani, An Introduction to the Bootstrap, 12.5): clusters are drawn
    again, the mean is divided by its own error; two-sided p values come from the same draws. Ends are infinite where
    clusters are too few. Raises ValueError without observations.
    """
    values = np.asarray(values, dtype=float)
    names, numbers = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if values.ndim != 2 or not len(values) or len(values) != len(numbers):
        raise ValueError(f"values have shape {values.shape}, expected (observations, quantities), and a cluster each")
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, numbers, values)
    means, n = sums / np.bincount(numbers)[:, None], len(names)
    centers, ratios = means.mean(0), None
    if n == 1:
        return [Estimate(float(center), -inf, inf) for center in centers]
    errors = means.std(0, ddof=1) / sqrt(n)
    counts = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=draws) / n
    drawn = counts @ means
    spread = np.sqrt(np.maximum(counts @ means**2 - drawn**2, 0) / (n - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(spread > 1e-12 * np.abs(means).max(0), (drawn - centers) / spread, np.inf)
    found = []
    for center, error, ratio in zip(centers, errors, ratios.T, strict=True):
        if error <= 1e-12 * abs(center):
            found.append(Estimate(float(center), float(center), float(center), float(center == 0)))
            continue
        # A draw of one cluster alone has no error: it counts as the farthest on both sides.
        low = np.quantile(np.where(np.isinf(ratio), -inf, ratio), 0.025, method="lower")
        high = np.quantile(ratio, 0.975, method="higher")
        p = (1 + np.count_nonzero(np.abs(ratio) >= abs(center) / error)) / (draws + 1)
        found.append(Estimate(float(center), float(center - high * error), float(center - low * error), float(p)))
    return found


def clustered_share(scores: Sequence[float], clusters: Sequence[object]) -> Estimate:
    """Return the share of 1s among 0/1 scores that come in clusters, such as several completions of a problem.

    Wilson's interval for as many independent scores as these are worth: their number over the design effect (Kish,
    Survey Sampling, 1965), which lies between 1 and the mean size of a cluster, and is that where all scores agree.
    """
    scores = np.asarray(scores, dtype=float)
    names, numbers = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    share, n = float(scores.mean()), len(scores)
    size = n / len(names)
    effect = size
    if 0 < share < 1 and len(names) > 1:
        off = np.bincount(numbers, scores - share)
        variance = float((off**2).sum()) / n**2 * len(names) / (len(names) - 1)
        effect = min(max(variance / (share * (1 - share) / n), 1.0), size)
    return wilson(share * n / effect, n / effect)


def clustered_difference(differences: Sequence[float], clusters: Sequence[object]) -> Estimate:
    """Return the mean of paired differences of 0/1 scores, or of shares, that come in clusters; all weigh alike.

    A t interval over the clusters' means, to which two are added, one for each side, as `paired` adds two problems.
    """
    _, numbers = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    means = np.bincount(numbers, np.asarray(differences, dtype=float)) / np.bincount(numbers)
    filled = _of_one_seed(np.array([*means, 1.0, -1.0]))
    return _within(filled._replace(mean=float(means.mean())), -1.0, 1.0)


def independent(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """Return the difference of two means of independent values, with Welch's t interval (Biometrika 34, 1947).

    Raises ValueError for fewer than two values on a side.
    """
    sides = [np.asarray(values, dtype=float) for values in (one, other)]
    if min(map(len, sides)) < 2:
        raise ValueError(f"the sides have {len(one)} and {len(other)} values, expected two or more each")
    center = float(sides[0].mean() - sides[1].mean())
    parts = [float(values.var(ddof=1)) / len(values) for values in sides]
    if not sum(parts):
        return Estimate(center, center, center, float(center == 0))
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, sides, strict=True))
    return _interval(center, center, sqrt(sum(parts)), freedom)


def _crossed(matrix: np.ndarray, added: Sequence[float], prior: float) -> Estimate:
    """The mean over random seeds and random problems, crossed, with a t interval.

    Its variance is that of the problems' means over P, and that of the seeds' means, without what problems and draws
    add to it, over S. Few seeds say little of the latter: it is averaged with the `prior` standard deviation, worth 4
    degrees of freedom (a scaled inverse χ² prior). Degrees of freedom: Satterthwaite, Biometrics Bull. 2, 1946.
    """
    seeds = len(matrix)
    filled = np.concatenate([matrix, np.tile(np.asarray(added, dtype=float), (seeds, 1))], axis=1)
    problems = filled.shape[1]
    by_seed, by_problem, center = filled.mean(1), filled.mean(0), float(filled.mean())
    if problems == 1:
        return Estimate(center, float(matrix.min()), float(matrix.max()))
    residuals = filled - by_seed[:, None] - by_problem + center
    noise = float((residuals**2).sum()) / ((seeds - 1) * (problems - 1)) / problems
    of_problems = float(by_problem.var(ddof=1)) / problems
    weight = PRIOR_DF if prior else 0
    of_a_seed = (weight * (prior**2 + noise) + (seeds - 1) * float(by_seed.var(ddof=1))) / (weight + seeds - 1)
    variance = of_problems + max(of_a_seed - noise, 0.0) / seeds
    if not variance:
        return Estimate(float(matrix.mean()), center, center, float(center == 0))
    freedom = variance**2 / (of_problems**2 / (problems - 1) + (of_a_seed / seeds) ** 2 / (weight + seeds - 1))
    return _interval(float(matrix.mean()), center, sqrt(variance), max(freedom, 1.0))


def _prior(matrix: np.ndarray) -> float:
    """The standard deviation of seeds' accuracies that a spread of PRIOR_SPREAD in the logit would make.

    The slope of an accuracy q in the logit is q (1 - q) for one problem, and less where problems differ.
    """
    share = (matrix.mean(0).sum() + 2) / (matrix.shape[1] + 4)
    slope = share * (1 - share)
    return PRIOR_SPREAD * slope * (1 - slope)


def _of_one_seed(values: np.ndarray) -> Estimate:
    """The t interval of a mean over problems; without width for a single one."""
    center = float(values.mean())
    error = float(values.std(ddof=1)) / sqrt(len(values)) if len(values) > 1 else 0.0
    if not error:
        return Estimate(center, center, center, float(center == 0))
    return _interval(center, center, error, len(values) - 1)


def _interval(average: float, center: float, error: float, freedom: float) -> Estimate:
    half = float(t.ppf(0.975, freedom)) * error
    return Estimate(average, center - half, center + half, float(2 * t.sf(abs(center) / error, freedom)))


def _within(found: Estimate, least: float, most: float) -> Estimate:
    return found._replace(low=max(found.low, least), high=min(found.high, most))


def _matrix(values) -> np.ndarray:
    matrix = np.asarray(values, dtype=float)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"the matrix has shape {matrix.shape}, expected (seeds, problems) with at least one of each")
    return matrix
