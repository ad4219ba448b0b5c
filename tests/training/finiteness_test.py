"""Steps whose loss or gradients are not finite: in a batch, the images of one step are made so."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pad_jax.errors import Stopped
from pad_jax.training import trainer
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.devices import Replicas
from pad_jax.training.optimizer import make_optimizer, make_rate_schedule, make_temperature_schedule
from pad_jax.training.state import init_state
from pad_jax.training.steps import check_finite, train_step
from pad_jax.training.tasks import IMAGES, image_inputs
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.training.fixtures import IN_ROUNDS
from tests.training.tiny import one_device, small_config
from tests.training.trainer_test import Killed, assert_same_run, kill_before, load_state


class Tiny(nn.Module):
    """The least that has parameters and running statistics."""

    @nn.compact
    def __call__(self, images, temperature=1.0, train=False):
        x = nn.BatchNorm(not train, name='norm')(images.reshape(len(images), -1))
        return nn.Dense(10, name='classifier')(x), {}


OPTIMIZER = make_optimizer('adamw', make_rate_schedule(0.1, 'cosine', 1, 50), 1e-4, 1.0)


def make_batch(number, bad=False):
    image = np.random.default_rng(number).normal(size=(8, 8, 8, 1)).astype(np.float32)
    if bad:
        image[3, 2, 1, 0] = np.inf  # one pixel of one example, which a single replica of eight meets
    return {'image': image, 'label': np.arange(8, dtype=np.int32)}


@pytest.fixture
def start():
    return init_state(Tiny(), OPTIMIZER, image_inputs((8, 8, 1)), seed=0)


def leaves(state):
    names = ('params', 'batch_stats', 'optimizer_state', 'masks')
    return [np.asarray(leaf) for name in names for leaf in jax.tree.leaves(getattr(state, name))]


def same(one, other):
    return all(np.array_equal(*pair) for pair in zip(leaves(one), leaves(other), strict=True))


def run(form, devices, state, badness, most_nonfinite):
    """Return the states after each of the steps; `badness` marks the bad ones."""
    replicas = Replicas(form, devices)
    static = {'temperature': make_temperature_schedule(1.0, 0), 'most_nonfinite': most_nonfinite}
    step = replicas.map_step(train_step, donate=False, task=IMAGES, model=Tiny(), optimizer=OPTIMIZER, **static)
    placed, found = replicas.place_state(state), []
    for number, bad in enumerate(badness):
        placed, _ = step(placed, replicas.place_batch(make_batch(number, bad)))
        found.append(replicas.fetch(placed))
    for leaf in jax.tree.leaves(placed.params):  # all replicas decided alike
        first, *others = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert all(np.array_equal(first, other) for other in others)
    return found


@pytest.mark.parametrize('form', ['pmap', pytest.param('shard_map', marks=pytest.mark.slow)])
def test_a_bad_step_changes_nothing_and_those_after_it_neither(form, start):
    found = run(form, jax.local_devices(), start, [False, True, False, True], most_nonfinite=1)
    assert not same(found[0], start)
    assert all(same(found[0], later) for later in found[1:])
    # The step that failed is counted; after it nothing is.
    assert [int(state.step) for state in found] == [1, 2, 2, 2]
    assert [int(state.faults.skipped) for state in found] == [0, 1, 1, 1]
    assert int(found[-1].faults.first) == 0  # the loss


def test_bad_steps_are_skipped_up_to_so_many_in_a_row(start):
    found = run('pmap', one_device(), start, [True, False, True, True, False, True, True, True, False], 3)
    counts = [(int(state.step), int(state.faults.skipped), int(state.faults.in_a_row)) for state in found]
    assert counts == [(1, 1, 1), (2, 1, 0), (3, 2, 1), (4, 3, 2), (5, 3, 0), (6, 4, 1), (7, 5, 2), (8, 6, 3), (8, 6, 3)]
    assert same(found[0], start) and not same(found[1], start) and same(found[1], found[3])
    assert not same(found[3], found[4]) and same(found[4], found[8])


def test_each_thing_that_is_not_finite_is_named():
    params = {'a': jnp.ones(2), 'b': {'c': jnp.ones((2, 2)), 'empty': jnp.ones((0, 3))}}
    statistics = {'mean': jnp.zeros(3), 'var': jnp.ones((2, 2))}
    names = ['the loss', 'the gradient of a', 'the gradient of b/c', 'the gradient of b/empty', 'a running statistic']
    found = check_finite(jnp.float32(3), params, statistics)
    assert list(found) == names and all(found.values())
    # Leaves in order: the loss, three gradients, two statistics. 1e30 squared is beyond float32.
    for leaf, value, place in ((0, jnp.nan, 0), (0, jnp.inf, 0), (2, -jnp.inf, 2), (2, 1e30, 2), (5, jnp.nan, 4)):
        flat, structure = jax.tree.flatten([jnp.float32(3), params, statistics])
        flat[leaf] = flat[leaf].at[(0,) * flat[leaf].ndim].set(value)
        found = check_finite(*jax.tree.unflatten(structure, flat))
        assert [name for name in names if not found[name]] == [names[place]]


@contextlib.contextmanager
def bad_steps(monkeypatch, *steps):
    """Runs in the `with` block meet an infinite pixel in these steps, counted from 1."""
    inner = trainer.Run.train

    def spoiled(run, step, batch):
        if step in steps:
            batch = batch | {'image': np.array(batch['image'])}
            batch['image'][0, 2, 1, 0] = np.inf
        inner(run, step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, 'train', spoiled)
        yield


RARELY = IN_ROUNDS | {'train__log_every_steps': 4, 'train__checkpoint_every_steps': 6, 'train__eval_every_steps': 6}


@pytest.mark.usefixtures('one_block')
@pytest.mark.parametrize(
    ('bad', 'kept'), [(2, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, None), (5, 4)))]
)
def test_a_run_stops_at_a_bad_step_and_keeps_the_state_before_it(monkeypatch, finished_run, tmp_path, bad, kept):
    """Wherever that is between two rows of the log; the resumed run ends like a run that never met it."""
    config = small_config(**RARELY)
    with bad_steps(monkeypatch, bad), pytest.raises(Stopped) as caught:
        train(config, tmp_path / 'run', devices=one_device())
    message = str(caught.value)
    # An infinite pixel leaves the loss as it is: a ReLU takes a NaN for zero.
    assert message.startswith(f'step {bad}: the gradient of stage1_block1/conv1/attention/bias is not finite; ')
    assert '\n' not in message
    # Rounds come after 3 and 5 steps.
    assert Checkpoints(tmp_path / 'run' / 'checkpoints').latest_step() == kept
    assert (f'; the checkpoint of step {kept} is kept; ' if kept else '; no checkpoint exists yet; ') in message
    assert all(row['step'] < bad for row in read_metrics(tmp_path / 'run'))
    train(config, tmp_path / 'run', devices=one_device())
    states = load_state(tmp_path / 'run', config), load_state(finished_run, small_config(**IN_ROUNDS))
    assert same(*states)
    single, means = (
        [row['loss'] for row in read_metrics(workdir) if row['split'] == 'train']
        for workdir in (finished_run, tmp_path / 'run')
    )
    assert means == pytest.approx([np.mean(single[:4]), np.mean(single[4:])], rel=1e-5)


@pytest.mark.usefixtures('one_block')
def test_a_run_that_skips_says_so_and_resumes_to_the_bit(monkeypatch, tmp_path, capsys):
    config = small_config(**IN_ROUNDS, train__on_nonfinite='skip', train__max_nonfinite=2)
    with bad_steps(monkeypatch, 2, 4):
        train(config, tmp_path / 'straight', devices=one_device())
        assert 'train: 2 steps were not finite and were skipped' in capsys.readouterr().err
        rows = [row for row in read_metrics(tmp_path / 'straight') if row['split'] == 'train']
        assert [row['nonfinite_steps'] for row in rows] == [0, 1, 1, 2, 2, 2]
        # Schedules count updates: after a warm-up of one step the peak comes with the second, which is the third.
        assert [row['learning_rate'] for row in rows][:3] == [0.0, 0.0, pytest.approx(0.1)]
        for step in (3, 5):
            with monkeypatch.context() as patch:
                kill_before(patch, 'evaluate' if step == 3 else 'save', step + step % 3 // 2)
                with pytest.raises(Killed):
                    train(config, tmp_path / 'run', devices=one_device())
        train(config, tmp_path / 'run', devices=one_device())
    assert_same_run(tmp_path / 'run', tmp_path / 'straight', config)


@pytest.mark.slow
@pytest.mark.usefixtures('one_block')
def test_a_run_that_stopped_may_skip(monkeypatch, tmp_path):
    skips = {'train__on_nonfinite': 'skip', 'train__max_nonfinite': 2}
    with bad_steps(monkeypatch, 3, 5, 6):
        for _ in range(2):  # starting again meets it again
            with pytest.raises(Stopped, match=r'^step 3: the gradient of '):
                train(small_config(**IN_ROUNDS), tmp_path / 'run', devices=one_device())
        with pytest.raises(Stopped, match=r'^step 6: .* the last of 2 such steps in a row; '):
            train(small_config(**IN_ROUNDS, **skips), tmp_path / 'run', devices=one_device())
    rows = [row for row in read_metrics(tmp_path / 'run') if row['split'] == 'train']
    assert [row.get('nonfinite_steps') for row in rows] == [None, None, 1, 1, 2]
    assert json.loads((tmp_path / 'run' / 'checkpoints' / '4' / 'manifest.json').read_text())['skipped'] == 1


@pytest.mark.usefixtures('one_block')
def test_an_update_that_overflows_never_reaches_a_checkpoint(monkeypatch, tmp_path):
    """Gradients that are finite, of which an optimizer makes what is not: here by a state that is made so."""
    inner = trainer.Run.save

    def overflow(run, step):
        if step == 4:
            run.state = run.state.replace(params=jax.tree.map(lambda leaf: leaf / 0, run.state.params))
        inner(run, step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, 'save', overflow)
        with pytest.raises(Stopped, match=r'^after step 4 params/classifier/bias is not finite; .* step 3 '):
            train(small_config(**IN_ROUNDS, train__checkpoint_every_steps=1), tmp_path / 'run', devices=one_device())
    assert Checkpoints(tmp_path / 'run' / 'checkpoints').latest_step() == 3
