"""Decoders: against the twin, with a cache and without, generation, and all that a run asks of a network."""

import functools
import math

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.layers import GATINGS, compact, find_records
from pad_jax.models import (
    DECODERS,
    Architecture,
    Decoder,
    account_layers,
    build_decoder,
    count_layers,
    generate,
    make_ffn_spec,
    report_counts,
    sum_multiply_adds,
)
from tests.layers.compiling import jit_quickly
from tests.models import decoder_twin
from tests.models.product_twin import count_products

SIZES = {'vocab_size': 23, 'max_length': 16, 'num_layers': 2, 'width': 16, 'num_heads': 4, 'ffn_width': 10}
MIXTURE = {'num_experts': 5, 'num_selected': 2, 'plan': 'dense'}
TOKENS = np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)
VALID = np.ones((2, 9), bool)
SHAPES = jax.ShapeDtypeStruct((1, 9), jnp.int32), jax.ShapeDtypeStruct((1, 9), jnp.bool)


def build(name, ffn='ffn', **changes):
    """A network of the family in which everything that it can have is there."""
    fields = {'num_kv_heads': 2, 'shared_width': 7 * (name in ('qwen2_moe', 'granite_moe')), **SIZES, **MIXTURE}
    fields['head_size'] = 6 if name == 'qwen3_moe' else 0
    return build_decoder(name, **{**fields, 'ffn': ffn, **changes})


def draw_variables(model):
    """Every parameter away from its initial value, scales of norms above zero, and half of each mask."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *SHAPES)
    generator = np.random.default_rng(1)

    def draw(path, leaf):
        if leaf.dtype == bool:
            return generator.random(leaf.shape) < 0.5
        values = generator.normal(size=leaf.shape) * 0.4
        return np.abs(values) + 0.5 if path[-1].key == 'scale' else values

    return jax.tree_util.tree_map_with_path(draw, shapes)


def narrow(tree):
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == bool else np.float32(leaf), tree)


@functools.cache
def apply_quickly(model, **options):
    return jit_quickly(functools.partial(model.apply, **options))


CASES = [(name, 'ffn') for name in DECODERS] + [('llama', 'dense'), ('olmoe', 'linear'), ('granite_moe', 'dense')]
# Together they have every value of an architecture.
QUICK = [('qwen2_moe', 'ffn'), ('qwen3_moe', 'ffn'), ('olmoe', 'linear'), ('granite_moe', 'dense')]
GRID = [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize(('name', 'ffn'), GRID)
def test_equals_the_twin(name, ffn):
    # Padding on both sides: positions count from the first token, valid or not, and only differences matter.
    valid = VALID.copy()
    valid[0, :2] = valid[1, 7:] = False
    with jax.enable_x64(True):
        model = build(name, ffn, dtype='float64')
        params = draw_variables(model)['params']
        logits, aux = apply_quickly(model)({'params': params}, TOKENS, valid)
    mixtures = {'ffn': ['experts'], 'linear': ['down', 'gate', 'up'], 'dense': []}[ffn]
    assert logits.dtype == np.float64
    assert list(aux) == [f'layer_{layer}/ffn/{mixture}' for layer in range(2) for mixture in mixtures]
    for row in range(2):
        family = model.architecture
        found = decoder_twin.decode(params, TOKENS[row], valid[row], family, 4, model.head_size, 2)
        # Not to 1e-12: jax.nn.dot_product_attention always takes the softmax in float32.
        np.testing.assert_allclose(logits[row][valid[row]], found[valid[row]], rtol=0, atol=1e-5)


def test_no_token_sees_those_after_it_or_padding():
    model = build('olmoe')
    variables = narrow(draw_variables(model))
    valid = VALID.copy()
    valid[:, 5:] = False
    logits, _ = apply_quickly(model)(variables, TOKENS, VALID)
    changed, _ = apply_quickly(model)(variables, np.where(valid, TOKENS, 3), valid)
    np.testing.assert_allclose(logits[:, :5], changed[:, :5], rtol=0, atol=2e-6)
    assert np.abs(logits - changed)[:, 5:].max() > 0.01
    # A row that holds no token at all, as the rows do that fill up a last batch, stays finite.
    assert np.isfinite(apply_quickly(model)(variables, TOKENS, 0 * VALID > 0)[0]).all()


def steps_with_cache(model, variables, tokens, valid, sizes):
    """Logits of all tokens, given in parts of these sizes."""
    apply = jit_quickly(functools.partial(model.apply, capacity=12, mutable=['cache']))
    cache, found = {}, []
    for stop, size in zip(np.cumsum(sizes), sizes, strict=True):
        part = slice(stop - size, stop)
        (logits, _), cache = apply({**variables, **cache}, tokens[:, part], valid[:, part])
        found.append(logits)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize(
    ('name', 'ffn'),
    [
        ('granite_moe', 'ffn'),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES if case[0] != 'granite_moe'),
    ],
)
def test_with_a_cache_as_without(name, ffn):
    model = build(name, ffn)
    variables = narrow(draw_variables(model))
    valid = VALID.copy()
    valid[0, :2] = False
    expected, _ = apply_quickly(model)(variables, TOKENS, valid)
    found = steps_with_cache(model, variables, TOKENS, valid, [4, 1, 3, 1])
    np.testing.assert_allclose(found[valid], expected[valid], rtol=0, atol=1e-5)


def test_compact_storage_with_a_cache_as_masked_without():
    model = build('olmoe', granularity='output', shared_width=3, num_layers=1)
    variables = narrow(draw_variables(model))
    small = compact(variables, find_records(model, *SHAPES))
    expected, _ = apply_quickly(model)(variables, TOKENS, VALID)
    found = steps_with_cache(model, small, TOKENS, VALID, [8, 1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert generate(model, small, TOKENS, 1).tolist() == expected[:, -1:].argmax(-1).tolist()


def test_generation_is_the_repeated_choice_without_a_cache():
    model = build('mixtral', num_layers=1)
    variables = narrow(draw_variables(model))
    greedy, drawn, key = TOKENS.copy(), TOKENS.copy(), jax.random.key(3)
    for number, place in enumerate(range(4, 9)):
        valid = np.arange(9)[None] < np.array([[place], [place]])
        by_argmax, by_chance = (
            apply_quickly(model)(variables, text, valid)[0][:, place - 1] for text in (greedy, drawn)
        )
        greedy[:, place] = by_argmax.argmax(-1)
        drawn[:, place] = jax.random.categorical(jax.random.fold_in(key, number), by_chance / 0.7)
    texts = TOKENS[:, :4]
    found = generate(model, variables, texts, 5)
    assert found.dtype == jnp.int32 and found.tolist() == greedy[:, 4:].tolist()
    assert generate(model, variables, texts, 5, 0.7, key).tolist() == drawn[:, 4:].tolist()
    assert generate(model, variables, texts, 5, 0.7, jax.random.key(4)).tolist() != drawn[:, 4:].tolist()
    assert generate(model, variables, texts, 1).tolist() == greedy[:, 4:5].tolist()


def test_what_generation_refuses():
    model = build('llama', 'dense')
    for arguments, message in (
        ((TOKENS, 8), r'at most 16 \(max_length\), got 9 and 8'),
        ((TOKENS[:, :0], 2), 'must be at least 1 each, .*, got 0 and 2'),
        ((TOKENS, 0), 'must be at least 1 each, .*, got 9 and 0'),
        ((TOKENS, 2, -1.0), 'temperature must be at least 0, got -1.0'),
        ((TOKENS, 2, math.nan), 'temperature must be at least 0, got nan'),
        ((TOKENS, 2, 1.0), 'key must be given for a temperature above 0'),
    ):
        with pytest.raises(ValueError, match=message):
            generate(model, {}, *arguments)


def test_bfloat16_is_close_and_leaves_parameters_and_logits_wide():
    model = build('granite_moe')
    variables = jax.tree.map(lambda leaf: leaf * 0.5, narrow(draw_variables(model)))
    wide, _ = apply_quickly(model)(variables, TOKENS, VALID)
    short = model.clone(dtype='bfloat16')
    logits, _ = apply_quickly(short)(variables, TOKENS, VALID)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, wide, rtol=0, atol=0.05)
    shapes = jax.eval_shape(short.init, jax.random.key(0), *SHAPES)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}


@pytest.mark.slow
def test_remat_recomputes_each_of_the_two_layers():
    model = build('olmoe')
    params = narrow(draw_variables(model))['params']

    def loss(params, model):
        return jnp.sum(jnp.sin(model.apply({'params': params}, TOKENS, VALID, True, rngs={'routing': key})[0]))

    key = jax.random.key(0)
    plain, remat = (
        jit_quickly(jax.grad(loss), static_argnums=1)(params, model.clone(remat=on)) for on in (False, True)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-4), plain, remat)
    jaxpr = str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, model.clone(remat=True)))
    assert jaxpr.count('differentiated=True') == 2


@pytest.mark.parametrize(('name', 'ffn'), GRID)
def test_multiplies_what_its_program_does(name, ffn):
    """Experts by the plan 'dense' compute all tokens: with k = E that is what is counted."""
    model = build(name, ffn, num_selected=5, noisy=False)
    shapes = jax.eval_shape(functools.partial(model.init, mutable=True), jax.random.key(0), *SHAPES)
    found = account_layers(model, SHAPES, count_layers(shapes))
    assert sum_multiply_adds(found).masked == count_products(model.apply, {'params': shapes['params']}, *SHAPES)
    by_name = {layer.name: layer for layer in found}
    assert by_name['logits'].multiply_adds.dense == 9 * 16 * 23
    assert by_name['logits'].other_parameters == 0 if model.architecture.tied else 16 * 23
    stored = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
    assert report_counts(found)['parameters'] == stored


@pytest.mark.slow  # an export of a run is in tests/training/language_runs_test.py
@pytest.mark.parametrize('name', ['olmoe', 'granite_moe'])
def test_exports_with_symbols_for_batch_and_length(name):
    model = build(name, plan='auto', granularity='output')
    variables = narrow(draw_variables(model))
    small = compact(variables, find_records(model, *SHAPES))
    symbols = jax.export.symbolic_shape('batch, length', constraints=['length <= 16'])
    inputs = jax.ShapeDtypeStruct(symbols, jnp.int32), jax.ShapeDtypeStruct(symbols, jnp.bool)

    @jax.jit
    def network(tokens, valid):
        return model.apply(small, tokens, valid)[0]

    exported = jax.export.export(network, platforms=('cpu', 'cuda', 'tpu'))(*inputs)
    for batch, length in ((1, 1), (2, 9)):
        part = TOKENS[:batch, :length], VALID[:batch, :length]
        expected, _ = apply_quickly(model)(variables, *part)
        np.testing.assert_allclose(exported.call(*part), expected, rtol=0, atol=2e-5)


def test_equal_arguments_build_equal_networks_and_families_have_their_gating():
    for name in DECODERS:
        assert build(name) == build(name) and hash(build(name)) == hash(build(name))
        gating = dict(build(name).ffn.arguments)['gating']
        assert gating == GATINGS.get(name, DECODERS[name].gating) == build(name).architecture.gating
    chosen = build('olmoe', gating=GATINGS['deepseek_v3'], num_experts=16)
    assert dict(chosen.ffn.arguments)['gating'] == GATINGS['deepseek_v3']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'name': 'gpt2'}, "model must be one of llama, .*, got 'gpt2'"),
        ({'vocab_size': 0}, 'vocab_size must be at least 1, got 0'),
        ({'num_layers': 0}, 'num_layers must be at least 1, got 0'),
        ({'num_heads': 5, 'num_kv_heads': 5}, 'num_heads must divide width 16, got 5'),
        ({'head_size': 3}, 'the size of a head must be even for rotary positions, got 3'),
        ({'num_kv_heads': 3}, 'num_kv_heads must divide num_heads 4, got 3'),
        ({'num_kv_heads': -1}, 'num_kv_heads must divide num_heads 4, got -1'),
        ({'shared_width': -1}, 'shared_width must be at least 0, got -1'),
        ({'routing': 'sentence'}, "routing must be 'token': the mean over a text would show a token those after it"),
        ({'dtype': 'int8'}, "dtype must be one of float32, .*, got 'int8'"),
        ({'num_expert': 3}, 'ffn has no argument num_expert'),
    ],
)
def test_refuses(changes, message):
    arguments = {'name': 'llama', **SIZES, 'num_kv_heads': 2, **changes}
    with pytest.raises((ValueError, TypeError), match=message):
        build_decoder(arguments.pop('name'), **arguments)


def test_refuses_what_only_the_network_sees():
    with pytest.raises(ValueError, match="qk_norm must be one of none, whole, head, got 'both'"):
        Decoder(**{**SIZES, 'num_heads': 2}, architecture=Architecture(qk_norm='both'), ffn=make_ffn_spec('dense'))
    model = build('llama', max_length=6)
    with pytest.raises(ValueError, match='the model has 6 positions, got texts of length 9'):
        jax.eval_shape(model.init, jax.random.key(0), *SHAPES)
    with pytest.raises(ValueError, match='the model has 6 positions, got texts of length 7'):
        jax.eval_shape(
            functools.partial(model.init, capacity=7), jax.random.key(0), *(one[:, :2] for one in (TOKENS, VALID))
        )
