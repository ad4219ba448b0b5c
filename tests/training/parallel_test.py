import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.training.devices import AXIS, PARALLEL, Replicas
from pad_jax.training.optimizer import make_optimizer, make_temperature_schedule
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
    """(losses, final state, traces of the step, metrics as the devices hold them, evaluation)."""
    replicas = Replicas(form, jax.local_devices()[:num_devices])
    optimizer = make_optimizer('sgd', 0.1, 'cosine', 1, 1e-4, 1.0, STEPS)
    traces = []

    def counted(*arguments, **static):
        traces.append(form)
        return train_step(*arguments, **static)

    step = replicas.map_step(counted, donate=True, model=NormFree(), optimizer=optimizer, accumulate_steps=1, **STATIC)
    evaluate = replicas.map_step(eval_step, donate=False, model=NormFree(), **STATIC)
    state, losses = replicas.place_state(start(optimizer)), []
    for number in range(STEPS):
        if number == 3:  # as a round of the partition does
            fetched = replicas.fetch(state)
            masks = jax.tree.map(
                lambda mask: mask & (jnp.arange(mask.size) % 2 == 0).reshape(mask.shape), fetched.masks
            )
            state = replicas.place_state(fetched.replace(masks=masks, round=fetched.round + 1))
        state, metrics = step(state, replicas.place_batch(source().train_batch(number)))
        losses.append(float(replicas.fetch(metrics)['loss']))
    sums = replicas.fetch(evaluate(state, replicas.place_batch(next(iter(source().eval_batches())))))
    return losses, replicas.fetch(state), len(traces), metrics, {name: float(value) for name, value in sums.items()}


def assert_states_close(first, second, rtol):
    def compare(path, one, other):
        if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=rtol, atol=rtol / 10, err_msg=str(path))

    jax.tree_util.tree_map_with_path(compare, first, second)


@pytest.mark.parametrize(('form', 'num_devices', 'rtol'), [('shard_map', 1, 1e-6), ('pmap', 8, 1e-5)])
def test_strategies_and_numbers_of_devices_train_alike(form, num_devices, rtol):
    """On a network without norms, whose steps pmap takes on one device; trainer_test has one with them."""
    losses, state, _, _, sums = train_on('pmap', 1)
    other_losses, other_state, _, _, other_sums = train_on(form, num_devices)
    np.testing.assert_allclose(losses, other_losses, rtol=rtol)
    assert_states_close(state, other_state, rtol=10 * rtol)
    assert sums == pytest.approx(other_sums, rel=10 * rtol)
    assert sums['weight'] == 16


def test_eight_devices_by_pmap_equal_eight_by_shard_map():
    (losses, state, *_), (other_losses, other_state, *_) = train_on('pmap', 8), train_on('shard_map', 8)
    np.testing.assert_allclose(losses, other_losses, rtol=1e-6)
    assert_states_close(state, other_state, rtol=1e-6)


@pytest.mark.usefixtures('one_block')
def test_eight_devices_equal_one_in_microbatches_with_norms():
    config = small_config()
    optimizer = make_optimizer('sgd', 0.1, 'constant', 0, 0.0, 0.0, STEPS)
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
def test_steps_temperatures_and_rounds_compile_once_and_replicas_have_the_same_metrics(form):
    assert train_on(form, 1)[2] == train_on(form, 8)[2] == 1
    for name, value in train_on(form, 8)[3].items():
        copies = [np.asarray(shard.data).item() for shard in value.addressable_shards]
        assert len(copies) == 8 and len(set(copies)) == 1, name


@pytest.mark.parametrize('form', PARALLEL)
@pytest.mark.parametrize('num_devices', [1, 8])
def test_place_and_fetch_round_trip_and_copy(form, num_devices):
    replicas = Replicas(form, jax.local_devices()[:num_devices])
    state = {'mask': jnp.array([True, False]), 'key': jax.random.key(3), 'step': jnp.int32(7), 'w': jnp.ones((2, 3))}
    placed = replicas.place_state(state)
    for leaf in jax.tree.leaves(placed):
        assert len(leaf.addressable_shards) == num_devices
    fetched = replicas.fetch(placed)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), fetched) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert jnp.array_equal(jax.random.key_data(fetched['key']), jax.random.key_data(state['key']))
    np.testing.assert_array_equal(fetched['mask'], state['mask'])
    assert {leaf.devices() == {jax.local_devices()[0]} for leaf in jax.tree.leaves(fetched)} == {True}
    for leaf in jax.tree.leaves(placed):
        leaf.delete()
    np.testing.assert_array_equal(state['w'], np.ones((2, 3)))


@pytest.mark.parametrize('form', PARALLEL)
def test_every_device_gets_its_rows(form):
    replicas = Replicas(form, jax.local_devices())
    placed = replicas.place_batch({'label': np.arange(16)})['label']
    rows = (
        [np.asarray(shard).ravel() for shard in placed]
        if form == 'pmap'
        else [np.asarray(shard.data) for shard in placed.addressable_shards]
    )
    np.testing.assert_array_equal(np.stack(rows), np.arange(16).reshape(8, 2))


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="parallel must be one of pmap, shard_map, got 'xmap'"):
        Replicas('xmap')
