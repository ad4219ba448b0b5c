"""Runs on texts, from a file to a result: what they log, what they leave, and what an interruption changes."""

import json
import shutil

import jax
import numpy as np
import pytest

from pad_jax.training import rounds as rounds_module
from pad_jax.training import trainer
from pad_jax.training.evaluate import evaluate_workdir, predict_file
from pad_jax.training.progress import StepProgress
from pad_jax.training.rounds import to_trained_storage
from pad_jax.training.setup import Lengths, make_inputs, make_model, make_run_optimizer, make_task, open_source
from pad_jax.training.state import init_state
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.training.fixtures import run_command
from tests.training.tiny import GLUE, one_device
from tests.training.tiny_texts import (
    NUM_TRAIN,
    NUM_VAL,
    REGRESSION,
    TEXT_ROUNDS,
    glue,
    small_text_config,
    small_text_flags,
)
from tests.training.trainer_test import Killed, assert_same_run, kill_before, load_state

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
    assert data == {'class_names': ['a cat', 'a dog'], 'num_train': NUM_TRAIN, 'num_eval': NUM_VAL}
    partition = json.loads((finished_text_run / 'partition.json').read_text())
    assert [layer['name'] for layer in partition['layers']] == ['layer_0/ffn/down', 'layer_0/ffn/up']
    assert partition['rounds_done'] == partition['rounds'] == 2
    assert partition['totals']['dynamic_fraction'] == 0.5


def test_a_run_of_regression(texts, tmp_path):
    """Without mixtures, so that nothing of routers is there; a file of its own and a task of GLUE."""
    for name, changes in (('own', REGRESSION), ('stsb', glue('stsb'))):
        workdir = tmp_path / name
        config = small_text_config(texts, **changes, model__ffn='dense')
        last = train(config, workdir, devices=one_device())
        assert last.keys() == {'step', 'split', 'examples', 'loss', 'pearson', 'spearman'}
        assert all(row.keys() == TRAINED for row in rows_of(workdir, 'train'))
        assert json.loads((workdir / 'data.json').read_text())['class_names'] == []
        found = evaluate_workdir(workdir)
        assert {key: found[key] for key in ('loss', 'pearson', 'spearman')} == {
            key: last[key] for key in ('loss', 'pearson', 'spearman')
        }
        assert not rows_of(workdir, 'partition')


def test_each_split_of_mnli_has_its_own_metrics_in_all_that_is_shown(texts, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(StepProgress, 'update', lambda progress, step, **values: shown.update(values))
    config = small_text_config(texts, **glue('mnli'), model__ffn='dense', train__steps=2)
    last = train(config, tmp_path, devices=one_device())
    names = {'validation_matched/accuracy', 'validation_mismatched/accuracy'}
    assert last.keys() == {'step', 'split', 'examples', 'loss'} | names
    assert {name: shown[f'eval_{name}'] for name in names} == {name: last[name] for name in names}
    found = evaluate_workdir(tmp_path)
    assert found['examples'] == 6 and {name: found[name] for name in names} == {name: last[name] for name in names}


def interrupt(monkeypatch, config, workdir, name, step):
    with monkeypatch.context() as patch:
        kill_before(patch, name, step)
        with pytest.raises(Killed):
            train(config, workdir, devices=one_device())


def test_resumed_equals_uninterrupted_bit_for_bit(monkeypatch, texts, finished_text_run, tmp_path):
    """Twice: after a round, whose result is in no checkpoint, and after the last round."""
    config = small_text_config(texts, **TEXT_ROUNDS)
    for step in (4, 6):
        interrupt(monkeypatch, config, tmp_path, 'train', step)
    train(config, tmp_path, devices=one_device())
    assert_same_run(tmp_path, finished_text_run, config)


@pytest.mark.slow
def test_resumed_equals_uninterrupted_where_experts_have_an_index(monkeypatch, texts, tmp_path):
    """No checkpoint holds the index: it follows from the masks."""
    rounds = TEXT_ROUNDS | {'partition__rounds': 1, 'partition__start_step': 2}
    config = small_text_config(texts, **rounds, partition__granularity='output', model__plan='blocks', train__steps=5)
    seen = []

    def index(state, rounds, compact):
        found = to_trained_storage(state, rounds, compact)
        seen.append((int(state.step), jax.tree.map(len, found.index)))
        return found

    monkeypatch.setattr(trainer, 'to_trained_storage', index)
    train(config, tmp_path / 'straight', devices=one_device())
    state = load_state(tmp_path / 'straight', config)
    counts = jax.tree.map(lambda mask: int(mask.sum()), state.masks)
    assert state.index == {} and sum(jax.tree.leaves(counts)) > 0
    assert seen == [(0, {}), (2, counts)]
    interrupt(monkeypatch, config, tmp_path / 'broken', 'train', 5)
    train(config, tmp_path / 'broken', devices=one_device())
    assert seen[2:] == [(0, {}), (2, counts), (4, counts)]
    assert_same_run(tmp_path / 'broken', tmp_path / 'straight', config)


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
    predict_file(straight, new, tmp_path / 'before.csv')
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
        predict_file(resumed, new, tmp_path / f'{place}.csv')
        assert (tmp_path / f'{place}.csv').read_text() == (tmp_path / 'before.csv').read_text()
        weights.mkdir(exist_ok=True)
    names = {path.name for path in straight.iterdir()}
    assert 'tokenizer.json' in names and not {name for name in names if name.endswith('.tmp')}


UPCYCLED = {'model__pretrained': '{texts}/weights', 'model__dropout': 0.0}


def test_copies_of_one_layer_are_refused_with_advice(texts, tmp_path):
    """An upcycled network whose partition comes before training: nothing tells its experts apart.

    By the configuration; and where that can't know whether they compete, at the first step.
    """
    flags = [f'--config.{flag}' for flag in small_text_flags(texts, **UPCYCLED)]
    command = 'train', f'--config={GLUE}', f'--workdir={tmp_path}/run', *flags
    status, out, err = run_command(*command)
    assert status == 2 and out == ''
    assert err.splitlines()[-1].startswith('error: partition.start_step must be above 0 for model.pretrained')
    status, out, err = run_command(*command, '--config.partition.keep_static=up')
    line = err.splitlines()[-1]
    assert status == 2 and out == ''
    assert line.startswith('error: the dynamic factors of layer_0/ffn/') and 'all equal its static parameters' in line
    assert "train some steps first (start_step > 0) with handoff 'mean', or take criterion 'magnitude'" in line


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


@pytest.mark.parametrize('granularity', [pytest.param('element', marks=pytest.mark.slow), 'output'])
def test_only_the_mean_of_the_experts_takes_over_without_a_jump(texts, granularity):
    """On experts that are one dense layer with a little noise each, beside an independent static layer."""
    config = small_text_config(texts, partition__granularity=granularity, partition__batch_size=32)
    model, source, task = make_model(config), open_source(config), make_task(config)
    state = init_state(model, make_run_optimizer(config, Lengths(6, 0)), make_inputs(config), seed=3)
    generator = np.random.default_rng(0)

    def perturb(path, leaf):
        draw = lambda *shape: generator.normal(size=shape).astype(np.float32)  # noqa: E731
        names = [part.key for part in path]
        if names[-1] == 'kernel' and leaf.ndim == 3:
            return draw(*leaf.shape[1:]) + 0.05 * draw(*leaf.shape)
        if names[0] in ('pooler', 'classifier') and names[-1] == 'kernel':
            return 3 * draw(*leaf.shape)
        return draw(*leaf.shape) if names[-1] in ('static_kernel', 'gate') else leaf

    state = state.replace(params=jax.tree_util.tree_map_with_path(perturb, state.params))
    jumps = {}
    for handoff in ('mean', 'independent'):
        config.partition.handoff = handoff
        rounds = rounds_module.Rounds(config, source, task=task, model=model, temperature=None)
        after, values = rounds.run(state, 0.5)
        assert values['dynamic_fraction'] == pytest.approx(0.5, abs=0.02) and int(after.round) == 1
        jumps[handoff] = abs(values['loss_after'] - values['loss_before'])
    assert 0 < jumps['mean'] < 0.1 * jumps['independent'] and jumps['independent'] > 0.1, jumps
