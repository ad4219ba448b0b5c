"""Where examples come from. Adding a source is one module, one row of `SOURCES` and one of `CHANNELS`.

A source yields dicts of arrays and says its `spec`; its batches are pure functions of (seed, step), see
`pad_jax.data.ordering`.
"""

import operator
from collections.abc import Callable

from pad_jax.data.digits import open_digits
from pad_jax.data.glue import GLUE_TASKS
from pad_jax.data.image_folder import open_image_folder
from pad_jax.data.metrics import METRICS, score
from pad_jax.data.ordering import check_seed
from pad_jax.data.prefetch import Prefetch
from pad_jax.data.source import DataSpec, Source
from pad_jax.data.text_source import TextSource, TextSpec
from pad_jax.data.text_sources import ON_BAD, TEXT_SOURCES, make_text_source
from pad_jax.data.text_tables import shorten
from pad_jax.data.tokenization import WordPieces, open_vocabulary
from pad_jax.errors import BadInput

SOURCES: dict[str, Callable[..., Source]] = {'digits': open_digits, 'folder': open_image_folder}
CHANNELS = {'digits': 1, 'folder': 3}
"""Of the images of each source, known before there is data to open."""

__all__ = [
    'CHANNELS',
    'GLUE_TASKS',
    'METRICS',
    'ON_BAD',
    'SOURCES',
    'TEXT_SOURCES',
    'DataSpec',
    'Prefetch',
    'Source',
    'TextSource',
    'TextSpec',
    'WordPieces',
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
    crop_padding: int | None = None,
    flip: bool | None = None,
) -> Source:
    """Opens a source of images by name.

    Args:
        name: a key of `SOURCES`.
        path: where the data lies, for the sources that read files.
        batch_size: examples in a global batch, at least 1.
        image_size: side of the square images in pixels, at least 1.
        seed: in [0, 2⁶⁴), of the order and the augmentation.
        on_bad: what an unreadable image does: `stop` raises, `skip` leaves it out and says so.
        crop_padding: pixels in [0, image_size] that a random crop may move; None is the source's own choice.
        flip: whether images are mirrored at random; None is the source's own choice.

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
    return SOURCES[name](
        path=path,
        batch_size=batch_size,
        image_size=image_size,
        seed=check_seed(seed),
        on_bad=on_bad,
        crop_padding=crop_padding,
        flip=flip,
    )


def _at_least_one(name: str, value: int) -> int:
    value = operator.index(value)
    if value < 1:
        raise BadInput(f'{name} must be at least 1, got {value}')
    return value
