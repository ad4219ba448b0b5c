"""Compaction against a loop over positions, and its inverse bit for bit; entries and their gradients against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_jax import compact, compact_params, expand, index_masks
from pad_jax.kernels.factors import MOST_COMPARED, complement_index, put_entries, take_entries
from pad_jax.partition import GRANULARITIES, PartialParameter, mask_shape
from tests.layers.compiling import jit_quickly

FRACTIONS = (0.0, 1e-9, 0.1, 0.3, 1.0)


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
        values = rng.normal(size=shape).astype(jnp.bfloat16 if len(shape) == 2 else np.float32)
        return jax.device_put(values if mask is None or dead else np.where(mask, values, 0))

    def parts(name, shape, mask):
        made = {name: draw((4, *shape), mask), f'static_{name}': draw(shape, ~np.asarray(mask)), 'phi': draw(())}
        return made | ({'bias': draw(shape, mask)} if name == 'tensor' else {'bias': draw((4, shape[-1]))})

    params = {
        **parts('kernel', kernel, masks['kernel']),
        'head': parts('tensor', kernel[-3:], masks['head']['tensor']),
        'deep': {'ffn': parts('neurons', (7, 9), masks['deep']['ffn']['neurons']), 'norm': {'scale': draw((5,))}},
    }
    variables = {'params': params, 'partition': masks, 'batch_stats': {'norm': {'mean': draw((5,))}}}
    return variables, make_records(granularity, shapes)


def make_records(granularity, shapes):
    records = {}
    for name, shape in shapes.items():
        if isinstance(shape, dict):
            records[name] = make_records(granularity, shape)
            continue
        own = granularity if len(shape) > 2 or granularity != 'spatial' else 'element'
        beside = ('bias',) if name == 'tensor' else ()
        records[name] = PartialParameter(name, shape, own, f'static_{name}', 'phi', 'both', beside=beside)
    return records


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        np.testing.assert_array_equal(one, other)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 9999),
    granularity=st.sampled_from(GRANULARITIES),
    fraction=st.sampled_from(FRACTIONS),
    kernel=st.sampled_from([(1, 1, 1, 1), (3, 2, 7, 17), (3, 3, 2, 8)]),
)
def test_expand_undoes_compact_and_dead_entries_are_zero(seed, granularity, fraction, kernel):
    variables, records = draw_variables(seed, granularity, fraction, kernel)
    small = compact(variables, records)
    assert sorted(small) == ['batch_stats', 'index', 'params']
    assert_same(expand(small, records), variables)
    assert_same(compact(expand(small, records), records), small)
    full, _ = draw_variables(seed, granularity, fraction, kernel, dead=True)
    assert_same(compact_params(full['params'], small['index'], records), small['params'])


@pytest.mark.parametrize('granularity', GRANULARITIES)
def test_what_is_stored_is_what_a_loop_over_positions_finds(granularity):
    shape = (2, 2, 3, 9)
    rng = np.random.default_rng(0)
    for fraction in FRACTIONS:
        mask = draw_masks(rng, shape, granularity, fraction)
        values = rng.normal(size=(2, *shape)).astype(np.float32)
        params = {'kernel': values, 'static_kernel': values[0], 'bias': np.ones((2, 9))}
        found = compact_params(params, {'kernel': mask}, make_records(granularity, {'kernel': shape}))
        gates = np.broadcast_to(mask, shape)
        places = {kind: [place for place in np.ndindex(*shape) if gates[place] == kind] for kind in (True, False)}
        for k in range(2):
            np.testing.assert_array_equal(found['kernel'][k].ravel(), [values[k][place] for place in places[True]])
        np.testing.assert_array_equal(found['static_kernel'].ravel(), [values[0][place] for place in places[False]])
        assert found['bias'] is params['bias']


def test_the_index_of_masks():
    masks = {
        'a': {'kernel': np.array([[True, False, True, True]])},
        'b': {'deep': {'kernel': np.array([[False], [True]])}},
        'element': {'kernel': np.random.default_rng(0).random((3, 5, 11)) < 0.5},
        'layer': {'kernel': np.ones((1, 1), bool)},
        'static layer': {'kernel': np.zeros((1, 1, 1, 1), bool)},
        'taps': {'kernel': np.array([[False, True], [True, False]]).reshape(2, 2, 1, 1)},
    }
    found = index_masks(masks)
    assert jax.tree.map(np.ndarray.tolist, jax.device_get(found)) == {
        'a': {'kernel': [0, 2, 3]},
        'b': {'deep': {'kernel': [1]}},
        'layer': {'kernel': [0]},
        'static layer': {'kernel': []},
        'taps': {'kernel': [1, 2]},
    }
    assert all(leaf.dtype == jnp.int32 for leaf in jax.tree.leaves(found))
    bits = index_masks(masks, with_elements=True)['element']['kernel']
    np.testing.assert_array_equal(bits, np.packbits(masks['element']['kernel'], axis=-1))


@pytest.mark.parametrize(
    ('granularity', 'fraction'),
    [
        pytest.param(*case, marks=[] if case in (('element', 0.3), ('output', 0.3)) else pytest.mark.slow)
        for case in itertools.product(GRANULARITIES, (0.0, 0.3, 1.0))
    ],
)
def test_under_a_trace_it_is_the_same(granularity, fraction):
    # More bytes than one row of counts has.
    variables, records = draw_variables(1, granularity, fraction, (3, 3, 20, 65))
    small = compact(variables, records)
    assert_same(jit_quickly(expand)(small, records), variables)
    if granularity not in ('element', 'spatial'):  # of matrices by element
        found = jit_quickly(compact_params)(variables['params'], small['index'], records)
        assert_same(found, small['params'])


@pytest.mark.parametrize('axis', [-1, -2, -3])
@pytest.mark.parametrize('chosen', [[], [1, 2, 4], [0, 1, 2, 3, 4]])
def test_take_and_put_are_numpy_and_one_anothers_transpose(chosen, axis):
    chosen = np.array(chosen, np.int32)
    others = np.setdiff1d(np.arange(5), chosen)
    values = np.random.default_rng(0).normal(size=(2, 5, 5, 5)).astype(np.float32)

    @jit_quickly
    def both(values, chosen):
        results = []
        for index in (chosen, complement_index(chosen, 5)):
            taken, pull = jax.vjp(lambda values, index=index: take_entries(values, index, axis), values)
            put, pull_back = jax.vjp(lambda taken, index=index: put_entries(taken, index, 5, axis), taken)
            results.append((taken, put, pull(taken)[0], pull_back(values)[0]))
        return results

    for places, (taken, put, d_values, d_taken) in zip((chosen, others), both(values, chosen), strict=True):
        index = (..., places, *(slice(None),) * (-axis - 1))
        expected = np.zeros_like(values)
        expected[index] = values[index]
        np.testing.assert_array_equal(taken, values[index])
        np.testing.assert_array_equal(put, expected)
        np.testing.assert_array_equal(d_values, expected)
        np.testing.assert_array_equal(d_taken, values[index])


@pytest.mark.parametrize('size', [1, 7, MOST_COMPARED, MOST_COMPARED + 1])
@pytest.mark.parametrize('fraction', [0, 0.3, 1])
def test_the_other_entries_are_those_of_numpy_however_many_there_are(size, fraction):
    index = np.flatnonzero(np.random.default_rng(size).random(size) < fraction).astype(np.int32)
    found = jit_quickly(lambda index: complement_index(index, size))(index)
    np.testing.assert_array_equal(found, np.setdiff1d(np.arange(size), index))
    assert found.dtype == np.int32


def test_what_is_refused():
    variables, records = draw_variables(0, 'output', 0.5, (3, 3, 4, 8))
    small = compact(variables, records)
    with pytest.raises(ValueError, match='compact already'):
        compact(small, records)
    with pytest.raises(ValueError, match='not compact: there is nothing to expand'):
        expand(variables, records)
    for masks in ({}, {'partition': {}}):
        with pytest.raises(ValueError, match='the variables have no masks'):
            compact({'params': {}, **masks}, {})
    odd = {'kernel': jnp.ones((2, 3, 4, 5)), 'static_kernel': jnp.ones((3, 4, 5))}
    for gates in ((1, 4, 5), (1, 1, 4)):
        with pytest.raises(ValueError, match=r'mask of kernel must have the shape \(1, 1, 5\) of granularity'):
            compact_params(odd, {'kernel': jnp.ones(gates, bool)}, make_records('output', {'kernel': (3, 4, 5)}))
