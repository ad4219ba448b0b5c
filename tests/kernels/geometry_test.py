"""Geometries: the numbers of flax.linen.Conv, and errors with values."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from pad_jax.kernels.geometry import pad_by_copying, resolve_geometry


@pytest.mark.parametrize(
    ('padding', 'input_dilation'),
    [('SAME', 1), ('VALID', 1), ('SAME_LOWER', 1), (2, 2), (((1, 0), (-1, 2)), 3), ((1, 2), 1)],
)
def test_output_size_is_that_of_flax(padding, input_dilation):
    for kernel, stride, dilation in itertools.product((1, 2, 3), (1, 2, 3), (1, 2)):
        arguments = {'padding': padding, 'input_dilation': input_dilation, 'kernel_dilation': dilation}
        layer = nn.Conv(5, (kernel, 2), stride, **arguments)
        x = jax.ShapeDtypeStruct((1, 7, 8, 3), jnp.float32)
        expected = jax.eval_shape(lambda x, layer=layer: layer.init_with_output(jax.random.key(0), x)[0], x)
        geometry = resolve_geometry((7, 8), (kernel, 2), stride, **arguments)
        assert geometry.output_size((7, 8)) == expected.shape[1:3]
        assert hash(geometry) == hash(resolve_geometry((7, 8), (kernel, 2), stride, **arguments))


def test_window_wider_than_the_input_gives_nothing():
    assert resolve_geometry((2, 2), (3, 3), 1, 'VALID').output_size((2, 2)) == (0, 0)


def test_padding_by_copying():
    x = jnp.arange(4.0)[None, :, None]

    def pad(padding, kernel_size, dilation):
        geometry = resolve_geometry((4,), kernel_size, 1, padding, 1, dilation)
        return pad_by_copying(x, padding, geometry)

    assert pad('CIRCULAR', 3, 1).ravel().tolist() == [3, 0, 1, 2, 3, 0]
    assert pad('reflect', 2, 2).ravel().tolist() == [1, 0, 1, 2, 3, 2]
    assert pad('SAME', 3, 1) is x


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'padding': 'SOME'}, "padding must be one of SAME, .*got 'SOME'"),
        ({'padding': 'CAUSAL'}, 'one spatial axis, got 2'),
        ({'padding': [(1, 1)]}, 'padding must name 2'),
        ({'padding': [1, (1, 2, 3)]}, 'padding must name 2'),
        ({'padding': 'SAME', 'input_dilation': 2}, "padding 'SAME' is undefined for input_dilation"),
        ({'strides': 0}, 'strides must be at least 1 .*got 0'),
        ({'strides': (1, 2, 3)}, 'strides must be at least 1 on each of the 2'),
        ({'kernel_dilation': -1}, 'kernel_dilation must be at least 1'),
        ({'groups': 0}, 'feature_group_count must be at least 1, got 0'),
        ({'kernel_size': (3,)}, 'needs an input with 1 spatial axes, got 2'),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        resolve_geometry((6, 6), **{'kernel_size': (3, 3), **arguments})
