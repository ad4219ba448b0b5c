"""Real weights: the sentence vectors of MiniLM are those that its authors' code computes."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from pad_jax.models import build_encoder
from pad_jax.pretrained import PACKAGES, find_vocabulary, find_weights, load_pretrained

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(importlib.util.find_spec(PACKAGES['minilm']) is None, reason='make weights installs them'),
]

SENTENCES = ['A man is eating food.', 'Someone eats a meal.', 'The stock market crashed today.']


def test_sentences_are_as_near_as_published():
    folder, model = find_weights('minilm'), build_encoder('minilm', num_classes=2, ffn='dense')
    tokenizer = Tokenizer.from_file(str(find_vocabulary(folder)))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(SENTENCES)
    tokens, segments, valid = (
        np.array([getattr(encoding, field) for encoding in encodings])
        for field in ('ids', 'type_ids', 'attention_mask')
    )
    valid = valid == 1
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, segments, valid)['params']
    # Zeros: the weights must come from the file.
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    params, fresh = load_pretrained(folder, zeros, {}, num_heads=model.num_heads)
    assert fresh == ('classifier',)
    encode = jax.jit(functools.partial(model.apply, method='encode'))
    hidden, _ = encode({'params': params}, tokens, segments, valid)
    vectors = (hidden * valid[..., None]).sum(1)
    vectors = np.array(vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True))
    assert vectors[0] @ vectors[1] == pytest.approx(0.761, abs=5e-4)
    assert vectors[0] @ vectors[2] == pytest.approx(0.009, abs=5e-4)
