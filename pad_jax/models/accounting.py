"""Parameters and multiply-adds of a network, layer by layer. Nothing is computed: shapes, records and masks are read.

Multiply-adds are those of one example's forward pass, as the papers count them (He et al., CVPR 2016, arXiv:1512.03385,
section 3.3; with attention and the mixing of kernels: Chen et al., CVPR 2020, arXiv:1912.03458, section 3.1). A
convolution takes outputs × taps × input channels / groups, a linear layer in × out for each token. Attention, routers
and each of the k experts of a token count too. So do the mixing of kernels, K for each dynamic position, and the
products of self-attention. Norms, activations, pooling, scales of channels, biases, dropout and noise do not.

A module counts its own multiply-adds, without those of modules inside it, if it has the method

    multiply_adds(x_shape, y_shape, count) -> (dense, masked, compact)
"""

import collections
import math
import operator
import posixpath
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from pad_jax.layers.conv import count_products
from pad_jax.layers.factors import read_records
from pad_jax.partition import PAPER, PartialParameter, Recipe, find_competitions, leaf_names, num_dynamic_positions
from pad_jax.partition.layout import walk_records


class MultiplyAdds(NamedTuple):
    """Multiply-adds of one example through one layer, or through a network.

    Attributes:
      dense: those of the static counterpart.
      masked: those of masked storage, where every position is treated as dynamic.
      compact: those of compact storage, where only dynamic positions are mixed, or reach k experts.
    """

    dense: int = 0
    masked: int = 0
    compact: int = 0


class LayerCount(NamedTuple):
    """Parameters and multiply-adds of one module.

    Attributes:
      name: its path in the network, joined by '/'.
      positions: n, positions of its dynamic parameters; 0 in an ordinary module.
      dynamic_positions: number of dynamic positions.
      num_factors: K; 0 in an ordinary module.
      other_parameters: routers, biases, norms, scale factors, and all parameters of an ordinary module.
      is_pruned: True if positions that are not dynamic are zero and have no parameter.
      dead_parameters: parameters that are stored with masks, but dead.
      multiply_adds: of one example; zeros before `account_layers`.
    """

    name: str
    positions: int = 0
    dynamic_positions: int = 0
    num_factors: int = 0
    other_parameters: int = 0
    is_pruned: bool = False
    dead_parameters: int = 0
    multiply_adds: MultiplyAdds = MultiplyAdds()


def report_counts(layers: Iterable[LayerCount]) -> dict[str, Any]:
    """Sum the counts of layers, under the names that the commands print.

    `dynamic_fraction` is κ = dynamic positions / positions. `dynamic_share` is dynamic parameters / (static + dynamic
    parameters): Kκ / (1 − κ + Kκ) for one layer, 1 for a pruned one. Both are 0 without parameters.

    >>> report_counts([LayerCount('conv', positions=10, dynamic_positions=5, num_factors=4)])['dynamic_share']
    0.8
    """
    layers = list(layers)
    positions = sum(layer.positions for layer in layers)
    dynamic_positions = sum(layer.dynamic_positions for layer in layers)
    dynamic = sum(layer.num_factors * layer.dynamic_positions for layer in layers)
    static = sum(layer.positions - layer.dynamic_positions for layer in layers if not layer.is_pruned)
    kinds = {'static': static, 'dynamic': dynamic, 'other': sum(layer.other_parameters for layer in layers)}
    return {
        'parameters': sum(kinds.values()),
        **{f'{kind}_parameters': number for kind, number in kinds.items()},
        'positions': positions,
        'dynamic_positions': dynamic_positions,
        'dynamic_fraction': dynamic_positions / positions if positions else 0.0,
        'dynamic_share': dynamic / (static + dynamic) if static + dynamic else 0.0,
    }


def count_layers(variables: Mapping, num_dynamic: Mapping[str, int] | None = None) -> list[LayerCount]:
    """Count the parameters of every module that holds any, sorted by name.

    Only live parameters count: K at a dynamic position, one at a static position, none there if the layer is pruned.
    Ordinary modules inside a dynamic layer belong to it; dynamic layers inside it are counted by themselves.

    Args:
      variables: collections `params`, `partition` (may be missing) and `intermediates` with the records of a Flax
        module, arrays or shapes: `jax.eval_shape(functools.partial(module.init, mutable=True), ...)`.
      num_dynamic: path of a mask -> its number of dynamic positions; if None they are read from the masks.
    """
    params, masks = _flatten(variables['params']), _flatten(variables.get('partition', {}))
    records, stored = collections.defaultdict(dict), collections.Counter()
    for path, record in walk_records(read_records(variables.get('intermediates', {}))):
        records[posixpath.dirname(path)][path] = record
    for path, leaf in params.items():
        stored[_find_owner(posixpath.dirname(path), records)] += math.prod(leaf.shape)
    if num_dynamic is None:
        shapes = {path: record.shape for layer in records.values() for path, record in layer.items()}
        num_dynamic = {path: int(mask.sum()) * math.prod(shapes[path]) // mask.size for path, mask in masks.items()}
    return [_count_layer(name, stored[name], records.get(name), params, num_dynamic) for name in sorted(stored)]


def _count_layer(name, stored, records: Mapping[str, PartialParameter] | None, params, num_dynamic) -> LayerCount:
    if not records:
        return LayerCount(name, other_parameters=stored)
    positions = dynamic_positions = dead = 0
    for path, record in records.items():
        num_factors, size = params[posixpath.join(name, record.factors)].shape[0], math.prod(record.shape)
        dynamic = size if record.granularity is None else num_dynamic[path]
        if record.granularity is not None:
            dead += (num_factors + len(record.beside)) * (size - dynamic) + dynamic * (record.static is not None)
        positions += size
        dynamic_positions += dynamic
    is_pruned = any(record.is_pruned for record in records.values())
    live = num_factors * dynamic_positions + (0 if is_pruned else positions - dynamic_positions)
    return LayerCount(name, positions, dynamic_positions, num_factors, stored - dead - live, is_pruned, dead)


def _flatten(tree) -> dict[str, Any]:
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))


def plan_dynamic_positions(
    positions,
    dynamic_fraction: float,
    recipe: Recipe = PAPER,
    layer_of: Callable[[str], str] = str,
) -> dict[str, int]:
    """Return the number of positions that a partition will keep dynamic behind each mask, before there are scores.

    The total of all parameters that compete, in the network or in a layer, is exact. Only scores can tell its shares,
    so each parameter gets a share in proportion to its size. The partition keeps at most this many: whole groups may
    not fit.

    Args:
      positions: pytree of shapes, as `positions_of` returns it.
      layer_of: path of a mask -> its layer, of a `Layout`.

    >>> plan_dynamic_positions({'a': jax.ShapeDtypeStruct((5,), 'f4'), 'b': jax.ShapeDtypeStruct((10,), 'f4')}, 0.3)
    {'a': 1, 'b': 3}
    """
    roles = recipe.find_roles(positions)
    sizes = {name: leaf.size for name, leaf in _flatten(positions).items()}
    planned = {name: sizes[name] * bool(role) for name, role in roles.items()}
    competing = [name for name, role in roles.items() if role is None]
    for members in find_competitions(competing, recipe.scope, layer_of).values():
        total, passed = sum(sizes[name] for name in members), 0
        target = num_dynamic_positions(total, dynamic_fraction)
        for name in members:
            # Rounded running totals: every parameter within one of its proportion, and their sum the target itself.
            planned[name] = round(target * (passed + sizes[name]) / total) - round(target * passed / total)
            passed += sizes[name]
    return planned


def account_layers(model: nn.Module, inputs: Iterable[Any], layers: Iterable[LayerCount]) -> list[LayerCount]:
    """Add the multiply-adds of one example to counts of layers; layers without parameters that multiply come last.

    Args:
      model: a Flax module.
      inputs: arrays or shapes of one example that it is called with, as [1, H, W, C] or [1, T].
      layers: of `count_layers`, with the numbers of dynamic positions.
    """
    layers = {layer.name: layer for layer in layers}
    found = {}

    def note(call, arguments, options, context):
        result, rule = call(*arguments, **options), _find_rule(context.module)
        if context.method_name == '__call__' and rule is not None:
            name, y = '/'.join(context.module.path), jax.tree.leaves(result)[0]
            # A method that calls the method of its base class returns last, so its entry stays.
            found[name] = rule(arguments[0].shape, y.shape, layers.get(name, LayerCount(name)))
        return result

    def trace(*inputs):
        with nn.intercept_methods(note):
            return model.init(jax.random.key(0), *inputs)

    jax.eval_shape(trace, *inputs)
    for name, products in found.items():
        owner = _find_owner(name, layers)
        layer = layers.get(owner, LayerCount(owner))
        total = MultiplyAdds(*map(operator.add, layer.multiply_adds, products))
        layers[owner] = layer._replace(multiply_adds=total)
    return list(layers.values())


def sum_multiply_adds(layers: Iterable[LayerCount]) -> MultiplyAdds:
    """Sum the multiply-adds of layers, storage by storage.

    >>> sum_multiply_adds([LayerCount(name, multiply_adds=MultiplyAdds(1, 2, 3)) for name in ('conv1', 'conv2')])
    MultiplyAdds(dense=2, masked=4, compact=6)
    """
    return MultiplyAdds(*map(sum, zip(MultiplyAdds(), *(layer.multiply_adds for layer in layers))))


def _find_owner(name: str, layers) -> str:
    """Return the layer that a module belongs to: itself, or the nearest around it that is one of `layers`."""
    path = name.split('/')
    around = ('/'.join(path[:length]) for length in range(len(path), -1, -1))
    return next((candidate for candidate in around if candidate in layers), name)


def _find_rule(module) -> Callable[..., tuple[int, int, int]] | None:
    if hasattr(module, 'multiply_adds'):
        return module.multiply_adds
    if isinstance(module, nn.Dense):
        return lambda x_shape, y_shape, count: (math.prod(x_shape) * y_shape[-1],) * 3
    if isinstance(module, nn.Conv):
        return lambda x_shape, y_shape, count: (count_products(module, x_shape, y_shape),) * 3
    return None
