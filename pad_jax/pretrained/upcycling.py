"""Upcycling: a trained static network becomes a dynamic network that computes the same at any temperature.

Komatsuzaki et al., "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints", ICLR 2023,
arXiv:2212.05055: every expert starts as a copy of the dense weights. Kernels and static parameters do so too, so masks
may have any values. Routers and attention keep their initial values as far as possible; the copies diverge in training.

The gradient through every gate is zero until the copies have diverged. So partition after some training steps. Weight
decay ignores masks: static parameters shrink while their positions are dynamic, so late rounds need handoff `mean`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pad_jax.layers.mixture import join_neurons, split_neurons
from pad_jax.partition import PartialParameter

PyTree = Any
Records = Mapping[str, Any]
LINEARS = ('up', 'down')


def upcycle(dense: Mapping[str, PyTree], params: Mapping[str, PyTree], records: Records) -> dict[str, PyTree]:
    """Fill the params of an encoder so that it computes the same as a dense encoder.

    Args:
      dense: params of an encoder whose feed-forward parts are dense.
      params: initial params of the encoder to fill, with any feed-forward parts; routers and scale factors are kept.
      records: of `find_records`, of the encoder to fill.

    Returns:
      New params; all experts and static parameters are copies of the dense parameters.
    """

    def fill(name, module):
        if 'ffn' not in module:
            return dense[name]
        return {
            **dense[name],
            'ffn': _fill_ffn(dense[name]['ffn'], module['ffn'], records.get(name, {}).get('ffn', {})),
        }

    return {name: fill(name, module) for name, module in params.items()}


def dense_shapes(params: Mapping[str, PyTree], records: Records) -> dict[str, PyTree]:
    """Return the shapes of the dense encoder that `params` can be upcycled from, as jax.ShapeDtypeStructs."""

    def shape_ffn(ffn, records):
        if records.keys() == {'experts'}:
            (record,) = records['experts'].values()
            neurons = jnp.zeros(record.shape, ffn['experts'][record.factors].dtype)
            up, bias, down = split_neurons(neurons)
            return {'up': {'kernel': up, 'bias': bias}, 'down': {'kernel': down.T, 'bias': down[:, 0]}}
        # A mixture's parameters have a stack axis before the dense ones; its router and scale factors have none.
        return {
            name: {key: ffn[name][key][0] if name in records else ffn[name][key] for key in ('kernel', 'bias')}
            for name in LINEARS
        }

    def shape(params):
        return {
            name: {**module, 'ffn': shape_ffn(module['ffn'], records.get(name, {}).get('ffn', {}))}
            if 'ffn' in module
            else module
            for name, module in params.items()
        }

    return jax.eval_shape(shape, dict(params))


def _fill_ffn(dense, ffn, records):
    if records.keys() == {'experts'}:
        up, down = (dense[name] for name in LINEARS)
        neurons = join_neurons(up['kernel'], up['bias'], jnp.transpose(down['kernel']))
        (record,) = records['experts'].values()
        return {'experts': _copy_into(ffn['experts'], record, neurons, down['bias'])}
    return {
        name: _copy_into(ffn[name], records[name]['kernel'], dense[name]['kernel'], dense[name]['bias'])
        if name in records
        else {key: jnp.asarray(dense[name][key], leaf.dtype) for key, leaf in ffn[name].items()}
        for name in LINEARS
    }


def upcycle_convolutions(
    static_params: Mapping[str, PyTree], params: Mapping[str, PyTree], records: Records
) -> dict[str, PyTree]:
    """Fill the params of a network with dynamic convolutions so that it computes the same as the static network.

    Args:
      static_params: of the network with `layers.StaticConv`.
      params: initial params of the same network with any dynamic convolutions; scale factors φ are at their start, 0.
      records: of `find_records`, of the network to fill.

    Returns:
      New params; parameters of other layers are copies.

    Raises:
      ValueError: naming the first parameter that only one of the networks has, or that has another shape.

    >>> from pad_jax.layers import DynamicConv, StaticConv, find_records
    >>> x, layers = jnp.ones((1, 4, 4, 2)), (StaticConv(3, (2, 2)), DynamicConv(3, (2, 2)))
    >>> static, dynamic = (layer.init(jax.random.key(0), x)['params'] for layer in layers)
    >>> upcycle_convolutions(static, dynamic, find_records(layers[1], x))['kernel'].shape
    (4, 2, 2, 2, 3)
    """
    return _fill(static_params, params, records, '')


def _fill(static, params, records, path):
    is_dynamic = any(_is_of_layer(record) for record in records.values())
    copied = {'kernel', 'bias'} & params.keys() if is_dynamic else params.keys()
    for name in sorted(static.keys() ^ copied):
        raise ValueError(f'{path}{name} is a parameter of only one of the networks')
    if is_dynamic:
        return _fill_convolution(static, params, records, path)
    return {
        name: _fill(static[name], leaf, records.get(name, {}), f'{path}{name}/')
        if isinstance(leaf, Mapping)
        else jnp.asarray(_check_shape(static[name], leaf.shape, f'{path}{name}'), leaf.dtype)
        for name, leaf in params.items()
    }


def _is_of_layer(node) -> bool:
    """True for a record of the layer itself, or for records of a module that generates one of its parameters."""
    if isinstance(node, PartialParameter):
        return True
    return any(isinstance(below, PartialParameter) and below.layer == '..' for below in node.values())


def _fill_convolution(static, params, records, path):
    """Fill one dynamic convolution.

    Generated tensors start at their value for zero factors. That of ODConv's vectors is ½, and the kernels make up for
    it; that of DCD's scaling is 1, and its residual is switched off by P = 0.
    """
    record = records.get('kernel')
    num_axes = 0 if record is None else 1
    for name in static:
        _check_shape(static[name], params[name].shape[num_axes:], f'{path}{name}')
    kernel, bias = jnp.asarray(static['kernel']), static.get('bias')
    filled = dict(params)
    for name, below in records.items():
        if isinstance(below, Mapping):
            (generated,) = below.values()
            if generated.start:
                zeros = dict.fromkeys((generated.factors, *generated.beside), 0.0)
                start = {} if generated.static is None else {generated.static: generated.start}
                filled[name] = _replace(params[name], **zeros, **start)
                kernel = kernel / generated.start
    if record is None:
        return _replace(filled, kernel=kernel, bias=bias, out_of_latent=0.0)
    filled = _copy_into(filled, record, kernel, bias)
    if record.copies_at != 1:
        filled['attention'] = {name: _pair(values) for name, values in params['attention'].items()}
    return filled


def _copy_into(module, record: PartialParameter, value, bias):
    """Copy a static parameter into all factors and their static parameter, and the static bias into all biases.

    Factors at `copies_at` times the static parameter add up to it, as their weights add up to 1 / `copies_at`.
    """
    filled = _replace(module, **{record.factors: value * record.copies_at})
    if record.static is not None:
        filled = _replace(filled, **{record.static: value})
    return _replace(filled, bias=None if bias is None else bias * record.copies_at)


def _pair(values):
    """Pair the K logits of sigmoids: σ(z) + σ(−z) = 1, and zero for an odd last one, so they add up to K/2."""
    half = values.shape[-1] // 2
    drawn = values[..., :half]
    return jnp.concatenate([drawn, -drawn, jnp.zeros_like(values[..., 2 * half :])], axis=-1)


def _replace(params, **values):
    """Return the params with new values, in their shape and dtype; None and values without a parameter are left out."""
    return {
        name: leaf if values.get(name) is None else jnp.broadcast_to(jnp.asarray(values[name], leaf.dtype), leaf.shape)
        for name, leaf in params.items()
    }


def _check_shape(value, wanted, path):
    if value.shape != wanted:
        raise ValueError(f'{path} has shape {value.shape} in the static network, {wanted} in the dynamic one')
    return value
