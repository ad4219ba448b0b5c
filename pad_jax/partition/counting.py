"""Parameters of a Flax network, layer by layer: dynamic, static, and the rest. Reads shapes and masks.

A dynamic layer is a module that sows `routing` or `values`. Its factors are the params that have a mask, or, in a fully
dynamic layer, those of a name in `FACTORS`; K is the length of their stack axis. What is counted is what is alive: K
parameters at a dynamic position, one at a static position, none there in a layer that is pruned, which has no static
parameters. The bias of a generator is alive at dynamic positions alone,
and counts among the other parameters. Dynamic layers inside of one are counted by themselves.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from pad_jax.partition.iterative import NO_EXCLUSIONS, Exclusions, selection_targets
from pad_jax.partition.masks import group_size, leaf_names
from pad_jax.partition.problem import GENERATED
from pad_jax.partition.selection import each_by_itself, find_competitions

FACTORS = ('kernel', 'neurons', 'tensor')
"""What a dynamic layer without masks may call its dynamic factors."""
SOWN = {'routing', 'values'}


@dataclasses.dataclass(frozen=True)
class LayerCount:
    """What one module holds.

    Attributes:
      name: its path in the network, joined by '/'.
      positions: n, scalar places of the dynamic layer's parameters; 0 in an ordinary module.
      dynamic_positions: those that are dynamic.
      num_factors: K; 0 in an ordinary module.
      other_parameters: routers, biases, norms, scale parameters, and all of an ordinary module.
      is_pruned: whether what is not dynamic is zero, and no parameter.
    """

    name: str
    positions: int = 0
    dynamic_positions: int = 0
    num_factors: int = 0
    other_parameters: int = 0
    is_pruned: bool = False


def report_counts(layers: Iterable[LayerCount]) -> dict[str, Any]:
    """Sums over layers, under the names that the commands print.

    `dynamic_fraction` is κ = dynamic positions / positions, `dynamic_share` = dynamic parameters / (static + dynamic
    parameters), Kκ / (1 − κ + Kκ) for one layer, 1 for one that is pruned; 0 where there are
    no parameters, and κ where there are no positions.

    >>> report_counts([LayerCount('conv', positions=10, dynamic_positions=5, num_factors=4)])['dynamic_share']
    0.8
    """
    layers = list(layers)
    positions = sum(layer.positions for layer in layers)
    dynamic_positions = sum(layer.dynamic_positions for layer in layers)
    dynamic = sum(layer.num_factors * layer.dynamic_positions for layer in layers)
    static = sum(layer.positions - layer.dynamic_positions for layer in layers if not layer.is_pruned)
    other = sum(layer.other_parameters for layer in layers)
    return {
        'parameters': static + dynamic + other,
        'static_parameters': static,
        'dynamic_parameters': dynamic,
        'other_parameters': other,
        'positions': positions,
        'dynamic_positions': dynamic_positions,
        'dynamic_fraction': dynamic_positions / positions if positions else 0.0,
        'dynamic_share': dynamic / (static + dynamic) if static + dynamic else 0.0,
    }


def count_layers(variables: Mapping, num_dynamic: Mapping[str, int] | None = None) -> list[LayerCount]:
    """One count for every module that holds parameters, in the order of the params.

    Args:
      variables: collections `params`, `partition` (may be missing) and `intermediates` of a Flax module, arrays or
        jax.ShapeDtypeStructs (`jax.eval_shape(functools.partial(module.init, mutable=True), ...)`).
      num_dynamic: dynamic positions behind each mask, by the mask's path; if None they are read from the masks.
    """
    masks, sown = variables.get('partition', {}), variables.get('intermediates', {})
    return list(_count_modules(variables['params'], masks, sown, num_dynamic, ()))


def _count_modules(params, masks, sown, num_dynamic, path) -> Iterator[LayerCount]:
    inside = [
        count
        for name, below in params.items()
        if isinstance(below, Mapping)
        for count in _count_modules(below, masks.get(name, {}), sown.get(name, {}), num_dynamic, (*path, name))
    ]
    if not SOWN & sown.keys():
        own = {name: leaf for name, leaf in params.items() if not isinstance(leaf, Mapping)}
        if own:
            yield LayerCount('/'.join(path), other_parameters=_num_parameters(own))
        yield from inside
        return
    # Of the modules inside a dynamic layer those that are ordinary belong to it.
    yield _count_dynamic_layer(params, masks, sown, num_dynamic, path)
    yield from (count for count in inside if count.num_factors)


def _count_dynamic_layer(params, masks, sown, num_dynamic, path) -> LayerCount:
    positions = dynamic_positions = stored = 0
    is_pruned = False
    masks = {name: mask for name, mask in masks.items() if not isinstance(mask, Mapping)}
    for name in masks or [name for name in FACTORS if name in params]:
        factors = params[name]
        num_factors, size = factors.shape[0], math.prod(factors.shape[1:])
        positions += size
        stored += factors.size
        if name not in masks:
            dynamic_positions += size
            continue
        is_pruned = f'static_{name}' not in params
        stored += 0 if is_pruned else params[f'static_{name}'].size
        if num_dynamic is None:
            position = jax.ShapeDtypeStruct(factors.shape[1:], factors.dtype)
            dynamic = int(masks[name].sum()) * group_size(masks[name], position)
        else:
            dynamic = num_dynamic['/'.join((*path, name))]
        dynamic_positions += dynamic
        if name == GENERATED:  # its dead bias is taken off with what is stored of positions
            stored += size - dynamic
    other = _num_parameters(_without_dynamic_layers(params, sown)) - stored
    return LayerCount('/'.join(path), positions, dynamic_positions, num_factors, other, is_pruned)


def _without_dynamic_layers(params, sown) -> dict:
    """What a module holds that is not inside of a dynamic layer within it."""
    return {
        name: _without_dynamic_layers(below, sown.get(name, {})) if isinstance(below, Mapping) else below
        for name, below in params.items()
        if not (isinstance(below, Mapping) and SOWN & sown.get(name, {}).keys())
    }


def _num_parameters(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def plan_dynamic_positions(
    positions,
    dynamic_fraction: float,
    scope: str = 'global',
    exclusions: Exclusions = NO_EXCLUSIONS,
    layer_of: Callable[[str], str] = each_by_itself,
) -> dict[str, int]:
    """How many positions a partition will keep dynamic behind each mask, before there are scores.

    What competes, the whole network or a layer, has an exact total; its parameters, which only scores can tell apart,
    get it in proportion to their size. Whole groups are not rounded for: the partition keeps at most this many.

    Args:
      positions: pytree of shapes, as `positions_of` gives it.
      layer_of: the layer that the parameter at a path is part of, of a `Layout`.

    >>> plan_dynamic_positions({'a': jax.ShapeDtypeStruct((5,), 'f4'), 'b': jax.ShapeDtypeStruct((10,), 'f4')}, 0.3)
    {'a': 1, 'b': 3}
    """
    names = leaf_names(positions)
    sizes = [leaf.size for leaf in jax.tree.leaves(positions)]
    roles = exclusions.roles(positions)
    planned = {name: size * bool(role) for name, size, role in zip(names, sizes, roles, strict=True)}
    competing = [(name, size) for name, size, role in zip(names, sizes, roles, strict=True) if role is None]
    if not competing:
        return planned
    targets = selection_targets(positions, dynamic_fraction, scope, roles, layer_of)
    for layer, members in find_competitions([name for name, _ in competing], scope, layer_of).items():
        target = targets if scope == 'global' else targets[layer]
        total, passed = sum(competing[member][1] for member in members), 0
        for name, size in (competing[member] for member in members):
            # Rounded running totals: every parameter within one of its proportion, and their sum the target itself.
            planned[name] = round(target * (passed + size) / total) - round(target * passed / total)
            passed += size
    return planned
