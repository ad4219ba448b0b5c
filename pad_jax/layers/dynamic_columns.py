"""Which columns (rows) of a parameter are dynamic, as indices: what lets experts compute those alone.

A mask has the right values but no static count. So the indices are a collection of their own, 'dynamic_columns',
computed on the host once the masks are settled and constant while they are.

Legend: n columns of a parameter, D those that are dynamic.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pad_jax.layers.neurons import split_neurons


def index_dynamic_columns(masks: Mapping) -> dict:
    """The collection 'dynamic_columns' that belongs to the collection 'partition'.

    A mask of one gate for each output, [1, F], or for each input, [C, 1], gets the indices of its dynamic gates, and
    one of the rows of `neurons`, [2C + 1, 1], those of the weights in and of the weights out; layers without such a
    mask are left out. Call it again after every partition round: a layer computes what its index says, not its mask.
    Scoring needs the gradients of gates and goes without the collection.

    Args:
      masks: nested dict of concrete bool arrays.

    Returns:
      The same nesting of int32[D], ascending; for rows of `neurons` a dict of two, `in` and `out`, each of features.

    >>> index_dynamic_columns({'ffn': {'kernel': np.array([[True, False, True]])}})['ffn']['kernel'].tolist()
    [0, 2]
    """
    indices = {}
    for name, below in masks.items():
        if isinstance(below, Mapping):
            found = index_dynamic_columns(below)
            if found:
                indices[name] = found
        elif below.ndim == 2 and (below.shape[0] == 1) != (below.shape[1] == 1):
            if name == 'neurons' and below.shape[1] == 1:
                weights_in, _, weights_out = split_neurons(np.asarray(below))
                indices[name] = {'in': _index_open(weights_in), 'out': _index_open(weights_out)}
            else:
                indices[name] = _index_open(np.asarray(below))
    return indices


def _index_open(mask):
    return jnp.asarray(np.flatnonzero(mask), jnp.int32)


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


def _index(indices, chosen):
    slots = jnp.where(chosen, jnp.cumsum(chosen) - 1, indices.shape[0])
    return Columns(indices, slots.astype(jnp.int32))


# Each is the transpose of the other and its gradient says so: the derived one of a read is a scatter, which takes
# XLA on CPU many times as long.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def take_columns(values: jax.Array, columns: Columns, axis: int) -> jax.Array:
    """Those columns alone: n -> D along `axis`, -1 or -2."""
    return _read(values, columns.indices, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def put_columns(values: jax.Array, columns: Columns, axis: int) -> jax.Array:
    """Columns back where they belong, zero elsewhere: D -> n along `axis`, -1 or -2."""
    num_there, size = columns.indices.shape[0], columns.slots.shape[0]
    shape = [1] * values.ndim
    shape[axis] = size
    if num_there == 0:
        whole = list(values.shape)
        whole[axis] = size
        return jnp.zeros(whole, values.dtype)
    found = _read(values, jnp.minimum(columns.slots, num_there - 1), axis)
    return jnp.where((columns.slots < num_there).reshape(shape), found, 0)


def _read(values, places, axis):
    if axis == -2:
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
