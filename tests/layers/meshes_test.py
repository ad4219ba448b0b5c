"""Layers on meshes with explicit axes: the numbers of one device, whether the batch or the parameters are sharded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pad_jax import CondConv, DCDConv, DynamicConv, MixtureFFN, MixtureLinear, ODConv, compact, find_records

IMAGES, TOKENS = (8, 6, 6, 8), (8, 6, 8)
CONV = {'features': 8, 'kernel_size': (3, 3), 'granularity': 'output'}
EXPERTS = {'num_experts': 4, 'granularity': 'output'}
LAYERS = {
    'dynamic': (DynamicConv(**CONV), IMAGES),
    'dynamic, outputs': (DynamicConv(**CONV, plan='outputs'), IMAGES),
    'condconv': (CondConv(**CONV), IMAGES),
    'odconv': (ODConv(**CONV), IMAGES),
    'dcd': (DCDConv(**CONV), IMAGES),
    'linear': (MixtureLinear(8, **EXPERTS, plan='blocks'), TOKENS),
    'linear, ragged': (MixtureLinear(8, **EXPERTS, plan='ragged'), TOKENS),
    'ffn': (MixtureFFN(8, **EXPERTS, plan='dense'), TOKENS),
}


def place(tree, mesh, spec):
    return jax.device_put(tree, NamedSharding(mesh, spec))


def shard_outputs(leaf, mesh):
    divides = leaf.ndim and leaf.shape[-1] % mesh.size == 0
    return place(leaf, mesh, PartitionSpec(*(None,) * (leaf.ndim - 1), 'data') if divides else PartitionSpec())


QUICK = ('dynamic', 'linear', 'ffn')


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in LAYERS]
)
def test_a_layer_is_that_of_one_device(name):
    layer, shape = LAYERS[name]
    x = jax.random.normal(jax.random.key(0), shape)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    rngs = {'routing': jax.random.key(2)} if shape is TOKENS else {}
    options = {'train': True, 'rngs': rngs} if shape is TOKENS else {}

    @jax.jit
    def differentiate(params, masks, x):
        def loss(params, x):
            found = layer.apply({'params': params, 'partition': masks}, x, **options)
            y = found[0] if isinstance(found, tuple) else found
            return jnp.sum(jnp.sin(y)), y

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    expected = differentiate(variables['params'], variables['partition'], x)
    mesh = jax.make_mesh((4,), ('data',), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        everywhere = functools.partial(place, mesh=mesh, spec=PartitionSpec())
        params, masks = everywhere(variables['params']), everywhere(variables['partition'])
        by_batch = differentiate(params, masks, place(x, mesh, PartitionSpec('data')))
        assert by_batch[1].sharding.spec[0] == 'data'
        params = jax.tree.map(lambda leaf: shard_outputs(leaf, mesh), variables['params'])
        by_output = differentiate(params, masks, everywhere(x))
    for found in (by_batch, by_output):
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_init_sown_values_and_compact_storage():
    layer, shape = LAYERS['dynamic']
    x, mesh = jax.random.normal(jax.random.key(0), shape), jax.make_mesh((4,), ('data',), devices=jax.devices()[:4])
    apply = jax.jit(functools.partial(layer.apply, mutable=['intermediates']))
    variables = layer.init(jax.random.key(1), x)
    masks = {'kernel_mask': (jnp.arange(8) < 3).reshape(1, 1, 1, 8)}
    small = compact({**variables, 'partition': masks}, find_records(layer, x))
    expected = apply(small, x)
    with jax.set_mesh(mesh):
        shards = place(x, mesh, PartitionSpec('data'))
        fresh = jax.jit(layer.init)(place(jax.random.key(1), mesh, PartitionSpec()), shards)
        found = apply(place(small, mesh, PartitionSpec()), shards)
    jax.tree.map(np.testing.assert_array_equal, fresh, variables)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)
    # without jax.set_mesh
    channels = apply(place(small, mesh, PartitionSpec()), place(x, mesh, PartitionSpec(None, None, None, 'data')))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), channels, expected)
