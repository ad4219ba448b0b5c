"""Attention: what a dynamic layer generates for each sample from its pooled features."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer

from pad_jax.kernels.factors import at_least_float32
from pad_jax.layers.factors import declare_factors

LEAST_SQUARE = 1e-5
"""Added to a mean square before dividing by it, as in norms."""
EXPAND_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
"""N(0, sqrt(2 / n)) for n outputs: the authors' code, for every weight of an attention."""


def init_in_pairs(key: jax.Array, shape: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    """Draw the weights [C, width] of hidden units in pairs of opposite sign, each N(0, sqrt(2 / width)).

    Pooled features are seldom negative, so a unit of random weights is either on or off for all inputs. One unit of
    each pair is on at the start: the attention cannot begin dead.

    >>> weights = init_in_pairs(jax.random.key(0), (3, 4), jnp.float32)
    >>> bool((weights[:, :2] == -weights[:, 2:]).all())
    True
    """
    drawn, half = EXPAND_INIT(key, shape, dtype), -(-shape[1] // 2)
    return jnp.concatenate([drawn[:, :half], -drawn[:, : shape[1] - half]], axis=1)


def pool_space(x: jax.Array) -> jax.Array:
    """Take the mean over space: [B, *S, C] -> [B, C], at least float32."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=at_least_float32(x.dtype))


def squeeze_width(layer: nn.Module, channels: int) -> int:
    """Return the width of the hidden units that all heads of a layer share."""
    return max(layer.least_width, channels // layer.reduction)


def squeeze_space(layer: nn.Module, x: jax.Array) -> jax.Array:
    """Compute the hidden units that all heads of a layer share: relu(mean over space · squeeze).

    Products are tiny and a mixture is as sharp as its logits are exact, so the precision is the highest.

    Args:
      layer: gets the parameter `squeeze` [C, width]; its `reduction` and `least_width` tell the width.
      x: [B, *S, C].

    Returns:
      [B, width], at least float32.
    """
    shape, pooled = (x.shape[-1], squeeze_width(layer, x.shape[-1])), pool_space(x)
    squeeze = layer.param('squeeze', init_in_pairs, shape, layer.param_dtype).astype(pooled.dtype)
    return jax.nn.relu(jnp.dot(pooled, squeeze, precision=jax.lax.Precision.HIGHEST))


def normalize_units(hidden: jax.Array) -> jax.Array:
    """Divide each sample's units by their root mean square: float[B, width] of the same dtype.

    Generated values then do not depend on the scale of the features. Without it, outputs would grow with the square of
    inputs, or the slope of a sigmoid would vanish. The authors of ODConv and DCD have batch norms here;
    this needs no statistics, and no sample depends on another one.

    >>> units = normalize_units(jnp.array([[3., 4., 0., 0.]]))  # divided by sqrt(25 / 4) = 2.5
    >>> [round(float(unit), 2) for unit in units[0]]
    [1.2, 1.6, 0.0, 0.0]
    """
    return hidden * jax.lax.rsqrt(jnp.mean(jnp.square(hidden), axis=-1, keepdims=True) + LEAST_SQUARE)


class Head(nn.Module):
    """Logits of K kernels: features · expand + bias, [B, C] -> [B, K] of the same dtype.

    Attributes:
      num_kernels: K.
      kernel_init: initializer of the weights; the bias starts at zero.
    """

    num_kernels: int
    kernel_init: Initializer = EXPAND_INIT
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        expand = self.param('expand', self.kernel_init, (features.shape[-1], self.num_kernels), self.param_dtype)
        bias = self.param('bias', nn.initializers.zeros_init(), (self.num_kernels,), self.param_dtype)
        expand, bias = expand.astype(features.dtype), bias.astype(features.dtype)
        return jnp.dot(features, expand, precision=jax.lax.Precision.HIGHEST) + bias[None]

    def multiply_adds(self, x_shape, y_shape, count):
        """Return multiply-adds of one example as (dense, masked, compact)."""
        products = math.prod(x_shape) * self.num_kernels
        return 0, products, products


class Attention(Head):
    """Attention of DY-Conv: softmax((relu(pooled · squeeze) · expand + bias) / temperature).

    Chen et al., "Dynamic Convolution: Attention over Convolution Kernels", CVPR 2020, section 3.2.

    Attributes:
      reduction: the hidden width is max(4, C // reduction). The authors' code has at least one unit, which dies in a
        narrow layer; so below 4·reduction channels this attention is wider.
      ...: see `Head`.

    >>> layer = Attention(num_kernels=4)
    >>> weights, variables = layer.init_with_output(jax.random.key(0), jnp.zeros((1, 2, 2, 32)), 30.)
    >>> weights.tolist(), variables['params']['squeeze'].shape
    ([[0.25, 0.25, 0.25, 0.25]], (32, 4))
    """

    reduction: int = 16
    least_width = 4

    @nn.compact
    def __call__(self, x: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
        """Map [B, *S, C] to positive weights [B, K], at least float32, that sum to one.

        The higher the temperature (> 0, may be traced), the nearer each weight is to 1/K.
        """
        logits = super().__call__(squeeze_space(self, x))
        return jax.nn.softmax(logits / jnp.asarray(temperature, logits.dtype), axis=-1)

    def multiply_adds(self, x_shape, y_shape, count):
        products = squeeze_width(self, x_shape[-1]) * (x_shape[-1] + self.num_kernels)
        return 0, products, products


class GeneratedTensor(nn.Module):
    """Tensor of any shape that is generated for each sample: attention vectors and small matrices.

        values(x) = activation((hidden(x) · weights + bias) / temperature)

    The weights `tensor` [width, *shape] are the dynamic factors of every position. With `granularity=None` all
    positions are dynamic. Otherwise a mask tells dynamic positions from static ones, whose value all samples share:

        values(x) = λd · mask · activation(...) + λs · (1 − mask) · static_tensor

    The bias [*shape] is not a dynamic factor: it is counted under other parameters, as a convolution's bias is. The
    activated values [B, *shape], without mask and scales, are sown into 'intermediates' as 'values'.

    Attributes:
      shape: shape of one sample's tensor.
      start: start value of the static tensor; the activation at zero suits.
      activation: function of each entry.
      granularity, scales, prune: see `ConvLayer`.

    >>> layer = GeneratedTensor((1, 4), 0.5, granularity='output')
    >>> values, variables = layer.init_with_output(jax.random.key(0), jnp.zeros((2, 3)))
    >>> values.shape, variables['params']['tensor'].shape, values[0].tolist()
    ((2, 1, 4), (3, 1, 4), [[0.5, 0.5, 0.5, 0.5]])
    """

    shape: tuple[int, ...]
    start: float
    activation: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid
    granularity: str | None = None
    scales: str = 'both'
    prune: bool = False
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
        """Map float[B, width] to [B, *shape] of the same dtype; temperature > 0, may be traced."""
        batch, width = hidden.shape
        record = {'generated': True, 'linear': False, 'start': self.start, 'beside': ('bias',), 'layer': '..'}
        entries = range(1, len(self.shape) + 1)  # drawn as one attention over all of them
        init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal', in_axis=0, out_axis=entries)
        init_static = nn.initializers.constant(self.start)
        factors = declare_factors(self, 'tensor', self.shape, width, init, init_static, **record)
        # Dead at static positions: in compact storage it has dynamic entries only, as the factors do.
        bias = self.param('bias', nn.initializers.zeros_init(), factors.dynamic.shape[1:], self.param_dtype)
        weights = factors.dynamic.astype(hidden.dtype).reshape(width, bias.size)
        logits = jnp.dot(hidden, weights, precision=jax.lax.Precision.HIGHEST)
        logits = logits + bias.astype(hidden.dtype).reshape(1, bias.size)
        values = self.activation(logits / jnp.asarray(temperature, hidden.dtype)).reshape(batch, *bias.shape)
        if factors.index is not None:
            values = factors.put_dynamic(values)
        self.sow('intermediates', 'values', values)
        if factors.static is None:
            return values
        static, scales = factors.static.astype(values.dtype), (factors.dynamic_scale, factors.static_scale)
        dynamic_scale, static_scale = (jnp.asarray(scale, values.dtype) for scale in scales)
        dynamic_part, static_part = dynamic_scale * values, static_scale * static
        if factors.index is not None:
            return dynamic_part + factors.put_static(static_part)[None]
        # If both parts are equal, the gradient of the mask is exactly zero. A rounding error would pass as a score.
        gate = jnp.asarray(factors.mask, values.dtype)[None]
        return static_part[None] + gate * (dynamic_part - static_part[None])

    def multiply_adds(self, x_shape, y_shape, count):
        """Return multiply-adds of one example as (dense, masked, compact)."""
        return 0, count.num_factors * count.positions, count.num_factors * count.dynamic_positions
