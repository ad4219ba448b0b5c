import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pad_jax.models import MODELS, count_layers, report_counts
from pad_jax.training import trainer
from pad_jax.training.evaluate import evaluate_workdir
from pad_jax.training.rounds import to_masked_storage, to_trained_storage
from pad_jax.training.setup import Lengths, abstract_variables, make_inputs, make_model, make_step_arguments
from pad_jax.training.state import init_state
from pad_jax.training.steps import train_step
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.training.fixtures import IN_ROUNDS, compiled_quickly
from tests.training.tiny import ONE_BLOCK, one_device, small_config
from tests.training.trainer_test import Killed, assert_same_run, kill_before

pytestmark = pytest.mark.usefixtures('one_block', 'quickly')


@pytest.fixture(scope='module')
def quickly():
    with compiled_quickly():
        yield


GRANULARITIES = ('element', 'output', 'input', 'spatial', 'layer')


def partitioned_state(config):
    """A state a few steps old in which every third gate is dynamic."""
    arguments = make_step_arguments(config, Lengths(total=10, temperature=0))
    state = init_state(arguments['model'], arguments['optimizer'], make_inputs(config), 0, config.optim.ema_decay > 0)
    thin = lambda mask: ((jnp.arange(mask.size) + mask.size) % 3 == 0).reshape(mask.shape)  # noqa: E731
    return state.replace(masks=jax.tree.map(thin, state.masks), round=jnp.int32(1)), arguments


def zero_the_dead(state):
    return to_masked_storage(to_trained_storage(state, 1, compact=True))


@pytest.mark.parametrize(
    'granularity', ['element', 'output', *(pytest.param(name, marks=pytest.mark.slow) for name in GRANULARITIES[2:])]
)
def test_masked_and_compact_are_inverse_but_for_what_is_dead(granularity):
    config = small_config(partition__granularity=granularity, optim__name='adamw', optim__ema_decay=0.9)
    state, _ = partitioned_state(config)
    compact = to_trained_storage(state, 1, compact=True)
    back = to_masked_storage(compact)
    assert compact.masks == {} == back.index and compact.index
    assert jax.tree.structure(back) == jax.tree.structure(state)
    again = to_masked_storage(to_trained_storage(back, 1, compact=True))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(again.params), jax.tree.leaves(back.params))
    jax.tree.map(np.testing.assert_array_equal, again.masks, state.masks)


def test_what_is_trained_is_what_is_alive():
    """Parameters, two moments of AdamW and the average: four numbers for each parameter that is counted."""
    config = small_config(partition__granularity='output', optim__name='adamw', optim__ema_decay=0.9)
    state, _ = partitioned_state(config)
    shapes = abstract_variables(make_model(config), make_inputs(config))
    alive = report_counts(count_layers({**shapes, 'partition': state.masks}))['parameters']
    compact = to_trained_storage(state, 1, compact=True)
    for tree in (compact.params, compact.average['params'], optax.tree.get(compact.optimizer_state, 'mu')):
        assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == alive


def test_a_step_is_the_same_in_all_forms():
    config = small_config(partition__granularity='output', optim__ema_decay=0.5, optim__clip_norm=0.1)
    state, arguments = partitioned_state(config)
    state = zero_the_dead(state)
    batch = {'image': jax.random.normal(jax.random.key(1), (8, 8, 8, 1)), 'label': jnp.arange(8)}
    step = jax.jit(lambda state: train_step(state, batch, **arguments))
    found = [step(form) for form in (state, to_trained_storage(state, 1, False), to_trained_storage(state, 1, True))]
    (masked, values), *others = [(zero_the_dead(to_masked_storage(new)), metrics) for new, metrics in found]
    for other, other_values in others:
        for one, another in zip(jax.tree.leaves(masked.params), jax.tree.leaves(other.params), strict=True):
            np.testing.assert_allclose(one, another, atol=2e-6)
        for name in values:
            np.testing.assert_allclose(values[name], other_values[name], rtol=1e-5)


def test_before_the_last_round_nothing_is_compact():
    state, _ = partitioned_state(small_config(partition__granularity='output'))
    assert to_trained_storage(state, rounds=2, compact=True).masks
    assert to_trained_storage(state.replace(round=jnp.int32(0)), rounds=1, compact=True).index == {}


COMPACT = {**IN_ROUNDS, 'partition__compact': True, 'partition__granularity': 'output', 'train__steps': 8}


@pytest.fixture(scope='module')
def compact_run(tmp_path_factory, quickly):
    workdir = tmp_path_factory.mktemp('compact') / 'run'
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, 'resnet10', ONE_BLOCK)
        inner = trainer.Run.train

        def noted(run, step, batch):
            sizes.append(sum(leaf.size for leaf in jax.tree.leaves(run.state.params)))
            inner(run, step, batch)

        patch.setattr(trainer.Run, 'train', noted)
        train(small_config(**COMPACT), workdir, devices=one_device())
    return workdir, sizes


def test_a_run_gets_small_with_its_last_round(compact_run):
    """Rounds come before steps 4 and 6 (of 8)."""
    _, sizes = compact_run
    assert len(set(sizes[:5])) == 1 == len(set(sizes[5:])) and sizes[5] < 0.8 * sizes[0]


def test_a_compact_run_has_the_numbers_of_a_masked_one(compact_run, tmp_path):
    train(small_config(**COMPACT | {'partition__compact': False}), tmp_path, devices=one_device())
    rows, others = read_metrics(compact_run[0]), read_metrics(tmp_path)
    assert [row.keys() for row in rows] == [row.keys() for row in others]
    for row, other in zip(rows, others, strict=True):
        for name, value in row.items():
            assert value == other[name] if isinstance(value, str) else value == pytest.approx(other[name], rel=1e-3)
    assert (compact_run[0] / 'partition.json').read_text() == (tmp_path / 'partition.json').read_text()


@pytest.mark.parametrize(
    ('name', 'step'), [('save', 6), *(pytest.param('train', step, marks=pytest.mark.slow) for step in (6, 8))]
)
def test_resumed_equals_uninterrupted(monkeypatch, compact_run, tmp_path, name, step):
    """Before the round that compacts, before what it made is stored, and after."""
    config = small_config(**COMPACT)
    with monkeypatch.context() as patch:
        kill_before(patch, name, step)
        with pytest.raises(Killed):
            train(config, tmp_path, devices=one_device())
    train(config, tmp_path, devices=one_device())
    assert_same_run(tmp_path, compact_run[0], config)


def test_a_masked_run_may_go_on_compact(monkeypatch, compact_run, tmp_path):
    with monkeypatch.context() as patch:
        kill_before(patch, 'train', 8)
        with pytest.raises(Killed):
            train(small_config(**COMPACT | {'partition__compact': False}), tmp_path, devices=one_device())
    result = train(small_config(**COMPACT), tmp_path, devices=one_device())
    assert result['loss'] == pytest.approx(read_metrics(compact_run[0])[-1]['loss'], rel=1e-3)


def test_a_compact_run_is_evaluated_as_it_was_trained(compact_run):
    last = read_metrics(compact_run[0])[-1]
    assert evaluate_workdir(compact_run[0])['loss'] == last['loss']
