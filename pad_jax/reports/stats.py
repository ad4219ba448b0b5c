"""Statistics over seeds: means, standard errors, confidence intervals and paired differences."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """Mean over seeds and its standard error, floats or float64[...]. A single seed has the error NaN."""

    mean: np.ndarray | float
    standard_error: np.ndarray | float


def estimate_mean(values: Sequence) -> Estimate:
    """Estimate the mean over the leading axis of values [seeds, ...].

    >>> estimate_mean([1.0, 2.0, 3.0])  # deviations 1, 0, 1: √(2 / 2) / √3
    Estimate(mean=2.0, standard_error=0.5773502691896258)
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    mean = values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.full_like(mean, np.nan)
    return Estimate(mean.item(), error.item()) if values.ndim == 1 else Estimate(mean, error)


class Interval(NamedTuple):
    """Mean over `count` seeds with the interval mean ± margin. A single seed has the margin NaN."""

    mean: float
    margin: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        """True if 0 lies outside the interval. False for a single seed and for equal values, which have no width."""
        return abs(self.mean) > self.margin > 0


def estimate_interval(values: Sequence[float]) -> Interval:
    """Estimate the mean of float[seeds] with its 95 % confidence interval (Student's t, seeds scatter normally).

    >>> estimate_interval([1.0, 2.0, 3.0]).margin / (1 / 3**0.5)  # in standard errors: t of 2 degrees of freedom
    4.302652729749462
    """
    import scipy.stats

    count = len(values)
    mean, error = estimate_mean(values)
    # The quantile of 0 degrees of freedom is NaN, as a single seed cannot tell how far seeds scatter.
    margin = float(scipy.stats.t.ppf(0.975, count - 1)) * error
    return Interval(mean, margin, count)


def estimate_difference(values: Mapping[int, float], base: Mapping[int, float]) -> Interval | None:
    """Estimate the mean of values[seed] − base[seed] over the seeds that both have; None without a common seed.

    Runs with the same seed share the order of the data and the initial draws. The interval of the paired differences
    can therefore be much narrower than the intervals of the two means.

    >>> estimate_difference({0: 0.5, 1: 0.75, 2: 0.9}, {0: 0.25, 1: 0.5})
    Interval(mean=0.25, margin=0.0, count=2)
    """
    shared = sorted(values.keys() & base.keys())
    return estimate_interval([values[seed] - base[seed] for seed in shared]) if shared else None
