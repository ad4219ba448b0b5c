"""What every source of texts gives, whatever they are read from.

Legend: B global batch, b rows of it that are asked for, T sequence length, N examples.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from pad_jax.data.ordering import SCORING, Order
from pad_jax.data.prefetch import Prefetch
from pad_jax.data.source import Batch, DataSpec
from pad_jax.data.text_examples import TextExamples
from pad_jax.data.tokenization import Tokens, WordPieces

SHORTEST = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSpec(DataSpec):
    """What a model, and who evaluates it, must know of its data.

    `num_classes` is 1 for regression, where `class_names` is empty; else `class_names[label]` names a label.
    No batch is longer than `max_length`, and no token is as high as `vocab_size`. `num_eval` counts the
    examples of all `eval_splits` together. `metrics` are keys of `pad_jax.data.metrics.METRICS`. Where classes are
    collected from a file, `first_seen` holds (class, file and line) in the order in which they appear.
    """

    regression: bool
    max_length: int
    vocab_size: int
    first_seen: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class EncodedTexts:
    """One split, ready to be batched. `labels` are int32[N], float32[N], or None where there are none."""

    tokens: Tokens
    labels: np.ndarray | None
    pad: int
    max_length: int

    def __len__(self) -> int:
        return len(self.tokens.lengths)

    def take(self, indices: np.ndarray, rows: slice | None = None) -> Batch:
        """The batch of int64[B] `indices`, or the `rows` of it.

        T is the bucket of the longest example of the whole batch, so that everyone who shares it pads alike.
        """
        length = choose_length(int(self.tokens.lengths[indices].max()), self.max_length)
        indices = indices[rows or slice(None)]
        batch = self.tokens.take(indices, length, self.pad)
        return batch if self.labels is None else {**batch, 'label': self.labels[indices]}

    def iterate(self, batch_size: int, rows: slice | None = None) -> Iterator[Batch]:
        """Every example once, in order, in batches of exactly `batch_size`.

        Besides what `take` gives each batch holds `weight` float32[b]: 1 for an example, 0 for the rows that
        fill up the last batch. Not one token of those is valid, and their label is 0. A mean is exact as
        Σ weight · value / Σ weight.
        """
        for start in range(0, len(self), batch_size):
            positions = start + np.arange(batch_size)
            there = positions < len(self)
            batch = self.take(np.minimum(positions, len(self) - 1), rows)
            weight = there[rows or slice(None)]
            blank = {'tokens': self.pad, 'segments': 0, 'valid': False, 'label': 0}
            for key, values in batch.items():
                values[~weight] = blank[key]
            yield {**batch, 'weight': weight.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Batches of labelled texts, single or in pairs.

    A batch holds `tokens` int32[b, T], `segments` int32[b, T] (0 in a first text, 1 in a second), `valid`
    bool[b, T] (False where the text is filled up) and `label`, int32[b] or for regression float32[b]. T is the
    smallest of 16, 32, 64, ... up to `max_length` that holds the longest text of the global batch.

    `rows` is the slice of the global batch that the calling process wants (all of it when left out). The
    global batch is the same however many processes share it.

    `pieces` is what the texts were encoded with.
    """

    spec: TextSpec
    train: EncodedTexts
    eval: dict[str, EncodedTexts]
    pieces: WordPieces
    batch_size: int
    seed: int

    def train_batch(self, step: int, rows: slice | None = None) -> Batch:
        """The batch of a step (at least 0); a pure function of (seed, step)."""
        return self.train.take(Order(len(self.train), self.seed).indices(step, self.batch_size), rows)

    def train_batches(self, start: int, stop: int, rows: slice | None = None) -> Prefetch[Batch]:
        """For a `with` block: iterates over (step, its batch) for the steps in [start, stop), made ahead of time."""
        return Prefetch(functools.partial(self.train_batch, rows=rows), start, stop)

    def scoring_batch(self, index: int, batch_size: int, rows: slice | None = None) -> Batch:
        """Training examples for scores and statistics; a pure function of (seed, index)."""
        return self.train.take(Order(len(self.train), self.seed, SCORING).indices(index, batch_size), rows)

    @property
    def num_eval_listed(self) -> int:
        """Number of evaluation examples."""
        return self.spec.num_eval

    @property
    def num_eval_batches(self) -> int:
        """Number of batches of `eval_batches()`."""
        return sum(-(-len(texts) // self.batch_size) for texts in self.eval.values())

    @property
    def skipped(self) -> list[str]:
        """No line: rows are left out when a file is read, before there is a source."""
        return []

    @property
    def run_files(self) -> dict[str, Any]:
        """The tokenizer, as the content of `tokenizer.json`."""
        return {'tokenizer.json': self.pieces.describe()}

    def with_threads(self, num_threads: int) -> 'TextSource':
        """Return the same source: its texts are encoded already."""
        del num_threads
        return self

    def eval_labels(self, split: str) -> np.ndarray:
        """Return the labels of an evaluation split, int32[N] or float32[N]."""
        return self.eval[split].labels

    def eval_batches(self, split: str | None = None, rows: slice | None = None) -> Iterator[Batch]:
        """Batches of `EncodedTexts.iterate` of one of `spec.eval_splits`, or of all, one after the other."""
        if split is not None and split not in self.eval:
            raise ValueError(f'split must be one of {", ".join(self.eval)}, got {split!r}')
        for name in self.eval if split is None else [split]:
            yield from self.eval[name].iterate(self.batch_size, rows)


def make_text_batches(
    train: TextExamples,
    evaluation: dict[str, TextExamples],
    *,
    pieces: WordPieces,
    class_names: tuple[str, ...],
    metrics: tuple[str, ...],
    batch_size: int,
    seed: int,
    first_seen: tuple[tuple[str, str], ...] = (),
) -> TextSource:
    """A source of examples that have been read. `class_names` is empty for regression."""
    encoded = {name: encode_examples(examples, pieces) for name, examples in evaluation.items()}
    return TextSource(
        spec=TextSpec(
            num_classes=len(class_names) or 1,
            class_names=class_names,
            regression=not class_names,
            max_length=pieces.max_length,
            vocab_size=pieces.vocab_size,
            num_train=len(train.ids),
            num_eval=sum(map(len, encoded.values())),
            metrics=metrics,
            eval_splits=tuple(encoded),
            first_seen=first_seen,
        ),
        train=encode_examples(train, pieces),
        eval=encoded,
        pieces=pieces,
        batch_size=batch_size,
        seed=seed,
    )


def encode_examples(examples: TextExamples, pieces: WordPieces) -> EncodedTexts:
    """Examples that have been read, with or without labels, as tokens."""
    return EncodedTexts(pieces.encode(examples.texts), examples.labels, pieces.pad, pieces.max_length)


def choose_length(longest: int, max_length: int) -> int:
    """The bucket that holds `longest` (at most `max_length`) tokens: few lengths, so that few are compiled.

    >>> [choose_length(longest, 100) for longest in (5, 16, 17, 64, 65)]
    [16, 16, 32, 64, 100]
    """
    length = SHORTEST
    while length < longest:
        length *= 2
    return min(length, max_length)
