"""Upcycling: every copy is the dense value, routers stay, and the function is the one it was."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from pad_jax.partition import PartialParameter
from pad_jax.pretrained.upcycling import dense_shapes, upcycle

E, C, F = 3, 2, 4


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


DENSE = {
    'layer_0': {
        'attention': {'kernel': draw(C, C)},
        'ffn': {'up': {'kernel': draw(C, F), 'bias': draw(F)}, 'down': {'kernel': draw(F, C), 'bias': draw(C)}},
    },
    'pooler': {'kernel': draw(C, C), 'bias': draw(C)},
}


def mixture(rows, columns):
    """Initial params of a mixture of linears; a router and a scale parameter that are not zero."""
    stacks = {'kernel': draw(E, rows, columns), 'bias': draw(E, columns), 'static_kernel': draw(rows, columns)}
    return {**stacks, 'router': {'gate': draw(rows, E), 'noise': draw(rows, E)}, 'phi': np.float32(0.5)}


def replace_ffn(ffn):
    other = jax.tree.map(lambda leaf: leaf + 1, DENSE)
    return {**other, 'layer_0': {**other['layer_0'], 'ffn': ffn}}


LINEAR = replace_ffn({'up': mixture(C, F), 'down': mixture(F, C)})
NEURONS = {'neurons': draw(E, 2 * C + 1, F), 'static_neurons': draw(2 * C + 1, F), 'bias': draw(E, C)}
EXPERTS = replace_ffn({'experts': {**NEURONS, 'router': {'gate': draw(C, E)}, 'phi': np.float32(0.5)}})


def records_of(name, **shapes):
    ffn = {
        module: {name: PartialParameter(name, shape, 'element', f'static_{name}', 'phi', 'both')}
        for module, shape in shapes.items()
    }
    return {'layer_0': {'ffn': ffn}}


LINEAR_RECORDS = records_of('kernel', up=(C, F), down=(F, C))
EXPERT_RECORDS = records_of('neurons', experts=(2 * C + 1, F))


@pytest.mark.parametrize(
    ('params', 'records'),
    [(DENSE, {}), (LINEAR, LINEAR_RECORDS), (EXPERTS, EXPERT_RECORDS)],
    ids=['dense', 'linear', 'ffn'],
)
def test_the_dense_shapes_are_read_off_the_experts(params, records):
    found = flatten_dict(dense_shapes(params, records))
    assert {path: leaf.shape for path, leaf in found.items()} == {
        path: leaf.shape for path, leaf in flatten_dict(DENSE).items()
    }
    assert {leaf.dtype for leaf in found.values()} == {np.dtype('float32')}


def test_copies_of_linears():
    params = upcycle(DENSE, LINEAR, LINEAR_RECORDS)
    for found, dense in ((params, DENSE), (params['layer_0'], DENSE['layer_0'])):
        for name in {'pooler', 'attention'} & found.keys():
            jax.tree.map(np.testing.assert_array_equal, found[name], dense[name])
    for name, dense in DENSE['layer_0']['ffn'].items():
        found, initial = params['layer_0']['ffn'][name], LINEAR['layer_0']['ffn'][name]
        for expert in range(E):
            np.testing.assert_array_equal(found['kernel'][expert], dense['kernel'])
            np.testing.assert_array_equal(found['bias'][expert], dense['bias'])
        np.testing.assert_array_equal(found['static_kernel'], dense['kernel'])
        assert found['router'] is initial['router'] and found['phi'] is initial['phi']


def test_copies_of_neurons():
    params, dense = upcycle(DENSE, EXPERTS, EXPERT_RECORDS)['layer_0']['ffn']['experts'], DENSE['layer_0']['ffn']
    for copy in (*params['neurons'], params['static_neurons']):
        for neuron in range(F):
            column = [*dense['up']['kernel'][:, neuron], dense['up']['bias'][neuron], *dense['down']['kernel'][neuron]]
            np.testing.assert_array_equal(copy[:, neuron], column)
    for bias in params['bias']:
        np.testing.assert_array_equal(bias, dense['down']['bias'])
    assert params['router'] is EXPERTS['layer_0']['ffn']['experts']['router']


def test_a_dense_network_takes_everything():
    other = jax.tree.map(lambda leaf: leaf + 1, DENSE)
    jax.tree.map(np.testing.assert_array_equal, upcycle(DENSE, other, {}), DENSE)
    assert upcycle(DENSE, other, {})['layer_0']['ffn']['up']['kernel'].dtype == np.float32
