"""Batches of labelled images, whatever they are read from."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pad_jax.data import transforms
from pad_jax.data.distortions import Distortion
from pad_jax.data.ordering import AUGMENTATION, DISTORTION, SCORING, Order, draw_bits
from pad_jax.data.prefetch import Prefetch
from pad_jax.data.source import Batch, ImageSpec
from pad_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split: `labels` int32[N], and `take(indices)` -> uint8[len(indices), H, W, C]."""

    labels: np.ndarray
    take: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Batches of labelled images: `image` float32[b, H, W, C], normalised, and `label` int32[b].

    `rows` is the slice of the global batch that the calling process wants (all of it when left out). The
    global batch is the same however many processes share it.

    `skipped` lists what was left out under `on_bad='skip'`, one line each; `skipped_eval` of them were to be evaluated
    on.
    """

    spec: ImageSpec
    train: Examples
    eval: Examples
    batch_size: int
    seed: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    distortion: Distortion | None = None
    skipped: list[str] = dataclasses.field(default_factory=list)
    skipped_eval: int = 0

    def __post_init__(self):
        if self.spec.num_eval < 1:
            raise BadInput('the data holds no example to evaluate on')

    @property
    def num_eval_listed(self) -> int:
        """Images to evaluate on, whether or not they can be read."""
        return self.spec.num_eval + self.skipped_eval

    def train_batch(self, step: int, rows: slice | None = None) -> Batch:
        """The augmented batch of a step (at least 0); a pure function of (seed, step)."""
        indices = Order(self.spec.num_train, self.seed).indices(step, self.batch_size, rows)
        # Drawn for the global batch and then sliced, so that sharing it does not change it.
        bits = draw_bits(self.seed, step, AUGMENTATION, 3 * self.batch_size).reshape(self.batch_size, 3)
        images = self.train.take(indices)
        images = transforms.crop_and_flip(images, bits[rows or slice(None)], self.crop_padding, self.flip)
        if self.distortion:
            count = self.distortion.num_words
            bits = draw_bits(self.seed, step, DISTORTION, count * self.batch_size).reshape(self.batch_size, count)
            images = np.stack([self.distortion.apply(*pair) for pair in zip(images, bits[rows or slice(None)])])
        return {'image': self._normalize(images), 'label': self.train.labels[indices]}

    def train_batches(self, start: int, stop: int, rows: slice | None = None) -> Prefetch[Batch]:
        """For a `with` block: iterates over (step, its batch) for the steps in [start, stop), made ahead of time."""
        return Prefetch(functools.partial(self.train_batch, rows=rows), start, stop)

    def scoring_batch(self, index: int, batch_size: int, rows: slice | None = None) -> Batch:
        """Training examples as they are, for scores and statistics; a pure function of (seed, index)."""
        indices = Order(self.spec.num_train, self.seed, SCORING).indices(index, batch_size, rows)
        return {'image': self._normalize(self.train.take(indices)), 'label': self.train.labels[indices]}

    @property
    def num_eval_batches(self) -> int:
        """Number of batches of `eval_batches`."""
        return -(-self.spec.num_eval // self.batch_size)

    @property
    def run_files(self) -> dict[str, Any]:
        """No file: images need none to be read again."""
        return {}

    def with_threads(self, num_threads: int) -> 'ImageSource':
        """Return the same source: its images are decoded already."""
        del num_threads
        return self

    def eval_batches(self, split: str | None = None, rows: slice | None = None) -> Iterator[Batch]:
        """Every evaluation example once, in order, in batches of exactly `batch_size`.

        Besides image and label each batch holds `weight` float32[b]: 1 for an example, 0 for the rows that
        fill up the last batch. A mean is exact as Σ weight · value / Σ weight.
        """
        for start in range(0, self.spec.num_eval, self.batch_size):
            positions = (start + np.arange(self.batch_size))[rows or slice(None)]
            weight = positions < self.spec.num_eval
            indices = positions[weight]
            images = np.zeros((len(positions), *self.spec.image_shape), np.float32)
            labels = np.zeros(len(positions), np.int32)
            if len(indices):
                images[weight] = self._normalize(self.eval.take(indices))
                labels[weight] = self.eval.labels[indices]
            yield {'image': images, 'label': labels, 'weight': weight.astype(np.float32)}

    def eval_labels(self, split: str) -> np.ndarray:
        """Return the labels of the evaluation examples, int32[N]."""
        del split
        return self.eval.labels

    def _normalize(self, images: np.ndarray) -> np.ndarray:
        return transforms.normalize(images, self.mean, self.std)
