import math

import numpy as np
import pytest
import scipy.stats

from pad_jax.reports.stats import Interval, estimate_difference, estimate_interval, estimate_mean

VALUES = [0.61, 0.68, 0.59, 0.7, 0.66]
BASE = [0.6, 0.63, 0.58, 0.71, 0.6]


def ends(interval):
    return interval.mean - interval.margin, interval.mean + interval.margin


def test_standard_errors_by_hand():
    # mean 4.5 / 3 = 1.5; squared deviations 1, 0.25, 2.25 sum to 3.5; √(3.5 / 2) / √3 = √(3.5 / 6)
    found = estimate_mean([0.5, 1.0, 3.0])
    assert found.mean == 1.5
    assert math.isclose(found.standard_error, math.sqrt(3.5 / 6))
    found = estimate_mean([[1.0, 10.0], [3.0, 10.0]])
    # deviations ±1: √(2 / 1) / √2 = 1
    np.testing.assert_allclose(found.mean, [2.0, 10.0])
    np.testing.assert_allclose(found.standard_error, [1.0, 0.0])
    assert np.isnan(estimate_mean([[1.0, 2.0]]).standard_error).all()
    found = estimate_interval([0.5])
    assert (found.mean, found.count) == (0.5, 1)
    assert math.isnan(found.margin)
    assert not found.excludes_zero


def test_interval_by_hand():
    # mean 2, deviations 1, 0, 1: standard error 1 / √3; Student's t of 2 degrees of freedom at 0.975 is
    # √2 · (2 · 0.975 − 1) / √(2 · 0.975 · 0.025 · 2) = 0.95 √2 / √0.0975 = 4.3026...
    found = estimate_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.count == 3
    assert found.margin == pytest.approx(0.95 * math.sqrt(2) / math.sqrt(0.0975) / math.sqrt(3))


@pytest.mark.parametrize('count', [2, 3, 5])
def test_interval_is_that_of_scipys_test(count):
    found = estimate_interval(VALUES[:count])
    expected = scipy.stats.ttest_1samp(VALUES[:count], 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(ends(found), expected, rtol=1e-12)


def test_paired_difference_is_that_of_scipys_test():
    found = estimate_difference(dict(enumerate(VALUES)), dict(enumerate(BASE)))
    expected = scipy.stats.ttest_rel(VALUES, BASE)
    np.testing.assert_allclose(ends(found), expected.confidence_interval(0.95), rtol=1e-12)
    assert found.excludes_zero == (expected.pvalue < 0.05)
    # The interval of unpaired means is wider, because it ignores the shared luck of a seed.
    unpaired = scipy.stats.ttest_ind(VALUES, BASE).confidence_interval(0.95)
    assert 2 * found.margin < 0.7 * (unpaired.high - unpaired.low)


def test_pairs_are_of_equal_seeds_whatever_their_order():
    shuffled = {seed: VALUES[seed] for seed in (3, 0, 4, 2, 1)}
    assert estimate_difference(shuffled, dict(enumerate(BASE))) == estimate_difference(
        dict(enumerate(VALUES)), dict(enumerate(BASE))
    )
    # seeds 1 and 2: 0.68 − 0.63 and 0.59 − 0.58
    some = estimate_difference({1: 0.68, 2: 0.59, 7: 9.0}, {0: 9.0, 1: 0.63, 2: 0.58})
    assert some.count == 2 and some.mean == pytest.approx(0.03)
    assert estimate_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    'interval, excludes',
    [((1.0, 0.9, 3), True), ((-1.0, 0.9, 3), True), ((1.0, 1.0, 3), False), ((1.0, 0.0, 2), False)],
)
def test_zero_is_excluded_from_either_side(interval, excludes):
    assert Interval(*interval).excludes_zero == excludes
