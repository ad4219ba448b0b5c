"""Folded networks compute the same as before, with any convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.deploy.folding import fold_norms, fold_scales
from pad_jax.layers import CONVS, find_records
from pad_jax.models import BasicBlock, BottleneckBlock, MobileNetV2, ResNet, make_conv_spec
from tests.deploy.drawing import draw_variables
from tests.layers.compiling import jit_quickly

NETWORKS = {
    'basic': lambda **fields: ResNet((1,), BasicBlock, width_multiplier=1 / 16, **fields),
    'bottleneck': lambda **fields: ResNet((1,), BottleneckBlock, width_multiplier=1 / 16, **fields),
    'inverted': lambda **fields: MobileNetV2(width_multiplier=0.1, stages=((1, 16, 1, 1), (2, 16, 2, 2)), **fields),
}


def build(network, conv, scales):
    spec = make_conv_spec(conv, num_kernels=2, granularity='element', scales=scales)
    return NETWORKS[network](num_classes=5, stem='cifar', conv=spec)


# Each block with names of its own; the tests of exports have every dynamic convolution.
@pytest.mark.parametrize(
    'network, conv',
    [
        ('bottleneck', 'static'),
        ('inverted', 'static'),
        *(pytest.param('basic', conv, marks=pytest.mark.slow) for conv in CONVS),
    ],
)
def test_norms_fold(network, conv):
    model, images = build(network, conv, 'both'), jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = draw_variables(model, [images])
    expected, _ = jit_quickly(model.apply)(variables, images)
    others = {name: of for name, of in variables.items() if name not in ('params', 'batch_stats')}
    folded = {
        **others,
        'params': fold_norms(variables['params'], variables['batch_stats'], find_records(model, images)),
    }
    found, _ = jit_quickly(model.clone(norms_folded=True).apply)(folded, images)
    assert not np.allclose(expected[0], expected[1], rtol=1e-2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert set(folded['params']['stem_norm']) == {'bias'}


def test_scales_fold():
    conv, scales = 'condconv', 'static'  # the tests of exports have dynamic, both
    model, images = build('basic', conv, scales), jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = draw_variables(model, [images])
    expected, _ = jit_quickly(model.apply)(variables, images)
    folded = {**variables, 'params': fold_scales(variables['params'], find_records(model, images))}
    found, _ = jit_quickly(build('basic', conv, 'none').apply)(folded, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_folding_leaves_its_arguments_and_what_has_no_norm_alone():
    params = {'dense': {'kernel': jnp.ones((2, 2))}}
    assert fold_norms(params, {}, {}) == params and fold_scales(params, {}) == params
