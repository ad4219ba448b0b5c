"""Attention over kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.layers.attention import Attention, pool_space
from tests.layers.compiling import jit_quickly


def test_by_hand():
    # hidden = relu([1·1 + 2·1, -1, 0, 0]) = [3, 0, 0, 0]; logits = [3·1, 0] + [0, 1] = [3, 1]; divided by 2: [1.5, .5]
    x = jnp.array([[[0.0, 1.0], [2.0, 3.0]]])  # the mean over two places is [1, 2]
    params = {
        'squeeze': jnp.array([[1.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]),
        'expand': jnp.array([[1.0, 0.0], [5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]),
        'bias': jnp.array([0.0, 1.0]),
    }
    found = Attention(2, reduction=1).apply({'params': params}, x, 2.0)
    np.testing.assert_allclose(found, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]], rtol=1e-6)


def test_is_float32_for_narrow_inputs():
    layer = Attention(num_kernels=3, param_dtype=jnp.bfloat16)
    x = jnp.full((2, 64, 64, 4), 1.01, jnp.bfloat16)
    weights, variables = jit_quickly(layer.init_with_output)(jax.random.key(0), x)
    assert weights.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('bfloat16')}
    # Adding up 4096 bfloat16 numbers in bfloat16 would stall at 256.
    np.testing.assert_allclose(pool_space(x), jnp.bfloat16(1.01), rtol=1e-5)


@pytest.mark.parametrize(('channels', 'reduction', 'width'), [(64, 16, 4), (8, 16, 4), (100, 16, 6), (3, 1, 4)])
def test_hidden_width(channels, reduction, width):
    layer = Attention(num_kernels=4, reduction=reduction)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 2, 2, channels)))
    sizes = {name: leaf.shape for name, leaf in shapes['params'].items()}
    assert sizes == {'squeeze': (channels, width), 'expand': (width, 4), 'bias': (4,)}


def test_hidden_units_cannot_all_be_dead_at_the_start():
    """Features after a relu are not negative: two independent units are both off in a quarter of all draws."""
    features = jax.random.uniform(jax.random.key(0), (100, 1, 1, 16))
    for seed in range(20):
        layer = Attention(num_kernels=4)
        weights, variables = layer.init_with_output(jax.random.key(seed), features)
        hidden = features[:, 0, 0] @ variables['params']['squeeze']
        assert ((hidden > 0).sum(axis=1) == 2).all() and float(jnp.ptp(weights, axis=0).max()) > 0.01


def test_law_of_the_first_draw():
    layer = Attention(num_kernels=8, reduction=1)
    params = jit_quickly(layer.init)(jax.random.key(0), jnp.ones((1, 2, 512)))['params']
    np.testing.assert_allclose(params['squeeze'].std(), np.sqrt(2 / 512), rtol=0.02)
    np.testing.assert_allclose(params['expand'].std(), np.sqrt(2 / 8), rtol=0.05)
    assert not params['bias'].any()
