import math

import numpy as np

from pad_jax.reports.estimates import estimate_mean


def test_golden_standard_error():
    # mean 4.5 / 3 = 1.5; squared deviations 1, 0.25, 2.25 sum to 3.5; √(3.5 / 2) / √3 = √(3.5 / 6)
    found = estimate_mean([0.5, 1.0, 3.0])
    assert found.mean == 1.5
    assert math.isclose(found.standard_error, math.sqrt(3.5 / 6))


def test_along_the_leading_axis():
    found = estimate_mean([[1.0, 10.0], [3.0, 10.0]])
    # deviations ±1: √(2 / 1) / √2 = 1
    np.testing.assert_allclose(found.mean, [2.0, 10.0])
    np.testing.assert_allclose(found.standard_error, [1.0, 0.0])


def test_one_seed_has_no_error():
    assert estimate_mean([2.0]).mean == 2.0
    assert math.isnan(estimate_mean([2.0]).standard_error)
    assert np.isnan(estimate_mean([[1.0, 2.0]]).standard_error).all()
