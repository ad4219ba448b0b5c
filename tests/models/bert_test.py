"""The encoder: against the twin, and what padding, dropout, dtypes and remat may and may not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from pad_jax.models.bert import Bert
from tests.layers.compiling import jit_quickly
from tests.models import bert_twin

TINY = Bert(
    vocab_size=31, num_layers=2, width=12, num_heads=3, ffn_width=20, max_length=128, num_outputs=4, num_segments=3
)


def make_batch(lengths, padded):
    """Texts of these lengths, padded to one length with tokens and segments that are not zero."""
    generator = np.random.default_rng(0)
    valid = np.arange(padded)[None] < np.array(lengths)[:, None]
    real_tokens, real_segments = generator.integers(0, 31, (len(lengths), 128)), generator.integers(0, 3, 128)
    tokens = np.where(valid, real_tokens[:, :padded], 7)
    segments = np.where(valid, real_segments[None, :padded], 2)
    return tokens.astype(np.int32), segments.astype(np.int32), valid


@functools.cache
def make_params(model=TINY):
    """Every parameter away from its initial value, the scales of norms above zero."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *make_batch([2], 2))['params']
    generator = np.random.default_rng(1)

    def draw(path, leaf):
        values = generator.normal(size=leaf.shape) * 0.4
        return np.abs(values) + 0.5 if path[-1].key == 'scale' else values

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def apply_quickly(**changes):
    return jit_quickly(lambda params, *batch: TINY.clone(**changes).apply({'params': params}, *batch)[0])


def test_equals_the_twin():
    params = make_params()
    tokens, segments, valid = make_batch([5, 7, 1], 7)
    with jax.enable_x64(True):
        model = TINY.clone(dtype='float64')

        @jit_quickly
        def apply(params):
            variables = {'params': params}
            hidden, aux = model.apply(variables, tokens, segments, valid, method='encode')
            return model.apply(variables, tokens, segments, valid)[0], hidden, aux

        logits, hidden, aux = apply(params)
    assert logits.dtype == hidden.dtype == np.float64 and aux == {}
    for row in zip(tokens, segments, valid, logits, hidden, strict=True):
        *text, found_logits, found_hidden = row
        # Not to 1e-12: jax.nn.dot_product_attention always takes the softmax in float32.
        np.testing.assert_allclose(found_hidden, bert_twin.encode(params, *text, 3), rtol=0, atol=3e-6)
        np.testing.assert_allclose(found_logits, bert_twin.classify(params, *text, 3), rtol=0, atol=3e-6)


def test_the_head_of_words_equals_the_twin():
    tokens, segments, valid = make_batch([5, 7, 1], 7)
    with jax.enable_x64(True):
        model = TINY.clone(dtype='float64', head='words')
        params = make_params(model)
        logits, _ = jit_quickly(model.apply)({'params': params}, tokens, segments, valid)
    assert logits.shape == (3, 7, 31) and logits.dtype == np.float64
    assert params.keys() == {'embeddings', 'layer_0', 'layer_1', 'transform', 'transform_norm', 'words'}
    for row in zip(tokens, segments, valid, logits, strict=True):
        *text, found = row
        np.testing.assert_allclose(found, bert_twin.score_words(params, *text, 3), rtol=0, atol=3e-6)
    short = TINY.clone(dtype='bfloat16', head='words')
    inputs = jax.random.key(0), tokens, segments, valid
    found, variables = jax.eval_shape(short.init_with_output, *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves((found, variables))} == {jnp.dtype('float32')}


def test_the_table_of_words_is_trained_from_both_ends():
    """The gradient of the tied table is the sum of those of two tables."""
    batch = make_batch([5, 7], 7)
    model = TINY.clone(head='words', num_layers=1)
    params = jax.tree.map(jnp.float32, make_params(model))

    @jit_quickly
    @jax.grad
    def differentiate(params):
        return jnp.sum(jnp.sin(model.apply({'params': params}, *batch)[0]))

    table = differentiate(params)['embeddings']['tokens']['embedding']
    unused = sorted(set(range(31)) - set(batch[0].reshape(-1)))
    # Words that no text has get a gradient as outputs.
    assert unused and (np.abs(table[np.array(unused)]).max(1) > 0).all()


def test_padding_changes_nothing():
    lengths = [5, 64, 1, 40]
    short = apply_quickly()(make_params(), *make_batch(lengths, 64))
    tokens, segments, valid = make_batch(lengths, 128)
    long = apply_quickly()(make_params(), tokens, segments, valid)
    np.testing.assert_allclose(short, long, rtol=0, atol=2e-6)
    # What stands on the padding is never read.
    other = apply_quickly()(make_params(), np.where(valid, tokens, 3), np.where(valid, segments, 0), valid)
    np.testing.assert_array_equal(long, other)
    # A text that holds no token at all, as the rows do that fill up a last batch, stays finite.
    valid[1] = False
    assert np.isfinite(apply_quickly()(make_params(), tokens, segments, valid)).all()


def test_dropout_only_in_training_and_by_its_key():
    batch = make_batch([5, 7], 7)

    @jit_quickly
    def train(params, key):
        apply = functools.partial(TINY.clone(dropout=0.5).apply, {'params': params}, *batch, train=True)
        undropped = TINY.clone(dropout=0.0).apply({'params': params}, *batch, train=True)
        return apply(rngs={'dropout': key})[0], undropped[0]

    params = make_params()
    logits, undropped = train(params, jax.random.key(0))
    np.testing.assert_array_equal(logits, train(params, jax.random.key(0))[0])
    assert np.abs(logits - train(params, jax.random.key(1))[0]).max() > 0.1
    evaluated = apply_quickly()(params, *batch)
    np.testing.assert_allclose(evaluated, undropped, rtol=0, atol=1e-6)
    assert np.abs(logits - evaluated).max() > 0.1


def test_dropout_falls_where_it_should():
    model, batch = TINY.clone(num_layers=1, dropout=0.3), make_batch([7] * 16, 7)

    def is_dropout(module, method):
        return isinstance(module, nn.Dropout)

    @jit_quickly
    def find_dropped(params, key):
        apply = functools.partial(model.apply, {'params': params}, *batch, train=True, rngs={'dropout': key})
        return apply(mutable='intermediates', capture_intermediates=is_dropout)[1]['intermediates']

    found = traverse_util.flatten_dict(find_dropped(make_params(), jax.random.key(0)), sep='/')
    # On the embeddings, on both sums of the layer, and on the pooled vector: 16·(7·12) values, and 16·12 pooled ones.
    shares = {path.removesuffix('/__call__'): float(np.mean(value == 0)) for path, (value,) in found.items()}
    assert shares == {
        'embeddings/Dropout_0': pytest.approx(0.3, abs=0.05),
        'layer_0/Dropout_0': pytest.approx(0.3, abs=0.05),
        'layer_0/Dropout_1': pytest.approx(0.3, abs=0.05),
        'pooled_dropout': pytest.approx(0.3, abs=0.12),
    }


def test_bfloat16_is_close_and_leaves_parameters_and_logits_wide():
    batch = make_batch([5, 7], 7)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32) * 0.5, make_params())
    logits = apply_quickly(dtype='bfloat16')(params, *batch)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, apply_quickly()(params, *batch), rtol=0, atol=0.03)
    variables = jax.eval_shape(TINY.clone(dtype='bfloat16').init, jax.random.key(0), *batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    hidden, _ = jax.eval_shape(
        functools.partial(TINY.clone(dtype='bfloat16').apply, method='encode'), variables, *batch
    )
    assert hidden.dtype == jnp.bfloat16


def loss(params, remat):
    logits, _ = TINY.clone(remat=remat).apply(
        {'params': params}, *make_batch([5, 7], 7), train=True, rngs={'dropout': jax.random.key(0)}
    )
    return jnp.sum(jnp.sin(logits))


def test_remat_recomputes_each_of_the_two_layers():
    params = jax.tree.map(jnp.float32, make_params())
    text = {remat: str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, remat)) for remat in (True, False)}
    assert {remat: text[remat].count('differentiated=True') for remat in text} == {True: 2, False: 0}
    batch = make_batch([2], 2)
    plain, remat = (jax.eval_shape(TINY.clone(remat=remat).init, jax.random.key(0), *batch) for remat in (False, True))
    assert plain == remat  # the same names of parameters


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_heads': 5}, 'num_heads must divide width 12, got 5'),
        ({'num_heads': 0}, 'num_heads must be at least 1, got 0'),
        ({'num_outputs': 0}, 'num_outputs must be at least 1, got 0'),
        ({'head': 'spans'}, "head must be one of classes, words, got 'spans'"),
        ({'dropout': 1.0}, r'dropout must be in \[0, 1\), got 1.0'),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        TINY.clone(**changes)


def test_refuses_texts_that_are_too_long():
    with pytest.raises(ValueError, match='the model has 6 positions, got texts of length 7'):
        jax.eval_shape(TINY.clone(max_length=6).init, jax.random.key(0), *make_batch([7], 7))
