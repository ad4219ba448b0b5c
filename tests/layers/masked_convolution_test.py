"""Convolutions that are dynamic by element give the numbers of merged kernels, whatever plan they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.layers.dynamic_convolution import dynamic_convolution
from pad_jax.layers.masked_convolution import masked_convolution
from pad_jax.partition.masks import merge, scale_factors
from tests.layers.compiling import jit_quickly

BATCH, CHANNELS, FEATURES, KERNELS = 2, 4, 6, 3
SIZE, PLACES = (5, 4), (3, 2)


def draw_inputs(groups=1, by_place=False):
    """x, kernels, static, logits of attention, weights of places or None, φ; all that has a gradient."""
    draw = np.random.default_rng(0).normal
    shape = (*PLACES, CHANNELS // groups, FEATURES)
    places = draw(size=(BATCH, *PLACES)) if by_place else None
    inputs = draw(size=(BATCH, *SIZE, CHANNELS)), draw(size=(KERNELS, *shape)), draw(size=shape)
    return *inputs, draw(size=(BATCH, KERNELS)), places, np.float64(0.3)


def run(convolve, settings):
    """Value and gradients of what is made of a convolution of (x, kernels, static, attention, places, scales)."""

    def loss(x, kernels, static, logits, places, phi):
        attention = jax.nn.softmax(logits)
        if places is not None:
            attention = attention.reshape(BATCH, KERNELS, 1, 1) * places[:, None]
        y = convolve(x, kernels, static, attention, places, scale_factors(phi), **settings)
        return jnp.sum(y**2), y

    return lambda *inputs: jax.value_and_grad(loss, tuple(range(6)), has_aux=True)(*inputs)


MASKS = {
    'element': np.random.default_rng(1).random((*PLACES, CHANNELS, FEATURES)) < 0.3,
    'none': np.zeros((*PLACES, CHANNELS, FEATURES), bool),
    'all': np.ones((1, 1, 1, 1), bool),
    'output': np.arange(FEATURES).reshape(1, 1, 1, FEATURES) % 3 == 0,
    'spatial': np.arange(6).reshape(3, 2, 1, 1) % 2 == 0,
}


@pytest.mark.parametrize('plan', ['fused', 'outputs', 'auto'])
def test_equals_merged_kernels(plan):
    cases = [('element', 2, False)]
    if plan != 'outputs':  # 'fused' doesn't merge, and 'auto' does so small kernels
        cases += [(name, 1, False) for name in MASKS] + [('element', 1, True), ('spatial', 1, True)]

    def both(inputs):
        results = []
        for (name, groups, _), arrays in zip(cases, inputs):
            mask = MASKS[name][:, :, : CHANNELS // groups]
            settings = {'feature_group_count': groups, 'strides': 2}

            def partly(x, kernels, static, attention, places, scales, mask=mask, **settings):
                scales = dict(zip(('dynamic_scale', 'static_scale'), scales))
                mask = jnp.asarray(mask)
                return masked_convolution(
                    x, kernels, static, mask, attention, static_attention=places, plan=plan, **scales, **settings
                )

            def merged(x, kernels, static, attention, places, scales, mask=mask, **settings):
                kernels = merge(kernels, static, mask, *scales)
                return dynamic_convolution(x, kernels, attention, plan='shift', **settings)

            results.append((run(partly, settings)(*arrays), run(merged, settings)(*arrays)))
        return results

    with jax.enable_x64(True):
        results = jit_quickly(both)([draw_inputs(groups, by_place) for _, groups, by_place in cases])
    for case, (found, expected) in zip(cases, results):
        jax.tree.map(
            lambda a, b, case=case: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10, err_msg=str(case)),
            found,
            expected,
        )


@pytest.mark.parametrize('phi', [-100.0, -20.0, 20.0, 100.0])
def test_scales_may_vanish(phi):
    """λd = 2σ(φ) is 0, 4e-9, 2 and 2, and λs the rest: merging divides by one of them."""
    x, kernels, static, logits = (jnp.asarray(part, jnp.float32) for part in draw_inputs()[:4])
    attention, mask = jax.nn.softmax(logits), jnp.asarray(MASKS['element'])

    def loss(phi, kernels, static, whole):
        scales = scale_factors(phi)
        if whole:
            return jnp.sum(dynamic_convolution(x, merge(kernels, static, mask, *scales), attention, plan='shift') ** 2)
        named = dict(zip(('dynamic_scale', 'static_scale'), scales))
        return jnp.sum(masked_convolution(x, kernels, static, mask, attention, plan='patches', **named) ** 2)

    found, expected = (
        jit_quickly(jax.value_and_grad(lambda *inputs, whole=whole: loss(*inputs, whole), (0, 1, 2)))(
            jnp.float32(phi), kernels, static
        )
        for whole in (False, True)
    )
    # φ's gradient is a difference of terms as large as the loss, whose rounding stays where it is 0.
    rounding = 1e-5 * float(expected[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=rounding), found, expected)


def test_a_mask_of_floats_has_the_gradient_of_a_score():
    x, kernels, static, logits = (jnp.asarray(part, jnp.float32) for part in draw_inputs()[:4])
    attention = jax.nn.softmax(logits)

    def loss(gate, plan):
        return jnp.sum(masked_convolution(x, kernels, static, gate, attention, plan=plan) ** 2)

    gate = jnp.asarray(MASKS['element'], jnp.float32)
    found, expected = (
        jit_quickly(jax.grad(lambda gate, plan=plan: loss(gate, plan)))(gate) for plan in ('fused', 'shift')
    )
    assert bool(jnp.all(expected != 0))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_no_merged_kernels_are_made():
    shape = (KERNELS, *PLACES, 16, 64)
    x, kernels, static = jnp.ones((BATCH, 6, 6, 16)), jnp.ones(shape), jnp.ones(shape[1:])
    attention, mask = jnp.ones((BATCH, KERNELS)), jnp.ones(shape[1:], bool)

    def measure(plan):
        apply = jit_quickly(lambda *inputs: masked_convolution(*inputs, attention, plan=plan))
        return apply.lower(x, kernels, static, mask).compile().memory_analysis().temp_size_in_bytes

    assert measure('fused') < kernels.nbytes <= measure('patches')
