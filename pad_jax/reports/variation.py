"""How much what a dynamic layer computes with varies over inputs, from sums over these. Parameters are never mixed.

The parameters that an input x meets are Ŵ(x) = Σ_k π_k(x)·D_k + S: D_k = λd·mask·W_k, S = λs·(1 − mask)·static. With
the Gram matrix G = [<D_i, D_j>], summed over positions,

    variance over inputs    Σ Var Ŵ = tr(Cov(π)·G)
    mean square             Σ E Ŵ² = tr(E[π·πᵀ]·G) + |S|²

where <D_k, S> is zero, as no position is of both parts. Everything is float64 on the host.

Legend: N inputs (examples, or tokens of them), K factors, n positions.
"""

import dataclasses
from typing import NamedTuple

import numpy as np


class RoutingSums(NamedTuple):
    """Sums over the N inputs of some batches; those of two batches add up.

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


class CoordinateSums(NamedTuple):
    """Sums over inputs of a tensor [N, ...] that each of them has: their count, the values, and their squares."""

    count: float
    values: np.ndarray
    squares: np.ndarray

    @property
    def variances(self) -> np.ndarray:
        """Of each coordinate."""
        return np.maximum(self.squares / self.count - (self.values / self.count) ** 2, 0)

    def share(self) -> float:
        """Variance over inputs / mean square, both summed over coordinates."""
        return _divide(self.variances.sum(), self.squares.sum() / self.count)


@dataclasses.dataclass(frozen=True)
class Variation:
    """Variance of Ŵ(x) over inputs / its mean square, both summed over positions: in [0, 1], NaN where all is zero.

    Attributes:
      dynamic: of the dynamic positions.
      whole: of all positions.
    """

    dynamic: float
    whole: float


def sum_routing(routing: np.ndarray, counts: np.ndarray) -> RoutingSums:
    """Of routing weights float[N, K]; rows whose count is False are not inputs, but fill up a batch.

    Where weights don't sum to one, as sigmoids don't, their entropy is that of their shares.
    """
    weights = np.asarray(routing, np.float64)[np.asarray(counts, bool)]
    entropy = sum(map(measure_entropy, weights))
    return RoutingSums(float(len(weights)), weights.sum(axis=0), weights.T @ weights, float(entropy))


def measure_entropy(weights: np.ndarray) -> float:
    """Of the shares of weights float[K] that are not negative, in nats.

    >>> round(measure_entropy(np.array([0.5, 0.5, 0.0])), 6)  # log 2
    0.693147
    """
    shares = weights[weights > 0] / weights.sum()
    return float(-np.sum(shares * np.log(shares)))


def measure_mixture(gram: np.ndarray, static_square: float, sums: RoutingSums) -> Variation:
    """Of parameters that are mixed from factors.

    Args:
      gram: float64[K, K], G.
      static_square: |S|².

    >>> one_each = RoutingSums(2.0, np.ones(2), np.eye(2), 0.0)  # two inputs, each of one factor
    >>> measure_mixture(np.diag([1.0, 1.0]), 1.0, one_each)  # (1, 0) and (0, 1) beside a 1: ½ of 1, and of 2
    Variation(dynamic=0.5, whole=0.25)
    """
    mean, second = sums.weights / sums.count, sums.products / sums.count
    variance = max(np.sum((second - np.outer(mean, mean)) * gram), 0.0)
    square = np.sum(second * gram)
    return Variation(_divide(variance, square), _divide(variance, square + static_square))


def measure_values(sums: CoordinateSums, gates: np.ndarray, static_square: float) -> Variation:
    """Of values that are generated: `gates` is λd·mask, and broadcasts against them."""
    variance = np.sum(gates**2 * sums.variances)
    square = np.sum(gates**2 * sums.squares) / sums.count
    return Variation(_divide(variance, square), _divide(variance, square + static_square))


def measure_cosines(gram: np.ndarray) -> float:
    """Mean over pairs of factors of their cosine, in [−1, 1]; NaN where one is zero, or alone.

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
