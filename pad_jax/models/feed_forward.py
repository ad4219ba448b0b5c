"""The feed-forward part of an encoder layer: dense, or with mixtures of experts. Layers as values of its field."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.errors import check_choice
from pad_jax.layers.mixture import MixtureFFN, MixtureLinear


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """A factory of layers for a model's field.

    Equal specs have equal hashes, so a jitted function with a model as a static argument compiles once. Objects of
    functools.partial compare by identity: each would compile again.

    Attributes:
      layer: the class.
      arguments: (field, value) pairs, sorted by field.
    """

    layer: type[nn.Module]
    arguments: tuple[tuple[str, Hashable], ...] = ()

    def __call__(self, *sizes, **arguments) -> nn.Module:
        """Make the layer, with its sizes and further arguments."""
        return self.layer(*sizes, **dict(self.arguments), **arguments)


def make_spec(key: str, table: Mapping[str, type[nn.Module]], name: str, **arguments: Hashable) -> LayerSpec:
    """Make the spec of a table's row with the arguments that its class has; a static layer takes no num_kernels.

    Args:
      key: the table's name in messages.
      table: names of classes.
      name: the row.
      **arguments: fields of any class of the table.

    Raises:
      TypeError: for an argument that no class of the table has.
      ValueError: for an unknown name, or a value that the class refuses.

    >>> table = {'plain': nn.Dense, 'grouped': nn.Conv}
    >>> make_spec('layer', table, 'plain', feature_group_count=4) == LayerSpec(nn.Dense)
    True
    """
    check_choice(key, name, table)
    unknown = arguments.keys() - {field.name for layer in table.values() for field in dataclasses.fields(layer)}
    if unknown:
        raise TypeError(f'{key} has no argument {", ".join(sorted(unknown))}')
    fields = {field.name: field for field in dataclasses.fields(table[name])}
    spec = LayerSpec(table[name], tuple(sorted((field, arguments[field]) for field in arguments.keys() & fields)))
    # Made once outside of any module: a wrong value is reported here and not in the middle of a trace.
    sizes = sum(field.default is field.default_factory is dataclasses.MISSING for field in fields.values())
    spec(*[1] * sizes, parent=None)
    return spec


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
