"""A feed-forward network as one array whose columns are its neurons.

The column of a neuron is its C incoming weights, its bias and its C outgoing weights. So one mask over columns keeps
or shares whole neurons, and one over rows what a feature does to all of them, or gets from them.

Legend: C width, F neurons.
"""

import jax
import jax.numpy as jnp


def split_neurons(neurons: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[..., 2C + 1, F] -> weights in [..., C, F], bias [..., F], weights out [..., C, F]."""
    width = neurons.shape[-2] // 2
    return neurons[..., :width, :], neurons[..., width, :], neurons[..., width + 1 :, :]


def join_neurons(weights_in: jax.Array, bias: jax.Array, weights_out: jax.Array) -> jax.Array:
    """The inverse of `split_neurons`; `weights_out` [..., C, F], the transpose of a second linear's kernel."""
    return jnp.concatenate([weights_in, bias[..., None, :], weights_out], axis=-2)
