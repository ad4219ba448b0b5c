"""Plan `shift`: per-sample kernels, applied as one batched matrix product a tap of the kernel.

Legend: B batch, S spatial axes, P output positions, C input channels, c of a group, F output channels,
K kernels, T taps.
"""

import jax

from pad_jax.kernels.geometry import Geometry
from pad_jax.kernels.windows import multiply_groups, tap_windows
from pad_jax.layers.plans.mixing import mix_kernels


def convolve_shifted(
    x: jax.Array, kernels: jax.Array, attention: jax.Array, geometry: Geometry, precision=None
) -> jax.Array:
    """Contract of every plan: see `pad_jax.layers.conv_plans`."""
    inner, features = kernels.shape[-2:]
    taps = kernels.reshape(kernels.shape[0], geometry.num_taps, inner, features)
    total = None
    by_place = attention.ndim > 2
    if by_place:
        attention = attention.reshape(*attention.shape[:2], geometry.num_taps)
    for tap, rows in enumerate(tap_windows(x, geometry)):
        # Mixed tap by tap: B kernels in full are B·n numbers, and each tap is needed only once.
        mixed = mix_kernels(taps[:, tap], attention[:, :, tap] if by_place else attention, x.dtype)
        product = multiply_groups(rows, mixed, geometry.groups, precision)
        total = product if total is None else total + product
    return total.astype(x.dtype).reshape(x.shape[0], *geometry.output_size(x.shape[1:-1]), features)


def convolve_own_shifted(x: jax.Array, mixed: jax.Array, geometry: Geometry, precision=None) -> jax.Array:
    """Each sample with its own kernel: mixed [B, *kernel_size, c, F]."""
    inner, features = mixed.shape[-2:]
    taps = mixed.reshape(x.shape[0], geometry.num_taps, inner, features)
    windows = tap_windows(x, geometry)
    total = sum(multiply_groups(rows, taps[:, tap], geometry.groups, precision) for tap, rows in enumerate(windows))
    return total.astype(x.dtype).reshape(x.shape[0], *geometry.output_size(x.shape[1:-1]), features)
