"""What a network does to an image before its first block, as a table.

Legend: B batch, H/W space.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import linen as nn


def reduce_four_times(images: jax.Array, width: int, conv: Callable, norm: Callable) -> jax.Array:
    """7×7 convolution with stride 2, then 3×3 maximum with stride 2: [B, H, W, 3] -> [B, H/4, W/4, width]."""
    x = conv(width, (7, 7), strides=2, padding=((3, 3), (3, 3)), name='stem_conv')(images)
    x = nn.relu(norm(name='stem_norm')(x))
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def keep_resolution(images: jax.Array, width: int, conv: Callable, norm: Callable) -> jax.Array:
    """3×3 convolution with stride 1: [B, H, W, 3] -> [B, H, W, width]."""
    x = conv(width, (3, 3), padding=((1, 1), (1, 1)), name='stem_conv')(images)
    return nn.relu(norm(name='stem_norm')(x))


class Stem(NamedTuple):
    """One row: the function, called inside a model's compact method, and the least image side in pixels."""

    function: Callable[..., jax.Array]
    least_size: int


STEMS = {
    'imagenet': Stem(reduce_four_times, least_size=64),
    'cifar': Stem(keep_resolution, least_size=8),
}


def check_image_size(stem: str, image_size: int) -> None:
    """ValueError if the stem is unknown or the image's side (pixels) is below what it needs.

    >>> check_image_size('imagenet', 224)
    """
    if stem not in STEMS:
        raise ValueError(f'stem must be one of {", ".join(STEMS)}, got {stem!r}')
    least = STEMS[stem].least_size
    if image_size < least:
        others = [name for name, row in STEMS.items() if row.least_size <= image_size]
        advice = f'; stem {others[0]!r} takes it' if others else ''
        raise ValueError(f'image_size must be at least {least} for stem {stem!r}, got {image_size}{advice}')
