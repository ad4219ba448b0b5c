"""Mixing the K kernels by a sample's attention.

Legend: B batch, K kernels, n positions of one kernel.
"""

import jax
import jax.numpy as jnp


def mix_kernels(kernels: jax.Array, attention: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Each sample's own kernel: Σ_k attention[b, k]·kernels[k].

    The sum is taken in float32 at least and rounded once: rounded kernels that nearly cancel would leave
    little but the rounding.

    Args:
      kernels: [K, *shape].
      attention: float[B, K].
      dtype: of the result, usually that of the layer's input.

    Returns:
      [B, *shape].

    >>> mix_kernels(jnp.array([[1., 2.], [3., 6.]]), jnp.array([[.5, .5]]), jnp.float32).tolist()
    [[2.0, 4.0]]
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    mixed = jnp.dot(
        attention.astype(wide),
        kernels.reshape(kernels.shape[0], -1).astype(wide),
        precision=jax.lax.Precision.HIGHEST,
    )
    return mixed.astype(dtype).reshape(attention.shape[0], *kernels.shape[1:])
