import re

import pytest

from pad_jax.data.glue import GLUE_TASKS, find_task
from pad_jax.data.metrics import METRICS
from pad_jax.errors import BadInput


def test_tasks_agree_with_tfds():
    import tensorflow_datasets.text.glue as tfds_glue

    configs = {config.name: config for config in tfds_glue.Glue.BUILDER_CONFIGS}
    assert len(GLUE_TASKS) == 9
    for name, task in GLUE_TASKS.items():
        config = configs[name]
        assert task.features == tuple(config.text_features)
        assert task.class_names == tuple(config.label_classes or ())
        assert task.folder == config.data_dir
        if name not in ('cola', 'mrpc'):  # TFDS reads those two by position and from other files.
            assert task.text_columns == tuple(config.text_features.values())
            assert task.label_column == config.label_column


def test_every_task_is_complete():
    for task in GLUE_TASKS.values():
        assert len(task.class_names) == len(task.file_labels)
        assert task.regression == (task.label_range is not None)
        assert set(task.metrics) <= METRICS.keys()
        assert len(task.features) == len(task.text_columns) in (1, 2)
    files = [split.submission for task in GLUE_TASKS.values() for split in task.eval_splits]
    assert files == [
        'CoLA.tsv',
        'SST-2.tsv',
        'MRPC.tsv',
        'STS-B.tsv',
        'QQP.tsv',
        'MNLI-m.tsv',
        'MNLI-mm.tsv',
        'QNLI.tsv',
        'RTE.tsv',
        'WNLI.tsv',
    ]


@pytest.mark.parametrize('name', ['rtx', 'RTE', '', None])
def test_refuses_an_unknown_task(name):
    message = f'task must be one of cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, got {name!r}'
    with pytest.raises(BadInput, match=re.escape(message)):
        find_task(name)
