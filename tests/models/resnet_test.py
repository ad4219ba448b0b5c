"""ResNets: shapes, which layers are dynamic, hashes, errors. tests/training/count_test.py has their parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.models import STEMS, BasicBlock, ResNet, build_model, check_image_size, make_conv_spec
from tests.layers.compiling import jit_quickly


def shapes_of(model, size=224):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


@pytest.mark.parametrize(
    'name', ['resnet10', 'resnet50', *(pytest.param(f'resnet{n}', marks=pytest.mark.slow) for n in (18, 34, 101))]
)
def test_every_model_has_its_shapes(name):
    stem, size = ('imagenet', 64) if name == 'resnet10' else ('cifar', 8)
    model = build_model(name, num_classes=7, granularity='output', width_multiplier=1 / 8, stem=stem)
    (logits, aux), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, 30.0, True, mutable=True), jnp.zeros((2, size, size, 3))
    )
    assert (logits.shape, logits.dtype, aux) == ((2, 7), jnp.float32, {})
    params = variables['params']
    assert 'static_kernel' not in params['stem_conv'] and set(params['classifier']) == {'kernel', 'bias'}
    blocks = [layers for block, layers in params.items() if block.startswith('stage')]
    assert len(blocks) == sum(model.stage_sizes)
    assert any('shortcut_conv' in layers for layers in blocks)
    convolutions = [layer for layers in blocks for part, layer in layers.items() if 'conv' in part]
    assert all('static_kernel' in layer and 'bias' not in layer for layer in convolutions)
    # One set of routing weights for each dynamic convolution, one mask for each.
    assert len(jax.tree.leaves(variables['intermediates'])) == len(convolutions)
    assert len(jax.tree.leaves(variables['partition'])) == len(convolutions)


def test_equal_arguments_make_one_trace():
    arguments = {'num_classes': 4, 'width_multiplier': 1 / 16, 'stem': 'cifar', 'conv': 'static'}
    one, two = (build_model('resnet10', **arguments) for _ in range(2))
    assert one == two and hash(one) == hash(two)
    assert one != build_model('resnet10', **{**arguments, 'width_multiplier': 1 / 8})
    assert build_model('resnet10', num_classes=4, plan='shift') != build_model('resnet10', num_classes=4)
    chex.clear_trace_counter()
    trace = jax.jit(chex.assert_max_traces(lambda model, x: x + model.width_multiplier, n=1), static_argnums=0)
    assert trace(one, 1.0) == trace(two, 1.0)


def shrink(**arguments):
    """Two small stages: all kinds of layers that the networks of the table have."""
    spec = make_conv_spec('dynamic', num_kernels=2, granularity='element', **arguments)
    return ResNet((1, 1), BasicBlock, num_classes=3, conv=spec, stem='cifar', width_multiplier=1 / 16)


def test_values_by_temperature_and_mode():
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    variables = jit_quickly(shrink().init)(jax.random.key(1), x)
    # Sharp attention, so that the temperature shows.
    variables['params'] = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 30 * leaf if 'expand' in jax.tree_util.keystr(path) else leaf, variables['params']
    )

    @jit_quickly
    def apply(temperature):
        return shrink().apply(variables, x, temperature, True, mutable=['batch_stats'])

    ((hot, _), updates), ((cold, _), _) = apply(30.0), apply(1.0)
    assert np.abs(hot - cold).max() > 1e-3
    # Statistics move in training, and only there.
    assert not np.array_equal(updates['batch_stats']['stem_norm']['mean'], np.zeros(4))
    assert jax.eval_shape(shrink().apply, variables, x)[0].shape == (4, 3)


def test_bfloat16_leaves_parameters_and_logits_wide():
    model = build_model('resnet10', num_classes=3, width_multiplier=1 / 8, stem='cifar', dtype='bfloat16')
    variables = shapes_of(model, 8)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    logits, _ = jax.eval_shape(model.apply, variables, jnp.zeros((2, 8, 8, 3)))
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('resnet11', {}, "model must be one of resnet10, .*got 'resnet11'"),
        ('resnet10', {'stem': 'mnist'}, "stem must be one of imagenet, cifar, got 'mnist'"),
        ('resnet10', {'conv': 'involution'}, "conv must be one of static, dynamic.*, got 'involution'"),
        ('resnet10', {'num_kernels': 0}, 'num_kernels must be at least 1, got 0'),
        ('resnet10', {'width_multiplier': 0.0}, 'width_multiplier must be above 0, got 0.0'),
        ('resnet10', {'num_classes': 0}, 'num_classes must be at least 1, got 0'),
        ('resnet10', {'dtype': 'int8'}, "dtype must be one of .*got 'int8'"),
    ],
)
def test_build_refuses(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **{'num_classes': 3, **arguments})


def test_image_sizes():
    for stem, least in STEMS.items():
        check_image_size(stem, least)
    with pytest.raises(ValueError, match="at least 64 for stem 'imagenet', got 32; stem 'cifar' takes it"):
        check_image_size('imagenet', 32)
    with pytest.raises(ValueError, match="at least 8 for stem 'cifar', got 7"):
        check_image_size('cifar', 7)
    with pytest.raises(ValueError, match='stem must be one of'):
        check_image_size('none', 7)
    with pytest.raises(ValueError, match='at least 64'):
        shapes_of(build_model('resnet10', num_classes=3), 32)
