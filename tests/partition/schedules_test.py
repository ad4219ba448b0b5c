"""Schedules against optax's and by hand."""

import numpy as np
import optax
import pytest

from pad_jax.partition import round_fractions, round_steps


@pytest.mark.parametrize('fraction', [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize('rounds', [1, 3, 10])
def test_the_schedules_are_those_of_optax(fraction, rounds):
    passed = np.arange(1, rounds + 1)
    twins = {
        'exponential': optax.exponential_decay(1.0, rounds, fraction),
        'linear': optax.polynomial_schedule(1.0, fraction, 1, rounds),
    }
    for name, twin in twins.items():
        found = round_fractions(fraction, rounds, name)
        np.testing.assert_allclose(found, [twin(step) for step in passed], rtol=2e-6)
        assert found[-1] == fraction
        assert list(found) == sorted(found, reverse=True)


def test_golden_fractions():
    # 0.125^(1/3) = 0.5, 0.5² = 0.25; and 1 − 0.75·(1/3) = 0.75, 1 − 0.75·(2/3) = 0.5.
    np.testing.assert_allclose(round_fractions(0.125, 3), [0.5, 0.25, 0.125], rtol=1e-12)
    np.testing.assert_allclose(round_fractions(0.25, 3, 'linear'), [0.75, 0.5, 0.25], rtol=1e-12)
    assert round_fractions(0.3, 1, 'one_shot') == (0.3,)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((0.0,), r'dynamic_fraction must be in \(0, 1\], got 0.0'),
        ((1.5,), r'dynamic_fraction must be in \(0, 1\], got 1.5'),
        ((float('nan'),), r'dynamic_fraction must be in \(0, 1\], got nan'),
        ((0.5, 0), 'rounds must be at least 1, got 0'),
        ((0.5, 2, 'cosine'), "schedule must be one of exponential, linear, one_shot, got 'cosine'"),
        ((0.5, 2, 'one_shot'), "schedule 'one_shot' has a single round, got rounds = 2"),
    ],
)
def test_what_round_fractions_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        round_fractions(*arguments)


def test_round_steps():
    assert round_steps() == (0,)
    assert round_steps(start_step=7, rounds=3) == (7, 7, 7)
    assert round_steps(start_step=7, every_steps=5, rounds=3) == (7, 12, 17)
    for wrong in [(-1, 0), (0, -5)]:
        with pytest.raises(ValueError, match='must be at least 0, got'):
            round_steps(*wrong)
