"""Handwritten digits of scikit-learn: 1,797 scans of 8 × 8 pixels, ten classes.

Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
"""

import numpy as np

from pad_jax.data.images import Arrays, ImageSplits
from pad_jax.data.ordering import HOLDOUT, choose_held
from pad_jax.errors import BadInput

IMAGE_SIZE = 8

# Of the 1,442 training scans, whose 1442 · 64 = 92,288 pixels count the dark points of a 4 × 4 block, 0 to 16:
# Σ x / n = 450,566 / 92,288 and √(Σ x² / n − mean²) = √(5,542,652 / 92,288 − 4.88217²).
MEAN = (4.88217,)
STD = (6.01852,)


def open_digits(path: str | None, image_size: int, holdout: float = 0.0) -> ImageSplits:
    """Return the digits as uint8[N, 8, 8, 1].

    By default 1,442 scans are to train on and 355 to evaluate on: see `choose_held`. A path or another size raises
    `BadInput`.
    """
    from sklearn.datasets import load_digits

    if image_size != IMAGE_SIZE:
        raise BadInput(f'image_size must be {IMAGE_SIZE} for the digits, got {image_size}')
    if path:
        raise BadInput(f'the digits are embedded and read no path, got {path!r}. Leave data.path empty')
    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    held = choose_held(labels, holdout or HOLDOUT)
    splits = Arrays(images[~held], labels[~held]), Arrays(images[held], labels[held])
    return ImageSplits(tuple(map(str, range(10))), *splits)
