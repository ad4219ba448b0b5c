import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from pad_jax.errors import BadInput
from pad_jax.models import count_layers, report_counts
from pad_jax.training.devices import Replicas
from pad_jax.training.evaluate import evaluate_state
from pad_jax.training.optimizer import make_optimizer, make_rate_schedule, make_temperature_schedule
from pad_jax.training.rounds import to_masked_storage, to_trained_storage
from pad_jax.training.setup import (
    Lengths,
    abstract_variables,
    make_inputs,
    make_model,
    make_step_arguments,
    open_source,
)
from pad_jax.training.state import init_state
from pad_jax.training.steps import eval_step, find_constant_layers, mix_neighbours, train_step
from pad_jax.training.tasks import IMAGES, Task, image_inputs
from tests.training.tiny import NormFree, one_device, small_config

STATIC = {'task': IMAGES, 'temperature': make_temperature_schedule(30.0, 4)}
MIXED = {'mixup': 0.4, 'label_smoothing': 0.1}


def sgd(decay=1e-4):
    return make_optimizer('sgd', make_rate_schedule(0.1, 'constant', 0, 10), decay, 0.0)


@pytest.fixture(scope='module')
def source():
    return open_source(small_config())


@pytest.fixture(scope='module')
def batch(source):
    return source.train_batch(0)


def start(model=None, averaged=False):
    """A state whose masks are mixed, so that both the dynamic and the static parameters are in use."""
    state = init_state(model or NormFree(), sgd(), image_inputs((8, 8, 1)), 0, averaged)
    flip = lambda mask: (jnp.arange(mask.size) % 3 == 0).reshape(mask.shape)  # noqa: E731
    return state.replace(masks=jax.tree.map(flip, state.masks))


@functools.lru_cache
def compile_step(model, decay=1e-4, **options):
    return jax.jit(functools.partial(train_step, model=model, optimizer=sgd(decay), **STATIC, **options))


def step(state, batch, model=None, **options):
    return compile_step(model or NormFree(), **options)(state, batch)


@functools.lru_cache
def compile_evaluation(model):
    return jax.jit(functools.partial(eval_step, model=model, **STATIC))


def assert_close(found, wanted, rtol=1e-5):
    def compare(path, leaf):
        other = functools.reduce(lambda tree, part: tree[part.key], path, found)
        np.testing.assert_allclose(other, leaf, rtol=rtol, atol=1e-6, err_msg=str(path))

    jax.tree_util.tree_map_with_path(compare, wanted)


def test_a_step_is_the_loss_its_gradient_and_the_optimizer(batch):
    """Against the same written out, without the step's own loss."""
    state = start()

    def loss(params):
        logits, _ = NormFree().apply({'params': params, 'partition': state.masks}, batch['image'], 30.0)
        shifted = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return -shifted[np.arange(16), batch['label']].mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    after, metrics = step(state, batch)
    assert float(metrics['loss']) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics['accuracy']) == np.mean(np.argmax(logits, -1) == batch['label'])
    assert float(metrics['gradient_norm']) == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-5)
    assert float(metrics['temperature']) == 30
    decayed = {'kernel', 'static_kernel', 'squeeze', 'expand'}
    expected = jax.tree_util.tree_map_with_path(
        lambda path, leaf, gradient: leaf - 0.1 * (gradient + (1e-4 * leaf if path[-1].key in decayed else 0)),
        state.params,
        gradients,
    )
    assert_close(after.params, expected)
    assert int(after.step) == 1 and int(after.round) == 0


def test_steps_leave_masks_and_key_alone_and_count(source):
    state = start()
    after = state
    for number in range(3):
        after, metrics = step(after, source.train_batch(number))
    np.testing.assert_array_equal(after.masks['conv']['kernel_mask'], state.masks['conv']['kernel_mask'])
    assert after.masks['conv']['kernel_mask'].dtype == bool and jnp.array_equal(after.key, state.key)
    assert int(after.step) == 3 and float(metrics['temperature']) == 30 - 2 * 29 / 4
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), state.params, after.params)
    assert all(jax.tree.leaves(changed)), changed


def test_static_positions_train_the_static_parameter_alone(batch):
    """Without weight decay, which no gradient is needed for."""
    state = start()
    after, _ = step(state, batch, decay=0.0)
    mask = np.asarray(state.masks['conv']['kernel_mask'])
    before, now = state.params['conv'], after.params['conv']
    np.testing.assert_array_equal((before['kernel'] != now['kernel']).any(0), mask)
    np.testing.assert_array_equal(before['static_kernel'] != now['static_kernel'], ~mask)


def test_accumulation_equals_the_whole_batch(batch):
    """On a network without norms: batch statistics are those of a part, on purpose."""
    whole, whole_metrics = step(start(), batch, **MIXED)
    accumulated, metrics = step(start(), batch, accumulate_steps=4, **MIXED)
    assert_close(accumulated.params, whole.params)
    assert_close(metrics, whole_metrics)


def test_accumulation_carries_batch_statistics_from_part_to_part(batch):
    model = NormFree(norm=True)
    state = start(model)
    after, _ = step(state, batch, model, accumulate_steps=2)

    @jax.jit
    def statistics(batch_stats, images):
        variables = {**state.variables, 'batch_stats': batch_stats}
        return model.apply(variables, images, 30.0, train=True, mutable=['batch_stats'])[1]['batch_stats']

    first = statistics(state.batch_stats, batch['image'][0::2])
    assert_close(after.batch_stats, statistics(first, batch['image'][1::2]), rtol=1e-4)


def test_bfloat16_computes_in_it_and_keeps_float32_parameters(batch):
    model = NormFree(dtype='bfloat16')
    state, first = step(start(model), batch, model)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.optimizer_state)} <= {jnp.dtype('float32'), jnp.dtype('int32')}
    programs = [str(compile_step(one).trace(state, batch).jaxpr) for one in (model, NormFree())]
    assert ['bf16[' in program for program in programs] == [True, False]
    assert float(first['loss']) == pytest.approx(float(step(start(), batch)[1]['loss']), rel=0.02)


def test_evaluation_counts_the_padded_batch_exactly(source):
    """355 examples in batches of 16: the last holds 3. Against the logits of every example."""
    state, replicas = start(), Replicas('pmap', one_device())
    mapped = replicas.map_step(eval_step, donate=False, model=NormFree(), **STATIC)
    found = evaluate_state(mapped, replicas.place_state(state), source, replicas)
    batches = list(source.eval_batches())
    image, label = (np.concatenate([batch[name] for batch in batches])[:355] for name in ('image', 'label'))
    logits = np.asarray(jax.jit(lambda image: NormFree().apply(state.variables, image, 30.0)[0])(image), np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(355), label]
    assert found['accuracy'] == np.mean(logits.argmax(-1) == label)
    assert found['loss'] == pytest.approx(np.mean(losses), rel=1e-5)


def test_evaluation_without_a_single_readable_example(source):
    bad = {'image': np.zeros((2, 8, 8, 1), np.float32), 'label': np.zeros(2, np.int32), 'weight': np.zeros(2, 'f4')}
    unread = types.SimpleNamespace(
        batch_size=2, spec=source.spec, num_eval_listed=3, eval_batches=lambda split, rows: [bad, bad]
    )
    replicas = Replicas('pmap', one_device())
    mapped = replicas.map_step(eval_step, donate=False, model=NormFree(), **STATIC)
    with pytest.raises(BadInput, match=r'^not one of the 3 examples to evaluate on can be read$'):
        evaluate_state(mapped, replicas.place_state(start()), unread, replicas, 'skip')


def test_evaluation_takes_the_temperature_of_its_step(source):
    state, batch, evaluate = start(), next(iter(source.eval_batches())), compile_evaluation(NormFree())
    # Logits far from zero, so that the attention is not uniform.
    state = state.replace(params=jax.tree.map(lambda leaf: 4 * leaf, state.params))
    found = {number: float(evaluate(state.replace(step=jnp.int32(number)), batch)['loss']) for number in (0, 2, 4, 9)}
    assert found[0] != found[2] != found[4] and found[4] == found[9]
    for number, temperature in ((0, 30.0), (2, 15.5), (4, 1.0)):
        logits, _ = NormFree().apply(state.variables, batch['image'], temperature)
        loss = float(-jax.nn.log_softmax(logits)[np.arange(16), batch['label']].sum())
        assert found[number] == pytest.approx(loss, rel=1e-5)


def test_evaluation_uses_and_keeps_running_statistics(source):
    model, batch = NormFree(norm=True), next(iter(source.eval_batches()))
    state, evaluate = start(model), compile_evaluation(model)
    shifted = jax.tree.map(lambda leaf: leaf + 1.0, state.batch_stats)
    plain, other = evaluate(state, batch), evaluate(state.replace(batch_stats=shifted), batch)
    assert float(plain['loss']) != float(other['loss'])
    assert float(plain['weight']) == 16 and set(plain) == {'loss', 'accuracy', 'weight'}


# The average.


@functools.cache
def run_steps(decay):
    """The states after each of four steps."""
    source, model = open_source(small_config()), NormFree(norm=True)
    states = [start(model, averaged=decay > 0)]
    for number in range(4):
        states.append(step(states[-1], source.train_batch(number), model, ema_decay=decay)[0])
    return states[1:]


def test_steps_average_parameters_and_statistics_as_a_loop_does():
    states, weights = run_steps(0.75), np.array([0.75**3, 0.75**2, 0.75, 1])

    def average(*leaves):
        return np.average(np.stack(leaves).astype(np.float64), axis=0, weights=weights)

    expected = jax.tree.map(average, *({'params': s.params, 'batch_stats': s.batch_stats} for s in states))
    assert set(expected['batch_stats']) == {'norm'}
    assert_close(states[-1].average, expected)


def test_an_average_is_not_trained_on_but_evaluated(source):
    state, plain = run_steps(0.75)[-1], run_steps(0.0)[-1]
    assert plain.average == {}
    assert_close(state.params, plain.params)
    batch, evaluate = next(iter(source.eval_batches())), compile_evaluation(NormFree(norm=True))
    found = float(evaluate(state, batch)['loss'])
    assert found == float(evaluate(state.replace(**state.average, average={}), batch)['loss'])
    assert found != float(evaluate(state.replace(average={}), batch)['loss'])


# Smoothed labels and mixup.


def test_smoothing_golden_values():
    """Probabilities 1/4 and 3/4; a tenth of a label over two classes leaves it 0.95, and 0.05 to the other."""
    outputs = jnp.log(jnp.array([[1.0, 3.0], [1.0, 3.0]]))
    labels = jnp.array([1, 0])
    # 0.95 · ln(4/3) + 0.05 · ln 4 = 0.273298 + 0.069315; 0.95 · ln 4 + 0.05 · ln(4/3) = 1.316980 + 0.014384
    np.testing.assert_allclose(IMAGES.losses(outputs, labels, 0.1), [0.342613, 1.331364], rtol=1e-5)
    # ln(4/3) and ln 4
    np.testing.assert_allclose(IMAGES.losses(outputs, labels), [0.287682, 1.386294], rtol=1e-5)
    squared = Task(('image',), regression=True).losses(jnp.array([[3.0]]), jnp.array([1.0]), 0.1)
    assert squared.tolist() == [4.0]  # numbers are not smoothed


def test_mixing_golden_values():
    """By 0.75: the first with the second, the third with the fourth, each mostly itself."""
    images = jnp.array([0.0, 8.0, 100.0, 20.0]).reshape(4, 1, 1, 1)
    mixed = mix_neighbours({'image': images, 'label': jnp.array([5, 6, 7, 8])}, 0.75)
    # 0.75 · 0 + 0.25 · 8, 0.75 · 8 + 0.25 · 0, 0.75 · 100 + 0.25 · 20, 0.75 · 20 + 0.25 · 100
    assert mixed['image'].ravel().tolist() == [2, 6, 80, 40]
    assert mixed['label'].tolist() == [5, 6, 7, 8] and mixed['partner_label'].tolist() == [6, 5, 8, 7]


def test_a_step_is_the_loss_of_mixed_examples_written_out(batch):
    """One pair after the other, targets as whole distributions; loss, accuracy, and the gradient through SGD."""
    state = start()
    share = float(jax.random.beta(jax.random.fold_in(jax.random.fold_in(state.key, 0), 2**32 - 1), 0.4, 0.4))
    assert 0.01 < share < 0.99
    images, targets = np.array(batch['image']), np.full((16, 10), 0.1 / 10)
    for i in range(16):
        partner = i + 1 if i % 2 == 0 else i - 1
        images[i] = share * batch['image'][i] + (1 - share) * batch['image'][partner]
        targets[i, batch['label'][i]] += 0.9 * share
        targets[i, batch['label'][partner]] += 0.9 * (1 - share)

    def loss(params):
        logits, _ = NormFree().apply({'params': params, 'partition': state.masks}, images, 30.0)
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean(), logits

    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    after, metrics = step(state, batch, **MIXED)
    assert float(metrics['loss']) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics['gradient_norm']) == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-4)
    chosen = np.asarray(logits).argmax(-1)
    hits = share * (chosen == batch['label']) + (1 - share) * (chosen == batch['label'].reshape(-1, 2)[:, ::-1].ravel())
    assert float(metrics['accuracy']) == pytest.approx(hits.mean(), rel=1e-5)
    assert float(step(after, batch, **MIXED)[1]['loss']) != float(value)


# The two storages.


def partitioned_state(config):
    """A state a few steps old in which every third gate is dynamic."""
    arguments = make_step_arguments(config, Lengths(total=10, temperature=0))
    state = init_state(arguments['model'], arguments['optimizer'], make_inputs(config), 0, config.optim.ema_decay > 0)
    thin = lambda mask: ((jnp.arange(mask.size) + mask.size) % 3 == 0).reshape(mask.shape)  # noqa: E731
    return state.replace(masks=jax.tree.map(thin, state.masks), round=jnp.int32(1)), arguments


def zero_the_dead(state):
    return to_masked_storage(to_trained_storage(state, 1, compact=True))


@pytest.mark.usefixtures('one_block')
@pytest.mark.parametrize(
    'granularity',
    ['output', *(pytest.param(name, marks=pytest.mark.slow) for name in ('element', 'input', 'spatial', 'layer'))],
)
def test_compact_storage_holds_what_is_alive_and_converts_back(granularity):
    """Parameters, two moments of AdamW and the average: four numbers for each counted parameter."""
    config = small_config(partition__granularity=granularity, optim__name='adamw', optim__ema_decay=0.9)
    state, _ = partitioned_state(config)
    compact = to_trained_storage(state, 1, compact=True)
    back = to_masked_storage(compact)
    assert compact.masks == {} == back.index and compact.index
    assert jax.tree.structure(back) == jax.tree.structure(state)
    again = zero_the_dead(back)
    jax.tree.map(np.testing.assert_array_equal, again.params, back.params)
    jax.tree.map(np.testing.assert_array_equal, again.masks, state.masks)
    if granularity == 'output':
        shapes = abstract_variables(make_model(config), make_inputs(config))
        alive = report_counts(count_layers({**shapes, 'partition': state.masks}))['parameters']
        for tree in (compact.params, compact.average['params'], optax.tree.get(compact.optimizer_state, 'mu')):
            assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == alive
    assert to_trained_storage(state, rounds=2, compact=True).masks  # not before the last round
    assert to_trained_storage(state.replace(round=jnp.int32(0)), rounds=1, compact=True).index == {}


@pytest.mark.usefixtures('one_block')
@pytest.mark.slow
def test_a_step_is_the_same_in_both_storages():
    config = small_config(partition__granularity='output', optim__ema_decay=0.5, optim__clip_norm=0.1)
    state, arguments = partitioned_state(config)
    state = zero_the_dead(state)
    batch = {'image': jax.random.normal(jax.random.key(1), (8, 8, 8, 1)), 'label': jnp.arange(8)}
    step = jax.jit(lambda state: train_step(state, batch, **arguments))
    masked, values = step(state)
    compact, other_values = step(to_trained_storage(state, 1, compact=True))
    assert_close(zero_the_dead(to_masked_storage(compact)).params, zero_the_dead(masked).params)
    assert_close(other_values, values)


class Mixer(nn.Module):
    """Stands in for a network that mixes by these rows."""

    rows: tuple

    @nn.compact
    def __call__(self, images, train):
        self.sow('intermediates', 'routing', jnp.array(self.rows))
        return images, {}


@pytest.mark.parametrize(
    ('rows', 'is_constant'),
    [
        (((0.3, 0.7), (0.0, 0.0), (0.3, 0.7)), True),  # the row of zeros is padding
        (((0.3, 0.7), (0.3, 0.7), (0.30001, 0.69999)), False),
        (((0.0, 0.0),), True),
    ],
)
def test_a_layer_is_constant_if_rows_of_its_weights_are_equal(rows, is_constant):
    batch = {'image': jnp.ones((3, 2)), 'label': jnp.zeros(3, int)}
    assert find_constant_layers(IMAGES, Mixer(rows), {}, batch) == [''] * is_constant


def test_an_attention_whose_hidden_units_are_dead_is_constant(batch):
    state = start()
    dead = jax.tree.map(jnp.copy, state.params)
    dead['conv']['attention']['squeeze'] *= 0
    variables = ({'params': params, 'partition': state.masks} for params in (state.params, dead))
    found = [find_constant_layers(IMAGES, NormFree(), one, batch, jnp.float32(1)) for one in variables]
    assert found == [[], ['conv']]
