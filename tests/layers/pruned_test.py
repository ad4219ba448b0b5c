"""Layers without static parameters, `prune=True`: what is not dynamic is zero for every input."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from pad_jax.layers import CONVS, MixtureFFN, MixtureLinear, compact, compact_params, expand, find_records, index_masks
from pad_jax.layers.compact import expand_elements
from pad_jax.models import count_layers, report_counts
from pad_jax.partition import Layout, hand_off_means, scale_factors
from tests.layers.compiling import jit_quickly

CONV = {'features': 4, 'kernel_size': (3,), 'num_kernels': 2, 'reduction': 2}
LAYERS = {
    'dynamic': functools.partial(CONVS['dynamic'], **CONV, plan='outputs'),
    'condconv': functools.partial(CONVS['condconv'], 4, (3,), num_kernels=2, plan='outputs'),
    'odconv': functools.partial(CONVS['odconv'], **CONV, plan='shift'),
    'dcd': functools.partial(CONVS['dcd'], 4, (3,), reduction=2),
    'linear': functools.partial(MixtureLinear, 5, num_experts=3, noisy=False, plan='dense'),
    'ffn': functools.partial(MixtureFFN, 5, num_experts=3, noisy=False, plan='dense'),
}


def draw(name, granularity, dtype=jnp.float32):
    """(pruned layer, its variables with half of each mask, x), away from the start."""
    layer = LAYERS[name](granularity=granularity, prune=True, param_dtype=dtype)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 6)).astype(dtype)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), shapes['params'])
    masks = jax.tree.map(lambda leaf: np.arange(leaf.size).reshape(leaf.shape) % 2 == 1, shapes['partition'])
    return layer, {'params': params, 'partition': masks}, x


def with_zeros(params, masks):
    """The parameters of the ordinary layer whose static ones are zero."""
    flat = flatten_dict(params)
    added = {(*path[:-1], f'static_{path[-1]}'): np.zeros(flat[path].shape[1:]) for path in flatten_dict(masks)}
    return unflatten_dict({**flat, **added})


def gradients(layer, variables, x):
    def loss(params, gates):
        masks = {'partition': gates} if gates else {}
        y = layer.apply({**variables, 'params': params, **masks}, x)
        return jnp.sum(jnp.sin(y[0] if isinstance(y, tuple) else y))

    gates = jax.tree.map(lambda mask: mask.astype(float), variables.get('partition', {}))
    return jit_quickly(jax.value_and_grad(loss, (0, 1)))(variables['params'], gates)


@pytest.mark.parametrize(
    ('name', 'granularity'),
    [
        ('dynamic', 'output'),
        pytest.param('ffn', 'output', marks=pytest.mark.slow),
        *(pytest.param(name, 'element', marks=pytest.mark.slow) for name in LAYERS),
        *(
            pytest.param('dynamic', granularity, marks=pytest.mark.slow)
            for granularity in ('input', 'spatial', 'layer')
        ),
    ],
)
def test_a_pruned_layer_is_the_ordinary_one_with_static_zeros_in_every_storage(name, granularity):
    with jax.enable_x64(True):
        layer, variables, x = draw(name, granularity, jnp.float64)
        masks = variables['partition']
        twin = {**variables, 'params': with_zeros(variables['params'], masks)}
        value, (found, gates) = gradients(layer, variables, x)
        expected, (of_twin, of_twins_gates) = gradients(layer.clone(prune=False), twin, x)
        kept = {path: leaf for path, leaf in flatten_dict(of_twin).items() if not path[-1].startswith('static_')}
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        # The gradient through the mask is that of a pruned network: of what each position adds, not of a difference.
        chex.assert_trees_all_close((found, gates), (unflatten_dict(kept), of_twins_gates), rtol=1e-9, atol=1e-12)
        records = find_records(layer, x)
        small = expand_elements(compact(variables, records), records)
        np.testing.assert_allclose(gradients(layer, small, x)[0], value, rtol=1e-12)
        index = index_masks(masks)
        params = compact_params(variables['params'], index, records)
        run = jit_quickly(lambda variables: jax.tree.leaves(layer.apply(variables, x))[0])
        indexed = {**variables, 'params': params, 'index': index}
        np.testing.assert_allclose(run(indexed), run(variables), rtol=1e-9, atol=1e-12)


def test_a_pruned_kernel_is_scaled_masked_and_mixed():
    layer, variables, x = draw('dynamic', 'element')
    layer = layer.clone(use_bias=False)
    params = {name: leaf for name, leaf in variables['params'].items() if name != 'bias'}
    assert params.keys() == {'kernel', 'attention', 'phi'}
    y, sown = layer.apply({**variables, 'params': params}, x, mutable=['intermediates'])
    (attention,) = sown['intermediates']['routing']
    dynamic_scale, _ = scale_factors(params['phi'])
    windows = np.stack([np.pad(x, ((0, 0), (1, 1), (0, 0)))[:, tap : tap + 5] for tap in range(3)], axis=2)
    for b in range(2):
        kernel = sum(attention[b, k] * params['kernel'][k] * variables['partition']['kernel'] for k in range(2))
        np.testing.assert_allclose(
            y[b], dynamic_scale * np.einsum('ptc,tcf->pf', windows[b], kernel), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize('granularity', ['element', 'output', 'input', 'layer'])
def test_compaction_loses_nothing_and_holds_what_counts(granularity):
    for name in LAYERS:
        if name == 'ffn' and granularity == 'input':
            continue
        layer, variables, x = draw(name, granularity)
        records = find_records(layer, x)
        for change in (np.copy, np.ones_like, np.zeros_like):
            masks = jax.tree.map(change, variables['partition'])
            masked = {**variables, 'partition': masks}
            small = compact(masked, records, allow_dynamic=True)
            again = expand(small, records)
            chex.assert_trees_all_equal(again['partition'], masks)
            assert again['params'].keys() == variables['params'].keys()
            chex.assert_trees_all_equal(compact(again, records, allow_dynamic=True), small)
            counted = report_counts(count_layers({**masked, 'intermediates': records}))
            assert counted['parameters'] == sum(leaf.size for leaf in jax.tree.leaves(small['params']))
            assert counted['static_parameters'] == 0 and counted['dynamic_share'] == any(
                mask.any() for mask in jax.tree.leaves(masks)
            )


def test_there_is_nothing_to_hand_over_to():
    layer, variables, x = draw('dynamic', 'element')
    masks = variables['partition']
    layout = Layout.of(find_records(layer, x))
    with pytest.raises(ValueError, match='kernel is pruned: it has no static parameter'):
        hand_off_means(variables['params'], jax.tree.map(np.ones_like, masks), masks, layout)
