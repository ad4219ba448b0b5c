"""DCD: a static convolution, scaled for each sample, plus a dynamic residual of low rank.

Li et al., "Revisiting Dynamic Convolution via Matrix Decomposition", ICLR 2021, arXiv:2103.08756, sections 3 and 4.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from pad_jax.kernels.convolution import convolve_static
from pad_jax.kernels.factors import at_least_float32
from pad_jax.kernels.geometry import Geometry, pad_by_copying
from pad_jax.kernels.plans import tap_windows
from pad_jax.layers.attention import normalize_units, squeeze_space, squeeze_width
from pad_jax.layers.conv import CONVS, ConvLayer, count_products

# Each group's matrix is its own draw. Qᵀ keeps the size of its input: the authors' code has a norm behind it instead,
# the paper's equation has none.
INTO_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', batch_axis=(0,))
FROM_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal', batch_axis=(0,))


class DCDConv(ConvLayer):
    """y = Λ(x) ⊙ (W0 * x) + P Φ(x) Qᵀ x; called as `flax.linen.Conv`.

    Λ is a scale for each filter, Φ a latent × latent matrix. Both are generated from one hidden layer of
    max(4, C // reduction) units over pooled features. The units pass `normalize_units`. The residual sits on the
    centre tap, as in the paper's static-plus-fusion form for k×k kernels. Each feature group has its own P, Φ and Q.

    Dynamic are the entries of Λ and Φ; a mask selects them (see `GeneratedTensor`). W0, P, Q and the bias are ordinary
    parameters. Without kernels to mix there is neither K nor a plan, and the temperature is ignored. Sown into
    'intermediates': 'values' by each of `scaling` (Λ) and `fusion` (Φ).

    Attributes:
      reduction: see above.
      ...: see `ConvLayer`.

    >>> layer = DCDConv(features=8, kernel_size=(3, 3), granularity='element')
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 6, 6, 16)))
    >>> y.shape, variables['params']['kernel'].shape, variables['partition']['fusion']['tensor_mask'].shape
    ((2, 6, 6, 8), (3, 3, 16, 8), (1, 4, 4))
    """

    reduction: int = 16
    least_width = 4  # as in the authors' code: a single dead unit would be all there is

    def convolve(self, x: jax.Array, temperature: jax.Array | float, geometry: Geometry) -> jax.Array:
        """Map [B, *S, C] to [B, *S', F]."""
        del temperature
        channels, groups, features = x.shape[-1], geometry.groups, self.features
        inner, latent, ones = channels // groups, latent_width(channels // groups), (1,) * len(geometry.kernel_size)
        kernel = self.param('kernel', self.kernel_init, (*geometry.kernel_size, inner, features), self.param_dtype)
        into = self.param('into_latent', INTO_INIT, (groups, inner, latent), self.param_dtype)
        out_of = self.param('out_of_latent', FROM_INIT, (groups, latent, features // groups), self.param_dtype)
        bias = self.param('bias', self.bias_init, (features,), self.param_dtype) if self.use_bias else None
        x = self.promote(x, kernel, into, out_of, bias)
        hidden = normalize_units(squeeze_space(self, x))
        generate = self.declare_generator
        scaling = generate((*ones, 1, features), 1.0, 'scaling', activation=scale_activation)(hidden)
        fusion = generate((groups, latent, latent), 0.0, 'fusion', activation=lambda logits: logits)(hidden)
        x = pad_by_copying(x, self.padding, geometry)
        y = convolve_static(x, kernel, geometry, self.precision)
        y = y * scaling.reshape(y.shape[0], *ones, features).astype(y.dtype)
        y = y + convolve_residual(x, into, fusion, out_of, geometry, self.precision)
        return y if bias is None else y + bias.astype(y.dtype).reshape(1, *ones, features)

    def multiply_adds(self, x_shape, y_shape, count):
        groups = self.feature_group_count
        channels, features = x_shape[-1] // groups, y_shape[-1] // groups
        latent = latent_width(channels)
        residual = math.prod(y_shape[:-1]) * groups * latent * (channels + latent + features)
        dense = count_products(self, x_shape, y_shape)
        dynamic = dense + residual + x_shape[-1] * squeeze_width(self, x_shape[-1])
        return dense, dynamic, dynamic


def latent_width(channels: int) -> int:
    """Return the latent width of a group: the largest whose Φ has no more entries than the group has channels.

    >>> latent_width(64), latent_width(80), latent_width(1)
    (8, 8, 1)
    """
    return max(1, math.isqrt(channels))


def scale_activation(logits: jax.Array) -> jax.Array:
    """Return relu6(logits + 3) / 3 in [0, 2], exactly one at zero: the authors' code for Λ; the paper has nothing."""
    return jnp.clip(logits / 3 + 1, 0, 2)


def convolve_residual(
    x: jax.Array, into: jax.Array, fusion: jax.Array, out_of: jax.Array, geometry: Geometry, precision=None
) -> jax.Array:
    """Compute P Φ[b] Qᵀ x[b] at the centre of every window, without a kernel for each sample.

    Args:
      x: [B, *S, C].
      into: [G, C / G, latent], Q of every group.
      fusion: [B, G, latent, latent], Φ of every sample and group; rows make outputs.
      out_of: [G, latent, F / G], the transposed P of every group.
      geometry: of the whole convolution.

    Returns:
      [B, *S', F] of x's dtype.
    """
    (rows,) = tap_windows(x, geometry.center())
    batch, positions, _ = rows.shape
    rows = rows.reshape(batch, positions, into.shape[0], into.shape[1])
    latent = _multiply(rows, into.astype(x.dtype)[None], precision)
    latent = _multiply(latent, jnp.swapaxes(fusion, -1, -2).astype(x.dtype), precision)
    y = _multiply(latent, out_of.astype(x.dtype)[None], precision)
    return y.reshape(batch, *geometry.output_size(x.shape[1:-1]), out_of.shape[0] * out_of.shape[2])


def _multiply(rows, matrices, precision):
    """[B, P, G, a] times [B or 1, G, a, d] -> [B, P, G, d] of the rows' dtype.

    Axes of length one are left out of the product: XLA on CPU takes many times as long for batched products.
    """
    dtype = at_least_float32(rows.dtype)
    if rows.shape[3] == 1:  # depthwise: B · G products with an inner size of one
        return (rows.astype(dtype) * matrices[:, None, :, 0].astype(dtype)).astype(rows.dtype)
    group, sample = 'g' * (rows.shape[2] != 1), 'b' * (matrices.shape[0] != 1)
    left = rows if group else rows[:, :, 0]
    right = matrices if group else matrices[:, 0]
    rule = f'bp{group}a,{sample}{group}ad->bp{group}d'
    product = jnp.einsum(rule, left, right if sample else right[0], precision=precision, preferred_element_type=dtype)
    return (product if group else product[:, :, None]).astype(rows.dtype)


CONVS['dcd'] = DCDConv
