"""Crops, mirroring and random distortions of training images.

Random parts follow Szegedy et al. 2015, "Going deeper with convolutions". Colour jitter scales brightness, contrast and
saturation by factors in 1 ± strength, in any order. RandAugment (Cubuk et al. 2020) applies a few of fourteen
operations. Their magnitude is on a scale of 0 to 10; 10 is the strongest of AutoAugment (Cubuk et al. 2019, table 6).
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pad_jax.data.ordering import AUGMENTATION, DISTORTION, VIEW, draw_bits

AUGMENTS = ('crop', 'resized_crop')
"""Crops of training images: the evaluated part, moved by a few pixels; or a random part of the photo."""

# Share of the area and ratio width / height of a random part.
LEAST_AREA = 0.08
LEAST_RATIO, MOST_RATIO = 3 / 4, 4 / 3
TRIES = 10
PART_WORDS = 2 * TRIES + 2

MOST_MAGNITUDE = 10
# ImageNet's mean colour, which normalises to nearly nothing, for the pixels that shears, turns and shifts uncover.
FILL = (124, 116, 104)
JITTER_ORDERS = tuple(itertools.permutations((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)))
# AutoAugment's 150 of 331 pixels.
SHIFT = 150 / 331


def _transform(image: Image.Image, *coefficients: float) -> Image.Image:
    """Show input (a x + b y + c, d x + e y + f) at output (x, y)."""
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=FILL)


OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    'identity': lambda image, strength: image,
    'auto_contrast': lambda image, strength: ImageOps.autocontrast(image),
    'equalize': lambda image, strength: ImageOps.equalize(image),
    'rotate': lambda image, strength: image.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=FILL),
    'solarize': lambda image, strength: ImageOps.solarize(image, round(256 * (1 - abs(strength)))),
    'color': lambda image, strength: ImageEnhance.Color(image).enhance(1 + 0.9 * strength),
    'posterize': lambda image, strength: ImageOps.posterize(image, 8 - round(4 * abs(strength))),
    'contrast': lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength),
    'brightness': lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength),
    'sharpness': lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength),
    'shear_x': lambda image, strength: _transform(image, 1, 0.3 * strength, 0, 0, 1, 0),
    'shear_y': lambda image, strength: _transform(image, 1, 0, 0, 0.3 * strength, 1, 0),
    'translate_x': lambda image, strength: _transform(image, 1, 0, SHIFT * strength * image.width, 0, 1, 0),
    'translate_y': lambda image, strength: _transform(image, 1, 0, 0, 0, 1, SHIFT * strength * image.height),
}
"""Functions of an RGB image and a strength in [-1, 1], by name. The strength is magnitude / 10 with a random sign."""


class Words(NamedTuple):
    """Random words of the rows of a batch, uint64."""

    move: np.ndarray  # [B, 3]; top, left and mirroring
    part: np.ndarray  # [B, PART_WORDS]; the random part, without columns unless one is cut
    distortion: np.ndarray  # [B, num_distortion_words]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        augment: one of `AUGMENTS`.
        crop_padding: pixels in [0, H] by which the crop may move; 0 for `resized_crop`.
        flip: True if images are mirrored with probability 1/2.
        color_jitter: strength in [0, 1]; 0 for none.
        randaugment_layers: operations on each image, at least 0.
        randaugment_magnitude: magnitude of each operation, in [0, 10].
    """

    augment: str = 'crop'
    crop_padding: int = 0
    flip: bool = False
    color_jitter: float = 0.0
    randaugment_layers: int = 0
    randaugment_magnitude: int = 9

    @property
    def num_distortion_words(self) -> int:
        """Number of random words that the distortions of an image need."""
        return 4 * bool(self.color_jitter) + 2 * self.randaugment_layers

    def draw(self, seed: int, step: int, batch_size: int, rows: slice | None = None) -> Words:
        """Return the random words of a step, or of some rows of its batch."""

        def draw(use: int, count: int) -> np.ndarray:
            # Drawn for the global batch and then sliced: the number of processes must not matter.
            return draw_bits(seed, step, use, batch_size * count).reshape(batch_size, count)[rows or slice(None)]

        part_words = PART_WORDS if self.augment == 'resized_crop' else 0
        return Words(draw(AUGMENTATION, 3), draw(VIEW, part_words), draw(DISTORTION, self.num_distortion_words))

    def apply(self, images: np.ndarray, words: Words) -> np.ndarray:
        """Move, mirror and distort uint8[B, H, W, C] images; random parts are cut before."""
        images = crop_and_flip(images, words.move, self.crop_padding, self.flip)
        if self.num_distortion_words:
            images = np.stack([self.distort(*pair) for pair in zip(images, words.distortion, strict=True)])
        return images

    def distort(self, pixels: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Distort an image: uint8[H, W, 3] and random uint64[num_distortion_words] to uint8[H, W, 3]."""
        image, words = Image.fromarray(pixels), iter(bits)
        if self.color_jitter:
            for enhance in JITTER_ORDERS[int(next(words)) % len(JITTER_ORDERS)]:
                image = enhance(image).enhance(1 + self.color_jitter * (2 * as_fraction(next(words)) - 1))
        for _ in range(self.randaugment_layers):
            operation = tuple(OPERATIONS.values())[int(next(words)) % len(OPERATIONS)]
            strength = self.randaugment_magnitude / MOST_MAGNITUDE
            image = operation(image, strength if int(next(words)) % 2 else -strength)
        return np.asarray(image)


def crop_and_flip(images: np.ndarray, bits: np.ndarray, padding: int, flip: bool) -> np.ndarray:
    """Pad images uint8[B, H, W, C] with black, crop the original size at random, and mirror half of them.

    Args:
        bits: uint64[B, 3], random; top, left and mirroring of each image.
        padding: pixels P on every side, at least 0. Each of the (2P + 1)² crops is equally likely.
        flip: True if an image is mirrored with probability 1/2.

    >>> image = np.arange(1, 5, dtype=np.uint8).reshape(1, 2, 2, 1)
    >>> crop_and_flip(image, np.array([[0, 1, 0]], np.uint64), padding=1, flip=True)[0, ..., 0].tolist()
    [[0, 0], [1, 2]]
    """
    if padding:
        height, width = images.shape[1:3]
        padded = np.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
        top, left = (bits[:, :2] % np.uint64(2 * padding + 1)).astype(np.int64).T
        # [B, 2P + 1, 2P + 1, C, H, W], a view; one window of each image copies only the result.
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
        images = np.ascontiguousarray(np.moveaxis(windows[np.arange(len(images)), top, left], 1, -1))
    if flip:
        images = images if padding else images.copy()
        mirrored = bits[:, 2] % np.uint64(2) == 1
        images[mirrored] = images[mirrored, :, ::-1]
    return images


def choose_part(width: int, height: int, bits: np.ndarray) -> tuple[int, int, int, int]:
    """Choose a random part of a photo.

    The area is uniform in [0.08, 1] of the photo, log(width / height) uniform in ± log(4/3). The first of ten draws
    that fits is taken; if none does, the largest middle part of the nearest ratio.

    Args:
        bits: uint64[PART_WORDS], random; two words for each draw, two for the position.

    Returns:
        Left, top, right, bottom.
    """
    for area_bits, ratio_bits in bits[:-2].reshape(TRIES, 2):
        area = width * height * (LEAST_AREA + (1 - LEAST_AREA) * as_fraction(area_bits))
        ratio = LEAST_RATIO * (MOST_RATIO / LEAST_RATIO) ** as_fraction(ratio_bits)
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = int(bits[-2]) % (width - across + 1)
            top = int(bits[-1]) % (height - down + 1)
            return left, top, left + across, top + down
    across = min(width, max(round(height * MOST_RATIO), 1))
    down = min(height, max(round(width / LEAST_RATIO), 1))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def as_fraction(bits: np.uint64) -> float:
    """Convert a random word to a number in [0, 1) by its upper 53 bits, as many as a float holds.

    >>> as_fraction(np.uint64(2**63))
    0.5
    """
    return (int(bits) >> 11) * 2.0**-53
