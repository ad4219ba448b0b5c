"""One's own texts: a TSV, CSV or JSON lines file with named columns, or a folder with `train.*` and `val.*`."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from pad_jax.data.text_examples import TextExamples, parse_class, parse_number, read_examples
from pad_jax.data.text_source import TextSource, make_text_batches
from pad_jax.data.text_tables import SUFFIXES, open_table, shorten
from pad_jax.data.tokenization import WordPieces
from pad_jax.errors import BadInput, quote

LAYOUT = f'a file ({", ".join(SUFFIXES)}), or a folder with train and val as such files'
EVAL_EVERY = 5


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
    """One's own labelled texts. Other arguments as for `pad_jax.data.glue_source.open_glue`.

    Classes are the sorted labels of the training file. Of a single file every fifth example of each class (in
    regression every fifth example), in the order of the file, is for evaluation, whatever the seed.

    Args:
        path: a file, or a folder with two (see `LAYOUT`).
        text_columns: one name, or two for pairs.
        label_column: another name. Labels are any text, or for regression finite numbers.
        regression: whether labels are numbers to come close to.

    Raises:
        BadInput: the path is laid out otherwise; a column is missing, or named twice; a row is wrong
            (`on_bad='stop'`); there are fewer than two classes; nothing is left to evaluate on.
    """
    if isinstance(text_columns, str) or not 1 <= len(text_columns) <= 2 or not all(text_columns):
        raise BadInput(f'text_columns must be one or two names of columns, got {text_columns!r}')
    if not label_column:
        raise BadInput(f'label_column must name a column, got {label_column!r}')
    if len({*text_columns, label_column}) <= len(text_columns):
        names = ', '.join(map(repr, text_columns))
        raise BadInput(f'text_columns and label_column must differ, got {names} and {label_column!r}')
    train_file, eval_file = _find_files(path)

    def read(file: pathlib.Path, parse_label: Callable[[str], int | float]) -> TextExamples:
        return read_examples(
            open_table(file),
            text_columns=text_columns,
            label_column=label_column,
            parse_label=parse_label,
            on_bad=on_bad,
        )

    class_names, first_seen = (), ()
    if regression:
        parse_eval = parse_number()
        train = read(train_file, parse_eval)
    else:
        found: dict[str, int] = {}
        train = read(train_file, _collect_classes(found))
        class_names = tuple(sorted(found))
        if len(class_names) == 1:
            label = shorten(class_names[0])
            raise BadInput(f'column {label_column!r} of {quote(train_file)} has only the label {label!r}')
        lines = [train.lines[place] for place in np.unique(train.labels, return_index=True)[1]]
        first_seen = tuple((name, f'{quote(train_file)} line {line}') for name, line in zip(found, lines, strict=True))
        places = np.argsort(np.array([found[name] for name in class_names])).astype(np.int32)
        train = dataclasses.replace(train, labels=places[train.labels])
        parse_eval = parse_class(class_names)
    if eval_file is not None:
        evaluation = read(eval_file, parse_eval)
    else:
        train, evaluation = hold_out(train, quote(train_file))
    return make_text_batches(
        train,
        {'val': evaluation},
        pieces=pieces,
        class_names=class_names,
        metrics=('pearson', 'spearman') if regression else ('accuracy',),
        batch_size=batch_size,
        seed=seed,
        first_seen=first_seen,
    )


def read_unlabelled(path: str | os.PathLike, text_columns: Sequence[str]) -> TextExamples:
    """The texts of a file to predict; a label column may be there and is not read.

    Raises:
        BadInput: as `open_table` and `read_examples` do.
    """
    return read_examples(open_table(path), text_columns=text_columns)


def hold_out(examples: TextExamples, place: str) -> tuple[TextExamples, TextExamples]:
    """Every fifth example of each class for evaluation, the others to train on.

    >>> labels = np.array([0, 0, 1, 0, 0, 0], np.int32)
    >>> train, evaluation = hold_out(TextExamples((list('abcdef'),), labels, list('012345')), 'a list')
    >>> train.ids, evaluation.ids
    (['0', '1', '2', '3', '4'], ['5'])
    """
    labels = examples.labels
    classes = labels if labels.dtype.kind == 'i' else np.zeros(len(labels), np.int32)
    held = np.zeros(len(labels), bool)
    for label in np.unique(classes):
        held[np.flatnonzero(classes == label)[EVAL_EVERY - 1 :: EVAL_EVERY]] = True
    if not held.any():
        raise BadInput(
            f'{place} holds too few examples to set every {EVAL_EVERY}th of a class aside for evaluation: add more, or '
            'name a folder with train and val files'
        )
    return _select(examples, ~held), _select(examples, held)


def _select(examples: TextExamples, mask: np.ndarray) -> TextExamples:
    where = np.flatnonzero(mask).tolist()
    texts = tuple([column[i] for i in where] for column in examples.texts)
    return TextExamples(texts, examples.labels[mask], [examples.ids[i] for i in where])


def _collect_classes(found: dict[str, int]) -> Callable[[str], int]:
    """A parser that numbers labels as they come."""

    def parse(text: str) -> int:
        if not text:
            raise ValueError('its label is empty')
        return found.setdefault(text, len(found))

    return parse


def _find_files(path: str | None) -> tuple[pathlib.Path, pathlib.Path | None]:
    if not path:
        raise BadInput(f'path must name {LAYOUT}, got {path!r}')
    root = pathlib.Path(path).expanduser()
    if root.is_dir():
        return _find_file(root, 'train'), _find_file(root, 'val')
    if not root.exists():
        raise BadInput(f'{quote(root)} does not exist: expected {LAYOUT}')
    return root, None


def _find_file(folder: pathlib.Path, stem: str) -> pathlib.Path:
    found = [folder / f'{stem}{suffix}' for suffix in SUFFIXES if (folder / f'{stem}{suffix}').is_file()]
    if len(found) != 1:
        names = ', '.join(file.name for file in found) or f'no {stem}{f", {stem}".join(SUFFIXES)}'
        raise BadInput(f'{quote(folder)} must hold one {stem} file, got {names}: expected {LAYOUT}')
    return found[0]
