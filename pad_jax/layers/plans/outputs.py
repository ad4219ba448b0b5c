"""Plan `outputs`: one convolution with all K kernels, whose K outputs are then mixed.

Legend: B batch, S spatial axes, C input channels, c of a group, g groups, F output channels, f of a group,
K kernels.
"""

import math

import jax
import jax.numpy as jnp

from pad_jax.kernels.geometry import Geometry
from pad_jax.layers.plans.convolution import convolve
from pad_jax.layers.plans.mixing import mix_outputs


def convolve_outputs(
    x: jax.Array, kernels: jax.Array, attention: jax.Array, geometry: Geometry, precision=None
) -> jax.Array:
    """Contract of every plan: see `pad_jax.layers.conv_plans`."""
    num_kernels, features = kernels.shape[0], kernels.shape[-1]
    groups = geometry.groups
    # [K, *S, c, g·f] -> [*S, c, g·K·f]: the convolution wants the outputs of a group side by side.
    stacked = jnp.moveaxis(kernels.reshape(*kernels.shape[:-1], groups, features // groups), 0, -2)
    stacked = stacked.reshape(*kernels.shape[1:-1], num_kernels * features).astype(x.dtype)
    every = convolve(x, stacked, geometry, precision)
    size = every.shape[1:-1]
    every = every.reshape(x.shape[0], math.prod(size), groups, num_kernels, features // groups)
    return mix_outputs(every, attention).reshape(x.shape[0], *size, features)
