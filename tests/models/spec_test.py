"""Convolutions as values."""

import pytest

from pad_jax.layers import CONVS, DynamicConv
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


def test_errors():
    with pytest.raises(ValueError, match=f'conv must be one of {", ".join(CONVS)}, got'):
        make_conv_spec('conv')
    with pytest.raises(ValueError, match='num_kernels must be at least 1, got 0'):
        make_conv_spec('dynamic', num_kernels=0)
