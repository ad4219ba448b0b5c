"""Plan `grouped`: per-sample kernels as feature groups of one convolution over one sample.

The form that nearly every implementation takes, kept as the baseline that the others are compared with:
it is an order of magnitude slower in XLA, and cannot be exported with a symbolic batch. Never chosen by
`auto`.

Legend: B batch, S spatial axes, C input channels, F output channels, K kernels.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pad_jax.kernels.geometry import Geometry
from pad_jax.layers.plans.convolution import convolve
from pad_jax.layers.plans.mixing import mix_kernels


def convolve_grouped(
    x: jax.Array, kernels: jax.Array, attention: jax.Array, geometry: Geometry, precision=None
) -> jax.Array:
    """Contract of every plan: see `pad_jax.layers.conv_plans`."""
    return convolve_own_grouped(x, mix_kernels(kernels, attention, x.dtype), geometry, precision)


def convolve_own_grouped(x: jax.Array, mixed: jax.Array, geometry: Geometry, precision=None) -> jax.Array:
    """Each sample with its own kernel: mixed [B, *kernel_size, c, F]."""
    batch, features = x.shape[0], mixed.shape[-1]
    if batch == 0:  # no convolution has zero feature groups
        return jnp.zeros((0, *geometry.output_size(x.shape[1:-1]), features), x.dtype)
    side_by_side = jnp.moveaxis(mixed, 0, -2).reshape(*mixed.shape[1:-1], batch * features)
    wide = jnp.moveaxis(x, 0, -2).reshape(1, *x.shape[1:-1], batch * x.shape[-1])
    geometry = dataclasses.replace(geometry, groups=geometry.groups * batch)
    total = convolve(wide, side_by_side, geometry, precision)
    return jnp.moveaxis(total.reshape(*total.shape[1:-1], batch, features), -2, 0)
