"""`python -m pad_jax predict`: what it writes reads back, and is what evaluation measured."""

import json
import shutil

import numpy as np
import pytest

from pad_jax.data.text_tables import open_table
from pad_jax.training.evaluation import evaluate_workdir
from pad_jax.training.trainer import train
from tests.data.glue_miniatures import rows
from tests.training.conftest import run_command
from tests.training.tiny import one_device
from tests.training.tiny_texts import NUM_NEW, NUM_TRAIN, NUM_VAL, REGRESSION, glue, small_text_config

pytestmark = pytest.mark.usefixtures('one_layer')


def predict(workdir, source, output):
    status, out, err = run_command('predict', f'--workdir={workdir}', f'--input={source}', f'--output={output}')
    assert status == 0 and out == '', err
    return err.splitlines()[-1]


def read(path, *names):
    """Columns of a table, as lists of texts."""
    found = [fields for _, fields, problem in open_table(path).read_rows(names)]
    return [list(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize('suffix', ['tsv', 'csv', 'jsonl'])
def test_labels_and_scores_of_texts_of_ones_own(finished_text_run, texts, tmp_path, suffix):
    """Of the texts that the run was evaluated on: accuracy and loss follow from what is written."""
    path = tmp_path / f'out.{suffix}'
    said = predict(finished_text_run, texts / 'own' / 'val.tsv', path)
    assert said == f'{NUM_VAL} predictions in {path}'
    assert open_table(path).columns == ('id', 'label', 'score a cat', 'score a dog')
    ids, labels, *scores = read(path, 'id', 'label', 'score a cat', 'score a dog')
    assert ids == [str(number) for number in range(NUM_VAL)]
    scores = np.asarray(scores, np.float64).T
    np.testing.assert_allclose(scores.sum(1), 1, atol=2e-6)
    assert labels == [('a cat', 'a dog')[number] for number in scores.argmax(1)]
    (truth,) = read(texts / 'own' / 'val.tsv', 'label')
    found = evaluate_workdir(finished_text_run)
    assert np.mean([one == other for one, other in zip(labels, truth, strict=True)]) == found['accuracy']
    of_truth = scores[np.arange(NUM_VAL), [('a cat', 'a dog').index(label) for label in truth]]
    assert -np.log(of_truth).mean() == pytest.approx(found['loss'], abs=1e-5)


def test_rows_keep_their_own_names_and_need_no_label(finished_text_run, texts, tmp_path):
    predict(finished_text_run, texts / 'new.jsonl', tmp_path / 'out.jsonl')
    found = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    assert [row['id'] for row in found] == [f'n{number}' for number in range(NUM_NEW)]


def test_numbers_of_regression(texts, tmp_path):
    workdir, path = tmp_path / 'run', tmp_path / 'out.csv'
    config = small_text_config(texts, **REGRESSION, model__ffn='dense', train__steps=3)
    train(config, workdir, devices=one_device())
    predict(workdir, texts / 'numbers.tsv', path)
    assert open_table(path).columns == ('id', 'label')
    ids, numbers = read(path, 'id', 'label')
    assert len(ids) == NUM_TRAIN
    (truth,) = read(texts / 'numbers.tsv', 'label')
    # Every fifth was set aside for evaluation.
    errors = np.asarray(numbers, np.float64)[4::5] - np.asarray(truth, np.float64)[4::5]
    assert (errors**2).mean() == pytest.approx(evaluate_workdir(workdir)['loss'], rel=1e-4)


@pytest.mark.parametrize(('task', 'name', 'words'), [('rte', 'RTE', 'entailment'), ('stsb', 'STS-B', None)])
def test_submissions_to_glue(texts, tmp_path, task, name, words):
    """Into a folder under the name that the benchmark expects; a file with labels may be predicted as well."""
    workdir = tmp_path / 'run'
    changes = {} if task == 'rte' else {'model__ffn': 'dense', 'train__steps': 3}
    train(small_text_config(texts, **glue(task), **changes), workdir, devices=one_device())
    (tmp_path / 'out').mkdir()
    said = predict(workdir, texts / 'glue' / name / 'test.tsv', tmp_path / 'out')
    assert [path.name for path in (tmp_path / 'out').iterdir()] == [f'{name}.tsv'] and said.startswith('2 predictions')
    predict(workdir, texts / 'glue' / name / 'dev.tsv', tmp_path / 'dev.tsv')
    ids, found = read(tmp_path / 'dev.tsv', 'index', 'prediction')
    assert ids == ['0', '1', '2']
    assert read(tmp_path / 'out' / f'{name}.tsv', 'index', 'prediction')[0] == ['0', '1']
    truth = [label for _, label in rows(task, 'dev')]
    measured = evaluate_workdir(workdir)
    if words:
        labels = [('entailment', 'not_entailment').index(label) for label in found]
        assert np.mean(np.equal(labels, truth)) == measured['accuracy']
    else:
        numbers = np.asarray(found, np.float64)
        assert ((numbers >= 0) & (numbers <= 5)).all() and all(len(text.split('.')[1]) == 3 for text in found)


def refused(workdir, source, output):
    status, out, err = run_command('predict', f'--workdir={workdir}', f'--input={source}', f'--output={output}')
    assert status == 2 and out == '' and err.count('\n') == 1 and err.startswith('error: '), err
    assert not output.is_file()
    return err


def test_files_that_cannot_be_predicted(finished_text_run, texts, tmp_path):
    own, output = texts / 'own' / 'val.tsv', tmp_path / 'out.tsv'
    assert 'No such file' in refused(finished_text_run, tmp_path / 'nowhere.tsv', output)
    (tmp_path / 'mine.tsv').write_text('first\tlabel\nthe cat\ta cat\n')
    line = refused(finished_text_run, tmp_path / 'mine.tsv', output)
    assert "has no column 'second': its columns are 'first', 'label'" in line
    (tmp_path / 'empty.tsv').write_text('')
    assert 'empty' in refused(finished_text_run, tmp_path / 'empty.tsv', output)
    (tmp_path / 'latin.csv').write_bytes(b'first,second\nthe cat,\xe9\n')
    line = refused(finished_text_run, tmp_path / 'latin.csv', output)
    assert 'latin.csv' in line and 'line 2' in line and 'UTF-8' in line
    assert 'out.txt' in refused(finished_text_run, own, tmp_path / 'out.txt')
    assert 'nowhere' in refused(finished_text_run, own, tmp_path / 'nowhere' / 'out.tsv')
    assert 'is not the workdir of a run' in refused(tmp_path, own, output)
    broken = shutil.copytree(finished_text_run, tmp_path / 'run')
    shutil.rmtree(broken / 'checkpoints')
    assert 'holds no checkpoint' in refused(broken, own, output)


@pytest.mark.usefixtures('one_block')
def test_a_run_of_images_predicts_no_texts(finished_run, texts, tmp_path):
    line = refused(finished_run, texts / 'own' / 'val.tsv', tmp_path / 'out.tsv')
    assert 'is one of images: only texts can be predicted from a file' in line
