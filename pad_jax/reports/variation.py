"""Variation over inputs of the parameters that a dynamic layer uses, from sums over inputs.

The parameters for an input x are Ŵ(x) = Σ_k π_k(x)·D_k + S with D_k = λd·mask·W_k and S = λs·(1 − mask)·static.
They are never computed. With the Gram matrix G = [<D_i, D_j>], summed over positions,

    variance over inputs    Σ Var Ŵ = tr(Cov(π)·G)
    mean square             Σ E Ŵ² = tr(E[π·πᵀ]·G) + |S|²

because <D_k, S> is zero: a position is either dynamic or static. All sums are float64 on the host. Inputs are
examples, or tokens in a mixture of experts; N counts them.
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class WeightSums(NamedTuple):
    """Sums over N inputs, which can be added for several batches.

    Attributes:
      count: N.
      weights: float64[K], Σ π.
      products: float64[K, K], Σ π·πᵀ.
      entropy: Σ of the entropy of each input's weights, in nats.
    """

    count: float
    weights: np.ndarray
    products: np.ndarray
    entropy: float


class ValueSums(NamedTuple):
    """Sums over N inputs of a tensor [N, ...]: N, the values, and their squares."""

    count: float
    values: np.ndarray
    squares: np.ndarray

    @property
    def variances(self) -> np.ndarray:
        """Variance over inputs of each coordinate."""
        return np.maximum(self.squares / self.count - (self.values / self.count) ** 2, 0)


@dataclasses.dataclass(frozen=True)
class Variation:
    """Variance of Ŵ(x) over inputs / its mean square, both summed over positions: in [0, 1], NaN if all are zero.

    Attributes:
      dynamic: of the dynamic positions.
      whole: of all positions.
    """

    dynamic: float
    whole: float


def sum_weights(weights: np.ndarray, is_input: np.ndarray) -> WeightSums:
    """Sum mixing weights float[N, K] over the rows where is_input, bool[N], is True; other rows are padding.

    Weights that do not sum to one, as sigmoids, have the entropy of their shares.
    """
    weights = np.asarray(weights, np.float64)[np.asarray(is_input, bool)]
    entropy = sum(map(measure_entropy, weights))
    return WeightSums(float(len(weights)), weights.sum(axis=0), weights.T @ weights, float(entropy))


def measure_entropy(weights: np.ndarray) -> float:
    """Measure the entropy of the shares of weights float[K], none negative, in nats.

    >>> round(measure_entropy(np.array([0.5, 0.5, 0.0])), 6)  # log 2
    0.693147
    """
    shares = weights[weights > 0] / weights.sum()
    return float(-np.sum(shares * np.log(shares)))


def measure_mixture(gram: np.ndarray, static_square: float, sums: WeightSums) -> Variation:
    """Measure the variation of parameters that are mixed from factors.

    Args:
      gram: float64[K, K], G.
      static_square: |S|².
      sums: of the mixing weights.

    >>> one_each = WeightSums(2.0, np.ones(2), np.eye(2), 0.0)  # two inputs, each with one factor
    >>> measure_mixture(np.diag([1.0, 1.0]), 1.0, one_each)  # (1, 0) and (0, 1) beside a 1: ½ of 1, and of 2
    Variation(dynamic=0.5, whole=0.25)
    """
    mean, second = sums.weights / sums.count, sums.products / sums.count
    variance = max(np.sum((second - np.outer(mean, mean)) * gram), 0.0)
    square = np.sum(second * gram)
    return Variation(_divide(variance, square), _divide(variance, square + static_square))


def measure_values(sums: ValueSums, gates: np.ndarray, static_square: float) -> Variation:
    """Measure the variation of generated values; `gates` is λd·mask and broadcasts against them."""
    variance = np.sum(gates**2 * sums.variances)
    square = np.sum(gates**2 * sums.squares) / sums.count
    return Variation(_divide(variance, square), _divide(variance, square + static_square))


def measure_cosines(gram: np.ndarray) -> float:
    """Measure the mean cosine over pairs of factors, in [−1, 1]; NaN for a single factor and for a zero factor.

    >>> measure_cosines(np.array([[1.0, 1.0], [1.0, 4.0]]))  # 1 / (1·2)
    0.5
    """
    num_factors, lengths = len(gram), np.sqrt(np.diagonal(gram))
    if num_factors < 2 or not lengths.all():
        return float('nan')
    cosines = gram / np.outer(lengths, lengths)
    return float((cosines.sum() - np.trace(cosines)) / (num_factors * (num_factors - 1)))


def _divide(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float('nan')
