import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.errors import BadInput
from pad_jax.partition import PLAIN
from pad_jax.training.devices import Replicas
from pad_jax.training.evaluate import evaluate_state
from pad_jax.training.optimizer import make_optimizer, make_temperature_schedule
from pad_jax.training.setup import make_model, open_source
from pad_jax.training.state import init_state
from pad_jax.training.steps import eval_step, make_problem, train_step
from pad_jax.training.tasks import IMAGES, image_inputs
from tests.training.tiny import NormFree, one_device, small_config

STATIC = {'task': IMAGES, 'temperature': make_temperature_schedule(30.0, 4)}


def sgd():
    return make_optimizer('sgd', 0.1, 'constant', 0, 1e-4, 0.0, 10)


@pytest.fixture(scope='module')
def source():
    return open_source(small_config())


def start(model, seed=0):
    """A state whose masks are mixed, so that both the dynamic and the static parameters are in use."""
    state = init_state(model, sgd(), image_inputs((8, 8, 1)), seed)
    flip = lambda mask: (jnp.arange(mask.size) % 3 == 0).reshape(mask.shape)  # noqa: E731
    return state.replace(masks=jax.tree.map(flip, state.masks))


@functools.partial(jax.jit, static_argnames=('model', 'accumulate_steps'))
def step(state, batch, model, accumulate_steps=1):
    return train_step(state, batch, model=model, optimizer=sgd(), accumulate_steps=accumulate_steps, **STATIC)


def assert_close(found, wanted, rtol=1e-5):
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        other = functools.reduce(lambda tree, part: tree[part.key], path, found)
        np.testing.assert_allclose(other, leaf, rtol=rtol, atol=1e-6, err_msg=str(path))


def test_a_step_is_the_loss_its_gradient_and_the_optimizer(source):
    """Against the same written out, without the step's own loss."""
    model, batch = NormFree(), source.train_batch(0)
    state = start(model)

    def loss(params):
        logits, _ = model.apply({'params': params, 'partition': state.masks}, batch['image'], 30.0)
        shifted = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return -shifted[np.arange(16), batch['label']].mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    after, metrics = step(state, batch, model)
    assert float(metrics['loss']) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics['accuracy']) == np.mean(np.argmax(logits, -1) == batch['label'])
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradients)))
    assert float(metrics['gradient_norm']) == pytest.approx(norm, rel=1e-5)
    assert float(metrics['temperature']) == 30
    decayed = {'kernel', 'static_kernel', 'squeeze', 'expand'}
    expected = jax.tree_util.tree_map_with_path(
        lambda path, leaf, gradient: leaf - 0.1 * (gradient + (1e-4 * leaf if path[-1].key in decayed else 0)),
        state.params,
        gradients,
    )
    assert_close(after.params, expected)
    assert int(after.step) == 1 and int(after.round) == 0


def test_a_step_leaves_masks_and_key_alone_and_counts(source):
    model = NormFree()
    state = start(model)
    after = state
    for number in range(3):
        after, metrics = step(after, source.train_batch(number), model)
    assert after.masks['conv']['kernel'].dtype == bool
    np.testing.assert_array_equal(after.masks['conv']['kernel'], state.masks['conv']['kernel'])
    assert jnp.array_equal(jax.random.key_data(after.key), jax.random.key_data(state.key))
    assert int(after.step) == 3
    assert float(metrics['temperature']) == 30 - 2 * 29 / 4
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), state.params, after.params)
    assert all(jax.tree.leaves(changed)), changed


def test_static_positions_train_the_static_parameter_alone(source):
    model = NormFree()
    # Without weight decay, which no gradient is needed for.
    optimizer = make_optimizer('sgd', 0.1, 'constant', 0, 0.0, 0.0, 10)
    state = init_state(model, optimizer, image_inputs((8, 8, 1)), 0)
    state = state.replace(masks=start(model).masks)
    after, _ = jax.jit(functools.partial(train_step, model=model, optimizer=optimizer, **STATIC))(
        state, source.train_batch(0)
    )
    mask = np.asarray(state.masks['conv']['kernel'])
    before, now = state.params['conv'], after.params['conv']
    np.testing.assert_array_equal((before['kernel'] != now['kernel']).any(0), mask)
    np.testing.assert_array_equal(before['static_kernel'] != now['static_kernel'], ~mask)


def test_accumulation_equals_the_whole_batch(source):
    """On a network without norms: batch statistics are those of a part, on purpose."""
    model, batch = NormFree(), source.train_batch(0)
    whole, whole_metrics = step(start(model), batch, model)
    accumulated, metrics = step(start(model), batch, model, accumulate_steps=4)
    assert_close(accumulated.params, whole.params)
    assert_close(metrics, whole_metrics)


def test_accumulation_carries_batch_statistics_from_part_to_part(source):
    model, batch = NormFree(norm=True), source.train_batch(0)
    state = start(model)
    after, _ = step(state, batch, model, accumulate_steps=2)

    @jax.jit
    def statistics(batch_stats, images):
        variables = {**state.variables, 'batch_stats': batch_stats}
        return model.apply(variables, images, 30.0, train=True, mutable=['batch_stats'])[1]['batch_stats']

    first = statistics(state.batch_stats, batch['image'][0::2])
    assert_close(after.batch_stats, statistics(first, batch['image'][1::2]), rtol=1e-4)


def test_bfloat16_computes_in_it_and_keeps_float32_parameters(source):
    model = NormFree(dtype='bfloat16')
    state = start(model)
    state, first = step(state, source.train_batch(0), model)
    state, _ = step(state, source.train_batch(1), model)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.optimizer_state)} <= {jnp.dtype('float32'), jnp.dtype('int32')}
    text = str(jax.make_jaxpr(functools.partial(step, model=model))(state, source.train_batch(0)))
    assert 'bf16[' in text and 'bf16[' not in str(
        jax.make_jaxpr(functools.partial(step, model=NormFree()))(state, source.train_batch(0))
    )
    _, in_float32 = step(start(model), source.train_batch(0), NormFree())
    assert float(first['loss']) == pytest.approx(float(in_float32['loss']), rel=0.02)


def test_evaluation_counts_the_padded_batch_exactly(source):
    """355 examples in batches of 16: the last holds 3. Against one example after another."""
    model = NormFree()
    state = start(model)
    replicas = Replicas('pmap', one_device())
    mapped = replicas.map_step(eval_step, donate=False, model=model, **STATIC)
    found = evaluate_state(mapped, replicas.place_state(state), source, replicas)
    losses, correct = [], 0

    @jax.jit
    def logits_of(image):
        return model.apply(state.variables, image[None], 30.0)[0][0]

    for batch in dataclasses.replace(source, batch_size=1).eval_batches():
        label = batch['label'][0]
        logits = np.asarray(logits_of(batch['image'][0]), np.float64)
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label])
        correct += logits.argmax() == label
    assert found['accuracy'] == correct / 355
    assert found['loss'] == pytest.approx(np.mean(losses), rel=1e-5)


def test_evaluation_without_a_single_example_that_can_be_read(source):
    """As several processes come to it, each with a few rows of its own."""
    bad = {'image': np.zeros((2, 8, 8, 1), np.float32), 'label': np.zeros(2, np.int32), 'weight': np.zeros(2, 'f4')}
    unread = types.SimpleNamespace(
        batch_size=2, spec=source.spec, num_eval_listed=3, eval_batches=lambda rows: [bad, bad]
    )
    model, replicas = NormFree(), Replicas('pmap', one_device())
    mapped = replicas.map_step(eval_step, donate=False, model=model, **STATIC)
    with pytest.raises(BadInput, match=r'^not one of the 3 examples to evaluate on can be read$'):
        evaluate_state(mapped, replicas.place_state(start(model)), unread, replicas, 'skip')


def test_evaluation_takes_the_temperature_of_its_step(source):
    model, batch = NormFree(), next(iter(source.eval_batches()))
    state = start(model)
    # Logits far from zero, so that the attention is not uniform.
    state = state.replace(params=jax.tree.map(lambda leaf: 4 * leaf, state.params))
    evaluate = jax.jit(functools.partial(eval_step, model=model, **STATIC))
    found = {number: float(evaluate(state.replace(step=jnp.int32(number)), batch)['loss']) for number in (0, 2, 4, 9)}
    assert found[0] != found[2] != found[4] and found[4] == found[9]
    loss = {}
    for number, temperature in ((0, 30.0), (2, 15.5), (4, 1.0)):
        logits, _ = model.apply(state.variables, batch['image'], temperature)
        loss[number] = float(-jax.nn.log_softmax(logits)[np.arange(16), batch['label']].sum())
        assert found[number] == pytest.approx(loss[number], rel=1e-5)


def test_evaluation_uses_and_keeps_running_statistics(source):
    model, batch = NormFree(norm=True), next(iter(source.eval_batches()))
    state = start(model)
    evaluate = jax.jit(functools.partial(eval_step, model=model, **STATIC))
    shifted = jax.tree.map(lambda leaf: leaf + 1.0, state.batch_stats)
    plain, other = evaluate(state, batch), evaluate(state.replace(batch_stats=shifted), batch)
    assert float(plain['loss']) != float(other['loss'])
    assert float(plain['weight']) == 16 and set(plain) == {'loss', 'accuracy', 'weight'}


def test_equal_networks_share_one_scoring_problem(one_block):
    first, second = (make_problem(IMAGES, make_model(small_config()), PLAIN) for _ in range(2))
    assert first is second
