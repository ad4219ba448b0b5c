"""Windows of a convolution as slices, and products with them: the parts of every plan except `outputs`."""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from pad_jax.kernels.geometry import Geometry
from pad_jax.kernels.numerics import at_least_float32


def tap_windows(x: jax.Array, geometry: Geometry) -> list[jax.Array]:
    """Return the values that each tap of the kernel reads, in C order of the kernel's spatial axes.

    Args:
      x: [B, *S, C], any dtype; B may be symbolic.

    Returns:
      One array [B, P, C] for each tap.
    """
    size = geometry.output_size(x.shape[1:-1])
    pads = ((*pad, dilation - 1) for pad, dilation in zip(geometry.padding, geometry.input_dilation))
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    lengths = [max(0, (extent - 1) * stride + 1) for extent, stride in zip(size, geometry.strides)]
    windows = []
    for tap in itertools.product(*map(range, geometry.kernel_size)):
        # Without outputs a tap may lie outside of the input.
        starts = [offset * gap * (length > 0) for offset, gap, length in zip(tap, geometry.kernel_dilation, lengths)]
        stops = [start + length for start, length in zip(starts, lengths)]
        sizes = (0, *starts, 0), (x.shape[0], *stops, x.shape[-1]), (1, *geometry.strides, 1)
        windows.append(lax.slice(padded, *sizes).reshape(x.shape[0], math.prod(size), x.shape[-1]))
    return windows


def unfold(x: jax.Array, geometry: Geometry) -> jax.Array:
    """Put the windows of x side by side: [B, *S, C] -> [B, P, taps·C], ordered by group, tap, channel."""
    windows, groups = tap_windows(x, geometry), geometry.groups
    if groups == 1:
        return jnp.concatenate(windows, axis=-1)
    batch, positions, channels = windows[0].shape
    # All sizes are written out: beside an empty axis, -1 would be ambiguous.
    grouped = [window.reshape(batch, positions, groups, channels // groups) for window in windows]
    return jnp.concatenate(grouped, axis=-1).reshape(batch, positions, len(windows) * channels)


def multiply_groups(rows: jax.Array, kernels: jax.Array, groups: int, precision=None) -> jax.Array:
    """Multiply each sample's rows by the same sample's kernel, group by group.

    Args:
      rows: [B, P, C], channels ordered by group.
      kernels: [B, C / groups, F], outputs ordered by group.

    Returns:
      [B, P, F], at least float32: the caller rounds the sum over channels and taps once.
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
        # A depthwise layer: matrix products would be B · groups products with an inner size of one.
        product = rows.astype(dtype) * kernels.astype(dtype)
    else:
        product = jnp.einsum('bpgc,bcgf->bpgf', rows, kernels, precision=precision, preferred_element_type=dtype)
    return product.reshape(batch, positions, features)
