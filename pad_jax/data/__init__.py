"""Sources of examples by name. A new source of images is one function and one row of `SOURCES`.

Batches of every source are pure functions of (seed, step), see `pad_jax.data.ordering`.
"""

import operator

from pad_jax.data import digits
from pad_jax.data.augment import AUGMENTS, MOST_MAGNITUDE, Augmentation
from pad_jax.data.corpus import CORPUS_SOURCES, OBJECTIVES, Corpus, open_corpus
from pad_jax.data.decoding import IMAGENET_MEAN, IMAGENET_STD, Middle
from pad_jax.data.glue import GLUE_TASKS, open_glue
from pad_jax.data.images import Arrays, ImageKind, ImageSource, ImageSplits, Preprocessing, open_images
from pad_jax.data.metrics import METRICS, score, score_language
from pad_jax.data.photos import open_folders, open_imagenet
from pad_jax.data.source import ON_BAD, DataSpec, Source
from pad_jax.data.tables import list_names, shorten, split_names
from pad_jax.data.texts import TextSource, open_text_files
from pad_jax.data.tokenization import Tokens, WordPieces, open_tokens, open_vocabulary
from pad_jax.errors import BadInput, check_choice

PHOTOS = Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
SOURCES: dict[str, ImageKind] = {
    'digits': ImageKind(
        digits.open_digits,
        Preprocessing(digits.MEAN, digits.STD, white=16),
        flip=False,  # a mirrored 2 is not a digit
    ),
    'folder': ImageKind(open_folders, PHOTOS),
    'imagenet': ImageKind(open_imagenet, PHOTOS, Middle(margin=256 / 224, is_reduced=False), augments=AUGMENTS),
}
"""Sources of images by `data.name`."""
TEXT_SOURCES = {'glue': open_glue, 'text': open_text_files}
"""Sources of texts by `data.name`."""


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
    holdout: float = 0.0,
) -> ImageSource:
    """Open a source of images by name.

    Args:
        name: key of `SOURCES`.
        path: location of the data, for sources that read files.
        batch_size: examples in a global batch, at least 1.
        image_size: side of the square images in pixels, at least 1.
        seed: in [0, 2⁶⁴); decides order and augmentation.
        on_bad: one of `ON_BAD`; `stop` raises at an unreadable image, `skip` leaves it out with a warning.
        augment: one of `AUGMENTS`; training sees the moved middle (`crop`) or a random part (`resized_crop`).
        crop_padding: pixels in [0, image_size] by which a crop may move; None for an eighth of the side.
        flip: True if training images are mirrored at random; None for the default of the source.
        color_jitter: strength in [0, 1] of random brightness, contrast and saturation; 0 for none.
        randaugment_layers: RandAugment's operations on each image; 0 for none.
        randaugment_magnitude: magnitude of each operation, in [0, 10].
        holdout: share in [0, 1) of each class of the training data to evaluate on, if a folder has no split for it.

    Raises:
        BadInput: an argument is out of range, or the data is wrong.

    >>> make_source('digits', batch_size=32, image_size=8).train_batch(0)['image'].shape
    (32, 8, 8, 1)
    """
    check_choice('data name', name, SOURCES)
    check_choice('on_bad', on_bad, ON_BAD)
    batch_size, image_size = operator.index(batch_size), operator.index(image_size)
    for key, value in (('batch_size', batch_size), ('image_size', image_size)):
        if value < 1:
            raise BadInput(f'{key} must be at least 1, got {value}')
    if not 0 <= operator.index(seed) < 2**64:
        raise BadInput(f'seed must be in [0, 2**64), got {seed}')
    kind = SOURCES[name]
    check_choice(f'augment of {name}', augment, kind.augments)
    most = 0 if augment == 'resized_crop' else image_size
    padding = min(image_size // 8, most) if crop_padding is None else operator.index(crop_padding)
    if not 0 <= padding <= most:
        raise BadInput(f'crop_padding must be in [0, {most}] for augment={augment}, got {padding}')
    if kind.channels != 3 and (color_jitter or randaugment_layers):
        raise BadInput(f'data.color_jitter and data.randaugment_layers must be 0 for {name}, which have no colours')
    flip = kind.flip if flip is None else flip
    augmentation = Augmentation(augment, padding, flip, color_jitter, randaugment_layers, randaugment_magnitude)
    splits = kind.open(path, image_size, holdout)
    return open_images(kind, splits, image_size, augmentation, batch_size, seed, on_bad)
