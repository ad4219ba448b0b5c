"""The operator of partially dynamic convolutions: a convolution of which whole outputs, inputs or taps are dynamic.

Legend: B batch, S spatial axes, C input channels, c of a group, F output channels, K kernels, T taps, D dynamic of N
outputs, inputs or taps.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax.typing import PrecisionLike

from pad_jax.layers.choices import check_choice
from pad_jax.layers.conv_geometry import Padding
from pad_jax.layers.dynamic_columns import put_columns, split_columns
from pad_jax.layers.dynamic_convolution import add_bias, dynamic_convolution

# Which axis of a kernel [..., C, F], or with its taps in one [T, C, F], the dynamic and the static entries share out.
STRUCTURED_AXES = {'output': -1, 'input': -2, 'spatial': -3, 'layer': -1}


def partial_convolution(
    x: jax.Array,
    kernels: jax.Array,
    static: jax.Array,
    attention: jax.Array,
    dynamic: jax.Array,
    bias: jax.Array | None = None,
    *,
    granularity: str,
    kernel_size: Sequence[int],
    static_attention: jax.Array | None = None,
    strides: None | int | Sequence[int] = 1,
    padding: Padding = 'SAME',
    input_dilation: None | int | Sequence[int] = 1,
    kernel_dilation: None | int | Sequence[int] = 1,
    feature_group_count: int = 1,
    precision: PrecisionLike = None,
    plan: str = 'auto',
) -> jax.Array:
    """`dynamic_convolution` with Σ_k attention[b, k]·kernels[k] where the kernel is dynamic, and `static` where not.

    The static part is taken once, whatever the attention of a sample sums to.

    Args:
      x: [B, *S, C] in the dtype to compute in.
      kernels: the dynamic entries alone. Where outputs are dynamic, or the whole layer, [K, *kernel_size, c, D]; where
        inputs are [K, *kernel_size, D, F]; where taps are [K, D, c, F], taps in C order of the kernel's spatial axes.
      static: the others: [*kernel_size, c, F − D], [*kernel_size, c − D, F] or [T − D, c, F].
      attention: float[B, K], or float[B, K, *kernel_size] with a weight for every place of each kernel.
      dynamic: int32[D], ascending: which outputs, inputs of a feature group, or taps are dynamic; may be traced.
      bias: [K, F], mixed by attention, or None; with weights by place there is none.
      granularity: one of STRUCTURED_AXES.
      kernel_size: spatial shape of the whole kernel.
      static_attention: float[B, *kernel_size], a weight for every place of the static entries, or None: all are one.
      strides, padding, input_dilation, kernel_dilation, feature_group_count, precision: as in `flax.linen.Conv`.
      plan: how it is executed, one of `conv_plans.PLAN_NAMES`.

    Returns:
      [B, *S', F] of x's dtype.

    Raises:
      ValueError: for shapes that do not fit one another, or values that are not one of those.

    >>> x, attention = jnp.ones((2, 5, 5, 3)), jnp.full((2, 4), .25)
    >>> kernels, static = jnp.ones((4, 3, 3, 3, 2)), jnp.ones((3, 3, 3, 6))
    >>> y = partial_convolution(
    ...     x, kernels, static, attention, jnp.array([1, 4]), granularity='output', kernel_size=(3, 3)
    ... )
    >>> y.shape
    (2, 5, 5, 8)
    """
    check_choice('granularity', granularity, tuple(STRUCTURED_AXES))
    kernel_size = tuple(kernel_size)
    axis = STRUCTURED_AXES[granularity]
    num_dynamic = kernels.shape[axis]
    if dynamic.shape != (num_dynamic,):
        raise ValueError(
            f'dynamic must be [D] = ({num_dynamic},) for kernels {kernels.shape} of granularity {granularity!r}, '
            f'got {dynamic.shape}'
        )
    settings = {
        'strides': strides,
        'padding': padding,
        'input_dilation': input_dilation,
        'kernel_dilation': kernel_dilation,
        'feature_group_count': feature_group_count,
        'precision': precision,
        'plan': plan,
    }
    chosen, others = split_columns(dynamic, num_dynamic + static.shape[axis])
    together = jnp.concatenate([_put(kernels, chosen, axis), _put(static, others, axis)[None]])
    together = together.reshape(together.shape[0], *kernel_size, *together.shape[-2:])
    weights = attention
    if static_attention is None:
        ones = jnp.ones((attention.shape[0], 1, *attention.shape[2:]), attention.dtype)
        weights = jnp.concatenate([weights, ones], axis=1)
    else:
        if attention.ndim == 2:
            weights = jnp.broadcast_to(
                attention.reshape(*attention.shape, *(1,) * len(kernel_size)), (*attention.shape, *kernel_size)
            )
        weights = jnp.concatenate([weights, static_attention[:, None].astype(attention.dtype)], axis=1)
    y = dynamic_convolution(x, together, weights, **settings)
    return y if bias is None else add_bias(y, attention, bias)


def _put(values, columns, axis):
    """Entries where they belong along -1, -2 or -3, zero elsewhere."""
    if axis == -3:
        rows = values.reshape(*values.shape[:-2], math.prod(values.shape[-2:]))
        return put_columns(rows, columns, -2).reshape(*values.shape[:-3], columns.slots.shape[0], *values.shape[-2:])
    return put_columns(values, columns, axis)
