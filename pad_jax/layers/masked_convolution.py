"""The operator of convolutions that are partially dynamic by element.

Legend: B batch, S spatial axes, C input channels, c of a group, F output channels, K kernels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.typing import PrecisionLike

from pad_jax.kernels.geometry import Padding, pad_by_copying, resolve_geometry
from pad_jax.layers.conv_plans import PLANS, choose_plan
from pad_jax.layers.dynamic_convolution import add_bias, dynamic_convolution
from pad_jax.layers.plans.fused import convolve_fused
from pad_jax.layers.plans.parts import StaticPart, flatten_taps
from pad_jax.partition.masks import merge, scale_values

MOST_MERGED = 1_000_000
"""Positions of a kernel up to which 'auto' merges before plan `fused`: K small kernels are merged faster once than one
for each sample, large ones would go through memory that is fresh to every step. Between those of benchmarks/conv.py."""
LEAST_SCALE = 1e-9
"""What λd counts as at least where it is divided by: beside λs, which is 2 then, float32 loses a part of that size, and
the square of it, in the quotient's gradient, is finite."""


def masked_convolution(
    x: jax.Array,
    kernels: jax.Array,
    static: jax.Array,
    mask: jax.Array,
    attention: jax.Array,
    bias: jax.Array | None = None,
    *,
    dynamic_scale: jax.Array | float = 1.0,
    static_scale: jax.Array | float = 1.0,
    static_attention: jax.Array | None = None,
    strides: None | int | Sequence[int] = 1,
    padding: Padding = 'SAME',
    input_dilation: None | int | Sequence[int] = 1,
    kernel_dilation: None | int | Sequence[int] = 1,
    feature_group_count: int = 1,
    precision: PrecisionLike = None,
    plan: str = 'auto',
) -> jax.Array:
    """`dynamic_convolution` of `partition.masks.merge(kernels, static, mask, dynamic_scale, static_scale)`.

    For attention whose weights of the K kernels sum to one, at every place to those of the static part. Plan `fused`
    puts each sample's kernel together as it is used, so that neither K merged kernels nor their gradients exist; 'auto'
    does so for large kernels. All others are merged first, and so they are for a mask of floats, whose gradient is that
    of a score.

    Args:
      x: [B, *S, C] in the dtype to compute in.
      kernels: [K, *kernel_size, c, F].
      static: [*kernel_size, c, F].
      mask: bool or float, broadcasts against `static`; True or 1 = dynamic.
      dynamic_scale, static_scale: λd and λs, scalars.
      static_attention: float[B, *kernel_size], what attention by place sums to at each place; None otherwise.
      ...: as for `dynamic_convolution`.

    >>> x, attention = jnp.ones((2, 5, 5, 3)), jnp.full((2, 4), .25)
    >>> kernels, static, mask = jnp.ones((4, 3, 3, 3, 8)), jnp.zeros((3, 3, 3, 8)), jnp.ones((1, 1, 1, 8), bool)
    >>> masked_convolution(x, kernels, static, mask, attention).shape
    (2, 5, 5, 8)
    """
    settings = {
        'strides': strides,
        'padding': padding,
        'input_dilation': input_dilation,
        'kernel_dilation': kernel_dilation,
        'feature_group_count': feature_group_count,
    }
    by_place = attention.ndim > 2
    geometry = resolve_geometry(x.shape[1:-1], kernels.shape[1:-2], *settings.values())
    padded = pad_by_copying(x, padding, geometry)
    name = choose_plan(padded, kernels, geometry, by_place=by_place) if plan == 'auto' else plan
    if mask.dtype != bool or by_place != (static_attention is not None):
        merged = merge(kernels, static, mask, dynamic_scale, static_scale)
        return dynamic_convolution(x, merged, attention, bias, **settings, precision=precision, plan=name)
    # In both forms λd is on the few weights of attention: on the kernels its gradient would be a sum over all their
    # positions.
    if name != 'fused' or (plan == 'auto' and static.size <= MOST_MERGED):
        # As the attention is scaled, so has the static part to be divided.
        divisor = jnp.maximum(dynamic_scale, LEAST_SCALE)
        scaled = attention * jnp.asarray(divisor, attention.dtype)
        values = scale_values(static_scale / divisor, static)
        # Repeated by hand, as in `partition.masks.merge`.
        merged = jnp.where(mask, kernels, jnp.concatenate([values[None]] * kernels.shape[0]))
        y = PLANS[name].function(padded, merged, scaled, geometry, precision)
    else:
        scaled = attention * jnp.asarray(dynamic_scale, attention.dtype)
        values = flatten_taps(scale_values(static_scale, static)[None])[0]
        weights = None if static_attention is None else static_attention.reshape(x.shape[0], geometry.num_taps)
        taps = jnp.broadcast_to(mask, (*geometry.kernel_size, *mask.shape[-2:]))
        part = StaticPart(values, taps.reshape(geometry.num_taps, *mask.shape[-2:]), weights)
        y = convolve_fused(padded, kernels, scaled, geometry, precision, part)
    return y if bias is None else add_bias(y, attention, bias)
