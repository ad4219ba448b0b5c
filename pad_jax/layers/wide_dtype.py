"""The dtype that sums are taken in."""

import jax.numpy as jnp


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """float32, or the dtype itself where it is a wider float.

    Not jnp.promote_types: that refuses bfloat16 with float32 under jax.numpy_dtype_promotion('strict').

    >>> at_least_float32(jnp.bfloat16), at_least_float32(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    dtype = jnp.dtype(dtype)
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return dtype if wide else jnp.dtype('float32')
