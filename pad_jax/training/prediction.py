"""Predictions of a trained network for a file of texts, as a file."""

from pathlib import Path

import numpy as np

from pad_jax.data import predictions
from pad_jax.data.glue import find_task
from pad_jax.data.glue_files import read_glue_file
from pad_jax.data.text_folder import read_unlabelled
from pad_jax.data.text_source import encode_examples
from pad_jax.data.tokenization import open_vocabulary
from pad_jax.errors import BadInput
from pad_jax.training.configuration import is_text
from pad_jax.training.restoring import RestoredRun, restore_run
from pad_jax.training.setup import make_text_arguments


def predict_file(workdir: Path, source: Path, output: Path) -> int:
    """Predicts every text of a file by the newest checkpoint of a run.

    For GLUE the file has the layout of the task's test file, and what is written is a submission; for texts of one's
    own it has the columns that the run was trained on, and a label and scores are written for each row.

    Returns:
      How many texts there were.

    Raises:
      BadInput: when workdir holds no run of texts, the file can't be read, or the output can't be written.
    """
    run = restore_run(workdir)
    if not is_text(run.config):
        raise BadInput(f'the run in {workdir} is one of images: only texts can be predicted from a file')
    arguments = make_text_arguments(run.config)
    task = find_task(arguments['task']) if arguments['name'] == 'glue' else None
    if task is not None:
        examples = read_glue_file(source, task, labelled=False)
    else:
        examples = read_unlabelled(source, arguments['text_columns'])
    texts = encode_examples(examples, open_vocabulary(arguments['vocabulary'], arguments['max_length']))
    outputs = _apply(run, texts)
    if task is not None:
        predictions.write_submission(predictions.place_submission(output, task, source), task, examples.ids, outputs)
    else:
        predictions.write_predictions(output, run.record.class_names, examples.ids, outputs)
    return len(examples.ids)


def _apply(run: RestoredRun, texts) -> np.ndarray:
    """float32[N, O]."""
    outputs = []
    for batch in texts.iterate(run.config.data.batch_size):
        labels = np.zeros(len(batch['weight']), np.int32)  # the step wants some; their loss is nobody's concern
        found = run.eval_step(run.state, run.replicas.place_batch({**batch, 'label': labels}))
        outputs.append(np.asarray(run.replicas.fetch(found)['outputs'])[batch['weight'] > 0])
    return np.concatenate(outputs)
