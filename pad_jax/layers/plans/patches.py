"""Plan `patches`: per-sample kernels, applied as one batched matrix product over unfolded windows.

Legend: B batch, P output positions, T taps, C input channels, c of a group, g groups, F output channels,
K kernels.
"""

import jax

from pad_jax.kernels.geometry import Geometry
from pad_jax.kernels.windows import multiply_groups, unfold
from pad_jax.layers.plans.mixing import mix_kernels


def convolve_patches(
    x: jax.Array, kernels: jax.Array, attention: jax.Array, geometry: Geometry, precision=None
) -> jax.Array:
    """Contract of every plan: see `pad_jax.layers.conv_plans`."""
    return convolve_own_patches(x, mix_kernels(kernels, attention, x.dtype), geometry, precision)


def convolve_own_patches(x: jax.Array, mixed: jax.Array, geometry: Geometry, precision=None) -> jax.Array:
    """Each sample with its own kernel: mixed [B, *kernel_size, c, F]."""
    inner, features = mixed.shape[-2:]
    mixed = mixed.reshape(x.shape[0], geometry.num_taps * inner, features)
    total = multiply_groups(unfold(x, geometry), mixed, geometry.groups, precision)
    return total.astype(x.dtype).reshape(x.shape[0], *geometry.output_size(x.shape[1:-1]), features)
