"""Convolution layers: static, and mixed from K kernels for each sample."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import dtypes
from flax.typing import Dtype, Initializer, PrecisionLike

from pad_jax.errors import check_choice
from pad_jax.kernels.convolution import PLAN_NAMES, PLAN_NAMES_BY_TAP, convolve, convolve_static
from pad_jax.kernels.factors import Factors
from pad_jax.kernels.geometry import Geometry, Padding, pad_by_copying, resolve_geometry
from pad_jax.layers.attention import (
    Attention,
    GeneratedTensor,
    Head,
    normalize_units,
    pool_space,
    squeeze_space,
    squeeze_width,
)
from pad_jax.layers.factors import declare_factors, stack_init
from pad_jax.layers.meshes import on_any_mesh
from pad_jax.partition.masks import GRANULARITIES, SCALES

KERNEL_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
"""N(0, sqrt(2 / (taps · outputs))): the authors' code, for every kernel."""


def _conv_general_dilated(
    x, kernel, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count, precision
):
    """Convolve with the arguments that flax.linen.Conv passes; channels are the last axis."""
    sizes = kernel.shape[:-2], strides, padding, lhs_dilation, rhs_dilation
    geometry = resolve_geometry(x.shape[1:-1], *sizes, feature_group_count)
    return convolve_static(x, kernel, geometry, precision)


class StaticConv(nn.Conv):
    """`flax.linen.Conv` with the call and the initializer of a dynamic layer, and faster on CPU.

    >>> layer = StaticConv(features=8, kernel_size=(3, 3))
    """

    kernel_init: Initializer = KERNEL_INIT
    conv_general_dilated: Any = _conv_general_dilated

    def __call__(self, x: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
        """Map [B, *S, C] to [B, *S', F]; the temperature of dynamic layers is ignored."""
        del temperature
        return super().__call__(x)


class ConvLayer(nn.Module):
    """Base of layers that are called as `flax.linen.Conv`, with a temperature beside the input.

    A subclass implements `convolve`. `MixingConv` does so for kernels that are mixed from K kernels.

    Attributes:
      features ... bias_init: as in `flax.linen.Conv`.
      granularity: None if all positions are dynamic, or one of `partition.masks.GRANULARITIES`.
      scales: which of λd = 2σ(φ) and λs = 2 − λd are used: 'both', 'static', 'dynamic' or 'none'.
      prune: if True, positions that are not dynamic are zero. Otherwise a static parameter is shared by all inputs.

    Raises:
      ValueError: if a field has a value that is not allowed.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: None | int | Sequence[int] = 1
    padding: Padding = 'SAME'
    input_dilation: None | int | Sequence[int] = 1
    kernel_dilation: None | int | Sequence[int] = 1
    feature_group_count: int = 1
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = KERNEL_INIT
    bias_init: Initializer = nn.initializers.zeros_init()
    granularity: str | None = None
    scales: str = 'both'
    prune: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ('features', 'num_kernels', 'reduction', 'feature_group_count'):
            if getattr(self, name, 1) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')
        check_choice('granularity', self.granularity, (None, *GRANULARITIES))
        check_choice('scales', self.scales, SCALES)

    @on_any_mesh
    @nn.compact
    def __call__(self, x: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
        """Map [*batch, *S, C] to [*batch, *S', F], with any number of batch axes.

        Args:
          x: any float dtype; computed in `dtype`, or else in the wider dtype of x and the parameters.
          temperature: > 0, divides the logits of the attention; may be traced. Only a Python number is checked: an
            array's value is unknown while tracing, and an array of 0 gives NaN.
        """
        rank = 1 if isinstance(self.kernel_size, int) else len(self.kernel_size)
        if isinstance(temperature, (int, float)) and not np.float32(temperature) > 0:
            raise ValueError(f'temperature must be above 0, got {temperature}')
        num_batch_axes = x.ndim - rank - 1
        if num_batch_axes < 0:
            raise ValueError(f'kernel_size {self.kernel_size} needs at least {rank + 1} axes, got {x.shape}')
        groups = self.feature_group_count
        if x.shape[-1] % groups or self.features % groups:
            raise ValueError(
                f'feature_group_count must divide channels {x.shape[-1]} and features {self.features}, got {groups}'
            )
        batch_shape = x.shape[:num_batch_axes]
        if num_batch_axes != 1:
            x = x.reshape(math.prod(batch_shape), *x.shape[num_batch_axes:])
        sizes = self.kernel_size, self.strides, self.padding, self.input_dilation, self.kernel_dilation
        y = self.convolve(x, temperature, resolve_geometry(x.shape[1:-1], *sizes, groups))
        return y if num_batch_axes == 1 else y.reshape(*batch_shape, *y.shape[1:])

    def convolve(self, x: jax.Array, temperature: jax.Array | float, geometry: Geometry) -> jax.Array:
        """Map [B, *S, C] to [B, *S', F]; declares the parameters. x is not yet padded by copying."""
        raise NotImplementedError

    def promote(self, x: jax.Array, *parameters: jax.Array | None) -> jax.Array:
        """Cast x to the dtype of the computation."""
        (x,) = dtypes.promote_dtype(x, dtype=dtypes.canonicalize_dtype(x, *parameters, dtype=self.dtype))
        return x

    def declare_generator(self, shape: tuple[int, ...], start: float, name: str, **arguments: Any) -> GeneratedTensor:
        """Make a `GeneratedTensor` that is partially dynamic as this layer is."""
        fields = {field: getattr(self, field) for field in ('granularity', 'scales', 'prune', 'param_dtype')}
        return GeneratedTensor(shape, start, name=name, **fields, **arguments)

    def multiply_adds(self, x_shape, y_shape, count):
        """Return multiply-adds of one example as (dense, masked, compact): a convolution, and the mixing of kernels."""
        products = count_products(self, x_shape, y_shape)
        mixing = (0, count.num_factors * count.positions, count.num_factors * count.dynamic_positions)
        return tuple(products + more for more in mixing)


class MixingConv(ConvLayer):
    """Base of layers whose kernel is mixed from K kernels for each sample.

    A subclass implements `attend`. Compact variables (see `layers.compact`) give the same outputs and gradients.

    Attributes:
      kernel_init: initializer of each of the K kernels, and of the static one.
      num_kernels: K, at least 1.
      plan: one of `kernels.convolution.PLAN_NAMES`. Forward derivatives (jax.jvp) need 'shift' or 'outputs'.
      sums_to_one: True if the attention of a sample sums to one. It is a property of the class.
      ...: see `ConvLayer`.
    """

    num_kernels: int = 4
    plan: str = 'auto'
    sums_to_one = True
    plan_names = PLAN_NAMES

    def __post_init__(self):
        super().__post_init__()
        check_choice('plan', self.plan, self.plan_names)

    def attend(self, x: jax.Array, temperature: jax.Array | float) -> jax.Array:
        """Map [B, *S, C] to the weights [B, K] of the kernels, at least float32; may declare parameters."""
        raise NotImplementedError

    def convolve(self, x: jax.Array, temperature: jax.Array | float, geometry: Geometry) -> jax.Array:
        """Map [B, *S, C] to [B, *S', F] with the kernels that `attend` weighs."""
        kernels, bias = self.declare_kernels(x, geometry)
        x = self.promote(x, kernels.dynamic, bias)
        attention = self.attend(x, temperature)
        self.sow('intermediates', 'routing', attention)
        return add_bias(self.mix(x, kernels, attention, geometry), attention, bias)

    def declare_kernels(self, x: jax.Array, geometry: Geometry) -> tuple[Factors, jax.Array | None]:
        """Declare the kernels [K, *kernel_size, C / groups, F], and the bias [K, F] or None."""
        shape = (*geometry.kernel_size, x.shape[-1] // geometry.groups, self.features)
        draws = stack_init(self.kernel_init), self.kernel_init
        kernels = declare_factors(self, 'kernel', shape, self.num_kernels, *draws, sums_to_one=self.sums_to_one)
        if not self.use_bias:
            return kernels, None
        bias_shape = self.num_kernels, self.features
        return kernels, self.param('bias', stack_init(self.bias_init), bias_shape, self.param_dtype)

    def mix(
        self, x: jax.Array, kernels: Factors, attention: jax.Array, geometry: Geometry, tap_weights=None
    ) -> jax.Array:
        """Convolve [B, *S, C] with the mixture of kernels; see `kernels.convolution.convolve`."""
        if not self.sums_to_one and kernels.mask is not None:
            # The static part is one more kernel, which every sample takes with weight one.
            dynamic, static = kernels.split()
            kernels = Factors(kernels.shape, jnp.concatenate([dynamic, static[None]]))
            attention = jnp.concatenate([attention, jnp.ones_like(attention[:, :1])], axis=1)
        x = pad_by_copying(x, self.padding, geometry)
        return convolve(x, kernels, attention, geometry, self.plan, self.precision, tap_weights)


class DynamicConv(MixingConv):
    """A convolution whose kernel is mixed from K kernels for each sample; called as `flax.linen.Conv`.

    DY-Conv (Chen et al., CVPR 2020, arXiv:1912.03458, section 3); its partially dynamic form: PAD-Net (He et al.,
    ACL 2023, arXiv:2211.05528). With `granularity=None` all positions are dynamic. Otherwise a boolean mask (collection
    'partition', all True at the start) selects dynamic positions. All samples share one static kernel for the others:

        kernel(x) = λd · mask · Σ_k attention_k(x) · kernel_k + λs · (1 − mask) · static_kernel

    The weights of every call are sown into 'intermediates' as 'routing' ([B, K], float32). There is one bias for each
    kernel; biases are mixed in the same way and never masked.

    Attributes:
      reduction: the hidden width of the attention is max(4, C // reduction).
      ...: see `MixingConv` and `ConvLayer`.

    >>> import jax.numpy as jnp
    >>> layer = DynamicConv(features=8, kernel_size=(3, 3), granularity='output')
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 6, 6, 3)), temperature=30.)
    >>> y.shape, variables['params']['kernel'].shape, variables['partition']['kernel_mask'].shape
    ((2, 6, 6, 8), (4, 3, 3, 3, 8), (1, 1, 1, 8))
    """

    reduction: int = 16

    def attend(self, x: jax.Array, temperature: jax.Array | float) -> jax.Array:
        """Return the softmax attention over K kernels."""
        fields = {'reduction': self.reduction, 'param_dtype': self.param_dtype, 'name': 'attention'}
        return Attention(self.num_kernels, **fields)(x, temperature)


class CondConv(MixingConv):
    """CondConv: kernels mixed by weights that each have their own sigmoid; called as `flax.linen.Conv`.

    Yang et al., "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", NeurIPS 2019,
    arXiv:1904.04971, section 3. The weights α(x) = sigmoid(pooled(x) · R + bias) do not sum to one. So every sample
    takes the static part of a partially dynamic kernel with weight one:

        kernel(x) = Σ_k α_k(x) · (λd · mask · kernel_k) + 1 · (λs · (1 − mask) · static_kernel)

    Sown values and biases are those of `DynamicConv`. The temperature is ignored.

    >>> layer = CondConv(features=8, kernel_size=(3, 3), granularity='output')
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 6, 6, 3)))
    >>> y.shape, variables['params']['kernel'].shape
    ((2, 6, 6, 8), (4, 3, 3, 3, 8))
    """

    sums_to_one = False

    def attend(self, x: jax.Array, temperature: jax.Array | float) -> jax.Array:
        """Return a sigmoid for each of K kernels."""
        del temperature
        # Pooled features have all C channels: an initializer that ignores their number would saturate the sigmoids.
        init = nn.initializers.lecun_normal()
        return jax.nn.sigmoid(Head(self.num_kernels, init, self.param_dtype, name='attention')(pool_space(x)))


class ODConv(MixingConv):
    """ODConv: attention over input channels, output filters, taps and kernels; called as `flax.linen.Conv`.

    Li et al., "Omni-Dimensional Dynamic Convolution", ICLR 2022, arXiv:2209.07947, section 3.2.

        y = α_f ⊙ convolution of (α_c ⊙ x) with α_s ⊙ Σ_k α_k · kernel_k

    All four attentions are heads of one hidden layer of max(16, C // reduction) units over pooled features. The weights
    α_k are a softmax(logits / temperature), the others are vectors of sigmoid(logits / temperature). The hidden units
    pass `normalize_units`, in place of the batch norm of the authors' code; the paper's equations have no norm. A
    kernel with one tap has no attention over taps, as in that code. A depthwise convolution has none over filters: it
    would repeat the one over channels.

    A mask splits the kernels as in `DynamicConv`, and another one each vector (see `GeneratedTensor`). A bias is mixed
    by α_k, added last, and never masked. Sown into 'intermediates': 'routing' [B, K], and 'values' by each of
    `channel`, `filter` and `spatial`.

    Attributes:
      reduction: see above.
      plan: as in `MixingConv`, except 'outputs', which cannot weigh taps.
      ...: see `MixingConv` and `ConvLayer`.

    >>> layer = ODConv(features=8, kernel_size=(3, 3), granularity='element')
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 6, 6, 3)), temperature=30.)
    >>> y.shape, sorted(variables['partition'])
    ((2, 6, 6, 8), ['channel', 'filter', 'kernel_mask', 'spatial'])
    """

    reduction: int = 16
    least_width = 16  # as in the authors' code: narrow layers have four heads too
    plan_names = PLAN_NAMES_BY_TAP

    def convolve(self, x: jax.Array, temperature: jax.Array | float, geometry: Geometry) -> jax.Array:
        """Map [B, *S, C] to [B, *S', F] with all four attentions."""
        batch, channels, features = x.shape[0], x.shape[-1], self.features
        sizes, ones = geometry.kernel_size, (1,) * len(geometry.kernel_size)
        kernels, bias = self.declare_kernels(x, geometry)
        x = self.promote(x, kernels.dynamic, bias)
        hidden = normalize_units(squeeze_space(self, x))
        attention = self.attend(hidden, temperature)
        self.sow('intermediates', 'routing', attention)
        # Each vector has the shape in which it broadcasts against the kernel, so that its mask has a granularity.
        by_channel = self.declare_generator((*ones, channels, 1), 0.5, 'channel')(hidden, temperature)
        x = x * by_channel.reshape(batch, *ones, channels).astype(x.dtype)
        tap_weights = None
        if geometry.num_taps > 1:
            tap_weights = self.declare_generator((*sizes, 1, 1), 0.5, 'spatial')(hidden, temperature)
            tap_weights = tap_weights.reshape(batch, *sizes)
        y = self.mix(x, kernels, attention, geometry, tap_weights)
        if not channels == features == geometry.groups:
            by_filter = self.declare_generator((*ones, 1, features), 0.5, 'filter')(hidden, temperature)
            y = y * by_filter.reshape(batch, *ones, features).astype(y.dtype)
        return add_bias(y, attention, bias)

    def attend(self, x: jax.Array, temperature: jax.Array | float) -> jax.Array:
        """Map hidden units [B, width] to the softmax attention over K kernels."""
        logits = Head(self.num_kernels, param_dtype=self.param_dtype, name='attention')(x)
        return jax.nn.softmax(logits / jnp.asarray(temperature, logits.dtype), axis=-1)

    def multiply_adds(self, x_shape, y_shape, count):
        dense, *dynamic = super().multiply_adds(x_shape, y_shape, count)
        return dense, *(products + x_shape[-1] * squeeze_width(self, x_shape[-1]) for products in dynamic)


def add_bias(y: jax.Array, attention: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Add each sample's Σ_k attention[b, k] · bias[k] to y [B, *S', F]; a bias of None adds nothing."""
    if bias is None:
        return y
    mixed = jnp.dot(attention, bias.astype(attention.dtype), precision=jax.lax.Precision.HIGHEST)
    return y + mixed.reshape(y.shape[0], *(1,) * (y.ndim - 2), y.shape[-1]).astype(y.dtype)


def count_products(layer: nn.Module, x_shape: Sequence[int], y_shape: Sequence[int]) -> int:
    """Return the multiply-adds of a convolution with one kernel, a `flax.linen.Conv` or a `ConvLayer`."""
    taps = np.prod(layer.kernel_size, dtype=int)
    return math.prod(y_shape) * int(taps) * (x_shape[-1] // layer.feature_group_count)


CONVS = {'static': StaticConv, 'dynamic': DynamicConv, 'condconv': CondConv, 'odconv': ODConv}
"""Layers that `model.conv` can name; `layers.dcd` adds its own row."""
