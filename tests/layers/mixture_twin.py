"""The slow twin of a mixture: a loop over tokens and experts in NumPy, with its gradients by hand.

Axis letters: N tokens, C input features, F output features or neurons, E experts, k selected.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf)


def mix(kind, x, params, mask, num_selected, cotangent, valid=None, scales='both', renormalize=True):
    """y and the gradients of <y, cotangent> with respect to x and params, without noise.

    Args:
      kind: 'linear', or a key of KINDS with neurons.
      x: [N, C]; cotangent: as y; valid: bool[N] or None.
      renormalize: weights are shares among the selected experts, for k > 1; otherwise among all.
      params: those of the layer, nested dict; mask: what broadcasts against a factor's shape, or None.

    Returns:
      (y, d_x, gradients of params: a dict like it)
    """
    name = 'kernel' if kind == 'linear' else 'neurons'
    factors, gate = params[name], params['router']['gate']
    num_experts = len(factors)
    dynamic_scale, static_scale, slope = 1.0, 1.0, 0.0
    if mask is None:
        effective = factors
    else:
        share = 1 / (1 + np.exp(-params.get('phi', 0.0)))
        slope = 2 * share * (1 - share)
        dynamic_scale = 2 * share if scales in ('both', 'dynamic') else 1.0
        static_scale = 2 - 2 * share if scales in ('both', 'static') else 1.0
        static = params[f'static_{name}']
        effective = [dynamic_scale * mask * factor + static_scale * (1 - mask) * static for factor in factors]
    bias = params.get('bias', np.zeros((num_experts, cotangent.shape[1])))
    y, d_x = np.zeros(cotangent.shape), np.zeros(x.shape)
    d_effective, d_bias, d_gate = np.zeros(factors.shape), np.zeros(bias.shape), np.zeros(gate.shape)
    for n in range(len(x)):
        if valid is not None and not valid[n]:
            continue
        logits = x[n] @ gate
        chosen = sorted(range(num_experts), key=lambda e: (-logits[e], e))[:num_selected]
        # One expert has its share of all; several share among themselves.
        sharing = chosen if renormalize and num_selected > 1 else list(range(num_experts))
        exponentials = np.exp(logits[sharing] - max(logits[sharing]))
        shares = exponentials / exponentials.sum()
        weights = np.array([shares[sharing.index(e)] for e in chosen])
        d_weights = np.zeros(num_selected)
        for s, e in enumerate(chosen):
            found, saved = apply(kind, x[n], effective[e])
            y[n] += weights[s] * (found + bias[e])
            d_weights[s] = cotangent[n] @ (found + bias[e])
            d_bias[e] += weights[s] * cotangent[n]
            d_token, d_factor = pull(kind, x[n], effective[e], saved, weights[s] * cotangent[n])
            d_x[n] += d_token
            d_effective[e] += d_factor
        d_shares = np.zeros(len(sharing))
        d_shares[[sharing.index(e) for e in chosen]] = d_weights
        d_logits = shares * (d_shares - shares @ d_shares)
        d_x[n] += gate[:, sharing] @ d_logits
        d_gate[:, sharing] += np.outer(x[n], d_logits)
    d_params = {name: d_effective, 'router': {'gate': d_gate}}
    if 'bias' in params:
        d_params['bias'] = d_bias
    if mask is not None:
        d_params[name] = dynamic_scale * mask * d_effective
        d_params[f'static_{name}'] = static_scale * (1 - mask) * d_effective.sum(0)
        d_dynamic = np.sum(d_effective * mask * factors) * (scales in ('both', 'dynamic'))
        d_static = np.sum(d_effective * (1 - mask) * static) * (scales in ('both', 'static'))
        if 'phi' in params:
            d_params['phi'] = slope * (d_dynamic - d_static)
    return y, d_x, d_params


def apply(kind, token, factor):
    """Output of one expert for one token [C], and the values that its gradient needs again."""
    if kind == 'linear':
        return token @ factor, None
    width = len(token)
    weights_out = factor[-width:]
    if kind.startswith('swiglu'):  # rows: gate, up, two biases if there are any, out
        biases = factor[2 * width : -width] if len(factor) > 3 * width else np.zeros((2, factor.shape[1]))
        gate, up = token @ factor[:width] + biases[0], token @ factor[width : 2 * width] + biases[1]
        share = 1 / (1 + np.exp(-gate))
        return weights_out @ (gate * share * up), (gate, up, share)
    hidden = token @ factor[:width] + (factor[width] if len(factor) > 2 * width else 0)
    share = 0.5 * (1 + _erf(hidden / math.sqrt(2)))
    return weights_out @ (hidden * share), (hidden, share)


def pull(kind, token, factor, saved, d_out):
    """Gradients of <apply(token, factor), d_out>."""
    if kind == 'linear':
        return factor @ d_out, np.outer(token, d_out)
    width, d_active = len(token), factor[-len(token) :].T @ d_out
    if kind.startswith('swiglu'):
        gate, up, share = saved
        d_inputs = [d_active * up * (share + gate * share * (1 - share)), d_active * gate * share]
        active, has_bias = gate * share * up, len(factor) > 3 * width
    else:
        hidden, share = saved
        density = np.exp(-(hidden**2) / 2) / math.sqrt(2 * math.pi)
        d_inputs = [d_active * (share + hidden * density)]
        active, has_bias = hidden * share, len(factor) > 2 * width
    d_weights_in = [np.outer(token, d_input) for d_input in d_inputs]
    d_biases = [d_input[None] for d_input in d_inputs if has_bias]
    d_token = sum(factor[i * width : (i + 1) * width] @ d_input for i, d_input in enumerate(d_inputs))
    return d_token, np.concatenate([*d_weights_in, *d_biases, np.outer(d_out, active)])
