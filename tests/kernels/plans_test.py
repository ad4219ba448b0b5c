"""Every plan gives the numbers of a loop over samples, values and gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from pad_jax.kernels.convolution import PLANS, convolve
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
# As many rows as `kernels.plans.LARGE_MAP`, so that products of rows are shifted and added; not with a stride there.
LARGE_ONES = [
    ((42, 4), resolve_geometry((42, 4), (3, 2), (1, 2), 'SAME', 1, (2, 1))),
    ((41, 3), resolve_geometry((41, 3), (2, 3), 1, ((1, 0), (0, 2)), (1, 2), (1, 2))),
    ((81, 3), resolve_geometry((81, 3), (3, 3), 2, 'SAME')),
]
EMPTY_ONES = [
    (batch, size, resolve_geometry(size, (3, 2), 1, 'VALID', groups=groups))
    for batch, size in ((BATCH, (2, 2)), (0, (4, 3)), (0, (2, 2)))
    for groups in (1, 2)
]
# (batch, size, geometry). A step that divides none of the grid's lengths: each value of each argument occurs.
CASES = {
    'corners of the grid': [(BATCH, (7, 6), geometry) for geometry in GRID[::7]],
    'the grid': [(BATCH, (7, 6), geometry) for geometry in GRID],
    'one, two and three dimensions': [(BATCH, *case) for case in ODD_ONES],
    'large maps': [(BATCH, *case) for case in LARGE_ONES],
    'empty batches and outputs': EMPTY_ONES,
}


def run_plan(plan, x, kernels, attention, geometry, precision=None, tap_weights=None):
    return convolve(x, Factors(kernels.shape[1:], kernels), attention, geometry, plan, precision, tap_weights)


def draw_case(size, geometry, seed=0, batch=BATCH):
    """x, kernels, attention and a cotangent in float64."""
    draw = np.random.default_rng(seed).normal
    shape = (KERNELS, *geometry.kernel_size, CHANNELS // geometry.groups, FEATURES)
    x, kernels, attention = draw(size=(batch, *size, CHANNELS)), draw(size=shape), draw(size=(batch, KERNELS))
    return x, kernels, attention, draw(size=(batch, *geometry.output_size(size), FEATURES))


@pytest.mark.parametrize(
    'cases', [pytest.param(name, marks=pytest.mark.slow if name == 'the grid' else []) for name in CASES]
)
@pytest.mark.parametrize('plan', PLANS)
def test_values_and_gradients_equal_a_loop_over_samples(plan, cases):
    """All cases in one compilation."""
    geometries = [geometry for *_, geometry in CASES[cases]]
    inputs = [draw_case(size, geometry, batch=batch) for batch, size, geometry in CASES[cases]]

    def run(inputs):
        results = []
        for geometry, (*arguments, cotangent) in zip(geometries, inputs):
            y, pull = jax.vjp(lambda *found, geometry=geometry: run_plan(plan, *found, geometry), *arguments)
            results.append((y, pull(cotangent)))
        return results

    with jax.enable_x64(True):
        results = jit_quickly(run)(inputs)
    for geometry, case, (y, gradients) in zip(geometries, inputs, results):
        assert y.shape == case[-1].shape
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


def assert_tree_close(found, expected, message):
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(left, right, atol=1e-10, err_msg=message)
