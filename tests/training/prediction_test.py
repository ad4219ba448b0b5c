"""`python -m pad_jax predict`: what it writes reads back, and is what evaluation measured."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pad_jax.data.tables import open_table
from pad_jax.deploy import predict as prediction
from pad_jax.training.evaluate import evaluate_workdir
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.data.glue_miniatures import rows
from tests.training.fixtures import run_command
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


@pytest.mark.parametrize('suffix', ['tsv', *(pytest.param(one, marks=pytest.mark.slow) for one in ('csv', 'jsonl'))])
def test_labels_and_scores_of_texts_of_ones_own(finished_text_run, texts, tmp_path, suffix):
    """Accuracy and loss of the evaluated texts follow from the written file."""
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


def test_numbers_of_regression(texts, tmp_path):
    workdir, path = tmp_path / 'run', tmp_path / 'out.csv'
    config = small_text_config(texts, **REGRESSION, model__ffn='dense', train__steps=2)
    last = train(config, workdir, devices=one_device())
    assert last.keys() == {'step', 'split', 'examples', 'loss', 'pearson', 'spearman'}
    assert not any('accuracy' in row for row in read_metrics(workdir))
    assert json.loads((workdir / 'data.json').read_text())['class_names'] == []
    predict(workdir, texts / 'numbers.tsv', path)
    assert open_table(path).columns == ('id', 'label')
    ids, numbers = read(path, 'id', 'label')
    assert len(ids) == NUM_TRAIN
    (truth,) = read(texts / 'numbers.tsv', 'label')
    # Every fifth was set aside for evaluation.
    errors = np.asarray(numbers, np.float64)[4::5] - np.asarray(truth, np.float64)[4::5]
    assert (errors**2).mean() == pytest.approx(evaluate_workdir(workdir)['loss'], rel=1e-4)


def train_task(texts, tmp_path, task, **changes):
    train(small_text_config(texts, **glue(task), **changes), tmp_path / 'run', devices=one_device())
    return tmp_path / 'run'


def test_submissions_to_glue(texts, tmp_path):
    """Into a folder under the name that the benchmark expects; a file with labels may be predicted as well."""
    workdir, folder = train_task(texts, tmp_path, 'rte'), tmp_path / 'out'
    folder.mkdir()
    said = predict(workdir, texts / 'glue' / 'RTE' / 'test.tsv', folder)
    assert said == f'2 predictions in {folder}/RTE.tsv' and [path.name for path in folder.iterdir()] == ['RTE.tsv']
    assert read(folder / 'RTE.tsv', 'index')[0] == ['0', '1']
    predict(workdir, texts / 'glue' / 'RTE' / 'dev.tsv', tmp_path / 'dev.tsv')
    ids, found = read(tmp_path / 'dev.tsv', 'index', 'prediction')
    labels = [('entailment', 'not_entailment').index(label) for label in found]
    truth = [label for _, label in rows('rte', 'dev')]
    assert ids == ['0', '1', '2'] and np.mean(np.equal(labels, truth)) == evaluate_workdir(workdir)['accuracy']


def test_submissions_of_numbers(monkeypatch, texts, tmp_path):
    """With three decimals; what lies outside of the labels' range is clipped to it."""
    weights = {'model__pretrained': '{texts}/weights', 'model__ffn': 'dense', 'train__steps': 2}
    workdir = train_task(texts, tmp_path, 'stsb', **weights)
    truth, apply = [label for _, label in rows('stsb', 'dev')], prediction._apply

    def predict_numbers(shift):
        # Hardly trained, it says little but zero; no correlation changes with this.
        monkeypatch.setattr(prediction, '_apply', lambda *arguments: 30 * apply(*arguments) + shift)
        predict(workdir, texts / 'glue' / 'STS-B' / 'dev.tsv', tmp_path / 'dev.tsv')
        (found,) = read(tmp_path / 'dev.tsv', 'prediction')
        assert all(len(text.split('.')[1]) == 3 for text in found)
        return np.asarray(found, np.float64)

    numbers, measured = predict_numbers(5), evaluate_workdir(workdir)
    assert np.ptp(numbers) > 0.1 and ((numbers > 0) & (numbers < 5)).all(), numbers
    assert scipy.stats.pearsonr(truth, numbers).statistic == pytest.approx(measured['pearson'], abs=1e-2)
    assert scipy.stats.spearmanr(truth, numbers).statistic == pytest.approx(measured['spearman'], abs=1e-9)
    assert predict_numbers(20).tolist() == [5.0] * 3 and predict_numbers(-20).tolist() == [0.0] * 3


def test_rows_keep_their_names_and_need_neither_label_nor_text(finished_text_run, texts, tmp_path):
    predict(finished_text_run, texts / 'new.jsonl', tmp_path / 'out.jsonl')
    found = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    assert [row['id'] for row in found] == [f'n{number}' for number in range(NUM_NEW)]
    named, empty = '{"first": "the cat", "second": "ran", "id": "x"}', '{"first": "", "second": ""}'
    (tmp_path / 'new.jsonl').write_text('\n'.join([named, '{"first": null, "second": ""}', empty]))
    said = predict(finished_text_run, tmp_path / 'new.jsonl', tmp_path / 'out.csv')
    ids, first, second = read(tmp_path / 'out.csv', 'id', 'score a cat', 'score a dog')
    assert said.startswith('3 predictions') and ids == ['0', '1', '2']
    assert (first[1], second[1]) == (first[2], second[2])


def refused(workdir, source, output):
    status, out, err = run_command('predict', f'--workdir={workdir}', f'--input={source}', f'--output={output}')
    assert status == 2 and out == '' and err.count('\n') == 1 and err.startswith('error: '), err
    assert source == output or not output.is_file()
    return err


def test_files_that_cannot_be_predicted(finished_text_run, texts, tmp_path):
    own, output = texts / 'own' / 'val.tsv', tmp_path / 'out.tsv'
    for name, content, says in [
        ('mine.tsv', b'first\tlabel\nthe cat\ta cat\n', "has no column 'second': its columns are 'first', 'label'"),
        ('short.tsv', b'first\tsecond\nthe cat\tran\nthe dog\n', 'line 3: it has 1 fields, but there are 2 columns\n'),
        ('latin.csv', b'first,second\na caf\xe9,b\n', 'line 2 is not UTF-8: byte 0xe9'),
        ('tab.jsonl', b'{"first": "a", "second": "b", "id": "a\\tb"}', "'a\\tb'. Name a .csv or .jsonl file"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert says in refused(finished_text_run, tmp_path / name, output)
    assert 'is not the workdir of a run' in refused(tmp_path, own, output)
    broken = shutil.copytree(finished_text_run, tmp_path / 'run')
    shutil.rmtree(broken / 'checkpoints')
    assert 'holds no checkpoint' in refused(broken, own, output)


def test_files_are_checked_before_anything_is_computed(monkeypatch, finished_text_run, texts, tmp_path):
    """The output first: it must not be the input."""
    monkeypatch.setattr(prediction, 'restore_run', None)
    own, nowhere = texts / 'own' / 'val.tsv', tmp_path / 'nowhere.tsv'
    for output, says in [
        (tmp_path / 'out.txt', 'out.txt'),
        (tmp_path / 'folder' / 'out.tsv', f"'{tmp_path}/folder' is not a folder"),
        (tmp_path, 'must end in one of'),
        (tmp_path / 'out.tsv', 'No such file'),
    ]:
        assert says in refused(finished_text_run, nowhere, output)
    mine = shutil.copy(own, tmp_path / 'mine.tsv')
    assert f"'{mine}' is the file to be read: predictions must go to another" in refused(finished_text_run, mine, mine)
    assert mine.read_text() == own.read_text()
    with pytest.raises(TypeError):  # Here it would have been restored.
        predict(finished_text_run, own, tmp_path / 'out.tsv')


def test_what_is_not_finite_is_no_prediction(monkeypatch, finished_text_run, texts, tmp_path):
    restore = prediction.restore_run

    def spoil(workdir, best):
        run = restore(workdir, best=best)
        params = run.state.params | {
            'classifier': jax.tree.map(lambda leaf: leaf * jnp.nan, run.state.params['classifier'])
        }
        return run._replace(state=run.state.replace(params=params))

    monkeypatch.setattr(prediction, 'restore_run', spoil)
    line = refused(finished_text_run, texts / 'new.jsonl', tmp_path / 'out.csv')
    assert f'outputs of the network are not finite for {NUM_NEW} of {NUM_NEW} inputs' in line
