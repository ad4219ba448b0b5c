"""An upcycled encoder computes what the dense one computes, with any experts, routers and masks."""

import jax
import numpy as np
import pytest

from pad_jax.layers import find_records
from pad_jax.models.bert import Bert
from pad_jax.models.feed_forward import make_ffn_spec
from pad_jax.pretrained import load_pretrained, upcycle
from tests.layers.compiling import jit_quickly
from tests.pretrained.small_folder import make_tensors, write_folder

DENSE = Bert(vocab_size=11, num_layers=2, width=4, num_heads=2, ffn_width=6, max_length=8, num_outputs=3)
TOKENS = np.arange(15, dtype=np.int32).reshape(3, 5) % 11
VALID = np.arange(5)[None] < np.array([5, 3, 1])[:, None]
BATCH = (TOKENS, TOKENS % 2, VALID)


def draw(model, seed):
    """Random variables: routers choose, half of the positions are static; scale parameters stay zero."""
    variables = jax.eval_shape(model.init, jax.random.key(0), *BATCH)
    generator = np.random.default_rng(seed)

    def fill(path, leaf):
        if path[-1].key == 'phi':
            return np.zeros(leaf.shape, leaf.dtype)
        if leaf.dtype == bool:
            return generator.random(leaf.shape) < 0.5
        return (generator.normal(size=leaf.shape) * 0.5).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, variables)


@pytest.mark.parametrize(
    ('kind', 'granularity', 'train'),
    [
        ('linear', None, True),
        ('linear', 'element', False),
        ('ffn', 'element', True),
        ('ffn', 'output', False),
    ],
)
def test_the_function_is_unchanged(kind, granularity, train):
    plain = DENSE.clone(num_layers=1, dropout=0.0)
    model = plain.clone(ffn=make_ffn_spec(kind, num_experts=4, num_selected=2, granularity=granularity))
    dense, variables, records = draw(plain, 1), draw(model, 2), find_records(model, *BATCH)
    upcycled = {**variables, 'params': upcycle(dense['params'], variables['params'], records)}
    assert jax.tree.structure(upcycled) == jax.tree.structure(variables)

    @jit_quickly
    def compare(dense, upcycled):
        rngs = {'routing': jax.random.key(0)}
        return plain.apply(dense, *BATCH)[0], model.apply(upcycled, *BATCH, train, rngs=rngs)[0]

    expected, found = compare(dense, upcycled)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 0.1


def test_a_folder_fills_linear_experts(tmp_path):
    model = DENSE.clone(ffn=make_ffn_spec('linear', num_experts=2, granularity='element'))
    initial, tensors = draw(model, 0)['params'], make_tensors()
    write_folder(tmp_path, tensors)
    params, fresh = load_pretrained(tmp_path, initial, find_records(model, *BATCH), num_heads=2)
    assert fresh == ('classifier',) and jax.tree.structure(params) == jax.tree.structure(initial)
    for name, dense in (('up', 'intermediate.dense'), ('down', 'output.dense')):
        found, start = params['layer_1']['ffn'][name], initial['layer_1']['ffn'][name]
        for copy in (*found['kernel'], found['static_kernel']):
            np.testing.assert_array_equal(copy, tensors[f'encoder.layer.1.{dense}.weight'].T)
        for bias in found['bias']:
            np.testing.assert_array_equal(bias, tensors[f'encoder.layer.1.{dense}.bias'])
        np.testing.assert_array_equal(found['router']['gate'], start['router']['gate'])


def test_a_folder_fills_experts_of_neurons(tmp_path):
    model = DENSE.clone(ffn=make_ffn_spec('ffn', num_experts=2, granularity='output'))
    initial, tensors = draw(model, 0)['params'], make_tensors()
    params, fresh = load_pretrained(write_folder(tmp_path, tensors), initial, find_records(model, *BATCH), num_heads=2)
    assert fresh == ('classifier',)
    jax.tree.map(np.testing.assert_array_equal, params['classifier'], initial['classifier'])
    experts = params['layer_1']['ffn']['experts']
    column = [
        *tensors['encoder.layer.1.intermediate.dense.weight'][2],
        tensors['encoder.layer.1.intermediate.dense.bias'][2],
        *tensors['encoder.layer.1.output.dense.weight'][:, 2],
    ]
    for copy in (*experts['neurons'], experts['static_neurons']):
        np.testing.assert_array_equal(copy[:, 2], column)
    np.testing.assert_array_equal(experts['bias'][1], tensors['encoder.layer.1.output.dense.bias'])
    np.testing.assert_array_equal(experts['router']['gate'], initial['layer_1']['ffn']['experts']['router']['gate'])
    assert jax.tree.structure(params) == jax.tree.structure(initial)
