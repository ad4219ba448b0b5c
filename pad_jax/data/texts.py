"""Sources of texts: batches of tokens, and labelled texts of one's own."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pad_jax.data.ordering import SCORING, Order
from pad_jax.data.prefetch import Prefetch
from pad_jax.data.source import Batch, DataSpec, Source
from pad_jax.data.tables import SUFFIXES, TextExamples, open_table, parse_class, parse_number, read_examples, shorten
from pad_jax.data.tokenization import Tokens, WordPieces
from pad_jax.errors import BadInput, quote

LAYOUT = f'a file ({", ".join(SUFFIXES)}), or a folder with train and val as such files'
EVAL_EVERY = 5
SHORTEST = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSpec(DataSpec):
    """Properties of a data set of texts.

    Attributes:
      max_length: tokens of the longest possible batch.
      vocab_size: above all tokens.
      first_seen: (class, file and line) in order of appearance; empty if the classes are known in advance.
    """

    max_length: int
    vocab_size: int
    first_seen: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class EncodedTexts:
    """One split as tokens. `labels` are int32[N], float32[N], or None."""

    tokens: Tokens
    labels: np.ndarray | None
    pad: int
    max_length: int

    def __len__(self) -> int:
        return len(self.tokens.lengths)

    def take(self, indices: np.ndarray, rows: slice | None = None) -> Batch:
        """Make the batch of int64[B] `indices`, or the `rows` of it.

        T is the bucket of the longest example of the whole batch. So all processes that share a batch pad it alike.
        """
        length = choose_length(int(self.tokens.lengths[indices].max()), self.max_length)
        indices = indices[rows or slice(None)]
        batch = self.tokens.take(indices, length, self.pad)
        return batch if self.labels is None else {**batch, 'label': self.labels[indices]}

    def iterate(self, batch_size: int, rows: slice | None = None) -> Iterator[Batch]:
        """Iterate once over all examples, in order, in batches of exactly `batch_size`.

        A batch also has `weight` float32[B]: 1 for an example, 0 for the rows that fill the last batch. Those rows
        have no valid token and label 0. The exact mean of a value is Σ weight · value / Σ weight.
        """
        for start in range(0, len(self), batch_size):
            indices = start + np.arange(batch_size)
            batch = self.take(np.minimum(indices, len(self) - 1), rows)
            weight = (indices < len(self))[rows or slice(None)]
            blank = {'tokens': self.pad, 'segments': 0, 'valid': False, 'label': 0}
            for key, values in batch.items():
                values[~weight] = blank[key]
            yield {**batch, 'weight': weight.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class TextSource(Source):
    """Batches of labelled texts, single or in pairs.

    A batch has `tokens` int32[B, T], `segments` int32[B, T] (0 in a first text, 1 in a second), `valid` bool[B, T]
    (False for padding) and `label`, int32[B], or float32[B] for regression. T is the smallest of 16, 32, 64, ... up to
    `max_length` that holds the longest text of the global batch.

    `rows` is the slice of the global batch that the calling process needs; None is all of it. The global batch does
    not depend on the number of processes. `pieces` encoded the texts.
    """

    spec: TextSpec
    train: EncodedTexts
    eval: dict[str, EncodedTexts]
    pieces: WordPieces
    batch_size: int
    seed: int

    def train_batch(self, step: int, rows: slice | None = None) -> Batch:
        """Make the batch of a step (at least 0), a pure function of (seed, step)."""
        return self.train.take(Order(len(self.train), self.seed).indices(step, self.batch_size), rows)

    def train_batches(self, start: int, stop: int, rows: slice | None = None) -> Prefetch[Batch]:
        """Iterate over (step, batch) for the steps in [start, stop) inside a `with` block, prepared ahead of time."""
        return Prefetch(functools.partial(self.train_batch, rows=rows), start, stop)

    def scoring_batch(self, number: int, batch_size: int, rows: slice | None = None) -> Batch:
        """Make a batch of training examples for scores, a pure function of (seed, number)."""
        return self.train.take(Order(len(self.train), self.seed, SCORING).indices(number, batch_size), rows)

    def eval_batches(self, split: str | None = None, rows: slice | None = None) -> Iterator[Batch]:
        """Iterate over `EncodedTexts.iterate` of one of `spec.eval_splits`, or of all in turn."""
        if split is not None and split not in self.eval:
            raise ValueError(f'split must be one of {", ".join(self.eval)}, got {split!r}')
        for name in self.eval if split is None else [split]:
            yield from self.eval[name].iterate(self.batch_size, rows)

    def eval_labels(self, split: str) -> np.ndarray:
        """Return the labels of an evaluation split, int32[N] or float32[N]."""
        return self.eval[split].labels

    @property
    def num_eval_batches(self) -> int:
        """Number of batches of `eval_batches()`."""
        return sum(-(-len(texts) // self.batch_size) for texts in self.eval.values())

    @property
    def run_files(self) -> dict[str, Any]:
        """The tokenizer as the content of `tokenizer.json`."""
        return {'tokenizer.json': self.pieces.describe()}


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
    """Make a source of examples. `class_names` is empty for regression."""
    spec = TextSpec(
        num_classes=len(class_names) or 1,
        class_names=class_names,
        max_length=pieces.max_length,
        vocab_size=pieces.vocab_size,
        num_train=len(train.labels),
        num_eval=sum(len(examples.labels) for examples in evaluation.values()),
        metrics=metrics,
        eval_splits=tuple(evaluation),
        first_seen=first_seen,
    )
    encoded = {name: encode_texts(examples.texts, pieces, examples.labels) for name, examples in evaluation.items()}
    return TextSource(spec, encode_texts(train.texts, pieces, train.labels), encoded, pieces, batch_size, seed)


def encode_texts(texts: tuple[list[str], ...], pieces: WordPieces, labels: np.ndarray | None = None) -> EncodedTexts:
    """Encode one or two lists of texts."""
    return EncodedTexts(pieces.encode(texts), labels, pieces.pad, pieces.max_length)


def choose_length(longest: int, max_length: int) -> int:
    """Choose the padded length of a batch. There are few lengths, so that few are compiled.

    >>> [choose_length(longest, 100) for longest in (5, 16, 17, 64, 65)]
    [16, 16, 32, 64, 100]
    """
    length = SHORTEST
    while length < longest:
        length *= 2
    return min(length, max_length)


def open_text_files(
    *,
    path: str | None,
    text_columns: Sequence[str],
    label_column: str,
    regression: bool = False,
    pieces: WordPieces,
    batch_size: int,
    seed: int = 0,
    on_bad: str = 'stop',
) -> TextSource:
    """Open labelled texts of one's own. The other arguments are those of `pad_jax.data.glue.open_glue`.

    The classes are the sorted labels of the training file. With one file, every fifth example of each class (for
    regression: every fifth example) is for evaluation, for all seeds.

    Args:
      path: a file, or a folder with train and val files.
      text_columns: one name, or two for pairs.
      label_column: another name. Labels are any text; for regression finite numbers.
      regression: True if the labels are numbers.

    Raises:
      BadInput: if the path has another layout, a column is missing or named twice, a row is bad, there is only one
        class, or no example is left for evaluation.
    """
    if isinstance(text_columns, str) or not 1 <= len(text_columns) == len(set(text_columns) - {''}) <= 2:
        raise BadInput(f'text_columns must be one or two different names of columns, got {text_columns!r}')
    if not label_column or label_column in text_columns:
        names = ', '.join(map(repr, text_columns))
        raise BadInput(f'label_column must name another column than text_columns ({names}), got {label_column!r}')
    train_file, eval_file = _find_files(path)
    read = functools.partial(read_examples, text_columns=text_columns, label_column=label_column, on_bad=on_bad)
    class_names, first_seen = (), ()
    parse_label = parse_number() if regression else _check_label
    train = read(open_table(train_file), parse_label=parse_label)
    if not regression:
        names, first, labels = np.unique(train.labels, return_index=True, return_inverse=True)
        class_names = tuple(names)
        if len(class_names) == 1:
            label = shorten(class_names[0])
            raise BadInput(f'column {label_column!r} of {quote(train_file)} has only the label {label!r}')
        first_seen = tuple((train.labels[i], f'{quote(train_file)} line {train.lines[i]}') for i in sorted(first))
        train = dataclasses.replace(train, labels=labels.astype(np.int32))
        parse_label = parse_class(class_names)
    if eval_file is not None:
        evaluation = read(open_table(eval_file), parse_label=parse_label)
    else:
        train, evaluation = hold_out(train, quote(train_file))
    metrics = ('pearson', 'spearman') if regression else ('accuracy',)
    return make_text_batches(
        train,
        {'val': evaluation},
        pieces=pieces,
        class_names=class_names,
        metrics=metrics,
        batch_size=batch_size,
        seed=seed,
        first_seen=first_seen,
    )


def hold_out(examples: TextExamples, source: str) -> tuple[TextExamples, TextExamples]:
    """Split examples: every fifth of each class for evaluation, the others for training."""
    labels = examples.labels
    classes = labels if labels.dtype.kind == 'i' else np.zeros(len(labels), np.int32)
    held = np.zeros(len(labels), bool)
    for label in np.unique(classes):
        held[np.flatnonzero(classes == label)[EVAL_EVERY - 1 :: EVAL_EVERY]] = True
    if not held.any():
        raise BadInput(
            f'{source} holds too few examples to set every {EVAL_EVERY}th of a class aside for evaluation. '
            'Add more, or name a folder with train and val files'
        )

    def select(mask):
        return TextExamples(tuple(list(itertools.compress(column, mask)) for column in examples.texts), labels[mask])

    return select(~held), select(held)


def _check_label(text: str) -> str:
    if not text:
        raise ValueError('its label is empty')
    return text


def _find_files(path: str | None) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Find the training file, and the evaluation file if the path is a folder."""
    if not path:
        raise BadInput(f'path must name {LAYOUT}, got {path!r}')
    root = pathlib.Path(path).expanduser()
    if not root.exists():
        raise BadInput(f'{quote(root)} does not exist: expected {LAYOUT}')
    return (_find_file(root, 'train'), _find_file(root, 'val')) if root.is_dir() else (root, None)


def _find_file(folder: pathlib.Path, stem: str) -> pathlib.Path:
    names = [stem + suffix for suffix in SUFFIXES]
    found = [name for name in names if (folder / name).is_file()]
    if len(found) != 1:
        listed = ', '.join(found) or f'none of {", ".join(names)}'
        raise BadInput(f'{quote(folder)} must hold one {stem} file, got {listed}: {LAYOUT}')
    return folder / found[0]
