"""Dtype of sums, and types of hand-written gradients inside shard_map."""

import functools

import jax
import jax.numpy as jnp


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """Return float32, or the dtype itself if it is a wider float: the dtype in which sums are taken.

    `jnp.promote_types` would refuse bfloat16 with float32 under `jax.numpy_dtype_promotion('strict')`.

    >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    dtype = jnp.dtype(dtype)
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return dtype if wide else jnp.dtype('float32')


def vary_together(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Return the same values, each typed as varying over every mapped axis that any of them varies over.

    Inside shard_map a gradient must have the type of its argument. A hand-written gradient varies over all axes of all
    arguments. JAX's own differentiation of this function then sums it over the devices that share an argument.
    XLA removes everything here, because the condition never holds.
    """
    never = functools.reduce(jnp.logical_or, (jnp.any(array != array) for array in arrays)) & False
    return tuple(jnp.where(never, jnp.zeros((), array.dtype), array) for array in arrays)
