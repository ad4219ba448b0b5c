"""Partially dynamic convolutions give the numbers of a dynamic one on whole kernels, in both storages."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.kernels.convolution import PLANS, choose_plan, choose_strategy, convolve
from pad_jax.kernels.factors import Factors
from pad_jax.kernels.geometry import resolve_geometry
from pad_jax.partition.masks import scale_factors
from tests.kernels.conv_twin import convolve_samples
from tests.layers.compiling import jit_quickly

BATCH, CHANNELS, FEATURES, KERNELS = 2, 4, 4, 3
SIZE = (5, 4)
AXES = {'output': -1, 'input': -2, 'spatial': -3, 'layer': -1}
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


def draw_case(granularity, how_many, sample, by_tap):
    """Inputs with gradients (x, dynamic, static, attention, weights of taps), index, cotangent, geometry."""
    kernel_size, strides, padding, dilation, groups = sample
    draw = np.random.default_rng(0).normal
    geometry = resolve_geometry(SIZE, kernel_size, strides, padding, 1, dilation, groups)
    index, size = pick(granularity, how_many, kernel_size, groups)
    axis = AXES[granularity]
    taps = (math.prod(kernel_size),) if granularity == 'spatial' else kernel_size
    whole = (*taps, CHANNELS // groups, FEATURES)
    dynamic = np.take(draw(size=(KERNELS, *whole)), index, axis)
    static = np.take(draw(size=whole), np.setdiff1d(np.arange(size), index), axis)
    weights = draw(size=(BATCH, *kernel_size)) if by_tap else None
    cotangent = draw(size=(BATCH, *geometry.output_size(SIZE), FEATURES))
    inputs = draw(size=(BATCH, *SIZE, CHANNELS)), dynamic, static, draw(size=(BATCH, KERNELS)), weights
    return inputs, index, cotangent, geometry


def twin(inputs, index, cotangent, geometry, axis):
    """Whole kernels by assignment, the static one as one more of weight one; gradients of the same inputs."""
    x, dynamic, static, attention, weights = inputs
    count, taps = dynamic.shape[axis] + static.shape[axis], geometry.kernel_size
    others = np.setdiff1d(np.arange(count), index)
    shape = list(dynamic.shape)
    shape[axis] = count
    whole = np.zeros((KERNELS + 1, *shape[1:]))
    front = np.moveaxis(whole, axis, 0)
    front[index, :KERNELS], front[others, KERNELS] = np.moveaxis(dynamic, axis, 0), np.moveaxis(static, axis, 0)
    each = np.concatenate([attention, np.ones((BATCH, 1))], axis=1).reshape(BATCH, KERNELS + 1, *(1,) * len(taps))
    scale = np.ones((BATCH, *taps)) if weights is None else weights
    full = whole.reshape(KERNELS + 1, *taps, *whole.shape[-2:])
    y, (d_x, d_full, d_each) = convolve_samples(x, full, each * scale[:, None], cotangent, geometry)
    front = np.moveaxis(d_full.reshape(whole.shape), axis, 0)
    d_dynamic, d_static = np.moveaxis(front[index, :KERNELS], 0, axis), np.moveaxis(front[others, KERNELS], 0, axis)
    d_attention = (d_each * scale[:, None]).reshape(BATCH, KERNELS + 1, -1).sum(-1)[:, :KERNELS]
    return y, (d_x, d_dynamic, d_static, d_attention, None if weights is None else (d_each * each).sum(1))


def check_against_twin(chosen):
    """Compare (granularity, how many are dynamic, sample, tap weights or not, plan) each, in one compilation."""
    chosen = list(chosen)
    cases = [draw_case(*case[:4]) for case in chosen]

    def run(arrays):
        results = []
        for (granularity, *_, plan), (*_, geometry), (inputs, index, cotangent) in zip(chosen, cases, arrays):
            shape = (*geometry.kernel_size, CHANNELS // geometry.groups, FEATURES)

            def apply(*inputs, where=(shape, index, AXES[granularity]), geometry=geometry, plan=plan):
                x, dynamic, static, attention, weights = inputs
                factors = Factors(where[0], dynamic, static, index=where[1], axis=where[2])
                return convolve(x, factors, attention, geometry, plan, None, weights)

            y, pull = jax.vjp(apply, *inputs)
            results.append((y, pull(cotangent)))
        return results

    with jax.enable_x64(True):
        results = jit_quickly(run)([case[:3] for case in cases])
    for case, (inputs, index, cotangent, geometry), result in zip(chosen, cases, results):
        wanted, message = twin(inputs, index, cotangent, geometry, AXES[case[0]]), f'{case} dynamic {index}'
        jax.tree.map(lambda a, b, m=message: np.testing.assert_allclose(a, b, atol=1e-10, err_msg=m), result, wanted)


@pytest.mark.parametrize('granularity', AXES)
def test_none_or_all_of_it_dynamic(granularity):
    check_against_twin(
        (granularity, how_many, SAMPLES[3], by_tap, 'auto')
        for how_many, by_tap in itertools.product(('none', 'all'), (False, True))
    )


# Every plan and every granularity; the other pairs are slow.
QUICK = {*itertools.product(('output',), PLANS), ('input', 'fused'), ('spatial', 'shift'), ('spatial', 'outputs')}


@pytest.mark.parametrize(
    ('granularity', 'plan'),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
        for case in itertools.product(('output', 'input', 'spatial'), PLANS)
    ],
)
@pytest.mark.parametrize(
    'numbers', [(0, 3, 4), pytest.param(range(5), marks=pytest.mark.slow)], ids=['corners', 'all samples']
)
def test_every_plan_equals_a_loop_over_samples(granularity, plan, numbers):
    check_against_twin(
        (granularity, 'one' if number == 1 else 'some', SAMPLES[number], plan != 'outputs' and number % 2 == 1, plan)
        for number in numbers
    )


# Masked storage.
MASKS = {
    'element': np.random.default_rng(1).random((3, 2, CHANNELS, 6)) < 0.3,
    'none': np.zeros((3, 2, CHANNELS, 6), bool),
    'all': np.ones((1, 1, 1, 1), bool),
    'output': np.arange(6).reshape(1, 1, 1, 6) % 3 == 0,
    'spatial': np.arange(6).reshape(3, 2, 1, 1) % 2 == 0,
}


def draw_masked(groups=1, by_tap=False):
    """x, dynamic, static, logits of attention, φ, weights of taps or None."""
    draw, shape = np.random.default_rng(0).normal, (3, 2, CHANNELS // groups, 6)
    inputs = draw(size=(BATCH, *SIZE, CHANNELS)), draw(size=(KERNELS, *shape)), draw(size=shape)
    return *inputs, draw(size=(BATCH, KERNELS)), np.float64(0.3), draw(size=(BATCH, 3, 2)) if by_tap else None


# Mask, feature groups, tap weights or not. 'fused' doesn't merge, and 'auto' merges small kernels.
GROUPED, WEIGHED, WHOLE = ('element', 2, False), ('spatial', 1, True), ('all', 1, False)
EVERY_CASE = [GROUPED, WEIGHED, ('element', 1, True), *((name, 1, False) for name in MASKS)]


@pytest.mark.parametrize(
    ('plan', 'cases'),
    [
        *(('fused', [GROUPED, WEIGHED, WHOLE]), ('auto', [WEIGHED]), ('outputs', [GROUPED])),
        *(pytest.param(plan, EVERY_CASE, marks=pytest.mark.slow) for plan in ('fused', 'auto')),
    ],
)
def test_masked_kernels_equal_merged_ones(plan, cases):
    def run(geometry, mask, plan, inputs):
        def loss(x, dynamic, static, logits, phi, weights):
            factors = Factors(dynamic.shape[1:], dynamic, static, *scale_factors(phi), mask=jnp.asarray(mask))
            if plan is None:
                factors = Factors(factors.shape, factors.merge())
            y = convolve(x, factors, jax.nn.softmax(logits), geometry, plan or 'shift', None, weights)
            return jnp.sum(y**2), y

        return jax.value_and_grad(loss, tuple(range(6)), has_aux=True)(*inputs)

    def both(inputs):
        results = []
        for (name, groups, _), arrays in zip(cases, inputs):
            geometry = resolve_geometry(SIZE, (3, 2), 2, groups=groups)
            mask = MASKS[name][:, :, : CHANNELS // groups]
            results.append([run(geometry, mask, chosen, arrays) for chosen in (plan, None)])
        return results

    with jax.enable_x64(True):
        results = jit_quickly(both)([draw_masked(groups, by_tap) for _, groups, by_tap in cases])
    for case, (found, expected) in zip(cases, results):
        jax.tree.map(
            lambda a, b, case=case: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10, err_msg=str(case)),
            found,
            expected,
        )


@pytest.mark.parametrize('phi', [-100.0, -20.0, 20.0, 100.0])
def test_scales_may_vanish(phi):
    """λd = 2σ(φ) is 0, 4e-9, 2 and 2, and λs = 2 − λd: merging divides by one of them."""
    x, dynamic, static, logits = (jnp.asarray(part, jnp.float32) for part in draw_masked()[:4])
    attention, geometry = jax.nn.softmax(logits), resolve_geometry(SIZE, (3, 2))

    @jit_quickly
    def both(phi, dynamic, static):
        def loss(phi, dynamic, static, merged):
            factors = Factors(static.shape, dynamic, static, *scale_factors(phi), mask=jnp.asarray(MASKS['element']))
            factors = Factors(static.shape, factors.merge()) if merged else factors
            return jnp.sum(convolve(x, factors, attention, geometry, 'shift') ** 2)

        return [jax.value_and_grad(loss, (0, 1, 2))(phi, dynamic, static, merged) for merged in (False, True)]

    found, expected = both(jnp.float32(phi), dynamic, static)
    # φ's gradient is a difference of terms as large as the loss, whose rounding stays where it is 0.
    rounding = 1e-5 * float(expected[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=rounding), found, expected)


def test_a_mask_of_floats_has_the_gradient_of_a_score():
    x, dynamic, static, logits = (jnp.asarray(part, jnp.float32) for part in draw_masked()[:4])
    attention, geometry = jax.nn.softmax(logits), resolve_geometry(SIZE, (3, 2))

    def loss(gate, plan):
        factors = Factors(static.shape, dynamic, static, mask=gate)
        return jnp.sum(convolve(x, factors, attention, geometry, plan) ** 2)

    gate = jnp.asarray(MASKS['element'], jnp.float32)
    found, expected = (jit_quickly(jax.grad(lambda gate, plan=plan: loss(gate, plan)))(gate) for plan in PLANS[:2])
    assert bool(jnp.all(expected != 0))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_fused_makes_no_merged_kernels():
    shape, geometry = (KERNELS, 3, 2, 16, 64), resolve_geometry((6, 6), (3, 2))
    inputs = jnp.ones((BATCH, 6, 6, 16)), jnp.ones(shape), jnp.ones(shape[1:]), jnp.ones(shape[1:], bool)

    def measure(plan):
        def apply(x, dynamic, static, mask):
            factors = Factors(shape[1:], dynamic, static, mask=mask)
            return convolve(x, factors, jnp.ones((BATCH, KERNELS)), geometry, plan)

        return jit_quickly(apply).lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    assert measure('fused') < inputs[1].nbytes <= measure('shift')


# The choice, from shapes only.
def spread(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


def choose(side, channels, kernel=3, batch=8, groups=1, **options):
    geometry = resolve_geometry((side, side), (kernel, kernel), groups=groups)
    return choose_plan(spread(batch, side, side, channels), 4, geometry, **options)


(SYMBOL,) = jax.export.symbolic_shape('b')


def test_the_choice_of_a_plan_and_of_a_strategy():
    assert {choose(side, channels) for side, channels in ((56, 64), (28, 128), (14, 256), (7, 512))} == {'fused'}
    assert choose(14, 256, kernel=1) == 'shift'
    # Few positions of a sample: its kernel would be read for few products.
    assert choose(1, 128, batch=64) == choose(4, 512, batch=64) == 'outputs'
    for groups in (4, 256):  # XLA's grouped convolutions are slow on CPU
        assert choose(14, 256, groups=groups) == choose(2, 256, groups=groups) == 'fused'
    for platform in ('cpu', 'gpu', 'tpu'):
        for side in (56, 7, 1):
            assert choose(side, 64, batch=SYMBOL, platform=platform) != 'fused'
            assert choose(side, 64, by_tap=True, platform=platform) != 'outputs'
            assert platform == 'cpu' or choose(side, 64, platform=platform) != 'fused'

    def choose_for(side, share, axis=-1, plan='auto', batch=16, groups=1, **options):
        shape = [3, 3, 64 // groups, 64]
        view = [9, *shape[2:]] if axis == -3 else list(shape)
        sizes = list(view), list(view)
        sizes[0][axis] = round(share * view[axis])
        sizes[1][axis] = view[axis] - sizes[0][axis]
        factors = Factors(tuple(shape), spread(4, *sizes[0]), spread(*sizes[1]), index=sizes[0][axis], axis=axis)
        geometry = resolve_geometry((side, side), (3, 3), groups=groups)
        return choose_strategy(spread(batch, side, side, 64), factors, geometry, plan, False, **options)

    # Small maps read many weights for few products: there the static part is taken for the whole batch at once.
    assert [choose_for(side, 0.3) for side in (56, 14, 7, 4)] == ['joined', 'joined', 'apart', 'apart']
    assert choose_for(56, 0.3, batch=SYMBOL) == choose_for(56, 0.3, platform='gpu') == 'apart'
    assert choose_for(7, 0.3, -3) == choose_for(7, 0.3, groups=64) == choose_for(7, 0.3, plan='fused') == 'joined'
    assert choose_for(56, 0.3, plan='outputs') == 'apart'


def test_refusals():
    x, kernels, attention = jnp.ones((1, 5, 5, 4)), jnp.ones((2, 3, 3, 4, 8)), jnp.ones((1, 2))
    geometry = resolve_geometry((5, 5), (3, 3))

    def refuse(message, x=x, attention=attention, **options):
        with pytest.raises(ValueError, match=message):
            convolve(x, Factors((3, 3, 4, 8), kernels), attention, geometry, **options)

    refuse('need x with 4 axes', x=jnp.ones((1, 5, 4)))
    refuse('channels 6 and features 8 do not fit', x=jnp.ones((1, 5, 5, 6)))
    for shape in ((2,), (1, 3), (2, 2), (1, 2, 1)):
        refuse(r'attention must be \[B, K\] = \(1, 2\) for x \(1, 5, 5, 4\), got \(', attention=jnp.ones(shape))
    refuse("plan must be one of auto, fused, shift, outputs, got 'fast'", plan='fast')
    refuse("plan must be one of auto, fused, shift, got 'outputs'", plan='outputs', tap_weights=jnp.ones((1, 3, 3)))
