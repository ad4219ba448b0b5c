"""Geometry of a convolution: everything that is known about its windows before any number is."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

# Paddings that copy values of the input instead of adding zeros -> the mode of jnp.pad.
COPYING_MODES = {'CIRCULAR': 'wrap', 'REFLECT': 'reflect'}
NAMED_PADDINGS = ('SAME', 'SAME_LOWER', 'VALID', 'CAUSAL', *COPYING_MODES)

Padding = str | int | Sequence[int | tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A convolution without its numbers, hashable; every tuple has one entry for each spatial axis."""

    kernel_size: tuple[int, ...]  # taps of the kernel
    strides: tuple[int, ...]  # distance between two windows
    padding: tuple[tuple[int, int], ...]  # (before, after) of the dilated input; adds zeros, negative values crop
    input_dilation: tuple[int, ...]  # distance between two values of the input; zeros lie between them
    kernel_dilation: tuple[int, ...]  # distance between two taps of the kernel
    groups: int = 1  # feature groups; output group i sees only input group i

    @property
    def num_taps(self) -> int:
        """Taps of the kernel, over all spatial axes."""
        return math.prod(self.kernel_size)

    @property
    def extent(self) -> tuple[int, ...]:
        """Places between the first and the last tap, both included."""
        return tuple((size - 1) * dilation + 1 for size, dilation in zip(self.kernel_size, self.kernel_dilation))

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape of the output for a spatial shape of the input; never negative.

        >>> resolve_geometry((7, 7), kernel_size=(3, 3), strides=2, padding='SAME').output_size((7, 7))
        (4, 4)
        """
        padded = ((size - 1) * dilation + 1 for size, dilation in zip(input_size, self.input_dilation, strict=True))
        sizes = zip(padded, self.padding, self.extent, self.strides)
        return tuple(max(0, (max(0, size) + sum(pad) - extent) // stride + 1) for size, pad, extent, stride in sizes)

    def center(self) -> 'Geometry':
        """Return the geometry of the centre tap: the same outputs, each reading the centre of its window.

        An even kernel size has two taps in the middle. The earlier one counts, which padding 'SAME' aligns.

        >>> resolve_geometry((5, 5), (3, 2), 2, 'SAME').center().padding
        ((0, 0), (0, 0))
        """
        sizes = zip(self.kernel_size, self.kernel_dilation, self.padding)
        padding = tuple((a - (size - 1) // 2 * gap, b - size // 2 * gap) for size, gap, (a, b) in sizes)
        ones = (1,) * len(self.kernel_size)
        return dataclasses.replace(self, kernel_size=ones, padding=padding, kernel_dilation=ones)


def resolve_geometry(
    input_size: Sequence[int],
    kernel_size: int | Sequence[int],
    strides: None | int | Sequence[int] = 1,
    padding: Padding = 'SAME',
    input_dilation: None | int | Sequence[int] = 1,
    kernel_dilation: None | int | Sequence[int] = 1,
    groups: int = 1,
) -> Geometry:
    """Turn the arguments of `flax.linen.Conv` into explicit numbers for an input of this size.

    Args:
      input_size: spatial shape of the input, before `pad_by_copying`.
      kernel_size, strides, padding, input_dilation, kernel_dilation, groups: as in `flax.linen.Conv`.

    Raises:
      ValueError: for an unknown padding, a length that does not fit the kernel, or a size below one.

    >>> resolve_geometry((8,), 3, strides=2).padding
    ((0, 1),)
    """
    rank = 1 if isinstance(kernel_size, int) else len(tuple(kernel_size))
    sizes = {'strides': strides, 'input_dilation': input_dilation, 'kernel_dilation': kernel_dilation}
    sizes = {name: _expand(name, value, rank) for name, value in {'kernel_size': kernel_size, **sizes}.items()}
    if len(input_size) != rank:
        raise ValueError(f'kernel_size {kernel_size} needs an input with {rank} spatial axes, got {len(input_size)}')
    if groups < 1:
        raise ValueError(f'feature_group_count must be at least 1, got {groups}')
    geometry = Geometry(padding=((0, 0),) * rank, groups=groups, **sizes)
    if isinstance(padding, str):
        return dataclasses.replace(geometry, padding=_resolve_named(padding.upper(), input_size, geometry))
    pairs = (padding,) * rank if isinstance(padding, int) else padding
    pairs = tuple((pair, pair) if isinstance(pair, int) else tuple(map(int, pair)) for pair in pairs)
    if len(pairs) != rank or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f'padding must name {rank} integers or pairs (before, after), got {padding}')
    return dataclasses.replace(geometry, padding=pairs)


def pad_by_copying(x: jax.Array, padding: Padding, geometry: Geometry) -> jax.Array:
    """Add the borders of the paddings that copy values ('CIRCULAR', 'REFLECT') to x [B, *S, C].

    For these paddings the geometry has no padding of its own. For all others x is returned as it is.
    """
    if not isinstance(padding, str) or padding.upper() not in COPYING_MODES:
        return x
    pads = [(0, 0), *(((size - 1) // 2, size // 2) for size in geometry.extent), (0, 0)]
    return jnp.pad(x, pads, mode=COPYING_MODES[padding.upper()])


def _resolve_named(name, input_size, geometry):
    rank = len(geometry.kernel_size)
    if name not in NAMED_PADDINGS:
        raise ValueError(f'padding must be one of {", ".join(NAMED_PADDINGS)}, an int or a sequence, got {name!r}')
    if name == 'CAUSAL':
        if rank != 1:
            raise ValueError(f"padding 'CAUSAL' needs one spatial axis, got {rank}")
        return ((geometry.extent[0] - 1, 0),)
    if name in ('SAME', 'SAME_LOWER'):
        if any(dilation != 1 for dilation in geometry.input_dilation):
            dilations = f'input_dilation {geometry.input_dilation}'
            raise ValueError(f'padding {name!r} is undefined for {dilations}: give explicit pairs')
        pairs = lax.padtype_to_pads(tuple(input_size), geometry.extent, geometry.strides, name)
        return tuple((int(before), int(after)) for before, after in pairs)
    return geometry.padding  # VALID, and the paddings by copying: the input has their borders already


def _expand(name: str, value: None | int | Sequence[int], rank: int) -> tuple[int, ...]:
    value = 1 if value is None else value
    values = (value,) * rank if isinstance(value, int) else tuple(map(int, value))
    if len(values) != rank or min(values, default=1) < 1:
        raise ValueError(f'{name} must be at least 1 on each of the {rank} spatial axes, got {value}')
    return values
