"""Where the windows of a convolution lie: everything about it that is known before any number is.

Legend: B batch, S spatial axes (1, 2, 3, ...), C input channels.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

# Paddings that copy values of the input instead of adding zeros -> the mode of jnp.pad.
WRAPPING_MODES = {'CIRCULAR': 'wrap', 'REFLECT': 'reflect'}
NAMED_PADDINGS = ('SAME', 'SAME_LOWER', 'VALID', 'CAUSAL', *WRAPPING_MODES)

Padding = str | int | Sequence[int | tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A convolution without its numbers; hashable, so it may be a static argument of a jitted function.

    Every tuple has one entry for each spatial axis.

    Attributes:
      kernel_size: positions of the kernel.
      strides: distance between two windows.
      padding: (before, after) in positions of the dilated input; zeros are added, negative values crop.
      input_dilation: distance between two values of the input (zeros lie between them).
      kernel_dilation: distance between two positions of the kernel.
      groups: feature groups; output group i sees input group i alone.
    """

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int = 1

    @property
    def num_spatial_axes(self) -> int:
        return len(self.kernel_size)

    @property
    def num_taps(self) -> int:
        """Positions of the kernel, over all spatial axes."""
        return math.prod(self.kernel_size)

    def output_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        """Spatial shape of the output for a spatial shape of the input; never negative.

        >>> geometry = resolve_geometry((7, 7), kernel_size=(3, 3), strides=2, padding='SAME')
        >>> geometry.output_size((7, 7))
        (4, 4)
        """
        sizes = []
        for size, kernel, stride, pad, dilation, spread in zip(
            input_size,
            self.kernel_size,
            self.strides,
            self.padding,
            self.input_dilation,
            self.kernel_dilation,
            strict=True,
        ):
            padded = max(0, (size - 1) * dilation + 1) + sum(pad)
            sizes.append(max(0, (padded - (kernel - 1) * spread - 1) // stride + 1))
        return tuple(sizes)


def resolve_geometry(
    input_size: Sequence[int],
    kernel_size: int | Sequence[int],
    strides: None | int | Sequence[int] = 1,
    padding: Padding = 'SAME',
    input_dilation: None | int | Sequence[int] = 1,
    kernel_dilation: None | int | Sequence[int] = 1,
    groups: int = 1,
) -> Geometry:
    """Turns the arguments of `flax.linen.Conv` into explicit numbers for an input of this size.

    Args:
      input_size: spatial shape of the input (after `pad_by_copying`, where the padding is one of those).
      kernel_size, strides, padding, input_dilation, kernel_dilation, groups: as in `flax.linen.Conv`.

    Returns:
      The geometry, with padding as explicit pairs.

    Raises:
      ValueError: for an unknown padding, a length that does not fit the kernel, or a size below one.

    >>> resolve_geometry((8,), 3, strides=2).padding
    ((0, 1),)
    """
    kernel_size = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
    rank = len(kernel_size)
    kernel_size = _expand('kernel_size', kernel_size, rank)
    strides = _expand('strides', strides, rank)
    input_dilation = _expand('input_dilation', input_dilation, rank)
    kernel_dilation = _expand('kernel_dilation', kernel_dilation, rank)
    if len(input_size) != rank:
        raise ValueError(f'kernel_size {kernel_size} needs an input with {rank} spatial axes, got {len(input_size)}')
    if groups < 1:
        raise ValueError(f'feature_group_count must be at least 1, got {groups}')
    extent = [(size - 1) * spread + 1 for size, spread in zip(kernel_size, kernel_dilation, strict=True)]
    if isinstance(padding, str):
        name = check_named_padding(padding, rank)
        if name == 'CAUSAL':
            pairs = [(extent[0] - 1, 0)]
        elif name in ('SAME', 'SAME_LOWER'):
            if any(dilation != 1 for dilation in input_dilation):
                raise ValueError(
                    f'padding {name!r} is undefined for input_dilation {input_dilation}: give explicit pairs'
                )
            pairs = lax.padtype_to_pads(tuple(input_size), extent, strides, name)
        else:  # VALID, and the paddings by copying, which the input already carries
            pairs = [(0, 0)] * rank
    elif isinstance(padding, int):
        pairs = [(padding, padding)] * rank
    else:
        pairs = [(pair, pair) if isinstance(pair, int) else tuple(pair) for pair in padding]
        if len(pairs) != rank or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f'padding must name {rank} integers or pairs (before, after), got {padding}')
    pairs = tuple((int(before), int(after)) for before, after in pairs)
    return Geometry(kernel_size, strides, pairs, input_dilation, kernel_dilation, groups)


def check_named_padding(padding: str, rank: int) -> str:
    """Returns the name in capitals; ValueError if it is unknown or does not suit that many spatial axes."""
    name = padding.upper()
    if name not in NAMED_PADDINGS:
        raise ValueError(f'padding must be one of {", ".join(NAMED_PADDINGS)}, an int or a sequence, got {padding!r}')
    if name == 'CAUSAL' and rank != 1:
        raise ValueError(f"padding 'CAUSAL' needs one spatial axis, got {rank}")
    return name


def pad_by_copying(
    x: jax.Array, padding: Padding, kernel_size: Sequence[int], kernel_dilation: Sequence[int]
) -> jax.Array:
    """Adds the borders of the paddings that copy values ('CIRCULAR', 'REFLECT'); other paddings pass.

    Args:
      x: [B, *S, C], any dtype.

    Returns:
      [B, *S', C], ready for a convolution without padding, or x itself.
    """
    if not isinstance(padding, str) or padding.upper() not in WRAPPING_MODES:
        return x
    extent = [(size - 1) * spread + 1 for size, spread in zip(kernel_size, kernel_dilation, strict=True)]
    pads = [(0, 0), *(((size - 1) // 2, size // 2) for size in extent), (0, 0)]
    return jnp.pad(x, pads, mode=WRAPPING_MODES[padding.upper()])


def _expand(name: str, value: None | int | Sequence[int], rank: int) -> tuple[int, ...]:
    if value is None:
        value = 1
    values = (value,) * rank if isinstance(value, int) else tuple(int(entry) for entry in value)
    if len(values) != rank or any(entry < 1 for entry in values):
        raise ValueError(f'{name} must be at least 1 on each of the {rank} spatial axes, got {value}')
    return values
