"""Convolutions as values."""

from pad_jax.layers import DynamicConv
from pad_jax.models import make_conv_spec


def test_equal_arguments_make_equal_specs():
    one, two = (make_conv_spec('dynamic', num_kernels=2, plan='shift') for _ in range(2))
    assert one == two and hash(one) == hash(two)
    assert one != make_conv_spec('dynamic', num_kernels=3, plan='shift')
    layer = one(8, (3, 3), strides=2)
    assert isinstance(layer, DynamicConv)
    assert (layer.features, layer.strides, layer.num_kernels, layer.plan) == (8, 2, 2, 'shift')


def test_static_takes_what_it_knows():
    assert make_conv_spec('static', num_kernels=2, granularity='output', use_bias=False).arguments == (
        ('use_bias', False),
    )
