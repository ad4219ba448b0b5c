"""Constants of a trained network, folded into its kernels: the scales of norms, and λd and λs.

Folding works on masked storage, whose shapes do not depend on the masks. Products are taken in float64 and rounded
once.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pad_jax.models.resnet import EPSILON
from pad_jax.partition import PartialParameter
from pad_jax.partition.layout import read_part

Params = Mapping[str, Any]

# Parameters of a convolution layer whose last axis are outputs, beside those of records. The last is Pᵀ of DCD.
_OUTPUTS = ('kernel', 'bias', 'out_of_latent')


def fold_norms(params: Params, statistics: Params, records: Params) -> dict[str, Any]:
    """Return the parameters of the same network with norms that only shift (`norms_folded`) and need no statistics.

        scale·(conv(x) − mean) / √(variance + ε) + bias = conv'(x) + bias'

    Args:
      params: of a network in which the norm `NAMEnormNUMBER` follows the convolution `NAMEconvNUMBER`.
      statistics: the collection `batch_stats`; {} for a network without norms, which stays as it is.
      records: of `find_records`.

    >>> ones = np.ones(2, np.float32)
    >>> params = {'conv': {'kernel': np.ones((1, 3, 2), np.float32)}, 'norm': {'scale': 8 * ones, 'bias': ones}}
    >>> folded = fold_norms(params, {'norm': {'mean': 0.5 * ones, 'var': (4 - 1e-5) * ones}}, {})
    >>> folded['conv']['kernel'][0, 0].tolist(), folded['norm']['bias'].tolist()
    ([4.0, 4.0], [-1.0, -1.0])
    """
    folded = dict(params)
    for name, found in statistics.items():
        if 'mean' not in found:
            folded[name] = fold_norms(params[name], found, records.get(name, {}))
            continue
        norm = {key: np.asarray(value, np.float64) for key, value in {**params[name], **found}.items()}
        scale = norm['scale'] / np.sqrt(norm['var'] + EPSILON)
        conv = name.replace('norm', 'conv')
        folded[conv] = _scale_outputs(params[conv], scale, records.get(conv, {}))
        folded[name] = {'bias': np.asarray(norm['bias'] - scale * norm['mean'], np.float32)}
    return folded


def _scale_outputs(conv: Params, scale: np.ndarray, records: Params) -> dict[str, Any]:
    """Return the parameters of a layer with outputs that are multiplied by float64[F]."""
    own = [record for record in records.values() if isinstance(record, PartialParameter)]
    names = {*_OUTPUTS, *(record.static for record in own)} & conv.keys()
    scaled = {name: _multiply(conv[name], scale.reshape(-1, 1, conv[name].shape[-1])) for name in names}
    return {**conv, **{name: values.reshape(conv[name].shape) for name, values in scaled.items()}}


def fold_scales(params: Params, records: Params) -> dict[str, Any]:
    """Return the parameters of the same network without scale factors (`scales='none'`).

    All records must be linear: generated tensors pass an activation before they are scaled.

    Args:
      records: of `find_records`.

    >>> record = PartialParameter('kernel', (3,), 'output', 'fixed', 'ratio', 'both')
    >>> params = {'kernel': np.ones((2, 3), np.float32), 'fixed': np.ones(3, np.float32), 'ratio': np.float32(9)}
    >>> folded = fold_scales(params, {'mask': record})
    >>> {name: values.max().round(3).item() for name, values in folded.items()}
    {'kernel': 2.0, 'fixed': 0.0}
    """
    folded = dict(params)
    for name, record in records.items():
        if isinstance(record, Mapping):
            folded[name] = fold_scales(params[name], record)
        elif record.scale is not None:
            part = read_part(record, params)
            folded[record.factors] = _multiply(part.dynamic, float(part.dynamic_scale))
            if record.static is not None:
                folded[record.static] = _multiply(part.static, float(part.static_scale))
            del folded[record.scale]
    return folded


def _multiply(values, factor) -> np.ndarray:
    return np.asarray(np.asarray(values, np.float64) * factor, np.float32)
