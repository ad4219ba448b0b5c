"""Indices of dynamic columns: which masks get them, and that taking and putting are transposes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.layers import index_dynamic_columns
from pad_jax.layers.dynamic_columns import put_columns, split_columns, split_elements, take_columns
from tests.layers.compiling import jit_quickly


def test_all_masks_but_those_of_elements_and_generators_are_indexed():
    masks = {
        'a': {'kernel': np.array([[True, False, True, True]])},
        'b': {'deep': {'kernel': np.array([[False], [True]])}},
        'element': {'kernel': np.ones((3, 4), bool)},
        'layer': {'kernel': np.ones((1, 1), bool)},
        'static layer': {'kernel': np.zeros((1, 1, 1, 1), bool)},
        'conv': {'kernel': np.array([False, True, True]).reshape(1, 1, 1, 3)},
        'places': {'kernel': np.array([[False, True], [True, False]]).reshape(2, 2, 1, 1)},
        'generator': {'tensor': np.ones((1, 1, 1, 4), bool)},
        'ffn': {'neurons': jnp.array([[False, False, True]])},
        # Two features in, the bias, two features out.
        'ffn rows': {'neurons': np.array([[False], [True], [True], [True], [True]])},
    }
    found = index_dynamic_columns(masks)
    assert jax.tree.map(lambda leaf: leaf.tolist(), found, is_leaf=lambda leaf: hasattr(leaf, 'tolist')) == {
        'a': {'kernel': [0, 2, 3]},
        'b': {'deep': {'kernel': [1]}},
        'layer': {'kernel': [0]},
        'static layer': {'kernel': []},
        'conv': {'kernel': [1, 2]},
        'places': {'kernel': [1, 2]},
        'ffn': {'neurons': [2]},
        'ffn rows': {'neurons': {'in': [1], 'bias': [0], 'out': [0, 1]}},
    }
    assert all(leaf.dtype == jnp.int32 for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize('axis', [-1, -2, -3])
@pytest.mark.parametrize('chosen', [[], [1, 2, 4], [0, 1, 2, 3, 4]])
def test_take_and_put_are_numpy_and_one_anothers_transpose(chosen, axis):
    chosen = np.array(chosen, np.int32)
    others = np.setdiff1d(np.arange(5), chosen)
    values = np.random.default_rng(0).normal(size=(2, 5, 5, 5)).astype(np.float32)

    @jit_quickly
    def both(values, chosen):
        results = []
        for columns in split_columns(chosen, 5):
            taken, pull = jax.vjp(lambda values, columns=columns: take_columns(values, columns, axis), values)
            put, pull_back = jax.vjp(lambda taken, columns=columns: put_columns(taken, columns, axis), taken)
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


@pytest.mark.parametrize('shape', [(1, 5), (3, 2, 1), (2, 3, 17), (9, 5, 64)])
@pytest.mark.parametrize('fraction', [0, 0.3, 1])
def test_elements_are_found_by_their_bits(shape, fraction):
    mask = np.random.default_rng(0).random(shape) < fraction
    flat, num_dynamic = mask.reshape(-1), int(mask.sum())
    # More bytes than one row of counts has in the largest.
    found = jit_quickly(split_elements, static_argnums=(1, 2))(np.packbits(mask, axis=-1), shape, num_dynamic)
    for chosen, columns in zip((flat, ~flat), found, strict=True):
        places = np.flatnonzero(chosen)
        np.testing.assert_array_equal(columns.indices, places)
        np.testing.assert_array_equal(columns.slots, np.where(chosen, np.cumsum(chosen) - 1, len(places)))
