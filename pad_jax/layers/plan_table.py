"""Measured choices of plans and dispatchers, as a value that a layer can be handed.

A table is no cache: nothing is ever added to it, and a layer asks it before the cost model, at trace time. What it says
changes how something is computed and never what.

Legend: B batch, S spatial axes, C input channels or features, F outputs, K kernels, N tokens, E experts, k selected.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.layers.conv_geometry import Geometry


class ConvCase(NamedTuple):
    """A dynamic convolution, as far as its time depends on it.

    Attributes:
      x: shape [B, *S, C].
      kernels: shape [K, *kernel_size, C / groups, F].
      geometry: everything else that is static.
      dtype: name of x's.
      by_place: whether attention has a weight for every place of each kernel.
    """

    x: tuple[int, ...]
    kernels: tuple[int, ...]
    geometry: Geometry
    dtype: str
    by_place: bool = False

    @classmethod
    def read(cls, x: jax.Array, kernels: jax.Array, geometry: Geometry, by_place: bool) -> 'ConvCase':
        """From the arguments of a plan; only shapes and dtypes are read."""
        return cls(tuple(x.shape), tuple(kernels.shape), geometry, jnp.dtype(x.dtype).name, by_place)

    def __str__(self) -> str:
        side = self.x[1:-1]
        space = f'{side[0]}²' if len(side) == 2 and side[0] == side[1] else '×'.join(map(str, side))
        taps = '×'.join(map(str, self.geometry.kernel_size))
        strided = any(stride > 1 for stride in self.geometry.strides)
        strides = f' / {"×".join(map(str, self.geometry.strides))}' if strided else ''
        groups = f' g{self.geometry.groups}' if self.geometry.groups > 1 else ''
        return f'{self.x[0]}×{space}×{self.x[-1]}→{self.kernels[-1]} {taps}{strides}{groups}'


class MixtureCase(NamedTuple):
    """The experts of a mixture, as far as their time depends on it.

    Attributes:
      tokens, experts, selected: N, E and k.
      parameter: 'kernel' of linear layers or 'neurons' of whole feed-forward networks.
      shape: of that parameter of one expert, [C, F] or [2C + 1, F].
      dtype: name of that of the tokens.
    """

    tokens: int
    experts: int
    selected: int
    parameter: str
    shape: tuple[int, int]
    dtype: str

    def __str__(self) -> str:
        features = self.shape[0] // 2 if self.parameter == 'neurons' else self.shape[0]
        back = f'→{features}' if self.parameter == 'neurons' else ''
        return f'{self.tokens}×{features}→{self.shape[1]}{back}, {self.selected} of {self.experts}'


class PartialCase(NamedTuple):
    """A convolution that is partially dynamic along an axis, as far as its time depends on it.

    Attributes:
      whole: it with all of its kernels, as a dynamic convolution.
      axis: -1 where outputs are dynamic or static, -2 for inputs, -3 for taps.
      tenths: of the axis that are dynamic, rounded: partitions differ in what they leave to a layer.
    """

    whole: ConvCase
    axis: int
    tenths: int

    @classmethod
    def read(
        cls, x: jax.Array, kernels: jax.Array, static: jax.Array, axis: int, geometry: Geometry, by_place: bool
    ) -> 'PartialCase':
        """From the arguments of a partial convolution; only shapes and dtypes are read."""
        dynamic, size = kernels.shape[axis], kernels.shape[axis] + static.shape[axis]
        sizes = list(kernels.shape[1:])
        sizes[axis] = size
        shape = kernels.shape[0], *geometry.kernel_size, *sizes[-2:]
        whole = ConvCase(tuple(x.shape), shape, geometry, jnp.dtype(x.dtype).name, by_place)
        return cls(whole, axis, round(10 * dynamic / size))

    def __str__(self) -> str:
        return f'{self.whole}, {self.tenths}/10 {({-1: "outputs", -2: "inputs", -3: "taps"})[self.axis]}'


Case = ConvCase | MixtureCase | PartialCase
KINDS = {'convolution': ConvCase, 'partial convolution': PartialCase, 'mixture': MixtureCase}


@dataclasses.dataclass(frozen=True)
class PlanTable:
    """The plan or dispatcher that was fastest for each case; equal tables have equal hashes.

    Attributes:
      device_kind: what was measured on, as jax calls it.
      jax_version: what was measured with.
      plans: (case, name) pairs, each case once.
    """

    device_kind: str
    jax_version: str
    plans: tuple[tuple[Case, str], ...]

    @functools.cached_property
    def _by_case(self) -> dict[Case, str]:
        return dict(self.plans)

    def find(self, case: Case) -> str | None:
        """The plan of a case; None where it was not measured."""
        return self._by_case.get(case)


def describe_case(case: Case) -> dict[str, Any]:
    """A case as an object of JSON."""
    content = {'kind': next(name for name, kind in KINDS.items() if isinstance(case, kind)), **case._asdict()}
    if isinstance(case, PartialCase):
        content['whole'] = describe_case(case.whole)
    if isinstance(case, ConvCase):
        content['geometry'] = dataclasses.asdict(case.geometry)
    return content


def parse_case(content: Mapping[str, Any]) -> Case:
    """The inverse of `describe_case`; other keys are left alone.

    Raises:
      ValueError: where it describes none.
    """
    try:
        kind = KINDS[content['kind']]
        fields = {name: _freeze(content[name]) for name in kind._fields}
        if kind is ConvCase:
            fields['geometry'] = Geometry(**{name: _freeze(value) for name, value in content['geometry'].items()})
        if kind is PartialCase:
            fields['whole'] = parse_case(content['whole'])
        case = kind(**fields)
        hash(case)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'no case of a convolution or a mixture: {type(error).__name__}: {error}') from error
    return case


def _freeze(value):
    return tuple(map(_freeze, value)) if isinstance(value, list | tuple) else value
