"""What `auto` takes, from shapes alone."""

import jax
import jax.numpy as jnp
import pytest

from pad_jax.kernels.geometry import resolve_geometry
from pad_jax.layers.conv_plans import PLANS, choose_plan
from pad_jax.layers.plans.choice import ConvShape, estimate_cost


def choose(side, channels, features, kernel, batch=8, groups=1, platform='cpu'):
    geometry = resolve_geometry((side, side), (kernel, kernel), 1, 'SAME', groups=groups)
    x = jax.ShapeDtypeStruct((batch, side, side, channels), jnp.float32)
    kernels = jax.ShapeDtypeStruct((4, kernel, kernel, channels // groups, features), jnp.float32)
    return choose_plan(x, kernels, geometry, platform)


@pytest.mark.parametrize(('side', 'channels'), [(56, 64), (28, 128), (14, 256)])
def test_large_maps_take_per_sample_kernels(side, channels):
    assert choose(side, channels, channels, 3) in ('fused', 'shift', 'patches')


def test_small_maps_mix_outputs():
    # One position a sample: a kernel for each would be read for a single product.
    assert choose(1, 128, 128, 3, batch=64) in ('outputs', 'unfolded')
    assert choose(2, 256, 512, 1, batch=64) in ('outputs', 'unfolded')


def test_feature_groups_stay_away_from_grouped_convolutions():
    for groups in (4, 32, 256):
        assert choose(14, 256, 256, 3, groups=groups) not in ('outputs', 'grouped')


def test_a_batch_without_a_size_takes_a_plan_that_can_be_exported():
    (batch,) = jax.export.symbolic_shape('b')
    for side, channels in ((56, 64), (7, 512), (1, 128)):
        for platform in ('cpu', 'gpu'):
            assert PLANS[choose(side, channels, channels, 3, batch, platform=platform)].symbolic_batch


def test_accelerators_do_not_loop_over_samples():
    for side, channels in ((56, 64), (28, 128), (14, 256), (7, 512)):
        assert choose(side, channels, channels, 3, batch=64, platform='gpu') != 'fused'


def test_weights_by_place_take_a_plan_that_has_places():
    geometry = resolve_geometry((1, 1), (3, 3), 1, 'SAME')
    x, kernels = (
        jax.ShapeDtypeStruct((64, 1, 1, 128), jnp.float32),
        jax.ShapeDtypeStruct((4, 3, 3, 128, 128), jnp.float32),
    )
    for platform in ('cpu', 'gpu'):
        assert not PLANS[choose_plan(x, kernels, geometry, platform)].by_place
        assert PLANS[choose_plan(x, kernels, geometry, platform, by_place=True)].by_place


def test_every_automatic_plan_has_a_cost_that_grows_with_the_batch():
    small = ConvShape(batch=8, outputs=196, taps=9, channels=64, features=64, kernels=4, groups=1)
    for name, row in PLANS.items():
        if row.automatic:
            for platform in ('cpu', 'gpu'):
                cost = estimate_cost(name, small, platform)
                assert 0 < cost < estimate_cost(name, small._replace(batch=9), platform)
    with pytest.raises(ValueError, match="plan 'grouped' has no cost"):
        estimate_cost('grouped', small, 'cpu')
