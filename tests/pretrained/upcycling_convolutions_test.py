"""Upcycled networks compute what the static ones did, with any convolution, temperature and mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pad_jax.layers import CONVS, find_records
from pad_jax.models import BasicBlock, LayerSpec, ResNet, make_conv_spec
from pad_jax.pretrained import upcycle
from tests.layers.compiling import jit_quickly

DYNAMIC = [name for name in CONVS if name != 'static']


class Separable(nn.Module):
    """A depthwise convolution with strides, then a pointwise one, with biases."""

    conv: LayerSpec

    @nn.compact
    def __call__(self, x, temperature=1.0):
        law = {'bias_init': nn.initializers.normal()}
        x = self.conv(4, (3, 3), strides=2, feature_group_count=4, name='depthwise', **law)(x, temperature)
        x = self.conv(6, (1, 1), name='pointwise', **law)(nn.relu(x), temperature)
        return nn.Dense(3, name='head')(nn.relu(x).mean((1, 2)))


def make_network(name, kind='separable', **arguments):
    spec = make_conv_spec(name, reduction=1, plan='shift', **arguments)
    if kind == 'separable':
        return Separable(spec)
    return ResNet((1,), BasicBlock, num_classes=3, conv=spec, stem='cifar', width_multiplier=1 / 16)


def draw(network, x, seed):
    """Variables of the network that are all drawn, but φ at its start and the statistics of norms."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    rng = np.random.default_rng(seed)

    def draw_one(path, leaf):
        return np.float32(0 if path[-1].key == 'phi' else 0.3) * rng.normal(size=leaf.shape).astype(np.float32)

    masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), shapes.get('partition', {}))
    statistics = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes.get('batch_stats', {}))
    params = jax.tree_util.tree_map_with_path(draw_one, shapes['params'])
    return {'params': params, 'partition': masks, 'batch_stats': statistics}


@functools.cache
def trained(kind):
    """A static network's variables, an input, and what it computes."""
    network, x = make_network('static', kind), jax.random.normal(jax.random.key(0), (4, 8, 8, 4))
    variables = draw(network, x, 1)
    return variables, x, logits_of(jit_quickly(network.apply)(variables, x))


def logits_of(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


@functools.cache
def upcycled(name, kind, granularity, **arguments):
    """The dynamic network and its variables."""
    network = make_network(name, kind, granularity=granularity, **arguments)
    static, x, _ = trained(kind)
    variables = draw(network, x, 2)
    return network, {
        **variables,
        'params': upcycle(static['params'], variables['params'], find_records(network, x)),
    }


@pytest.mark.parametrize(
    ('name', 'kind', 'granularity', 'arguments'),
    [
        *((name, 'separable', 'element', {}) for name in DYNAMIC),
        ('dynamic', 'resnet', None, {}),
        ('condconv', 'resnet', 'output', {}),
        ('odconv', 'resnet', None, {}),
        ('dcd', 'resnet', 'output', {}),
        ('condconv', 'separable', None, {'num_kernels': 3}),
    ],
)
def test_the_function_is_unchanged(name, kind, granularity, arguments):
    network, variables = upcycled(name, kind, granularity, **arguments)
    _, x, expected = trained(kind)
    # With any mask.
    rng = np.random.default_rng(0)
    halves = jax.tree.map(lambda leaf: jnp.asarray(rng.random(leaf.shape) < 0.5), variables['partition'])
    apply = jit_quickly(lambda masks, temperature: network.apply({**variables, 'partition': masks}, x, temperature))
    for masks, temperature in ((variables['partition'], 30.0), (halves, 1.0)):
        found = logits_of(apply(masks, jnp.float32(temperature)))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())


def test_golden_values():
    kernel = np.array([[[[2.0, -3.0]]]], np.float32)  # one tap, one channel, two filters

    def fill(name, num_kernels=3, shape=(1, 4, 4, 1)):
        layer = make_conv_spec(name, num_kernels=num_kernels, granularity='element', use_bias=False)(2, (1, 1))
        params = draw(layer, jnp.ones(shape), 0)['params']
        return params, upcycle({'kernel': kernel}, params, find_records(layer, jnp.ones(shape)))

    drawn, found = fill('condconv')
    # Three weights of which two sum to one and the third is σ(0) = ½: 3/2, and 2/3 of the kernel makes up for it.
    np.testing.assert_allclose(found['kernel'], np.stack([kernel * 2 / 3] * 3), rtol=1e-6)
    np.testing.assert_array_equal(found['static_kernel'], kernel)
    first = float(drawn['attention']['expand'][0, 0])
    assert first != 0 and found['attention']['expand'].tolist() == [[first, -first, 0]]
    # A pointwise kernel has two vectors of ½: four times the kernel.
    _, found = fill('odconv')
    np.testing.assert_array_equal(found['kernel'], np.stack([kernel * 4] * 3))
    assert not found['channel']['tensor'].any() and not found['channel']['bias'].any()
    assert found['filter']['static_tensor'].tolist() == [[[[0.5, 0.5]]]]
    _, found = fill('dcd')
    np.testing.assert_array_equal(found['kernel'], kernel)
    assert not found['out_of_latent'].any() and found['scaling']['static_tensor'].tolist() == [[[[1, 1]]]]


def test_refusals():
    variables, x, _ = trained('separable')
    static = variables['params']
    network, upcycled_variables = upcycled('dynamic', 'separable', None)
    params, records = upcycled_variables['params'], find_records(network, x)
    wrong = {
        r'depthwise/kernel has shape \(3, 3, 4, 4\) in the static network, \(3, 3, 1, 4\) in the dynamic one': {
            **static,
            'depthwise': {**static['depthwise'], 'kernel': np.zeros((3, 3, 4, 4))},
        },
        'pointwise/bias is a parameter of only one': {**static, 'pointwise': {'kernel': static['pointwise']['kernel']}},
        'head is a parameter of only one': {name: leaf for name, leaf in static.items() if name != 'head'},
        r'head/bias has shape \(5,\)': {**static, 'head': {**static['head'], 'bias': np.zeros(5)}},
    }
    for message, changed in wrong.items():
        with pytest.raises(ValueError, match=message):
            upcycle(changed, params, records)
