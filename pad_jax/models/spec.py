"""Layers as values: a class with its arguments, without shapes."""

import dataclasses
from collections.abc import Hashable, Mapping

from flax import linen as nn


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
    if name not in table:
        raise ValueError(f'{key} must be one of {", ".join(table)}, got {name!r}')
    unknown = arguments.keys() - {field.name for layer in table.values() for field in dataclasses.fields(layer)}
    if unknown:
        raise TypeError(f'{key} has no argument {", ".join(sorted(unknown))}')
    fields = {field.name: field for field in dataclasses.fields(table[name])}
    spec = LayerSpec(
        table[name], tuple(sorted((field, value) for field, value in arguments.items() if field in fields))
    )
    # Made once outside of any module: a wrong value is reported here and not in the middle of a trace.
    sizes = sum(field.default is field.default_factory is dataclasses.MISSING for field in fields.values())
    spec(*[1] * sizes, parent=None)
    return spec
