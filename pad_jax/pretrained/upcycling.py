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


def upcycle(static: Mapping[str, PyTree], params: Mapping[str, PyTree], records: Records) -> dict[str, PyTree]:
    """Fill the params of a network with dynamic layers so that it computes the same as its static network.

    Args:
      static: params of the same network with `layers.StaticConv`, or with dense feed-forward parts.
      params: initial params of the network to fill. Routers are kept, and so are scale factors φ, which are 0 at start.
      records: of `find_records`, of the network to fill.

    Returns:
      New params; kernels, experts, static parameters and parameters of other layers are copies.

    Raises:
      ValueError: naming the first parameter that only one of the networks has, or that has another shape.

    >>> from pad_jax.layers import DynamicConv, StaticConv, find_records
    >>> x, layers = jnp.ones((1, 4, 4, 2)), (StaticConv(3, (2, 2)), DynamicConv(3, (2, 2)))
    >>> static, dynamic = (layer.init(jax.random.key(0), x)['params'] for layer in layers)
    >>> upcycle(static, dynamic, find_records(layers[1], x))['kernel'].shape
    (4, 2, 2, 2, 3)
    """
    return _fill(static, params, records, '')


def dense_shapes(params: Mapping[str, PyTree], records: Records) -> dict[str, PyTree]:
    """Return the shapes of the dense encoder that `params` can be upcycled from, as jax.ShapeDtypeStructs."""

    def shape(params, records):
        if records.keys() == {'experts'}:
            (record,) = records['experts'].values()
            up, bias, down = split_neurons(params['experts'][record.factors][0])
            return {'up': {'kernel': up, 'bias': bias}, 'down': {'kernel': down.T, 'bias': down[:, 0]}}
        if any(map(_is_of_layer, records.values())):
            return {name: params[name][0] for name in ('kernel', 'bias')}
        return {
            name: shape(leaf, records.get(name, {})) if isinstance(leaf, Mapping) else leaf
            for name, leaf in params.items()
        }

    return jax.eval_shape(lambda params: shape(params, records), dict(params))


def _is_of_layer(node) -> bool:
    """Return True for a record of the layer, or for records of a module that generates one of its parameters."""
    if isinstance(node, PartialParameter):
        return True
    return any(isinstance(below, PartialParameter) and below.layer == '..' for below in node.values())


def _fill(static, params, records, path):
    if records.keys() == {'experts'}:  # whole networks in place of two linears
        (record,) = records['experts'].values()
        up, down = static['up'], static['down']
        neurons = join_neurons(up['kernel'], up['bias'], jnp.transpose(down['kernel']))
        static = {'experts': {record.factors: neurons, 'bias': down['bias']}}
    is_dynamic = any(map(_is_of_layer, records.values()))
    copied = {'kernel', 'neurons', 'bias'} & params.keys() if is_dynamic else params.keys()
    for name in sorted(static.keys() ^ copied):
        raise ValueError(f'{path}{name} is a parameter of only one of the networks')
    if is_dynamic:
        return _fill_layer(static, params, records, path)
    return {
        name: _fill(static[name], leaf, records.get(name, {}), f'{path}{name}/')
        if isinstance(leaf, Mapping)
        else jnp.asarray(_check_shape(static[name], leaf.shape, f'{path}{name}'), leaf.dtype)
        for name, leaf in params.items()
    }


def _fill_layer(static, params, records, path):
    """Fill a dynamic layer with copies: factors at `copies_at` times the static parameter, and biases likewise.

    Their weights add up to 1 / `copies_at`. Generated tensors start at their value for zero factors. That of ODConv's
    vectors is ½, and the kernels make up for it; that of DCD's scaling is 1, and its residual is switched off by P = 0.
    """
    record = next((record for record in records.values() if isinstance(record, PartialParameter)), None)
    for name in static:
        _check_shape(static[name], params[name].shape[record is not None :], f'{path}{name}')
    kernel, bias = static['kernel' if record is None else record.factors], static.get('bias')
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
    copies_at = record.copies_at(len(params[record.factors]))
    if not record.sums_to_one:
        filled['attention'] = {name: _pair(values) for name, values in params['attention'].items()}
    static_part = {} if record.static is None else {record.static: kernel}
    bias = None if bias is None else bias * copies_at
    return _replace(filled, **{record.factors: kernel * copies_at, 'bias': bias}, **static_part)


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
