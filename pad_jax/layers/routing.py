"""Attention over kernels: which mixture of the K kernels a sample gets.

Legend: B batch, S spatial axes, C input channels, D hidden width, K kernels.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from pad_jax.kernels.numerics import at_least_float32

LEAST_SQUARE = 1e-5
"""Added to a mean square that is divided by, as in norms."""


def squeeze_space(x: jax.Array, squeeze: jax.Array) -> jax.Array:
    """The hidden units that several heads share: relu(mean over space · squeeze), [B, *S, C] and [C, D] -> [B, D].

    At least float32, at the highest precision: these products are tiny, and a mixture is as sharp as its logits are
    exact.

    >>> squeeze_space(jnp.ones((1, 2, 2, 3)), jnp.array([[1., -1.]] * 3)).tolist()
    [[3.0, 0.0]]
    """
    pooled = pool_space(x)
    return jax.nn.relu(jnp.dot(pooled, squeeze.astype(pooled.dtype), precision=jax.lax.Precision.HIGHEST))


def normalize_units(hidden: jax.Array) -> jax.Array:
    """Each sample's units divided by their root mean square: float[B, D] of the same dtype.

    What is generated from them is then as large for features of any size. Without, a layer's outputs would grow with
    the square of its inputs, or a sigmoid's slope vanish, and training at the learning rates of a static network fails.
    The authors of ODConv and DCD have batch norms in such places; this needs no statistics, and leaves a sample alone.

    >>> units = normalize_units(jnp.array([[3., 4., 0., 0.]]))  # divided by sqrt(25 / 4) = 2.5
    >>> [round(float(unit), 2) for unit in units[0]]
    [1.2, 1.6, 0.0, 0.0]
    """
    return hidden * jax.lax.rsqrt(jnp.mean(jnp.square(hidden), axis=-1, keepdims=True) + LEAST_SQUARE)


def pool_space(x: jax.Array) -> jax.Array:
    """Mean over space: [B, *S, C] -> [B, C], at least float32."""
    dtype = at_least_float32(x.dtype)
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=dtype)


EXPAND_LAW = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
"""N(0, sqrt(2 / n)) with n the features that are produced: the authors' code, of every weight of an attention."""


class Head(nn.Module):
    """Logits of K kernels from features: features·expand + bias, [B, D] -> [B, K] of their dtype.

    Attributes:
      num_kernels: K.
      law: draws the weights; the bias starts at zero.
    """

    num_kernels: int
    law: Initializer = EXPAND_LAW
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        expand = self.param('expand', self.law, (features.shape[-1], self.num_kernels), self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros_init(), (self.num_kernels,), self.param_dtype)
        expand, bias = expand.astype(features.dtype), bias.astype(features.dtype)
        return jnp.dot(features, expand, precision=jax.lax.Precision.HIGHEST) + bias[None]


class Attention(Head):
    """Attention of DY-Conv over features at every place: softmax((relu(pooled·squeeze)·expand + bias) / temperature).

    Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020, section 3.2.

    Attributes:
      reduction: the hidden width is max(1, C // reduction).
      ...: see `Head`.

    >>> layer = Attention(num_kernels=4)
    >>> weights, variables = layer.init_with_output(jax.random.key(0), jnp.zeros((1, 2, 2, 32)), 30.)
    >>> weights.tolist(), variables['params']['squeeze'].shape
    ([[0.25, 0.25, 0.25, 0.25]], (32, 2))
    """

    reduction: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
        """[B, *S, C] -> [B, K], at least float32; positive, each row sums to one.

        The higher the temperature (> 0, may be traced), the nearer to 1/K each weight is.
        """
        channels = x.shape[-1]
        width = max(1, channels // self.reduction)
        squeeze = self.param('squeeze', EXPAND_LAW, (channels, width), self.param_dtype)
        logits = super().__call__(squeeze_space(x, squeeze))
        return jax.nn.softmax(logits / jnp.asarray(temperature, logits.dtype), axis=-1)
