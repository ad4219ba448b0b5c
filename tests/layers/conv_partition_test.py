"""Networks of every dynamic convolution under the partition: criteria, scopes, and what the handoff takes over."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pad_jax.layers import find_records
from pad_jax.layers.factors import read_routing
from pad_jax.models import LayerSpec, make_conv_spec
from pad_jax.partition import (
    Layout,
    Problem,
    Recipe,
    as_gates,
    count_dynamic,
    partition_round,
    positions_of,
)
from tests.layers.compiling import jit_quickly


class Network(nn.Module):
    conv: LayerSpec

    @nn.compact
    def __call__(self, x, temperature):
        for index in range(2):
            x = nn.relu(self.conv(6, (3, 3), strides=2, use_bias=False, name=f'conv{index}')(x, temperature))
        return nn.Dense(3, name='head')(x.mean((1, 2)))


@functools.cache
def setting(name, granularity='element'):
    """(problem, params, masks, batches); the heads are sharp, so that samples differ."""
    spec = make_conv_spec(name, num_kernels=3, reduction=1, granularity=granularity, plan='shift')
    network = Network(spec)
    rng = np.random.default_rng(0)
    batches = [
        {'x': rng.normal(size=(8, 8, 8, 4)).astype(np.float32) + rng.normal(size=(8, 1, 1, 4)).astype(np.float32),
         'label': rng.integers(0, 3, 8)}
        for _ in range(2)
    ]  # fmt: skip
    variables = jit_quickly(network.init)(jax.random.key(1), batches[0]['x'], 1.0)
    layout = Layout.of(find_records(network, batches[0]['x'], 1.0))

    @jax.jit
    def run(params, gates, batch):
        return network.apply({'params': params, 'partition': gates}, batch['x'], 1.0, mutable=['intermediates'])

    def loss(params, gates, batch):
        return -jnp.mean(jax.nn.log_softmax(run(params, gates, batch)[0])[jnp.arange(8), batch['label']])

    def output(params, gates, batch):
        return run(params, gates, batch)[0]

    def routing(params, gates, batch):
        return read_routing(run(params, gates, batch)[1]['intermediates'])

    return Problem(loss, layout, output, routing), variables['params'], variables['partition'], batches


# Of the gradient, its flow and a linear flow where it is hardest; of routing and of the factors once each.
@pytest.mark.parametrize(
    ('name', 'criterion'),
    [
        *(('dcd', 'sensitivity'), ('dcd', 'grasp'), ('condconv', 'variance'), ('odconv', 'magnitude')),
        pytest.param('dcd', 'synflow', marks=pytest.mark.slow),
    ],
)
def test_generators_and_kernels_compete_in_both_scopes(name, criterion):
    problem, params, masks, batches = setting(name)
    positions = positions_of(problem.layout, params, masks)
    for scope in ('global', 'layer'):
        new, same = partition_round(problem, params, masks, batches, 0.4, Recipe(criterion, scope))
        assert same is params
        # The masks of one layer compete together.
        pairs = [(new, positions)] if scope == 'global' else [(new[layer], positions[layer]) for layer in new]
        for found, of in pairs:
            assert count_dynamic(found, of) == round(0.4 * sum(leaf.size for leaf in jax.tree.leaves(of)))


@pytest.mark.parametrize(
    ('name', 'head'),
    [
        *(('odconv', 'spatial'), ('dcd', 'fusion')),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (('odconv', 'channel'), ('dcd', 'scaling'))),
    ],
)
def test_generated_values_are_handed_off_by_their_mean(name, head):
    """λs·static = λd·mean of the activated values, and the criterion `variance` is the variance of these."""
    problem, params, masks, batches = setting(name)
    params = {**params, 'conv1': {**params['conv1'], head: {**params['conv1'][head], 'phi': jnp.float32(0.5)}}}
    gates = as_gates(masks)
    sown = [problem.routing(params, gates, batch)['conv1'][head]['tensor_mask'] for batch in batches]
    values = np.concatenate(sown).astype(np.float64)
    recipe = Recipe('variance', handoff='mean', keep_dynamic=f'^(?!conv1/{head}/)')
    new, handed = partition_round(problem, params, masks, batches, 0.5, recipe)
    kept = np.asarray(new['conv1'][head]['tensor_mask'])
    dynamic_scale = 2 / (1 + np.exp(-0.5))
    expected = np.where(
        kept, params['conv1'][head]['static_tensor'], dynamic_scale / (2 - dynamic_scale) * values.mean(0)
    )
    np.testing.assert_allclose(handed['conv1'][head]['static_tensor'], expected, rtol=1e-4, atol=1e-6)
    variance = values.var(0)
    assert variance[kept].min() >= variance[~kept].max() * (1 - 1e-4)


def test_the_mean_of_what_is_generated_needs_its_values():
    problem, params, masks, batches = setting('dcd')
    blind = Problem(problem.loss, problem.layout)
    with pytest.raises(ValueError, match='the mean of a generated parameter needs the values of scoring batches'):
        partition_round(blind, params, masks, batches, 0.5, Recipe('random', handoff='mean'))
