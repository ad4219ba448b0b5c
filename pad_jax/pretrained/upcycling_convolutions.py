"""Upcycling: a trained static network becomes a dynamic one that computes the same, whatever the temperature.

As of experts (see `pretrained.upcycling`) kernels start as copies, and so do the static parameters, so that masks may
be all True or not. Routers and heads stay as they were drawn as far as the function allows, so that the copies move
apart in training.

Until they have, a mask has no effect on the loss: partition after some steps, with handoff `mean`. That is so of late
rounds above all: weight decay knows no masks, so static parameters shrink towards zero, with no gradient against it,
for as long as their positions are dynamic.

Legend: C input channels, K kernels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

PyTree = Any

VECTORS = ('channel', 'filter', 'spatial')
"""Heads of ODConv beside that over kernels, as far as a layer has them."""


def upcycle_convolutions(static_params: Mapping[str, PyTree], params: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Params of the structure of `params` that compute what `static_params` computes.

    Args:
      static_params: of the network with `layers.StaticConv`.
      params: initial params of the same network with any of the dynamic convolutions, fully or partially dynamic;
        scale parameters φ at their start, 0.

    Returns:
      New params; what isn't a dynamic convolution is a copy of the static network's.

    Raises:
      ValueError: naming the first parameter that only one of the networks has, or that has another shape.

    >>> import jax
    >>> from pad_jax.layers import DynamicConv, StaticConv
    >>> x = jnp.ones((1, 4, 4, 2))
    >>> static, dynamic = (conv(3, (2, 2)).init(jax.random.key(0), x)['params'] for conv in (StaticConv, DynamicConv))
    >>> upcycle_convolutions(static, dynamic)['kernel'].shape
    (4, 2, 2, 2, 3)
    """
    return _upcycle(static_params, params, '')


def _upcycle(static, params, path):
    kind = next((kind for kind in KINDS if kind.recognise(params)), None)
    copied = params.keys() if kind is None else {'kernel', 'bias'} & params.keys()
    for name in sorted(static.keys() ^ copied):
        raise ValueError(f'{path}{name} is a parameter of only one of the networks')
    if kind is None:
        return {name: _copy(static[name], params[name], f'{path}{name}') for name in params}
    for name in copied:
        _check_shape(static[name].shape, params[name].shape[kind.num_stack_axes :], f'{path}{name}')
    return kind.fill(params, *(jnp.asarray(static[name]) if name in copied else None for name in ('kernel', 'bias')))


def _copy(static, params, path):
    if isinstance(params, Mapping):
        return _upcycle(static, params, f'{path}/')
    _check_shape(static.shape, params.shape, path)
    return jnp.asarray(static, params.dtype)


def _check_shape(found, wanted, path):
    if found != wanted:
        raise ValueError(f'{path} has shape {found} in the static network, {wanted} in the dynamic one')


def _replace(params, **values):
    """The params with these values in place of those of the same name, in their shape and dtype."""
    found = {name: jnp.broadcast_to(value, params[name].shape) for name, value in values.items() if name in params}
    return {**params, **{name: value.astype(params[name].dtype) for name, value in found.items()}}


def fill_dynamic(params, kernel, bias):
    """Attention sums to one: every kernel is a copy."""
    return _replace(params, kernel=kernel, static_kernel=kernel, bias=bias)


def fill_cond(params, kernel, bias):
    """Routing in pairs of opposite logits, σ(z) + σ(−z) = 1, and for an odd last kernel zero: they sum to K/2."""
    attention = params['attention']
    half = attention['expand'].shape[1] // 2

    def pair(values):
        drawn = values[..., :half]
        return jnp.concatenate([drawn, -drawn, jnp.zeros_like(values[..., 2 * half :])], axis=-1)

    share = 2 / params['kernel'].shape[0]
    filled = _replace(params, kernel=kernel * share, static_kernel=kernel, bias=None if bias is None else bias * share)
    return {**filled, 'attention': {name: pair(values) for name, values in attention.items()}}


def fill_od(params, kernel, bias):
    """Vectors of σ(0) = ½, whatever the temperature; the kernels make up for them."""
    vectors = {
        name: _replace(params[name], tensor=0.0, bias=0.0, static_tensor=0.5) for name in VECTORS if name in params
    }
    kernel = kernel * 2 ** len(vectors)
    return {**_replace(params, kernel=kernel, static_kernel=kernel, bias=bias), **vectors}


def fill_dcd(params, kernel, bias):
    """Λ = 1, which is its activation at zero, and P = 0."""
    scaling = _replace(params['scaling'], tensor=0.0, bias=0.0, static_tensor=1.0)
    return {**_replace(params, kernel=kernel, bias=bias, out_of_latent=0.0), 'scaling': scaling}


class Kind(NamedTuple):
    """One dynamic convolution.

    Attributes:
      recognise: whether the params of a module are of this kind.
      fill: `(params, kernel, bias or None) -> params`.
      num_stack_axes: how many axes its kernel has more than the static one.
    """

    recognise: Callable[[Mapping[str, PyTree]], bool]
    fill: Callable[..., dict[str, PyTree]]
    num_stack_axes: int


KINDS = (
    Kind(lambda params: {'kernel', 'scaling', 'fusion'} <= params.keys(), fill_dcd, 0),
    Kind(lambda params: {'kernel', 'attention', 'channel'} <= params.keys(), fill_od, 1),
    Kind(lambda params: {'kernel', 'attention'} <= params.keys() and 'squeeze' in params['attention'], fill_dynamic, 1),
    Kind(lambda params: {'kernel', 'attention'} <= params.keys(), fill_cond, 1),
)
