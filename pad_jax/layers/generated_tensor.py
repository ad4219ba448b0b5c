"""A tensor that is generated for each sample, fully or partially dynamic: attention vectors and small matrices.

Legend: B batch, D hidden width.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from pad_jax.layers.factors import declare_dynamic, declare_factors
from pad_jax.layers.routing import EXPAND_LAW
from pad_jax.partition.masks import blend


class GeneratedTensor(nn.Module):
    """values(x) = activation((hidden(x)·weights + bias) / temperature), of any shape.

    The weights `tensor` [D, *shape] are the dynamic factors of every position. The `bias` [*shape] is none, as those of
    convolutions are none: weight decay spares it and counts have it among the other parameters. With
    `granularity=None` all positions are dynamic; otherwise a mask says which are, and the others have a value that all
    samples share:

        values(x) = λd·mask·activation(...) + λs·(1 − mask)·static_tensor

    The mixture of the factors passes an activation, so what is sown into 'intermediates' is not the routing but the
    activated values themselves: 'values', [B, *shape], without mask and scales; zero where compact variables have none.

    Attributes:
      shape: of one sample's tensor.
      start: value that the static tensor starts with; that of the activation at zero suits.
      activation: of each entry.
      granularity, scales, rest: see `ConvLayer`.

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
    rest: str = 'static'
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array, temperature: jax.Array | float = 1.0) -> jax.Array:
        """float[B, D] -> [B, *shape] of the same dtype; temperature > 0, may be traced."""
        batch, width = hidden.shape
        factors = declare_factors(
            self,
            'tensor',
            self.shape,
            width,
            _draw,
            nn.initializers.constant(self.start),
            generated=True,
            linear=False,
            beside=('bias',),
            layer='..',
        )
        bias = declare_dynamic(self, 'bias', nn.initializers.zeros_init(), factors)
        entries = bias.shape
        weights, bias = (
            array.astype(hidden.dtype).reshape(rows, bias.size) for array, rows in ((factors.dynamic, width), (bias, 1))
        )
        # The highest precision, as for all attention: these products are tiny.
        logits = jnp.dot(hidden, weights, precision=jax.lax.Precision.HIGHEST) + bias
        values = self.activation(logits / jnp.asarray(temperature, hidden.dtype)).reshape(batch, *entries)
        if factors.index is None:
            self.sow('intermediates', 'values', values)
            if self.granularity is None:
                return values
            return blend(values, factors.static, factors.mask, factors.dynamic_scale, factors.static_scale)
        self.sow('intermediates', 'values', factors.put_dynamic(values))
        dynamic_scale, static_scale, static = (
            jnp.asarray(array, values.dtype) for array in (factors.dynamic_scale, factors.static_scale, factors.static)
        )
        return factors.put_dynamic(dynamic_scale * values) + factors.put_static(static_scale * static)[None]


def _draw(key, shape, dtype):
    """Weights by the law of an attention over all entries together."""
    return EXPAND_LAW(key, (shape[0], math.prod(shape[1:])), dtype).reshape(shape)
