import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from pad_jax.data import glue_tfds
from pad_jax.data.glue import find_task
from pad_jax.errors import BadInput
from tests.data import glue_miniatures as miniatures


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp('prepared')
    for name in miniatures.TASKS:
        miniatures.write_prepared(root, name)
    return root


@pytest.mark.parametrize('name', miniatures.TASKS)
def test_reads_every_split_of_every_task_in_the_original_order(data_dir, name):
    folder = glue_tfds.find_prepared(data_dir, name)
    assert folder.parent == data_dir / 'glue' / name
    for split in miniatures.splits(name):
        examples = glue_tfds.read_split(folder, find_task(name), split.replace('dev', 'validation'))
        expected = list(miniatures.rows(name, split))
        assert list(zip(*examples.texts)) == [texts for texts, _ in expected]
        assert examples.ids == [str(i) for i in range(len(expected))]
        if split.startswith('test'):
            assert examples.labels is None
        else:
            wanted = np.array([label for _, label in expected], np.float32 if name == 'stsb' else np.int32)
            np.testing.assert_array_equal(examples.labels, wanted)
            assert examples.labels.dtype == wanted.dtype


def test_reads_without_tensorflow(data_dir):
    program = (
        'import sys, pathlib\n'
        'from pad_jax.data import glue_tfds, glue\n'
        f'folder = glue_tfds.find_prepared(pathlib.Path({str(data_dir)!r}), "rte")\n'
        'print(len(glue_tfds.read_split(folder, glue.find_task("rte"), "train").ids), "tensorflow" in sys.modules)\n'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120)
    assert done.stdout == '5 False\n', done.stderr


def test_the_newest_version_is_read(data_dir, tmp_path):
    for version in ('1.0.0', '2.0.0', '10.0.0'):
        folder = tmp_path / 'glue' / 'rte' / version
        folder.mkdir(parents=True)
        (folder / 'dataset_info.json').write_text(json.dumps({'fileFormat': 'array_record'}))
        (folder / 'features.json').write_text('{}')
    (tmp_path / 'glue' / 'rte' / '11.0.0').mkdir()
    assert glue_tfds.find_prepared(tmp_path, 'rte').name == '10.0.0'
    (tmp_path / 'glue/rte/10.0.0/features.json').unlink()
    with pytest.raises(BadInput, match=r"rte/10.0.0/features.json' is missing. Copy it from the"):
        glue_tfds.find_prepared(tmp_path, 'rte')


def test_what_is_not_prepared_is_not_found_and_explained_at_once(tmp_path):
    start = time.monotonic()
    assert glue_tfds.find_prepared(tmp_path, 'rte') is None
    assert time.monotonic() - start < 1
    explanation = glue_tfds.explain_preparing(tmp_path, 'rte')
    assert f'tfds build glue/rte --file_format=array_record --data_dir={tmp_path} ' in explanation


def test_refuses_a_format_of_which_no_single_example_can_be_read(tmp_path):
    folder = tmp_path / 'glue' / 'rte' / '2.0.0'
    folder.mkdir(parents=True)
    (folder / 'dataset_info.json').write_text(json.dumps({'fileFormat': 'tfrecord', 'configName': 'rte'}))
    how = rf'as tfrecord, which .*. Run tfds convert_format --root_data_dir={tmp_path} '
    with pytest.raises(BadInput, match=how):
        glue_tfds.find_prepared(tmp_path, 'rte')
    for content in ('{', '[]', '{}'):
        (folder / 'dataset_info.json').write_text(content)
        with pytest.raises(BadInput, match='does not describe a data set of TFDS'):
            glue_tfds.find_prepared(tmp_path, 'rte')


def test_refuses_a_folder_that_is_damaged_or_of_another_task(data_dir, tmp_path):
    rte = glue_tfds.find_prepared(data_dir, 'rte')
    with pytest.raises(BadInput, match=r'cannot read split dev of .*Unknown split'):
        glue_tfds.read_split(rte, find_task('rte'), 'dev')
    with pytest.raises(BadInput, match=r"cannot read split train of .*: 'question'"):
        glue_tfds.read_split(rte, find_task('qnli'), 'train')
    damaged = miniatures.write_prepared(tmp_path, 'rte')
    for file in damaged.glob('*train*'):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BadInput, match='cannot read split train of '):
        glue_tfds.read_split(damaged, find_task('rte'), 'train')


def test_refuses_labels_outside_the_set(data_dir):
    # The labels of mnli, 0..2, read as those of rte, 0..1.
    folder = glue_tfds.find_prepared(data_dir, 'mnli')
    task = dataclasses.replace(find_task('rte'), features=('premise', 'hypothesis'))
    with pytest.raises(BadInput, match=r'label 2 of example 2 in split train of .* is not in \[0, 1\]'):
        glue_tfds.read_split(folder, task, 'train')


def test_refuses_texts_that_are_all_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(miniatures, 'PAIRS', [('it ran', ' ', 1)] * 5)
    folder = miniatures.write_prepared(tmp_path, 'rte')
    with pytest.raises(BadInput, match=r"all 5 texts in column 'sentence2' of split train of .* are empty"):
        glue_tfds.read_split(folder, find_task('rte'), 'train')
