"""Declaring what a partially dynamic layer holds: stacked factors, and the static parameters beside them.

Legend: K stacked factors, `*shape` one position tensor, n gates of a mask, D of them dynamic.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from pad_jax.layers.dynamic_columns import (
    Columns,
    put_columns,
    split_columns,
    split_elements,
    take_columns,
    unpack_bits,
)
from pad_jax.partition.masks import gate_axis, mask_granularity, mask_shape, merge, scale_factors, scale_values, split
from pad_jax.partition.packing import ROWS


class Factors(NamedTuple):
    """A parameter [K, *shape] as it was declared, however it is stored.

    Attributes:
      shape: of one factor.
      dynamic: float[K, *shape]; where `columns` are given its dynamic entries alone, as `partition.compaction` has
        them.
      static: float[*shape] or the static entries alone; None where the layer is fully dynamic.
      dynamic_scale, static_scale: λd and λs.
      mask: None where the layer is fully dynamic or `columns` are given.
      granularity: of the mask; the coarsest where several have masks of its shape.
      columns: where the dynamic and where the static entries belong, along `axis` of `view`, or None.
      num_rows: how many of the dynamic rows of neurons are weights in, bias and weights out; else None.
    """

    shape: tuple[int, ...]
    dynamic: jax.Array
    static: jax.Array | None = None
    dynamic_scale: jax.Array | float = 1.0
    static_scale: jax.Array | float = 1.0
    mask: jax.Array | None = None
    granularity: str | None = None
    columns: tuple[Columns, Columns] | None = None
    num_rows: tuple[int, int, int] | None = None

    @property
    def structured(self) -> bool:
        """Whether entries stand by themselves in whole outputs, inputs, places or layers: static work can be apart."""
        return self.columns is not None and self.granularity != 'element'

    def merge(self) -> jax.Array:
        """[K, *shape]: the static part in every factor, for routing weights that sum to one."""
        if self.static is None:
            return self.dynamic
        if self.columns is None:
            return merge(self.dynamic, self.static, self.mask, self.dynamic_scale, self.static_scale)
        dynamic_part, static_part = self.split()
        # Repeated by hand, as in `partition.masks.merge`.
        return dynamic_part + jnp.concatenate([static_part[None]] * dynamic_part.shape[0])

    def split(self) -> tuple[jax.Array, jax.Array | None]:
        """([K, *shape], [*shape]): the dynamic part and the static part."""
        if self.static is None:
            return self.dynamic, None
        if self.columns is None:
            return split(self.dynamic, self.static, self.mask, self.dynamic_scale, self.static_scale)
        dynamic, static = self.scaled()
        return self.put(dynamic, 0), self.put(static, 1)

    def spread(self) -> 'Factors':
        """The same elements in whole arrays beside a mask, zero where they are dead."""
        dynamic_places, _ = self.columns
        mask = (dynamic_places.slots < dynamic_places.indices.shape[0]).reshape(self.shape)
        whole = {'dynamic': self.put(self.dynamic, 0), 'static': self.put(self.static, 1)}
        return self._replace(**whole, mask=mask, columns=None)

    def scaled(self) -> tuple[jax.Array, jax.Array]:
        """λd times the dynamic entries and λs times the static ones, as they are stored."""
        return scale_values(self.dynamic_scale, self.dynamic), scale_values(self.static_scale, self.static)

    def put(self, values: jax.Array, side: int) -> jax.Array:
        """Entries where they belong, zero elsewhere: [..., *entries] -> [..., *shape]; side 0 is dynamic, 1 static."""
        view, axis = gate_axis(self.shape, self.granularity)
        stack = values.shape[: values.ndim - len(view)]
        return put_columns(values, self.columns[side], axis).reshape(*stack, *self.shape)


def stack_law(law: Initializer) -> Initializer:
    """The law of a stack [K, *shape] whose factors are K draws of `law`: it must not count the stack axis."""

    def draw(key, shape, dtype):
        keys = jax.random.split(key, shape[0])
        return jax.vmap(lambda key: law(key, shape[1:], dtype))(keys)

    return draw


def declare_factors(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    num_factors: int,
    draw_factors: Callable,
    draw_static: Initializer,
) -> Factors:
    """The parameter `name` of a module, [K, *shape], and what makes it partially dynamic.

    Where the module's `rest` is 'zero' there are no static parameters but constant zeros, and λs has no object.

    To be called inside the module's compact method. The variables say how it is stored:

        collections           parameters
        'partition'           K factors and the static parameters, whole; the mask starts all True
        + 'dynamic_columns'   the same; the live entries are taken from them
        'packed'              live entries alone: see `partition.compaction`

    Args:
      module: has the fields `granularity`, `scales`, `rest` and `param_dtype`.
      shape: of one factor.
      num_factors: K.
      draw_factors: the law of the whole stack.
      draw_static: the law of the static parameters.

    Raises:
      ValueError: where compact parameters are not of the shapes that the layer has.
    """
    compact = _is_compact(module, name)
    if compact:
        dynamic = module.get_variable('params', name)
    else:
        dynamic = module.param(name, draw_factors, (num_factors, *shape), module.param_dtype)
    if module.granularity is None:
        return Factors(shape, dynamic)
    if module.rest == 'zero':
        static = None
    elif compact:
        static = module.get_variable('params', f'static_{name}')
    else:
        static = module.param(f'static_{name}', draw_static, shape, module.param_dtype)
    phi = 0.0
    if module.scales != 'none':
        phi = module.param('phi', nn.initializers.zeros_init(), (), module.param_dtype)
    gates = mask_shape(shape, module.granularity)
    granularity = mask_granularity(gates)
    whole = Factors(shape, dynamic, static, *scale_factors(phi, module.scales), granularity=granularity)
    static_shape = _check_entries(whole, name, num_factors) if compact else shape
    if static is None:
        whole = whole._replace(static=jnp.zeros(static_shape, module.param_dtype))
    if compact:
        return _locate(whole, module.get_variable('packed', name))
    mask = module.variable('partition', name, lambda: jnp.ones(gates, bool)).value
    index = None if granularity == 'element' else module.get_variable('dynamic_columns', name)
    return whole._replace(mask=mask) if index is None else _take(whole, index)


def declare_dynamic(module: nn.Module, name: str, law: Initializer, factors: Factors) -> jax.Array:
    """A parameter [*shape] beside the factors that is dead where they are; of its dynamic entries if compact."""
    if factors.columns is None:
        return module.param(name, law, factors.shape, module.param_dtype)
    return module.param(name, law, factors.dynamic.shape[1:], module.param_dtype)


def _is_compact(module, name):
    return module.granularity is not None and module.has_variable('packed', name)


def _check_entries(factors, name, num_factors):
    """The shape of the static entries."""
    view, axis = gate_axis(factors.shape, factors.granularity)

    def entries(count):
        return tuple(count if place == len(view) + axis else size for place, size in enumerate(view))

    found = factors.dynamic.shape
    num_dynamic = found[axis] if len(found) == len(view) + 1 else 0
    expected = (num_factors, *entries(num_dynamic)), entries(view[axis] - num_dynamic)
    static = expected[1] if factors.static is None else factors.static.shape
    if (found, static) != expected or num_dynamic > view[axis]:
        raise ValueError(
            f'{name} {found} and static_{name} {static} are no compact parameters of {(num_factors, *factors.shape)} '
            f'at granularity {factors.granularity!r}'
        )
    return static


def _locate(factors, bits):
    """Compact entries, with the places that their bits say."""
    view, axis = gate_axis(factors.shape, factors.granularity)
    num_dynamic = factors.dynamic.shape[axis]
    if isinstance(bits, Mapping):
        return factors._replace(
            columns=split_columns(_join_rows(bits, view[axis]), view[axis]), num_rows=_count_rows(bits)
        )
    if factors.granularity == 'element':
        if bits.dtype == bool:
            bits = jnp.packbits(bits, axis=-1)
        return factors._replace(columns=split_elements(bits, factors.shape, num_dynamic))
    if factors.granularity == 'layer':
        dynamic = jnp.arange(num_dynamic, dtype=jnp.int32)
    else:
        gates = bits if bits.dtype == bool else unpack_bits(bits, view[axis])
        dynamic = jnp.nonzero(gates.reshape(-1), size=num_dynamic)[0].astype(jnp.int32)
    return factors._replace(columns=split_columns(dynamic, view[axis]))


def _take(factors, index):
    """The live entries of whole parameters, by the index of their mask."""
    view, axis = gate_axis(factors.shape, factors.granularity)
    rows = None
    if isinstance(index, Mapping):
        rows, index = _count_rows(index), _join_rows(index, view[axis])
    elif factors.granularity == 'layer':
        index = jnp.arange(view[axis] * index.shape[0], dtype=jnp.int32)
    columns = split_columns(index, view[axis])
    return factors._replace(
        dynamic=take_columns(factors.dynamic.reshape(-1, *view), columns[0], axis),
        static=take_columns(factors.static.reshape(view), columns[1], axis),
        columns=columns,
        num_rows=rows,
    )


def _join_rows(index, num_rows):
    """int32[D], which of all rows of neurons are dynamic."""
    starts = {'in': 0, 'bias': num_rows // 2, 'out': num_rows // 2 + 1}
    return jnp.concatenate([index[part] + starts[part] for part in ROWS])


def _count_rows(index):
    return tuple(index[part].shape[0] for part in ROWS)
