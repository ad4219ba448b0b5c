"""Handwritten digits that come with scikit-learn: 1,797 real scans of 8 × 8 pixels, ten classes.

Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
"""

import numpy as np
from sklearn.datasets import load_digits

from pad_jax.data.distortions import Distortion
from pad_jax.data.images import Examples, ImageSource
from pad_jax.data.source import ImageSpec
from pad_jax.errors import BadInput

IMAGE_SIZE = 8
EVAL_EVERY = 5

# Of the 1,442 training scans, whose 1442 · 64 = 92,288 pixels count the dark points of a 4 × 4 block, 0..16:
# Σ x / n = 450,566 / 92,288 and √(Σ x² / n − mean²) = √(5,542,652 / 92,288 − 4.88217²).
MEAN = (4.88217,)
STD = (6.01852,)


def open_digits(
    *,
    path: str | None = None,
    batch_size: int,
    image_size: int = IMAGE_SIZE,
    seed: int = 0,
    on_bad: str = 'stop',
    augment: str = 'crop',
    crop_padding: int | None = None,
    flip: bool | None = None,
    distortion: Distortion | None = None,
) -> ImageSource:
    """The digits as float32[B, 8, 8, 1]. Arguments as for `pad_jax.data.make_source`.

    Within each class every fifth scan, in the order of the file, is for evaluation: 1,442 scans to train on
    and 355 to evaluate on, whatever the seed. They are shifted by up to one pixel but never mirrored by
    default: a mirrored 2 is no digit.

    Raises:
        BadInput: for any image size but 8, and for a path: there is none to read.
    """
    # Nothing embedded is unreadable, and nothing grey is distorted; make_source has checked the words.
    del on_bad, augment, distortion
    if image_size != IMAGE_SIZE:
        raise BadInput(f'image_size must be {IMAGE_SIZE} for the digits, got {image_size}')
    if path:
        raise BadInput(f'the digits are embedded and read no path, got {path!r}: leave it empty')
    digits = load_digits()
    images = digits.images.astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    for_eval = np.zeros(len(labels), bool)
    for label in range(10):
        for_eval[np.flatnonzero(labels == label)[EVAL_EVERY - 1 :: EVAL_EVERY]] = True
    train, evaluation = images[~for_eval], images[for_eval]
    return ImageSource(
        spec=ImageSpec(
            num_classes=10,
            class_names=tuple(str(digit) for digit in range(10)),
            image_shape=(IMAGE_SIZE, IMAGE_SIZE, 1),
            num_train=len(train),
            num_eval=len(evaluation),
        ),
        train=Examples(labels[~for_eval], train.__getitem__),
        eval=Examples(labels[for_eval], evaluation.__getitem__),
        batch_size=batch_size,
        seed=seed,
        mean=MEAN,
        std=STD,
        crop_padding=1 if crop_padding is None else crop_padding,
        flip=bool(flip),
    )
