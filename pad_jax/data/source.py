"""The protocol that sources of images and of texts share, and the threads that prepare batches."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np

Batch = dict[str, np.ndarray]
T = TypeVar('T')

ON_BAD = ('stop', 'skip')
"""Choices for an example that cannot be read: raise an error, or leave the example out with a warning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Properties of a data set.

    Attributes:
        num_classes: at least 1; 1 for regression.
        class_names: names by label; empty for regression.
        num_train, num_eval: examples in use.
        eval_splits: names of the splits to evaluate on.
        metrics: keys of `METRICS`, each measured on all outputs of a split. Empty if means over examples suffice.
        digests: of the data by name: 'contents of SPLIT' if all were read, otherwise 'files of SPLIT' (names, sizes).
        bytes_per_token: of each evaluation split of a language model: bytes of its texts / tokens of them.
    """

    num_classes: int
    class_names: tuple[str, ...]
    num_train: int
    num_eval: int
    eval_splits: tuple[str, ...] = ('val',)
    metrics: tuple[str, ...] = ()
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    bytes_per_token: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)


def make_digest(parts: Iterable[bytes | np.ndarray]) -> str:
    """Return a digest of bytes and arrays in their order, as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8))
        digest.update(part)
    return digest.hexdigest()[:32]


class Source(Protocol):
    """Batches of labelled examples, a pure function of (seed, step).

    A batch is a dict of arrays [b, ...] with the inputs of a network and `label`. `rows` selects the b rows of the
    global batch that the calling process needs, all B by default. The global batch does not depend on the number of
    processes or threads. Subclasses inherit the defaults below.

    Attributes:
        spec: properties of the data.
        batch_size: B, at least 1.
    """

    spec: DataSpec
    batch_size: int

    @property
    def num_eval_listed(self) -> int:
        """Number of evaluation examples, including those that cannot be read."""
        return self.spec.num_eval

    @property
    def num_eval_batches(self) -> int:
        """Number of batches that `eval_batches()` yields for all splits."""
        return -(-self.spec.num_eval // self.batch_size)

    @property
    def skipped(self) -> Sequence[str]:
        """One line for each example left out so far under `on_bad='skip'`."""
        return []

    @property
    def run_files(self) -> dict[str, Any]:
        """JSON content by file name that a run directory keeps in order to read new examples."""
        return {}

    def with_threads(self, num_threads: int) -> 'Source':
        """Return this source with another number of decoding threads. Sources without threads return themselves."""
        del num_threads
        return self

    def train_batch(self, step: int, rows: slice | None = None) -> Batch:
        """Return the batch of a step (at least 0), a pure function of (seed, step)."""

    def train_batches(
        self, start: int, stop: int, rows: slice | None = None
    ) -> AbstractContextManager[Iterator[tuple[int, Batch]]]:
        """Iterate over (step, batch) for the steps in [start, stop) inside a `with` block, prepared ahead of time."""
        return run_ahead(functools.partial(self.train_batch, rows=rows), start, stop)

    def scoring_batch(self, number: int, batch_size: int, rows: slice | None = None) -> Batch:
        """Return training examples without augmentation; a pure function of (seed, number)."""

    def eval_batches(self, split: str | None = None, rows: slice | None = None) -> Iterator[Batch]:
        """Iterate over every example of one evaluation split, or of all, in batches of B.

        Batches also contain `weight` float32[b], 1 for an example and 0 for a row without one. So a mean is exact as
        Σ weight · value / Σ weight.
        """

    def eval_labels(self, split: str) -> np.ndarray:
        """Return all labels of an evaluation split, int32[N] or float32[N]. Needed if `spec.metrics` is not empty."""


@contextlib.contextmanager
def run_ahead(make: Callable[[int], T], start: int, stop: int, num_ahead: int = 2) -> Iterator[Iterator[tuple[int, T]]]:
    """Iterate over (number, make(number)) for the numbers in [start, stop), computed ahead of time by threads.

    Each of `num_ahead` threads computes one result. An exception of `make` is raised in place of its result and ends
    the iteration. The end of the block waits for the calls in progress.

    >>> with run_ahead(lambda step: step * step, start=3, stop=6) as results:
    ...     list(results)
    [(3, 9), (4, 16), (5, 25)]
    """
    pool = ThreadPoolExecutor(num_ahead, thread_name_prefix='run_ahead')
    futures = ((number, pool.submit(make, number)) for number in range(start, stop))
    pending = collections.deque(itertools.islice(futures, num_ahead))

    def iterate() -> Iterator[tuple[int, T]]:
        while pending:
            number, future = pending.popleft()
            result = future.result()
            pending.extend(itertools.islice(futures, 1))
            yield number, result

    try:
        yield iterate()
    finally:
        pool.shutdown(cancel_futures=True)


def usable_processors() -> list[int]:
    """Return the processors that this process may run on, or all of the machine if the system cannot tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else list(range(os.cpu_count() or 1))
