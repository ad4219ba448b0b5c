"""The contract of every plan, and the mixtures around them, against a loop over tokens and experts."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.kernels.dispatch import PLANS
from pad_jax.layers import Gating, MixtureFFN, MixtureLinear, compact, find_records, partition_flax
from pad_jax.layers.mixture import apply_neurons
from pad_jax.layers.router import Router
from pad_jax.partition import scale_factors
from pad_jax.partition.masks import SCALES
from tests.layers.compiling import jit_quickly
from tests.layers.mixture_kinds import KINDS
from tests.layers.mixture_twin import mix

WIDTH = 5
ROUTES = ('spread', 'empty experts', 'one expert', 'padding')


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def make_layer(kind, features=6, **arguments):
    return KINDS[kind][0](features, param_dtype=jnp.float64, noisy=False, **arguments)


def make_tokens(route, num_tokens):
    """(x [N, C], valid bool[N]); the last feature is constant, so that its gate weights favour experts."""
    x = draw(1, num_tokens, WIDTH)
    x[:, -1] = 1.0
    valid = np.arange(num_tokens) % 3 != 1 if route == 'padding' else np.ones(num_tokens, bool)
    return x, valid


def make_variables(layer, kind, route, seed=2):
    """Random parameters and a mask with about half of its gates open."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 1, WIDTH)))
    leaves, structure = jax.tree.flatten(shapes['params'])
    params = structure.unflatten([draw(seed + i, *leaf.shape) for i, leaf in enumerate(leaves)])
    gate = params['router']['gate']
    if route == 'empty experts':
        gate[-1, 1::2] = -50  # every second expert is left out wherever k allows it
    if route == 'one expert':
        gate[:] = 0
        gate[-1] = -np.arange(gate.shape[1]) * 0.3
        gate[0] = 0.01
    masks = {}
    if 'partition' in shapes:
        name = f'{KINDS[kind][1]}_mask'
        masks = {name: draw(seed + 9, *shapes['partition'][name].shape) > 0}
    return params, masks


@functools.cache
def compiled(layer):
    def value_and_gradients(x, params, others, valid, cotangent):
        def loss(x, params):
            y, aux = layer.apply({'params': params, **others}, x, valid)
            return jnp.sum(y * cotangent), (y, aux)

        (_, outputs), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, params)
        return *outputs, *gradients

    return jit_quickly(value_and_gradients)


def run(layer, variables, *inputs, **options):
    return jit_quickly(functools.partial(layer.apply, **options))(variables, *inputs)


def start(layer, x):
    return jit_quickly(layer.init)(jax.random.key(1), x)


def check_layer(layer, kind, num_tokens, route):
    """Compare one layer with the twin: output, gradients, statistics."""
    x, valid = make_tokens(route, num_tokens)
    params, masks = make_variables(layer, kind, route)
    cotangent = draw(3, num_tokens, 6 if kind == 'linear' else WIDTH)
    others = {'partition': masks} if masks else {}
    mask = masks[f'{KINDS[kind][1]}_mask'] if masks else None
    expected = mix(kind, x, params, mask, layer.num_selected, cotangent, valid, layer.scales, layer.gating.renormalize)
    batch = (x[None], params, others, valid[None], cotangent[None])
    y, aux, d_x, d_params = compiled(layer)(*batch)
    np.testing.assert_allclose(y[0], expected[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(d_x[0], expected[1], rtol=1e-8, atol=1e-8)
    chex.assert_trees_all_close(d_params, expected[2], rtol=1e-8, atol=1e-8)
    return aux


# The other kinds only differ inside an expert; the slow contract below has all plans of them.
PAIRS = [*((plan, kind) for plan in PLANS for kind in ('linear', 'ffn')), ('blocks', 'swiglu'), ('dense', 'swiglu')]


@pytest.mark.parametrize(('plan', 'kind'), PAIRS)
def test_every_plan_is_the_loop_over_tokens_and_experts(plan, kind):
    with jax.enable_x64(True):
        # 167 tokens of one expert are a large block and two small ones, the last of them in part. 7 tokens have fewer
        # rows than a large block.
        for num_experts, num_selected, num_tokens in ((3, 1, 167), (2, 2, 7)):
            layer = make_layer(kind, num_experts=num_experts, num_selected=num_selected, plan=plan)
            for route in ROUTES:
                aux = check_layer(layer, kind, num_tokens, route)
                if route == 'one expert':
                    assert sorted(aux['load'])[-num_selected:] == pytest.approx([1 / num_selected] * num_selected)


@pytest.mark.parametrize('scales', [pytest.param(scales, marks=pytest.mark.slow) for scales in SCALES[1:3]] + ['none'])
def test_scales_are_those_of_the_loop(scales):
    with jax.enable_x64(True):
        layer = make_layer('linear', num_experts=4, granularity='element', plan='dense', scales=scales)
        check_layer(layer, 'linear', 7, 'spread')


@pytest.fixture
def release_each_case():
    """As conftest does after a file: these cases would together reach the most memory maps a process may have."""
    yield
    compiled.cache_clear()
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.usefixtures('release_each_case')
@pytest.mark.parametrize(
    ('kind', 'granularity'),
    [(kind, granularity) for kind, (layer, _) in KINDS.items() for granularity in layer.granularities],
)
@pytest.mark.parametrize('plan', PLANS)
def test_the_whole_contract(plan, kind, granularity):
    with jax.enable_x64(True):
        for num_experts in (1, 2, 5):
            for num_selected in sorted({1, min(2, num_experts), num_experts}):
                arguments = {'num_experts': num_experts, 'num_selected': num_selected, 'plan': plan}
                layer = make_layer(kind, granularity=granularity, **arguments)
                for num_tokens in (7, 167):
                    for route in ROUTES:
                        check_layer(layer, kind, num_tokens, route)


@pytest.mark.parametrize(('kind', 'granularity'), [('linear', 'output'), ('linear', 'input'), ('ffn', 'output')])
def test_experts_multiply_only_their_dynamic_columns(kind, granularity):
    """Every product with a stack of matrices has the size of the dynamic part; the other products are plain."""
    layer = KINDS[kind][0](8, num_experts=4, granularity=granularity, plan='dense')
    x = jnp.zeros((1, 7, 6))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    params, masks = (jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes[name]) for name in ('params', 'partition'))
    masks = jax.tree.map(lambda mask: (jnp.arange(mask.size) % 2 == 0).reshape(mask.shape), masks)
    variables = compact({'params': params, 'partition': masks}, find_records(layer, x))
    program = jax.jit(layer.apply).lower(variables, x).as_text()
    products = [line.split(' : ')[-1].split(' -> ')[0] for line in program.splitlines() if 'dot_general' in line]
    stacks = {tuple(map(int, found)) for line in products for found in re.findall(r'<4x(\d+)x(\d+)x', line)}
    stacks = {shape for shape in stacks if shape[0] != 7}  # not the tokens, of which each expert has all
    assert stacks == {(3, 8) if granularity == 'input' else (6, 4)}


def test_elements_of_a_single_feature_are_columns():
    """The mask of the elements of [1, F] is one of outputs, and its index is read as one."""
    for features, width in ((4, 1), (1, 4)):
        layer = MixtureLinear(features, num_experts=3, granularity='element', plan='dense')
        x = jax.random.normal(jax.random.key(0), (2, 5, width))
        variables = start(layer, x)
        variables['partition']['kernel_mask'] = jnp.arange(4).reshape(width, features) % 2 == 0
        expected, _ = run(layer, variables, x)
        found, _ = run(layer, compact(variables, find_records(layer, x)), x)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_without_bias_and_without_tokens():
    layer = MixtureLinear(3, num_experts=2, use_bias=False, plan='blocks')
    x = jax.random.normal(jax.random.key(0), (1, 4, 2))
    variables = start(layer, x)
    assert set(variables['params']) == {'kernel', 'router'}
    # The router starts at zero: both experts, half of each.
    expected = np.einsum('btc,cf->btf', x, variables['params']['kernel'].mean(0))
    np.testing.assert_allclose(run(layer, variables, x)[0], expected, atol=1e-6)
    y, aux = run(layer, variables, x[:, :0])
    assert y.shape == (1, 0, 3) and all(np.isfinite(value).all() for value in aux.values())
    y, aux = run(layer, variables, x, jnp.zeros((1, 4), bool))  # only padding
    assert not y.any() and all(np.isfinite(value).all() for value in aux.values())


def test_all_static_is_the_plain_dense_layer_and_all_dynamic_the_plain_mixture():
    with jax.enable_x64(True):
        x, _ = make_tokens('spread', 11)
        for kind, name in (('linear', 'kernel'), ('ffn', 'neurons')):
            layer = make_layer(kind, num_experts=3, granularity='output', plan='dense')
            params, masks = make_variables(layer, kind, 'spread')
            dynamic_scale, static_scale = scale_factors(params['phi'])
            params['bias'][:] = params['bias'][0]  # the same for all experts: they have no say
            y = run(layer, {'params': params, 'partition': jax.tree.map(np.zeros_like, masks)}, x[None])[0]
            static = static_scale * params[f'static_{name}']
            expected = x @ static if kind == 'linear' else apply_neurons(x, static)
            np.testing.assert_allclose(y[0], expected + params['bias'][:1], rtol=1e-9)
            y = run(layer, {'params': params, 'partition': jax.tree.map(np.ones_like, masks)}, x[None])[0]
            plain = {key: params[key] for key in ('bias', 'router')} | {name: dynamic_scale * params[name]}
            expected = run(layer.clone(granularity=None), {'params': plain}, x[None])[0]
            np.testing.assert_allclose(y, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ('kind', 'plan'),
    [
        ('linear', 'blocks'),
        ('linear', 'ragged'),
        *(pytest.param('ffn', plan, marks=pytest.mark.slow) for plan in PLANS),
    ],
)
def test_gate_gradient_is_the_finite_difference_and_second_derivatives_exist(kind, plan):
    with jax.enable_x64(True):
        name = KINDS[kind][1]
        layer = make_layer(kind, num_experts=3, granularity='output', plan=plan)
        params, _ = make_variables(layer, kind, 'spread')
        x, _ = make_tokens('spread', 9)

        def loss(gate):
            return jnp.sum(jnp.sin(layer.apply({'params': params, 'partition': {f'{name}_mask': gate}}, x[None])[0]))

        # The criterion `grasp` differentiates a gradient.
        def flow(gate):
            return jnp.sum(jax.grad(loss)(gate) ** 2)

        gate = jnp.asarray(np.random.default_rng(4).uniform(0.2, 0.8, (1, 6)))
        for function in map(jit_quickly, map(jax.value_and_grad, (loss, flow))):
            _, gradient = function(gate)
            for index in (0, 4):
                step = jnp.zeros_like(gate).at[0, index].set(1e-5)
                slope = (function(gate + step)[0] - function(gate - step)[0]) / 2e-5
                np.testing.assert_allclose(gradient[0, index], slope, rtol=1e-5)


def test_nothing_is_traced_again_for_other_masks_choices_and_padding():
    layer = MixtureLinear(6, num_experts=4, granularity='element', plan='blocks')
    x = jnp.ones((2, 5, WIDTH))
    variables = start(layer, x)

    @jit_quickly
    @chex.assert_max_traces(n=1)
    def call(params, masks, x, valid, key):
        return layer.apply({'params': params, 'partition': masks}, x, valid, True, rngs={'routing': key})[0]

    for seed in range(3):
        key = jax.random.key(seed)
        masks = jax.tree.map(lambda mask, key=key: jax.random.bernoulli(key, 0.5, mask.shape), variables['partition'])
        valid = jax.random.bernoulli(key, 0.7, (2, 5))
        call(variables['params'], masks, jax.random.normal(key, x.shape), valid, key)


def test_gradients_of_weights_are_summed_wider_than_bfloat16():
    """4096 equal rows of one expert: a sum in bfloat16 would stop at 256, where 1 is half of the last digit."""
    layer = MixtureLinear(1, num_experts=1, num_selected=1, plan='blocks', dtype=jnp.bfloat16, use_bias=False)
    x = jnp.ones((1, 4096, 1))
    variables = start(layer, x)
    slope = jit_quickly(jax.grad(lambda params: layer.apply({'params': params}, x)[0].astype(jnp.float32).sum()))
    assert slope(variables['params'])['kernel'].item() == 4096


@pytest.mark.parametrize(
    'plan', ['blocks', *(pytest.param(plan, marks=pytest.mark.slow) for plan in ('dense', 'slots', 'ragged'))]
)
def test_gradients_inside_shard_map_with_its_default_checks(plan):
    layer = MixtureLinear(3, num_experts=3, num_selected=2, plan=plan, noisy=False)
    x = jax.random.normal(jax.random.key(0), (4, 5, 4))
    params = start(layer, x)['params']
    params['router']['gate'] = jax.random.normal(jax.random.key(1), (4, 3))

    def loss(params, x):
        return jnp.sum(jnp.sin(layer.apply({'params': params}, x)[0]))

    mesh = jax.make_mesh((2,), ('batch',), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = jax.sharding.PartitionSpec

    def summed(params, x):
        return jax.lax.psum(loss(params, x), 'batch')

    spread = jax.shard_map(summed, mesh=mesh, in_specs=(spec(), spec('batch')), out_specs=spec())
    found, expected = (jit_quickly(jax.grad(function, (0, 1)))(params, x) for function in (spread, loss))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'num_selected': 9}, r'num_selected must be in \[1, 8\], got 9'),
        ({'num_experts': 0}, 'num_experts must be at least 1, got 0'),
        ({'granularity': 'spatial'}, "granularity must be one of None, element, .*, got 'spatial'"),
        ({'plan': 'fast'}, "plan must be one of auto, dense, .*, got 'fast'"),
        ({'routing': 'word'}, "routing must be one of token, sentence, got 'word'"),
        ({'scales': 'all'}, "scales must be one of both, .*, got 'all'"),
        ({'gating': Gating(num_groups=3)}, 'num_groups must divide num_experts = 8, got 3'),
        (
            {'gating': Gating(num_groups=8), 'num_selected': 2},
            'kept_groups must hold at least num_selected = 2 experts, got 1 groups of 1',
        ),
    ],
)
def test_what_a_mixture_refuses(arguments, message):
    for kind, _ in KINDS.values():
        with pytest.raises(ValueError, match=message):
            kind(4, **arguments)
    if arguments.keys() <= Router.__dataclass_fields__.keys():
        with pytest.raises(ValueError, match=message):
            Router(**({'num_experts': 8, 'num_selected': 2} | arguments))
    with pytest.raises(ValueError, match="activation must be one of gelu, swiglu, got 'relu'"):
        MixtureFFN(4, activation='relu')
    with pytest.raises(ValueError, match="must be one of None, element, output, layer, got 'input'"):
        MixtureFFN(4, granularity='input')
    with pytest.raises(ValueError, match=r'x \[\*batch, T, C\] and valid'):
        MixtureLinear(4).init(jax.random.key(0), jnp.ones((2, 3, 4)), jnp.ones((2, 4), bool))


@pytest.mark.parametrize(
    ('kind', 'num_selected'),
    [
        ('linear', 1),
        ('ffn', 1),
        ('swiglu', 2),
        *(pytest.param(kind, 2, marks=pytest.mark.slow) for kind in KINDS if kind != 'swiglu'),
    ],
)
def test_mean_of_equal_experts_is_each_of_them(kind, num_selected):
    """A weight below one, as that of a single expert, also multiplies the static part: nothing changes."""
    layer = make_layer(kind, num_experts=4, num_selected=num_selected, granularity='output')
    params, _ = make_variables(layer, kind, 'spread')
    name, x = KINDS[kind][1], draw(1, 2, 7, WIDTH)
    params = {**params, name: np.repeat(params[name][:1], 4, axis=0)}
    variables = layer.init(jax.random.key(0), x) | {'params': params}
    loss = lambda apply, x: jnp.mean(apply(x)[0])  # noqa: E731
    masks, after = partition_flax(layer, variables, loss, [x], dynamic_fraction=0.5, handoff='mean', criterion='random')
    found, _ = layer.apply({'params': after, 'partition': masks}, x)
    np.testing.assert_allclose(found, layer.apply(variables, x)[0], rtol=1e-5, atol=1e-5)
