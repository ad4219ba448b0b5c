"""A kernel of which one part is static: how that part joins what a sample mixes from the dynamic entries.

Legend: B batch, T taps, c input channels of a group, F output channels; T', c' and F' of which those of the dynamic
entries alone, D dynamic of N outputs, inputs or taps.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.layers.dynamic_columns import Columns


class Order(NamedTuple):
    """N columns, static ones first and dynamic ones after them, against where they belong.

    Attributes:
      sources: int32[N], which column stands at each place.
      slots: int32[N], where each column stands.
    """

    sources: jax.Array
    slots: jax.Array

    @classmethod
    def read(cls, dynamic: Columns, others: Columns) -> 'Order':
        """Of columns that are split."""
        num_others = others.indices.shape[0]
        slots = jnp.where(others.slots < num_others, others.slots, num_others + dynamic.slots)
        return cls(jnp.concatenate([others.indices, dynamic.indices]), slots)


class StaticPart(NamedTuple):
    """What a sample's kernel has beside its mixed entries.

    Attributes:
      values: the static entries, [T, c, F] but for the axis along which dynamic ones are missing; where a mask says
        which are dynamic all of [T, c, F].
      places: that mask, a bool that broadcasts against [T, c, F]; or an Order that the entries are brought into after
        they are put side by side, or None where they stay so.
      weights: float[B, T''], a weight for every tap of the static entries, or None: all are one.
    """

    values: jax.Array
    places: jax.Array | Order | None = None
    weights: jax.Array | None = None


def join_static(mixed: jax.Array, static: StaticPart, axis: int | None) -> jax.Array:
    """The kernel of a sample, or of each.

    Args:
      mixed: [T', c', F'], or [B, T', c', F'] with weights that have a batch axis as well.
      axis: -1, -2 or -3, along which static entries and dynamic ones after them stand side by side; None where
        there is a mask.

    Returns:
      [T, c, F] or [B, T, c, F] of the dtype of `mixed`.
    """
    values = static.values.astype(mixed.dtype)
    values = values.reshape(*(1,) * (mixed.ndim - 3), *values.shape)
    if static.weights is not None:
        values = values * static.weights[..., None, None].astype(mixed.dtype)
    if axis is None:
        return jnp.where(static.places, mixed, values)
    values = jnp.broadcast_to(values, (*mixed.shape[:-3], *values.shape[-3:]))
    together = jnp.concatenate([values, mixed], axis)
    return together if static.places is None else reorder(together, *static.places, axis)


# Its gradient is itself with the two swapped; the derived one is a scatter, which takes XLA on CPU many times as long.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def reorder(values: jax.Array, sources: jax.Array, slots: jax.Array, axis: int) -> jax.Array:
    """Columns that stand in an `Order`, each where it belongs."""
    del sources
    return jnp.take(values, slots, axis=axis, mode='clip')


reorder.defvjp(
    lambda values, sources, slots, axis: (reorder(values, sources, slots, axis), (sources, slots)),
    lambda axis, order, d_values: (reorder(d_values, order[1], order[0], axis), None, None),
)


def flatten_taps(kernels: jax.Array) -> jax.Array:
    """[K, *kernel_size, c, F] -> [K, T, c, F]."""
    return kernels.reshape(kernels.shape[0], math.prod(kernels.shape[1:-2]), *kernels.shape[-2:])


def flat_places(attention: jax.Array) -> tuple[int, ...]:
    """The last axes of attention [B, K] or [B, K, *kernel_size] with its taps in one: () or (T,)."""
    return (math.prod(attention.shape[2:]),) if attention.ndim > 2 else ()
