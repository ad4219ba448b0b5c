"""Compact = masked with an index = masked = slow twin, for every layer: outputs, gradients, one optimizer step.

The contract of both storages; other tests of layers use the masked one.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from pad_jax import compact, compact_params, expand, find_records, index_masks
from pad_jax.kernels.geometry import resolve_geometry
from pad_jax.layers import CONVS, MixtureFFN, MixtureLinear
from pad_jax.layers.compact import expand_elements
from pad_jax.models import count_layers, report_counts
from pad_jax.partition import Layout, hand_off_means
from pad_jax.partition.masks import GRANULARITIES
from tests.layers.compiling import jit_quickly
from tests.layers.conv_layers_twin import convolve_layer
from tests.layers.mixture_kinds import KINDS
from tests.layers.mixture_twin import mix

# Another kernel, number of groups and stride for each; 9 features, so that bits fill one byte and begin another.
CONV_CASES = {
    'dynamic': {'kernel_size': (3, 2), 'features': 9},
    'condconv': {'kernel_size': (3,), 'features': 9, 'feature_group_count': 3, 'strides': 2},
    'odconv': {'kernel_size': (1, 3), 'features': 9, 'use_bias': False},
    'dcd': {'kernel_size': (3,), 'features': 9, 'feature_group_count': 3},
}
PRUNED = 'pruned '  # before the name of a layer without static parameters
CHANNELS = 6
FRACTIONS = {'none': 0.0, 'tiny': 1e-9, '0.1': 0.1, '0.3': 0.3, '1': 1.0}
OPTIMIZER = optax.chain(optax.add_decayed_weights(0.05), optax.sgd(0.1, momentum=0.9))


def make_layer(name, granularity, **arguments):
    if name.startswith(PRUNED):
        return make_layer(name.removeprefix(PRUNED), granularity, prune=True, **arguments)
    if name in KINDS:
        plan = 'dense' if name == 'linear' else 'blocks'
        fields = {'num_experts': 3, 'noisy': False, 'plan': plan, 'param_dtype': jnp.float64, **arguments}
        return KINDS[name][0](9, granularity=granularity, **fields)
    plan = 'shift' if name == 'odconv' else 'outputs'
    fields = {'num_kernels': 2, 'reduction': 2, 'plan': plan, 'param_dtype': jnp.float64, **CONV_CASES[name]}
    fields = {**fields, 'granularity': granularity, **arguments}
    return CONVS[name](**{key: value for key, value in fields.items() if key in CONVS[name].__dataclass_fields__})


@functools.cache
def setting(name, granularity):
    """(layer, records, params, shapes of masks, x, cotangent, the jitted step): everything away from its start."""
    layer = make_layer(name, granularity)
    rng = np.random.default_rng(len(name) + len(granularity))
    spatial = (4, 3)[: len(layer.kernel_size)] if hasattr(layer, 'kernel_size') else (5,)
    x = rng.normal(size=(2, *spatial, CHANNELS))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    params, momentum = (
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) * 0.5, shapes['params']) for _ in range(2)
    )
    records = find_records(layer, x)
    cotangent = rng.normal(size=jax.eval_shape(functools.partial(apply, layer, records), shapes, x).shape)

    @jit_quickly
    def step(params, momentum, others, x, cotangent):
        def run(params, x):
            return apply(layer, records, {'params': params, **others}, x)

        y, pull = jax.vjp(run, params, x)
        gradients = pull(cotangent)
        state = OPTIMIZER.init(params)
        state = jax.tree.map(lambda leaf: leaf, (state[0], (state[1][0]._replace(trace=momentum), *state[1][1:])))
        updates, state = OPTIMIZER.update(gradients[0], state, params)
        return y, gradients, optax.apply_updates(params, updates), state[1][0].trace

    return layer, records, params, momentum, shapes['partition'], x, cotangent, step


def apply(layer, records, variables, x):
    if {'partition', 'index'} <= variables.keys():  # as a run trains between its rounds
        params = compact_params(variables['params'], variables['index'], records)
        variables = {'params': params, 'index': variables['index']}
    variables = expand_elements(variables, records)
    if isinstance(layer, (MixtureLinear, MixtureFFN)):
        return layer.apply(variables, x)[0]
    return layer.apply(variables, x, 2.0)


def draw_masks(shapes, fraction):
    """κ of the gates of each, at least one where κ isn't zero."""
    rng = np.random.default_rng(3)

    def draw(leaf):
        mask = np.zeros(leaf.size, bool)
        mask[rng.permutation(leaf.size)[: max(fraction > 0, round(fraction * leaf.size))]] = True
        return mask.reshape(leaf.shape)

    return jax.tree.map(draw, shapes)


def with_zeros(params, masks):
    """The parameters of the ordinary layer whose static ones are zero."""
    flat = flatten_dict(params)
    added = {}
    for *module, mask in flatten_dict(masks):
        name = mask.removesuffix('_mask')
        added[*module, f'static_{name}'] = np.zeros(flat[*module, name].shape[1:])
    return unflatten_dict({**flat, **added})


def compute_twin(name, layer, params, masks, x, cotangent):
    """(y, gradients of x and params or None)."""
    if name.startswith(PRUNED):
        name, params = name.removeprefix(PRUNED), with_zeros(params, masks)
        y, found = compute_twin(name, layer, params, masks, x, cotangent)
        return y, found and ({key: leaf for key, leaf in found[0].items() if not key.startswith('static_')}, found[1])
    if name in KINDS:
        tokens = x.reshape(-1, x.shape[-1])
        rows = cotangent.reshape(len(tokens), -1)
        mask, renormalize = masks[f'{KINDS[name][1]}_mask'], layer.gating.renormalize
        y, d_x, d_params = mix(name, tokens, params, mask, layer.num_selected, rows, renormalize=renormalize)
        return y.reshape(cotangent.shape), (d_params, d_x.reshape(x.shape))
    names = ('strides', 'padding', 'input_dilation', 'kernel_dilation', 'feature_group_count')
    geometry = resolve_geometry(x.shape[1:-1], layer.kernel_size, *(getattr(layer, field) for field in names))
    return convolve_layer(name, params, x, masks, 2.0, geometry), None


def check(name, granularity, fraction):
    with jax.enable_x64(True):
        layer, records, params, momentum, shapes, x, cotangent, step = setting(name, granularity)
        masks = draw_masks(shapes, fraction)
        expected, of_twin = compute_twin(name, layer, params, masks, x, cotangent)
        y, gradients, new, moved = step(params, momentum, {'partition': masks}, x, cotangent)
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)
        if of_twin is not None:
            chex.assert_trees_all_close(gradients, of_twin, rtol=1e-8, atol=1e-8)

        small = compact({'params': params, 'partition': masks}, records)
        small_momentum = compact_params(momentum, masks, records)
        others = {'index': small['index']}
        found = step(small['params'], small_momentum, others, x, cotangent)
        shrink = functools.partial(compact_params, index=masks, records=records)
        expected = y, (shrink(gradients[0]), gradients[1]), shrink(new), shrink(moved)
        chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-9)

        index = index_masks(masks)
        if index and granularity != 'element':
            found = step(params, momentum, {'partition': masks, 'index': index}, x, cotangent)
            chex.assert_trees_all_close(found, (y, gradients, new, moved), rtol=1e-9, atol=1e-9)


GRID = [
    *((name, granularity) for name in CONV_CASES for granularity in GRANULARITIES),
    *((name, granularity) for name, (kind, _) in KINDS.items() for granularity in kind.granularities if granularity),
    *((f'{PRUNED}{name}', 'element') for name in (*CONV_CASES, *KINDS)),
    *((f'{PRUNED}dynamic', granularity) for granularity in GRANULARITIES if granularity != 'element'),
]
# Every kind of layer, and the extremes where they are hardest; compiling is what takes the time.
QUICK = {
    ('dynamic', 'element', '0.3'),
    ('dynamic', 'output', 'tiny'),
    ('condconv', 'output', '0.3'),
    ('odconv', 'spatial', '0.1'),
    ('dcd', 'element', 'none'),
    ('linear', 'input', '0.3'),
    ('swiglu', 'output', '0.3'),
    ('pruned dynamic', 'output', '0.3'),
}


@pytest.mark.parametrize(
    ('name', 'granularity', 'fraction'),
    [
        pytest.param(*case, fraction, marks=[] if (*case, fraction) in QUICK else pytest.mark.slow)
        for case in GRID
        for fraction in FRACTIONS
    ],
)
def test_every_storage_computes_the_same(name, granularity, fraction):
    check(name, granularity, FRACTIONS[fraction])


@pytest.mark.parametrize('granularity', ['output', pytest.param('input', marks=pytest.mark.slow)])
def test_dead_entries_cost_nothing(granularity):
    """XLA's own count of operations: that of 4·κ + 1 − κ kernels, half way between one kernel and four.

    Without padding, whose products XLA counts only for some plans. With many channels, so that little else counts.
    """

    def count(fraction):
        layer = CONVS['dynamic'](8, (2, 2), granularity=granularity, plan='outputs', padding='VALID')
        x = jnp.zeros((2, 7, 7, 64))
        shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes['params'])
        masks = draw_masks(shapes['partition'], fraction)
        variables = {'params': params, 'partition': masks}
        records = find_records(layer, x)

        def loss(params, others):
            return jnp.sum(apply(layer, records, {'params': params, **others}, x) ** 2)

        program = jit_quickly(jax.grad(loss))
        small = compact(variables, records)
        found = [
            program.lower(small['params'], {'index': small['index']}),
            program.lower(params, {'partition': masks, 'index': index_masks(masks)}),
        ]
        return np.array([lowered.compile().cost_analysis()['flops'] for lowered in found])

    none, half, whole = (count(fraction) for fraction in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(none, whole / 4, rtol=0.05)
    np.testing.assert_allclose(half, (none + whole) / 2, rtol=0.05)


def test_bfloat16_computes_from_compact_float32():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6), jnp.bfloat16)
    layer = CONVS['dynamic'](9, (3,), granularity='output', dtype=jnp.bfloat16, plan='outputs')
    variables = jit_quickly(layer.init)(jax.random.key(1), x)
    variables['partition'] = draw_masks(variables['partition'], 0.3)
    run = jit_quickly(layer.apply)
    y, found = run(variables, x), run(compact(variables, find_records(layer, x)), x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), y.astype(jnp.float32), rtol=0.05, atol=0.05)


def test_compact_parameters_of_another_layer_are_refused():
    x = jnp.ones((2, 5, 6))
    layer = make_layer('condconv', 'output', param_dtype=jnp.float32)
    variables = jit_quickly(layer.init)(jax.random.key(0), x)
    small = compact({**variables, 'partition': draw_masks(variables['partition'], 0.3)}, find_records(layer, x))
    for other, message in (
        ({'granularity': 'output', 'features': 6}, 'must have the shapes .* for 3 of 6 dynamic entries'),
        ({'granularity': 'element'}, 'kernel is compact by element: call `expand`'),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(make_layer('condconv', param_dtype=jnp.float32, **other).apply, small, x)


# Layers without static parameters: what is not dynamic is zero for every input.
LAYERS = (*CONV_CASES, *KINDS)


@pytest.mark.parametrize('name', ['dynamic', *(pytest.param(name, marks=pytest.mark.slow) for name in LAYERS[1:])])
def test_the_gate_gradient_of_a_pruned_layer_is_that_of_static_zeros(name):
    """It is of what each position adds, not of a difference."""
    with jax.enable_x64(True):
        layer, records, params, _, shapes, x, *_ = setting(PRUNED + name, 'element')
        gates = jax.tree.map(lambda mask: mask.astype(float), draw_masks(shapes, 0.3))

        def differentiate(layer, params):
            def loss(gates):
                return jnp.sum(jnp.sin(apply(layer, records, {'params': params, 'partition': gates}, x)))

            return jit_quickly(jax.grad(loss))(gates)

        expected = differentiate(layer.clone(prune=False), with_zeros(params, gates))
        chex.assert_trees_all_close(differentiate(layer, params), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('granularity', ['element', 'output'])
@pytest.mark.parametrize('fraction', [0.0, 0.3, 1.0])
def test_a_pruned_layer_stores_what_counts_and_expands_again(granularity, fraction):
    with jax.enable_x64(True):
        for name in LAYERS:
            _, records, params, _, shapes, *_ = setting(PRUNED + name, granularity)
            masked = {'params': params, 'partition': draw_masks(shapes, fraction)}
            small = compact(masked, records)
            again = expand(small, records)
            chex.assert_trees_all_equal(again['partition'], masked['partition'])
            chex.assert_trees_all_equal_structs(again['params'], params)
            chex.assert_trees_all_equal(compact(again, records), small)
            counted = report_counts(count_layers({**masked, 'intermediates': records}))
            assert counted['parameters'] == sum(leaf.size for leaf in jax.tree.leaves(small['params']))
            assert counted['static_parameters'] == 0 and (counted['dynamic_share'] > 0) == (fraction > 0)


def test_a_pruned_layer_has_nothing_to_hand_over_to():
    _, records, params, _, shapes, *_ = setting(PRUNED + 'dynamic', 'element')
    masks = draw_masks(shapes, 0.3)
    with jax.enable_x64(True), pytest.raises(ValueError, match='kernel is pruned: it has no static parameter'):
        hand_off_means(params, jax.tree.map(np.ones_like, masks), masks, Layout.of(records))
