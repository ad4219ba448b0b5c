"""Parameter of a dynamic layer as arrays, in masked or compact storage; dtype and type of sums and gradients."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.partition.masks import merge, scale_values, split

LEAST_SCALE = 1e-9  # least λd to divide by: beside λs = 2 it is lost to rounding, and its square is finite in float32
MOST_COMPARED = 2048  # entries up to which comparing all pairs takes less than a millisecond on a CPU


class Factors(NamedTuple):
    """Parameter [K, *shape] of a dynamic layer: its factors, its static part, and a mask or an index.

    Masked storage holds whole arrays and a mask. Compact storage holds live entries and the index of the dynamic ones.
    Along axis -3 the T taps are flattened in C order: compact arrays are `[K, D, C, F]` and `[T − D, C, F]`.
    """

    shape: tuple[int, ...]  # of one factor
    dynamic: jax.Array  # float[K, *shape]; in compact storage only the D dynamic entries along `axis`
    static: jax.Array | None = None  # float[*shape], or only the static entries; None if all positions are dynamic
    dynamic_scale: jax.Array | float = 1.0  # λd
    static_scale: jax.Array | float = 1.0  # λs
    mask: jax.Array | None = None  # bool or float gates that broadcast against `shape`; None in compact storage
    index: jax.Array | None = None  # int32[D], ascending: the dynamic entries; None in masked storage
    axis: int | None = None  # of the entries in compact storage: -1 outputs, -2 inputs, -3 taps

    @property
    def size(self) -> int:
        """Number of entries along `axis`, dynamic and static ones."""
        return self.dynamic.shape[self.axis] + self.static.shape[self.axis]

    @property
    def static_index(self) -> jax.Array:
        """int32[size − D], ascending: the static entries in compact storage."""
        return complement_index(self.index, self.size)

    def merge(self) -> jax.Array:
        """Return [K, *shape] of masked storage with the static part in every factor; see `partition.masks.merge`."""
        if self.static is None:
            return self.dynamic
        return merge(self.dynamic, self.static, self.mask, self.dynamic_scale, self.static_scale)

    def split(self) -> tuple[jax.Array, jax.Array | None]:
        """Return the dynamic part [K, *shape] and the static part [*shape], with zeros at dead positions."""
        if self.static is None:
            return self.dynamic, None
        if self.index is None:
            return split(self.dynamic, self.static, self.mask, self.dynamic_scale, self.static_scale)
        dynamic_part = scale_values(self.dynamic_scale, self.dynamic)
        static_part = scale_values(self.static_scale, self.static)
        return self.put_dynamic(dynamic_part), self.put_static(static_part)

    def factor_out_scale(self) -> tuple[jax.Array, jax.Array]:
        """Return (λd, λs / λd · static). λd times the unscaled factors with that static part are the effective ones."""
        scale = jnp.maximum(self.dynamic_scale, LEAST_SCALE)
        return scale, scale_values(self.static_scale / scale, self.static)

    def put_dynamic(self, values: jax.Array) -> jax.Array:
        """Put dynamic entries where they belong, with zeros elsewhere: [N, *entries] -> [N, *shape]."""
        return put_entries(values, self.index, self.size, self.axis).reshape(values.shape[0], *self.shape)

    def put_static(self, values: jax.Array) -> jax.Array:
        """Put static entries where they belong, with zeros elsewhere: [*entries] -> [*shape]."""
        return put_entries(values, self.static_index, self.size, self.axis).reshape(self.shape)


def complement_index(index: jax.Array, size: int) -> jax.Array:
    """Return the entries of `size` that are not in `index`: int32[D], ascending -> int32[size − D], ascending."""
    places = jnp.arange(size - index.shape[0], dtype=jnp.int32)
    others_before = index - jnp.arange(index.shape[0], dtype=jnp.int32)
    # Few comparisons are one operation to compile. Running sums and scatters would be many, in every layer.
    method = 'compare_all' if size <= MOST_COMPARED else 'scan'
    return places + jnp.searchsorted(others_before, places, side='right', method=method).astype(jnp.int32)


def invert_index(index: jax.Array, size: int) -> jax.Array:
    """Return the place of each entry in `index`, D if it is not there: int32[D] -> int32[size]."""
    places = jnp.arange(index.shape[0], dtype=jnp.int32)
    return jnp.full(size, index.shape[0], jnp.int32).at[index].set(places)


# Each is the transpose of the other, and so is its gradient. The derived gradient of a read would be a scatter, which
# takes XLA on CPU many times as long.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _take(values, index, size, axis):
    return _read(values, index, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _put(values, index, places, axis):
    num_entries = index.shape[0]
    if num_entries == 0:
        whole = list(values.shape)
        whole[axis] = places.shape[0]
        return vary_together(jnp.zeros(whole, values.dtype), values, places)[0]
    found = _read(values, jnp.minimum(places, num_entries - 1), axis)
    return jnp.where((places < num_entries).reshape(-1, *(1,) * (-axis - 1)), found, 0)


_take.defvjp(
    lambda values, index, size, axis: (_take(values, index, size, axis), index),
    lambda size, axis, index, d_taken: (_put(d_taken, index, invert_index(index, size), axis), None),
)
_put.defvjp(
    lambda values, index, places, axis: (_put(values, index, places, axis), (index, places)),
    lambda axis, index, d_put: (_take(d_put, index[0], index[1].shape[0], axis), None, None),
)


def take_entries(values: jax.Array, index: jax.Array, axis: int) -> jax.Array:
    """Take the entries of `index`, int32[D], along `axis` (-1, -2 or -3): [..., n, ...] -> [..., D, ...].

    >>> take_entries(jnp.array([[1., 2., 3.]]), jnp.array([0, 2]), -1).tolist()
    [[1.0, 3.0]]
    """
    return _take(values, index, values.shape[axis], axis)


def put_entries(
    values: jax.Array, index: jax.Array, size: int, axis: int, places: jax.Array | None = None
) -> jax.Array:
    """Put entries where `index` says, with zeros elsewhere: [..., D, ...] -> [..., size, ...] along `axis`.

    It is the transpose of `take_entries`. Indices must be distinct. Known `places` are `invert_index(index, size)`.

    >>> put_entries(jnp.array([[1., 3.]]), jnp.array([0, 2]), 3, -1).tolist()
    [[1.0, 0.0, 3.0]]
    """
    return _put(values, index, invert_index(index, size) if places is None else places, axis)


def _read(values, places, axis):
    if axis != -1:
        return jnp.take(values, places, axis=axis, mode='clip')
    # Flat: XLA on CPU reads columns one by one, with two transposes.
    matrix = values.reshape(-1, values.shape[-1])
    starts = jnp.arange(matrix.shape[0]) * matrix.shape[1]
    flat = jnp.take(matrix.reshape(-1), starts[:, None] + places[None], mode='clip')
    return flat.reshape(*values.shape[:-1], places.shape[0])


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """Return float32, or the dtype itself if it is a wider float: the dtype in which sums are taken.

    >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    # Not `jnp.promote_types`, which strict promotion refuses.
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return jnp.dtype(dtype if wide else 'float32')


def vary_together(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Return the same values, each typed as varying over every mapped axis that any of them varies over.

    Inside shard_map a gradient must have the type of its argument. A hand-written gradient varies over all axes of all
    arguments. JAX's own differentiation of this function then sums it over the devices that share an argument.
    """
    # XLA removes everything here, because the condition never holds.
    never = functools.reduce(jnp.logical_or, (jnp.any(array != array) for array in arrays)) & False
    return tuple(jnp.where(never, jnp.zeros((), array.dtype), array) for array in arrays)
