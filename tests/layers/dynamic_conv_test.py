"""The layer: its limits, its arguments, its gate, its errors."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pad_jax.layers import PLANS, DynamicConv, StaticConv
from pad_jax.partition.masks import GRANULARITIES, scale_factors
from tests.layers.compiling import jit_quickly

# What differs from the defaults of flax.linen.Conv, with the shape of an input.
ARGUMENTS = [
    ({'kernel_size': (3, 3)}, (2, 7, 6, 4)),
    ({'kernel_size': (2, 3), 'strides': (2, 1), 'kernel_dilation': (1, 2)}, (2, 7, 6, 4)),
    ({'kernel_size': (3, 3), 'padding': 'VALID', 'feature_group_count': 2}, (2, 7, 6, 4)),
    ({'kernel_size': (3, 3), 'padding': 2, 'input_dilation': 2, 'feature_group_count': 4}, (2, 5, 4, 4)),
    ({'kernel_size': (3, 3), 'padding': 'CIRCULAR', 'kernel_dilation': 2}, (2, 7, 6, 4)),
    ({'kernel_size': (4, 3), 'padding': 'REFLECT', 'strides': 2, 'use_bias': False}, (2, 7, 6, 4)),
    ({'kernel_size': 3, 'padding': 'CAUSAL', 'kernel_dilation': 2}, (2, 9, 4)),
    ({'kernel_size': (2, 3, 1), 'strides': None}, (2, 3, 4, 3, 4)),
    ({'kernel_size': (3, 3)}, (7, 6, 4)),
    ({'kernel_size': (3,)}, (2, 3, 5, 4)),
]


@pytest.mark.parametrize(('arguments', 'shape'), ARGUMENTS)
def test_equal_kernels_are_flax_conv(arguments, shape):
    bias = {'bias_init': nn.initializers.normal()} if arguments.get('use_bias', True) else {}
    plain, static = nn.Conv(8, **arguments, **bias), StaticConv(8, **arguments)

    @jit_quickly
    def compare(x):
        expected, variables = plain.init_with_output(jax.random.key(1), x)
        found = [static.apply(variables, x, 7.0)]
        for num_kernels in (1, 3):
            layer = DynamicConv(8, num_kernels=num_kernels, plan='outputs', **arguments)
            params = layer.init(jax.random.key(2), x)['params']
            for name, value in variables['params'].items():
                params[name] = jnp.broadcast_to(value[None], params[name].shape)
            found.append(layer.apply({'params': params}, x, 3.0))
        return expected, found

    expected, found = compare(jax.random.normal(jax.random.key(0), shape))
    for y in found:
        np.testing.assert_allclose(y, expected, atol=2e-6)


def test_is_a_mixture_of_convolutions():
    plain = nn.Conv(6, (3, 3), strides=2)

    @jit_quickly
    def compare(x):
        results = []
        for plan in (*PLANS, 'auto'):
            layer = DynamicConv(6, (3, 3), strides=2, plan=plan, bias_init=nn.initializers.normal())
            y, variables = layer.init_with_output(jax.random.key(1), x, 0.5, mutable=True)
            (attention,), expected = variables['intermediates']['routing'], 0
            for k in range(4):
                params = {name: variables['params'][name][k] for name in ('kernel', 'bias')}
                expected += attention[:, k, None, None, None] * plain.apply({'params': params}, x)
            results.append((y, expected, attention))
        return results

    for y, expected, attention in compare(jax.random.normal(jax.random.key(0), (3, 6, 5, 4))):
        np.testing.assert_allclose(y, expected, atol=2e-6)
        assert attention.shape == (3, 4) and attention.dtype == jnp.float32


@functools.cache
def settled(granularity, scales='both'):
    """A partially dynamic layer away from its initial φ, with its variables and an input, in float64."""
    layer = DynamicConv(6, (3, 2), granularity=granularity, scales=scales, param_dtype=jnp.float64, plan='shift')
    x = jax.random.normal(jax.random.key(0), (3, 4, 3, 4), jnp.float64)
    variables = jit_quickly(layer.init)(jax.random.key(1), x)
    if scales != 'none':
        variables = {**variables, 'params': {**variables['params'], 'phi': jnp.asarray(0.7)}}
    return layer, variables, x


def value_and_gradients(layer, variables, x):
    def loss(params, x):
        return jnp.sum(jnp.sin(layer.apply({**variables, 'params': params}, x, 2.0)))

    return jit_quickly(jax.value_and_grad(loss, (0, 1)))(variables['params'], x)


@pytest.mark.parametrize('scales', ['both', 'none'])
def test_all_dynamic_is_the_plain_dynamic_layer(scales):
    with jax.enable_x64(True):
        layer, variables, x = settled('element', scales)
        dynamic_scale = scale_factors(variables['params'].get('phi', 0.0), scales)[0]
        shared = {name: variables['params'][name] for name in ('attention', 'bias')}
        plain = {'params': {**shared, 'kernel': dynamic_scale * variables['params']['kernel']}}
        value, (params, d_x) = value_and_gradients(layer, variables, x)
        expected, (plain_params, plain_d_x) = value_and_gradients(layer.clone(granularity=None), plain, x)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(d_x, plain_d_x, rtol=1e-9)
        np.testing.assert_allclose(params['kernel'], dynamic_scale * plain_params['kernel'], rtol=1e-9)
        chex.assert_trees_all_close(params['attention'], plain_params['attention'], rtol=1e-9)
        assert not params['static_kernel'].any()


@pytest.mark.parametrize('scales', ['both', 'dynamic'])
def test_all_static_is_the_plain_static_layer(scales):
    with jax.enable_x64(True):
        layer, variables, x = settled('output', scales)
        static_scale = scale_factors(variables['params']['phi'], scales)[1]
        layer, params = layer.clone(use_bias=False), {**variables['params']}
        del params['bias']
        variables = {'params': params, 'partition': {'kernel': jnp.zeros((1, 1, 1, 6), bool)}}
        plain = {'params': {'kernel': static_scale * params['static_kernel']}}
        value, (found, d_x) = value_and_gradients(layer, variables, x)
        static = StaticConv(6, (3, 2), use_bias=False, param_dtype=jnp.float64)
        expected, (plain_found, plain_d_x) = value_and_gradients(static, plain, x)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(d_x, plain_d_x, rtol=1e-9)
        np.testing.assert_allclose(found['static_kernel'], static_scale * plain_found['kernel'], rtol=1e-9)
        assert not found['kernel'].any()
        for leaf in jax.tree.leaves(found['attention']):
            np.testing.assert_allclose(leaf, 0, atol=1e-12)


@pytest.mark.parametrize('granularity', GRANULARITIES)
def test_gate_gradient_is_the_finite_difference(granularity):
    with jax.enable_x64(True):
        layer, variables, x = settled(granularity)
        gate = variables['partition']['kernel'].astype(jnp.float64)

        def loss(gate):
            return jnp.sum(jnp.sin(layer.apply({**variables, 'partition': {'kernel': gate}}, x, 2.0)))

        gradient = jit_quickly(jax.grad(loss))(gate)
        assert gradient.shape == gate.shape
        loss = jit_quickly(loss)
        for index in list(np.ndindex(*gate.shape))[::29]:
            step = jnp.zeros_like(gate).at[index].set(1e-5)
            difference = (loss(gate + step) - loss(gate - step)) / 2e-5
            np.testing.assert_allclose(gradient[index], difference, rtol=1e-6, atol=1e-8)


def test_masks_have_the_shape_of_their_granularity():
    expected = {
        'element': (3, 3, 4, 8),
        'output': (1, 1, 1, 8),
        'input': (1, 1, 4, 1),
        'spatial': (3, 3, 1, 1),
        'layer': (1, 1, 1, 1),
    }
    for granularity, shape in expected.items():
        layer = DynamicConv(8, (3, 3), granularity=granularity)
        variables = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 5, 5, 4)))
        mask = variables['partition']['kernel']
        assert (mask.shape, mask.dtype) == (shape, bool)
        assert set(variables['params']) == {'kernel', 'static_kernel', 'phi', 'bias', 'attention'}
    variables = jax.eval_shape(DynamicConv(8, (3, 3)).init, jax.random.key(0), jnp.ones((1, 5, 5, 4)))
    assert set(variables) == {'params'} and set(variables['params']) == {'kernel', 'bias', 'attention'}


def test_first_draw():
    layer = DynamicConv(64, (3, 3), granularity='layer', num_kernels=3)
    params = jit_quickly(layer.init)(jax.random.key(0), jnp.ones((1, 5, 5, 32)))['params']
    kernels = [*params['kernel'], params['static_kernel']]
    for kernel in kernels:
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.03)
    assert np.abs(np.corrcoef([kernel.ravel() for kernel in kernels]) - np.eye(4)).max() < 0.05
    assert params['phi'] == 0 and params['bias'].shape == (3, 64) and not params['bias'].any()
    assert nn.Conv(64, (3, 3)).kernel_init is not StaticConv(64, (3, 3)).kernel_init


@pytest.mark.parametrize(
    ('dtype', 'param_dtype'), [('float32', 'float32'), ('bfloat16', 'float32'), ('bfloat16', 'bfloat16')]
)
def test_no_dtype_is_promoted_silently(dtype, param_dtype):
    x = jnp.ones((2, 4, 4, 4), dtype)

    def differentiate(layer):
        variables = layer.init(jax.random.key(0), x)
        return jax.grad(lambda variables: layer.apply(variables, x).astype(jnp.float32).sum())(variables)

    with jax.numpy_dtype_promotion('strict'):
        for plan in PLANS:
            for groups in (1, 4):
                layer = DynamicConv(
                    4, (2, 2), feature_group_count=groups, plan=plan, dtype=dtype, param_dtype=param_dtype
                )
                gradient = jax.eval_shape(lambda layer=layer: differentiate(layer))
                assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(param_dtype)}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_kernels': 0}, 'num_kernels must be at least 1, got 0'),
        ({'reduction': 0}, 'reduction must be at least 1, got 0'),
        ({'plan': 'fast'}, "plan must be one of auto, fused, shift, outputs, got 'fast'"),
    ],
)
def test_refuses_values_when_it_is_made(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicConv(**{'features': 4, 'kernel_size': (3, 3), **arguments})


@pytest.mark.parametrize(
    ('arguments', 'shape', 'temperature', 'message'),
    [
        ({}, (2, 4, 4, 3), 0.0, 'temperature must be above 0, got 0.0'),
        ({'feature_group_count': 2}, (2, 4, 4, 3), 1.0, 'must divide channels 3 and features 4, got 2'),
        ({}, (4, 3), 1.0, r'needs at least 3 axes, got \(4, 3\)'),
        ({'padding': 'SOME'}, (2, 4, 4, 3), 1.0, 'padding must be one of'),
    ],
)
def test_refuses_inputs(arguments, shape, temperature, message):
    layer = DynamicConv(4, (3, 3), **arguments)
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), jnp.ones(shape), temperature)


def test_an_array_of_no_temperature_gives_nan():
    # As documented: its value is unknown while tracing, so nothing can be raised.
    layer, x = DynamicConv(2, (1, 1)), jnp.ones((1, 2, 2, 2))
    y, _ = jit_quickly(layer.init_with_output)(jax.random.key(0), x, jnp.float32(0))
    assert bool(jnp.all(jnp.isnan(y)))
