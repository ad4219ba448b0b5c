"""CondConv: kernels mixed by weights that each have their own sigmoid.

Yang et al., "CondConv: Conditionally Parameterized Convolutions for Efficient Inference", NeurIPS 2019,
arXiv:1904.04971, section 3.

Legend: B batch, C input channels, K kernels.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from pad_jax.layers.conv_layer import MixingConv
from pad_jax.layers.factors import Factors
from pad_jax.layers.routing import Head, pool_space

ROUTING_LAW = nn.initializers.lecun_normal()
"""Pooled features have all C channels for each weight: a law that doesn't count them would saturate the sigmoids."""


class CondConv(MixingConv):
    """kernel(x) = Σ_k α_k(x)·kernel_k with α(x) = sigmoid(pooled(x)·R + bias); called as `flax.linen.Conv`.

    The weights don't sum to one. So where it is partially dynamic the static part is one more kernel, which every
    sample takes with weight one:

        kernel(x) = Σ_k α_k(x)·(λd·mask·kernel_k) + 1·(λs·(1 − mask)·static_kernel)

    The K routing weights of every call are sown as 'routing' ([B, K], float32) into 'intermediates'. A bias is one
    for each kernel, mixed in the same way, and never masked. There is no temperature: it is ignored.

    Attributes:
      ...: see `MixingConv` and `ConvLayer`.

    >>> layer = CondConv(features=8, kernel_size=(3, 3), granularity='output')
    >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 6, 6, 3)))
    >>> y.shape, variables['params']['kernel'].shape
    ((2, 6, 6, 8), (4, 3, 3, 3, 8))
    """

    def _convolve(self, x: jax.Array, temperature: jax.Array | float, shape: tuple[int, ...]) -> jax.Array:
        del temperature
        kernels, bias = self._declare_kernels(shape, copies_at=2 / self.num_kernels)
        x = self._promote(x, kernels.dynamic, bias)
        logits = Head(self.num_kernels, ROUTING_LAW, self.param_dtype, name='attention')(pool_space(x))
        attention = jax.nn.sigmoid(logits)
        self.sow('intermediates', 'routing', attention)
        if kernels.static is not None and kernels.index is None:
            dynamic_part, static_part = kernels.split()
            kernels = Factors(shape, jnp.concatenate([dynamic_part, static_part[None]]))
            attention = jnp.concatenate([attention, jnp.ones_like(attention[:, :1])], axis=1)
            bias = None if bias is None else jnp.concatenate([bias, jnp.zeros_like(bias[:1])])
        return self._mix(x, kernels, attention, bias)
