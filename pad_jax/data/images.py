"""Batches of labelled images: files are read, decoded, kept in memory if they fit, augmented and normalised."""

import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import UnidentifiedImageError

from pad_jax.data.augment import Augmentation, Words
from pad_jax.data.decoding import FORMATS, Middle, decode, normalize
from pad_jax.data.ordering import SCORING, Order
from pad_jax.data.source import Batch, DataSpec, run_ahead, usable_processors
from pad_jax.errors import BadInput, describe

CACHE_BYTES = 2 * 2**30
# Rows that a thread prepares at once: waking one thread from another takes as long as a tenth of a photo.
CHUNK = 8
# Longer sequences of unreadable images are not an accident: the disk has failed.
MOST_IN_A_ROW = 100
# Later unreadable images are only counted.
MOST_WARNINGS = 10

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSpec(DataSpec):
    """Properties of a data set of images.

    Attributes:
        image_shape: (H, W, C).
    """

    image_shape: tuple[int, int, int]


class Preprocessing(NamedTuple):
    """Preprocessing of an image for evaluation: (pixels − mean) / std of a view of it.

    Attributes:
        pixels: colours and range of the stored pixels, in words.
        view: part of the image and its resizing, in words.
        mean, std: of each channel, in units of the stored pixels.
    """

    pixels: str
    view: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Record(NamedTuple):
    """Bytes of an image file, its label, and its place as a message names it."""

    data: bytes
    label: int
    place: str


class Records(Protocol):
    """Labelled image files of a split. Threads may call `read` at once; it raises `BadInput` with the place."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Record: ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Labelled images of a split in memory: `pixels` uint8[N, H, W, C] and `labels` int32[N]."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class ImageSplits(NamedTuple):
    """Names of the classes by label, and the images to train and to evaluate on."""

    class_names: tuple[str, ...]
    train: Arrays | Records
    eval: Arrays | Records


class ImageKind(NamedTuple):
    """A row of `SOURCES`.

    Attributes:
        open: function of `data.path` and `data.image_size` that returns `ImageSplits`, or raises `BadInput`.
        preprocessing: preprocessing for evaluation; its mean has one value for each channel.
        middle: part that evaluation sees of photos; unused for `Arrays`.
        flip: True if training images are mirrored at random unless `data.flip` is set.
        augments: values of `data.augment` that suit the images.
    """

    open: Callable[[str | None, int], ImageSplits]
    preprocessing: Preprocessing
    middle: Middle = Middle()
    flip: bool = True
    augments: tuple[str, ...] = ('crop',)

    @property
    def channels(self) -> int:
        """Number C of channels."""
        return len(self.preprocessing.mean)


def open_images(
    kind: ImageKind,
    path: str | None,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    on_bad: str,
    augmentation: Augmentation,
    num_threads: int | None = None,
) -> 'ImageSource':
    """Open a source of images.

    Photos are decoded now if all of them fit into `CACHE_BYTES`, and when a batch needs them otherwise. Random parts
    are always cut from the files.

    Args:
        kind: row of `SOURCES`.
        path: location of the data.
        batch_size, image_size: at least 1.
        seed: in [0, 2⁶⁴).
        on_bad: `stop` raises at an unreadable image, `skip` leaves it out with a warning.
        augmentation: changes of training images.
        num_threads: number of threads; one for each usable processor by default.

    Raises:
        BadInput: the data is wrong; with `on_bad='stop'`, an image decoded now is unreadable.
    """
    names, train, evaluation = kind.open(path, image_size)
    load = functools.partial(load_image, middle=kind.middle, size=image_size)
    threads = num_threads or len(usable_processors())
    listed, bad = len(evaluation), BadImages(on_bad)
    parts = augmentation.augment == 'resized_crop'
    files = [split for split in (evaluation, *(() if parts else (train,))) if not isinstance(split, Arrays)]
    if files and sum(map(len, files)) * image_size**2 * kind.channels <= CACHE_BYTES:
        shape = (image_size, image_size, kind.channels)
        if not parts:
            train = _decode_all(train, load, shape, bad, 'train', threads)
        evaluation = _decode_all(evaluation, load, shape, bad, 'eval', threads)
        _check_what_is_left(names, train, evaluation, bad)
    return ImageSource(
        spec=ImageSpec(
            num_classes=len(names),
            class_names=names,
            image_shape=(image_size, image_size, kind.channels),
            num_train=len(train),
            num_eval=len(evaluation),
        ),
        train=train,
        eval=evaluation,
        batch_size=batch_size,
        seed=seed,
        preprocessing=kind.preprocessing,
        augmentation=augmentation,
        load=load,
        num_eval_listed=listed,
        num_threads=threads,
        bad=bad,
    )


class BadImages:
    """Unreadable images under `on_bad`: the first raises, or each is noted once. Threads may share it."""

    def __init__(self, on_bad: str):
        self._on_bad = on_bad
        self._lines: dict[tuple[str, int], str] = {}
        self._lock = threading.Lock()

    def note(self, split: str, index: int, error: BadInput) -> None:
        """Raise the error, or note that the image is left out."""
        if self._on_bad == 'stop':
            raise BadInput(f'{error} (data.on_bad=skip leaves such images out)') from error
        with self._lock:
            if (split, index) in self._lines:
                return
            self._lines[split, index] = str(error)
            if len(self._lines) <= MOST_WARNINGS:
                more = ' (further ones are only counted)' if len(self._lines) == MOST_WARNINGS else ''
                logger.warning('%s: left out%s', error, more)

    @property
    def lines(self) -> list[str]:
        """One line for each image left out so far."""
        with self._lock:
            return list(self._lines.values())


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Batches of images: `image` float32[b, H, W, C], normalised, and `label` int32[b]. See `Source`.

    No process reads a file of another's rows. Under `on_bad='skip'` the next file in the order of the data replaces an
    unreadable one, under the same random words. An unreadable file has no weight in evaluation.
    """

    spec: ImageSpec
    train: Arrays | Records
    eval: Arrays | Records
    batch_size: int
    seed: int
    preprocessing: Preprocessing
    augmentation: Augmentation
    load: Callable[..., tuple[np.ndarray, int]]
    num_eval_listed: int
    num_threads: int
    bad: BadImages

    def __post_init__(self):
        if not len(self.eval):
            raise BadInput('the data holds no example to evaluate on')

    @property
    def num_eval_batches(self) -> int:
        """Number of batches of `eval_batches`."""
        return -(-self.spec.num_eval // self.batch_size)

    @property
    def skipped(self) -> list[str]:
        """One line for each image left out so far."""
        return self.bad.lines

    @property
    def run_files(self) -> dict[str, Any]:
        """No file: new images are read without any."""
        return {}

    def with_threads(self, num_threads: int) -> 'ImageSource':
        """Return this source with another number of threads."""
        return dataclasses.replace(self, num_threads=num_threads)

    def train_batch(self, step: int, rows: slice | None = None) -> Batch:
        """Return the augmented batch of a step (at least 0); a pure function of (seed, step)."""
        with self.train_batches(step, step + 1, rows) as batches:
            return next(batches)[1]

    @contextlib.contextmanager
    def train_batches(self, start: int, stop: int, rows: slice | None = None) -> Iterator[Iterator[tuple[int, Batch]]]:
        """Iterate over (step, batch) for the steps in [start, stop) inside a `with` block, prepared ahead of time."""
        order = Order(self.spec.num_train, self.seed)

        def make(step: int) -> Batch:
            words = self.augmentation.draw(self.seed, step, self.batch_size, rows)
            return _without_weight(
                self._make_batch(pool, self.train, order.indices(step, self.batch_size, rows), words)
            )

        with ThreadPoolExecutor(self.num_threads) as pool, run_ahead(make, start, stop) as batches:
            yield batches

    def scoring_batch(self, number: int, batch_size: int, rows: slice | None = None) -> Batch:
        """Return training examples as evaluation sees them; a pure function of (seed, number)."""
        indices = Order(self.spec.num_train, self.seed, SCORING).indices(number, batch_size, rows)
        with ThreadPoolExecutor(self.num_threads) as pool:
            return _without_weight(self._make_batch(pool, self.train, indices))

    def eval_batches(self, split: str | None = None, rows: slice | None = None) -> Iterator[Batch]:
        """Iterate over every evaluation example once, in order, in batches of exactly `batch_size` with `weight`."""
        del split

        def make(number: int) -> Batch:
            indices = (number * self.batch_size + np.arange(self.batch_size))[rows or slice(None)]
            return self._make_batch(pool, self.eval, np.where(indices < len(self.eval), indices, -1))

        with ThreadPoolExecutor(self.num_threads) as pool, run_ahead(make, 0, self.num_eval_batches) as batches:
            for _, batch in batches:
                yield batch

    def eval_labels(self, split: str) -> np.ndarray:
        """Return the labels of the evaluation examples, int32[N], for images in memory."""
        del split
        return self.eval.labels

    def _make_batch(
        self, pool: ThreadPoolExecutor, split: Arrays | Records, indices: np.ndarray, words: Words | None = None
    ) -> Batch:
        """Return the examples `indices` of a split, int64[b]. Negative indices at the end give rows without weight."""
        count, present = len(indices), int((indices >= 0).sum())
        batch = {
            'image': np.zeros((count, *self.spec.image_shape), np.float32),
            'label': np.zeros(count, np.int32),
            'weight': np.zeros(count, np.float32),
        }

        def fill(rows: slice) -> None:
            row_words = words and words.take(rows)
            pixels, batch['label'][rows], batch['weight'][rows] = self._take(split, indices[rows], row_words)
            if row_words:
                pixels = self.augmentation.apply(pixels, row_words)
            normalize(pixels, self.preprocessing.mean, self.preprocessing.std, out=batch['image'][rows])
            batch['image'][rows][batch['weight'][rows] == 0] = 0

        is_work = not isinstance(split, Arrays) or (words and self.augmentation.num_distortion_words)
        size = CHUNK if is_work else max(count, 1)
        chunks = [slice(start, min(start + size, present)) for start in range(0, present, size)]
        if len(chunks) > 1:
            list(pool.map(fill, chunks))
        else:
            for rows in chunks:
                fill(rows)
        return batch

    def _take(self, split, indices: np.ndarray, words: Words | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return uint8[b, H, W, C] pixels, int32[b] labels and float32[b] weights."""
        weights = np.ones(len(indices), np.float32)
        if isinstance(split, Arrays):
            return split.pixels[indices], split.labels[indices], weights
        pixels = np.zeros((len(indices), *self.spec.image_shape), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        for row, index in enumerate(indices.tolist()):
            if split is self.train:
                part = words.part[row] if words and words.part.size else None
                pixels[row], labels[row] = self._load_or_next(index, part)
                continue
            try:
                pixels[row], labels[row] = self.load(split, index)
            except BadInput as error:
                self.bad.note('eval', index, error)
                weights[row] = 0
        return pixels, labels, weights

    def _load_or_next(self, index: int, part: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Return training example `index`, or the next one that is readable."""
        tries = min(MOST_IN_A_ROW, len(self.train))
        for candidate in range(index, index + tries):
            try:
                return self.load(self.train, candidate % len(self.train), part=part)
            except BadInput as error:
                self.bad.note('train', candidate % len(self.train), error)
                last = error
        raise BadInput(f'{tries} images of the training data in a row cannot be read, the last: {last}')


def load_image(records: Records, index: int, *, middle: Middle, size: int, part: np.ndarray | None = None):
    """Return pixels and label of a record; `BadInput` with its place if it cannot be read."""
    record = records.read(index)
    try:
        return decode(record.data, size, middle, part), record.label
    except Exception as error:  # damaged files raise almost anything: OSError, SyntaxError, struct.error, ...
        is_unknown = isinstance(error, UnidentifiedImageError)
        reason = f'not a {", ".join(FORMATS[:-1])} or {FORMATS[-1]} file' if is_unknown else describe(error)
        raise BadInput(f'cannot read the image {record.place}: {reason}') from error


def _decode_all(records: Arrays | Records, load, shape, bad: BadImages, split: str, num_threads: int) -> Arrays:
    """Decode a split into memory, without the unreadable images."""
    if isinstance(records, Arrays):
        return records
    count = len(records)
    pixels, labels, good = np.zeros((count, *shape), np.uint8), np.zeros(count, np.int32), np.zeros(count, bool)

    def read(start: int) -> None:
        for index in range(start, min(start + CHUNK, count)):
            try:
                pixels[index], labels[index] = load(records, index)
                good[index] = True
            except BadInput as error:
                bad.note(split, index, error)

    pool = ThreadPoolExecutor(num_threads)
    try:
        list(pool.map(read, range(0, count, CHUNK)))
    finally:
        pool.shutdown(cancel_futures=True)
    return Arrays(pixels, labels) if good.all() else Arrays(pixels[good], labels[good])


def _check_what_is_left(class_names: tuple[str, ...], train: Arrays | Records, evaluation: Arrays, bad: BadImages):
    if not bad.lines:
        return
    if isinstance(train, Arrays):
        counts = np.bincount(train.labels, minlength=len(class_names))
        if not counts.all():
            raise BadInput(f'no training image of the class {class_names[int(counts.argmin())]!r} can be read')
    if not len(evaluation):
        raise BadInput('no image to evaluate on can be read')


def _without_weight(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if name != 'weight'}
