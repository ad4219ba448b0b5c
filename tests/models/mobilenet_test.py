"""MobileNetV2: widths, parameter counts, resolutions, which layers are dynamic. pretrained/ has its numbers."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from pad_jax.models import STEMS, build_model
from pad_jax.models.mobilenet import FIRST_STRIDES, scale_features


def build(**arguments):
    return build_model('mobilenet_v2', **{'num_classes': 1000, 'conv': 'static', **arguments})


def shapes_of(model, size=224):
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x), jnp.zeros((1, size, size, 3)))


def test_channels_are_multiples_of_eight():
    assert scale_features(32, 0.35) == 16  # 11.2: 8 would be less than nine tenths of it
    assert scale_features(32, 0.3) == 16  # 9.6: so would 8, by 1.6
    assert scale_features(16, 0.5) == 8 and scale_features(16, 0.1) == 8
    assert scale_features(24, 1.4) == 32  # 33.6, nearer to 32 than to 40
    assert scale_features(1280, 1.4) == 1792


# Millions, as the authors publish them for their weights: kernels and biases, without the parameters of norms.
@pytest.mark.parametrize(
    ('multiplier', 'millions'), [(1.4, 6.06), (1.3, 5.34), (1.0, 3.47), (0.75, 2.61), (0.5, 1.95), (0.35, 1.66)]
)
def test_parameters_by_width(multiplier, millions):
    params = shapes_of(build(width_multiplier=multiplier))['params']
    paths = jax.tree_util.tree_leaves_with_path(params)
    total = sum(leaf.size for path, leaf in paths if 'norm' not in jax.tree_util.keystr(path))
    assert f'{total / 1e6:.2f}' == f'{millions:.2f}'


def test_every_convolution_but_the_stem_is_dynamic():
    model = build(conv='dynamic', granularity='output', num_classes=7)
    (logits, aux), variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, 30.0, True, mutable=True), jnp.zeros((2, 64, 64, 3))
    )
    assert (logits.shape, logits.dtype, aux) == ((2, 7), jnp.float32, {})
    params = variables['params']
    assert 'static_kernel' not in params['stem_conv'] and set(params['classifier']) == {'kernel', 'bias'}
    blocks = [layers for block, layers in params.items() if block.startswith('stage')]
    convolutions = [layer for layers in (*blocks, params) for name, layer in layers.items() if name.endswith('_conv')]
    convolutions = [layer for layer in convolutions if layer is not params['stem_conv']]
    # 17 blocks of three, the first without the expansion, and the last.
    assert len(blocks) == 17 and len(convolutions) == 17 * 3 - 1 + 1
    assert all('static_kernel' in layer and 'bias' not in layer for layer in convolutions)
    assert len(jax.tree.leaves(variables['intermediates'])) == len(convolutions)
    assert len(jax.tree.leaves(variables['partition'])) == len(convolutions)
    # Within each channel: K kernels of one input channel.
    assert params['stage2_block1']['depthwise_conv']['kernel'].shape == (4, 3, 3, 1, 96)


@pytest.mark.parametrize(
    ('stem', 'size', 'sides'),
    [('imagenet', 224, [112, 112, 56, 28, 14, 14, 7, 7]), ('cifar', 32, [32, 32, 32, 16, 8, 8, 4, 4])],
)
def test_resolution_falls_as_in_the_table(stem, size, sides):
    model = build(stem=stem, num_classes=3)
    variables = jax.eval_shape(
        lambda x: model.init_with_output(
            jax.random.key(0), x, capture_intermediates=lambda module, _: isinstance(module, nn.BatchNorm)
        )[1],
        jnp.zeros((1, size, size, 3)),
    )['intermediates']
    found = [variables['stem_norm']['__call__'][0].shape[1]]
    found += [variables[f'stage{stage}_block1']['project_norm']['__call__'][0].shape[1] for stage in range(1, 8)]
    assert found == sides
    assert FIRST_STRIDES.keys() == STEMS.keys()
    with pytest.raises(ValueError, match='image_size must be at least'):
        shapes_of(model, STEMS[stem] - 1)
