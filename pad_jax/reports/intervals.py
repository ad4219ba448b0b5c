"""Means over seeds with the intervals that Student's t gives them, and differences paired by seed.

Axis letters: S seeds.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import scipy.stats

from pad_jax.reports.estimates import estimate_mean

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean over `count` seeds; the interval around it is mean ± margin, and the margin of a single seed is NaN."""

    mean: float
    margin: float
    count: int

    @property
    def low(self) -> float:
        return self.mean - self.margin

    @property
    def high(self) -> float:
        return self.mean + self.margin

    @property
    def excludes_zero(self) -> bool:
        """Never for a single seed, nor where values do not scatter at all, as some of coarse steps happen not to."""
        return abs(self.mean) > self.margin > 0


def estimate_interval(values: Sequence[float]) -> Interval:
    """Mean of float[S] with the interval that holds the true one with 95 % confidence if seeds scatter normally.

    >>> estimate_interval([1.0, 2.0, 3.0]).margin / (1 / 3**0.5)  # in standard errors: t of 2 degrees of freedom
    4.302652729749462
    """
    count = len(values)
    mean, error = estimate_mean(values)
    # The quantile of 0 degrees of freedom is NaN: a single seed says nothing of others.
    margin = float(scipy.stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error
    return Interval(mean, margin, count)


def estimate_difference(values: Mapping[int, float], base: Mapping[int, float]) -> Interval | None:
    """The mean of values[seed] − base[seed] over the seeds that both have; None if there are none.

    A seed fixes the order of the data and what is drawn at the start, so that a pair shares much of its luck, and the
    interval (of the paired t-test) may be far narrower than those of the two means suggest.

    >>> estimate_difference({0: 0.5, 1: 0.75, 2: 0.9}, {0: 0.25, 1: 0.5})
    Interval(mean=0.25, margin=0.0, count=2)
    """
    shared = sorted(values.keys() & base.keys())
    return estimate_interval([values[seed] - base[seed] for seed in shared]) if shared else None
