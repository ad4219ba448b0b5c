"""Masks against NumPy twins, their limits, and the arithmetic of κ and the dynamic share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.partition import masks as masks_lib

SHAPES = {
    # granularity: the mask's shape for a convolution (H, W, C, F), a matrix (C, F), a 3-D convolution.
    'element': [(3, 5, 4, 6), (4, 6), (2, 3, 5, 4, 6)],
    'output': [(1, 1, 1, 6), (1, 6), (1, 1, 1, 1, 6)],
    'input': [(1, 1, 4, 1), (4, 1), (1, 1, 1, 4, 1)],
    'spatial': [(3, 5, 1, 1), None, (2, 3, 5, 1, 1)],
    'layer': [(1, 1, 1, 1), (1, 1), (1, 1, 1, 1, 1)],
}
POSITIONS = SHAPES['element']


@pytest.mark.parametrize('granularity', masks_lib.GRANULARITIES)
@pytest.mark.parametrize('index', range(3))
def test_mask_shape(granularity, index):
    expected = SHAPES[granularity][index]
    if expected is None:
        with pytest.raises(ValueError, match=r"'spatial' needs a parameter of at least 3 axes, got shape \(4, 6\)"):
            masks_lib.mask_shape(POSITIONS[index], granularity)
    else:
        assert masks_lib.mask_shape(POSITIONS[index], granularity) == expected
        assert masks_lib.mask_granularity(expected) == granularity


def test_mask_shape_of_vectors_and_scalars():
    assert masks_lib.mask_shape((7,), 'output') == (7,)
    assert masks_lib.mask_shape((7,), 'layer') == (1,)
    assert masks_lib.mask_shape((), 'element') == ()
    with pytest.raises(ValueError, match='at least 2 axes'):
        masks_lib.mask_shape((7,), 'input')
    with pytest.raises(
        ValueError, match="granularity must be one of element, output, input, spatial, layer, got 'row'"
    ):
        masks_lib.mask_shape((7,), 'row')


def test_init_masks_are_dynamic_bools_of_any_pytree():
    positions = {'a': jnp.zeros((2, 3)), 'b': [jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32)]}
    masks = masks_lib.init_masks(positions, 'output')
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name, bool(leaf.all())), masks) == {
        'a': ((1, 3), 'bool', True),
        'b': [((1, 1, 1, 4), 'bool', True)],
    }


def split_by_loop(dynamic, static, mask, dynamic_scale, static_scale):
    """The definition, one position at a time."""
    dynamic_part, static_part = np.zeros_like(dynamic), np.zeros_like(static)
    for place in np.ndindex(*static.shape):
        gate = mask[tuple(0 if size == 1 else at for at, size in zip(place, mask.shape, strict=True))]
        static_part[place] = static_scale * (1 - gate) * static[place]
        for factor in range(dynamic.shape[0]):
            dynamic_part[(factor, *place)] = dynamic_scale * gate * dynamic[(factor, *place)]
    return dynamic_part, static_part


@pytest.mark.parametrize('granularity', masks_lib.GRANULARITIES)
@pytest.mark.parametrize('soft', [False, True], ids=['mask', 'gate'])
def test_split_and_merge_are_what_a_loop_gives(granularity, soft):
    rng = np.random.default_rng(0)
    shape = (3, 2, 4, 3)
    dynamic = rng.normal(size=(2, *shape)).astype(np.float32)
    static = rng.normal(size=shape).astype(np.float32)
    size = masks_lib.mask_shape(shape, granularity)
    mask = rng.random(size).astype(np.float32) if soft else rng.random(size) < 0.5
    expected = split_by_loop(dynamic, static, mask, 0.5, 1.5)
    found = masks_lib.split(dynamic, static, mask, 0.5, 1.5)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    merged = masks_lib.merge(dynamic, static, mask, 0.5, 1.5)
    np.testing.assert_allclose(merged, expected[0] + expected[1][None], rtol=1e-6)


def test_merge_at_the_limits_and_under_weights_that_sum_to_one():
    dynamic, static = jnp.arange(12.0).reshape(2, 2, 3), -jnp.arange(6.0).reshape(2, 3)
    dynamic, static, everywhere = dynamic.astype(jnp.bfloat16), static.astype(jnp.bfloat16), jnp.ones((2, 3), bool)
    assert masks_lib.merge(dynamic, static, everywhere).dtype == jnp.bfloat16
    np.testing.assert_array_equal(masks_lib.merge(dynamic, static, everywhere), dynamic)
    np.testing.assert_array_equal(masks_lib.merge(dynamic, static, ~everywhere), jnp.stack([static, static]))
    rng = np.random.default_rng(1)
    dynamic, static, mask = rng.normal(size=(4, 5)), rng.normal(size=5), rng.random(5) < 0.5
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    mixed = weights @ np.asarray(masks_lib.merge(jnp.asarray(dynamic), jnp.asarray(static), mask))
    np.testing.assert_allclose(mixed, np.where(mask, weights @ dynamic, static), rtol=1e-6)


def test_scale_factors():
    # 2σ(0) = 1, and 2σ(ln 3) = 2 · 3/4 = 3/2, whose counterpart is 2 − 3/2 = 1/2.
    assert masks_lib.scale_factors(jnp.float32(0)) == (1, 1)
    phi = jnp.log(jnp.float32(3))
    for scales, expected in {'both': (1.5, 0.5), 'dynamic': (1.5, 1), 'static': (1, 0.5), 'none': (1, 1)}.items():
        np.testing.assert_allclose(masks_lib.scale_factors(phi, scales), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="scales must be one of both, static, dynamic, none, got 'neither'"):
        masks_lib.scale_factors(phi, 'neither')


def test_sizes_of_groups_counts_fractions_and_shares():
    position = jnp.zeros((3, 3, 4, 6))
    sizes = {'element': 1, 'output': 36, 'input': 54, 'spatial': 24, 'layer': 216}
    for granularity, size in sizes.items():
        mask = jnp.ones(masks_lib.mask_shape(position.shape, granularity))
        assert masks_lib.group_size(mask, position) == size
    for wrong in [(6,), (1, 1, 1, 3), (3, 3, 4, 6, 1)]:
        with pytest.raises(ValueError, match='does not broadcast against positions of shape'):
            masks_lib.group_size(jnp.ones(wrong), position)
    positions = {'conv': jnp.zeros((3, 3, 2, 4)), 'dense': jnp.zeros((4, 7))}
    masks = {'conv': jnp.array([[[[True, False, False, True]]]]), 'dense': jnp.zeros((4, 7), bool).at[0, :3].set(True)}
    # 2 of 4 outputs of 3·3·2 = 18 positions each are 36, and 3 single ones: 39 of 72 + 28 = 100.
    assert masks_lib.count_positions(positions) == 100
    assert masks_lib.count_dynamic(masks, positions) == 39
    assert masks_lib.dynamic_fraction(masks, positions) == 0.39
    # K = 4: 4 · 0.39 = 1.56 dynamic for each 0.61 + 1.56 = 2.17 parameters.
    assert masks_lib.dynamic_share(0.39, 4) == pytest.approx(1.56 / 2.17)
    # One factor: dynamic or not, each position is one parameter, so the share is κ itself.
    assert masks_lib.dynamic_share(0.39, 1) == pytest.approx(0.39)
    assert [masks_lib.dynamic_share(kappa, 8) for kappa in (0.0, 1.0)] == [0, 1]
    assert masks_lib.dynamic_fraction({}, {}) == 0
