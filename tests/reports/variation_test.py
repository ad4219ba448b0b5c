"""Variances from Gram matrices and sums, compared with parameters that are mixed for every input."""

import numpy as np
import pytest
from scipy.stats import entropy

from pad_jax.partition import scale_factors, split
from pad_jax.reports.variation import (
    ValueSums,
    measure_cosines,
    measure_entropy,
    measure_mixture,
    measure_values,
    sum_weights,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('weights', ['softmax', 'sigmoid', 'constant'])
def test_no_parameters_need_to_be_mixed(weights):
    factors, static, mask = RNG.normal(size=(4, 3, 5)), RNG.normal(size=(3, 5)), RNG.random((3, 5)) < 0.4
    routing = {
        'softmax': RNG.dirichlet(np.ones(4), size=50),
        'sigmoid': RNG.random((50, 4)),
        'constant': np.full((50, 4), 0.25),
    }[weights]
    dynamic_part, static_part = map(np.asarray, split(factors, static, mask, *map(float, scale_factors(0.7))))
    mixed = np.tensordot(routing, dynamic_part, axes=1) + static_part  # [50, 3, 5]
    variance, square = mixed.var(axis=0), (mixed**2).mean(axis=0)

    flat = dynamic_part.reshape(4, -1).astype(float)
    padded = np.concatenate([routing, np.full((7, 4), 9.0)])  # padding rows do not count
    sums = sum_weights(padded, np.arange(57) < 50)
    found = measure_mixture(flat @ flat.T, float((static_part.astype(float) ** 2).sum()), sums)
    np.testing.assert_allclose(found.dynamic, variance[mask].sum() / square[mask].sum(), rtol=1e-5, atol=1e-14)
    np.testing.assert_allclose(found.whole, variance.sum() / square.sum(), rtol=1e-5, atol=1e-14)
    np.testing.assert_allclose(sums.entropy / sums.count, entropy(routing, axis=1).mean(), rtol=1e-12)
    np.testing.assert_allclose(measure_entropy(sums.weights), entropy(routing.mean(axis=0)), rtol=1e-12)

    cosines = [
        flat[i] @ flat[j] / np.linalg.norm(flat[i]) / np.linalg.norm(flat[j]) for i in range(4) for j in range(i)
    ]
    np.testing.assert_allclose(measure_cosines(flat @ flat.T), np.mean(cosines), rtol=1e-12)


def test_generated_values():
    values, static, mask = RNG.normal(1, 1, size=(20, 6)), RNG.normal(size=6), np.arange(6) < 4
    effective = np.where(mask, 1.5 * values, 0.5 * static)
    sums = ValueSums(20.0, values.sum(axis=0), (values**2).sum(axis=0))
    found = measure_values(sums, 1.5 * mask, float(((0.5 * static[~mask]) ** 2).sum()))
    variance, square = effective.var(axis=0), (effective**2).mean(axis=0)
    np.testing.assert_allclose(found.dynamic, variance[:4].sum() / square[:4].sum())
    np.testing.assert_allclose(found.whole, variance.sum() / square.sum())


def test_what_has_no_meaning_is_no_number():
    sums = sum_weights(np.full((3, 2), 0.5), np.ones(3, bool))
    nothing = measure_mixture(np.zeros((2, 2)), 1.0, sums)
    assert np.isnan(nothing.dynamic) and nothing.whole == 0  # without a dynamic position
    assert np.isnan(measure_cosines(np.ones((1, 1)))) and np.isnan(measure_cosines(np.zeros((2, 2))))
