"""One device and eight, pmap and shard_map: a step gives the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.training.devices import AXIS, PARALLEL, Replicas
from pad_jax.training.optimizer import make_optimizer, make_rate_schedule, make_temperature_schedule
from pad_jax.training.setup import make_model, open_source
from pad_jax.training.state import init_state
from pad_jax.training.steps import eval_step, train_step
from pad_jax.training.tasks import IMAGES, image_inputs
from tests.training.tiny import NormFree, small_config

STATIC = {'task': IMAGES, 'temperature': make_temperature_schedule(30.0, 4)}
STEPS = 5


@functools.cache
def source():
    return open_source(small_config())


def start(optimizer):
    state = init_state(NormFree(), optimizer, image_inputs((8, 8, 1)), 0)
    mixed = jax.tree.map(lambda mask: (jnp.arange(mask.size) % 3 == 0).reshape(mask.shape), state.masks)
    return state.replace(masks=mixed)


@functools.cache
def train_on(form, num_devices):
    """(losses, final state, metrics as the devices hold them, evaluation)."""
    replicas = Replicas(form, jax.local_devices()[:num_devices])
    optimizer = make_optimizer('sgd', make_rate_schedule(0.1, 'cosine', 1, STEPS), 1e-4, 1.0)
    options = {'model': NormFree(), 'optimizer': optimizer, 'accumulate_steps': 1}
    step = replicas.map_step(train_step, donate=True, **options, **STATIC)
    evaluate = replicas.map_step(eval_step, donate=False, model=NormFree(), **STATIC)
    state, losses = replicas.place_state(start(optimizer)), []
    for number in range(STEPS):
        if number == 3:  # as a round of the partition does
            fetched = replicas.fetch(state)
            thin = lambda mask: mask & (jnp.arange(mask.size) % 2 == 0).reshape(mask.shape)  # noqa: E731
            changed = fetched.replace(masks=jax.tree.map(thin, fetched.masks), round=fetched.round + 1)
            state = replicas.place_state(changed)
        state, metrics = step(state, replicas.place_batch(source().train_batch(number)))
        losses.append(float(replicas.fetch(metrics)['loss']))
    sums = replicas.fetch(evaluate(state, replicas.place_batch(next(iter(source().eval_batches())))))
    return losses, replicas.fetch(state), metrics, {name: float(value) for name, value in sums.items()}


def assert_states_close(first, second, rtol):
    def compare(path, one, other):
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=rtol, atol=rtol / 10, err_msg=str(path))

    jax.tree_util.tree_map_with_path(compare, first, second)


@pytest.mark.parametrize(
    ('form', 'num_devices'),
    [('shard_map', 8), *(pytest.param(*case, marks=pytest.mark.slow) for case in (('shard_map', 1), ('pmap', 8)))],
)
def test_strategies_and_numbers_of_devices_train_alike(form, num_devices):
    """All replicas hold the same metrics too."""
    losses, state, _, sums = train_on('pmap', 1)
    other_losses, other_state, metrics, other_sums = train_on(form, num_devices)
    np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
    assert_states_close(state, other_state, rtol=1e-4)
    assert sums == pytest.approx(other_sums, rel=1e-4)
    assert sums['weight'] == 16
    for name, value in metrics.items():
        copies = [np.asarray(shard.data).item() for shard in value.addressable_shards]
        assert len(copies) == num_devices and len(set(copies)) == 1, name


@pytest.mark.slow
@pytest.mark.usefixtures('one_block')
def test_eight_devices_equal_one_in_microbatches_with_norms():
    config = small_config()
    optimizer = make_optimizer('sgd', make_rate_schedule(0.1, 'constant', 0, STEPS), 0.0, 0.0)
    first, found = init_state(make_model(config), optimizer, image_inputs((8, 8, 1)), 0), []
    for num_devices in (1, 8):
        replicas = Replicas('pmap', jax.local_devices()[:num_devices])
        step = replicas.map_step(
            train_step, donate=True, model=make_model(config, AXIS), optimizer=optimizer, accumulate_steps=2, **STATIC
        )
        state, metrics = step(replicas.place_state(first), replicas.place_batch(source().train_batch(0)))
        found.append(jax.tree.leaves((replicas.fetch(state).batch_stats, replicas.fetch(metrics))))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('form', PARALLEL)
@pytest.mark.parametrize('num_devices', [1, 8])
def test_placing_copies_the_state_and_fetching_returns_it(form, num_devices):
    replicas = Replicas(form, jax.local_devices()[:num_devices])
    state = {'mask': jnp.array([True, False]), 'key': jax.random.key(3), 'step': jnp.int32(7), 'w': jnp.ones((2, 3))}
    placed = replicas.place_state(state)
    fetched = replicas.fetch(placed)
    for name, value in state.items():
        assert len(placed[name].addressable_shards) == num_devices
        assert fetched[name].shape == value.shape and fetched[name].dtype == value.dtype
        assert jnp.array_equal(fetched[name], value)
        assert fetched[name].devices() == {jax.local_devices()[0]}
        placed[name].delete()
    np.testing.assert_array_equal(state['w'], np.ones((2, 3)))


@pytest.mark.parametrize('form', PARALLEL)
def test_every_device_gets_its_rows(form):
    replicas = Replicas(form, jax.local_devices())
    placed = replicas.place_batch({'label': np.arange(16)})['label']
    shards = placed if form == 'pmap' else [shard.data for shard in placed.addressable_shards]
    np.testing.assert_array_equal(np.stack([np.ravel(shard) for shard in shards]), np.arange(16).reshape(8, 2))
