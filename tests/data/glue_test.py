"""GLUE from original files and from TFDS, and what is written for it."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pad_jax.data.glue import (
    GLUE_TASKS,
    choose_output,
    find_folder,
    open_glue,
    open_glue_file,
    open_prepared_split,
    write_predictions,
)
from pad_jax.data.tables import open_table, read_unlabelled
from pad_jax.data.tokenization import open_vocabulary
from pad_jax.errors import BadInput
from tests.data import glue_miniatures as miniatures

EVAL_SPLITS = {'mnli': ('validation_matched', 'validation_mismatched')}


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
    return open_vocabulary(miniatures.write_vocabulary(tmp_path_factory.mktemp('vocabulary')), 16)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    """A data_dir of TFDS with all tasks. Tests must not change it."""
    root = tmp_path_factory.mktemp('prepared')
    for name in miniatures.TASKS:
        miniatures.write_prepared(root, name)
    return root


def prepared(data_dir, name):
    (version,) = (data_dir / 'glue' / name).iterdir()
    return version


def open_task(path, pieces, **changes):
    settings = {'task': 'rte', 'pieces': pieces, 'batch_size': 2, 'seed': 1}
    return open_glue(path=path and str(path), **(settings | changes))


def test_submissions_have_the_names_of_the_benchmark():
    files = [split.submission for task in GLUE_TASKS.values() for split in task.eval_splits]
    names = ['CoLA', 'SST-2', 'MRPC', 'STS-B', 'QQP', 'MNLI-m', 'MNLI-mm', 'QNLI', 'RTE', 'WNLI']
    assert files == [f'{name}.tsv' for name in names]


# Original files.
@pytest.mark.parametrize('name', miniatures.TASKS)
def test_reads_the_original_files_of_every_task(tmp_path, pieces, name):
    folder, task = miniatures.write_original(tmp_path, name), GLUE_TASKS[name]
    assert find_folder(tmp_path, task) == find_folder(folder, task) == folder
    for split in miniatures.splits(name):
        path, expected = folder / f'{split}.tsv', list(miniatures.rows(name, split))
        texts, ids = read_unlabelled(open_glue_file(path, task), task.text_columns)
        assert list(zip(*texts)) == [row for row, _ in expected]
        if split.startswith('test'):
            assert ids == (['100', '101'] if name == 'qqp' else ['0', '1'])
    source = open_task(folder, pieces, task=name)
    wanted = [label for _, label in miniatures.rows(name, 'train')]
    np.testing.assert_array_equal(source.train.labels, np.array(wanted, np.float32))
    assert source.train.labels.dtype == (np.float32 if name == 'stsb' else np.int32)


def test_rows_of_qqp_that_fell_apart_are_left_out_but_not_when_predicting(tmp_path, pieces, caplog):
    path, task = miniatures.write_original(tmp_path, 'qqp') / 'train.tsv', GLUE_TASKS['qqp']
    lines = path.read_text().split('\n')
    lines.insert(3, '102\t1\t2\tthe cat')
    path.write_text('\n'.join(lines))
    assert open_task(tmp_path, pieces, task='qqp').spec.num_train == 5
    assert 'left out 1 of 6 rows, the first: ' in caplog.text and 'line 4: it has 4 fields' in caplog.text
    with pytest.raises(BadInput, match=r'line 4: it has 4 fields, but there are 6 columns$'):
        read_unlabelled(open_glue_file(path, task), task.text_columns)
    path.write_text(path.read_text().replace('\t0\n', '\t7\n'))
    with pytest.raises(BadInput, match="line 3: label '7' is not one of '0', '1'"):
        open_task(tmp_path, pieces, task='qqp')


@pytest.mark.parametrize(
    'name, line, label, allowed',
    [
        ('rte', 2, '1', "is not one of 'entailment', 'not_entailment'"),
        ('wnli', 3, 'entailment', "is not one of '0', '1'"),
        ('cola', 1, '2', "is not one of '0', '1'"),
        ('stsb', 4, '5.5', 'is not a finite number in [0, 5]'),
        ('mnli', 2, '-', "is not one of 'entailment', 'neutral', 'contradiction'"),
    ],
)
def test_a_label_outside_the_set_is_refused_with_its_line(tmp_path, pieces, name, line, label, allowed):
    path = miniatures.write_original(tmp_path, name) / 'train.tsv'
    lines = path.read_text().split('\n')
    fields = lines[line - 1].split('\t')
    fields[1 if name == 'cola' else -1] = label
    lines[line - 1] = '\t'.join(fields)
    path.write_text('\n'.join(lines))
    with pytest.raises(BadInput, match=re.escape(f'{str(path)!r} line {line}: label {label!r} {allowed}')):
        open_task(tmp_path, pieces, task=name)
    assert open_task(tmp_path, pieces, task=name, on_bad='skip').spec.num_train == 4


def test_the_files_of_another_task_or_half_of_them_are_refused(tmp_path, pieces):
    miniatures.write_original(tmp_path, 'qnli').rename(tmp_path / 'mine')
    columns = "'index', 'question', 'sentence', 'label'"
    with pytest.raises(BadInput, match=f"no column 'sentence1': its columns are {columns}"):
        open_task(tmp_path / 'mine', pieces)
    task = GLUE_TASKS['mnli']
    assert find_folder(tmp_path, task) is None
    (miniatures.write_original(tmp_path, 'mnli') / 'dev_mismatched.tsv').unlink()
    with pytest.raises(BadInput, match=r"MNLI' has no dev_mismatched.tsv: expected train.tsv, dev_matched.tsv, dev_"):
        find_folder(tmp_path, task)


def test_a_folder_that_is_called_like_another_task_is_not_taken_for_this_one(tmp_path):
    """SST-2 has the columns of CoLA's test file, and its labels."""
    folder = miniatures.write_original(tmp_path, 'sst2')
    with pytest.raises(BadInput, match=r"SST-2' is the folder of the task sst2, expected CoLA"):
        find_folder(folder, GLUE_TASKS['cola'])
    mine = folder.rename(tmp_path / 'mine')
    assert find_folder(mine, GLUE_TASKS['sst2']) == mine


# TFDS.
@pytest.mark.parametrize('name', miniatures.TASKS)
def test_original_files_and_tfds_give_the_same_batches(tmp_path, data_dir, pieces, name):
    miniatures.write_original(tmp_path, name)
    one, other = (open_task(path, pieces, task=name) for path in (tmp_path, data_dir))
    assert one.spec == other.spec
    task, splits = GLUE_TASKS[name], EVAL_SPLITS.get(name, ('validation',))
    assert (one.spec.class_names, one.spec.metrics) == (task.class_names, task.metrics)
    assert (one.spec.num_train, one.spec.num_eval, one.spec.eval_splits) == (5, 3 * len(splits), splits)
    assert one.spec.num_classes == {'stsb': 1, 'mnli': 3}.get(name, 2)
    pairs = [(one.train_batch(step), other.train_batch(step)) for step in range(3)]
    pairs += zip(one.eval_batches(), other.eval_batches(), strict=True)
    for batch, expected in pairs:
        assert batch.keys() == expected.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], expected[key])
        assert batch['segments'].any() == (name not in miniatures.SINGLE)


def test_reads_without_tensorflow(data_dir):
    program = (
        'import sys, pathlib\n'
        'from pad_jax.data import glue\n'
        'light = "tensorflow_datasets" not in sys.modules\n'
        f'folder = pathlib.Path({str(prepared(data_dir, "rte"))!r})\n'
        'count = len(list(glue.open_prepared_split(folder, glue.GLUE_TASKS["rte"], "train").records))\n'
        'print(light, count, "tensorflow" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=120)
    assert done.stdout == 'True 5 False\n', done.stderr


def test_the_newest_version_is_read_and_other_formats_are_refused(tmp_path, pieces):
    folder = miniatures.write_prepared(tmp_path, 'rte')
    for version in ('10.0.0', '11.0.0.incomplete'):
        shutil.copytree(folder, folder.parent / version)
    newest = folder.parent / '10.0.0'
    info = json.loads((newest / 'dataset_info.json').read_text())
    (newest / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))
    with pytest.raises(BadInput, match=rf'as tfrecord, which .*. Run tfds convert_format --root_data_dir={tmp_path} '):
        open_task(tmp_path, pieces)
    (newest / 'features.json').unlink()
    with pytest.raises(BadInput, match=r"rte/10.0.0': No such file or directory. Prepare"):
        open_task(tmp_path, pieces)


def test_refuses_a_folder_of_tfds_that_is_damaged_or_of_another_task(data_dir, tmp_path, pieces, monkeypatch):
    with pytest.raises(BadInput, match=r'cannot read split dev of .*Unknown split'):
        open_prepared_split(prepared(data_dir, 'rte'), GLUE_TASKS['rte'], 'dev')
    with pytest.raises(BadInput, match=r"cannot read split train of .*: 'question'"):
        open_prepared_split(prepared(data_dir, 'rte'), GLUE_TASKS['qnli'], 'train')
    monkeypatch.setitem(GLUE_TASKS, 'mnli', dataclasses.replace(GLUE_TASKS['mnli'], class_names=('a', 'b')))
    with pytest.raises(BadInput, match=r"train' line 2: label '2' is not one of '0', '1'"):
        open_task(data_dir, pieces, task='mnli')
    monkeypatch.setattr(miniatures, 'PAIRS', [('it ran', ' ', 1)] * 5)
    folder = miniatures.write_prepared(tmp_path, 'rte')
    with pytest.raises(BadInput, match=r"all 5 texts in column 'sentence2' of '.*train' are empty"):
        open_task(tmp_path, pieces)
    for file in folder.glob('*train*'):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BadInput, match=r'cannot read .*train'):
        open_task(tmp_path, pieces)


def test_a_path_without_the_data_is_refused_with_what_to_do(tmp_path, pieces):
    wanted = 'RTE/train.tsv (the original files) or glue/rte (prepared by TFDS)'
    (tmp_path / 'file').write_text('')
    for path, message in [
        (None, f'path must name a folder with {wanted}, got None'),
        (tmp_path / 'none', f"none' does not exist: expected a folder with {wanted}"),
        (
            tmp_path / 'file',
            f"file' is not a folder: expected a folder with {wanted}; for a file of your own: --config",
        ),
        (tmp_path, f'has no {wanted}; for the latter, run tfds build glue/rte --file_format=array_record'),
    ]:
        with pytest.raises(BadInput, match=re.escape(message)) as caught:
            open_task(path, pieces)
        assert '\n' not in str(caught.value)


# Predictions.
def read(path):
    table = open_table(path)
    return table.columns, [fields for _, fields, _ in table.read_rows(table.columns)]


def test_golden_submissions(tmp_path):
    path = tmp_path / 'out.tsv'
    write_predictions(path, ('a', 'b'), ['0', '1'], np.array([[2.0, 1.0], [0.0, 1.0]]), GLUE_TASKS['rte'])
    assert path.read_text() == 'index\tprediction\n0\tentailment\n1\tnot_entailment\n'
    # Scores are clipped to 0..5 and have three decimals.
    logits = np.array([[-0.3], [2.71828], [5.2]], np.float32)
    write_predictions(path, (), ['0', '1', '2'], logits, GLUE_TASKS['stsb'])
    assert path.read_text() == 'index\tprediction\n0\t0.000\n1\t2.718\n2\t5.000\n'


@pytest.mark.parametrize(
    'task, source, name',
    [
        ('cola', 'CoLA/test.tsv', 'CoLA.tsv'),
        ('stsb', 'mismatched.tsv', 'STS-B.tsv'),
        ('mnli', 'MNLI/test_matched.tsv', 'MNLI-m.tsv'),
        ('mnli', 'mismatched/test_matched.tsv', 'MNLI-m.tsv'),
        ('mnli', 'MNLI/test_mismatched.tsv', 'MNLI-mm.tsv'),
        ('mnli', 'diagnostic-full.tsv', 'AX.tsv'),
        ('mnli', 'AX/test.tsv', 'AX.tsv'),
        ('mnli', 'ax.tsv', 'AX.tsv'),
        ('rte', 'diagnostic.tsv', 'RTE.tsv'),
    ],
)
def test_submissions_in_a_folder_have_the_names_the_benchmark_expects(tmp_path, task, source, name):
    assert choose_output(tmp_path, source, GLUE_TASKS[task]) == tmp_path / name
    assert choose_output(tmp_path / 'my.tsv', source, GLUE_TASKS[task]) == tmp_path / 'my.tsv'


def test_the_file_to_be_read_is_never_written(tmp_path):
    source = tmp_path / 'RTE.tsv'
    source.write_text('index\tsentence1\tsentence2\n')
    (tmp_path / 'link.tsv').symlink_to(source)
    (tmp_path / 'wrong.txt').write_text('')
    for output in (source, tmp_path, tmp_path / 'link.tsv', f'{tmp_path}/../{tmp_path.name}/RTE.tsv'):
        with pytest.raises(BadInput, match='is the file to be read: predictions must go to another'):
            choose_output(output, source, GLUE_TASKS['rte'])
    # Before anything else about it.
    with pytest.raises(BadInput, match=r"wrong.txt' is the file to be read"):
        choose_output(tmp_path / 'wrong.txt', tmp_path / 'wrong.txt')
    for output in (tmp_path / 'wrong.txt', tmp_path):  # A folder, but which file in it?
        with pytest.raises(BadInput, match=r'must end in one of'):
            choose_output(output, source)


@pytest.mark.parametrize('suffix', ['tsv', 'csv', 'jsonl'])
def test_own_predictions_read_back(tmp_path, suffix):
    path, names = tmp_path / f'out.{suffix}', ('no, "never"', 'yes')
    # Differences of ln 3 and 0: probabilities 3/4 and 1/4, then 1/2 each, where the first class wins.
    logits = np.array([[np.log(3), 0.0], [1.0, 1.0]], np.float32)
    write_predictions(path, names, ['7', 'x'], logits)
    rows = [['7', names[0], '0.75', '0.25'], ['x', names[0], '0.5', '0.5']]
    assert read(path) == (('id', 'label', 'score no, "never"', 'score yes'), rows)
    write_predictions(path, (), ['0', '1'], np.array([[0.1], [-12.5]], np.float32))
    assert read(path) == (('id', 'label'), [['0', '0.1'], ['1', '-12.5']])
    assert os.listdir(tmp_path) == [path.name]
