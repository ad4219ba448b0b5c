"""Every dynamic convolution: its paper's equation, its limits, its gate, what it sows, what it refuses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pad_jax.kernels.geometry import resolve_geometry
from pad_jax.layers import CONVS, CondConv, DCDConv, DynamicConv, ODConv, StaticConv
from pad_jax.layers.dcd import latent_width
from pad_jax.models import count_layers
from pad_jax.partition.masks import GRANULARITIES
from tests.layers.compiling import jit_quickly
from tests.layers.conv_layers_twin import KERNELS, convolve_layer

# Beside features = 8 of 4 channels: the arguments, the shape of an input, the granularity.
CASES = {
    'strided': ({'kernel_size': (3, 3), 'strides': 2, 'padding': 1}, (2, 5, 4, 4), None),
    'groups': ({'kernel_size': (3, 2), 'strides': (1, 2), 'feature_group_count': 2}, (2, 4, 5, 4), 'element'),
    'depthwise': ({'kernel_size': (3, 3), 'features': 4, 'feature_group_count': 4}, (2, 4, 4, 4), 'element'),
    'multiplied': ({'kernel_size': (1, 3), 'feature_group_count': 4, 'padding': 'VALID'}, (2, 2, 5, 4), 'input'),
    'pointwise': ({'kernel_size': (1, 1), 'strides': 2}, (3, 3, 4, 4), 'output'),
    'dilated': ({'kernel_size': (4, 3), 'kernel_dilation': 2, 'padding': ((-1, 5), (2, 2))}, (2, 6, 4, 4), 'spatial'),
    'causal': ({'kernel_size': (3,), 'padding': 'CAUSAL', 'input_dilation': 2}, (2, 5, 4), None),
}
NAMES = tuple(KERNELS)
NEW = tuple(name for name in NAMES if name != 'dynamic')


def build(name, **arguments):
    fields = {'features': 8, 'reduction': 1, 'plan': 'shift', **arguments}
    return CONVS[name](**{key: value for key, value in fields.items() if key in CONVS[name].__dataclass_fields__})


@functools.cache
def settled(name, case):
    """(layer, params, masks, x, geometry) in float64, with random parameters and masks: nothing is at its start."""
    arguments, shape, granularity = CASES[case]
    layer = build(name, param_dtype=jnp.float64, granularity=granularity, **arguments)
    rng = np.random.default_rng(len(name) + len(case))
    x = rng.normal(size=shape)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes['params'])
    masks = jax.tree.map(lambda leaf: rng.random(leaf.shape) < 0.5, shapes.get('partition', {}))
    names = ('strides', 'padding', 'input_dilation', 'kernel_dilation', 'feature_group_count')
    geometry = [getattr(layer, field) for field in names]
    return layer, params, masks, x, resolve_geometry(x.shape[1:-1], layer.kernel_size, *geometry)


# The others are slow: each argument that a layer treats in its own way is in one of these.
QUICK = ('groups', 'depthwise', 'pointwise')


@pytest.mark.parametrize(
    ('name', 'case'),
    [
        *(pytest.param(name, case, marks=[] if case in QUICK else pytest.mark.slow) for name in NEW for case in CASES),
        ('dynamic', 'groups'),
    ],
)
def test_equals_a_loop_over_samples(name, case):
    with jax.enable_x64(True):
        layer, params, masks, x, geometry = settled(name, case)

        @jit_quickly
        def differentiate(params, x, cotangent):
            y, pull = jax.vjp(lambda params, x: layer.apply({'params': params, 'partition': masks}, x, 3.0), params, x)
            return y, pull(cotangent)

        twin = convolve_layer(name, params, x, masks, 3.0, geometry)
        rng = np.random.default_rng(5)
        cotangent, direction = (
            rng.normal(size=twin.shape),
            jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), (params, x)),
        )
        y, gradients = differentiate(params, x, cotangent)
    np.testing.assert_allclose(y, twin, atol=1e-10)
    # All parameters and the input along one random direction: any wrong derivative shows.
    ahead, behind = (
        convolve_layer(name, *move((params, x), direction, step), masks, 3.0, geometry) for step in (1e-6, -1e-6)
    )
    found = sum(np.vdot(*leaves) for leaves in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction)))
    np.testing.assert_allclose(found, np.vdot(ahead - behind, cotangent) / 2e-6, rtol=1e-6, atol=1e-6)


def move(tree, direction, step):
    return jax.tree.map(lambda leaf, by: leaf + step * by, tree, direction)


@pytest.mark.parametrize('name', NAMES)
def test_all_dynamic_is_the_plain_dynamic_layer(name):
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 4))
    partial, plain = (build(name, kernel_size=(3, 3), granularity=granularity) for granularity in ('element', None))

    @jit_quickly
    def compare(x):
        expected, variables = plain.init_with_output(jax.random.key(1), x, 2.0)
        fresh = partial.init(jax.random.key(2), x)
        return expected, partial.apply({**fresh, 'params': put_over(fresh['params'], variables['params'])}, x, 2.0)

    expected, found = compare(x)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def put_over(params, others):
    """The params with all that the others hold in place of theirs."""
    return {
        name: put_over(leaf, others[name]) if isinstance(leaf, dict) else others.get(name, leaf)
        for name, leaf in params.items()
    }


@pytest.mark.parametrize('case', [pytest.param('groups', marks=pytest.mark.slow), 'depthwise'])
@pytest.mark.parametrize('name', NAMES)
def test_all_static_is_a_static_convolution(name, case):
    with jax.enable_x64(True):
        layer, params, masks, x, geometry = settled(name, case)
        layer, params = layer.clone(use_bias=False), {key: leaf for key, leaf in params.items() if key != 'bias'}
        masks = jax.tree.map(np.zeros_like, masks)
        apply = jit_quickly(lambda params, x: layer.apply({'params': params, 'partition': masks}, x, 0.5))
        # One kernel for all: that of the twin for any sample.
        kernel, _ = KERNELS[name](params, masks, np.full(4, 7.0), 0.5, geometry)
        static = nn.Conv(
            layer.features, layer.kernel_size, layer.strides, feature_group_count=geometry.groups, use_bias=False
        )
        np.testing.assert_allclose(apply(params, x), static.apply({'params': {'kernel': kernel}}, x), atol=1e-10)
        np.testing.assert_allclose(apply(params, x + 100) - apply(params, x), apply(params, 100 + 0 * x), atol=1e-9)

        def moved(path, leaf):
            routes = any(part.key in ('attention', 'squeeze', 'tensor') for part in path) or (
                path[0].key in ('channel', 'filter', 'spatial', 'scaling', 'fusion') and path[-1].key == 'bias'
            )
            return leaf + 1.5 if routes else leaf

        others = jax.tree_util.tree_map_with_path(moved, params)
        np.testing.assert_allclose(apply(others, x), apply(params, x), atol=1e-10)


@pytest.mark.parametrize('granularity', ['element', pytest.param('output', marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', NAMES)
def test_gate_gradient_is_the_finite_difference(name, granularity):
    with jax.enable_x64(True):
        layer, params, _, x, _ = settled(name, 'groups')
        layer = layer.clone(granularity=granularity)
        shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
        rng = np.random.default_rng(3)
        gates, direction = (jax.tree.map(lambda leaf: rng.random(leaf.shape), shapes['partition']) for _ in range(2))

        def loss(gates):
            return jnp.sum(jnp.sin(layer.apply({'params': params, 'partition': gates}, x, 2.0)))

        gradient, loss = jit_quickly(jax.grad(loss))(gates), jit_quickly(loss)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            assert leaf.any(), path
            # Only along this mask, so that no other gradient hides its own.
            alone = jax.tree_util.tree_map_with_path(lambda at, by, path=path: by * (at == path), direction)
            ahead, behind = (loss(move(gates, alone, step)) for step in (1e-6, -1e-6))
            found = sum(np.vdot(*leaves) for leaves in zip(jax.tree.leaves(gradient), jax.tree.leaves(alone)))
            np.testing.assert_allclose(found, (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('granularity', GRANULARITIES)
def test_masks_of_what_is_generated(granularity):
    def masks_of(name, groups=1):
        layer = build(name, kernel_size=(3, 5), granularity=granularity, feature_group_count=groups)
        shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 5, 5, 8)))['partition']
        return jax.tree.map(lambda leaf: leaf.shape, shapes, is_leaf=lambda leaf: hasattr(leaf, 'shape'))

    by = dict.fromkeys(GRANULARITIES, (1, 1, 1, 1))
    assert masks_of('odconv') == {
        'kernel_mask': masks_of('dynamic')['kernel_mask'],
        'channel': {'tensor_mask': (by | {'element': (1, 1, 8, 1), 'input': (1, 1, 8, 1)})[granularity]},
        'filter': {'tensor_mask': (by | {'element': (1, 1, 1, 8), 'output': (1, 1, 1, 8)})[granularity]},
        'spatial': {'tensor_mask': (by | {'element': (3, 5, 1, 1), 'spatial': (3, 5, 1, 1)})[granularity]},
    }
    fusion = {'element': (2, 2, 2), 'output': (1, 1, 2), 'input': (1, 2, 1), 'spatial': (2, 1, 1), 'layer': (1, 1, 1)}
    assert masks_of('dcd', groups=2) == {
        'scaling': {'tensor_mask': (by | {'element': (1, 1, 1, 8), 'output': (1, 1, 1, 8)})[granularity]},
        'fusion': {'tensor_mask': fusion[granularity]},
    }


def test_heads_that_would_say_nothing_are_left_out():
    def heads(**arguments):
        shapes = jax.eval_shape(build('odconv', **arguments).init, jax.random.key(0), jnp.ones((1, 4, 4, 8)))
        return {'channel', 'filter', 'spatial'} & shapes['params'].keys()

    assert heads(kernel_size=(3, 3)) == {'channel', 'filter', 'spatial'}
    assert heads(kernel_size=(1, 1)) == {'channel', 'filter'}
    assert heads(kernel_size=(3, 3), feature_group_count=8) == {'channel', 'spatial'}
    # Two filters of each channel: they can be told apart.
    assert heads(kernel_size=(3, 3), feature_group_count=8, features=16) == {'channel', 'filter', 'spatial'}


def test_hidden_and_latent_widths():
    def shapes(layer, channels):
        tree = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 2, 2, channels)))['params']
        return jax.tree.map(lambda leaf: leaf.shape, tree, is_leaf=lambda leaf: hasattr(leaf, 'shape'))

    assert shapes(ODConv(8, (1, 1)), 64)['squeeze'] == (64, 16)
    assert shapes(ODConv(8, (1, 1)), 320)['squeeze'] == (320, 20)
    assert shapes(CondConv(8, (1, 1)), 64)['attention'] == {'expand': (64, 4), 'bias': (4,)}
    found = shapes(DCDConv(8, (3, 3), feature_group_count=4), 80)
    assert (found['squeeze'], found['into_latent'], found['out_of_latent']) == ((80, 5), (4, 20, 4), (4, 4, 2))
    assert shapes(DCDConv(8, (1, 1)), 8)['squeeze'] == (8, 4)
    assert found['fusion'] == {'tensor': (5, 4, 4, 4), 'bias': (4, 4, 4)} and found['kernel'] == (3, 3, 20, 8)
    assert [latent_width(channels) for channels in (1, 3, 4, 8, 9, 512)] == [1, 1, 2, 2, 3, 22]


def test_counts_by_hand():
    x = jnp.ones((1, 4, 4, 8))

    def count(name, granularity):
        layer = build(name, kernel_size=(3, 3), granularity=granularity, use_bias=False)
        shapes = jax.eval_shape(functools.partial(layer.init, mutable=True), jax.random.key(0), x)
        # Nothing is dynamic: what is counted is one static parameter for each position.
        masks = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), shapes.get('partition', {}))
        rows = count_layers({**shapes, 'partition': masks})
        return {row.name: (row.positions, row.dynamic_positions, row.num_factors, row.other_parameters) for row in rows}

    # 3·3·8·8 = 576 positions. Routing 8·4 + 4; φ is one more parameter of each stack.
    assert count('condconv', None) == {'': (576, 576, 4, 36)}
    assert count('condconv', 'element') == {'': (576, 0, 4, 37)}
    # The hidden layer 8·16, the head over kernels 16·4 + 4; a vector has a factor for each unit, and a
    # bias, which is dead where nothing is dynamic.
    vectors = {'channel': 8, 'filter': 8, 'spatial': 9}
    assert count('odconv', None) == {'': (576, 576, 4, 196)} | {name: (n, n, 16, n) for name, n in vectors.items()}
    assert count('odconv', 'element') == {'': (576, 0, 4, 197)} | {name: (n, 0, 16, 1) for name, n in vectors.items()}
    # L = 2: the kernel 576, Q 8·2, P 2·8 and the hidden layer 8·8 are ordinary parameters; 8 units and a bias.
    assert count('dcd', None) == {'': (0, 0, 0, 672), 'scaling': (8, 8, 8, 8), 'fusion': (4, 4, 8, 4)}
    assert count('dcd', 'output') == {'': (0, 0, 0, 672), 'scaling': (8, 0, 8, 1), 'fusion': (4, 0, 8, 1)}


@pytest.mark.parametrize('name', NAMES)
def test_samples_temperatures_and_batches(name):
    layer = build(name, kernel_size=(3, 3), granularity='output')
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 4))
    variables = jit_quickly(layer.init)(jax.random.key(1), x)
    chex.clear_trace_counter()

    @jit_quickly
    @chex.assert_max_traces(n=1)
    def apply(x, temperature):
        return layer.apply(variables, x, temperature)

    hot, cold = (apply(x, jnp.float32(temperature)) for temperature in (30.0, 1.0))
    assert (np.abs(hot - cold).max() > 1e-4) == (name in ('dynamic', 'odconv'))
    # Other samples have no effect. Any number of batch axes, and an empty batch.
    np.testing.assert_array_equal(hot[2], apply(x.at[0].set(1e3), jnp.float32(30.0))[2])
    one, more, none = jit_quickly(lambda *batches: [layer.apply(variables, batch, 30.0) for batch in batches])(
        x[2], x[None, :2], x[:0]
    )
    np.testing.assert_allclose(one, hot[2], atol=1e-5)
    np.testing.assert_allclose(more[0], hot[:2], atol=1e-5)
    assert none.shape == (0, 4, 4, 8)


@pytest.mark.parametrize('name', NAMES)
def test_dtypes(name):
    def differentiate(layer, x):
        variables = layer.init(jax.random.key(0), x)

        def loss(params):
            y, state = layer.apply({**variables, 'params': params}, x, mutable=['intermediates'])
            return y.astype(jnp.float32).sum(), (y, state['intermediates'])

        return jax.grad(loss, has_aux=True)(variables['params'])

    with jax.numpy_dtype_promotion('strict'):
        for param_dtype, groups in (('float32', 1), ('bfloat16', 4)):
            arguments = {'granularity': 'element', 'feature_group_count': groups, 'plan': 'auto'}
            layer = build(name, kernel_size=(2, 2), dtype='bfloat16', param_dtype=param_dtype, **arguments)
            x = jax.ShapeDtypeStruct((2, 4, 4, 4), 'bfloat16')
            gradients, (y, sown) = jax.eval_shape(functools.partial(differentiate, layer), x)
            assert y.dtype == jnp.bfloat16
            assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(param_dtype)}
            # Attention is as sharp as its logits are exact.
            assert {leaf.dtype for leaf in jax.tree.leaves(sown)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('name', NAMES)
def test_what_every_convolution_refuses(name):
    for arguments, message in (
        ({'features': 0}, 'features must be at least 1, got 0'),
        ({'granularity': 'rows'}, "granularity must be one of None, element, .*got 'rows'"),
        ({'scales': 'all'}, "scales must be one of both, static, dynamic, none, got 'all'"),
    ):
        with pytest.raises(ValueError, match=message):
            CONVS[name](**{'features': 4, 'kernel_size': (3, 3), **arguments})
    with pytest.raises(ValueError, match='must divide channels 3 and features 8, got 2'):
        build(name, kernel_size=(3, 3), feature_group_count=2).init(jax.random.key(0), jnp.ones((1, 4, 4, 3)))


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


# Every argument is in one of the quick ones.
SLOW = (0, 2, 5, 8, 9)


@pytest.mark.parametrize(
    ('arguments', 'shape'),
    [pytest.param(*case, marks=pytest.mark.slow if i in SLOW else []) for i, case in enumerate(ARGUMENTS)],
)
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
    ('layer', 'arguments', 'message'),
    [
        (DynamicConv, {'num_kernels': 0}, 'num_kernels must be at least 1, got 0'),
        (DynamicConv, {'reduction': 0}, 'reduction must be at least 1, got 0'),
        (DynamicConv, {'plan': 'fast'}, "plan must be one of auto, fused, shift, outputs, got 'fast'"),
        (ODConv, {'plan': 'outputs'}, "plan must be one of auto, fused, shift, got 'outputs'"),  # attention over taps
        (DynamicConv, {'shape': (4, 3)}, r'needs at least 3 axes, got \(4, 3\)'),
        (DynamicConv, {'padding': 'SOME'}, 'padding must be one of'),
        (DynamicConv, {'temperature': 0.0}, 'temperature must be above 0, got 0.0'),
        (DynamicConv, {'temperature': 1e-50}, 'temperature must be above 0, got 1e-50'),  # 0 as float32
    ],
)
def test_what_is_refused(layer, arguments, message):
    shape, temperature = arguments.pop('shape', (2, 4, 4, 3)), arguments.pop('temperature', 1.0)
    with pytest.raises(ValueError, match=message):
        layer(4, (3, 3), **arguments).init(jax.random.key(0), jnp.ones(shape), temperature)


def test_an_array_of_no_temperature_gives_nan():
    # As documented: its value is unknown while tracing, so nothing can be raised.
    layer, x = DynamicConv(2, (1, 1)), jnp.ones((1, 2, 2, 2))
    y, _ = jit_quickly(layer.init_with_output)(jax.random.key(0), x, jnp.float32(0))
    assert bool(jnp.all(jnp.isnan(y)))
