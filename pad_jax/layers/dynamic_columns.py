"""Which columns (rows, places, elements) of a parameter are dynamic, as indices: what lets layers compute those alone.

A mask has the right values but no static count. So the indices are a collection of their own, 'dynamic_columns',
computed on the host once the masks are settled and constant while they are.

Legend: n columns of a parameter, D those that are dynamic; `*shape` one position tensor.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.kernels.numerics import vary_together
from pad_jax.partition.masks import mask_granularity
from pad_jax.partition.packing import holds_rows, index_open
from pad_jax.partition.problem import GENERATED


def index_dynamic_columns(masks: Mapping) -> dict:
    """The collection 'dynamic_columns' that belongs to the collection 'partition'.

    A mask of one gate for each output, each input, each place of a kernel or for the whole layer gets the indices of
    its dynamic gates, and one of the rows of `neurons`, [2C + 1, 1], those of the weights in, the bias and the weights
    out. Masks of elements are left out, and those of generators, which cost next to nothing. Call it again after every
    partition round: a layer computes what its index says, not its mask. Scoring needs the gradients of gates and goes
    without the collection.

    Args:
      masks: nested dict of concrete bool arrays.

    Returns:
      The same nesting of int32[D], ascending; for rows of `neurons` a dict of three, `in`, `bias` and `out`, each by
      itself.

    >>> index_dynamic_columns({'ffn': {'kernel': jnp.array([[True, False, True]])}})['ffn']['kernel'].tolist()
    [0, 2]
    """
    indices = {}
    for name, below in masks.items():
        if isinstance(below, Mapping):
            found = index_dynamic_columns(below)
            if found:
                indices[name] = found
        elif name != GENERATED and mask_granularity(below.shape) != 'element' and not holds_rows(name, below):
            indices[name] = index_open(below)
    return indices


class Columns(NamedTuple):
    """Some columns of n, in ascending order.

    Attributes:
      indices: int32[D], the columns.
      slots: int32[n], place of each column in `indices`; D where it is not there.
    """

    indices: jax.Array
    slots: jax.Array


def split_columns(dynamic: jax.Array, num_columns: int) -> tuple[Columns, Columns]:
    """The dynamic columns int32[D] of n, and the n − D others."""
    is_dynamic = jnp.zeros(num_columns, bool).at[dynamic].set(True)
    others = jnp.nonzero(~is_dynamic, size=num_columns - dynamic.shape[0])[0].astype(jnp.int32)
    return _index(dynamic, is_dynamic), _index(others, ~is_dynamic)


def split_elements(bits: jax.Array, shape: Sequence[int], num_dynamic: int) -> tuple[Columns, Columns]:
    """The dynamic elements of a tensor, flattened, and the others.

    Args:
      bits: uint8[*shape[:-1], ceil(shape[-1] / 8)], as numpy.packbits puts them, D of them set.
      shape: of the tensor.
      num_dynamic: D.
    """
    mask = unpack_bits(bits, shape[-1]).reshape(-1)
    ranks = _rank_bits(bits)[..., : shape[-1]].reshape(-1)
    places = jnp.arange(mask.shape[0], dtype=jnp.int32)
    slots = jnp.where(mask, ranks, num_dynamic), jnp.where(mask, mask.shape[0] - num_dynamic, places - ranks)
    # One scatter of integers, so that no gradient has to be one: it takes about as long as reading the K factors.
    order = jnp.where(mask, slots[0], num_dynamic + slots[1])
    indices = jnp.zeros_like(places).at[order].set(places, unique_indices=True)
    return Columns(indices[:num_dynamic], slots[0]), Columns(indices[num_dynamic:], slots[1])


def unpack_bits(bits: jax.Array, size: int) -> jax.Array:
    """uint8[..., ceil(size / 8)] -> bool[..., size]."""
    return jnp.unpackbits(bits, axis=-1, count=size).astype(bool)


def _rank_bits(bits):
    """How many bits are set before each one: uint8[..., b] -> int32[..., 8b], over all axes in C order.

    Counted in bytes, and these in rows: a sum that runs over millions of elements takes XLA on CPU many passes.
    """
    counts = jax.lax.population_count(bits).astype(jnp.int32).reshape(-1)
    rows = jnp.pad(counts, (0, -counts.shape[0] % _BYTES_IN_ROW)).reshape(-1, _BYTES_IN_ROW)
    within = jnp.cumsum(rows, axis=1)
    before = within - rows + (jnp.cumsum(within[:, -1]) - within[:, -1])[:, None]
    before = before.reshape(-1)[: counts.shape[0]].reshape(*bits.shape, 1)
    heads = jnp.asarray([256 - (1 << (8 - bit)) for bit in range(8)], jnp.uint8)  # the bits before that one
    inside = jax.lax.population_count(bits[..., None] & heads.reshape((1,) * bits.ndim + (8,)))
    return (before + inside.astype(jnp.int32)).reshape(*bits.shape[:-1], -1)


_BYTES_IN_ROW = 256


def _index(indices, chosen):
    slots = jnp.where(chosen, jnp.cumsum(chosen) - 1, indices.shape[0])
    return Columns(indices, slots.astype(jnp.int32))


# Each is the transpose of the other and its gradient says so: the derived one of a read is a scatter, which takes
# XLA on CPU many times as long.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def take_columns(values: jax.Array, columns: Columns, axis: int) -> jax.Array:
    """Those columns alone: n -> D along `axis`, -1, -2 or -3."""
    return _read(values, columns.indices, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def put_columns(values: jax.Array, columns: Columns, axis: int) -> jax.Array:
    """Columns back where they belong, zero elsewhere: D -> n along `axis`, -1, -2 or -3."""
    num_there, size = columns.indices.shape[0], columns.slots.shape[0]
    shape = [1] * values.ndim
    shape[axis] = size
    if num_there == 0:
        whole = list(values.shape)
        whole[axis] = size
        return vary_together(jnp.zeros(whole, values.dtype), values, columns.slots)[0]
    found = _read(values, jnp.minimum(columns.slots, num_there - 1), axis)
    return jnp.where((columns.slots < num_there).reshape(shape), found, 0)


def _read(values, places, axis):
    if axis != -1:
        return jnp.take(values, places, axis=axis, mode='clip')
    # Flat: XLA on CPU makes a read of columns column by column, and two transposes of it.
    matrix = values.reshape(-1, values.shape[-1])
    starts = jnp.arange(matrix.shape[0]) * matrix.shape[1]
    flat = jnp.take(matrix.reshape(-1), starts[:, None] + places[None], mode='clip')
    return flat.reshape(*values.shape[:-1], places.shape[0])


take_columns.defvjp(
    lambda values, columns, axis: (take_columns(values, columns, axis), columns),
    lambda axis, columns, d_taken: (put_columns(d_taken, columns, axis), None),
)
put_columns.defvjp(
    lambda values, columns, axis: (put_columns(values, columns, axis), columns),
    lambda axis, columns, d_put: (take_columns(d_put, columns, axis), None),
)
