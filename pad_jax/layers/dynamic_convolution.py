"""The operator of dynamic convolutions: a convolution whose kernel each sample mixes from K kernels.

Legend: B batch, S spatial axes, C input channels, F output channels, K kernels.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.typing import PrecisionLike

from pad_jax.errors import check_choice
from pad_jax.kernels.geometry import Padding, pad_by_copying, resolve_geometry
from pad_jax.layers.conv_plans import PLAN_NAMES, PLAN_NAMES_BY_PLACE, PLANS, choose_plan


def dynamic_convolution(
    x: jax.Array,
    kernels: jax.Array,
    attention: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: None | int | Sequence[int] = 1,
    padding: Padding = 'SAME',
    input_dilation: None | int | Sequence[int] = 1,
    kernel_dilation: None | int | Sequence[int] = 1,
    feature_group_count: int = 1,
    precision: PrecisionLike = None,
    plan: str = 'auto',
) -> jax.Array:
    """y[b] = convolution of x[b] with Σ_k attention[b, k]·kernels[k], plus Σ_k attention[b, k]·bias[k].

    Args:
      x: [B, *S, C] in the dtype to compute in.
      kernels: [K, *kernel_size, C / groups, F].
      attention: float[B, K], or float[B, K, *kernel_size] with a weight for every place of each kernel.
      bias: [K, F] or None; with weights by place there is none.
      strides, padding, input_dilation, kernel_dilation, feature_group_count, precision: as in
        `flax.linen.Conv`.
      plan: how it is executed, one of PLAN_NAMES; the numbers are the same. 'auto' may take 'fused', which
        has a gradient but no forward derivative: for jax.jvp, jax.jacfwd or jax.linearize name another one,
        such as 'shift' (`conv_plans.PLANS` says which have one).

    Returns:
      [B, *S', F] of x's dtype. A row depends on that row of x and attention alone.

    Raises:
      ValueError: for shapes that do not fit one another, or values that are not one of those.

    >>> x, kernels = jnp.ones((2, 5, 5, 3)), jnp.ones((4, 3, 3, 3, 8))
    >>> dynamic_convolution(x, kernels, jnp.full((2, 4), .25), strides=2).shape
    (2, 3, 3, 8)
    """
    check_choice('plan', plan, PLAN_NAMES)
    kernel_size = kernels.shape[1:-2]
    by_place = attention.ndim > 2
    if x.ndim != len(kernel_size) + 2:
        raise ValueError(f'kernels {kernels.shape} need x with {len(kernel_size) + 2} axes, got {x.shape}')
    if x.shape[-1] != kernels.shape[-2] * feature_group_count or kernels.shape[-1] % feature_group_count:
        raise ValueError(
            f'channels {x.shape[-1]} and features {kernels.shape[-1]} do not fit kernels {kernels.shape} in '
            f'{feature_group_count} feature groups'
        )
    if attention.shape not in ((x.shape[0], kernels.shape[0]), (x.shape[0], kernels.shape[0], *kernel_size)):
        raise ValueError(
            f'attention must be [B, K] = ({x.shape[0]}, {kernels.shape[0]}) for x {x.shape} and kernels '
            f'{kernels.shape}, or [B, K, *kernel_size], got {attention.shape}'
        )
    if by_place:
        check_choice('plan of attention by place', plan, PLAN_NAMES_BY_PLACE)
        if bias is not None:
            raise ValueError('bias is mixed by attention [B, K]: attention by place takes none')
    if bias is not None and bias.shape != (kernels.shape[0], kernels.shape[-1]):
        raise ValueError(
            f'bias must be [K, F] = ({kernels.shape[0]}, {kernels.shape[-1]}) for kernels {kernels.shape}, '
            f'got {bias.shape}'
        )
    geometry = resolve_geometry(
        x.shape[1:-1], kernel_size, strides, padding, input_dilation, kernel_dilation, feature_group_count
    )
    x = pad_by_copying(x, padding, geometry)
    name = choose_plan(x, kernels, geometry, by_place=by_place) if plan == 'auto' else plan
    y = PLANS[name].function(x, kernels, attention, geometry, precision)
    return y if bias is None else add_bias(y, attention, bias)


def add_bias(y: jax.Array, attention: jax.Array, bias: jax.Array) -> jax.Array:
    """y [B, *S', F] plus each sample's Σ_k attention[b, k]·bias[k]."""
    mixed = jnp.dot(attention, bias.astype(attention.dtype), precision=jax.lax.Precision.HIGHEST)
    return y + spread_places(mixed, y.ndim).astype(y.dtype)


def spread_places(vectors: jax.Array, num_axes: int) -> jax.Array:
    """A vector of channels for each sample, [B, *ones, C], as it broadcasts against [B, *S, C] of that many axes."""
    return vectors.reshape(vectors.shape[0], *(1,) * (num_axes - 2), vectors.shape[-1])
