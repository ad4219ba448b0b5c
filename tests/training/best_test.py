"""The checkpoint of the best evaluation, and early stopping."""

import math

import jax
import pytest

from pad_jax.errors import BadInput
from pad_jax.training import trainer
from pad_jax.training.best import Scores
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.evaluate import evaluate_workdir
from tests.training.fixtures import IN_ROUNDS, run_command
from tests.training.tiny import one_device, small_config
from tests.training.trainer_test import assert_same_run, kill_in

# Evaluations of the steps up to 5 are those of another network, as the last round comes after 5 steps.
ACCURACIES = {2: 0.95, 4: 0.9, 6: 0.6, 8: 0.7, 10: 0.7, 12: 0.5, 14: 0.8}
CHANGES = {**IN_ROUNDS, 'train__steps': 14, 'train__eval_every_steps': 2, 'train__checkpoint_every_steps': 5}
CHANGES |= {'train__keep_checkpoints': 1, 'train__keep_best': True}


def rows(values, name='loss'):
    return [{'step': step, 'split': 'eval', 'examples': 9, name: value} for step, value in values.items()]


def test_the_best_evaluation_is_the_first_with_the_highest_mean_of_the_metrics_or_the_lowest_loss():
    config = small_config(partition__dynamic_fraction=1.0, train__patience=2)
    scores = Scores(config, rows({2: 1.0, 4: math.nan, 6: 0.5, 8: 0.5}))
    assert scores.best() == 6 and scores.best([2, 4]) == 2 and scores.best([3]) is None
    assert not scores.is_out_of_patience and not Scores(config).is_out_of_patience
    scores.add({'step': 10, 'split': 'eval', 'loss': 0.6})
    assert scores.is_out_of_patience
    scores.add({'step': 12, 'split': 'eval', 'loss': 9.0, 'val/f1': 0.25, 'val/accuracy': 0.75})
    assert scores.best() == 12
    assert Scores(small_config(**CHANGES), rows(ACCURACIES, 'accuracy')).best() == 14


@pytest.fixture
def scripted(monkeypatch, one_block):
    """Evaluations find the accuracies above."""

    def evaluate(step, state, *_):
        accuracy = ACCURACIES[int(jax.device_get(state.step).ravel()[0])]
        return {'examples': 355, 'loss': 1.0, 'accuracy': accuracy}

    monkeypatch.setattr(trainer, 'evaluate_state', evaluate)


def test_the_best_checkpoint_is_kept_and_a_run_stops_early_also_after_a_kill(scripted, monkeypatch, tmp_path, capsys):
    config, whole, killed = small_config(**CHANGES, train__patience=2), tmp_path / 'whole', tmp_path / 'killed'
    train = trainer.train
    assert train(config, whole, devices=one_device())['step'] == 12
    said = capsys.readouterr().err
    assert 'no evaluation was better than that of step 8. Commands read it with --best\n' in said
    assert 'done: 12 steps, ' in said
    assert Checkpoints(whole / 'checkpoints').steps_here() == [8, 12]
    for name, step in (('save', 10), ('save', 12)):
        kill_in(monkeypatch, killed, name, step, **CHANGES, train__patience=2)
    train(config, killed, devices=one_device())
    assert_same_run(killed, whole, config)
    assert Checkpoints(killed / 'checkpoints').steps_here() == [8, 12]
    capsys.readouterr()
    assert train(config, killed, devices=one_device())['step'] == 12
    assert 'is finished already: 12 steps' in capsys.readouterr().err
    assert (evaluate_workdir(whole)['step'], evaluate_workdir(whole, best=True)['step']) == (12, 8)
    status, out, _ = run_command('evaluate', '--workdir', whole, '--best')
    assert status == 0 and out.startswith('{"step": 8, ')


def test_a_run_without_the_key_has_no_best_checkpoint(finished_run, one_block, refused):
    assert '--best needs a run with train.keep_best=True' in refused('evaluate', '--workdir', finished_run, '--best')
    with pytest.raises(BadInput, match='keeps no best checkpoint'):
        evaluate_workdir(finished_run, best=True)
