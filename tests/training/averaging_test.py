import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.training.evaluate import evaluate_workdir
from pad_jax.training.optimizer import follow_handoff, make_optimizer, make_temperature_schedule, update_average
from pad_jax.training.setup import open_source
from pad_jax.training.state import init_state
from pad_jax.training.steps import eval_step, train_step
from pad_jax.training.tasks import IMAGES, image_inputs
from pad_jax.training.trainer import train
from pad_jax.training.workdir import read_metrics
from tests.layers.compiling import jit_quickly
from tests.training.fixtures import IN_ROUNDS, compiled_quickly
from tests.training.tiny import NormFree, one_device, small_config
from tests.training.trainer_test import assert_same_run, kill_in

STATIC = {'task': IMAGES, 'model': NormFree(norm=True), 'temperature': make_temperature_schedule(30.0, 4)}
# Three kernels: a network that no other test compiles, as these compile without optimisation.
AVERAGED = {**IN_ROUNDS, 'optim__ema_decay': 0.8, 'partition__handoff': 'mean', 'model__num_kernels': 3}


def test_golden_values():
    """1, 4 and 10 with a decay of 1/2: 1; (1/2·1 + 4) / (3/2) = 3; (1/4·1 + 1/2·4 + 10) / (7/4) = 7."""
    average, found = jnp.float32(99), []
    for number, value in enumerate((1.0, 4.0, 10.0), start=1):
        average = update_average(average, jnp.float32(value), jnp.int32(number), 0.5)
        found.append(float(average))
    np.testing.assert_allclose(found, [1, 3, 7], rtol=1e-6)
    assert found[0] == 1


@pytest.mark.parametrize('decay', [0.9, 0.9999, 1 - 1e-7])
def test_a_long_run_against_the_sum_in_float64(decay):
    values = np.random.default_rng(0).normal(size=300)
    update = jit_quickly(functools.partial(update_average, decay=decay))
    average = jnp.float32(0)
    for number, value in enumerate(values, start=1):
        average = update(average, jnp.float32(value), jnp.int32(number))
    weights = decay ** np.arange(299, -1, -1.0)
    assert float(average) == pytest.approx((weights * values).sum() / weights.sum(), abs=1e-5)


@functools.cache
def run_steps(decay):
    """The states after each of four steps."""
    source, optimizer = open_source(small_config()), make_optimizer('sgd', 0.1, 'constant', 0, 1e-4, 0.0, 10)
    state = init_state(STATIC['model'], optimizer, image_inputs((8, 8, 1)), 0, averaged=decay > 0)
    step = jit_quickly(functools.partial(train_step, optimizer=optimizer, ema_decay=decay, **STATIC))
    states = []
    for number in range(4):
        state, _ = step(state, source.train_batch(number))
        states.append(state)
    return states


def test_steps_average_parameters_and_statistics_as_a_loop_does():
    states = run_steps(0.75)
    weights = [0.75**3, 0.75**2, 0.75, 1]

    def average(*leaves):
        return sum(weight * np.asarray(leaf, np.float64) for weight, leaf in zip(weights, leaves, strict=True)) / sum(
            weights
        )

    expected = jax.tree.map(average, *({'params': s.params, 'batch_stats': s.batch_stats} for s in states))
    assert set(expected['batch_stats']) == {'norm'}
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7), states[-1].average, expected
    )


def test_an_average_is_not_trained_on():
    averaged, plain = run_steps(0.75)[-1], run_steps(0.0)[-1]
    assert plain.average == {}
    for one, other in zip(jax.tree.leaves(averaged.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_an_average_is_what_is_evaluated():
    state, batch = run_steps(0.75)[-1], next(iter(open_source(small_config()).eval_batches()))
    evaluate = jit_quickly(functools.partial(eval_step, **STATIC))
    found = float(evaluate(state, batch)['loss'])
    assert found == float(evaluate(state.replace(**state.average, average={}), batch)['loss'])
    assert found != float(evaluate(state.replace(average={}), batch)['loss'])


def test_what_a_handoff_replaces_begins_its_average_anew():
    before = {'static': jnp.array([1.0, 2.0, 3.0])}
    after = {'static': jnp.array([1.0, 20.0, 3.0])}
    average = {'static': jnp.array([1.5, 2.5, 3.5])}
    assert follow_handoff(average, before, after)['static'].tolist() == [1.5, 20.0, 3.5]


def test_what_a_handoff_replaces_counts_as_if_it_had_been_there_before():
    """Decay 1/2; 1 and 4 average to 3, a round makes it 20, then 10 and 6.

    (1/4·20 + 1/2·20 + 10) / (7/4) = 100/7, and (1/8·20 + 1/4·20 + 1/2·10 + 6) / (15/8) = 148/15; the entry that no
    round has touched goes on: (1/4·1 + 1/2·4 + 10) / (7/4) = 7, and (1/8·1 + 1/4·4 + 1/2·10 + 6) / (15/8) = 97/15.
    """
    average, found = follow_handoff(jnp.array([3.0, 3.0]), jnp.array([4.0, 4.0]), jnp.array([20.0, 4.0])), []
    for number, value in enumerate((10.0, 6.0), start=3):
        average = update_average(average, jnp.full(2, value), jnp.int32(number), 0.5)
        found.append(average)
    np.testing.assert_allclose(found, [[100 / 7, 7], [148 / 15, 97 / 15]], rtol=1e-6)


def test_a_slow_average_forgets_a_handoff_as_slowly_as_it_says():
    """With a decay of 0.9999 a half after 6900 steps, late in a run."""
    update = functools.partial(update_average, decay=0.9999)
    follow = lambda number, average: update(average, jnp.float32(0), 1_000_000 + number)  # noqa: E731
    assert float(jax.lax.fori_loop(1, 6901, follow, jnp.float32(1))) == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures('one_block')
def test_resumed_equals_uninterrupted_and_is_evaluated(monkeypatch, tmp_path):
    """With rounds of the partition in between, whose means the average takes over."""
    config = small_config(**AVERAGED)
    with compiled_quickly():
        train(config, tmp_path / 'whole', devices=one_device())
        kill_in(monkeypatch, tmp_path / 'run', 'train', 4, **AVERAGED)
        train(config, tmp_path / 'run', devices=one_device())
        found = evaluate_workdir(tmp_path / 'whole')
    assert_same_run(tmp_path / 'run', tmp_path / 'whole', config)
    last = [row for row in read_metrics(tmp_path / 'whole') if row['split'] == 'eval'][-1]
    assert found['loss'] == last['loss']
