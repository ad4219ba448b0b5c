"""The feed-forward part of an encoder layer: dense, or with mixtures of experts. Layers as values of its field."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype, Initializer

from pad_jax.errors import check_choice
from pad_jax.layers.mixture import ACTIVATIONS, MixtureFFN, MixtureLinear


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
    """A hidden layer between two linear ones: [B, T, C] -> [B, T, C].

    It computes gelu(x·up)·down, with exact gelu, or (silu(x·gate) · x·up)·down. With mixtures of linear layers each of
    them has a router of its own, as in the paper's code.

    Attributes:
      hidden: F, the hidden width.
      layer: the layer, see `FFNS`; `make_ffn_spec` makes one.
      dtype: dtype of the computation; parameters are float32.
      activation: 'gelu' or 'swiglu'.
      use_bias: add biases.
      kernel_init: draws each matrix.
      shared: hidden width of a second, dense feed-forward part that every token passes, or 0. Its output is added
        (DeepSeekMoE, arXiv:2401.06066).
      shared_gate: multiply that output by sigmoid(x·shared_gate), as Qwen2-MoE does (arXiv:2407.10671).
    """

    hidden: int
    layer: LayerSpec = LayerSpec(nn.Dense)
    dtype: Dtype = 'float32'
    activation: str = 'gelu'
    use_bias: bool = True
    kernel_init: Initializer = WEIGHT_INIT
    shared: int = 0
    shared_gate: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, train: bool = False) -> tuple[jax.Array, Aux]:
        """Return (y [B, T, C], {name of a mixture: its aux}); `valid` bool[B, T] is False for padding."""
        num_inputs, activate = ACTIVATIONS[self.activation]
        dense = functools.partial(nn.Dense, dtype=jnp.dtype(self.dtype), kernel_init=self.kernel_init)
        layer = functools.partial(
            self.layer, use_bias=self.use_bias, dtype=jnp.dtype(self.dtype), kernel_init=self.kernel_init
        )
        aux = {}

        def apply(x, size, name, **arguments):
            if self.layer.layer is nn.Dense:
                return layer(size, name=name)(x)
            y, aux[name] = layer(size, name=name, **arguments)(x, valid, train)
            return y

        if 'hidden' in self.layer.layer.__dataclass_fields__:
            y = apply(x, self.hidden, 'experts', activation=self.activation)
        else:
            inputs = [apply(x, self.hidden, name) for name in ('gate', 'up')[-num_inputs:]]
            y = apply(activate(*inputs), x.shape[-1], 'down')
        if self.shared:
            fields = {name: getattr(self, name) for name in ('dtype', 'activation', 'use_bias', 'kernel_init')}
            shared, _ = FeedForward(self.shared, **fields, name='shared')(x, valid)
            if self.shared_gate:
                shared *= jax.nn.sigmoid(dense(1, use_bias=False, name='shared_gate')(x))
            y += shared
        return y, aux
