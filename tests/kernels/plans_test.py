"""Every plan gives the numbers of a loop over samples, values and gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from pad_jax.kernels.convolution import PLANS, choose_plan, convolve
from pad_jax.kernels.factors import Factors
from pad_jax.kernels.geometry import resolve_geometry
from tests.kernels.conv_twin import convolve_samples
from tests.layers.compiling import jit_quickly

BATCH, CHANNELS, FEATURES, KERNELS = 2, 4, 8, 3


PADDINGS = ('SAME', 'VALID', ((2, 0), (1, 1)))
# Both parities of size and kernel meet on both axes, whose geometries do not interact. No kernel is square, so
# that none equals its transpose; a kernel of one tap has nothing to dilate, and SAME is VALID for it.
GRID = [
    resolve_geometry((7, 6), kernel, stride, padding, 1, dilation, groups)
    for kernel, stride, dilation, groups, padding in itertools.product(
        ((2, 3), (3, 2)), (1, 2), (1, 2), (1, 2, CHANNELS), PADDINGS
    )
] + [
    resolve_geometry((7, 6), (1, 1), stride, padding, 1, 1, groups)
    for stride, groups, padding in itertools.product((1, 2), (1, 2, CHANNELS), PADDINGS[::2])
]
ODD_ONES = [
    ((7, 6), resolve_geometry((7, 6), (3, 2), (2, 1), 'SAME', 1, (1, 2), 2)),
    ((7, 6), resolve_geometry((7, 6), (1, 1), 2, 'VALID')),
    ((7, 6), resolve_geometry((7, 6), (2, 3), 1, ((-1, 2), (0, -2)), (2, 1), 1, 4)),
    ((3, 4), resolve_geometry((3, 4), (3, 3), 2, ((2, 2), (1, 3)), (2, 3), 2, 2)),
    ((9,), resolve_geometry((9,), 4, 2, 'SAME', 1, 2, 2)),
    ((8,), resolve_geometry((8,), 3, 1, 'CAUSAL', 1, 2, 4)),
    ((4, 3, 5), resolve_geometry((4, 3, 5), (2, 3, 1), (1, 2, 2), 'SAME')),
    ((3, 4, 3), resolve_geometry((3, 4, 3), (2, 2, 2), 1, 'SAME', 1, 1, 4)),
]

EMPTY_ONES = [
    (batch, size, resolve_geometry(size, (3, 2), 1, 'VALID', groups=groups))
    for batch, size in ((BATCH, (2, 2)), (0, (4, 3)), (0, (2, 2)))
    for groups in (1, 2)
]


def run_plan(plan, x, kernels, attention, geometry, precision=None, tap_weights=None):
    return convolve(x, Factors(kernels.shape[1:], kernels), attention, geometry, plan, precision, tap_weights)


def draw_case(size, geometry, seed=0, batch=BATCH):
    """x, kernels, attention and a cotangent in float64."""
    draw = np.random.default_rng(seed).normal
    shape = (KERNELS, *geometry.kernel_size, CHANNELS // geometry.groups, FEATURES)
    x, kernels, attention = draw(size=(batch, *size, CHANNELS)), draw(size=shape), draw(size=(batch, KERNELS))
    return x, kernels, attention, draw(size=(batch, *geometry.output_size(size), FEATURES))


def run_cases(plan, geometries, cases):
    """All cases in one compilation."""

    def run(cases):
        results = []
        for geometry, (x, kernels, attention, cotangent) in zip(geometries, cases):

            def apply(*inputs, geometry=geometry):
                return run_plan(plan, *inputs, geometry)

            y, pull = jax.vjp(apply, x, kernels, attention)
            results.append((y, pull(cotangent)))
        return results

    return jit_quickly(run)(cases)


# A step that divides none of the grid's lengths: each value of each argument occurs.
@pytest.mark.parametrize('step', [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize('plan', PLANS)
def test_equals_a_loop_over_samples(plan, step):
    cases = [draw_case((7, 6), geometry) for geometry in GRID[::step]]
    with jax.enable_x64(True):
        results = run_cases(plan, GRID[::step], cases)
    for geometry, case, result in zip(GRID[::step], cases, results):
        assert_tree_close(result, convolve_samples(*case, geometry), str(geometry))


@pytest.mark.parametrize('plan', PLANS)
def test_values_and_gradients_in_one_two_and_three_dimensions(plan):
    cases = [draw_case(size, geometry) for size, geometry in ODD_ONES]
    with jax.enable_x64(True):
        results = run_cases(plan, [geometry for _, geometry in ODD_ONES], cases)
    for (_, geometry), case, result in zip(ODD_ONES, cases, results):
        assert_tree_close(result, convolve_samples(*case, geometry), str(geometry))


@pytest.mark.parametrize('plan', PLANS)
def test_empty_batches_and_empty_outputs(plan):
    cases = [draw_case(size, geometry, batch=batch) for batch, size, geometry in EMPTY_ONES]
    with jax.enable_x64(True):
        results = run_cases(plan, [geometry for *_, geometry in EMPTY_ONES], cases)
    for (batch, _, geometry), case, (y, gradients) in zip(EMPTY_ONES, cases, results):
        assert (y.size, y.shape[0]) == (0, batch)
        assert_tree_close((y, gradients), convolve_samples(*case, geometry), str(geometry))


@pytest.mark.parametrize('plan', PLANS)
def test_without_jit_and_twice_differentiated(plan):
    size, geometry = (5,), resolve_geometry((5,), 3, 2, 'SAME')
    with jax.enable_x64(True):
        x, kernels, attention, cotangent = map(jnp.asarray, draw_case(size, geometry))

        def loss(kernels):
            return jnp.sum(run_plan(plan, x, kernels, attention, geometry) ** 3 * cotangent)

        def differentiate(kernels):
            # Criteria such as GraSP take the gradient of a gradient, forwards over backwards.
            return loss(kernels), jax.jvp(jax.grad(loss), (kernels,), (kernels,))

        value, (gradient, product) = jit_quickly(differentiate)(kernels)
        np.testing.assert_allclose(loss(kernels), value, rtol=1e-12)
        # The loss is a cubic form of the kernels, so its gradient grows with their square.
        np.testing.assert_allclose(product, 2 * gradient, rtol=1e-9)


@pytest.mark.parametrize('plan', PLANS)
def test_forward_derivative_of_those_plans_that_have_one(plan):
    geometry = resolve_geometry((4,), 2, 1, 'SAME', groups=2)

    def apply(*inputs):
        return run_plan(plan, *inputs, geometry)

    with jax.enable_x64(True):
        *inputs, cotangent = draw_case((4,), geometry)
        *tangents, _ = draw_case((4,), geometry, seed=1)
        if plan == 'fused':
            with pytest.raises(TypeError, match='forward-mode'):
                jax.jvp(apply, tuple(inputs), tuple(tangents))
            return
        _, tangent = jit_quickly(functools.partial(jax.jvp, apply))(tuple(inputs), tuple(tangents))
    _, gradients = convolve_samples(*inputs, cotangent, geometry)
    expected = sum(np.vdot(gradient, direction) for gradient, direction in zip(gradients, tangents))
    np.testing.assert_allclose(np.vdot(tangent, cotangent), expected, rtol=1e-10)


@pytest.mark.parametrize('plan', PLANS)
def test_gradients_inside_shard_map_are_those_of_one_device(plan):
    geometry = resolve_geometry((4,), 2, 1, 'SAME', groups=2)
    mesh = jax.sharding.Mesh(jax.devices()[:4], 'batch')
    split, shared = jax.sharding.PartitionSpec('batch'), jax.sharding.PartitionSpec()

    def loss(x, kernels, attention, cotangent):
        return jnp.sum(run_plan(plan, x, kernels, attention, geometry) ** 3 * cotangent)

    def differentiate(x, kernels, attention, cotangent):
        gradient = jax.grad(loss, (0, 1, 2))
        # And the product with the Hessian that some criteria take.
        _, (product, _, _) = jax.jvp(lambda kernels: gradient(x, kernels, attention, cotangent), (kernels,), (kernels,))
        return gradient(x, kernels, attention, cotangent), product

    specs = {'in_specs': (split, shared, split, split), 'out_specs': ((split, shared, split), split)}
    with jax.enable_x64(True):
        inputs = draw_case((4,), geometry, batch=8)
        found = jit_quickly(jax.shard_map(differentiate, mesh=mesh, **specs))(*inputs)
        expected = jit_quickly(differentiate)(*inputs)
    assert_tree_close(found, expected, plan)


@pytest.mark.parametrize('plan', PLANS)
def test_other_samples_are_not_seen(plan):
    geometry = resolve_geometry((5, 4), (3, 3), 1, 'SAME')
    x, kernels, attention, _ = (jnp.asarray(part, jnp.float32) for part in draw_case((5, 4), geometry))
    function = jit_quickly(lambda x, attention: run_plan(plan, x, kernels, attention, geometry))
    alone = function(x, attention)
    beside = function(x.at[1].set(1e6), attention.at[1].set(-7.0))
    np.testing.assert_array_equal(alone[0], beside[0])
    poisoned = function(x.at[1].set(jnp.nan), attention.at[1].set(jnp.inf))
    assert bool(jnp.all(jnp.isfinite(poisoned[0])))


@pytest.mark.parametrize('plan', PLANS)
def test_bfloat16_sums_in_float32(plan):
    geometry = resolve_geometry((6, 6), (3, 3), 1, 'SAME')
    x, kernels, attention, cotangent = draw_case((6, 6), geometry)
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    y, gradients = convolve_samples(x, kernels, attention, cotangent, geometry)

    def apply(*inputs):
        return run_plan(plan, *inputs, geometry)

    inputs = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernels, jnp.float32), jnp.asarray(attention, jnp.float32)

    @jit_quickly
    def differentiate(cotangent, *inputs):
        result, pull = jax.vjp(apply, *inputs)
        return result, pull(cotangent)

    result, found = differentiate(jnp.asarray(cotangent, jnp.bfloat16), *inputs)
    assert result.dtype == jnp.bfloat16
    assert [part.dtype for part in found] == [jnp.bfloat16, jnp.float32, jnp.float32]
    # 2^-8 is half a unit of bfloat16; a sum of 36 products that were rounded one by one would miss by more.
    for name, value, twin in zip(('y', 'x', 'kernels', 'attention'), (result, *found), (y, *gradients)):
        error = np.abs(np.asarray(value, np.float64) - twin).max() / np.abs(twin).max()
        assert error < 2**-6, (name, error)


@pytest.mark.parametrize('plan', PLANS)
def test_every_product_has_the_precision_asked_for(plan):
    geometry = resolve_geometry((4, 3), (3, 2), 1, 'SAME', groups=2)
    *inputs, cotangent = (jnp.asarray(part, jnp.float32) for part in draw_case((4, 3), geometry))

    def find_precisions(precision):
        def differentiate(cotangent, *inputs):
            y, pull = jax.vjp(lambda *inputs: run_plan(plan, *inputs, geometry, precision), *inputs)
            return y, pull(cotangent)

        return list(walk_precisions(jax.make_jaxpr(differentiate)(cotangent, *inputs).jaxpr))

    # Kernels are always mixed at the highest precision. If it is asked for, nothing may be less.
    highest, high, default = map(find_precisions, (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH, None))
    assert highest and set(highest) == {jax.lax.Precision.HIGHEST}
    assert set(high) <= {jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH} and jax.lax.Precision.HIGH in high
    # The convolution itself and its gradients with respect to both factors, each as it was asked for.
    assert high.count(jax.lax.Precision.HIGH) == default.count(None) >= 3


def walk_precisions(jaxpr):
    """The precision of each matrix product and convolution in a jaxpr and all inside it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ('dot_general', 'conv_general_dilated'):
            precision = equation.params['precision']
            yield precision[0] if isinstance(precision, tuple) else precision
        for inner in jaxprs_in_params(equation.params):
            yield from walk_precisions(inner)


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('plan', PLANS)
def test_bfloat16_with_kernels_that_nearly_cancel(plan, groups):
    geometry = resolve_geometry((4, 3), (3, 2), 1, 'SAME', groups=groups)
    x, kernels, _, cotangent = draw_case((4, 3), geometry)
    kernels = np.stack([kernels[0], kernels[1] / 64 - kernels[0], kernels[2] / 64])
    x, narrow = (np.asarray(jnp.asarray(part, jnp.bfloat16), np.float64) for part in (x, kernels))
    attention, ones = np.full((BATCH, KERNELS), 0.5), np.ones((BATCH, 1))

    def convolve(x, kernels, attention):
        return convolve_samples(x, kernels, attention, cotangent, geometry)[0]

    function = jit_quickly(lambda *inputs: run_plan(plan, *inputs, geometry))
    unit = 2**-8  # half a unit in the last place of bfloat16
    # Kernels that bfloat16 holds, and kernels that it rounds.
    for values in (narrow, kernels):
        inputs = jnp.asarray(x, jnp.bfloat16), jnp.asarray(values, jnp.float32), jnp.asarray(attention, jnp.float32)
        y, expected = np.asarray(function(*inputs), np.float64), convolve(x, values, attention)
        every = convolve(np.abs(x), np.abs(values), attention)
        # y is rounded once; float32 sums of some dozen products, as large as those of each kernel.
        bound = unit * np.abs(expected) + 2**-19 * every
        if plan != 'outputs':
            # The mixed kernel is rounded: an error as small as what the cancelling left.
            bound += 1.01 * unit * convolve(np.abs(x), 0.5 * np.abs(values.sum(axis=0))[None], ones)
        else:
            # The K outputs are rounded, and before them the kernels where bfloat16 doesn't hold them.
            bound += (1.01 if values is narrow else 2.02) * unit * every
        assert (np.abs(y - expected) <= bound).all(), np.max(np.abs(y - expected) / bound)


@pytest.mark.parametrize('plan', ('shift', 'outputs'))
def test_traces_with_a_symbolic_batch(plan):
    geometry = resolve_geometry((6, 6), (3, 3), 2, 'SAME', groups=2)
    (batch,) = jax.export.symbolic_shape('b')
    x = jax.ShapeDtypeStruct((batch, 6, 6, CHANNELS), jnp.float32)
    kernels = jax.ShapeDtypeStruct((KERNELS, 3, 3, CHANNELS // 2, FEATURES), jnp.float32)
    attention = jax.ShapeDtypeStruct((batch, KERNELS), jnp.float32)
    function = jax.jit(lambda *inputs: run_plan(plan, *inputs, geometry))
    exported = jax.export.export(function, platforms=['cpu', 'cuda', 'tpu'])(x, kernels, attention)
    assert str(exported.out_avals[0].shape) == '(b, 3, 3, 8)'
    assert choose_plan(x, KERNELS, geometry) == choose_plan(x, KERNELS, geometry, by_tap=True) == 'shift'


def assert_tree_close(found, expected, message):
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(left, right, atol=1e-10, err_msg=message)
