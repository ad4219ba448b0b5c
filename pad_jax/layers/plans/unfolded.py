"""Plan `unfolded`: plan `outputs` with its convolution as one matrix product over unfolded windows.

For small feature maps and for feature groups, where XLA's convolutions on CPU, above all their gradients,
take many times as long as the arithmetic.

Legend: B batch, P output positions, T taps, C input channels, c of a group, g groups, F output channels,
f of a group, K kernels.
"""

import jax
import jax.numpy as jnp

from pad_jax.kernels.geometry import Geometry
from pad_jax.kernels.windows import unfold
from pad_jax.layers.plans.mixing import mix_outputs


def convolve_unfolded_once(x: jax.Array, kernel: jax.Array, geometry: Geometry, precision=None) -> jax.Array:
    """A static convolution as one matrix product: [B, *S, C] with [*kernel_size, C, F], no groups -> [B, *S', F]."""
    rows = unfold(x, geometry)
    matrix = kernel.astype(x.dtype).reshape(rows.shape[2], kernel.shape[-1])
    y = jnp.dot(rows.reshape(rows.shape[0] * rows.shape[1], rows.shape[2]), matrix, precision=precision)
    return y.reshape(x.shape[0], *geometry.output_size(x.shape[1:-1]), kernel.shape[-1])


def convolve_unfolded(
    x: jax.Array, kernels: jax.Array, attention: jax.Array, geometry: Geometry, precision=None
) -> jax.Array:
    """Contract of every plan: see `pad_jax.layers.conv_plans`."""
    num_kernels, features = kernels.shape[0], kernels.shape[-1]
    batch, groups = x.shape[0], geometry.groups
    rows = unfold(x, geometry)
    positions, inner = rows.shape[1], rows.shape[2] // groups
    matrices = kernels.reshape(num_kernels, inner, groups, features // groups).astype(x.dtype)
    if groups == 1:
        # [B·P, T·c] times [T·c, K·F]; a group axis of length one would make the product a slow one.
        matrix = jnp.moveaxis(matrices[:, :, 0], 0, 1).reshape(inner, num_kernels * features)
        every = jnp.dot(rows.reshape(batch * positions, inner), matrix, precision=precision)
    else:
        rows = rows.reshape(batch * positions, groups, inner)
        every = jnp.einsum('rgc,kcgf->rgkf', rows, matrices, precision=precision)
    every = every.reshape(batch, positions, groups, num_kernels, features // groups)
    size = geometry.output_size(x.shape[1:-1])
    return mix_outputs(every, attention).reshape(batch, *size, features)
