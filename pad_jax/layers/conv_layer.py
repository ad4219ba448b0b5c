"""What the convolution layers share: their fields, their checks, any number of batch axes, and stacks of kernels.

Legend: B batch, S spatial axes, C input channels, F output channels, K kernels.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import dtypes
from flax.typing import Dtype, Initializer, PrecisionLike

from pad_jax.errors import check_choice
from pad_jax.kernels.geometry import Padding
from pad_jax.layers.conv_plans import PLAN_NAMES
from pad_jax.layers.dynamic_convolution import dynamic_convolution
from pad_jax.layers.factors import Factors, declare_factors, stack_init
from pad_jax.layers.masked_convolution import masked_convolution
from pad_jax.layers.partial_convolution import partial_convolution
from pad_jax.layers.static_conv import KERNEL_LAW
from pad_jax.partition.masks import GRANULARITIES, RESTS, SCALES


class ConvLayer(nn.Module):
    """Base of the layers that are called as `flax.linen.Conv`, with a temperature beside the input.

    Attributes:
      features ... bias_init: as in `flax.linen.Conv`.
      granularity: None where all is dynamic, or one of `partition.masks.GRANULARITIES`.
      scales: which of λd = 2σ(φ) and λs = 2 − λd are used: 'both', 'static', 'dynamic' or 'none'.
      rest: what a position is that is not dynamic: 'static', a parameter that all inputs share, or 'zero', no parameter
        at all; λs then has no object.

    Raises:
      ValueError: where a value is not one of those.
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
    granularity: str | None = None
    scales: str = 'both'
    rest: str = 'static'

    def __post_init__(self):
        super().__post_init__()
        for name in ('features', 'num_kernels', 'reduction', 'feature_group_count'):
            if getattr(self, name, 1) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')
        check_choice('granularity', self.granularity, (None, *GRANULARITIES))
        check_choice('scales', self.scales, SCALES)
        check_choice('rest', self.rest, RESTS)

    @nn.compact
    def __call__(self, x: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
        """[*batch, *S, C] -> [*batch, *S', F]: any number of batch axes, none included.

        Args:
          x: any float dtype; computed in `dtype`, else in the wider one of x's and the parameters'.
          temperature: > 0, of the attention's softmax or sigmoid, where it has one; may be traced. Only a Python
            number is checked: an array's value is unknown while tracing, and an array of 0 gives NaN.
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
        y = self._convolve(x, temperature, (*kernel_size, x.shape[-1] // self.feature_group_count, self.features))
        return y if num_batch_axes == 1 else y.reshape(*batch_shape, *y.shape[1:])

    def _convolve(self, x: jax.Array, temperature: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
        """[B, *S, C] -> [B, *S', F], with a kernel of that shape."""
        raise NotImplementedError

    def _promote(self, x: jax.Array, *parameters: jax.Array | None) -> jax.Array:
        """x in the dtype to compute in."""
        (x,) = dtypes.promote_dtype(x, dtype=dtypes.canonicalize_dtype(x, *parameters, dtype=self.dtype))
        return x


class MixingConv(ConvLayer):
    """Base of the layers whose kernel is mixed from K kernels.

    Partially dynamic, they compute what the mask says with whole kernels. Where the variables are compact (see
    `partition.compact`) or the collection 'dynamic_columns' is there (see `layers.index_dynamic_columns`), and
    granularity is not 'element', `partial_convolution` leaves out what is dead: the same outputs and gradients. Either
    has gradients of any order, but no forward derivatives.

    Attributes:
      kernel_init: draws each of the K kernels, and the static one, by itself.
      num_kernels: K, at least 1.
      plan: how it is executed; one of `conv_plans.PLAN_NAMES`. Forward derivatives (jax.jvp) need whole
        kernels and a plan that has them, such as 'shift': see `dynamic_convolution`.
    """

    num_kernels: int = 4
    plan: str = 'auto'
    plan_names = PLAN_NAMES

    def __post_init__(self):
        super().__post_init__()
        check_choice('plan', self.plan, self.plan_names)

    def _declare_kernels(self, shape: tuple[int, ...], **declared) -> tuple[Factors, jax.Array | None]:
        """(kernels [K, *shape], bias [K, F] or None)."""
        kernels = declare_factors(
            self, 'kernel', shape, self.num_kernels, stack_init(self.kernel_init), self.kernel_init, **declared
        )
        if not self.use_bias:
            return kernels, None
        return kernels, self.param(
            'bias', stack_init(self.bias_init), (self.num_kernels, self.features), self.param_dtype
        )

    def _mix(
        self,
        x: jax.Array,
        kernels: Factors,
        attention: jax.Array,
        bias: jax.Array | None = None,
        static_attention: jax.Array | None = None,
    ) -> jax.Array:
        """The convolution with kernels mixed by weights that sum to one; by place also with those of the static part.

        Where the entries are apart no dead ones are computed, and the static part is taken once, whatever the weights
        sum to.
        """
        settings = {
            'strides': self.strides,
            'padding': self.padding,
            'input_dilation': self.input_dilation,
            'kernel_dilation': self.kernel_dilation,
            'feature_group_count': self.feature_group_count,
            'precision': self.precision,
            'plan': self.plan,
        }
        if kernels.static is None:
            return dynamic_convolution(x, kernels.dynamic, attention, bias, **settings)
        settings |= {
            'dynamic_scale': kernels.dynamic_scale,
            'static_scale': kernels.static_scale,
            'static_attention': static_attention,
        }
        if kernels.index is None:
            return masked_convolution(x, kernels.dynamic, kernels.static, kernels.mask, attention, bias, **settings)
        return partial_convolution(
            x,
            kernels.dynamic,
            kernels.static,
            attention,
            kernels.index,
            bias,
            granularity={-1: 'output', -2: 'input', -3: 'spatial'}[kernels.axis],
            kernel_size=kernels.shape[:-2],
            **settings,
        )
