"""The kinds of feed-forward parts: each against a loop over tokens, and their specs as values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pad_jax.models import FFNS, FeedForward, LayerSpec, make_ffn_spec
from tests.layers.compiling import jit_quickly
from tests.layers.mixture_twin import mix

B, T, C, F, E, K = 2, 5, 4, 6, 3, 2
VALID = np.arange(T)[None] < np.array([5, 3])[:, None]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def mix_one(kind, x, params, width):
    """One token through a mixture, by the twin of mixtures."""
    return mix(kind, x[None], params, None, K, np.zeros((1, width)))[0][0]


def dense_twin(x, params):
    raised = gelu(x @ params['up']['kernel'] + params['up']['bias'])
    return raised @ params['down']['kernel'] + params['down']['bias']


def linear_twin(x, params):
    return mix_one('linear', gelu(mix_one('linear', x, params['up'], F)), params['down'], C)


def ffn_twin(x, params):
    return mix_one('ffn', x, params['experts'], C)


TWINS = {'dense': dense_twin, 'linear': linear_twin, 'ffn': ffn_twin}
MIXTURES = {'dense': set(), 'linear': {'up', 'down'}, 'ffn': {'experts'}}


@pytest.mark.parametrize('name', FFNS)
def test_is_its_twin(name):
    spec = make_ffn_spec(name, num_experts=E, num_selected=K)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(B, T, C))
    with jax.enable_x64(True):
        layer = FeedForward(F, spec, 'float64')
        shapes = jax.eval_shape(layer.init, jax.random.key(0), x, VALID)['params']
        params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), shapes)
        y, aux = jit_quickly(lambda params: layer.apply({'params': params}, x, VALID))(params)
    assert set(aux) == MIXTURES[name]
    for place in np.argwhere(VALID):
        np.testing.assert_allclose(y[tuple(place)], TWINS[name](x[tuple(place)], params), rtol=0, atol=1e-10)


def swiglu(x, gate, up):
    gate = x @ gate
    return gate / (1 + np.exp(-gate)) * (x @ up)


@pytest.mark.parametrize('shared_gate', [False, True])
@pytest.mark.parametrize('name', FFNS)
def test_with_swiglu_and_a_shared_part_is_its_twin(name, shared_gate):
    spec = make_ffn_spec(name, num_experts=E, num_selected=K)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(B, T, C))
    with jax.enable_x64(True):
        fields = {'activation': 'swiglu', 'use_bias': False, 'shared': 7, 'shared_gate': shared_gate}
        layer = FeedForward(F, spec, 'float64', **fields)
        shapes = jax.eval_shape(layer.init, jax.random.key(0), x, VALID)['params']
        params = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), shapes)
        y, aux = jit_quickly(lambda params: layer.apply({'params': params}, x, VALID))(params)
    assert set(aux) == {'dense': set(), 'linear': {'gate', 'up', 'down'}, 'ffn': {'experts'}}[name]
    assert not any('bias' in path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params))
    for place in np.argwhere(VALID):
        token = x[tuple(place)]
        shared = {key: values['kernel'] for key, values in params['shared'].items()}
        expected = swiglu(token, shared['gate'], shared['up']) @ shared['down']
        if shared_gate:
            expected /= 1 + np.exp(-token @ params['shared_gate']['kernel'])
        if name == 'dense':
            expected += swiglu(token, params['gate']['kernel'], params['up']['kernel']) @ params['down']['kernel']
        elif name == 'ffn':
            expected += mix_one('swiglu', token, params['experts'], C)
        else:
            gate, up = (mix_one('linear', token, params[key], F) for key in ('gate', 'up'))
            expected += mix_one('linear', gate / (1 + np.exp(-gate)) * up, params['down'], C)
        np.testing.assert_allclose(y[tuple(place)], expected, rtol=0, atol=1e-10)


def test_equal_arguments_make_equal_specs():
    one, two = (make_ffn_spec('linear', num_experts=4, granularity='output') for _ in range(2))
    assert one == two and hash(one) == hash(two)
    assert one != make_ffn_spec('linear', num_experts=5, granularity='output')
    assert one != make_ffn_spec('ffn', num_experts=4, granularity='output')
    assert make_ffn_spec('dense', num_experts=4) == LayerSpec(nn.Dense)
    for name in FFNS:
        with pytest.raises(TypeError, match=r'ffn has no argument num_expert$'):
            make_ffn_spec(name, num_expert=4)


def test_weights_of_every_kind_start_as_bert_does():
    """From a truncated normal of 0.02, whose standard deviation is 0.88 of that: not from one that knows the width."""
    x = jnp.zeros((1, 1, 64))
    for name, path in (('dense', ('up', 'kernel')), ('linear', ('up', 'kernel')), ('ffn', ('experts', 'neurons'))):
        layer = FeedForward(64, make_ffn_spec(name, num_experts=2))
        values = jit_quickly(layer.init)(jax.random.key(0), x, np.ones((1, 1), bool))['params']
        for key in path:
            values = values[key]
        values = np.asarray(values)[..., :64, :]
        assert values.std() == pytest.approx(0.0176, rel=0.05) and np.abs(values).max() <= 0.04
