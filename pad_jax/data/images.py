"""Batches of labelled images: files are read, decoded, kept in memory if they fit, augmented and normalised."""

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from PIL import UnidentifiedImageError

from pad_jax.data.augment import Augmentation, Words
from pad_jax.data.decoding import FORMATS, Middle, decode, normalize
from pad_jax.data.ordering import SCORING, Order
from pad_jax.data.source import Batch, DataSpec, Source, make_digest, run_ahead, usable_processors
from pad_jax.errors import BadInput, describe

CACHE_BYTES = 2 * 2**30
# Rows that a thread prepares at once: waking one thread from another takes as long as a tenth of a photo.
CHUNK = 8
# Rows of images in memory that need no work.
FAST_CHUNK = 128
# Longer sequences of unreadable images are not an accident: the disk has failed.
MAX_IN_A_ROW = 100
MAX_WARNINGS = 10

logger = logging.getLogger(__name__)


class Preprocessing(NamedTuple):
    """Preprocessing of an image for evaluation: (pixels − mean) / std of its middle."""

    mean: tuple[float, ...]  # of each channel, in units of the stored pixels, and so is std
    std: tuple[float, ...]
    white: float = 255  # stored value of a white pixel


class Record(NamedTuple):
    """Bytes of an image file, its label, and its place as a message names it."""

    data: bytes
    label: int
    place: str


class Records(Protocol):
    """Labelled image files of a split. Threads may call `read` at once; it raises `BadInput` with the place.

    A method `list_files() -> list[str]` is optional. It returns names and sizes of the files, and a run resumes only if
    they are the same.
    """

    def __len__(self) -> int: ...

    def read(self, index: int) -> Record: ...


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Labelled images of a split in memory: `pixels` uint8[N, H, W, C] and `labels` int32[N]."""

    pixels: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Photos:
    """Labelled image files of a split, decoded to `size` × `size` pixels whenever they are loaded."""

    records: Records
    size: int
    middle: Middle

    def __len__(self) -> int:
        return len(self.records)

    def load(self, index: int, part: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """Return pixels and label, as `decode`; raise `BadInput` with the place of a file that cannot be read."""
        return self.decode(self.records.read(index), part)

    def decode(self, record: Record, part: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """Decode a file, as `load`."""
        try:
            return decode(record.data, self.size, self.middle, part), record.label
        except Exception as error:  # damaged files raise almost anything: OSError, SyntaxError, struct.error, ...
            is_unknown = isinstance(error, UnidentifiedImageError)
            reason = f'not a {", ".join(FORMATS[:-1])} or {FORMATS[-1]} file' if is_unknown else describe(error)
            raise BadInput(f'cannot read the image {record.place}: {reason}') from error


class ImageSplits(NamedTuple):
    """Names of the classes by label, and the images to train and to evaluate on."""

    class_names: tuple[str, ...]
    train: Arrays | Records
    eval: Arrays | Records


class ImageKind(NamedTuple):
    """A row of `SOURCES`; `open` is a function of `data.path`, `data.image_size` and `data.holdout`."""

    open: Callable[[str | None, int, float], ImageSplits]
    preprocessing: Preprocessing  # for evaluation; its mean has one value for each channel
    middle: Middle = Middle()  # part that evaluation sees of files; unused for `Arrays`
    flip: bool = True  # mirror training images at random unless `data.flip` is set
    augments: tuple[str, ...] = ('crop',)  # values of `data.augment` that suit the images

    @property
    def channels(self) -> int:
        """Number C of channels."""
        return len(self.preprocessing.mean)


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
            if (split, index) not in self._lines:
                self._lines[split, index] = str(error)
                if len(self._lines) <= MAX_WARNINGS:
                    more = ' (further ones are only counted)' if len(self._lines) == MAX_WARNINGS else ''
                    logger.warning('%s: left out%s', error, more)

    @property
    def lines(self) -> list[str]:
        """One line for each image left out so far."""
        with self._lock:
            return list(self._lines.values())


def open_images(
    kind: ImageKind, splits: ImageSplits, size: int, augmentation: Augmentation, batch_size: int, seed: int, on_bad: str
) -> 'ImageSource':
    """Return the source of images of a kind, as `pad_jax.data.make_source`.

    Files are decoded now if all fit into `CACHE_BYTES`, otherwise when a batch needs them. Random parts are always cut
    from the files.
    """
    names, *splits = splits
    splits = [split if isinstance(split, Arrays) else Photos(split, size, kind.middle) for split in splits]
    (train, evaluation), parts, bad = splits, augmentation.augment == 'resized_crop', BadImages(on_bad)
    num_listed, shape, digests = len(evaluation), (size, size, kind.channels), {}
    if (len(evaluation) + (0 if parts else len(train))) * size**2 * kind.channels <= CACHE_BYTES:
        if not parts:
            train, digests['contents of train'] = _decode_all(train, 'train', bad)
        evaluation, digests['contents of val'] = _decode_all(evaluation, 'eval', bad)
        missing = set() if parts else set(range(len(names))) - set(train.labels.tolist())
        if missing and bad.lines:
            raise BadInput(f'no training image of the class {names[min(missing)]!r} can be read')
    if not len(evaluation):
        raise BadInput(f'the data must hold a readable example to evaluate on, got none of {num_listed}')
    for name, split in (('train', train), ('val', evaluation)):
        if isinstance(split, Photos) and hasattr(split.records, 'list_files'):
            digests[f'files of {name}'] = make_digest(map(os.fsencode, split.records.list_files()))
    counts = {'num_classes': len(names), 'num_train': len(train), 'num_eval': len(evaluation)}
    spec = DataSpec(class_names=names, digests=digests, **counts)
    looks, threads = (shape, kind.preprocessing, augmentation), len(usable_processors())
    return ImageSource(spec, batch_size, seed, train, evaluation, *looks, num_listed, threads, bad)


@dataclasses.dataclass(frozen=True)
class ImageSource(Source):
    """Batches of images: `image` float32[b, H, W, C], normalised, and `label` int32[b].

    No process reads a file of another's rows. Under `on_bad='skip'` the next file in the order of the data replaces an
    unreadable one, under the same random words. An unreadable file has no weight in evaluation.
    """

    spec: DataSpec
    batch_size: int
    seed: int
    train: Arrays | Photos
    eval: Arrays | Photos
    image_shape: tuple[int, int, int]
    preprocessing: Preprocessing
    augmentation: Augmentation
    num_listed: int
    num_threads: int
    bad: BadImages

    @property
    def num_eval_listed(self) -> int:
        return self.num_listed

    @property
    def skipped(self) -> list[str]:
        return self.bad.lines

    def with_threads(self, num_threads: int) -> 'ImageSource':
        return dataclasses.replace(self, num_threads=num_threads)

    def train_batch(self, step: int, rows: slice | None = None) -> Batch:
        """Return the augmented batch of a step (at least 0); a pure function of (seed, step)."""
        with self.train_batches(step, step + 1, rows) as batches:
            return next(batches)[1]

    @contextlib.contextmanager
    def train_batches(self, start: int, stop: int, rows: slice | None = None) -> Iterator[Iterator[tuple[int, Batch]]]:
        order = Order(self.spec.num_train, self.seed)

        def make(step: int) -> Batch:
            indices = order.indices(step, self.batch_size, rows)
            words = self.augmentation.draw(self.seed, step, self.batch_size, rows)
            return _without_weight(self._make_batch(pool, self.train, self._load_or_next, indices, words))

        with ThreadPoolExecutor(self.num_threads) as pool, run_ahead(make, start, stop) as batches:
            yield batches

    def scoring_batch(self, number: int, batch_size: int, rows: slice | None = None) -> Batch:
        indices = Order(self.spec.num_train, self.seed, SCORING).indices(number, batch_size, rows)
        with ThreadPoolExecutor(self.num_threads) as pool:
            return _without_weight(self._make_batch(pool, self.train, self._load_or_next, indices))

    def eval_batches(self, split: str | None = None, rows: slice | None = None) -> Iterator[Batch]:
        del split

        def make(number: int) -> Batch:
            indices = (number * self.batch_size + np.arange(self.batch_size))[rows or slice(None)]
            return self._make_batch(pool, self.eval, self._load_or_none, indices)

        with ThreadPoolExecutor(self.num_threads) as pool, run_ahead(make, 0, self.num_eval_batches) as batches:
            for _, batch in batches:
                yield batch

    def _make_batch(self, pool, split: Arrays | Photos, load, indices: np.ndarray, words: Words | None = None) -> Batch:
        """Return the examples `indices`, int64[b]; rows for which `load` returns None are zero, without weight."""
        count, mean, std = len(indices), self.preprocessing.mean, self.preprocessing.std
        batch = {'image': np.empty((count, *self.image_shape), np.float32), 'label': np.empty(count, np.int32)}
        batch['weight'] = np.empty(count, np.float32)
        parts = words.part if words and words.part.size else [None] * count

        def fill(rows: slice) -> None:
            wanted = indices[rows]
            if isinstance(split, Arrays):
                pixels, labels = split.pixels[wanted % len(split)], split.labels[wanted % len(split)]
                present = wanted < len(split)
            else:
                found = [load(int(index), part) for index, part in zip(wanted, parts[rows], strict=True)]
                present = np.array([example is not None for example in found])
                blank = np.zeros(self.image_shape, np.uint8), 0
                pixels, labels = map(np.stack, zip(*(example or blank for example in found), strict=True))
            if words:
                pixels = self.augmentation.apply(pixels, Words(*(drawn[rows] for drawn in words)))
            normalize(pixels, mean, std, out=batch['image'][rows])
            batch['image'][rows][~present] = 0
            batch['label'][rows], batch['weight'][rows] = labels * present, present

        is_fast = isinstance(split, Arrays) and not (words and self.augmentation.num_distortion_words)
        size = FAST_CHUNK if is_fast else CHUNK
        list(pool.map(fill, [slice(start, start + size) for start in range(0, count, size)]))
        return batch

    def _load_or_next(self, index: int, part: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Return training example `index`, or the next one that is readable."""
        tries = min(MAX_IN_A_ROW, len(self.train))
        for candidate in range(index, index + tries):
            try:
                return self.train.load(candidate % len(self.train), part)
            except BadInput as error:
                self.bad.note('train', candidate % len(self.train), error)
                last = error
        raise BadInput(f'{tries} images of the training data in a row cannot be read, the last: {last}')

    def _load_or_none(self, index: int, part: None) -> tuple[np.ndarray, int] | None:
        """Return evaluation example `index`, or None if it is unreadable or beyond the last one."""
        if index >= len(self.eval):
            return None
        try:
            return self.eval.load(index, part)
        except BadInput as error:
            return self.bad.note('eval', index, error)


def _decode_all(split: Arrays | Photos, name: str, bad: BadImages) -> tuple[Arrays, str]:
    """Decode a split into memory, without the unreadable images; also return the digest of its contents."""
    if isinstance(split, Arrays):
        return split, make_digest(map(np.ascontiguousarray, (split.pixels, split.labels)))
    count = len(split)
    digests = np.zeros(count, 'S32')
    pixels, labels = np.zeros((count, split.size, split.size, 3), np.uint8), np.full(count, -1, np.int32)

    def read(start: int) -> None:
        for index in range(start, min(start + CHUNK, count)):
            try:
                record = split.records.read(index)
                pixels[index], labels[index] = split.decode(record)
                digests[index] = make_digest([record.data])
            except BadInput as error:
                bad.note(name, index, error)

    with ThreadPoolExecutor(len(usable_processors())) as pool:
        list(pool.map(read, range(0, count, CHUNK)))  # after an error the others are cancelled
    good = labels >= 0
    arrays = Arrays(pixels, labels) if good.all() else Arrays(pixels[good], labels[good])
    return arrays, make_digest([digests[good], arrays.labels])


def _without_weight(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if name != 'weight'}
