"""Decoders as loops over heads and tokens, in numpy and float64, from the equations of the papers.

Axis letters: T sequence length, C width, D size of a head, V words.
"""

import math

import numpy as np

from tests.layers import mixture_twin


def _normalize(x, scale, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def _softmax(values):
    powers = np.exp(values - np.max(values))
    return powers / powers.sum()


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _rotate(vector, position, theta):
    """Turn the pair (i, i + D/2), seen as a complex number, by position · theta^(−2i/D)."""
    half = len(vector) // 2
    pairs = vector[:half] + 1j * vector[half:]
    pairs = pairs * np.exp(1j * position * theta ** (-2 * np.arange(half) / len(vector)))
    return np.concatenate([pairs.real, pairs.imag])


def _attend(x, valid, params, family, num_heads, size):
    """[T, C] -> [T, C]; every query looks at the valid tokens up to itself."""
    kv_heads, heads = family.num_kv_heads or num_heads, {}
    for name in ('query', 'key', 'value'):
        projected = x @ params[name]['kernel'] + params[name].get('bias', 0.0)
        norm = family.qk_norm if name != 'value' else 'none'
        if norm == 'whole':
            projected = _normalize(projected, params[f'{name}_norm']['scale'], family.norm_epsilon)
        heads[name] = projected.reshape(len(x), -1, size)
        if norm == 'head':
            heads[name] = _normalize(heads[name], params[f'{name}_norm']['scale'], family.norm_epsilon)
    for name in ('query', 'key'):
        for t, h in np.ndindex(heads[name].shape[:2]):
            heads[name][t, h] = _rotate(heads[name][t, h], t, family.rope_theta)
    scale = family.attention_multiplier or 1 / math.sqrt(size)
    attended = np.zeros((len(x), num_heads, size))
    for t, h in np.ndindex(len(x), num_heads):
        seen = [s for s in range(t + 1) if valid[s]]
        if seen:
            of = h * kv_heads // num_heads  # neighbours share a head of keys and values
            weights = _softmax(np.array([scale * heads['query'][t, h] @ heads['key'][s, of] for s in seen]))
            attended[t, h] = weights @ heads['value'][seen, of]
    return attended.reshape(len(x), -1) @ params['output']['kernel']


def _swiglu(x, params):
    gate, up = x @ params['gate']['kernel'], x @ params['up']['kernel']
    return (gate * _sigmoid(gate) * up) @ params['down']['kernel']


def _mix(kind, token, params, family, num_selected, features):
    routed = {'bias': np.zeros((len(params['router']['gate'].T), features)), **params}
    arguments = routed, None, num_selected, np.zeros((1, features))
    return mixture_twin.mix(kind, token[None], *arguments, renormalize=family.gating.renormalize)[0][0]


def _feed_forward(token, params, family, num_selected):
    """One token [C], through whichever parts the params have."""
    if 'experts' in params:
        y = _mix('swiglu', token, params['experts'], family, num_selected, len(token))
    elif 'router' in params['up']:
        hidden = params['up']['kernel'].shape[-1]
        gate, up = (_mix('linear', token, params[name], family, num_selected, hidden) for name in ('gate', 'up'))
        y = _mix('linear', gate * _sigmoid(gate) * up, params['down'], family, num_selected, len(token))
    else:
        y = _swiglu(token, params)
    if 'shared' in params:
        factor = _sigmoid(token @ params['shared_gate']['kernel']) if family.shared_gate else 1.0
        y = y + factor * _swiglu(token, params['shared'])
    return y


def decode(params, tokens, valid, family, num_heads, size, num_selected):
    """One text: int[T] and bool[T] -> float64[T, V]. Mixtures give zero at padding; their shared part does not."""
    table, epsilon = params['tokens']['embedding'], family.norm_epsilon
    x = table[tokens] * family.embedding_multiplier
    for index in range(sum(name.startswith('layer_') for name in params)):
        layer = params[f'layer_{index}']
        normed = _normalize(x, layer['attention_norm']['scale'], epsilon)
        x = x + family.residual_multiplier * _attend(normed, valid, layer['attention'], family, num_heads, size)
        normed = _normalize(x, layer['ffn_norm']['scale'], epsilon)
        raised = np.stack([_feed_forward(token, layer['ffn'], family, num_selected) for token in normed])
        x = x + family.residual_multiplier * raised
    x = _normalize(x, params['norm']['scale'], epsilon)
    return x @ (table.T if family.tied else params['logits']['kernel']) / family.logits_scaling
