"""Plan `patches`: per-sample kernels, applied as one batched matrix product over unfolded windows.

Legend: B batch, P output positions, T taps, C input channels, c of a group, g groups, F output channels,
K kernels.
"""

import jax
import jax.numpy as jnp

from pad_jax.layers.conv_geometry import Geometry
from pad_jax.layers.plans.mixing import mix_kernels
from pad_jax.layers.plans.windows import multiply_groups, tap_windows


def unfold(x: jax.Array, geometry: Geometry) -> jax.Array:
    """The windows of x side by side: [B, *S, C] -> [B, P, g·T·c], ordered by group, tap, channel."""
    windows = tap_windows(x, geometry)
    if geometry.groups == 1:
        return jnp.concatenate(windows, axis=-1)
    batch, positions, channels = windows[0].shape
    # Sizes written out, here and in all plans: beside an empty axis -1 has no answer.
    inner = channels // geometry.groups
    grouped = [window.reshape(batch, positions, geometry.groups, inner) for window in windows]
    return jnp.concatenate(grouped, axis=-1).reshape(batch, positions, len(windows) * channels)


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
