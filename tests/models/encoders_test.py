"""The table of encoders: parameter counts to the digit, equality, errors."""

import jax
import jax.numpy as jnp
import pytest

from pad_jax.layers.factors import read_records
from pad_jax.models import ENCODERS, build_encoder, count_layers, plan_dynamic_positions, report_counts
from pad_jax.partition import Layout, positions_of

# With pooler, without classifier, as published with the weights (BERT-base: 30522·768 + 512·768 + 2·768 + 2·768 of
# embeddings, 12·(4·(768² + 768) + 2·768·3072 + 3072 + 768 + 4·768) of layers, 768² + 768 of the pooler).
DENSE = {'bert_tiny': 4_385_920, 'minilm': 22_713_216, 'bert_base': 109_482_240, 'bert_large': 335_141_888}


def shapes_of(model):
    tokens = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    valid = jax.ShapeDtypeStruct((1, 16), bool)
    return jax.eval_shape(lambda *batch: model.init(jax.random.key(0), *batch, mutable=True), tokens, tokens, valid)


def without_classifier(layers):
    return [layer for layer in layers if layer.name != 'classifier']


def count(model):
    return without_classifier(count_layers(shapes_of(model)))


# Millions with eight experts for both linears of every feed-forward part, routers left out.
MIXTURES = {1.0: 506.17, 0.1: 149.44, 0.3: 228.71, 0.5: 307.99, 0.7: 387.26}


@pytest.mark.parametrize('name', ENCODERS)
def test_dense_counts(name):
    model = build_encoder(name, num_classes=3, ffn='dense')
    assert report_counts(count(model))['parameters'] == DENSE[name]


def test_mixture_counts():
    """BERT-base to the digit: K·κ·n dynamic and (1 − κ)·n static parameters of n = 12·2·768·3072 positions."""
    arguments = {'name': 'bert_base', 'num_classes': 3, 'ffn': 'linear', 'num_experts': 8}
    # Of each mixture two matrices, [768, 8] before the first linear and [3072, 8] before the second.
    routers = 12 * 2 * (768 + 3072) * 8
    # 109,482,240 + 7·56,623,104 + 7·12·(3072 + 768): seven more copies of the kernels and of their biases.
    layers = count(build_encoder(**arguments))
    assert report_counts(layers)['parameters'] - routers == 506_166_528
    found, variables = {1.0: 506_166_528}, shapes_of(build_encoder(**arguments, granularity='element'))
    layout = Layout.of(read_records(variables['intermediates']))
    positions = positions_of(layout, variables['params'], variables['partition'])
    for fraction in (0.1, 0.3, 0.5, 0.7):
        planned = plan_dynamic_positions(positions, fraction)
        counts = report_counts(without_classifier(count_layers(variables, planned)))
        found[fraction] = counts['parameters'] - routers
        assert counts['positions'] == 56_623_104
    # κ = 0.5: 109,482,240 + 3.5·56,623,104 + 7·12·3840 + 24 scale parameters.
    assert found[0.5] == 307_985_688
    assert {key: f'{value / 1e6:.2f}' for key, value in found.items()} == {
        key: f'{value:.2f}' for key, value in MIXTURES.items()
    }


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'name': 'bert'}, "model must be one of bert_tiny, .*got 'bert'"),
        ({'ffn': 'moe'}, "ffn must be one of dense.*got 'moe'"),
        ({'num_selected': 9}, r'num_selected must be in \[1, 8\], got 9'),
        ({'vocab_size': 0}, 'vocab_size must be at least 1, got 0'),
        ({'max_length': 0}, 'max_length must be at least 1, got 0'),
    ],
)
def test_build_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(**{'name': 'minilm', 'num_classes': 3, **arguments})
