"""GLUE as TFDS prepares it, read without TensorFlow and without the network.

On disk the rows lie in the order of a hash; here they come in the order of the original files, so that a run
sees the same batches from either.
"""

import pathlib

import numpy as np

from pad_jax.data.glue import GlueTask
from pad_jax.data.prepared import explain_building
from pad_jax.data.text_examples import TextExamples, check_texts
from pad_jax.data.tfds_folders import find_readable_set
from pad_jax.errors import BadInput, quote

CHUNK = 4096


def find_prepared(root: pathlib.Path, name: str) -> pathlib.Path | None:
    """The newest version of glue/NAME that lies prepared under `root`, a data_dir of TFDS; None without one.

    Raises:
        BadInput: it was prepared as TFRecord or the like, of which no single example can be read.
    """
    return find_readable_set(root, f'glue/{name}')


def find_data_dir(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The data_dir that `folder` lies in where it is DATA_DIR/glue, glue/TASK or glue/TASK/VERSION; None elsewhere."""
    return next((parent for parent in folder.absolute().parents[:3] if find_prepared(parent, name)), None)


def explain_preparing(root: pathlib.Path, name: str) -> str:
    """What to run, once, to have `find_prepared` find it."""
    return f'run {explain_building(root, f"glue/{name}")}'


def read_split(folder: pathlib.Path, task: GlueTask, split: str) -> TextExamples:
    """Reads one split of a prepared folder; labels that say that there is none (-1, in test splits) are None.

    Raises:
        BadInput: the folder lacks the split or one of the task's features, cannot be read, or holds a label
            outside the task's set.
    """
    # Imported here: it takes a second, which nobody who reads other files should wait for.
    import tensorflow_datasets as tfds

    place = f'split {split} of {quote(folder)}'
    try:
        # What tfds.data_source(..., download=False) does, for the version that is there.
        source = tfds.builder_from_directory(folder).as_data_source(split=split)
        chunks = [
            source.__getitems__(range(start, min(start + CHUNK, len(source)))) for start in range(0, len(source), CHUNK)
        ]
        rows = sorted((row for chunk in chunks for row in chunk), key=lambda row: row['idx'])
        texts = tuple([row[feature].decode('utf-8') for row in rows] for feature in task.features)
        labels = np.array([row['label'] for row in rows], np.float32 if task.regression else np.int32)
    except Exception as error:
        # A folder that was cut short or changed fails in many ways, none of them this program's fault.
        raise BadInput(f'cannot read {place}: {" ".join(str(error).split()) or type(error).__name__}') from error
    check_texts(texts, task.features, place)
    low, high = task.label_range or (0, len(task.class_names) - 1)
    outside = np.flatnonzero(~((labels >= low) & (labels <= high)))
    if len(outside) == len(labels) and (labels == -1).all():
        labels = None
    elif len(outside):
        first = rows[outside[0]]
        raise BadInput(f'label {first["label"]} of example {first["idx"]} in {place} is not in [{low:g}, {high:g}]')
    return TextExamples(texts, labels, [str(row['idx']) for row in rows])
