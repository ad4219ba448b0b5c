"""The slow twin of every dynamic convolution: one kernel for each sample, written from its paper's equation.

NumPy, float64, a loop over samples. `masks` is the layer's collection 'partition'. Without it all positions are
dynamic. Parameters are the layer's own.

Axis letters: S space, C input channels, c of a group, F output channels. K kernels, D hidden units, L latent width.
"""

import math

import numpy as np

from tests.kernels.conv_twin import convolve_one


def convolve_layer(name, params, x, masks, temperature, geometry):
    """y [B, *S', F] of x [B, *S, C], for a layer of that key of CONVS, with any bias."""
    size = (*geometry.output_size(x.shape[1:-1]), features_of(params))
    y = np.zeros((x.shape[0], *size))
    for b, image in enumerate(x):
        kernel, bias = KERNELS[name](
            params, masks, image.mean(axis=tuple(range(image.ndim - 1))), temperature, geometry
        )
        y[b] = convolve_one(image, kernel, y[b], geometry)[0] + bias
    return y


def features_of(params):
    return params['kernel'].shape[-1]


def dynamic_kernel(params, masks, pooled, temperature, geometry):
    """Chen et al. 2020: Σ π_k W_k, π = softmax(logits / temperature)."""
    attention = params['attention']
    hidden = np.maximum(pooled @ attention['squeeze'], 0)
    pi = softmax((hidden @ attention['expand'] + attention['bias']) / temperature)
    return part(params, masks, 'kernel', weigh(pi, params['kernel'])), weigh(pi, bias_of(params))


def cond_kernel(params, masks, pooled, temperature, geometry):
    """Yang et al. 2019: Σ α_k W_k, α = sigmoid(pooled R)."""
    alpha = sigmoid(pooled @ params['attention']['expand'] + params['attention']['bias'])
    return part(params, masks, 'kernel', weigh(alpha, params['kernel'])), weigh(alpha, bias_of(params))


def od_kernel(params, masks, pooled, temperature, geometry):
    """Li et al. 2022, eq. 3: Σ α_wi ⊙ α_fi ⊙ α_ci ⊙ α_si ⊙ W_i, here with vectors that the kernels share."""
    hidden = normalized(np.maximum(pooled @ params['squeeze'], 0))
    head = params['attention']
    alpha = softmax((hidden @ head['expand'] + head['bias']) / temperature)
    kernel = part(params, masks, 'kernel', weigh(alpha, params['kernel']))
    vectors = {
        name: generated(params, masks, name, hidden, lambda z: sigmoid(z / temperature))
        for name in ('channel', 'filter', 'spatial')
        if name in params
    }
    inner, features = kernel.shape[-2:]
    outer = features // geometry.groups
    for c in range(inner):
        for f in range(features):
            kernel[..., c, f] *= vectors['channel'].ravel()[f // outer * inner + c]
    kernel = kernel * vectors.get('filter', 1) * vectors.get('spatial', 1)
    return kernel, weigh(alpha, bias_of(params))


def dcd_kernel(params, masks, pooled, temperature, geometry):
    """Li et al. 2021, eq. 6: Λ W0 + P Φ Qᵀ, the residual on the centre tap; each group has its own Φ."""
    hidden = normalized(np.maximum(pooled @ params['squeeze'], 0))
    scaling = generated(params, masks, 'scaling', hidden, lambda z: np.clip(z + 3, 0, 6) / 3)
    fusion = generated(params, masks, 'fusion', hidden, lambda z: z)
    kernel = params['kernel'] * scaling
    center = tuple((size - 1) // 2 for size in geometry.kernel_size)
    outer = kernel.shape[-1] // geometry.groups
    for group in range(geometry.groups):
        # [f, L] [L, L] [L, c], as the paper writes it: the kernel is its transpose.
        residual = params['out_of_latent'][group].T @ fusion[group] @ params['into_latent'][group].T
        kernel[center][:, group * outer : (group + 1) * outer] += residual.T
    return kernel, params.get('bias', 0)


KERNELS = {'dynamic': dynamic_kernel, 'condconv': cond_kernel, 'odconv': od_kernel, 'dcd': dcd_kernel}


def part(params, masks, name, dynamic):
    """mask·λd·dynamic + (1 − mask)·λs·static."""
    if f'{name}_mask' not in masks:
        return dynamic.copy()
    dynamic_scale = 2 * sigmoid(params['phi'])
    mask = np.asarray(masks[f'{name}_mask'], np.float64)
    return mask * dynamic_scale * dynamic + (1 - mask) * (2 - dynamic_scale) * params[f'static_{name}']


def normalized(hidden):
    return hidden / math.sqrt(sum(unit * unit for unit in hidden) / len(hidden) + 1e-5)


def generated(params, masks, name, hidden, activation):
    """The tensor of a submodule, one position after the other."""
    weights, bias = params[name]['tensor'], params[name]['bias']
    values = np.zeros(bias.shape)
    for place in np.ndindex(*values.shape):
        logit = math.fsum(unit * row[place] for unit, row in zip(hidden, weights, strict=True)) + bias[place]
        values[place] = activation(logit)
    return part(params[name], masks.get(name, {}), 'tensor', values)


def weigh(weights, stack):
    return sum(weight * factor for weight, factor in zip(weights, stack, strict=True))


def bias_of(params):
    return params.get('bias', np.zeros(params['kernel'].shape[0]))


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()
