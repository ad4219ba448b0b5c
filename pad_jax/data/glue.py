"""The nine tasks of GLUE: their files, TFDS folders and submissions.

Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding".
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pad_jax.data.metrics import choose_predictions
from pad_jax.data.prepared import explain_building, find_prepared, open_builder, open_split
from pad_jax.data.tables import Table, check_output, open_table, parse_class, parse_number, read_examples, write_table
from pad_jax.data.texts import TextSource
from pad_jax.data.tokenization import EncodedTexts, WordPieces
from pad_jax.errors import BadInput, check_choice, describe, quote
from pad_jax.files import reach

TRAIN_FILE = 'train.tsv'

logger = logging.getLogger(__name__)


class EvalSplit(NamedTuple):
    """One split for evaluation: its name here and in TFDS, its original file, and its file in a submission."""

    name: str
    file: str
    submission: str


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """Layout of one task."""

    folder: str  # of the original files
    text_columns: tuple[str, ...]  # of the original files, as the next
    label_column: str
    class_names: tuple[str, ...]  # of each label, in the order of TFDS; empty for regression
    file_labels: tuple[str, ...]  # the same labels in original files and submissions
    metrics: tuple[str, ...]  # keys of `METRICS`
    features: tuple[str, ...]  # texts in TFDS
    eval_splits: tuple[EvalSplit, ...]
    headless_columns: tuple[str, ...] | None = None  # of CoLA's files, of which only the test file has a header
    skips_broken_rows: bool = False  # QQP: questions with a line break fell apart; published counts leave them out
    label_range: tuple[float, float] | None = None  # of regression
    diagnostic: str | None = None  # submission file of MNLI's diagnostic set

    @property
    def num_classes(self) -> int:
        """Outputs of a network: 1 for regression."""
        return len(self.class_names) or 1

    def parse_label(self, text: str) -> int | float:
        """Return the label that original files write as `text`, as `parse_class` or `parse_number`."""
        return parse_number(text, *self.label_range) if self.label_range else parse_class(text, self.file_labels)


PAIR, F1 = ('sentence1', 'sentence2'), ('accuracy', 'f1')
ENTAILMENT, INFERENCE = ('entailment', 'not_entailment'), ('entailment', 'neutral', 'contradiction')
HEADLESS = ('source', 'label', 'annotation', 'sentence')
QUESTIONS, DUPLICATE = ('question1', 'question2'), ('not_duplicate', 'duplicate')
MATCHED = EvalSplit('validation_matched', 'dev_matched.tsv', 'MNLI-m.tsv')
MISMATCHED = EvalSplit('validation_mismatched', 'dev_mismatched.tsv', 'MNLI-mm.tsv')
MNLI = {'features': ('premise', 'hypothesis'), 'eval_splits': (MATCHED, MISMATCHED), 'diagnostic': 'AX.tsv'}


def _task(folder, text_columns, label_column, class_names, file_labels=('0', '1'), metrics=('accuracy',), **changes):
    """Make a task with one split for evaluation, and with the columns as features, except for `changes`."""
    splits = (EvalSplit('validation', 'dev.tsv', f'{folder}.tsv'),)
    layout = {'features': text_columns, 'eval_splits': splits} | changes
    return GlueTask(folder, text_columns, label_column, class_names, file_labels, metrics, **layout)


GLUE_TASKS: dict[str, GlueTask] = {
    'cola': _task(
        'CoLA', ('sentence',), 'label', ('unacceptable', 'acceptable'), metrics=('matthews',), headless_columns=HEADLESS
    ),
    'sst2': _task('SST-2', ('sentence',), 'label', ('negative', 'positive')),
    'mrpc': _task(
        'MRPC', ('#1 String', '#2 String'), 'Quality', ('not_equivalent', 'equivalent'), metrics=F1, features=PAIR
    ),
    'stsb': _task('STS-B', PAIR, 'score', (), (), metrics=('pearson', 'spearman'), label_range=(0.0, 5.0)),
    'qqp': _task('QQP', QUESTIONS, 'is_duplicate', DUPLICATE, metrics=F1, skips_broken_rows=True),
    'mnli': _task('MNLI', PAIR, 'gold_label', INFERENCE, INFERENCE, **MNLI),
    'qnli': _task('QNLI', ('question', 'sentence'), 'label', ENTAILMENT, ENTAILMENT),
    'rte': _task('RTE', PAIR, 'label', ENTAILMENT, ENTAILMENT),
    # The labels of WNLI count in the other direction than those of RTE.
    'wnli': _task('WNLI', PAIR, 'label', ENTAILMENT[::-1]),
}
"""Tasks by the name of their configuration in TFDS."""


def open_glue(
    *, path: str | None, task: str, pieces: WordPieces, batch_size: int, seed: int = 0, on_bad: str = 'stop'
) -> TextSource:
    """Open one task of GLUE for training and evaluation.

    Args:
      path: folder of the original files (`PATH/RTE/train.tsv`, or PATH is the task's own folder), or data_dir of TFDS
        (`PATH/glue/rte/VERSION`). If both exist, the original files are read.
      task: a key of `GLUE_TASKS`.
      pieces: tokenizer of the texts.
      batch_size: examples in a global batch, at least 1.
      seed: of the order, in [0, 2⁶⁴).
      on_bad: `stop` raises at a bad row, `skip` leaves it out and logs a warning.

    Raises:
      BadInput: if GLUE does not have the task, the path has neither layout, or a file is wrong.
    """
    check_choice('task', task, GLUE_TASKS)
    row = GLUE_TASKS[task]
    layout = f'{row.folder}/{TRAIN_FILE} (the original files) or glue/{task} (prepared by TFDS)'
    if not path:
        raise BadInput(f'path must name a folder with {layout}, got {path!r}')
    root = reach(path)
    if not root.is_dir():
        problem = 'is not a folder' if root.exists() else 'does not exist'
        own = 'for a file of your own: --config.data.name=text'
        raise BadInput(f'{quote(root)} {problem}: expected a folder with {layout}; {own}')
    folder, prepared = find_folder(root, row), None
    if folder is None:
        prepared = find_prepared(root, f'glue/{task}')
        if prepared is None:
            build = explain_building(root, f'glue/{task}')
            raise BadInput(f'{quote(root)} has no {layout}; for the latter, run {build}')
    logger.info('reading %s', folder or prepared)

    def read(split: str, file: str) -> EncodedTexts:
        if folder is None:
            table, columns = open_prepared_split(prepared, row, split), (row.features, 'label')
            labels = dataclasses.replace(row, file_labels=tuple(map(str, range(row.num_classes))))
        else:
            table, columns, labels = open_glue_file(folder / file, row), (row.text_columns, row.label_column), row
        return pieces.encode(*read_examples(table, *columns, labels.parse_label, on_bad, row.skips_broken_rows))

    train = read('train', TRAIN_FILE)
    evaluation = {split.name: read(split.name, split.file) for split in row.eval_splits}
    return TextSource(train, evaluation, pieces, row.class_names, row.metrics, batch_size, seed)


def find_folder(root: pathlib.Path, task: GlueTask) -> pathlib.Path | None:
    """Find the original files of a task in `root/FOLDER` or in `root`; None if neither has them.

    Raises:
      BadInput: if a file is missing, or `root` has the name of another task's folder.
    """
    folder = root / task.folder
    if not folder.is_dir():
        if not (root / TRAIN_FILE).is_file():
            return None
        # Another task may have the same columns and labels.
        for name, other in GLUE_TASKS.items():
            if root.absolute().name.lower() == other.folder.lower() != task.folder.lower():
                raise BadInput(f'{quote(root)} is the folder of the task {name}, expected {task.folder}')
        folder = root
    names = (TRAIN_FILE, *(split.file for split in task.eval_splits))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BadInput(f'{quote(folder)} has no {" and no ".join(missing)}: expected {", ".join(names)}')
    return folder


def open_glue_file(path: str | os.PathLike, task: GlueTask) -> Table:
    """Open an original file of a task, with or without a header, as `open_table`."""
    table = open_table(path)
    if task.headless_columns and task.text_columns[0] not in table.columns:
        table = open_table(path, task.headless_columns)
    return table


def open_prepared_split(folder: pathlib.Path, task: GlueTask, split: str) -> Table:
    """Open one labelled split of a TFDS folder, without TensorFlow and without the network.

    Rows on disk have the order of a hash. They are returned in the order of the original files, so a run sees the same
    batches from both.
    """
    source = open_split(open_builder(folder), split)
    try:
        rows = sorted(source.__getitems__(range(len(source))), key=lambda row: row['idx'])
        texts = [{name: row[name].decode('utf-8') for name in task.features} for row in rows]
        records = [(row['idx'], {**found, 'label': np.asarray(row['label']).item()}) for row, found in zip(rows, texts)]
    except Exception as error:  # A truncated or changed folder fails in many ways.
        raise BadInput(f'cannot read split {split} of {quote(folder)}: {describe(error)}') from error
    return Table(folder / split, (*task.features, 'label'), iter(records))


def choose_output(output: str | os.PathLike, source: str | os.PathLike, task: GlueTask | None = None) -> pathlib.Path:
    """Choose the file for predictions and check that it can be written.

    Args:
      output: a file; for GLUE also a folder, in which the file gets the name that the benchmark expects.
      source: the file to predict. Its name tells the sets of MNLI apart.
      task: of GLUE; None for texts of one's own.

    >>> choose_output('.', 'MNLI/test_mismatched.tsv', GLUE_TASKS['mnli']).name
    'MNLI-mm.tsv'
    """
    output, source = reach(output), reach(source)
    if task is not None and output.is_dir():
        # The benchmark's names: MNLI/diagnostic.tsv, diagnostic-full.tsv, AX.tsv or AX/test.tsv.
        is_diagnostic = source.name.lower().startswith(('diagnostic', 'ax')) or source.absolute().parent.name == 'AX'
        is_mismatched = len(task.eval_splits) > 1 and 'mismatched' in source.name
        submission = task.eval_splits[int(is_mismatched)].submission
        output = output / (task.diagnostic if task.diagnostic and is_diagnostic else submission)
    if output.exists() and source.exists() and output.samefile(source):
        raise BadInput(f'{quote(output)} is the file to be read: predictions must go to another')
    check_output(output)
    return output


def write_predictions(
    path: str | os.PathLike,
    class_names: Sequence[str],
    ids: Sequence[str],
    logits: np.ndarray,
    task: GlueTask | None = None,
) -> None:
    """Write predictions as a table.

    For GLUE it is a submission: columns `index` and `prediction`, labels of the original files, numbers in the range of
    the labels and with three decimals. Otherwise its columns are `id`, `label` and, for each class, `score CLASS` with
    the probability.

    Args:
      path: ends in .tsv, .csv or .jsonl.
      class_names: F names, or none for regression.
      ids: N, in the order of the file.
      logits: float[N, F], or float[N, 1] for regression.
      task: of GLUE; None for texts of one's own.
    """
    predictions, logits = choose_predictions(logits), np.asarray(logits, np.float64)
    if task:
        if task.label_range:
            labels = [f'{number:.3f}' for number in np.clip(predictions, *task.label_range)]
        else:
            labels = [task.file_labels[label] for label in predictions]
        write_table(path, ['index', 'prediction'], zip(ids, labels, strict=True))
    elif class_names:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = (powers / powers.sum(axis=1, keepdims=True)).round(6).tolist()
        labels = [class_names[label] for label in predictions]
        rows = ([name, label, *scores] for name, label, scores in zip(ids, labels, probabilities, strict=True))
        write_table(path, ['id', 'label', *(f'score {name}' for name in class_names)], rows)
    else:
        write_table(path, ['id', 'label'], zip(ids, logits[:, 0].round(6).tolist(), strict=True))
