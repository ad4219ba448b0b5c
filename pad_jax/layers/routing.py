"""Attention over kernels: which mixture of the K kernels a sample gets.

Legend: B batch, S spatial axes, C input channels, D hidden width, K kernels.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from pad_jax.layers.wide_dtype import at_least_float32


def attend(
    pooled: jax.Array, squeeze: jax.Array, expand: jax.Array, bias: jax.Array, temperature: jax.Array | float
) -> jax.Array:
    """Attention of DY-Conv: softmax((relu(pooled·squeeze)·expand + bias) / temperature).

    Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020, section 3.2.

    Args:
      pooled: float[B, C], the mean over space of each sample.
      squeeze: float[C, D].
      expand: float[D, K].
      bias: float[K].
      temperature: > 0; the higher, the nearer to 1/K each weight is. May be traced.

    Returns:
      float[B, K], at least float32 whatever the inputs are; positive, each row sums to one.

    >>> weights = attend(jnp.ones((1, 3)), jnp.ones((3, 2)), jnp.zeros((2, 4)), jnp.zeros(4), 30.)
    >>> weights.tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """
    dtype = at_least_float32(pooled.dtype)
    pooled, squeeze, expand, bias = (array.astype(dtype) for array in (pooled, squeeze, expand, bias))
    # The highest precision: these products are tiny, and a mixture is as sharp as its logits are exact.
    highest = jax.lax.Precision.HIGHEST
    hidden = jax.nn.relu(jnp.dot(pooled, squeeze, precision=highest))
    logits = jnp.dot(hidden, expand, precision=highest) + bias[None]
    return jax.nn.softmax(logits / jnp.asarray(temperature, dtype), axis=-1)


def squeeze_space(x: jax.Array, squeeze: jax.Array) -> jax.Array:
    """The hidden units that several heads share: relu(mean over space · squeeze), [B, *S, C] and [C, D] -> [B, D].

    At least float32.

    >>> squeeze_space(jnp.ones((1, 2, 2, 3)), jnp.array([[1., -1.]] * 3)).tolist()
    [[3.0, 0.0]]
    """
    pooled = pool_space(x)
    return jax.nn.relu(jnp.dot(pooled, squeeze.astype(pooled.dtype), precision=jax.lax.Precision.HIGHEST))


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


class Attention(nn.Module):
    """The parameters of `attend` around it; its hidden width is max(1, C // reduction).

    Both weights are drawn from N(0, sqrt(2 / n)) with n the features they produce (the hidden width, then
    K), the law of the authors' code; the bias starts at zero.
    """

    num_kernels: int
    reduction: int = 16
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
        """[B, *S, C] -> float[B, K]; temperature > 0, may be traced."""
        features = x.shape[-1]
        width = max(1, features // self.reduction)
        squeeze = self.param('squeeze', EXPAND_LAW, (features, width), self.param_dtype)
        expand = self.param('expand', EXPAND_LAW, (width, self.num_kernels), self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros_init(), (self.num_kernels,), self.param_dtype)
        return attend(pool_space(x), squeeze, expand, bias, temperature)
