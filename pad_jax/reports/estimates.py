"""Mean and standard error over seeds.

Axis letters: S seeds.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """Mean over seeds and its standard error, floats or float64[...]; the error is NaN for a single seed."""

    mean: np.ndarray | float
    standard_error: np.ndarray | float


def estimate_mean(values: Sequence) -> Estimate:
    """Mean over the leading axis of [S, ...], and the standard deviation of a sample (S − 1) over √S.

    >>> estimate_mean([1.0, 2.0, 3.0])  # deviations 1, 0, 1: √(2 / 2) / √3
    Estimate(mean=2.0, standard_error=0.5773502691896258)
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    mean = values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(count) if count > 1 else np.full_like(mean, np.nan)
    return Estimate(mean.item(), error.item()) if values.ndim == 1 else Estimate(mean, error)
