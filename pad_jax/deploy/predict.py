"""Predictions for new images and texts, by a run or by an export."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pad_jax.data import GLUE_TASKS, SOURCES, WordPieces, open_vocabulary
from pad_jax.data.glue import choose_output, open_glue_file, write_predictions
from pad_jax.data.tables import check_fields, open_table, read_unlabelled, split_names
from pad_jax.data.unlabelled import describe_preprocessing, find_images, prepare_images
from pad_jax.deploy.serving import TOKENIZER, load_exported
from pad_jax.errors import BadInput
from pad_jax.training import setup
from pad_jax.training.config import is_language, is_text, read_workdir_config
from pad_jax.training.evaluate import restore_run
from pad_jax.training.workdir import read_data

Batch = Mapping[str, np.ndarray]
BATCH = 64  # of an export, which does not record one


class Predictor(NamedTuple):
    """A trained network and the preparation of its inputs."""

    class_names: Sequence[str]  # by label; () if the network predicts a number
    prepared: Mapping[str, Any]  # of `describe_inputs`
    pieces: WordPieces | None  # tokenizer; None for images
    batch_size: int
    open: Callable[[], Callable[[Batch], np.ndarray]]  # restores the network; its function returns float32[B, F]


def describe_inputs(config) -> dict[str, Any]:
    """Describe how the inputs of a config's network are prepared, as values for JSON."""
    data = config.data
    if not is_text(config):
        return describe_preprocessing(SOURCES[data.name], data.image_size)
    if is_language(config):
        tokenizer = {'tokenizer': TOKENIZER} if data.vocabulary else {}  # bytes need none
        return {**tokenizer, 'max_length': data.max_length, 'objective': config.train.objective}
    task = data.task if data.name == 'glue' else None
    return {'tokenizer': TOKENIZER, 'max_length': data.max_length, 'columns': data.text_columns, 'task': task}


def open_run(workdir: Path, best: bool = False) -> Predictor:
    """Open the run in workdir; its newest checkpoint is read later, or the best one, as in `restore_run`."""
    config, record = read_workdir_config(workdir), read_data(workdir)
    _refuse_language_model(describe_inputs(config))

    def restore() -> Callable[[Batch], np.ndarray]:
        step, state, replicas = restore_run(workdir, best=best).place(collects=True)

        def apply(batch: Batch) -> np.ndarray:
            labels = np.zeros(len(batch['weight']), np.int32)  # the step computes a loss, which is not used here
            return np.asarray(replicas.fetch(step(state, replicas.place_batch({**batch, 'label': labels})))['outputs'])

        return apply

    pieces = setup.open_pieces(config, workdir) if is_text(config) else None
    return Predictor(record.class_names, describe_inputs(config), pieces, config.data.batch_size, restore)


def open_export(folder: Path) -> Predictor:
    """Open the export in a folder."""
    network = load_exported(folder)
    prepared, names = network.manifest['preprocessing'], [spec['name'] for spec in network.manifest['inputs']]
    _refuse_language_model(prepared)
    pieces = open_vocabulary(str(folder / TOKENIZER), prepared['max_length']) if 'tokenizer' in prepared else None

    def apply(batch: Batch) -> np.ndarray:
        return np.asarray(network(**{name: batch[name] for name in names}))

    return Predictor(network.class_names, prepared, pieces, BATCH, lambda: apply)


def _refuse_language_model(prepared: Mapping[str, Any]) -> None:
    if 'objective' in prepared:
        raise BadInput('a language model predicts tokens, not labels: python -m pad_jax generate continues a text')


def predict_files(predictor: Predictor, inputs: Sequence[Path], output: Path) -> tuple[Path, int]:
    """Predict image files, or all texts of one file.

    For GLUE the output is a submission. Other outputs have a label and scores for each row.

    Args:
      inputs: files and folders of images; or one file of texts, in the layout of GLUE's test file or of the training.
      output: file to write; for GLUE also a folder, in which the file gets the name that the benchmark expects.

    Returns:
      (file, number of rows below its header).

    Raises:
      BadInput: a file cannot be read or written, or a result is not finite. Nothing is written then.
    """
    names, prepared, pieces, size, _ = predictor
    task = GLUE_TASKS[prepared['task']] if prepared.get('task') else None
    path = choose_output(output, inputs[0], task)
    if pieces is None:
        ids = find_images(inputs)
        batches = _batch_images(ids, prepared, min(size, len(ids)))
    else:
        if len(inputs) > 1:
            raise BadInput(f'--input must be one file of texts, got {len(inputs)}')
        table = open_glue_file(inputs[0], task) if task else open_table(inputs[0])
        texts, ids = read_unlabelled(table, task.text_columns if task else split_names(prepared['columns']))
        batches = pieces.encode(texts).iterate(size)
    check_fields(path, [*names, *ids])
    logits = _apply(predictor, batches)
    wrong = ~np.isfinite(logits).all(axis=1)
    if wrong.any():
        raise BadInput(f'outputs of the network are not finite for {wrong.sum()} of {len(wrong)} inputs')
    write_predictions(path, names, ids, logits, task)
    return path, len(ids)


def _apply(predictor: Predictor, batches: Iterable[Batch]) -> np.ndarray:
    apply = predictor.open()
    return np.concatenate([apply(batch)[batch['weight'] > 0] for batch in batches])


def _batch_images(paths: Sequence[str], prepared: Mapping[str, Any], size: int) -> Iterator[Batch]:
    """Iterate over batches of exactly `size` rows. The rows that fill the last batch have weight 0."""
    for start in range(0, len(paths), size):
        images = prepare_images(paths[start : start + size], prepared)
        missing = size - len(images)
        weight = np.pad(np.ones(len(images), np.float32), (0, missing))
        yield {'image': np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]), 'weight': weight}
