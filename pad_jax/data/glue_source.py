"""GLUE as a source of batches: from the original TSV files, or as TFDS prepared it."""

import logging
import pathlib

from pad_jax.data import glue_tfds
from pad_jax.data.glue import GlueTask, find_task
from pad_jax.data.glue_files import TRAIN_FILE, find_folder, read_glue_file
from pad_jax.data.text_examples import TextExamples
from pad_jax.data.text_source import TextSource, make_text_batches
from pad_jax.data.tokenization import WordPieces
from pad_jax.errors import BadInput, quote

logger = logging.getLogger(__name__)


def open_glue(
    *,
    path: str | None,
    task: str,
    pieces: WordPieces,
    batch_size: int,
    seed: int = 0,
    on_bad: str = 'stop',
) -> TextSource:
    """One task of GLUE, to train and evaluate on; the test split has no labels and is for prediction.

    Args:
        path: the folder of the original files (`PATH/RTE/train.tsv`, or PATH is the task's own folder), or
            TFDS's data_dir (`PATH/glue/rte/VERSION`). The original files go first where both are there.
        task: a key of `pad_jax.data.glue.GLUE_TASKS`.
        pieces: what texts are encoded with.
        batch_size: examples in a global batch, at least 1.
        seed: in [0, 2⁶⁴), of the order.
        on_bad: what a wrong row does: `stop` raises, `skip` leaves it out and says so.

    Raises:
        BadInput: the task is none of GLUE's; the path holds neither; a file is wrong.
    """
    row = find_task(task)
    train, evaluation = _read_splits(path, task, row, on_bad)
    return make_text_batches(
        train,
        evaluation,
        pieces=pieces,
        class_names=row.class_names,
        metrics=row.metrics,
        batch_size=batch_size,
        seed=seed,
    )


def _read_splits(
    path: str | None, name: str, task: GlueTask, on_bad: str
) -> tuple[TextExamples, dict[str, TextExamples]]:
    layout = f'{task.folder}/{TRAIN_FILE} (the original files) or glue/{name} (prepared by TFDS)'
    if not path:
        raise BadInput(f'path must name a folder with {layout}, got {path!r}')
    root = pathlib.Path(path).expanduser()
    if not root.exists():
        raise BadInput(f'{quote(root)} does not exist: expected {layout}')
    if not root.is_dir():
        own = 'for a file of your own: --config.data.name=text'
        raise BadInput(f'{quote(root)} is not a folder: expected one with {layout}; {own}')
    folder = find_folder(root, task)
    if folder is not None:
        logger.info('reading the original files in %s', folder)
        train = read_glue_file(folder / TRAIN_FILE, task, on_bad=on_bad)
        return train, {s.name: read_glue_file(folder / s.file, task, on_bad=on_bad) for s in task.eval_splits}
    prepared = glue_tfds.find_prepared(root, name)
    if prepared is None:
        data_dir = glue_tfds.find_data_dir(root, name)
        how = f'--config.data.path={data_dir}' if data_dir else glue_tfds.explain_preparing(root, name)
        raise BadInput(f'{quote(root)} has no {layout}; for the latter, {how}')
    logger.info('reading what TFDS prepared in %s', prepared)
    train = glue_tfds.read_split(prepared, task, 'train')
    return train, {s.name: glue_tfds.read_split(prepared, task, s.name) for s in task.eval_splits}
