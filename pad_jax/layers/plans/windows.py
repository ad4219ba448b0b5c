"""The windows of a convolution as slices: what every plan without a convolution is made of.

Legend: B batch, S spatial axes, P output positions (all spatial axes in one), T taps of the kernel,
C input channels, c input channels of a group, F output channels.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from pad_jax.layers.conv_geometry import Geometry
from pad_jax.layers.wide_dtype import at_least_float32


def tap_windows(x: jax.Array, geometry: Geometry) -> list[jax.Array]:
    """What each tap of the kernel sees, in the order of the kernel's flattened spatial axes.

    Args:
      x: [B, *S, C], any dtype; B may be symbolic.

    Returns:
      T arrays [B, P, C].
    """
    size = geometry.output_size(x.shape[1:-1])
    padded = _pad(x, geometry)
    windows = []
    for tap in itertools.product(*(range(extent) for extent in geometry.kernel_size)):
        window = padded
        for axis, offset in enumerate(tap):
            start = offset * geometry.kernel_dilation[axis]
            stride = geometry.strides[axis]
            stop = start + max(0, (size[axis] - 1) * stride + 1)
            if size[axis] == 0:
                start = stop = 0
            window = lax.slice_in_dim(window, start, stop, stride, axis=axis + 1)
        windows.append(window.reshape(x.shape[0], math.prod(size), x.shape[-1]))
    return windows


def some_windows(x: jax.Array, geometry: Geometry, taps: jax.Array) -> jax.Array:
    """What some taps see, as the channels of an input of one kernel place.

    Args:
      x: [B, *S, C], any dtype; B may be symbolic.
      taps: int32[D], which taps; may be traced.

    Returns:
      [B, P, g·D·c], ordered by group, tap, channel.
    """
    size, rank = geometry.output_size(x.shape[1:-1]), geometry.num_spatial_axes
    padded = _pad(x, geometry)
    # Zeros behind it, so that a window of as many values as its stride skips never begins later than asked.
    lengths = [extent * stride for extent, stride in zip(size, geometry.strides)]
    padded = jnp.pad(padded, [(0, 0), *((0, stride) for stride in geometry.strides), (0, 0)])
    inner = x.shape[-1] // geometry.groups
    rest = taps
    offsets = []
    for axis in reversed(range(rank)):
        offsets.append(rest % geometry.kernel_size[axis] * geometry.kernel_dilation[axis])
        rest = rest // geometry.kernel_size[axis]
    offsets = jnp.stack([*reversed(offsets)])
    windows = []
    for number in range(taps.shape[0]):
        window = padded
        for axis in range(rank):
            window = lax.dynamic_slice_in_dim(window, offsets[axis, number], lengths[axis], axis + 1)
            window = lax.slice_in_dim(window, 0, lengths[axis], geometry.strides[axis], axis + 1)
        windows.append(window.reshape(x.shape[0], math.prod(size), geometry.groups, inner))
    together = jnp.concatenate(windows, axis=-1)
    return together.reshape(x.shape[0], math.prod(size), geometry.groups * taps.shape[0] * inner)


def multiply_groups(rows: jax.Array, kernels: jax.Array, groups: int, precision=None) -> jax.Array:
    """Multiplies each sample's rows by the same sample's kernel, group by group.

    Args:
      rows: [B, P, C], channels ordered by group.
      kernels: [B, c, F] with c = C / groups, outputs ordered by group.

    Returns:
      [B, P, F], at least float32: the sum over channels and taps is rounded once, by the caller.
    """
    dtype = at_least_float32(rows.dtype)
    batch, positions, channels = rows.shape
    features = kernels.shape[-1]
    if groups == 1:
        return jnp.einsum('bpc,bcf->bpf', rows, kernels, precision=precision, preferred_element_type=dtype)
    inner, outer = channels // groups, features // groups
    rows = rows.reshape(batch, positions, groups, inner)
    kernels = kernels.reshape(batch, inner, groups, outer)
    if inner == 1:
        # Depthwise: as matrix products these would be B·groups products of inner size one.
        product = rows.astype(dtype) * kernels.astype(dtype)
    else:
        product = jnp.einsum('bpgc,bcgf->bpgf', rows, kernels, precision=precision, preferred_element_type=dtype)
    return product.reshape(batch, positions, features)


def _pad(x, geometry):
    zero = jnp.zeros((), x.dtype)
    inner = ((pad[0], pad[1], dilation - 1) for pad, dilation in zip(geometry.padding, geometry.input_dilation))
    return lax.pad(x, zero, [(0, 0, 0), *inner, (0, 0, 0)])
