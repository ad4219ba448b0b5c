"""BERT as loops over texts, heads and tokens, in numpy and float64, from the equations of the paper.

Axis letters: T sequence length, C width.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])


def _linear(x, params):
    return x @ params['kernel'] + params['bias']


def _normalize(x, params):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-12) * params['scale'] + params['bias']


def _attend(x, valid, params, num_heads):
    query, key, value = (_linear(x, params[name]) for name in ('query', 'key', 'value'))
    size = x.shape[1] // num_heads
    attended = np.zeros_like(x)
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        for to in range(len(x)):
            logits = [query[to, part] @ key[at, part] / math.sqrt(size) for at in np.flatnonzero(valid)]
            weights = np.exp(logits - np.max(logits))
            attended[to, part] = weights / weights.sum() @ value[valid, part]
    return _linear(attended, params['output'])


def encode(params, tokens, segments, valid, num_heads):
    """One text: int[T] twice and bool[T] -> float64[T, C]."""
    tables = params['embeddings']
    x = tables['tokens']['embedding'][tokens] + tables['segments']['embedding'][segments]
    x = _normalize(x + tables['positions']['embedding'][: len(tokens)], tables['norm'])
    for index in range(sum(name.startswith('layer_') for name in params)):
        layer = params[f'layer_{index}']
        x = _normalize(x + _attend(x, valid, layer['attention'], num_heads), layer['attention_norm'])
        raised = _linear(x, layer['ffn']['up'])
        raised = raised * 0.5 * (1 + _erf(raised / math.sqrt(2)))
        x = _normalize(x + _linear(raised, layer['ffn']['down']), layer['ffn_norm'])
    return x


def classify(params, tokens, segments, valid, num_heads):
    """One text -> float64[outputs]."""
    x = encode(params, tokens, segments, valid, num_heads)
    return _linear(np.tanh(_linear(x[0], params['pooler'])), params['classifier'])


def score_words(params, tokens, segments, valid, num_heads):
    """One text -> float64[T, vocab_size], by the head that predicts masked words."""
    x = _linear(encode(params, tokens, segments, valid, num_heads), params['transform'])
    x = _normalize(x * 0.5 * (1 + _erf(x / math.sqrt(2))), params['transform_norm'])
    return x @ params['embeddings']['tokens']['embedding'].T + params['words']['bias']
