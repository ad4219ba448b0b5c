"""Compaction against a loop over positions, and that it can be undone bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pad_jax import compact, compact_params, expand, expand_params, pack_masks, unpack_masks
from pad_jax.partition import GRANULARITIES, mask_granularity, mask_shape

FRACTIONS = (0.0, 1e-9, 0.1, 0.3, 1.0)
MODEL = object()  # what is given is given back


def draw_masks(rng, shapes, granularity, fraction):
    """At least one gate of each is open where the fraction isn't zero."""

    def draw(shape):
        gates = mask_shape(shape, granularity if len(shape) > 2 or granularity != 'spatial' else 'element')
        size = int(np.prod(gates))
        mask = np.zeros(size, bool)
        mask[rng.permutation(size)[: round(max(fraction * size, fraction > 0))]] = True
        return jax.device_put(mask.reshape(gates))

    return jax.tree.map(draw, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def draw_variables(seed, granularity, fraction, kernel, dead=False):
    """A convolution, a generator and a feed-forward network of neurons, two of them deeper; zero where dead."""
    rng = np.random.default_rng(seed)
    shapes = {'kernel': kernel, 'head': {'tensor': kernel[-3:]}, 'deep': {'ffn': {'neurons': (2 * 3 + 1, 9)}}}
    masks = draw_masks(rng, shapes, granularity, fraction)

    def draw(shape, mask=None):
        values = rng.normal(size=shape).astype(np.float32)
        return jax.device_put(values if mask is None or dead else np.where(mask, values, 0))

    def parts(name, shape, mask):
        made = {name: draw((4, *shape), mask), f'static_{name}': draw(shape, ~np.asarray(mask)), 'phi': draw(())}
        return made | ({'bias': draw(shape, mask)} if name == 'tensor' else {'bias': draw((4, shape[-1]))})

    params = {
        **parts('kernel', kernel, masks['kernel']),
        'head': parts('tensor', kernel[-3:], masks['head']['tensor']),
        'deep': {'ffn': parts('neurons', (7, 9), masks['deep']['ffn']['neurons']), 'norm': {'scale': draw((5,))}},
    }
    return {'params': params, 'partition': masks, 'batch_stats': {'norm': {'mean': draw((5,))}}}


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_array_equal(one, other)


cases = given(
    seed=st.integers(0, 9999),
    granularity=st.sampled_from(GRANULARITIES),
    fraction=st.sampled_from(FRACTIONS),
    kernel=st.tuples(*map(st.sampled_from, ((1, 3), (1, 2, 3), (1, 2, 7), (1, 2, 5, 8, 17)))),
)


@cases
def test_expand_undoes_compact_bit_for_bit(seed, granularity, fraction, kernel):
    variables = draw_variables(seed, granularity, fraction, kernel)
    model, small = compact(MODEL, variables, allow_dynamic=True)
    assert model is MODEL
    assert sorted(small) == ['batch_stats', 'packed', 'params']
    assert_same(expand(MODEL, small)[1], variables)
    assert_same(compact(MODEL, expand(MODEL, small)[1], allow_dynamic=True)[1], small)


@cases
def test_live_entries_come_back_and_dead_ones_are_zero(seed, granularity, fraction, kernel):
    masked = draw_variables(seed, granularity, fraction, kernel)
    full = draw_variables(seed, granularity, fraction, kernel, dead=True)
    packed = pack_masks(masked['partition'])
    assert_same(expand_params(compact_params(full['params'], masked['partition']), packed), masked['params'])


@pytest.mark.parametrize('granularity', GRANULARITIES)
def test_what_is_stored_is_what_a_loop_over_positions_finds(granularity):
    shape = (2, 2, 3, 9)
    rng = np.random.default_rng(0)
    for fraction in FRACTIONS:
        mask = draw_masks(rng, shape, granularity, fraction)
        values = rng.normal(size=(2, *shape)).astype(np.float32)
        params = {'kernel': values, 'static_kernel': values[0], 'bias': np.ones((2, 9))}
        found = compact_params(params, {'kernel': mask})
        gates = np.broadcast_to(mask, shape)
        places = {kind: [place for place in np.ndindex(*shape) if gates[place] == kind] for kind in (True, False)}
        for k in range(2):
            np.testing.assert_array_equal(found['kernel'][k].ravel(), [values[k][place] for place in places[True]])
        np.testing.assert_array_equal(found['static_kernel'].ravel(), [values[0][place] for place in places[False]])
        assert found['bias'] is params['bias']


def test_stored_shapes_of_each_granularity():
    params = {'kernel': jnp.ones((4, 3, 3, 5, 10)), 'static_kernel': jnp.ones((3, 3, 5, 10))}

    def stored(granularity, num_dynamic):
        gates = mask_shape((3, 3, 5, 10), granularity)
        mask = (np.arange(np.prod(gates)) < num_dynamic).reshape(gates)
        found, packed = compact_params(params, {'kernel': mask}), pack_masks({'kernel': mask})['kernel']
        return found['kernel'].shape, found['static_kernel'].shape, packed.shape, packed.dtype.name

    assert stored('output', 3) == ((4, 3, 3, 5, 3), (3, 3, 5, 7), (1, 1, 1, 2), 'uint8')
    assert stored('input', 2) == ((4, 3, 3, 2, 10), (3, 3, 3, 10), (1, 1, 5, 1), 'bool')
    assert stored('spatial', 4) == ((4, 4, 5, 10), (5, 5, 10), (3, 3, 1, 1), 'bool')
    assert stored('layer', 0) == ((4, 3, 3, 5, 0), (3, 3, 5, 10), (1, 1, 1, 1), 'bool')
    assert stored('layer', 1) == ((4, 3, 3, 5, 10), (3, 3, 5, 0), (1, 1, 1, 1), 'bool')
    assert stored('element', 100) == ((4, 100), (350,), (3, 3, 5, 2), 'uint8')


def test_bits_are_those_of_numpy():
    mask = np.random.default_rng(0).random((3, 5, 11)) < 0.5
    packed = pack_masks({'kernel': mask, 'inside': {'kernel': mask[:, :, :1]}})
    np.testing.assert_array_equal(packed['kernel'], np.packbits(mask, axis=-1))
    np.testing.assert_array_equal(packed['inside']['kernel'], mask[:, :, :1])


def test_rows_of_neurons_are_indexed_by_what_they_are():
    mask = np.array([[False], [True], [True], [True], [False], [True], [True]])
    params = {'neurons': jnp.ones((2, 7, 4)), 'static_neurons': jnp.ones((7, 4))}
    packed = pack_masks({'neurons': mask})
    assert {name: index.tolist() for name, index in packed['neurons'].items()} == {
        'in': [1, 2],
        'bias': [0],
        'out': [1, 2],
    }
    small = compact_params(params, {'neurons': mask})
    assert (small['neurons'].shape, small['static_neurons'].shape) == ((2, 5, 4), (2, 4))
    np.testing.assert_array_equal(unpack_masks(packed, small)['neurons'], mask)


def test_other_dtypes_stay():
    params = {'kernel': jnp.ones((2, 3, 4), jnp.bfloat16), 'static_kernel': jnp.ones((3, 4), jnp.bfloat16)}
    masks = {'kernel': jnp.eye(3, 4, dtype=bool)}
    small = compact_params(params, masks)
    again = expand_params(small, pack_masks(masks))
    assert {leaf.dtype for leaf in jax.tree.leaves((small, again))} == {jnp.dtype('bfloat16')}


def test_what_is_refused():
    variables = draw_variables(0, 'output', 0.5, (3, 3, 4, 8))
    small = compact(MODEL, variables)[1]
    with pytest.raises(ValueError, match='compact already'):
        compact(MODEL, small)
    with pytest.raises(ValueError, match='not compact: there is nothing to expand'):
        expand(MODEL, variables)
    for masks in ({}, jax.tree.map(jnp.ones_like, variables['partition'])):
        with pytest.raises(ValueError, match='nothing is static yet: compact comes after the partition'):
            compact(MODEL, {**variables, 'partition': masks})
    with pytest.raises(ValueError, match=r'comes after the partition$'):
        compact(MODEL, {'params': {}}, allow_dynamic=True)
    odd = {'kernel': jnp.ones((2, 3, 4, 5)), 'static_kernel': jnp.ones((3, 4, 5))}
    with pytest.raises(ValueError, match=r'no granularity has a mask of shape \(1, 4, 5\)'):
        compact_params(odd, {'kernel': jnp.ones((1, 4, 5), bool)})
    with pytest.raises(ValueError, match='does not broadcast'):
        compact_params(odd, {'kernel': jnp.ones((1, 1, 4), bool)})


@pytest.mark.parametrize('shape', [(3, 3, 4, 8), (4, 8), (2, 3, 3, 4, 8)])
def test_a_mask_tells_its_granularity(shape):
    for granularity in GRANULARITIES:
        if granularity != 'spatial' or len(shape) > 2:
            assert mask_granularity(mask_shape(shape, granularity)) == granularity
