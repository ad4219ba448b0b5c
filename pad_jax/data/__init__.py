"""Where examples come from. Adding a source is one module, one row of `SOURCES` and one of `CHANNELS`.

A source yields dicts of arrays and says its `spec`; its batches are pure functions of (seed, step), see
`pad_jax.data.ordering`.
"""

import operator
from collections.abc import Callable

from pad_jax.data import digits
from pad_jax.data.digits import open_digits
from pad_jax.data.distortions import MOST_MAGNITUDE, make_distortion
from pad_jax.data.glue import GLUE_TASKS
from pad_jax.data.image_folder import open_image_folder
from pad_jax.data.imagenet import open_imagenet
from pad_jax.data.images import ImageSource
from pad_jax.data.metrics import METRICS, score
from pad_jax.data.ordering import check_seed
from pad_jax.data.source import DataSpec, ImageSpec, Source
from pad_jax.data.streaming import StreamedSource
from pad_jax.data.text_source import TextSource, TextSpec
from pad_jax.data.text_sources import ON_BAD, TEXT_SOURCES, make_text_source
from pad_jax.data.text_tables import shorten
from pad_jax.data.tokenization import WordPieces, open_vocabulary
from pad_jax.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pad_jax.data.views import AUGMENTS
from pad_jax.errors import BadInput

SOURCES: dict[str, Callable[..., Source]] = {
    'digits': open_digits,
    'folder': open_image_folder,
    'imagenet': open_imagenet,
}
CHANNELS = {'digits': 1, 'folder': 3, 'imagenet': 3}
"""Of the images of each source, known before there is data to open."""
PREPROCESSING = {
    'digits': Preprocessing('grey, 0 to 16 as scikit-learn has it', 'as it is', digits.MEAN, digits.STD),
    'folder': Preprocessing(
        'RGB, 0 to 255', 'the middle square, resized bilinearly with antialiasing', IMAGENET_MEAN, IMAGENET_STD
    ),
    'imagenet': Preprocessing(
        'RGB, 0 to 255',
        'the shorter side resized to 256/224 of the size bilinearly with antialiasing, then the middle square',
        IMAGENET_MEAN,
        IMAGENET_STD,
    ),
}
"""What is done to images of each source when a network is evaluated on them, known before there is data to open."""

__all__ = [
    'AUGMENTS',
    'CHANNELS',
    'GLUE_TASKS',
    'METRICS',
    'MOST_MAGNITUDE',
    'ON_BAD',
    'PREPROCESSING',
    'SOURCES',
    'TEXT_SOURCES',
    'DataSpec',
    'ImageSource',
    'ImageSpec',
    'Preprocessing',
    'Source',
    'StreamedSource',
    'TextSource',
    'TextSpec',
    'WordPieces',
    'check_augmentation',
    'make_source',
    'make_text_source',
    'open_vocabulary',
    'score',
    'shorten',
]


def make_source(
    name: str,
    *,
    path: str | None = None,
    batch_size: int,
    image_size: int,
    seed: int = 0,
    on_bad: str = 'stop',
    augment: str = 'crop',
    crop_padding: int | None = None,
    flip: bool | None = None,
    color_jitter: float = 0.0,
    randaugment_layers: int = 0,
    randaugment_magnitude: int = 9,
) -> Source:
    """Opens a source of images by name.

    Args:
        name: a key of `SOURCES`.
        path: where the data lies, for the sources that read files.
        batch_size: examples in a global batch, at least 1.
        image_size: side of the square images in pixels, at least 1.
        seed: in [0, 2⁶⁴), of the order and the augmentation.
        on_bad: what an unreadable image does: `stop` raises, `skip` leaves it out and says so.
        augment: what training sees of an image: all of it, moved (`crop`), or a random part (`resized_crop`).
        crop_padding: pixels in [0, image_size] that a random crop may move; None is the source's own choice.
        flip: whether images are mirrored at random; None is the source's own choice.
        color_jitter: strength in [0, 1] of random brightness, contrast and saturation; 0 = none.
        randaugment_layers: RandAugment's operations on each image; 0 = none.
        randaugment_magnitude: of each, in [0, 10].

    Raises:
        BadInput: an argument is out of range, whether or not this source would use it, or the data is wrong.

    >>> make_source('digits', batch_size=32, image_size=8).train_batch(0)['image'].shape
    (32, 8, 8, 1)
    """
    if name not in SOURCES:
        raise BadInput(f'data name must be one of {", ".join(SOURCES)}, got {name!r}')
    if on_bad not in ON_BAD:
        raise BadInput(f'on_bad must be one of {", ".join(ON_BAD)}, got {on_bad!r}')
    batch_size = _at_least_one('batch_size', batch_size)
    image_size = _at_least_one('image_size', image_size)
    if crop_padding is not None and not 0 <= operator.index(crop_padding) <= image_size:
        raise BadInput(f'crop_padding must be in [0, image_size] = [0, {image_size}], got {crop_padding}')
    check_augmentation(name, augment, crop_padding, color_jitter, randaugment_layers)
    return SOURCES[name](
        path=path,
        batch_size=batch_size,
        image_size=image_size,
        seed=check_seed(seed),
        on_bad=on_bad,
        augment=augment,
        crop_padding=crop_padding,
        flip=flip,
        distortion=make_distortion(color_jitter, randaugment_layers, randaugment_magnitude),
    )


def check_augmentation(
    name: str, augment: str, crop_padding: int | None, color_jitter: float, randaugment_layers: int
) -> None:
    """Raises `BadInput` for what would have no effect on images of that source.

    >>> check_augmentation('imagenet', 'resized_crop', 0, color_jitter=0.4, randaugment_layers=2)
    """
    if augment not in AUGMENTS:
        raise BadInput(f'augment must be one of {", ".join(AUGMENTS)}, got {augment!r}')
    if augment == 'resized_crop' and SOURCES[name] is not open_imagenet:
        raise BadInput(f'data.augment=resized_crop cuts photos of any size: it needs data.name=imagenet, got {name}')
    if augment == 'resized_crop' and crop_padding:
        raise BadInput(
            f'data.crop_padding must be 0 with data.augment=resized_crop, which pads nothing, got {crop_padding}'
        )
    if CHANNELS[name] != 3 and (color_jitter or randaugment_layers):
        raise BadInput(f'data.color_jitter and data.randaugment_layers must be 0 for {name}, which have no colours')


def _at_least_one(name: str, value: int) -> int:
    value = operator.index(value)
    if value < 1:
        raise BadInput(f'{name} must be at least 1, got {value}')
    return value
