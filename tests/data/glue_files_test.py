import numpy as np
import pytest

from pad_jax.data.glue import find_task
from pad_jax.data.glue_files import find_folder, read_glue_file
from pad_jax.errors import BadInput
from tests.data import glue_miniatures as miniatures


@pytest.mark.parametrize('name', miniatures.TASKS)
def test_reads_the_original_files_of_every_task(tmp_path, name):
    folder, task = miniatures.write_original(tmp_path, name), find_task(name)
    assert find_folder(tmp_path, task) == folder
    assert find_folder(folder, task) == folder
    for split in miniatures.splits(name):
        expected = list(miniatures.rows(name, split))
        is_test = split.startswith('test')
        examples = read_glue_file(folder / f'{split}.tsv', task, labelled=not is_test)
        assert list(zip(*examples.texts)) == [texts for texts, _ in expected]
        if is_test:
            assert examples.labels is None
            assert examples.ids == (['100', '101'] if name == 'qqp' else ['0', '1'])
        else:
            wanted = np.array([label for _, label in expected], np.float32 if name == 'stsb' else np.int32)
            np.testing.assert_array_equal(examples.labels, wanted)
            assert examples.labels.dtype == wanted.dtype


@pytest.mark.parametrize('name', miniatures.TASKS)
def test_a_labelled_file_can_be_read_for_its_texts_alone(tmp_path, name):
    folder, task = miniatures.write_original(tmp_path, name), find_task(name)
    dev = miniatures.splits(name)[1]
    examples = read_glue_file(folder / f'{dev}.tsv', task, labelled=False)
    assert examples.labels is None and len(examples.ids) == 3


def test_rows_of_qqp_that_fell_apart_are_left_out_but_not_when_predicting(tmp_path, caplog):
    path = miniatures.write_original(tmp_path, 'qqp') / 'train.tsv'
    lines = path.read_text().split('\n')
    lines.insert(3, '102\t1\t2\tthe cat')
    path.write_text('\n'.join(lines))
    examples = read_glue_file(path, find_task('qqp'))
    assert len(examples.ids) == 5
    assert 'left out 1 of 6 rows, the first: ' in caplog.text and 'line 4: it has 4 fields' in caplog.text
    with pytest.raises(BadInput, match=r'line 4: it has 4 fields, but there are 6 columns$'):
        read_glue_file(path, find_task('qqp'), labelled=False)
    path.write_text(path.read_text().replace('\t0\n', '\t7\n'))
    with pytest.raises(BadInput, match="line 3: label '7' is not one of 0, 1"):
        read_glue_file(path, find_task('qqp'))


@pytest.mark.parametrize(
    'name, line, label, allowed',
    [
        ('rte', 2, '1', 'is not one of entailment, not_entailment'),
        ('wnli', 3, 'entailment', 'is not one of 0, 1'),
        ('cola', 1, '2', 'is not one of 0, 1'),
        ('stsb', 4, '5.5', 'is not a finite number in [0, 5]'),
        ('mnli', 2, '-', 'is not one of entailment, neutral, contradiction'),
    ],
)
def test_a_label_outside_the_set_is_refused_with_its_line(tmp_path, name, line, label, allowed):
    path, task = miniatures.write_original(tmp_path, name) / 'train.tsv', find_task(name)
    lines = path.read_text().split('\n')
    fields = lines[line - 1].split('\t')
    fields[1 if name == 'cola' else -1] = label
    lines[line - 1] = '\t'.join(fields)
    path.write_text('\n'.join(lines))
    with pytest.raises(BadInput) as caught:
        read_glue_file(path, task)
    assert f'{str(path)!r} line {line}: label {label!r} {allowed}' in str(caught.value)


def test_the_files_of_another_task_are_refused_with_their_columns(tmp_path):
    folder = miniatures.write_original(tmp_path, 'qnli')
    columns = "'index', 'question', 'sentence', 'label'"
    with pytest.raises(BadInput, match=f"no column 'sentence1': its columns are {columns}"):
        read_glue_file(folder / 'train.tsv', find_task('rte'))


def test_finds_nothing_elsewhere_and_says_which_file_is_missing(tmp_path):
    task = find_task('mnli')
    assert find_folder(tmp_path, task) is None
    folder = miniatures.write_original(tmp_path, 'mnli')
    (folder / 'dev_mismatched.tsv').unlink()
    with pytest.raises(BadInput, match=r"MNLI' has no dev_mismatched.tsv: expected train.tsv, dev_matched.tsv, dev_"):
        find_folder(tmp_path, task)


def test_a_folder_that_is_called_like_another_task_is_not_taken_for_this_one(tmp_path):
    """SST-2 has the columns of CoLA's test file, and its labels."""
    folder = miniatures.write_original(tmp_path, 'sst2')
    with pytest.raises(BadInput, match=r"SST-2' is the folder of the task sst2, expected CoLA"):
        find_folder(folder, find_task('cola'))
    assert find_folder(folder, find_task('sst2')) == folder
    mine = folder.rename(tmp_path / 'mine')
    assert find_folder(mine, find_task('sst2')) == mine
