"""The table of encoders: parameter counts to the digit, equality, errors."""

import jax
import jax.numpy as jnp
import pytest

from pad_jax.models.encoders import ENCODERS, build_encoder
from pad_jax.partition import count_layers, report_counts

# With pooler, without classifier, as published with the weights (BERT-base: 30522·768 + 512·768 + 2·768 + 2·768 of
# embeddings, 12·(4·(768² + 768) + 2·768·3072 + 3072 + 768 + 4·768) of layers, 768² + 768 of the pooler).
DENSE = {'bert_tiny': 4_385_920, 'minilm': 22_713_216, 'bert_base': 109_482_240, 'bert_large': 335_141_888}


def count(model):
    """Counts by layer, the classifier left out."""
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    valid = jax.ShapeDtypeStruct((1, 16), bool)
    variables = jax.eval_shape(
        lambda *batch: model.init(jax.random.key(0), *batch, mutable=True), tokens, tokens, valid
    )
    return [layer for layer in count_layers(variables) if layer.name != 'classifier']


@pytest.mark.parametrize('name', ENCODERS)
def test_dense_counts(name):
    model = build_encoder(name, num_classes=3)
    assert report_counts(count(model))['parameters'] == DENSE[name]


def test_equal_arguments_make_equal_models():
    one, two = (build_encoder('minilm', num_classes=3, dtype='bfloat16') for _ in range(2))
    assert one == two and hash(one) == hash(two)
    for changes in ({'remat': True}, {'dropout': 0.2}, {'max_length': 128}, {'vocab_size': 99}, {'dtype': 'float32'}):
        assert build_encoder('minilm', **{'num_classes': 3, 'dtype': 'bfloat16', **changes}) != one


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'name': 'bert'}, "model must be one of bert_tiny, .*got 'bert'"),
        ({'ffn': 'moe'}, "ffn must be one of dense.*got 'moe'"),
        ({'num_classes': 0}, 'num_classes must be at least 1, got 0'),
        ({'dtype': 'int8'}, "dtype must be one of .*got 'int8'"),
        ({'dropout': -0.1}, r'dropout must be in \[0, 1\), got -0.1'),
        ({'vocab_size': 0}, 'vocab_size must be at least 1, got 0'),
        ({'max_length': 0}, 'max_length must be at least 1, got 0'),
    ],
)
def test_build_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(**{'name': 'minilm', 'num_classes': 3, **arguments})
