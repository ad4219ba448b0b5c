"""Mixing by a sample's attention: the K kernels before a convolution, or its K outputs after it.

Legend: B batch, P output positions, g groups, f output channels of a group, K kernels.
"""

import math

import jax
import jax.numpy as jnp

from pad_jax.kernels.numerics import at_least_float32


def mix_kernels(kernels: jax.Array, attention: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Each sample's own kernel: Σ_k attention[b, k]·kernels[k].

    The sum is taken in float32 at least and rounded once: rounded kernels that nearly cancel would leave
    little but the rounding.

    Args:
      kernels: [K, *shape].
      attention: float[B, K], or float[B, K, *places] with a weight for each of the leading axes of `shape`.
      dtype: of the result, usually that of the layer's input.

    Returns:
      [B, *shape].

    >>> mix_kernels(jnp.array([[1., 2.], [3., 6.]]), jnp.array([[.5, .5]]), jnp.float32).tolist()
    [[2.0, 4.0]]
    """
    wide = at_least_float32(dtype)
    if attention.ndim > 2:
        places = attention.shape[2:]
        mixed = jnp.einsum(
            'bkt,ktn->btn',
            attention.reshape(*attention.shape[:2], math.prod(places)).astype(wide),
            kernels.reshape(kernels.shape[0], math.prod(places), math.prod(kernels.shape[1 + len(places) :])).astype(
                wide
            ),
            precision=jax.lax.Precision.HIGHEST,
        )
        return mixed.astype(dtype).reshape(attention.shape[0], *kernels.shape[1:])
    mixed = jnp.dot(
        attention.astype(wide),
        kernels.reshape(kernels.shape[0], -1).astype(wide),
        precision=jax.lax.Precision.HIGHEST,
    )
    return mixed.astype(dtype).reshape(attention.shape[0], *kernels.shape[1:])


def mix_outputs(every: jax.Array, attention: jax.Array) -> jax.Array:
    """Σ_k attention[b, k]·every[b, ..., k, :], in float32 at least and rounded once.

    Args:
      every: [B, P, g, K, f], the outputs of all kernels.
      attention: float[B, K].

    Returns:
      [B, P, g, f] of the dtype of `every`.
    """
    wide = at_least_float32(every.dtype)
    weights = attention.astype(wide)[:, None, None, :, None]
    # A sum over slices, not a product of matrices: it fuses into one pass over the K outputs.
    mixed = sum(every[:, :, :, k].astype(wide) * weights[:, :, :, k] for k in range(every.shape[3]))
    return mixed.astype(every.dtype)
