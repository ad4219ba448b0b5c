"""What was predicted, as files: GLUE's submissions, and a table of labels and scores for one's own texts.

Legend: N examples, C classes.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.special

from pad_jax.data.glue import GlueTask
from pad_jax.data.metrics import choose_predictions
from pad_jax.data.text_tables import check_output, write_table
from pad_jax.errors import BadInput, quote


def write_submission(path: str | os.PathLike, task: GlueTask, ids: Sequence[str], logits: np.ndarray) -> None:
    """Writes GLUE's submission format: `index` and `prediction`, with the labels of the original files.

    Args:
        path: ends in .tsv; `choose_output` gives the name that the benchmark expects.
        task: of GLUE.
        ids: N, in the order of the file that was read.
        logits: float[N, C], or float[N, 1] for regression, which is clipped to the range of the labels and
            written with three decimals.

    Raises:
        BadInput: the path cannot be written.
    """
    predictions = choose_predictions(logits)
    if task.label_range:
        texts = [f'{number:.3f}' for number in np.clip(predictions, *task.label_range)]
    else:
        texts = [task.file_labels[label] for label in predictions]
    write_table(path, ['index', 'prediction'], zip(ids, texts, strict=True))


def choose_output(output: str | os.PathLike, source: str | os.PathLike, task: GlueTask | None = None) -> pathlib.Path:
    """Where predictions for the file `source` go: `output`, or in it, under the benchmark's name, if a folder.

    Args:
        output: a file to write; of a task a folder will do.
        source: the file to be read; its name says for which of a task's sets it is.
        task: of GLUE; None for texts of one's own.

    Raises:
        BadInput: that is the file to be read, or nothing can be written there.

    >>> from pad_jax.data.glue import find_task
    >>> choose_output('.', 'MNLI/test_mismatched.tsv', find_task('mnli')).name
    'MNLI-mm.tsv'
    """
    output, source = pathlib.Path(output).expanduser(), pathlib.Path(source).expanduser()
    if task is not None and output.is_dir():
        output = output / _name_submission(source, task)
    if output.exists() and source.exists() and output.samefile(source):
        raise BadInput(f'{quote(output)} is the file to be read: predictions must go to another')
    check_output(output)
    return output


def _name_submission(source: pathlib.Path, task: GlueTask) -> str:
    # As the benchmark calls them: MNLI/diagnostic.tsv, diagnostic-full.tsv, AX.tsv or AX/test.tsv.
    is_diagnostic = source.name.lower().startswith(('diagnostic', 'ax')) or source.absolute().parent.name == 'AX'
    if task.diagnostic and is_diagnostic:
        return task.diagnostic
    mismatched = len(task.eval_splits) > 1 and 'mismatched' in source.name
    return task.eval_splits[int(mismatched)].submission


def write_predictions(
    path: str | os.PathLike, class_names: Sequence[str], ids: Sequence[str], logits: np.ndarray
) -> None:
    """Writes `id`, `label` and a column `score CLASS` for the probability of each class; of regression the number.

    Args:
        path: ends in .tsv, .csv or .jsonl, and is written as that.
        class_names: C, or none for regression.
        ids: N, in the order of the file that was read.
        logits: float[N, C], or float[N, 1] for regression.

    Raises:
        BadInput: the path cannot be written, or cannot hold the labels.
    """
    predictions = choose_predictions(logits)
    if not class_names:
        numbers = np.asarray(predictions, np.float64).round(6).tolist()
        write_table(path, ['id', 'label'], zip(ids, numbers, strict=True))
        return
    probabilities = scipy.special.softmax(np.asarray(logits, np.float64), axis=1).round(6).tolist()
    rows = ([name, class_names[label], *row] for name, label, row in zip(ids, predictions, probabilities, strict=True))
    write_table(path, ['id', 'label', *(f'score {name}' for name in class_names)], rows)
