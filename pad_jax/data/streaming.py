"""Batches of photos that are too many to keep: read, decoded and augmented while the network trains.

Which examples a batch holds, and what is done to them, is a pure function of (seed, step), as for every source (see
`pad_jax.data.ordering`): position p of the run shows one example under random words that are p's own. So a process
makes its rows of a batch alone, a resumed run begins at any step, and how many threads decode changes nothing.

Legend: B global batch, b rows of it that are asked for, S side of the square images, N examples.
"""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pad_jax.data import transforms
from pad_jax.data.decoding import describe_failure
from pad_jax.data.ordering import SCORING, VIEW, Order, draw_bits
from pad_jax.data.prefetch import Prefetch
from pad_jax.data.processors import usable_processors
from pad_jax.data.records import BrokenSet, Record, Records
from pad_jax.data.source import Batch, ImageSpec
from pad_jax.data.views import Augmentation, view_middle
from pad_jax.errors import BadInput

# Rows of a batch that a thread makes at once: waking one thread from another takes as long as a tenth of a photo.
CHUNK = 8
# Chunks that are under way or wait for the rest of their batch, for each thread.
NUM_WAITING = 2
# More bad examples than that in a row are no accident: a disk is gone.
MOST_IN_A_ROW = 100
# Of the bad examples; the rest is only counted.
MOST_SAID = 10

logger = logging.getLogger(__name__)


class _Example(NamedTuple):
    """`pixels` are uint8[S, S, 3]."""

    pixels: np.ndarray
    label: int


class BadExamples:
    """What is left out under `on_bad='skip'`: counted once, however often it is met. Threads may share it."""

    def __init__(self):
        self._lines: dict[tuple[str, int], str] = {}
        self._lock = threading.Lock()

    def note(self, split: str, index: int, line: str, instead: str) -> None:
        with self._lock:
            if (split, index) in self._lines:
                return
            self._lines[split, index] = line
            if len(self._lines) <= MOST_SAID:
                more = ' (further ones are only counted)' if len(self._lines) == MOST_SAID else ''
                logger.warning('%s: %s%s', line, instead, more)

    def line(self, split: str, index: int) -> str:
        with self._lock:
            return self._lines[split, index]

    @property
    def lines(self) -> list[str]:
        with self._lock:
            return list(self._lines.values())


@dataclasses.dataclass(frozen=True)
class StreamedSource:
    """Batches of labelled photos: `image` float32[b, S, S, 3], normalised as ImageNet's, and `label` int32[b].

    `rows` is the slice of the global batch that the calling process wants (all of it when left out). The global batch
    is the same however many processes share it, and no process reads a file of another's rows.

    An example that cannot be read raises `BadInput` with `on_bad='stop'`. With `skip` the next one in the order of the
    data stands in for it in training, under the same random words; in evaluation it has no weight. A set that is broken
    stops either way (`pad_jax.data.records.BrokenSet`).

    `num_threads` decode at once: one for each processor when left out.
    """

    spec: ImageSpec
    train: Records
    eval: Records
    batch_size: int
    seed: int
    augmentation: Augmentation
    on_bad: str
    num_threads: int = dataclasses.field(default_factory=lambda: len(usable_processors()))
    bad: BadExamples = dataclasses.field(default_factory=BadExamples)

    @property
    def skipped(self) -> list[str]:
        """What was left out so far, one line each."""
        return self.bad.lines

    @property
    def num_eval_listed(self) -> int:
        """Images to evaluate on, whether or not they can be read."""
        return len(self.eval)

    def train_batch(self, step: int, rows: slice | None = None) -> Batch:
        """The augmented batch of a step (at least 0); a pure function of (seed, step)."""
        with self.train_batches(step, step + 1, rows) as batches:
            return next(batches)[1]

    @contextlib.contextmanager
    def train_batches(self, start: int, stop: int, rows: slice | None = None) -> Iterator[Iterator[tuple[int, Batch]]]:
        """For a `with` block: iterates over (step, its batch) for the steps in [start, stop), made ahead of time."""
        share, order = range(self.batch_size)[rows or slice(None)], Order(len(self.train), self.seed)

        def load(step: int, row: int) -> _Example:
            position = step * self.batch_size + share[row]
            bits = draw_bits(self.seed, position, VIEW, self.augmentation.num_words)
            return self._load_train(order.index_at(position), bits)

        with _Assembly(load, start, stop, len(share), self.spec.image_shape, self.num_threads) as batches:
            yield ((step, _without_weight(batch)) for step, batch in batches)

    def scoring_batch(self, index: int, batch_size: int, rows: slice | None = None) -> Batch:
        """Training examples as evaluation sees them, for scores and statistics; a pure function of (seed, index)."""
        indices = Order(len(self.train), self.seed, SCORING).indices(index, batch_size, rows)

        def load(_, row: int) -> _Example:
            return self._load_train(int(indices[row]))

        with _Assembly(load, 0, 1, len(indices), self.spec.image_shape, self.num_threads) as batches:
            return _without_weight(next(batches)[1])

    @property
    def num_eval_batches(self) -> int:
        """Number of batches of `eval_batches`."""
        return -(-len(self.eval) // self.batch_size)

    @property
    def run_files(self) -> dict[str, Any]:
        """No file: photos need none to be read again."""
        return {}

    def with_threads(self, num_threads: int) -> 'StreamedSource':
        """Return this source with another number of decoding threads."""
        return dataclasses.replace(self, num_threads=num_threads)

    def eval_labels(self, split: str) -> np.ndarray:
        """Raise: the labels of photos are known once they are read."""
        raise NotImplementedError(split)

    def eval_batches(self, split: str | None = None, rows: slice | None = None) -> Iterator[Batch]:
        """Every evaluation example once, in order, in batches of exactly `batch_size`.

        Besides image and label each batch holds `weight` float32[b]: 1 for an example, 0 for the rows that fill up the
        last batch and in the place of bad ones. A mean is exact as Σ weight · value / Σ weight.

        Raises:
            BadInput: an example is bad under `on_bad='stop'`; with `skip`, `MOST_IN_A_ROW` of `rows`, or all there are.
        """
        tries, in_a_row = min(MOST_IN_A_ROW, len(self.eval)), 0
        share, num_batches = range(self.batch_size)[rows or slice(None)], -(-len(self.eval) // self.batch_size)

        def load(number: int, row: int) -> _Example | None:
            return self._load_eval(number * self.batch_size + share[row])

        with _Assembly(load, 0, num_batches, len(share), self.spec.image_shape, self.num_threads) as batches:
            for number, batch in batches:
                for place, weight in zip(share, batch['weight'], strict=True):
                    index = number * self.batch_size + place
                    in_a_row = 0 if weight or index >= len(self.eval) else in_a_row + 1
                    if in_a_row == tries:
                        raise _in_a_row(tries, 'evaluation', self.bad.line('eval', index))
                yield batch

    def _load_train(self, index: int, bits: np.ndarray | None = None) -> _Example:
        """Example `index` of the training split or what stands in for it; `bits` augment it."""
        size, tries = self.spec.image_shape[0], min(MOST_IN_A_ROW, len(self.train))
        for candidate in range(index, index + tries):
            candidate %= len(self.train)
            try:
                if bits is None:
                    return _view(self.train, candidate, lambda data: view_middle(data, size))
                return _view(self.train, candidate, lambda data: self.augmentation.view(data, size, bits))
            except BadInput as error:
                self._refuse_or_note('train', candidate, error, 'the next example stands in for it')
                last = error
        raise _in_a_row(tries, 'training', last)

    def _load_eval(self, index: int) -> _Example | None:
        if index >= len(self.eval):
            return None
        try:
            return _view(self.eval, index, lambda data: view_middle(data, self.spec.image_shape[0]))
        except BadInput as error:
            self._refuse_or_note('eval', index, error, 'left out')
            return None

    def _refuse_or_note(self, split: str, index: int, error: BadInput, instead: str) -> None:
        if isinstance(error, BrokenSet):
            raise error
        if self.on_bad == 'stop':
            raise BadInput(f'{error} (data.on_bad=skip goes on without such images)') from error
        self.bad.note(split, index, str(error), instead)


def _view(records: Records, index: int, view: Callable[[bytes], np.ndarray]) -> _Example:
    record: Record = records.read(index)
    try:
        return _Example(view(record.data), record.label)
    except Exception as error:  # Damaged files raise almost anything: OSError, SyntaxError, struct.error, ...
        raise BadInput(describe_failure(record.place, error)) from error


def _in_a_row(count: int, split: str, last: str | BadInput) -> BadInput:
    return BadInput(f'{count} examples of the {split} data in a row cannot be read, the last: {last}')


def _without_weight(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if name != 'weight'}


class _Assembly:
    """For a `with` block: iterates over (number, batch) for the batches in [start, stop), some of them ahead.

    Many threads load the examples, each writes its own rows of a batch, normalised.

    Args:
        load: a function of a batch's number and a row of it; None leaves the row empty, with no weight.
        count: rows in a batch.
        num_threads: that load.
    """

    def __init__(
        self,
        load: Callable[[int, int], _Example | None],
        start: int,
        stop: int,
        count: int,
        shape: tuple[int, int, int],
        num_threads: int,
    ):
        # Imported here: it takes a second, which nobody who keeps images in memory should wait for.
        import grain

        self._load, self._count, self._shape = load, count, shape
        self._begun: dict[int, Batch] = {}
        self._lock = threading.Lock()
        self._num_chunks = -(-count // CHUNK)
        chunks = grain.MapDataset.range(start * self._num_chunks, stop * self._num_chunks).map(self._fill_chunk)
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=NUM_WAITING * num_threads)
        self._chunks = iter(chunks.to_iter_dataset(options))
        self._batches = Prefetch(self._finish, start, stop)

    def _fill_chunk(self, place: int) -> int:
        number, chunk = divmod(place, self._num_chunks)
        batch = self._begin(number)
        for row in range(chunk * CHUNK, min((chunk + 1) * CHUNK, self._count)):
            example = self._load(number, row)
            if example is None:
                batch['image'][row] = 0
                continue
            mean, std = transforms.IMAGENET_MEAN, transforms.IMAGENET_STD
            transforms.normalize(example.pixels, mean, std, out=batch['image'][row])
            batch['label'][row], batch['weight'][row] = example.label, 1
        return place

    def _begin(self, number: int) -> Batch:
        """The batch of that number, which the first thread to come makes."""
        with self._lock:
            if number not in self._begun:
                self._begun[number] = {
                    'image': np.empty((self._count, *self._shape), np.float32),
                    'label': np.zeros(self._count, np.int32),
                    'weight': np.zeros(self._count, np.float32),
                }
            return self._begun[number]

    def _finish(self, number: int) -> Batch:
        for _ in range(self._num_chunks):
            next(self._chunks)
        return self._begun.pop(number)

    def __enter__(self) -> Iterator[tuple[int, Batch]]:
        return self._batches

    def __exit__(self, *exception) -> None:
        # First the thread that waits for chunks, then those that make them.
        self._batches.close()
        self._chunks.close()
