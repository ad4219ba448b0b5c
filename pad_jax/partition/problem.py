"""What the partition is told about a network: a few functions on pytrees, nothing else.

Axis letters: N rows that are routed (samples, tokens), K stacked factors, `*shape` one position tensor.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.partition.masks import SCALES, scale_factors
from pad_jax.partition.selection import each_by_itself

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a params pytree keeps its partially dynamic parameters.

    Each function takes `(params, masks)` (`with_static` the new static parameters as well) and returns a pytree of the
    structure of `masks`; a frozen dataclass of functions, so it is hashable and can be a static argument of jit. Where
    `iterative_mode_partition` is to make the masks, `dynamic` is called with None for them.

    Attributes:
      dynamic: the dynamic factors, float[K, *shape] each.
      static: the static parameters, float[*shape] each.
      with_static: `(params, masks, static) -> params` with the static parameters replaced.
      scales: (λd, λs) of each.
      copy_scales: what a factor that is a copy of the static parameter is multiplied with, a Python number for each: 1
        where the routing weights of an input sum to one. Where all are copies the mask has no effect.
      layer_of: the layer that the mask at that path is part of; under scope `layer` the masks of one layer compete
        with each other. By default each is a layer by itself.
      generates: whether the factors of the mask at that path are weights of a generator: what the network computes
        with is no mixture of them but what they make, see `Values`.
    """

    dynamic: Callable
    static: Callable
    with_static: Callable
    scales: Callable
    copy_scales: Callable = lambda params, masks: jax.tree.map(lambda _: 1.0, masks)
    layer_of: Callable[[str], str] = each_by_itself
    generates: Callable[[str], bool] = lambda path: False


def positions_of(layout: Layout, params, masks):
    """Shapes of one copy of each partially dynamic parameter, as jax.ShapeDtypeStruct[*shape]."""
    factors = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), layout.dynamic(params, masks))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), factors)


PLAIN = Layout(
    dynamic=lambda params, masks: params['dynamic'],
    static=lambda params, masks: params['static'],
    with_static=lambda params, masks, static: {**params, 'static': static},
    scales=lambda params, masks: jax.tree.map(lambda _: (1.0, 1.0), params['static']),
)
"""params is a dict with the factors under 'dynamic' and the static parameters, same structure, under 'static'."""


class Values(NamedTuple):
    """What stands behind a mask where the factors' mixture passes an activation: the dynamic values themselves."""

    values: jax.Array  # float[N, *shape], one row for each input, without mask and scale; or their mean, float[*shape]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network as the criteria and the handoff see it. `gates` always has the structure of the masks.

    Attributes:
      loss: `(params, gates, batch) -> scalar`, the mean loss in nats per example, differentiable in gates.
      layout: where in params the dynamic factors and static parameters are.
      output: `(params, gates, batch) -> float[N, ...]`, the network's output; SynFlow needs it.
      routing: `(params, gates, batch) -> pytree` of float[N, K], the routing weights behind every mask, or of
        `Values` where it isn't factors that are mixed; the criterion `variance` needs it, and the handoff `mean`
        takes 1/K for each factor without it.
    """

    loss: Callable[[PyTree, PyTree, PyTree], jax.Array]
    layout: Layout = PLAIN
    output: Callable[[PyTree, PyTree, PyTree], jax.Array] | None = None
    routing: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None


# --- Flax: a mask stands in the collection 'partition' where its factors stand in 'params'. The static parameters
# stand beside the factors under `static_<name>` (zero where the network has none: `masks.RESTS`), the scale parameter
# as `phi`, the routing weights are sown as `routing`. A mask called `tensor` is that of a generator, whose values are
# sown as `values`; it is part of the layer that holds the generator. An `attention` that is a head alone, without a
# hidden layer, is one of sigmoids: each input takes half of every factor at the start, and so factors are copies at
# 2/K.
GENERATED = 'tensor'


def _at_masks(function: Callable, params: Mapping, masks: Mapping):
    """`function(params of the module, name)` for every mask, in the structure of the masks."""
    if masks is None:
        raise ValueError("the masks of a Flax network are needed: masks=variables['partition']")
    return {
        name: _at_masks(function, params[name], below) if isinstance(below, Mapping) else function(params, name)
        for name, below in masks.items()
    }


def _with_static(params: Mapping, masks: Mapping, static: Mapping):
    replaced = dict(params)
    for name, below in masks.items():
        if isinstance(below, Mapping):
            replaced[name] = _with_static(params[name], below, static[name])
        elif f'static_{name}' not in params:
            raise ValueError(f'there is no static_{name} to take over a mean: what is not dynamic is zero')
        else:
            replaced[f'static_{name}'] = static[name]
    return replaced


def _static_or_zero(module: Mapping, name: str):
    static = module.get(f'static_{name}')
    return jnp.zeros(module[name].shape[1:], module[name].dtype) if static is None else static


def _flax_scales(scales: str):
    def of_module(module, name):
        return scale_factors(module['phi'], scales) if 'phi' in module else (1.0, 1.0)

    return lambda params, masks: _at_masks(of_module, params, masks)


def _copy_scale(module, name) -> float:
    of_sigmoids = 'attention' in module and 'squeeze' not in {*module, *module['attention']}
    return 2 / module[name].shape[0] if of_sigmoids else 1.0


def _is_generated(path: str) -> bool:
    return path.rsplit('/', maxsplit=1)[-1] == GENERATED


def _layer_of(path: str) -> str:
    return '/'.join(path.split('/')[: -2 if _is_generated(path) else -1])


FLAX = {
    scales: Layout(
        dynamic=lambda params, masks: _at_masks(lambda module, name: module[name], params, masks),
        static=lambda params, masks: _at_masks(_static_or_zero, params, masks),
        with_static=_with_static,
        scales=_flax_scales(scales),
        copy_scales=lambda params, masks: _at_masks(_copy_scale, params, masks),
        layer_of=_layer_of,
        generates=_is_generated,
    )
    for scales in SCALES
}
"""The Flax layout for each choice of scale factors, the layers' own; `masks` is `variables['partition']`."""


def sown_routing(intermediates: Mapping, masks: Mapping):
    """Routing weights float[N, K], or `Values`, behind every mask, from the collection 'intermediates' of a Flax apply.

    A layer that was called several times has the rows of all calls.
    """

    def read(module, name):
        if name == GENERATED:
            return Values(jnp.concatenate(module['values']))
        return jnp.concatenate(module['routing'])

    return _at_masks(read, intermediates, masks)
