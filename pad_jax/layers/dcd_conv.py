"""DCD: a static convolution, scaled by sample, plus a dynamic residual of low rank.

Li et al., "Revisiting Dynamic Convolution via Matrix Decomposition", ICLR 2021, arXiv:2103.08756, sections 3 and 4.

Legend: B batch, S spatial axes, P output positions, C input channels, c of a group, F output channels, f of a group,
g groups, L latent width, D hidden width.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from pad_jax.kernels.geometry import Geometry, pad_by_copying, resolve_geometry
from pad_jax.kernels.numerics import at_least_float32
from pad_jax.kernels.windows import tap_windows
from pad_jax.layers.conv_layer import ConvLayer
from pad_jax.layers.dynamic_convolution import spread_places
from pad_jax.layers.generated_tensor import GeneratedTensor
from pad_jax.layers.plans.convolution import convolve
from pad_jax.layers.routing import EXPAND_LAW, normalize_units, squeeze_space

LEAST_WIDTH = 4
"""Of the hidden layer, the authors' code: a single unit that happens to be dead would leave nothing dynamic."""

# Each group's matrix is a draw by itself. Qᵀ keeps the size of what it is given: the authors' code has a norm behind
# it instead, the paper's equation has none.
INTO_LAW = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', batch_axis=(0,))
FROM_LAW = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal', batch_axis=(0,))


def scale_activation(logits: jax.Array) -> jax.Array:
    """relu6(logits + 3) / 3 in [0, 2], exactly one at zero: what the authors' code has for Λ, the paper nothing."""
    return jnp.clip(logits / 3 + 1, 0, 2)


def keep(logits: jax.Array) -> jax.Array:
    """Φ is linear."""
    return logits


def latent_width(channels: int) -> int:
    """L of one group: the largest whose Φ has no more entries than the group has channels.

    >>> latent_width(64), latent_width(80), latent_width(1)
    (8, 8, 1)
    """
    return max(1, math.isqrt(channels))


def convolve_residual(
    x: jax.Array, into: jax.Array, fusion: jax.Array, out_of: jax.Array, geometry: Geometry, precision=None
) -> jax.Array:
    """y[b] = P·Φ[b]·Qᵀ·x[b] at the centre of every window, group by group; no kernel per sample is made.

    Args:
      x: [B, *S, C].
      into: [g, c, L], Q of every group.
      fusion: [B, g, L, L], Φ of every sample and group; rows make outputs.
      out_of: [g, L, f], the transposed P of every group.
      geometry: of the whole convolution.

    Returns:
      [B, *S', F] of x's dtype.
    """
    (rows,) = tap_windows(x, geometry.center())
    batch, positions, _ = rows.shape
    multiply = partial(_multiply, precision=precision)
    rows = rows.reshape(batch, positions, into.shape[0], into.shape[1])
    latent = multiply(rows, into.astype(x.dtype)[None])
    latent = multiply(latent, jnp.swapaxes(fusion, -1, -2).astype(x.dtype))
    y = multiply(latent, out_of.astype(x.dtype)[None])
    return y.reshape(batch, *geometry.output_size(x.shape[1:-1]), out_of.shape[0] * out_of.shape[2])


def _multiply(rows, matrices, precision):
    """[B, P, g, a] times [B or 1, g, a, d] -> [B, P, g, d] of the rows' dtype."""
    dtype = at_least_float32(rows.dtype)
    groups, inner = rows.shape[2:]
    if inner == 1:
        # As matrix products, depthwise layers would be B·g of them with an inner size of one.
        product = rows.astype(dtype) * matrices[:, None, :, 0].astype(dtype)
    elif groups == 1 and matrices.shape[0] == 1:
        # A group axis of length one would make the product a slow one.
        product = jnp.dot(rows[:, :, 0], matrices[0, 0], precision=precision, preferred_element_type=dtype)[:, :, None]
    elif groups == 1:
        rule, left = 'bpa,bad->bpd', rows[:, :, 0]
        product = jnp.einsum(rule, left, matrices[:, 0], precision=precision, preferred_element_type=dtype)[:, :, None]
    elif matrices.shape[0] == 1:
        rule, right = 'bpga,gad->bpgd', matrices[0]
        product = jnp.einsum(rule, rows, right, precision=precision, preferred_element_type=dtype)
    else:
        product = jnp.einsum('bpga,bgad->bpgd', rows, matrices, precision=precision, preferred_element_type=dtype)
    return product.astype(rows.dtype)


class DCDConv(ConvLayer):
    """y = Λ(x) ⊙ (W0 * x) + P Φ(x) Qᵀ x; called as `flax.linen.Conv`.

    Λ (a scale for each filter) and Φ (an L×L matrix, L = max(1, ⌊√c⌋)) are generated from one hidden layer of
    max(4, C // reduction) units over pooled features, normalised by `normalize_units`. The residual sits on the
    kernel's centre tap, as in the paper's static-plus-fusion form for k×k kernels. Each feature group has a P, Φ and Q
    of its own.

    What is dynamic are the entries of Λ and Φ; partially dynamic, a mask says which are, and the others are shared by
    all samples (see `GeneratedTensor`). W0, P, Q and the bias are ordinary parameters. There are no factors to mix:
    neither K nor a plan, and no temperature, which is ignored.

    Sown into 'intermediates': 'values' by each of `scaling` (Λ) and `fusion` (Φ).

    Attributes:
      reduction: see above.
      ...: see `ConvLayer`.

    >>> layer = DCDConv(features=8, kernel_size=(3, 3), granularity='element')
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 6, 6, 16)))
    >>> y.shape, variables['params']['kernel'].shape, variables['partition']['fusion']['tensor'].shape
    ((2, 6, 6, 8), (3, 3, 16, 8), (1, 4, 4))
    """

    reduction: int = 16

    def _convolve(self, x: jax.Array, temperature: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
        del temperature
        *kernel_size, inner, features = shape
        channels, groups = x.shape[-1], self.feature_group_count
        latent = latent_width(inner)
        kernel = self.param('kernel', self.kernel_init, shape, self.param_dtype)
        into = self.param('into_latent', INTO_LAW, (groups, inner, latent), self.param_dtype)
        out_of = self.param('out_of_latent', FROM_LAW, (groups, latent, features // groups), self.param_dtype)
        bias = self.param('bias', self.bias_init, (features,), self.param_dtype) if self.use_bias else None
        x = self._promote(x, kernel, into, out_of, bias)
        width = max(LEAST_WIDTH, channels // self.reduction)
        squeeze = self.param('squeeze', EXPAND_LAW, (channels, width), self.param_dtype)
        hidden = normalize_units(squeeze_space(x, squeeze))
        generate = partial(
            GeneratedTensor,
            granularity=self.granularity,
            scales=self.scales,
            rest=self.rest,
            param_dtype=self.param_dtype,
        )
        scaling = generate((*(1,) * len(kernel_size), 1, features), 1.0, scale_activation, name='scaling')(hidden)
        fusion = generate((groups, latent, latent), 0.0, keep, name='fusion')(hidden)
        geometry = resolve_geometry(
            x.shape[1:-1], kernel_size, self.strides, self.padding, self.input_dilation, self.kernel_dilation, groups
        )
        x = pad_by_copying(x, self.padding, geometry)
        y = convolve(x, kernel.astype(x.dtype), geometry, self.precision)
        y = y * spread_places(scaling, y.ndim).astype(y.dtype)
        y = y + convolve_residual(x, into, fusion, out_of, geometry, self.precision)
        return y if bias is None else y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + bias.shape)
