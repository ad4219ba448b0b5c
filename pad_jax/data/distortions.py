"""Colours and shapes of training images, distorted at random by Pillow's operations.

Colour jitter: brightness, contrast and saturation, each times a factor in 1 ± strength, in any order; He et al.
2016's successors use 0.4. RandAugment (Cubuk et al. 2020): a few operations in a row, each drawn from fourteen, all of
one magnitude on a scale of 0 to 10 whose end is the strongest of AutoAugment (Cubuk et al. 2019, table 6).
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# What shearing, turning and shifting uncover: ImageNet's mean colour, which normalises to nearly nothing.
FILL = (124, 116, 104)
MOST_MAGNITUDE = 10
JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
JITTER_ORDERS = tuple(itertools.permutations(JITTERED))
# AutoAugment's 150 of 331 pixels.
SHIFT = 150 / 331


def _transform(image: Image.Image, *coefficients: float) -> Image.Image:
    """Output (x, y) shows input (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=FILL)


Operation = Callable[[Image.Image, float], Image.Image]
OPERATIONS: dict[str, Operation] = {
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
"""Functions of an RGB image and a strength in [-1, 1], by name: magnitude / 10 with a random sign."""


@dataclasses.dataclass(frozen=True)
class Distortion:
    """Colour jitter and then RandAugment.

    Attributes:
      color_jitter: strength in [0, 1]; 0 = none.
      randaugment_layers: operations in a row, at least 0.
      randaugment_magnitude: of each, in [0, 10].
    """

    color_jitter: float
    randaugment_layers: int
    randaugment_magnitude: int

    @property
    def num_words(self) -> int:
        """Random words that an image takes.

        >>> Distortion(color_jitter=0.4, randaugment_layers=2, randaugment_magnitude=9).num_words
        8
        """
        return 4 * bool(self.color_jitter) + 2 * self.randaugment_layers

    def apply(self, pixels: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """uint8[H, W, 3] and random uint64[num_words] -> uint8[H, W, 3]."""
        image, words = Image.fromarray(pixels), iter(bits)
        if self.color_jitter:
            for enhance in JITTER_ORDERS[int(next(words)) % len(JITTER_ORDERS)]:
                image = enhance(image).enhance(1 + self.color_jitter * (2 * as_fraction(next(words)) - 1))
        for _ in range(self.randaugment_layers):
            operation = tuple(OPERATIONS.values())[int(next(words)) % len(OPERATIONS)]
            strength = self.randaugment_magnitude / MOST_MAGNITUDE
            image = operation(image, strength if int(next(words)) % 2 else -strength)
        return np.asarray(image)


def make_distortion(color_jitter: float, randaugment_layers: int, randaugment_magnitude: int) -> Distortion | None:
    """None where nothing is distorted."""
    distortion = Distortion(color_jitter, randaugment_layers, randaugment_magnitude)
    return distortion if distortion.num_words else None


def as_fraction(bits: np.uint64) -> float:
    """A random word as a number in [0, 1): its upper 53 bits, as many as a float holds.

    >>> as_fraction(np.uint64(2**63))
    0.5
    """
    return (int(bits) >> 11) * 2.0**-53
