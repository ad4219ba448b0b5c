"""A convolution layer as a value: which class, with which arguments, without shapes."""

import dataclasses
from collections.abc import Hashable

from flax import linen as nn

from pad_jax.layers.cond_conv import CondConv
from pad_jax.layers.dcd_conv import DCDConv
from pad_jax.layers.dynamic_conv import DynamicConv
from pad_jax.layers.od_conv import ODConv
from pad_jax.layers.static_conv import StaticConv

CONVS = {'static': StaticConv, 'dynamic': DynamicConv, 'condconv': CondConv, 'odconv': ODConv, 'dcd': DCDConv}


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """A factory of convolution layers for a model's field.

    Equal arguments make equal specs with equal hashes, so a jitted function that has a model as a static
    argument compiles once; functools.partial objects compare by identity and would compile for each.

    Attributes:
      name: a key of CONVS.
      arguments: (field, value) pairs, sorted by field.
    """

    name: str
    arguments: tuple[tuple[str, Hashable], ...] = ()

    def __call__(self, features: int, kernel_size: tuple[int, ...], **arguments) -> nn.Module:
        """The layer, to be called with (x, temperature)."""
        return CONVS[self.name](features=features, kernel_size=kernel_size, **dict(self.arguments), **arguments)


def make_conv_spec(name: str, **arguments: Hashable) -> ConvSpec:
    """A spec with those arguments that the layer class has; `conv='static'` takes no num_kernels.

    Raises:
      ValueError: for an unknown name, or a value that the layer refuses.

    >>> make_conv_spec('static', num_kernels=4) == make_conv_spec('static')
    True
    """
    if name not in CONVS:
        raise ValueError(f'conv must be one of {", ".join(CONVS)}, got {name!r}')
    fields = {field.name for field in dataclasses.fields(CONVS[name])}
    spec = ConvSpec(name, tuple(sorted((key, value) for key, value in arguments.items() if key in fields)))
    # Built once outside of any module: a wrong value is reported here and not in the middle of a trace.
    spec(1, (1,), parent=None)
    return spec
