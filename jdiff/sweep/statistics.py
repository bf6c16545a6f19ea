"""Confidence intervals of means, and of mean differences between variants paired by seed.

Two variants are compared seed by seed, so that an effect of the seed on both cancels. The interval of the mean
difference d over n seeds, with standard error s, is that of a studentized bootstrap: resamples of the n differences
with replacement, each with its mean d* and standard error s*, give the quantiles of t* = (d* - d) / s*, and the
interval is

    from d - s t*(1 - a/2) to d - s t*(a/2).                                                        [bootstrap ch. 12]

The bootstrap is smoothed: normal noise of half the sample's standard deviation is added to every resampled number
[polansky 1997]. A resample of few numbers often repeats nearly one of them, and t* is then nearly infinite. At the
level of 11 comparisons, a difference of six standard deviations over 5 seeds is detected in 67 of 100 cases without
smoothing, and in 98 with it.
Percentile intervals of d* are too narrow at few seeds: at 5 seeds and a nominal 95 %, they cover the mean of normal
differences in 83 of 100 cases. These intervals cover it in 95, and that of skewed (exponential) differences in 91,
where Student's t covers it in 88. At the level of 11 comparisons, 99.5 %, they cover it in 99.7 % of normal and 97.8 %
of skewed cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

MIN_COUNT = 5  # repetitions; fewer have no interval
NUM_RESAMPLES = 10_000
SMOOTHING = 0.5  # standard deviation of the noise added to resampled numbers, as a share of the sample's
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean, or a mean difference, over ``count`` repetitions, with its confidence interval from ``low`` to ``high``.

    The interval is None for fewer than ``MIN_COUNT`` repetitions, and for repetitions that are all equal, since these
    do not show their variance; where all of them are 0, it is from 0 to 0.
    """

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is above or below 0, else 0: not distinguishable from 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def estimate_mean(values: Sequence[float], *, level: float = LEVEL) -> Estimate:
    """The mean of values, with its confidence interval. level: nominal coverage of the interval, from 0 to 1."""
    x = np.asarray(values, np.float64)
    n, mean = len(x), float(np.mean(x))
    if n < MIN_COUNT:
        return Estimate(mean, None, None, n)
    if np.ptp(x) <= 1e-12 * abs(mean):
        return Estimate(mean, None, None, n) if mean else Estimate(0.0, 0.0, 0.0, n)
    generator, deviation = np.random.default_rng(0), float(np.std(x, ddof=1))
    shape = (NUM_RESAMPLES, n)
    resamples = x[generator.integers(0, n, shape)] + SMOOTHING * deviation * generator.normal(size=shape)
    t = (resamples.mean(1) - mean) / (resamples.std(1, ddof=1) / np.sqrt(n))
    lower, upper = np.quantile(t, [(1 - level) / 2, (1 + level) / 2])
    error = deviation / np.sqrt(n)
    return Estimate(mean, mean - error * float(upper), mean - error * float(lower), n)


def paired_difference(values: Mapping, reference: Mapping, *, level: float = LEVEL) -> Estimate | None:
    """By how much a variant's mean exceeds that of its reference, over the seeds of both; None where they share none.

    values, reference: a number by seed.
    """
    shared_seeds = [seed for seed in values if seed in reference]
    if not shared_seeds:
        return None
    return estimate_mean([values[seed] - reference[seed] for seed in shared_seeds], level=level)


def simultaneous_level(num_intervals: int) -> float:
    """The level of each of several intervals, so that all of them hold simultaneously at ``LEVEL`` [bonferroni]."""
    return 1 - (1 - LEVEL) / max(num_intervals, 1)
