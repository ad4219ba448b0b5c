"""Similarity of experts: by hand, and found in a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.layers import MixtureFFN, MixtureLinear, expert_similarity, measure_similarity
from pad_jax.partition import scale_factors


def test_by_hand():
    # Lengths 1, √2, 1; cosines 1/√2, 0 and 1/√2: their mean is √2/3.
    factors = jnp.array([[1.0, 0], [1, 1], [0, 1]])
    assert float(expert_similarity(factors)) == pytest.approx(2**0.5 / 3)
    assert float(expert_similarity(factors[:1])) == 1
    assert float(expert_similarity(jnp.ones((4, 2, 3)))) == pytest.approx(1)
    assert float(expert_similarity(jnp.zeros((2, 3)))) == 0  # no direction, and no NaN
    # Half static: (2, 3) for the first two and (0, 3) for the third. Cosines 1, 9/(√13·3), and that again.
    mask = jnp.array([True, False])
    found = expert_similarity(factors, jnp.array([5.0, 6]), mask, 2.0, 0.5)
    assert float(found) == pytest.approx((1 + 2 * 3 / 13**0.5) / 3)
    assert float(expert_similarity(factors, jnp.array([5.0, 6]), jnp.zeros(2, bool))) == pytest.approx(1)


def test_every_mixture_of_a_network_is_found():
    x = jnp.ones((1, 2, 3))
    linear = MixtureLinear(4, num_experts=3, granularity='output').init(jax.random.key(0), x)
    ffn = MixtureFFN(4, num_experts=3).init(jax.random.key(1), x)
    linear['params']['phi'] = jnp.float32(0.4)
    mask = jnp.array([[True, False, True, False]])
    params = {'layer0': {'in': linear['params'], 'norm': {'scale': jnp.ones(3)}}, 'ffn': ffn['params'], 'bias': x}
    masks = {'layer0': {'in': {'kernel': mask}}}
    found = measure_similarity(params, masks)
    assert set(found) == {'layer0/in', 'ffn'}
    leaf = linear['params']
    expected = expert_similarity(leaf['kernel'], leaf['static_kernel'], mask, *scale_factors(0.4))
    np.testing.assert_allclose(found['layer0/in'], expected, rtol=1e-6)
    np.testing.assert_allclose(found['ffn'], expert_similarity(ffn['params']['neurons']), rtol=1e-6)
    assert float(measure_similarity(params, masks, 'none')['layer0/in']) != pytest.approx(float(expected))
