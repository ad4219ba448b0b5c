"""One's own photos: `PATH/train/CLASS/*.png|jpg|jpeg` and `PATH/val/CLASS/...`.

What can be wrong with the folder is found when it is opened, before anything else of a run happens.
"""

import logging
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from pad_jax.data import transforms
from pad_jax.data.source import DataSpec, Examples, Source
from pad_jax.errors import BadInput

SUFFIXES = ('.png', '.jpg', '.jpeg')
# What the content may be, whatever the suffix says: folders from the web hold WebP and GIF under .jpg.
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP')
LAYOUT = 'PATH/train/CLASS/*.png|jpg|jpeg and PATH/val/CLASS/...'
CACHE_BYTES = 2 * 2**30
NUM_THREADS = min(8, os.cpu_count() or 1)
# Images handed to the threads at once: few enough to stop soon after a bad one.
CHUNK = 512

logger = logging.getLogger(__name__)
# read_image compares the size itself; Pillow would print a warning for the same.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)

T = TypeVar('T')
R = TypeVar('R')


def open_image_folder(
    *,
    path: str | None,
    batch_size: int,
    image_size: int,
    seed: int = 0,
    on_bad: str = 'stop',
    crop_padding: int | None = None,
    flip: bool | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Source:
    """The folder as float32[B, S, S, 3], normalised with ImageNet's mean and deviation.

    Arguments as for `pad_jax.data.make_source`; classes are the sorted names of the folders in `train`. The
    middle square of each image is resized to `image_size`, then padded by `crop_padding` (an eighth of the
    side by default), cropped at random and mirrored, in training only.

    Resized images are kept in memory up to `cache_bytes`; the rest is decoded whenever it is asked for,
    with the same result. When the folder is opened each kept image is decoded, and of the others the header
    is read. With `on_bad='skip'` every image is decoded then: which examples there are must be settled
    before the first step.

    Raises:
        BadInput: the path is missing, empty or not laid out as above; there are fewer than two classes;
            `val` has a class that `train` lacks; an image cannot be read (`on_bad='stop'`).
    """
    root = _check_root(path)
    class_names = _class_names(root / 'train')
    unknown = sorted(set(_folders(root / 'val')) - set(class_names))
    if unknown:
        raise BadInput(f'{_quote(root / "val")} has classes that train lacks: {", ".join(unknown)}')
    paths, labels, is_train, ignored = [], [], [], []
    for split in ('train', 'val'):
        for label, name in enumerate(class_names):
            found = _image_paths(root / split / name)
            if split == 'train' and not found:
                raise BadInput(f'{_quote(root / split / name)} holds no {_suffixes()} file')
            paths += found
            ignored += _other_files(root / split / name, found)
            labels += [label] * len(found)
            is_train += [split == 'train'] * len(found)
    if all(is_train):
        raise BadInput(f'{_quote(root / "val")} holds no {_suffixes()} file in its class folders: expected {LAYOUT}')

    cache, reasons = _read_all(paths, image_size, cache_bytes, on_bad)
    skipped = list(reasons.values())
    if skipped:
        logger.warning('left out %d of %d images, the first: %s', len(skipped), len(paths), skipped[0])
    good = np.array([i not in reasons for i in range(len(paths))])
    is_train, labels = np.array(is_train), np.array(labels, np.int32)
    train, evaluation = np.flatnonzero(good & is_train), np.flatnonzero(good & ~is_train)
    _check_what_is_left(root, class_names, labels[train], len(evaluation))
    if ignored:
        logger.warning(
            'ignored %d files that are not %s directly in a class folder, the first: %s',
            len(ignored),
            _suffixes(),
            _quote(ignored[0]),
        )
    unseen = sorted(set(class_names) - {class_names[label] for label in labels[evaluation]})
    if unseen:
        logger.warning(
            '%s has no image of %d of the %d classes (%s): the accuracy says nothing about them',
            _quote(root / 'val'),
            len(unseen),
            len(class_names),
            ', '.join(map(repr, unseen[:5])) + (', ...' if len(unseen) > 5 else ''),
        )

    store = _Store(paths, image_size, cache)
    return Source(
        spec=DataSpec(
            num_classes=len(class_names),
            class_names=class_names,
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
        skipped=skipped,
    )


def read_image(path: str, size: int) -> np.ndarray:
    """One image as uint8[size, size, 3]. Grey, palette and CMYK become RGB; transparency is dropped.

    Raises:
        BadInput: with the path and the reason.
    """
    try:
        with _open(path) as image:
            # JPEG decodes at an eighth, a quarter or half of its size for less work. Twice the size that is
            # wanted leaves something to antialias.
            image.draft(None, (2 * size, 2 * size))
            image = ImageOps.exif_transpose(image)
            return transforms.center_crop_and_resize(_to_rgb(image), size)
    except Exception as error:  # Damaged files raise almost anything: OSError, SyntaxError, struct.error, ...
        raise BadInput(_describe(path, error)) from error


def _check_header(path: str) -> None:
    """Raises `BadInput` if not even the first bytes of the file are those of an image."""
    try:
        _open(path).close()
    except Exception as error:
        raise BadInput(_describe(path, error)) from error


def _open(path: str) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        # Pillow's own refusal, at twice its limit, which it doesn't say: "Image size (N pixels) exceeds limit ..."
        raise _TooLarge(int(re.search(r'\d+', str(error))[0]), limit) from error
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise _TooLarge(image.width * image.height, limit, f' ({image.width} × {image.height})')
    return image


class _TooLarge(Exception):
    """An image that would fill the memory, whether by accident or on purpose."""

    def __init__(self, pixels: int, limit: int, sides: str = ''):
        super().__init__(f'{pixels:,} pixels{sides}, at most {limit:,} are read: shrink it')


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == 'RGB':
        return image
    if image.mode.startswith('I') or image.mode == 'F':
        # 16-bit grey: Pillow would clip it to 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == 'P':
        image = image.convert('RGBA')
    return image.convert('RGB')


def _describe(path: str, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        reason = f'not a {", ".join(FORMATS[:-1])} or {FORMATS[-1]} file'
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = ' '.join(str(error).split()) or type(error).__name__
    return f'cannot read the image {_quote(path)}: {reason}'


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


def _check_root(path: str | None) -> pathlib.Path:
    if not path:
        raise BadInput(f'path must name a folder with {LAYOUT}, got {path!r}')
    root = pathlib.Path(path).expanduser()
    if not root.exists():
        raise BadInput(f'the data folder {_quote(root)} does not exist')
    if not root.is_dir():
        raise BadInput(f'{_quote(root)} is not a folder: expected {LAYOUT}')
    if not _entries(root):
        raise BadInput(f'the data folder {_quote(root)} is empty: expected {LAYOUT}')
    for split in ('train', 'val'):
        if not (root / split).is_dir():
            raise BadInput(f'{_quote(root)} has no folder {split}/: expected {LAYOUT}')
    return root


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
    names = _folders(folder)
    if len(names) < 2:
        found = f'only the class {names[0]}' if names else 'no class folder'
        raise BadInput(f'{_quote(folder)} must hold at least two classes, got {found}: expected {LAYOUT}')
    return tuple(names)


def _check_what_is_left(root: pathlib.Path, names: Sequence[str], labels: np.ndarray, num_eval: int) -> None:
    counts = np.bincount(labels, minlength=len(names))
    if not counts.all():
        raise BadInput(f'no image of {_quote(root / "train" / names[int(counts.argmin())])} can be read')
    if not num_eval:
        raise BadInput(f'no image of {_quote(root / "val")} can be read')


def _entries(folder: pathlib.Path) -> list[os.DirEntry]:
    """What the folder holds, by name. Hidden entries are left out: ._x.jpg is no image."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith('.')), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f'cannot list {_quote(folder)}: {error.strerror}') from error


def _folders(folder: pathlib.Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _image_paths(folder: pathlib.Path) -> list[str]:
    if not folder.exists():
        return []
    return [e.path for e in _entries(folder) if e.name.lower().endswith(SUFFIXES) and not e.is_dir()]


def _other_files(folder: pathlib.Path, images: Sequence[str]) -> list[str]:
    """Files at any depth of a class folder that are not among its images; hidden ones are meant to be left out."""
    if not folder.exists():
        return []
    known, found = set(images), []
    for entry in _entries(folder):
        if not entry.is_dir():
            found += [] if entry.path in known else [entry.path]
            continue
        for parent, folders, files in os.walk(entry.path):
            folders[:] = sorted(name for name in folders if not name.startswith('.'))
            found += [os.path.join(parent, name) for name in sorted(files) if not name.startswith('.')]
    return found


def _suffixes() -> str:
    return f'{", ".join(SUFFIXES[:-1])} or {SUFFIXES[-1]}'


def _quote(path: str | pathlib.Path) -> str:
    """In quotes, with anything escaped that would break the line."""
    return repr(str(path))
