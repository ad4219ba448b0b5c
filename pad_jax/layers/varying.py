"""Types of arrays inside shard_map, for gradients that are written by hand."""

import functools

import jax
import jax.numpy as jnp


def vary_together(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The same values, each typed as varying over all the mapped axes that any of them varies over.

    Inside shard_map the types of a gradient and of its argument must agree, and one written by hand varies as
    all arguments do; JAX's own differentiation of this function then sums it over the devices that share an
    argument. XLA folds the condition, which never holds, and with it everything here.
    """
    never = functools.reduce(jnp.logical_or, (jnp.any(array != array) for array in arrays)) & False
    return tuple(jnp.where(never, jnp.zeros((), array.dtype), array) for array in arrays)
