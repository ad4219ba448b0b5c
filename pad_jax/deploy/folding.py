"""What is constant once training is over goes into the kernels: the scales of norms, and λd and λs.

In the masked form, whose shapes don't depend on the mask. Products are taken in float64 and rounded once.

Legend: K kernels or experts, C input channels, F output channels, L latent width of one of g groups.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pad_jax.models.resnet import EPSILON
from pad_jax.partition.counting import FACTORS
from pad_jax.partition.masks import scale_factors

Params = Mapping[str, Any]

# Whose last axis are outputs, of all that a convolution layer may hold: scaling them scales what it computes. Of DCD
# that is W0 and Pᵀ, of the others the kernels.
_OUTPUTS = ('kernel', 'static_kernel', 'bias', 'out_of_latent')


def fold_norms(params: Params, statistics: Params) -> dict[str, Any]:
    """The parameters of the network whose norms only shift (`norms_folded`), which needs no statistics.

        scale·(conv(x) − mean) / √(variance + ε) + bias = conv'(x) + bias'

    Args:
      params: of a network in which the norm `NAMEnormNUMBER` follows the convolution `NAMEconvNUMBER`.
      statistics: the collection `batch_stats`; {} for a network without norms, which stays as it is.

    >>> ones = np.ones(2, np.float32)
    >>> params = {'conv': {'kernel': np.ones((1, 3, 2), np.float32)}, 'norm': {'scale': 8 * ones, 'bias': ones}}
    >>> folded = fold_norms(params, {'norm': {'mean': 0.5 * ones, 'var': (4 - 1e-5) * ones}})
    >>> folded['conv']['kernel'][0, 0].tolist(), folded['norm']['bias'].tolist()
    ([4.0, 4.0], [-1.0, -1.0])
    """
    folded = dict(params)
    for name, found in statistics.items():
        if 'mean' not in found:
            folded[name] = fold_norms(params[name], found)
            continue
        norm = {key: np.asarray(value, np.float64) for key, value in {**params[name], **found}.items()}
        scale = norm['scale'] / np.sqrt(norm['var'] + EPSILON)
        conv = name.replace('norm', 'conv')
        folded[conv] = _scale_outputs(params[conv], scale)
        folded[name] = {'bias': np.asarray(norm['bias'] - scale * norm['mean'], np.float32)}
    return folded


def _scale_outputs(conv: Params, scale: np.ndarray) -> dict[str, Any]:
    """The parameters of a layer whose outputs, in any group, are multiplied by float64[F]."""
    scaled = dict(conv)
    for name in _OUTPUTS:
        if name in conv:
            factor = scale.reshape(len(conv[name]), 1, -1) if name == 'out_of_latent' else scale
            scaled[name] = _multiply(conv[name], factor)
    return scaled


def fold_scales(params: Params, scales: str) -> dict[str, Any]:
    """The parameters of the network without scale factors (`scales='none'`) that computes the same.

    Right for layers that are linear in all that their masks split. A `GeneratedTensor` is not: what it generates goes
    through an activation before it is scaled.

    Args:
      scales: of the network whose parameters they are.

    >>> params = {'kernel': np.ones((2, 3), np.float32), 'static_kernel': np.ones(3, np.float32), 'phi': np.float32(9)}
    >>> {name: values.max().round(3).item() for name, values in fold_scales(params, 'both').items()}
    {'kernel': 2.0, 'static_kernel': 0.0}
    """
    folded = {
        name: fold_scales(below, scales) if isinstance(below, Mapping) else below for name, below in params.items()
    }
    if 'phi' not in params:
        return folded
    dynamic_scale, static_scale = (float(factor) for factor in scale_factors(folded.pop('phi'), scales))
    for name in FACTORS:
        for part, factor in ((name, dynamic_scale), (f'static_{name}', static_scale)):
            if part in folded:
                folded[part] = _multiply(folded[part], factor)
    return folded


def _multiply(values, factor) -> np.ndarray:
    return np.asarray(np.asarray(values, np.float64) * factor, np.float32)
