"""The steps on networks of texts: what is in the gradient, and that devices change nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.partition import Layout, PartialParameter
from pad_jax.pretrained import load_pretrained
from pad_jax.training.devices import AXIS, Replicas
from pad_jax.training.optimizer import make_optimizer, make_rate_schedule
from pad_jax.training.rounds import compare_experts
from pad_jax.training.setup import make_inputs, make_model, make_task, open_source
from pad_jax.training.state import TrainState, init_state
from pad_jax.training.steps import eval_step, make_problem, train_step
from pad_jax.training.tasks import summarize_routers
from tests.training.parallel_test import assert_states_close
from tests.training.tiny_texts import small_text_config

pytestmark = pytest.mark.usefixtures('one_layer')

STEPS = 2


def sgd():
    return make_optimizer('sgd', make_rate_schedule(0.5, 'constant', 0, STEPS), 0.0, 0.0)


def start(config):
    """Half of the positions static, and a head that says something from the first step on."""
    state = init_state(make_model(config), sgd(), make_inputs(config), 0)
    params = state.params | {'classifier': jax.tree.map(lambda leaf: leaf + 0.3, state.params['classifier'])}
    halve = lambda mask: (jnp.arange(mask.size) % 2 == 0).reshape(mask.shape)  # noqa: E731
    return state.replace(masks=jax.tree.map(halve, state.masks), params=params)


def train_on(config, state, form='pmap', num_devices=1):
    """(final state, metrics of each step, sums of an evaluation)."""
    replicas, source = Replicas(form, jax.local_devices()[:num_devices]), open_source(config)
    task = make_task(config)
    step = replicas.map_step(train_step, donate=True, task=task, model=make_model(config, AXIS), optimizer=sgd())
    evaluate = replicas.map_step(eval_step, donate=False, task=task, model=make_model(config))
    state, metrics = replicas.place_state(state), []
    for number in range(STEPS):
        state, values = step(state, replicas.place_batch(source.train_batch(number)))
        metrics.append({name: float(value) for name, value in replicas.fetch(values).items()})
    sums = replicas.fetch(evaluate(state, replicas.place_batch(list(source.eval_batches())[-1])))
    return replicas.fetch(state), metrics, sums


def settled(texts, **changes):
    """A deterministic network: no dropout, and gates so large that a router's noise decides nothing."""
    choice = {'model__dropout': 0.0, 'model__num_selected': 1}
    config = small_text_config(texts, **choice | changes)
    state, generator = start(config), np.random.default_rng(0)

    def enlarge(path, leaf):
        return 1e4 * generator.normal(size=leaf.shape).astype(np.float32) if path[-1].key == 'gate' else leaf

    return config, state.replace(params=jax.tree_util.tree_map_with_path(enlarge, state.params))


@pytest.mark.slow
def test_strategies_and_devices_train_alike(texts):
    """With dropout and noise only by the same division into devices; outputs keep the order of the batch."""
    config = small_text_config(texts)
    first, second = (train_on(config, start(config), form, 8) for form in ('pmap', 'shard_map'))
    assert first[2]['outputs'].shape == (8, 2) and float(first[2]['weight']) == 4
    assert_alike(first, second, rtol=1e-5)
    config, state = settled(texts, model__z_coefficient=1e-10)  # of logits in the tens of thousands
    one = train_on(config, state)
    assert one[1][0]['router_loss'] > 1e-3 and one[1][0]['loss'] != pytest.approx(one[1][1]['loss'], rel=1e-3)
    assert_alike(one, train_on(config, state, num_devices=8), rtol=1e-4)


def assert_alike(first, second, rtol):
    assert_states_close(first[0], second[0], rtol)
    for one, other in zip(first[1], second[1], strict=True):
        assert one == pytest.approx(other, rel=rtol, abs=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol), first[2], second[2])


def compile_step(config, model):
    return jax.jit(functools.partial(train_step, task=make_task(config), model=model, optimizer=sgd()))


def test_dropout_and_noise_are_drawn_anew_for_each_step_and_part(texts):
    config = small_text_config(texts)
    state, batch = start(config), open_source(config).train_batch(0)
    step = compile_step(config, make_model(config))
    losses = [float(step(state.replace(step=jnp.int32(number)), batch)[1]['loss']) for number in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]


@pytest.mark.slow
def test_the_loss_of_routers_is_in_the_gradient(texts):
    """Copies of one layer: the choice of an expert changes nothing, so a router learns from its own loss only."""
    losses = []
    for balance, z in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        config = small_text_config(
            texts,
            model__balance_coefficient=balance,
            model__z_coefficient=z,
            partition__dynamic_fraction=1.0,
        )
        model = make_model(config)
        state = init_state(model, sgd(), make_inputs(config), 0)
        params = load_pretrained(texts / 'weights', state.params, state.records, num_heads=2).params
        params['classifier']['kernel'] = np.tile(np.float32([0.5, -0.5]), (16, 1))
        after, metrics = compile_step(config, model)(state.replace(params=params), open_source(config).train_batch(0))
        losses.append(float(metrics['loss']))
        learns = balance + z > 0
        assert (float(metrics['router_loss']) > 0) == learns
        for name in ('up', 'down'):
            old, new = params['layer_0']['ffn'][name], after.params['layer_0']['ffn'][name]
            moved = np.abs(new['router']['gate'] - old['router']['gate']).max()
            assert moved > 1e-4 if learns else moved < 1e-6, (balance, z, moved)
            assert (np.asarray(new['kernel']) != np.asarray(old['kernel'])).any()
    # What is logged is the task's own.
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_scores_see_neither_dropout_nor_noise_nor_the_loss_of_routers(texts):
    config = small_text_config(texts, model__dropout=0.5, model__balance_coefficient=1.0)
    state, task, model = start(config), make_task(config), make_model(config)
    layout = Layout.of(state.records)
    problem = make_problem(task, model, layout)
    assert problem is make_problem(task, make_model(config), layout)
    batch = open_source(config).scoring_batch(0, 8)
    gates = jax.tree.map(jnp.float32, state.masks)

    @jax.jit
    def compare(state, gates, batch):
        logits, _ = model.apply(state.variables, batch['tokens'], batch['segments'], batch['valid'])
        return jax.nn.log_softmax(logits), problem.loss(state.params, gates, batch)

    logarithms, found = compare(state, gates, batch)
    assert float(found) == pytest.approx(-np.asarray(logarithms)[np.arange(8), batch['label']].mean(), rel=1e-5)


def test_a_dead_expert_in_one_of_many_mixtures_is_seen():
    even = {'router_loss': 1.0, 'load': jnp.array([0.5, 0.5]), 'load_cv': jnp.float32(0)}
    even['router_entropy'] = jnp.float32(0.5)
    dead = even | {'load': jnp.array([1.0, 0.0]), 'load_cv': jnp.float32(1)}
    loss, values = summarize_routers({'a': even, 'b': dead, 'c': {}, 'd': even, 'e': even})
    assert float(loss) == 4 and float(values['load_cv']) == 0.25 and float(values['load_cv_max']) == 1
    assert summarize_routers({'c': {}})[1] == {}


def test_similarity_of_experts():
    """Pairs of (1, 0), (1, 0) and (0, 1) have the cosines 1, 0 and 0; a static position is equal in all experts."""
    experts = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    record = PartialParameter('kernel', (2,), 'element', static='static_kernel', experts=True)
    params = {'a': {'kernel': experts, 'static_kernel': jnp.array([0.0, 3.0])}, 'b': {'kernel': experts[:1]}}
    records = {'a': {'kernel_mask': record}, 'b': {'kernel_mask': PartialParameter('kernel', (2,), experts=True)}}

    def measure(*names, masks):
        only = [{name: tree[name] for name in names} for tree in (params, records)]
        state = TrainState(0, only[0], masks, {}, (), jax.random.key(0), 0, records=only[1])
        return {name: round(float(value), 6) for name, value in compare_experts(state).items()}

    assert measure(masks={}) == {}
    assert measure('b', masks={}) == {'expert_similarity': 1}
    mixed = {'a': {'kernel_mask': jnp.array([True, True])}}
    assert measure('a', masks=mixed) == {'expert_similarity': round(1 / 3, 6)}
    assert measure('a', 'b', masks=mixed) == {'expert_similarity': round(2 / 3, 6)}
    # (1, 3), (1, 3) and (0, 3): cosines 1 and twice 3 / √10.
    mixed = {'a': {'kernel_mask': jnp.array([True, False])}}
    assert measure('a', masks=mixed) == {'expert_similarity': round((1 + 2 * 3 / 10**0.5) / 3, 6)}
