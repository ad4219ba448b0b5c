"""The operator of partially dynamic convolutions gives the numbers of a dynamic one on whole kernels.

Letters: B batch, S spatial axes, C input channels, F output channels, K kernels, D dynamic of N.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.kernels.geometry import resolve_geometry
from pad_jax.layers.conv_plans import PLANS
from pad_jax.layers.partial_convolution import STRUCTURED_AXES, choose_form, partial_convolution
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
        for (granularity, geometry, plan), ((x, kernels, static, attention, dynamic, weights), cotangent) in zip(
            settings, cases
        ):

            def apply(x, kernels, static, attention, weights, dynamic=dynamic, settings=(granularity, geometry, plan)):
                granularity, geometry, plan = settings
                return partial_convolution(
                    x,
                    kernels,
                    static,
                    attention,
                    dynamic,
                    granularity=granularity,
                    kernel_size=geometry.kernel_size,
                    static_attention=weights,
                    strides=geometry.strides,
                    padding=geometry.padding,
                    kernel_dilation=geometry.kernel_dilation,
                    feature_group_count=geometry.groups,
                    plan=plan,
                )

            y, pull = jax.vjp(apply, x, kernels, static, attention, weights)
            results.append((y, pull(cotangent)))
        return results

    return jit_quickly(run)(cases)


def narrow(part):
    """As float32, indices as they are."""
    return jnp.asarray(part, jnp.float32 if part.dtype == np.float64 else part.dtype)


def check_against_twin(chosen):
    """(granularity, how many are dynamic, sample, which attention is by place, plan) each."""
    settings, cases, expected = [], [], []
    for granularity, how_many, sample, by_place, plan in chosen:
        arrays, cotangent, geometry = draw_case(granularity, how_many, sample, by_place)
        settings.append((granularity, geometry, plan))
        cases.append((arrays, cotangent))
        expected.append(twin(*arrays, cotangent, granularity, geometry))
    with jax.enable_x64(True):
        results = run_cases(settings, cases)
    for setting, (arrays, _), result, wanted in zip(settings, cases, results, expected):
        message = f'{setting} dynamic {arrays[4]}'
        jax.tree.map(lambda a, b, m=message: np.testing.assert_allclose(a, b, atol=1e-10, err_msg=m), result, wanted)


@pytest.mark.parametrize('granularity', STRUCTURED_AXES)
def test_none_or_all_of_it_dynamic(granularity):
    check_against_twin(
        (granularity, how_many, sample, by_place, 'auto')
        for how_many, by_place in (('none', None), ('none', 'both'), ('all', None), ('all', 'dynamic'))
        for sample in SAMPLES[3:4]
    )


# Plans that give samples kernels of their own put them together in one way, both that mix outputs take them apart.
@pytest.mark.parametrize(
    ('granularity', 'plan'),
    [
        *itertools.product(('output', 'input', 'spatial'), ('fused', 'patches', 'outputs')),
        ('output', 'unfolded'),
        ('input', 'shift'),
        ('output', 'grouped'),
    ],
)
def test_every_plan_equals_loop_over_samples(granularity, plan):
    by_place = (None, 'dynamic', 'both') if PLANS[plan].by_place else (None,) * 3
    check_against_twin(
        (granularity, 'one' if number == 1 else 'some', sample, by_place[number % 3], plan)
        for number, sample in enumerate(SAMPLES)
    )


def test_bias_scales_and_what_is_not_dynamic_is_taken_once():
    arrays, _, geometry = draw_case('output', 'some', SAMPLES[0], None)
    x, kernels, static, attention, dynamic, _ = (None if part is None else narrow(part) for part in arrays)
    settings = {'granularity': 'output', 'kernel_size': geometry.kernel_size}

    def apply(scale, weight):
        bias = jnp.ones((KERNELS, FEATURES))
        return partial_convolution(
            x, kernels, static, weight * attention, dynamic, bias, dynamic_scale=scale, static_scale=3.0, **settings
        )

    apply = jit_quickly(apply)
    without, with_scale, twice = apply(1.0, 1.0), apply(2.0, 1.0), apply(1.0, 2.0)
    others = np.setdiff1d(np.arange(FEATURES), dynamic)
    bias = attention.sum(1).reshape(BATCH, 1, 1, 1)
    np.testing.assert_allclose(
        (without - bias)[..., dynamic] * 2, (with_scale - bias)[..., dynamic], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(without[..., others] + bias, twice[..., others], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('granularity', 'plan'), [('output', 'outputs'), ('output', 'patches'), ('input', 'outputs')])
def test_dead_entries_cost_nothing(granularity, plan):
    x, attention = jnp.ones((2, 8, 8, 16)), jnp.ones((2, 8))

    def count(num_kernels, num_dynamic):
        sizes = [3, 3, 16, 16], [3, 3, 16, 16]
        axis = STRUCTURED_AXES[granularity]
        sizes[0][axis], sizes[1][axis] = num_dynamic, 16 - num_dynamic
        kernels, static = jnp.ones((num_kernels, *sizes[0])), jnp.ones(sizes[1])
        settings = {'granularity': granularity, 'kernel_size': (3, 3), 'plan': plan}

        def apply(x, kernels, static, attention):
            return partial_convolution(x, kernels, static, attention, jnp.arange(num_dynamic), **settings)

        lowered = jit_quickly(apply).lower(x, kernels, static, attention[:, :num_kernels])
        return lowered.compile().cost_analysis()['flops']

    # Seven more kernels of a quarter of the entries: their products if outputs are mixed, else their sum alone.
    whole = 2 * 2 * 8 * 8 * 9 * 16 * 16
    assert count(8, 4) - count(1, 4) < (1.2 * 7 / 4 * whole if plan == 'outputs' else 0.25 * whole)
    assert count(8, 0) < 1.1 * whole


@pytest.mark.parametrize('side', [56, 14, 4])
def test_the_choice_of_form_is_among_those_that_exist(side):
    channels = {56: 64, 14: 256, 4: 512}[side]
    geometry = resolve_geometry((side, side), (3, 3))
    x = jax.ShapeDtypeStruct((16, side, side, channels), np.float32)

    def choose(share, platform='cpu', batch=16):
        dynamic = round(share * channels)
        kernels, static = (
            jax.ShapeDtypeStruct((*stack, 3, 3, channels, size), np.float32)
            for stack, size in (((4,), dynamic), ((), channels - dynamic))
        )
        return choose_form(
            jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), kernels, static, -1, geometry, platform=platform
        )

    # Small maps read many weights for few products: there the static part is taken for the whole batch at once.
    assert choose(0.3) == {56: ('joined', 'fused'), 14: ('joined', 'fused'), 4: ('apart', 'auto')}[side]
    (symbol,) = jax.export.symbolic_shape('b')
    form, plan = choose(0.3, batch=symbol)
    assert form == 'apart' or PLANS[plan].symbolic_batch
    assert choose(0.3, platform='gpu') != ('joined', 'fused')


def test_bad_input():
    arrays, _, geometry = draw_case('output', 'some', SAMPLES[0], 'dynamic')
    x, kernels, static, attention, dynamic = map(narrow, arrays[:5])
    settings = {'granularity': 'output', 'kernel_size': geometry.kernel_size}
    with pytest.raises(ValueError, match=r'dynamic must be \[D\]'):
        partial_convolution(x, kernels, static, attention, dynamic[1:], **settings)
    with pytest.raises(ValueError, match='plan of attention by place'):
        partial_convolution(x, kernels, static, attention, dynamic, **settings, plan='outputs')
    with pytest.raises(ValueError, match='granularity must be one of'):
        partial_convolution(x, kernels, static, attention, dynamic, granularity='element', kernel_size=(3, 2))
