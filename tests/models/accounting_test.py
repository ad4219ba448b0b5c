"""Parameters against arrays that were made, multiply-adds against those of traced programs, of XLA, and by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pad_jax.layers import (
    CondConv,
    DCDConv,
    DynamicConv,
    MixtureFFN,
    MixtureLinear,
    ODConv,
    StaticConv,
    compact,
    find_records,
)
from pad_jax.layers.factors import read_records
from pad_jax.models import account_layers, build_encoder, build_model, count_layers, report_counts, sum_multiply_adds
from pad_jax.partition import Layout, leaf_names, positions_of
from tests.models.product_twin import count_products

IMAGE = jax.ShapeDtypeStruct((1, 9, 9, 6), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((1, 5, 6), jnp.float32)
CONVS = {'dynamic': DynamicConv, 'condconv': CondConv, 'odconv': ODConv, 'dcd': DCDConv}


def shapes_of(model, *inputs):
    return jax.eval_shape(partial(model.init, mutable=True), jax.random.key(0), *inputs)


def account(model, *inputs, num_dynamic=None):
    """`num_dynamic` positions of each parameter; all of them if None."""
    variables = shapes_of(model, *inputs)
    if num_dynamic is None and 'partition' in variables:
        layout = Layout.of(read_records(variables['intermediates']))
        positions = positions_of(layout, variables['params'], variables['partition'])
        num_dynamic = {name: leaf.size for name, leaf in zip(leaf_names(positions), jax.tree.leaves(positions))}
    return account_layers(model, inputs, count_layers(variables, num_dynamic))


def stored(layers):
    """Parameters (masked, compact), dead ones in masked storage too."""
    alive = report_counts(layers)['parameters']
    return alive + sum(layer.dead_parameters for layer in layers), alive


def products_of(model, *inputs, temperature=()):
    variables = {name: tree for name, tree in shapes_of(model, *inputs).items() if name != 'intermediates'}
    return count_products(lambda variables, *inputs: model.apply(variables, *inputs, *temperature), variables, *inputs)


@pytest.mark.parametrize('name', ['resnet10', 'resnet50', 'mobilenet_v2'])
def test_static_networks_of_images_multiply_what_their_programs_do(name):
    model = build_model(name, num_classes=7, conv='static', width_multiplier=0.25)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    found = sum_multiply_adds(account(model, image))
    assert found.dense == found.masked == found.compact == products_of(model, image)


# Millions of multiply-adds of the static networks at 224², as they are quoted everywhere.
@pytest.mark.parametrize(('name', 'millions'), [('resnet18', 1814), ('resnet50', 4089), ('mobilenet_v2', 301)])
def test_the_papers_networks(name, millions):
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert (
        round(sum_multiply_adds(account(build_model(name, num_classes=1000, conv='static'), image)).dense / 1e6)
        == millions
    )


@pytest.mark.parametrize(('remat', 'head'), [(False, 'classes'), (True, 'classes'), (False, 'words')])
def test_a_dense_encoder_multiplies_what_its_program_does(remat, head):
    fields = {'vocab_size': 50, 'max_length': 16, 'remat': remat, 'head': head}
    model = build_encoder('bert_tiny', num_classes=3, ffn='dense', **fields)
    tokens = jax.ShapeDtypeStruct((1, 12), jnp.int32)
    valid = jax.ShapeDtypeStruct((1, 12), bool)
    found = account(model, tokens, tokens, valid)
    assert sum_multiply_adds(found).dense == products_of(model, tokens, tokens, valid)
    by_name = {layer.name: layer for layer in found}
    # 12² pairs of tokens, 128 features, weights and what they weigh; it holds no parameters of its own.
    assert by_name['layer_1/attention'].multiply_adds.dense == 2 * 12 * 12 * 128
    assert stored([by_name['layer_1/attention']]) == (0, 0)


@pytest.mark.parametrize('strides', [1, 2])
@pytest.mark.parametrize('name', ['dynamic', 'condconv', 'odconv', 'dcd'])
def test_dynamic_convolutions_multiply_what_their_programs_do(name, strides):
    """By the plan that does what the papers describe: it mixes one kernel for each sample."""
    fields = {'reduction': 2, 'plan': 'shift'}
    fields.pop({'dcd': 'plan', 'condconv': 'reduction'}.get(name), None)
    model = CONVS[name](8, (3, 3), strides=strides, use_bias=False, feature_group_count=2, **fields)
    # Two groups of eight: sums over a single channel would be no matrix products, and not be found.
    image = jax.ShapeDtypeStruct((1, 9, 9, 16), jnp.float32)
    found = sum_multiply_adds(account(model, image))
    assert found.masked == found.compact == products_of(model, image)
    static = StaticConv(8, (3, 3), strides=strides, feature_group_count=2)
    assert found.dense == products_of(static, image)


# A neuron has 6 weights in, or gate and up, 6 out and its biases; a linear layer only weights in.
@pytest.mark.parametrize(
    ('layer', 'weights', 'positions'),
    [
        (MixtureLinear, 60, 60),
        (MixtureFFN, 2 * 6 * 10, 13 * 10),
        (partial(MixtureFFN, activation='swiglu'), 3 * 6 * 10, 20 * 10),
        (partial(MixtureFFN, activation='swiglu', use_bias=False), 3 * 6 * 10, 3 * 6 * 10),
    ],
)
def test_mixtures_by_hand(layer, weights, positions):
    build = partial(layer, 10, num_experts=4, num_selected=3)
    router, name = 5 * 6 * 4, 'kernel_mask' if layer is MixtureLinear else 'neurons_mask'
    (dynamic,) = account(build(), TOKENS)
    assert dynamic.multiply_adds == (5 * weights, 5 * 3 * weights + router, 5 * 3 * weights + router)
    half = {name: positions // 2}
    (element,) = account(build(granularity='element'), TOKENS, num_dynamic=half)
    assert element.multiply_adds == dynamic.multiply_adds  # each expert's matrix is put together as a whole
    (output,) = account(build(granularity='output'), TOKENS, num_dynamic=half)
    assert output.multiply_adds.masked == dynamic.multiply_adds.masked
    assert output.multiply_adds.compact == 5 * (3 * weights // 2 + weights // 2) + router
    (sentence,) = account(build(routing='sentence'), TOKENS)
    assert sentence.multiply_adds.masked == 5 * 3 * weights + 6 * 4


LAYERS = [(name, kind) for name in (*CONVS, 'linear', 'ffn') for kind in ('element', 'output', 'input', 'layer')]
LAYERS.remove(('ffn', 'input'))  # neurons have no such granularity


@pytest.mark.parametrize('name, granularity', LAYERS)
def test_compact_parameters_are_those_of_compact_arrays(name, granularity):
    if name in CONVS:
        model, x = CONVS[name](8, (3, 3), granularity=granularity), IMAGE
    else:
        kind = {'linear': MixtureLinear, 'ffn': MixtureFFN}[name]
        model, x = kind(8, num_experts=4, granularity=granularity), TOKENS
    shapes = {name: tree for name, tree in shapes_of(model, x).items() if name != 'intermediates'}
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    generator = np.random.default_rng(0)
    variables['partition'] = jax.tree.map(lambda mask: generator.random(mask.shape) < 0.4, shapes['partition'])
    found = account_layers(
        model, [x], count_layers(variables | {'intermediates': shapes_of(model, x)['intermediates']})
    )
    small = compact(variables, find_records(model, x))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(one['params'])) for one in (variables, small)]
    assert stored(found) == tuple(sizes)


def test_products_within_a_dynamic_layer_belong_to_it():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = ODConv(8, (3, 3), name='conv')(x)
            return nn.Dense(3, name='classifier')(x.mean((1, 2)))

    found = {layer.name: layer.multiply_adds for layer in account(Network(), IMAGE)}
    assert list(found) == ['classifier', 'conv', 'conv/channel', 'conv/filter', 'conv/spatial']
    assert found['classifier'] == (24, 24, 24)
    # 9·9 outputs, 4 kernels of 432 positions to mix, 6 channels to 16 units, these to 4 logits.
    assert found['conv'].masked == 81 * 432 + 4 * 432 + 6 * 16 + 16 * 4
    assert found['conv/channel'] == (0, 16 * 6, 16 * 6)
