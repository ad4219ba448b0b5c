"""Sources of texts: batches of tokens, and labelled texts of one's own."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from pad_jax.data.ordering import SCORING, Order
from pad_jax.data.source import Batch, DataSpec, Source, run_ahead
from pad_jax.data.tables import SUFFIXES, TextExamples, open_table, parse_class, parse_number, read_examples, shorten
from pad_jax.data.tokenization import EncodedTexts, WordPieces
from pad_jax.errors import BadInput, quote

LAYOUT = f'a file ({", ".join(SUFFIXES)}), or a folder with train and val as such files'
EVAL_EVERY = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource(Source):
    """Batches of labelled texts, single or in pairs.

    Batches are those of `EncodedTexts.take`. T is the smallest of 16, 32, 64, ... that holds the longest text of the
    global batch, at most the tokenizer's `max_length`.
    """

    train: EncodedTexts
    eval: dict[str, EncodedTexts]  # by split
    pieces: WordPieces  # tokenizer of the texts
    class_names: tuple[str, ...]  # of each label; empty for regression
    metrics: tuple[str, ...]  # keys of `METRICS`
    batch_size: int  # B, at least 1
    seed: int  # of the order, in [0, 2⁶⁴)

    @functools.cached_property
    def spec(self) -> DataSpec:
        """Properties of the data."""
        return DataSpec(
            num_classes=len(self.class_names) or 1,
            class_names=self.class_names,
            num_train=len(self.train),
            num_eval=sum(map(len, self.eval.values())),
            metrics=self.metrics,
            eval_splits=tuple(self.eval),
        )

    def train_batch(self, step: int, rows: slice | None = None) -> Batch:
        """Make the batch of a step (at least 0), a pure function of (seed, step)."""
        return self.train.take(Order(len(self.train), self.seed).indices(step, self.batch_size), rows)

    def train_batches(
        self, start: int, stop: int, rows: slice | None = None
    ) -> AbstractContextManager[Iterator[tuple[int, Batch]]]:
        """Iterate over (step, batch) for the steps in [start, stop) inside a `with` block, prepared ahead of time."""
        return run_ahead(functools.partial(self.train_batch, rows=rows), start, stop)

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
      BadInput: if the path has another layout, a column is missing or a row is bad. Also if there is only one class, or
        no example is left for evaluation.
    """
    if isinstance(text_columns, str) or not 1 <= len(text_columns) == len(set(text_columns) - {''}) <= 2:
        raise BadInput(f'text_columns must be one or two different names of columns, got {text_columns!r}')
    if not label_column or label_column in text_columns:
        names = ', '.join(map(repr, text_columns))
        raise BadInput(f'label_column must name another column than text_columns ({names}), got {label_column!r}')
    train_file, eval_file = _find_files(path)
    read = functools.partial(read_examples, text_columns=text_columns, label_column=label_column, on_bad=on_bad)
    class_names = ()
    parse_label = parse_number if regression else _check_label
    train = read(open_table(train_file), parse_label=parse_label)
    if not regression:
        names, labels = np.unique(train.labels, return_inverse=True)
        class_names = tuple(names)
        if len(class_names) == 1:
            label = shorten(class_names[0])
            raise BadInput(f'column {label_column!r} of {quote(train_file)} has only the label {label!r}')
        train = TextExamples(train.texts, labels.astype(np.int32))
        parse_label = functools.partial(parse_class, names=class_names)
    if eval_file is not None:
        evaluation = read(open_table(eval_file), parse_label=parse_label)
    else:
        train, evaluation = hold_out(train, quote(train_file))
    return TextSource(
        train=pieces.encode(*train),
        eval={'val': pieces.encode(*evaluation)},
        pieces=pieces,
        class_names=class_names,
        metrics=('pearson', 'spearman') if regression else ('accuracy',),
        batch_size=batch_size,
        seed=seed,
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
