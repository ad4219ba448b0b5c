"""GLUE's original TSV files, with their quirks.

CoLA's have no header, except its test file; some begin with a byte order mark; quotes are plain text; QQP has
rows that fell apart; a last line may lack its end.
"""

import os
import pathlib

from pad_jax.data.glue import GLUE_TASKS, GlueTask
from pad_jax.data.text_examples import TextExamples, parse_class, parse_number, read_examples
from pad_jax.data.text_tables import open_table
from pad_jax.errors import BadInput, quote

TRAIN_FILE = 'train.tsv'


def find_folder(root: pathlib.Path, task: GlueTask) -> pathlib.Path | None:
    """The folder that holds the task's files: `root/FOLDER`, or `root` itself; None if neither is laid out so.

    Raises:
        BadInput: `root/FOLDER` is there but lacks a file to train or evaluate on; or `root` is, by its name, the
            folder of another task.
    """
    folder = root / task.folder
    if not folder.is_dir():
        if not (root / TRAIN_FILE).is_file():
            return None
        # The columns of another task may be the same, and its labels too.
        for name, other in GLUE_TASKS.items():
            if root.absolute().name.lower() == other.folder.lower() != task.folder.lower():
                raise BadInput(f'{quote(root)} is the folder of the task {name}, expected {task.folder}')
        folder = root
    names = (TRAIN_FILE, *(split.file for split in task.eval_splits))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BadInput(f'{quote(folder)} has no {" and no ".join(missing)}: expected {", ".join(names)}')
    return folder


def read_glue_file(
    path: str | os.PathLike, task: GlueTask, *, labelled: bool = True, on_bad: str = 'stop'
) -> TextExamples:
    """Reads one file of a task: train, dev, or (not `labelled`) test or any other with its text columns.

    Of QQP's labelled files broken rows are always left out. To predict every row is needed, so there any wrong one
    raises, whatever `on_bad`.

    Raises:
        BadInput: as `open_table` and `read_examples` do, with file and line.
    """
    table = open_table(path)
    if task.headless_columns and task.text_columns[0] not in table.columns:
        table = open_table(path, task.headless_columns)
    if not labelled:
        return read_examples(table, text_columns=task.text_columns)
    return read_examples(
        table,
        text_columns=task.text_columns,
        label_column=task.label_column,
        parse_label=parse_number(*task.label_range) if task.label_range else parse_class(task.file_labels),
        on_bad=on_bad,
        on_broken='skip' if task.has_broken_rows else on_bad,
    )
