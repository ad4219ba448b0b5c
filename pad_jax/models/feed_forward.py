"""The feed-forward part of an encoder layer: dense, or with mixtures of experts."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.layers.mixture import MixtureFFN, MixtureLinear
from pad_jax.models.spec import LayerSpec, make_spec

# Initializer of every weight of the encoder (Devlin et al. 2019, the authors' code).
WEIGHT_INIT = nn.initializers.truncated_normal(0.02)

FFNS = {'dense': nn.Dense, 'linear': MixtureLinear, 'ffn': MixtureFFN}
"""The layer of a feed-forward part: a linear layer, of which it has two, or a whole network with a field `hidden`."""

make_ffn_spec = functools.partial(make_spec, 'ffn', FFNS)

Aux = dict[str, dict[str, jax.Array]]


class FeedForward(nn.Module):
    """gelu(x·up)·down through a hidden width, with exact gelu: [B, T, C] -> [B, T, C].

    With mixtures of linear layers each of the two has a router of its own, as in the paper's code.

    Attributes:
      hidden: F, the hidden width.
      layer: the layer, see `FFNS`; `make_ffn_spec` makes one.
      dtype: dtype of the computation; parameters are float32.
    """

    hidden: int
    layer: LayerSpec = LayerSpec(nn.Dense)
    dtype: Dtype = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, train: bool = False) -> tuple[jax.Array, Aux]:
        """Return (y [B, T, C], {name of a mixture: its aux}); `valid` bool[B, T] is False for padding."""
        layer = functools.partial(self.layer, dtype=jnp.dtype(self.dtype), kernel_init=WEIGHT_INIT)
        aux = {}

        def apply(x, size, name):
            if self.layer.layer is nn.Dense:
                return layer(size, name=name)(x)
            y, aux[name] = layer(size, name=name)(x, valid, train)
            return y

        if 'hidden' in self.layer.layer.__dataclass_fields__:
            return apply(x, self.hidden, 'experts'), aux
        hidden = jax.nn.gelu(apply(x, self.hidden, 'up'), approximate=False)
        return apply(hidden, x.shape[-1], 'down'), aux
