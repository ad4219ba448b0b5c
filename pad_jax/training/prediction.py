"""Predictions of a trained network for a file of texts, as a file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from pad_jax.data import predictions
from pad_jax.data.glue import find_task
from pad_jax.data.glue_files import read_glue_file
from pad_jax.data.text_folder import read_unlabelled
from pad_jax.data.text_source import EncodedTexts, encode_examples
from pad_jax.data.text_tables import check_fields
from pad_jax.errors import BadInput
from pad_jax.training.config import is_text, read_workdir_config
from pad_jax.training.evaluate import RestoredRun, restore_run
from pad_jax.training.setup import open_pieces, split_columns
from pad_jax.training.workdir import read_data


class Predicted(NamedTuple):
    """What was written: the file, and how many rows it has below its header."""

    path: Path
    num_rows: int


def predict_file(workdir: Path, source: Path, output: Path) -> Predicted:
    """Predicts every text of a file by the newest checkpoint of a run.

    For GLUE the file has the layout of the task's test file, and what is written is a submission; for texts of one's
    own it has the columns that the run was trained on, and a label and scores are written for each row.

    Args:
      output: a file, or for GLUE a folder, in which the file gets the name that the benchmark expects.

    Raises:
      BadInput: when workdir holds no run of texts, the output can't be written, the file can't be read, or what the run
        computes is not finite. In that order, and before anything is written.
    """
    config = read_workdir_config(workdir)
    if not is_text(config):
        raise BadInput(f'the run in {workdir} is one of images: only texts can be predicted from a file')
    task = find_task(config.data.task) if config.data.name == 'glue' else None
    path, names = predictions.choose_output(output, source, task), read_data(workdir).class_names
    examples = read_glue_file(source, task, labelled=False) if task else read_unlabelled(source, split_columns(config))
    check_fields(path, [*names, *examples.ids])
    texts = encode_examples(examples, open_pieces(config, workdir))
    outputs = _apply(restore_run(workdir), texts)
    wrong = ~np.isfinite(outputs).all(axis=1)
    if wrong.any():
        raise BadInput(f'what the run in {workdir} computes is not finite for {wrong.sum()} of {len(wrong)} texts')
    if task:
        predictions.write_submission(path, task, examples.ids, outputs)
    else:
        predictions.write_predictions(path, names, examples.ids, outputs)
    return Predicted(path, len(examples.ids))


def _apply(run: RestoredRun, texts: EncodedTexts) -> np.ndarray:
    """float32[N, O]."""
    outputs = []
    for batch in texts.iterate(run.config.data.batch_size):
        labels = np.zeros(len(batch['weight']), np.int32)  # the step wants some; their loss is nobody's concern
        found = run.eval_step(run.state, run.replicas.place_batch({**batch, 'label': labels}))
        outputs.append(np.asarray(run.replicas.fetch(found)['outputs'])[batch['weight'] > 0])
    return np.concatenate(outputs)
