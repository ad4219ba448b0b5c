"""One's own photos: `PATH/train/CLASS/*.png|jpg|jpeg` and `PATH/val/CLASS/...`.

What can be wrong with the folder is found when it is opened, before anything else of a run happens.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from pad_jax.data import transforms
from pad_jax.data.class_folders import ClassFolders, list_class_folders, warn_of_unseen
from pad_jax.data.decoding import describe_failure, open_image, to_rgb, turn_upright
from pad_jax.data.distortions import Distortion
from pad_jax.data.images import Examples, ImageSource
from pad_jax.data.processors import usable_processors
from pad_jax.data.source import ImageSpec
from pad_jax.errors import BadInput, quote
from pad_jax.files import open_plain

CACHE_BYTES = 2 * 2**30
NUM_THREADS = min(8, len(usable_processors()))
# Images handed to the threads at once: few enough to stop soon after a bad one.
CHUNK = 512

logger = logging.getLogger(__name__)

T = TypeVar('T')
R = TypeVar('R')


def open_image_folder(
    *,
    path: str | None,
    batch_size: int,
    image_size: int,
    seed: int = 0,
    on_bad: str = 'stop',
    augment: str = 'crop',
    crop_padding: int | None = None,
    flip: bool | None = None,
    distortion: Distortion | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> ImageSource:
    """The folder as float32[B, S, S, 3], normalised with ImageNet's mean and deviation.

    Arguments as for `pad_jax.data.make_source`; classes are the sorted names of the folders in `train`. The
    middle square of each image is resized to `image_size`, then padded by `crop_padding` (an eighth of the
    side by default), cropped at random, mirrored and distorted, in training only.

    Resized images are kept in memory up to `cache_bytes`; the rest is decoded whenever it is asked for,
    with the same result. When the folder is opened each kept image is decoded, and of the others the header
    is read. With `on_bad='skip'` every image is decoded then: which examples there are must be settled
    before the first step.

    Raises:
        BadInput: the path is missing, empty or not laid out as above; there are fewer than two classes;
            `val` has a class that `train` lacks; an image cannot be read (`on_bad='stop'`).
    """
    del augment  # Resized images have no detail to resize a crop of; make_source has checked the word.
    folders = list_class_folders(path)
    paths = folders.train.paths + folders.val.paths
    labels = np.concatenate([folders.train.labels, folders.val.labels])
    cache, reasons = _read_all(paths, image_size, cache_bytes, on_bad)
    skipped = list(reasons.values())
    if skipped:
        logger.warning('left out %d of %d images, the first: %s', len(skipped), len(paths), skipped[0])
    good = np.array([i not in reasons for i in range(len(paths))])
    is_train = np.arange(len(paths)) < len(folders.train.paths)
    train, evaluation = np.flatnonzero(good & is_train), np.flatnonzero(good & ~is_train)
    _check_what_is_left(folders, labels[train], len(evaluation))
    warn_of_unseen(folders, labels[evaluation])

    store = _Store(paths, image_size, cache)
    return ImageSource(
        spec=ImageSpec(
            num_classes=len(folders.class_names),
            class_names=folders.class_names,
            image_shape=(image_size, image_size, 3),
            num_train=len(train),
            num_eval=len(evaluation),
        ),
        train=Examples(labels[train], lambda indices: store.take(train[indices])),
        eval=Examples(labels[evaluation], lambda indices: store.take(evaluation[indices])),
        batch_size=batch_size,
        seed=seed,
        mean=transforms.IMAGENET_MEAN,
        std=transforms.IMAGENET_STD,
        crop_padding=image_size // 8 if crop_padding is None else crop_padding,
        flip=True if flip is None else flip,
        distortion=distortion,
        skipped=skipped,
        skipped_eval=len(folders.val.paths) - len(evaluation),
    )


def read_image(path: str, size: int) -> np.ndarray:
    """One image as uint8[size, size, 3]. Grey, palette and CMYK become RGB; transparency is dropped.

    Raises:
        BadInput: with the path and the reason.
    """
    try:
        with open_plain(path) as file, open_image(file) as image:
            # JPEG decodes at an eighth, a quarter or half of its size for less work. Twice the size that is
            # wanted leaves something to antialias.
            image.draft(None, (2 * size, 2 * size))
            return transforms.center_crop_and_resize(to_rgb(turn_upright(image)), size)
    except Exception as error:  # Damaged files raise almost anything: OSError, SyntaxError, struct.error, ...
        raise BadInput(describe_failure(quote(path), error)) from error


def _check_header(path: str) -> None:
    """Raises `BadInput` if not even the first bytes of the file are those of an image."""
    try:
        with open_plain(path) as file:
            open_image(file).close()
    except Exception as error:
        raise BadInput(describe_failure(quote(path), error)) from error


def _read_all(paths: Sequence[str], size: int, cache_bytes: int, on_bad: str) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes what fits into the cache and checks the rest.

    Returns:
        The first images as uint8[M, S, S, 3], and for each bad image its index and the reason.
    """
    num_cached = min(len(paths), cache_bytes // (size * size * 3))
    cache = np.zeros((num_cached, size, size, 3), np.uint8)

    def read(index: int) -> str | None:
        try:
            if index < num_cached:
                cache[index] = read_image(paths[index], size)
            elif on_bad == 'skip':
                read_image(paths[index], size)
            else:
                _check_header(paths[index])
        except BadInput as error:
            return str(error)
        return None

    reasons = {}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for index, reason in enumerate(_map_in_chunks(pool, read, range(len(paths)))):
            if reason is not None and on_bad == 'stop':
                raise BadInput(f'{reason} (data.on_bad=skip leaves such images out)')
            if reason is not None:
                reasons[index] = reason
    return cache, reasons


def _map_in_chunks(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    for start in range(0, len(items), CHUNK):
        yield from pool.map(function, items[start : start + CHUNK])


class _Store:
    """Resized images by index: from memory where they are kept, from disk where they are not."""

    def __init__(self, paths: Sequence[str], size: int, cache: np.ndarray):
        self._paths, self._size, self._cache = paths, size, cache
        self._pool = ThreadPoolExecutor(NUM_THREADS) if len(cache) < len(paths) else None

    def take(self, indices: np.ndarray) -> np.ndarray:
        """int64[n] -> uint8[n, S, S, 3]."""
        if self._pool is None:
            return self._cache[indices]
        images = np.empty((len(indices), self._size, self._size, 3), np.uint8)
        cached = indices < len(self._cache)
        images[cached] = self._cache[indices[cached]]
        missing = np.flatnonzero(~cached)
        decoded = self._pool.map(lambda row: read_image(self._paths[indices[row]], self._size), missing)
        for row, image in zip(missing, decoded):
            images[row] = image
        return images


def _check_what_is_left(folders: ClassFolders, labels: np.ndarray, num_eval: int) -> None:
    counts = np.bincount(labels, minlength=len(folders.class_names))
    if not counts.all():
        name = folders.class_names[int(counts.argmin())]
        raise BadInput(f'no image of {quote(folders.root / "train" / name)} can be read')
    if not num_eval:
        raise BadInput(f'no image of {quote(folders.root / "val")} can be read')
