"""The handoff `mean` leaves what the layer computes for the mean routing, and touches nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from pad_jax.partition import PLAIN, SCALES, Layout, PartialParameter, hand_off_means, merge, scale_factors
from tests.partition import problems


def random_masks(positions, seed=0, density=0.6):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.random(leaf.shape) < density) for name, leaf in positions.items()}


def test_the_mixture_stays_what_it_is_for_the_mean_routing():
    rng = np.random.default_rng(1)
    params = problems.make_params()
    old = random_masks(params['static'], density=0.8)
    new = {name: leaf & mask for (name, leaf), mask in zip(old.items(), random_masks(params['static'], 2).values())}
    routing = {name: rng.dirichlet(np.ones(problems.NUM_FACTORS)).astype(np.float32) for name in old}
    handed = hand_off_means(params, old, new, problems.SCALED, routing)
    for name, scales in problems.SCALES.items():
        before, after = (
            jnp.tensordot(routing[name], merge(tree['dynamic'][name], tree['static'][name], mask[name], *scales), 1)
            for tree, mask in ((params, old), (handed, new))
        )
        np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
        turned = np.asarray(old[name] & ~new[name])
        assert turned.any()
        np.testing.assert_array_equal(handed['static'][name][~turned], params['static'][name][~turned])
        assert (handed['static'][name][turned] != params['static'][name][turned]).all()
        np.testing.assert_array_equal(handed['dynamic'][name], params['dynamic'][name])
    np.testing.assert_array_equal(handed['router']['first'], params['router']['first'])


def test_golden_values_and_uniform_routing():
    params = {'dynamic': jnp.array([[1.0, 10, 100], [3, 30, 300]]), 'static': jnp.array([-1.0, -2, -3])}
    old, new = jnp.array([True, True, False]), jnp.array([False, True, False])
    # The first position turns static: (1 + 3) / 2 = 2, or 0.25 · 1 + 0.75 · 3 = 2.5.
    assert hand_off_means(params, old, new, PLAIN)['static'].tolist() == [2, -2, -3]
    assert hand_off_means(params, old, new, PLAIN, jnp.array([0.25, 0.75]))['static'].tolist() == [2.5, -2, -3]


def test_groups_and_the_flax_layout():
    # 2σ(ln 3) = 3/2 = λd and λs = 1/2, so that λd / λs = 3 where both are in use.
    phi = jnp.log(jnp.float32(3))
    kernel = jnp.stack([jnp.full((2, 2), 1.0), jnp.full((2, 2), 3.0)])
    conv = {'kernel': kernel, 'static_kernel': jnp.zeros((2, 2)), 'phi': phi, 'bias': jnp.ones(2)}
    params = {'block': {'conv': conv, 'norm': {'scale': jnp.ones(2)}}, 'head': {'kernel': jnp.ones((2, 3))}}
    old = {'block': {'conv': {'kernel': jnp.ones((1, 2), bool)}}}
    new = {'block': {'conv': {'kernel': jnp.array([[False, True]])}}}
    for scales in SCALES:
        record = PartialParameter('kernel', (2, 2), 'output', 'static_kernel', 'phi', scales)
        handed = hand_off_means(params, old, new, Layout.of({'block': {'conv': {'kernel': record}}}))
        dynamic_scale, static_scale = scale_factors(phi, scales)
        expected = {**params, 'block': {**params['block'], 'conv': {**conv, 'static_kernel': None}}}
        found = handed['block']['conv']['static_kernel']
        ratio = 2 * dynamic_scale / static_scale  # times the mean (1 + 3) / 2
        np.testing.assert_allclose(found, [[ratio, 0], [ratio, 0]], rtol=1e-6)
        without = {**handed, 'block': {**handed['block'], 'conv': {**handed['block']['conv'], 'static_kernel': None}}}
        jax.tree.map(np.testing.assert_array_equal, without, expected)


def test_the_dtype_of_the_static_parameters_is_kept():
    params = {'dynamic': jnp.ones((2, 3), jnp.bfloat16), 'static': jnp.zeros(3, jnp.bfloat16)}
    handed = hand_off_means(params, jnp.ones(3, bool), jnp.zeros(3, bool), PLAIN)
    assert handed['static'].dtype == jnp.bfloat16
    assert handed['static'].tolist() == [1, 1, 1]
