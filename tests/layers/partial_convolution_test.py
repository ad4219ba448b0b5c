"""The operator of partially dynamic convolutions gives the numbers of a dynamic one on whole kernels.

Letters: B batch, S spatial axes, C input channels, F output channels, K kernels, D dynamic of N.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.layers.conv_geometry import resolve_geometry
from pad_jax.layers.partial_convolution import STRUCTURED_AXES, partial_convolution
from tests.layers.compiling import jit_quickly
from tests.layers.conv_twin import convolve_samples

BATCH, CHANNELS, FEATURES, KERNELS = 2, 4, 4, 3
SIZE = (5, 4)
# kernel_size, strides, padding, kernel_dilation, groups.
SAMPLES = [
    ((3, 2), 1, 'SAME', 1, 1),
    ((2, 2), 2, ((2, 0), (1, 1)), 1, 1),
    ((1, 1), 1, 'VALID', 1, 1),
    ((2, 3), 1, 'SAME', 2, 2),
    ((3, 2), 2, 'SAME', 1, CHANNELS),
]


def pick(granularity, how_many, kernel_size, groups):
    """Indices of the dynamic outputs, inputs or taps, and how many there are in all."""
    size = {'output': FEATURES, 'layer': FEATURES, 'input': CHANNELS // groups, 'spatial': math.prod(kernel_size)}
    size = size[granularity]
    count = {'none': 0, 'one': 1, 'some': (size + 1) // 2, 'all': size}[how_many]
    if granularity == 'layer':
        count = size if how_many in ('some', 'all') else 0
    draw = np.random.default_rng(count)
    return np.sort(draw.permutation(size)[: min(count, size)]).astype(np.int32), size


def draw_case(granularity, how_many, sample, by_place):
    kernel_size, strides, padding, dilation, groups = sample
    draw = np.random.default_rng(0).normal
    geometry = resolve_geometry(SIZE, kernel_size, strides, padding, 1, dilation, groups)
    dynamic, size = pick(granularity, how_many, kernel_size, groups)
    others = np.setdiff1d(np.arange(size), dynamic)
    axis = STRUCTURED_AXES[granularity]
    places = (math.prod(kernel_size),) if granularity == 'spatial' else kernel_size
    whole = (*places, CHANNELS // groups, FEATURES)
    kernels = np.take(draw(size=(KERNELS, *whole)), dynamic, axis)
    static = np.take(draw(size=whole), others, axis)
    x = draw(size=(BATCH, *SIZE, CHANNELS))
    attention = draw(size=(BATCH, KERNELS, *(kernel_size if by_place else ())))
    weights = draw(size=(BATCH, *kernel_size)) if by_place == 'both' else None
    cotangent = draw(size=(BATCH, *geometry.output_size(SIZE), FEATURES))
    return (x, kernels, static, attention, dynamic, weights), cotangent, geometry


def twin(x, kernels, static, attention, dynamic, weights, cotangent, granularity, geometry):
    """Whole kernels by assignment, the static one as one more; gradients of the same five by the twin of plans."""
    axis, size = STRUCTURED_AXES[granularity], geometry.kernel_size
    count = kernels.shape[axis] + static.shape[axis]
    others = np.setdiff1d(np.arange(count), dynamic)
    shape = list(kernels.shape)
    shape[axis] = count
    whole = np.zeros((KERNELS + 1, *shape[1:]))
    front = np.moveaxis(whole, axis, 0)
    front[dynamic, :KERNELS] = np.moveaxis(kernels, axis, 0)
    front[others, KERNELS] = np.moveaxis(static, axis, 0)
    ones = (1,) * len(size)
    by_place = attention.reshape(BATCH, KERNELS, *(size if attention.ndim > 2 else ones))
    by_place = np.broadcast_to(by_place, (BATCH, KERNELS, *size))
    last = np.ones((BATCH, 1, *size)) if weights is None else weights[:, None]
    weighted = np.concatenate([by_place, last], axis=1)
    full = whole.reshape(KERNELS + 1, *size, *whole.shape[-2:])
    y, (d_x, d_full, d_weighted) = convolve_samples(x, full, weighted, cotangent, geometry)
    front = np.moveaxis(d_full.reshape(whole.shape), axis, 0)
    d_kernels = np.moveaxis(front[dynamic, :KERNELS], 0, axis)
    d_static = np.moveaxis(front[others, KERNELS], 0, axis)
    d_attention = d_weighted[:, :KERNELS]
    if attention.ndim == 2:
        d_attention = d_attention.reshape(BATCH, KERNELS, -1).sum(-1)
    return y, (d_x, d_kernels, d_static, d_attention, None if weights is None else d_weighted[:, KERNELS])


def run_cases(settings, cases):
    """All cases in one compilation: values and gradients."""

    def run(cases):
        results = []
        for (granularity, geometry), ((x, kernels, static, attention, dynamic, weights), cotangent) in zip(
            settings, cases
        ):

            def apply(x, kernels, static, attention, weights, granularity=granularity, g=geometry, dynamic=dynamic):
                return partial_convolution(
                    x,
                    kernels,
                    static,
                    attention,
                    dynamic,
                    granularity=granularity,
                    kernel_size=g.kernel_size,
                    static_attention=weights,
                    strides=g.strides,
                    padding=g.padding,
                    kernel_dilation=g.kernel_dilation,
                    feature_group_count=g.groups,
                )

            y, pull = jax.vjp(apply, x, kernels, static, attention, weights)
            results.append((y, pull(cotangent)))
        return results

    return jit_quickly(run)(cases)


@pytest.mark.parametrize('granularity', STRUCTURED_AXES)
def test_equals_loop_over_samples(granularity):
    settings, cases, expected = [], [], []
    for how_many in ('none', 'one', 'some', 'all'):
        for number, sample in enumerate(SAMPLES):
            by_place = (None, 'dynamic', 'both')[number % 3]
            arrays, cotangent, geometry = draw_case(granularity, how_many, sample, by_place)
            settings.append((granularity, geometry))
            cases.append((arrays, cotangent))
            expected.append(twin(*arrays, cotangent, granularity, geometry))
    with jax.enable_x64(True):
        results = run_cases(settings, cases)
    for (_, geometry), (arrays, _), result, wanted in zip(settings, cases, results, expected):
        message = f'{granularity} {arrays[4]} {geometry}'
        jax.tree.map(lambda a, b, m=message: np.testing.assert_allclose(a, b, atol=1e-10, err_msg=m), result, wanted)
