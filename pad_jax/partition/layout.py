"""Description of a network for the partition: records, layouts and problems."""

import dataclasses
import functools
import posixpath
from collections.abc import Callable, Iterator, Mapping
from operator import getitem
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.partition.masks import group_size, leaf_names, scale_factors

PyTree = Any


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PartialParameter:
    """Record of one partially or fully dynamic parameter, declared by the layer that holds it.

    It is hashable, has no arrays and is a pytree without leaves. So gradients, jit and checkpoints never see it.

    Attributes:
      factors: name of the stack [K, *shape] in the module's params.
      shape: shape of one factor.
      granularity: of its mask, one of `GRANULARITIES`; None if the parameter is fully dynamic.
      static: name of the static parameter [*shape]; None if the parameter is fully dynamic or pruned.
      scale: name of φ; None without scale factors.
      scales: which of λd and λs are used, one of `SCALES`.
      sums_to_one: False if the mixing weights are sigmoids, which add up to K / 2 at the start.
      generated: True if the network computes with generated values instead of a mixture of the factors.
      linear: True if the scale factors may be folded into the parameters.
      experts: True if the factors are experts, of which a router selects some.
      start: value of a generated parameter whose factors are zero.
      beside: names of parameters [*shape] that are dead at static positions.
      layer: path of the layer it belongs to, relative to its module: '' for the module, '..' for the one around it.
    """

    factors: str
    shape: tuple[int, ...]
    granularity: str | None = None
    static: str | None = None
    scale: str | None = None
    scales: str = 'none'
    sums_to_one: bool = True
    generated: bool = False
    linear: bool = True
    experts: bool = False
    start: float = 1.0
    beside: tuple[str, ...] = ()
    layer: str = ''

    def copies_at(self, num_factors: int) -> float:
        """Return the multiple of the static parameter at which K equal factors compute the same."""
        return 1.0 if self.sums_to_one else 2 / num_factors

    @property
    def is_pruned(self) -> bool:
        """True if positions that are not dynamic are zero."""
        return self.granularity is not None and self.static is None


class Part(NamedTuple):
    """One partially dynamic parameter, read from params.

    It holds the factors float[K, *shape] and the static parameter float[*shape], zeros if it is pruned. λd and λs and
    what its `PartialParameter` says follow.
    """

    dynamic: jax.Array
    static: jax.Array
    dynamic_scale: jax.Array | float = 1.0
    static_scale: jax.Array | float = 1.0
    copies_at: float = 1.0
    generated: bool = False
    experts: bool = False


def read_part(record: PartialParameter, module: Mapping[str, jax.Array]) -> Part:
    """Read a partially dynamic parameter from the masked params of its module."""
    dynamic = module[record.factors]
    static = jnp.zeros(dynamic.shape[1:], dynamic.dtype) if record.static is None else module[record.static]
    scales = (1.0, 1.0) if record.scale is None else scale_factors(module[record.scale], record.scales)
    return Part(dynamic, static, *scales, record.copies_at(len(dynamic)), record.generated, record.experts)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Access to the partially dynamic parameters of a params pytree; hashable, so a static argument of jit.

    This one is for a dict with the factors under 'dynamic' and the static parameters, same structure, under 'static'.
    A subclass reads other trees.
    """

    def read(self, params: PyTree, masks: PyTree) -> PyTree:
        """Return a `Part` for each mask. Without masks (None) return all parts, to make the masks from."""
        return jax.tree.map(Part, params['dynamic'], params['static'])

    def write(self, params: PyTree, masks: PyTree, static: PyTree) -> PyTree:
        """Return the params with the static parameters of all masks replaced."""
        return {**params, 'static': static}

    def layer_of(self, path: str) -> str:
        """Return the layer of a mask. Under scope `layer` the masks of one layer compete with each other."""
        return path

    def dynamic(self, params: PyTree, masks: PyTree) -> PyTree:
        """Return the factors float[K, *shape] of every mask, of params or their gradients."""
        parts = self.read(params, masks)
        return jax.tree.map(lambda part: part.dynamic, parts, is_leaf=lambda node: isinstance(node, Part))

    @staticmethod
    def of(records: Mapping[str, Any]) -> 'Layout':
        """Make the layout of nested params and masks from their records; equal records give equal layouts."""
        return _Recorded(tuple(walk_records(records)))


def walk_records(records: Mapping[str, Any], path: str = '') -> Iterator[tuple[str, PartialParameter]]:
    """Yield (path, record) for all records, in the order of jax.tree.leaves of the masks."""
    for name in sorted(records):
        if isinstance(records[name], Mapping):
            yield from walk_records(records[name], f'{path}{name}/')
        else:
            yield f'{path}{name}', records[name]


@dataclasses.dataclass(frozen=True)
class _Recorded(Layout):
    records: tuple[tuple[str, PartialParameter], ...]

    def _locate(self, params, masks):
        """Return (record, params of its module) for each mask."""
        if masks is None:
            raise ValueError("the masks of a Flax network are needed: give masks=variables['partition']")
        paths, records = leaf_names(masks), dict(self.records)
        return [(records[path], functools.reduce(getitem, path.split('/')[:-1], params)) for path in paths]

    def read(self, params, masks):
        parts = [read_part(record, module) for record, module in self._locate(params, masks)]
        return jax.tree.unflatten(jax.tree.structure(masks), parts)

    def write(self, params, masks, static):
        params = jax.tree.map(lambda leaf: leaf, params)  # new dicts, the same arrays
        for (record, module), leaf in zip(self._locate(params, masks), jax.tree.leaves(static), strict=True):
            if record.static is None:
                raise ValueError(f'{record.factors} is pruned: it has no static parameter that could take over a mean')
            module[record.static] = leaf
        return params

    def layer_of(self, path):
        layer = posixpath.normpath(posixpath.join(posixpath.dirname(path), dict(self.records)[path].layer))
        return '' if layer == '.' else layer


def positions_of(layout: Layout, params, masks):
    """Return the shapes of one copy of each partially dynamic parameter, as jax.ShapeDtypeStruct[*shape]."""
    factors = jax.eval_shape(layout.dynamic, params, masks)  # params may be shapes already
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), factors)


def check_layout(layout: Layout, params, masks) -> None:
    """Raise ValueError, with the name of the parameter, if params, masks and layout don't fit each other."""
    try:
        parts = jax.tree.structure(masks).flatten_up_to(layout.read(params, masks))
    except KeyError as error:
        raise ValueError(f'params hold no {error}, which the layout reads') from None
    except ValueError as error:
        raise ValueError(f'the parameters and the masks are trees of different structure: {error}') from None
    for name, mask, part in zip(leaf_names(masks), jax.tree.leaves(masks), parts, strict=True):
        factors, static = part.dynamic.shape, part.static.shape
        try:
            if mask.dtype != bool:
                raise ValueError(f'masks must be bool, got {mask.dtype}')
            if factors[1:] != static:
                raise ValueError(f'factors must be [K, *shape], static parameters [*shape], got {factors} and {static}')
            group_size(mask, part.static)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from None


@dataclasses.dataclass(frozen=True)
class Problem:
    """A network as the criteria and the handoff see it. `gates` always has the structure of the masks.

    Attributes:
      loss: `(params, gates, batch) -> scalar`, the mean loss in nats per example, differentiable in gates.
      layout: access to the dynamic factors and static parameters in params.
      output: `(params, gates, batch) -> float[N, ...]`, the network's output; SynFlow needs it.
      routing: `(params, gates, batch) -> pytree` like the masks: the mixing weights float[N, K] of N rows (samples,
        tokens). For a generated parameter it holds its values float[N, *shape], without mask and scale. The criterion
        `variance` needs it; without it the handoff `mean` takes 1/K for each factor.
    """

    loss: Callable[[PyTree, PyTree, PyTree], jax.Array]
    layout: Layout = Layout()
    output: Callable[[PyTree, PyTree, PyTree], jax.Array] | None = None
    routing: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None
