"""Runs on texts, from a file to a result: what they log, what they leave, and what an interruption changes."""

import json
import shutil

import numpy as np
import pytest

from pad_jax.deploy.predict import open_run, predict_files
from pad_jax.training.evaluate import evaluate_workdir
from pad_jax.training.progress import StepProgress
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.training.fixtures import run_command
from tests.training.tiny import GLUE, one_device
from tests.training.tiny_texts import (
    NUM_TRAIN,
    NUM_VAL,
    TEXT_ROUNDS,
    glue,
    small_text_config,
    small_text_flags,
)
from tests.training.trainer_test import Killed, kill_before

pytestmark = pytest.mark.usefixtures('one_layer')

ROUTERS = {'router_loss', 'load_cv', 'load_cv_max', 'router_entropy', *(f'load_{expert}' for expert in range(4))}
TRAINED = {'step', 'split', 'loss', 'gradient_norm', 'learning_rate', 'dynamic_fraction'}


def rows_of(workdir, split):
    return [row for row in read_metrics(workdir) if row['split'] == split]


def test_every_value_is_logged_by_its_name(finished_text_run):
    rows = rows_of(finished_text_run, 'train')
    assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert row.keys() == TRAINED | ROUTERS | {'accuracy'}
        assert sum(row[f'load_{expert}'] for expert in range(4)) == pytest.approx(1, abs=1e-6)
        assert row['router_loss'] > 0
        assert row['load_cv_max'] > row['load_cv']  # of the two linears
        # Routers start from zero: uniform over four experts, ln 4 nats.
        assert row['router_entropy'] == pytest.approx(np.log(4), abs=1e-2)
    for row in rows_of(finished_text_run, 'eval'):
        assert row.keys() == {'step', 'split', 'examples', 'loss', 'accuracy', 'expert_similarity'}
        assert row['accuracy'] * NUM_VAL == pytest.approx(round(row['accuracy'] * NUM_VAL))
    # Experts are drawn apart; what is static is the same in all of them.
    first, last = (row['expert_similarity'] for row in rows_of(finished_text_run, 'eval'))
    assert abs(first) < 0.1 < last
    assert [row['step'] for row in rows_of(finished_text_run, 'partition')] == [3, 5]
    for row in rows_of(finished_text_run, 'partition'):
        assert row.keys() == {'step', 'split', 'round', 'dynamic_fraction', 'loss_before', 'loss_after'}
    # 16·24 positions in each of the two mixtures: the root of a half of 768, then half.
    fractions = [row['dynamic_fraction'] for row in rows]
    assert fractions == [1, 1, 1, round(768 * 0.5**0.5) / 768, round(768 * 0.5**0.5) / 768, 0.5]


def test_a_run_on_texts_of_ones_own_leaves_what_evaluate_finds(finished_text_run):
    found, last = evaluate_workdir(finished_text_run), rows_of(finished_text_run, 'eval')[-1]
    assert found == {'step': 6, 'examples': NUM_VAL, 'loss': last['loss'], 'accuracy': last['accuracy']}
    data = json.loads((finished_text_run / 'data.json').read_text())
    digests = data.pop('digests')
    assert [*digests] == ['contents of train', 'contents of val']
    assert data == {'class_names': ['a cat', 'a dog'], 'num_train': NUM_TRAIN, 'num_eval': NUM_VAL}
    partition = json.loads((finished_text_run / 'partition.json').read_text())
    assert [layer['name'] for layer in partition['layers']] == ['layer_0/ffn/down', 'layer_0/ffn/up']
    assert partition['rounds_done'] == partition['rounds'] == 2
    assert partition['totals']['dynamic_fraction'] == 0.5


def test_each_split_of_mnli_has_its_own_metrics_in_all_that_is_shown(texts, tmp_path, monkeypatch):
    """Without mixtures, so that nothing of routers is there."""
    shown = {}
    monkeypatch.setattr(StepProgress, 'update', lambda progress, step, **values: shown.update(values))
    config = small_text_config(texts, **glue('mnli'), model__ffn='dense', train__steps=2)
    last = train(config, tmp_path, devices=one_device())
    splits = {'validation_matched/accuracy', 'validation_mismatched/accuracy'}
    assert last.keys() == {'step', 'split', 'examples', 'loss'} | splits
    assert all(row.keys() == TRAINED | {'accuracy'} for row in rows_of(tmp_path, 'train'))
    found = evaluate_workdir(tmp_path)
    for name in splits:
        assert shown[f'eval_{name}'] == found[name] == last[name]
    assert found['examples'] == 6 and not rows_of(tmp_path, 'partition')


def interrupt(monkeypatch, config, workdir, name, step):
    with monkeypatch.context() as patch:
        kill_before(patch, name, step)
        with pytest.raises(Killed):
            train(config, workdir, devices=one_device())


@pytest.mark.slow
def test_a_run_needs_neither_its_weights_nor_its_vocabulary_any_more(monkeypatch, texts, tmp_path):
    """Once it has a checkpoint. What is there under their names then is another's business."""
    straight, broken, weights = tmp_path / 'straight', tmp_path / 'broken', tmp_path / 'weights'
    shutil.copytree(texts / 'weights', weights)
    shutil.copy(texts / 'vocab.txt', weights)
    (weights / 'tokenizer_config.json').write_text('{"do_lower_case": false}')  # it decides, beside vocab.txt
    new = tmp_path / 'new.csv'
    new.write_text('first,second\nThe cat,sat on the mat\nthe dog,It ran\n')
    changes = UPCYCLED | {'model__pretrained': str(weights), 'data__vocabulary': ''}
    config = small_text_config(texts, **changes, model__ffn='dense')
    train(config, straight, devices=one_device())
    predict_files(open_run(straight), [new], tmp_path / 'before.csv')
    interrupt(monkeypatch, config, broken, 'train', 4)
    for place in ('gone', 'replaced'):
        shutil.rmtree(weights)
        if place == 'replaced':
            weights.mkdir()
            words = (texts / 'vocab.txt').read_text().split('\n')
            (weights / 'vocab.txt').write_text('\n'.join([*words[:5], *words[-2:4:-1], '']))
        resumed = shutil.copytree(broken, tmp_path / place)
        train(config, resumed, devices=one_device())
        assert (resumed / 'metrics.jsonl').read_text() == (straight / 'metrics.jsonl').read_text()
        assert evaluate_workdir(resumed) == evaluate_workdir(straight)
        predict_files(open_run(resumed), [new], tmp_path / f'{place}.csv')
        assert (tmp_path / f'{place}.csv').read_text() == (tmp_path / 'before.csv').read_text()
        weights.mkdir(exist_ok=True)
    names = {path.name for path in straight.iterdir()}
    assert 'tokenizer.json' in names and not {name for name in names if name.endswith('.tmp')}


UPCYCLED = {'model__pretrained': '{texts}/weights', 'model__dropout': 0.0}


def test_copies_of_one_layer_are_refused_with_advice(texts, tmp_path):
    """The configuration can't know whether they compete, so this comes at the first step."""
    flags = [f'--config.{flag}' for flag in small_text_flags(texts, **UPCYCLED, partition__keep_static='up')]
    status, out, err = run_command('train', f'--config={GLUE}', f'--workdir={tmp_path}/run', *flags)
    line = err.splitlines()[-1]
    assert status == 2 and out == ''
    assert "'sensitivity' gave every position" in line and 'equal each other and the static parameters' in line
    assert "train some steps first (start_step > 0) with handoff 'mean', or take criterion 'magnitude'" in line


@pytest.mark.slow
def test_rounds_of_an_upcycled_network_do_not_move_its_loss(texts, tmp_path):
    config = small_text_config(texts, **UPCYCLED, **TEXT_ROUNDS, optim__learning_rate=3e-2)
    assert config.partition.handoff == 'mean'
    train(config, tmp_path, devices=one_device())
    rounds, losses = rows_of(tmp_path, 'partition'), [row['loss'] for row in rows_of(tmp_path, 'train')]
    assert [row['step'] for row in rounds] == [3, 5] and np.ptp(losses) > 0.05
    for row in rounds:
        assert row['loss_before'] != row['loss_after']
        assert row['loss_after'] == pytest.approx(row['loss_before'], abs=0.01)
    # Copies at first, and now no more.
    similar = [row['expert_similarity'] for row in rows_of(tmp_path, 'eval')]
    assert all(0.5 < value < 0.9999 for value in similar), similar
