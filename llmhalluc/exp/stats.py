"""Bootstrap intervals over seeds and problems; differences between arms are paired.

A matrix holds one arm's value for each training seed (row) and test problem (column). Both are samples: a
resample draws S seeds and N problems with replacement, the same problems for every seed, and takes the mean
of what it drew (Efron & Tibshirani 1993, "An introduction to the bootstrap"; rows and columns at once: Owen
2007, "The pigeonhole bootstrap"). Two arms that saw the same problems are compared through the matrix of
their differences, so that what makes a problem hard for both cancels (paired, as in Koehn 2004,
"Statistical significance tests for machine translation evaluation").

Coverage of the 95% interval, simulated with 400 problems: 99% with 2 to 10 seeds that do not differ, about
95% where seeds differ by a standard deviation of 0.2 in the logit, 85% with 3 seeds and 0.5. From one seed
the interval says nothing about other seeds.
"""

from typing import NamedTuple

import numpy as np

CHUNK = 256  # resamples at a time: bounds memory at CHUNK × problems


class Interval(NamedTuple):
    """A mean with its 95% interval, in the unit of the matrix."""

    mean: float
    low: float
    high: float


def resampled_means(matrix, resamples: int, seed: int = 0) -> np.ndarray:
    """Means (resamples,) of a matrix (seeds, problems) whose rows and columns are drawn with replacement."""
    matrix = np.asarray(matrix, dtype=float)
    if matrix.ndim != 2 or not matrix.size:
        raise ValueError(f"the matrix has shape {matrix.shape}, expected (seeds, problems) with at least one of each")
    rng, (n_seeds, n_problems) = np.random.default_rng(seed), matrix.shape
    means = np.empty(resamples)
    for start in range(0, resamples, CHUNK):
        part = means[start : start + CHUNK]
        seeds, problems = _times_drawn(rng, len(part), n_seeds), _times_drawn(rng, len(part), n_problems)
        part[:] = np.einsum("bp,bp->b", seeds @ matrix, problems) / (n_seeds * n_problems)
    return means


def interval(matrix, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of a matrix (seeds, problems) with its 95% percentile interval."""
    low, high = np.percentile(resampled_means(matrix, resamples, seed), [2.5, 97.5])
    return Interval(float(np.mean(matrix)), float(low), float(high))


def difference(arm, baseline, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean and interval of `arm - baseline`, matrices (seeds, problems) of the same seeds and problems."""
    arm, baseline = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if arm.shape != baseline.shape:
        raise ValueError(f"paired matrices have one shape, these have {arm.shape} and {baseline.shape}")
    return interval(arm - baseline, resamples, seed)


def _times_drawn(rng: np.random.Generator, resamples: int, n: int) -> np.ndarray:
    """How often each of n things came up in n draws, for each resample: int (resamples, n)."""
    drawn = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n)
