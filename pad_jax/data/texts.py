"""Sources of texts: batches of tokens, and labelled texts of one's own."""

import dataclasses
import functools
import itertools
import logging
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pad_jax.data.ordering import HOLDOUT, SCORING, Order, choose_held
from pad_jax.data.source import Batch, DataSpec, Source, make_digest
from pad_jax.data.tables import SUFFIXES, TextExamples, open_table, parse_class, parse_number, read_examples, shorten
from pad_jax.data.tokenization import EncodedTexts, WordPieces
from pad_jax.errors import BadInput, quote
from pad_jax.files import reach

EVAL_STEMS = ('val', 'validation', 'dev')
LAYOUT = f'a file ({", ".join(SUFFIXES)}), or a folder with train and {", ".join(EVAL_STEMS[:-1])} or dev as such files'

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
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
        return DataSpec(
            num_classes=len(self.class_names) or 1,
            class_names=self.class_names,
            num_train=len(self.train),
            num_eval=sum(map(len, self.eval.values())),
            metrics=self.metrics,
            eval_splits=tuple(self.eval),
            digests={
                f'contents of {name}': make_digest([texts.ids, texts.starts, texts.first_lengths, texts.labels])
                for name, texts in {'train': self.train, **self.eval}.items()
            },
        )

    def train_batch(self, step: int, rows: slice | None = None) -> Batch:
        """Make the batch of a step (at least 0), a pure function of (seed, step)."""
        return self.train.take(Order(len(self.train), self.seed).indices(step, self.batch_size), rows)

    def scoring_batch(self, number: int, batch_size: int, rows: slice | None = None) -> Batch:
        return self.train.take(Order(len(self.train), self.seed, SCORING).indices(number, batch_size), rows)

    def eval_batches(self, split: str | None = None, rows: slice | None = None) -> Iterator[Batch]:
        for name in self.eval if split is None else [split]:
            yield from self.eval[name].iterate(self.batch_size, rows)

    def eval_labels(self, split: str) -> np.ndarray:
        return self.eval[split].labels

    @property
    def num_eval_batches(self) -> int:
        return sum(-(-len(texts) // self.batch_size) for texts in self.eval.values())

    @property
    def run_files(self) -> dict[str, Any]:
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
    holdout: float = 0.0,
) -> TextSource:
    """Open labelled texts of one's own. The other arguments are those of `open_glue`.

    The classes are the sorted labels of the training file, in Unicode's composed form.

    Args:
      path: a file, or a folder with a train file and a val, validation or dev file.
      text_columns: one name, or two for pairs.
      label_column: another name. Labels are any text; for regression finite numbers.
      regression: True if the labels are numbers.
      holdout: share in [0, 1) of each class (for regression: of all examples) that is for evaluation, for all seeds, if
        no file has that purpose; 0 sets aside a fifth of a single file.

    Raises:
      BadInput: if the path has another layout, a column is missing or a row is bad. Also if there is only one class, or
        no example is left for evaluation.
    """
    if isinstance(text_columns, str) or not 1 <= len(text_columns) == len(set(text_columns) - {''}) <= 2:
        raise BadInput(f'text_columns must be one or two different names of columns, got {text_columns!r}')
    if not label_column or label_column in text_columns:
        names = ', '.join(map(repr, text_columns))
        raise BadInput(f'label_column must name another column than text_columns ({names}), got {label_column!r}')
    train_file, eval_file = _find_files(path, holdout)
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
        train, evaluation = hold_out(train, quote(train_file), holdout or HOLDOUT)
    metrics = ('pearson', 'spearman') if regression else ('accuracy',)
    train, evaluation = pieces.encode(*train), {'val': pieces.encode(*evaluation)}
    return TextSource(train, evaluation, pieces, class_names, metrics, batch_size, seed)


def hold_out(examples: TextExamples, source: str, holdout: float) -> tuple[TextExamples, TextExamples]:
    """Split examples: a share of each class for evaluation, the others for training."""
    classes = examples.labels if examples.labels.dtype.kind == 'i' else np.zeros(len(examples.labels))
    held = choose_held(classes, holdout)
    if not held.any() or held.all():
        raise BadInput(
            f'{source} holds too few examples to set a share of {holdout:g} of each class aside for evaluation. '
            'Add more, or name a folder with train and val files'
        )

    def select(mask):
        return TextExamples(tuple(list(itertools.compress(column, mask)) for column in examples.texts), labels[mask])

    labels = examples.labels
    return select(~held), select(held)


def _check_label(text: str) -> str:
    if not text:
        raise ValueError('its label is empty')
    return unicodedata.normalize('NFC', text)


def _find_files(path: str | None, holdout: float) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Find the training file, and the evaluation file if the path is a folder that has one."""
    if not path:
        raise BadInput(f'path must name {LAYOUT}, got {path!r}')
    root = reach(path)
    if not root.exists():
        raise BadInput(f'{quote(root)} does not exist: expected {LAYOUT}')
    if not root.is_dir():
        return root, None
    stems = [stem for stem in EVAL_STEMS if any((root / f'{stem}{suffix}').is_file() for suffix in SUFFIXES)]
    if stems and holdout:
        raise BadInput(f'holdout must be 0 for {quote(root)}, which has a {stems[0]} file, got {holdout:g}')
    files = []
    for stem in ('train', *([] if holdout else stems[:1] or EVAL_STEMS[:1])):
        names = [stem + suffix for suffix in SUFFIXES]
        found = [name for name in names if (root / name).is_file()]
        if len(found) != 1:
            listed = ', '.join(found) or f'none of {", ".join(names)}'
            advice = '' if stem == 'train' else ', or data.holdout=0.2'
            raise BadInput(f'{quote(root)} must hold one {stem} file, got {listed}: {LAYOUT}{advice}')
        files.append(root / found[0])
    if stems and stems[0] != 'val':
        logger.info('evaluation uses %s', quote(files[1]))
    return files[0], files[1] if len(files) == 2 else None
