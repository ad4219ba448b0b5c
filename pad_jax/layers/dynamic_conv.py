"""Dynamic convolution, fully or partially dynamic.

DY-Conv (Chen et al., CVPR 2020, arXiv:1912.03458, section 3); its partially dynamic form: PAD-Net (He et
al., ACL 2023, arXiv:2211.05528).

Legend: B batch, S spatial axes, C input channels, F output channels, K kernels.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from flax.typing import Dtype, Initializer, PrecisionLike

from pad_jax.layers.conv_geometry import Padding, pad_by_copying, resolve_geometry
from pad_jax.layers.conv_plans import PLAN_NAMES, PLANS, choose_plan
from pad_jax.layers.routing import Attention
from pad_jax.layers.static_conv import KERNEL_LAW
from pad_jax.partition.masks import GRANULARITIES, SCALES, mask_shape, merge, scale_factors


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
      attention: float[B, K].
      bias: [K, F] or None.
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
    _check_choice('plan', plan, PLAN_NAMES)
    kernel_size = kernels.shape[1:-2]
    if x.ndim != len(kernel_size) + 2:
        raise ValueError(f'kernels {kernels.shape} need x with {len(kernel_size) + 2} axes, got {x.shape}')
    if x.shape[-1] != kernels.shape[-2] * feature_group_count or kernels.shape[-1] % feature_group_count:
        raise ValueError(
            f'channels {x.shape[-1]} and features {kernels.shape[-1]} do not fit kernels {kernels.shape} in '
            f'{feature_group_count} feature groups'
        )
    if attention.shape != (x.shape[0], kernels.shape[0]):
        raise ValueError(
            f'attention must be [B, K] = ({x.shape[0]}, {kernels.shape[0]}) for x {x.shape} and kernels '
            f'{kernels.shape}, got {attention.shape}'
        )
    if bias is not None and bias.shape != (kernels.shape[0], kernels.shape[-1]):
        raise ValueError(
            f'bias must be [K, F] = ({kernels.shape[0]}, {kernels.shape[-1]}) for kernels {kernels.shape}, '
            f'got {bias.shape}'
        )
    geometry = resolve_geometry(
        x.shape[1:-1], kernel_size, strides, padding, input_dilation, kernel_dilation, feature_group_count
    )
    x = pad_by_copying(x, padding, geometry.kernel_size, geometry.kernel_dilation)
    name = choose_plan(x, kernels, geometry) if plan == 'auto' else plan
    y = PLANS[name].function(x, kernels, attention, geometry, precision)
    if bias is not None:
        mixed = jnp.dot(attention, bias.astype(attention.dtype), precision=jax.lax.Precision.HIGHEST)
        y = y + mixed.astype(y.dtype).reshape(mixed.shape[0], *(1,) * len(kernel_size), mixed.shape[1])
    return y


class DynamicConv(nn.Module):
    """A convolution whose kernel is mixed from K kernels for each sample; called as `flax.linen.Conv`.

    With `granularity=None` all of it is dynamic. Otherwise a boolean mask (collection 'partition', all True
    at the start, of the granularity's shape) says which positions of the kernel are; the rest comes from
    one static kernel that all samples share:

        kernel(x) = λd·mask·Σ_k attention_k(x)·kernel_k + λs·(1 − mask)·static_kernel

    The routing weights of every call are sown as 'routing' ([B, K], float32) into 'intermediates'.

    Attributes:
      features ... bias_init: as in `flax.linen.Conv`; `kernel_init` draws each of the K kernels, and the
        static one, by itself.
      num_kernels: K, at least 1.
      reduction: the attention's hidden width is max(1, C // reduction).
      granularity: None, or one of `partition.masks.GRANULARITIES`.
      scales: which of λd = 2σ(φ) and λs = 2 − λd are used: 'both', 'static', 'dynamic' or 'none'.
      plan: how it is executed; one of `conv_plans.PLAN_NAMES`. Forward derivatives (jax.jvp) need one that has
        them, such as 'shift': see `dynamic_convolution`.

    Raises:
      ValueError: where a value is not one of those.

    >>> layer = DynamicConv(features=8, kernel_size=(3, 3), granularity='output')
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 6, 6, 3)), temperature=30.)
    >>> y.shape, variables['params']['kernel'].shape, variables['partition']['kernel'].shape
    ((2, 6, 6, 8), (4, 3, 3, 3, 8), (1, 1, 1, 8))
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
    kernel_init: Initializer = KERNEL_LAW
    bias_init: Initializer = nn.initializers.zeros_init()
    num_kernels: int = 4
    reduction: int = 16
    granularity: str | None = None
    scales: str = 'both'
    plan: str = 'auto'

    def __post_init__(self):
        super().__post_init__()
        for name in ('features', 'num_kernels', 'reduction', 'feature_group_count'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')
        _check_choice('granularity', self.granularity, (None, *GRANULARITIES))
        _check_choice('scales', self.scales, SCALES)
        _check_choice('plan', self.plan, PLAN_NAMES)

    @nn.compact
    def __call__(self, x: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
        """[*batch, *S, C] -> [*batch, *S', F]: any number of batch axes, none included.

        Args:
          x: any float dtype; computed in `dtype`, else in the wider one of x's and the parameters'.
          temperature: > 0, of the attention's softmax; may be traced. Only a Python number is checked: an
            array's value is unknown while tracing, and an array of 0 gives NaN.
        """
        kernel_size = (self.kernel_size,) if isinstance(self.kernel_size, int) else tuple(self.kernel_size)
        if isinstance(temperature, (int, float)) and not temperature > 0:
            raise ValueError(f'temperature must be above 0, got {temperature}')
        num_batch_axes = x.ndim - len(kernel_size) - 1
        if num_batch_axes < 0:
            raise ValueError(f'kernel_size {kernel_size} needs at least {len(kernel_size) + 1} axes, got {x.shape}')
        if x.shape[-1] % self.feature_group_count or self.features % self.feature_group_count:
            raise ValueError(
                f'feature_group_count must divide channels {x.shape[-1]} and features {self.features}, '
                f'got {self.feature_group_count}'
            )
        batch_shape = x.shape[:num_batch_axes]
        if num_batch_axes != 1:
            x = x.reshape(math.prod(batch_shape), *x.shape[num_batch_axes:])
        shape = (*kernel_size, x.shape[-1] // self.feature_group_count, self.features)
        kernels = self._merged_kernels(shape)
        bias = self._stack('bias', self.bias_init, (self.features,)) if self.use_bias else None
        (x,) = dtypes.promote_dtype(x, dtype=dtypes.canonicalize_dtype(x, kernels, bias, dtype=self.dtype))
        attention = Attention(self.num_kernels, self.reduction, self.param_dtype, name='attention')(x, temperature)
        self.sow('intermediates', 'routing', attention)
        y = dynamic_convolution(
            x,
            kernels,
            attention,
            bias,
            strides=self.strides,
            padding=self.padding,
            input_dilation=self.input_dilation,
            kernel_dilation=self.kernel_dilation,
            feature_group_count=self.feature_group_count,
            precision=self.precision,
            plan=self.plan,
        )
        return y if num_batch_axes == 1 else y.reshape(*batch_shape, *y.shape[1:])

    def _merged_kernels(self, shape: tuple[int, ...]) -> jax.Array:
        """[K, *shape]: the dynamic part plus, as attention sums to one, the static part in each factor."""
        kernels = self._stack('kernel', self.kernel_init, shape)
        if self.granularity is None:
            return kernels
        static = self.param('static_kernel', self.kernel_init, shape, self.param_dtype)
        phi = 0.0
        if self.scales != 'none':
            phi = self.param('phi', nn.initializers.zeros_init(), (), self.param_dtype)
        mask_size = mask_shape(shape, self.granularity)
        mask = self.variable('partition', 'kernel', lambda: jnp.ones(mask_size, bool))
        return merge(kernels, static, mask.value, *scale_factors(phi, self.scales))

    def _stack(self, name: str, law: Initializer, shape: tuple[int, ...]) -> jax.Array:
        """A parameter [K, *shape] whose factors are K draws of the law: it must not count the stack axis."""

        def draw(key, shape, dtype):
            keys = jax.random.split(key, self.num_kernels)
            return jax.vmap(lambda key: law(key, shape[1:], dtype))(keys)

        return self.param(name, draw, (self.num_kernels, *shape), self.param_dtype)


def _check_choice(name, value, allowed):
    if value not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(map(str, allowed))}, got {value!r}')
