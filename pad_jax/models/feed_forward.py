"""The feed-forward part of an encoder layer, as a table of kinds.

Legend: B batch, T sequence length, C width of the encoder, F hidden width.
"""

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from pad_jax.layers.mixture_ffn import MixtureFFN
from pad_jax.layers.mixture_linear import MixtureLinear

# Of every weight of the encoder (Devlin et al. 2019, the authors' code).
WEIGHT_LAW = nn.initializers.truncated_normal(0.02)

Aux = dict[str, dict[str, jax.Array]]


def apply_dense(x: jax.Array, valid: jax.Array, train: bool, hidden: int, dtype: Dtype) -> tuple[jax.Array, Aux]:
    """gelu(x·up)·down, gelu in its exact form with erf."""
    del valid, train
    raised = nn.Dense(hidden, dtype=dtype, kernel_init=WEIGHT_LAW, name='up')(x)
    raised = jax.nn.gelu(raised, approximate=False)
    return nn.Dense(x.shape[-1], dtype=dtype, kernel_init=WEIGHT_LAW, name='down')(raised), {}


def apply_linear_mixtures(
    x: jax.Array, valid: jax.Array, train: bool, hidden: int, dtype: Dtype, **arguments
) -> tuple[jax.Array, Aux]:
    """The same with each of the two linears a mixture of experts that has its own router, as in the paper's code."""
    mixture = partial(MixtureLinear, dtype=dtype, kernel_init=WEIGHT_LAW, **arguments)
    raised, up_aux = mixture(hidden, name='up')(x, valid, train)
    raised = jax.nn.gelu(raised, approximate=False)
    y, down_aux = mixture(x.shape[-1], name='down')(raised, valid, train)
    return y, {'up': up_aux, 'down': down_aux}


def apply_whole_experts(
    x: jax.Array, valid: jax.Array, train: bool, hidden: int, dtype: Dtype, **arguments
) -> tuple[jax.Array, Aux]:
    """One mixture whose experts are whole feed-forward networks."""
    y, aux = MixtureFFN(hidden, dtype=dtype, kernel_init=WEIGHT_LAW, **arguments, name='experts')(x, valid, train)
    return y, {'experts': aux}


class Kind(NamedTuple):
    """One row: what is called inside the compact method, and the layer whose arguments a spec may carry."""

    function: Callable[..., tuple[jax.Array, Aux]]
    layer: type[nn.Module] | None


FFNS = {
    'dense': Kind(apply_dense, None),
    'linear': Kind(apply_linear_mixtures, MixtureLinear),
    'ffn': Kind(apply_whole_experts, MixtureFFN),
}


@dataclasses.dataclass(frozen=True)
class FfnSpec:
    """What the feed-forward part is, as a value; equal arguments make equal specs with equal hashes.

    Attributes:
      name: a key of FFNS.
      arguments: (field, value) pairs of the kind's layer, sorted by field.
    """

    name: str = 'dense'
    arguments: tuple[tuple[str, Hashable], ...] = ()


def make_ffn_spec(name: str, **arguments: Hashable) -> FfnSpec:
    """A spec with those arguments that the kind's layer has; 'dense' takes no num_experts.

    Raises:
      TypeError: for an argument that no kind has.
      ValueError: for an unknown name, or a value that the layer refuses.

    >>> make_ffn_spec('dense', num_experts=4) == FfnSpec('dense')
    True
    """
    if name not in FFNS:
        raise ValueError(f'ffn must be one of {", ".join(FFNS)}, got {name!r}')
    unknown = arguments.keys() - set().union(*(_fields(kind.layer) for kind in FFNS.values()))
    if unknown:
        raise TypeError(f'no kind of feed-forward part has {", ".join(sorted(unknown))}')
    layer = FFNS[name].layer
    if layer is None:
        return FfnSpec(name)
    kept = {key: value for key, value in arguments.items() if key in _fields(layer)}
    # Built once outside of any module: a wrong value is reported here and not in the middle of a trace.
    layer(1, parent=None, **kept)
    return FfnSpec(name, tuple(sorted(kept.items())))


def _fields(layer):
    return set() if layer is None else {field.name for field in dataclasses.fields(layer)}


class FeedForward(nn.Module):
    """[B, T, C] -> [B, T, C] through a hidden width.

    Attributes:
      hidden: F, the hidden width.
      spec: which kind, with which arguments.
      dtype: to compute in; parameters are float32.
    """

    hidden: int
    spec: FfnSpec = FfnSpec()
    dtype: Dtype = 'float32'

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array, train: bool = False) -> tuple[jax.Array, Aux]:
        """(y [B, T, C], {name of a mixture: what it reports}); `valid` bool[B, T] is False on padding."""
        function = FFNS[self.spec.name].function
        return function(x, valid, train, self.hidden, jnp.dtype(self.dtype), **dict(self.spec.arguments))
