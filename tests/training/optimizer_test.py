import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pad_jax.layers import CONVS, find_records
from pad_jax.layers.factors import read_records
from pad_jax.partition import Layout, PartialParameter
from pad_jax.training import rounds
from pad_jax.training.optimizer import (
    decay_mask,
    find_scales,
    follow_handoff,
    hand_off_moments,
    make_optimizer,
    make_rate_schedule,
    make_temperature_schedule,
    update_average,
)
from pad_jax.training.setup import abstract_variables, make_model, open_source
from pad_jax.training.state import init_state
from pad_jax.training.steps import train_step
from pad_jax.training.tasks import IMAGES, image_inputs
from tests.training.tiny import NormFree, small_config

PLAIN = {
    'name': 'sgd',
    'rate': make_rate_schedule(0.1, 'constant', 0, 10),
    'weight_decay': 0.0,
    'clip_norm': 0.0,
    'scales': frozenset({'conv/phi', 'generated/static_tensor'}),
}


VECTORS = ('channel', 'filter', 'spatial')


def sample_params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        'conv': {
            'kernel': draw(2, 3, 4),
            'static_kernel': draw(3, 4),
            'phi': draw(),
            'bias': draw(2, 4),
            'attention': {'squeeze': draw(3, 2), 'expand': draw(2, 2), 'bias': draw(2)},
        },
        'generated': {
            'tensor': draw(3, 4),
            'bias': draw(4),
            'static_tensor': draw(4),
            'into_latent': draw(3, 2),
            'out_of_latent': draw(2, 3),
        },
        'norm': {'scale': draw(4), 'bias': draw(4)},
    }


DECAYED = {
    *('conv/kernel', 'conv/static_kernel', 'conv/attention/squeeze', 'conv/attention/expand'),
    *('generated/tensor', 'generated/into_latent', 'generated/out_of_latent'),
}


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf) for path, leaf in leaves}


def run_optimizer(params, gradients, **changes):
    """Parameters after each of the steps."""
    optimizer = make_optimizer(**PLAIN | changes)
    state, found = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        found.append(by_path(params))
    return found


def random_gradients(params, count=3):
    rng = np.random.default_rng(1)
    return [jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params) for _ in range(count)]


def sgd_twin(value, gradients, decay, rate):
    velocity = np.zeros_like(value)
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient + decay * value
        value = value - rate * velocity
        yield value


def adamw_twin(value, gradients, decay, rate):
    first, second = np.zeros_like(value), np.zeros_like(value)
    for step, gradient in enumerate(gradients, start=1):
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        direction = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        value = value - rate * (direction + decay * value)
        yield value


@pytest.mark.parametrize(('name', 'twin', 'rtol'), [('sgd', sgd_twin, 1e-5), ('adamw', adamw_twin, 2e-4)])
def test_an_optimizer_equals_its_numpy_twin(name, twin, rtol):
    """Only weights decay."""
    params, decay, rate = sample_params(), 0.1, 0.05
    gradients = random_gradients(params)
    constant = make_rate_schedule(rate, 'constant', 0, 10)
    found = run_optimizer(params, gradients, name=name, rate=constant, weight_decay=decay)
    for path, value in by_path(params).items():
        values = twin(value, [by_path(tree)[path] for tree in gradients], decay if path in DECAYED else 0, rate)
        for step, expected in enumerate(values):
            np.testing.assert_allclose(found[step][path], expected, rtol=rtol, atol=1e-6, err_msg=f'{path} at {step}')


def test_every_parameter_of_the_networks_has_a_rule():
    for changes in ({}, {'model__name': 'resnet50'}, {'model__conv': 'static'}, {'partition__dynamic_fraction': 1.0}):
        variables = abstract_variables(make_model(small_config(**changes)), image_inputs((8, 8, 1)))
        scales = find_scales(read_records(variables.get('intermediates', {})))
        decays = by_path(decay_mask(variables['params'], scales))
        last_names = {
            decayed: {path.split('/')[-1] for path in decays if decays[path] == decayed} for decayed in (0, 1)
        }
        assert last_names[1] <= {'kernel', 'static_kernel', 'squeeze', 'expand'}
        assert last_names[0] <= {'bias', 'scale', 'phi'}
        norms = [path for path in decays if 'norm' in path]
        assert norms and not any(decays[path] for path in norms)


def test_scales_are_found_in_the_records():
    for conv, expected in (
        ('dynamic', {'phi'}),
        ('odconv', {'phi', *(f'{name}/{leaf}' for name in VECTORS for leaf in ('phi', 'static_tensor'))}),
    ):
        layer = CONVS[conv](4, (3, 3), granularity='element')
        assert find_scales(find_records(layer, jnp.ones((1, 5, 5, 3)))) == expected
    assert not find_scales(find_records(CONVS['dynamic'](4, (3, 3)), jnp.ones((1, 5, 5, 3))))


def test_clipping_scales_the_whole_gradient_down_and_never_up():
    params = {'kernel': np.zeros(2, np.float32)}
    # Norm 5, clipped to 1: (3, 4) / 5. Norm 0.5 stays.
    (clipped,) = run_optimizer(params, [{'kernel': np.array([3.0, 4.0], np.float32)}], clip_norm=1.0)
    np.testing.assert_allclose(clipped['kernel'], [-0.06, -0.08], rtol=1e-6)
    (kept,) = run_optimizer(params, [{'kernel': np.array([0.3, 0.4], np.float32)}], clip_norm=1.0)
    np.testing.assert_allclose(kept['kernel'], [-0.03, -0.04], rtol=1e-6)


@pytest.mark.parametrize(
    ('schedule', 'warmup', 'total', 'golden'),
    [
        # cos² of 0, 1/8, ..., of a quarter turn: 0.4 · (1 + cos(π t / 4)) / 2
        ('cosine', 0, 4, {0: 0.4, 1: 0.341421, 2: 0.2, 3: 0.058579, 4: 0.0}),
        # half of 0.4 at half of the warm-up, then the cosine over the 4 that are left
        ('cosine', 2, 6, {0: 0.0, 1: 0.2, 2: 0.4, 4: 0.2, 6: 0.0}),
        # a tenth from 30, from 60 and from 80 of 90 on
        ('step', 0, 90, {0: 0.4, 29: 0.4, 30: 0.04, 59: 0.04, 60: 0.004, 79: 0.004, 80: 0.0004, 89: 0.0004}),
        ('step', 5, 90, {0: 0.0, 1: 0.08, 5: 0.4, 29: 0.4, 30: 0.04, 60: 0.004}),
        ('step', 45, 90, {0: 0.0, 44: 0.4 * 44 / 45, 45: 0.04, 60: 0.004, 80: 0.0004}),
        ('constant', 0, 10, {0: 0.4, 9: 0.4}),
        ('constant', 4, 10, {0: 0.0, 1: 0.1, 4: 0.4, 9: 0.4}),
    ],
)
def test_learning_rates(schedule, warmup, total, golden):
    rate = make_rate_schedule(0.4, schedule, warmup, total)
    found = {step: float(rate(step)) for step in golden}
    assert found == pytest.approx(golden, rel=1e-4, abs=1e-8)


def test_temperature_falls_linearly_to_one_and_stays():
    schedule = make_temperature_schedule(31.0, 10)
    assert [float(schedule(step)) for step in (0, 1, 5, 10, 11, 1000)] == pytest.approx([31, 28, 16, 1, 1, 1])
    assert float(make_temperature_schedule(31.0, 0)(0)) == 1


def test_equal_arguments_give_the_same_optimizer():
    assert make_optimizer(**PLAIN) is make_optimizer(**PLAIN)


def test_golden_values_of_an_average_with_and_without_a_handoff():
    """1, 4 and 10 with a decay of 1/2: 1; (1/2·1 + 4) / (3/2) = 3; (1/4·1 + 1/2·4 + 10) / (7/4) = 7."""
    average, found = jnp.float32(99), []
    for number, value in enumerate((1.0, 4.0, 10.0), start=1):
        average = update_average(average, jnp.float32(value), jnp.int32(number), 0.5)
        found.append(float(average))
    np.testing.assert_allclose(found, [1, 3, 7], rtol=1e-6)
    assert found[0] == 1
    # Decay 1/2; 1 and 4 average to 3, a round makes it 20, then 10 and 6.
    #
    # (1/4·20 + 1/2·20 + 10) / (7/4) = 100/7, and (1/8·20 + 1/4·20 + 1/2·10 + 6) / (15/8) = 148/15; the entry that no
    # round has touched continues: (1/4·1 + 1/2·4 + 10) / (7/4) = 7, and (1/8·1 + 1/4·4 + 1/2·10 + 6) / (15/8) = 97/15.
    average, found = follow_handoff(jnp.array([3.0, 3.0]), jnp.array([4.0, 4.0]), jnp.array([20.0, 4.0])), []
    for number, value in enumerate((10.0, 6.0), start=3):
        average = update_average(average, jnp.full(2, value), jnp.int32(number), 0.5)
        found.append(average)
    np.testing.assert_allclose(found, [[100 / 7, 7], [148 / 15, 97 / 15]], rtol=1e-6)


@pytest.mark.parametrize('decay', [0.9, 0.9999, 1 - 1e-7])
def test_a_long_run_against_the_sum_in_float64(decay):
    values = np.random.default_rng(0).normal(size=300)
    update = jax.jit(functools.partial(update_average, decay=decay))
    average = jnp.float32(0)
    for number, value in enumerate(values, start=1):
        average = update(average, jnp.float32(value), jnp.int32(number))
    weights = decay ** np.arange(299, -1, -1.0)
    assert float(average) == pytest.approx((weights * values).sum() / weights.sum(), abs=1e-5)


@pytest.mark.parametrize(('name', 'moment'), [('sgd', 'trace'), ('adamw', 'mu'), ('adamw', 'nu')])
def test_moments_follow_a_handoff_by_hand(name, moment):
    """Weights sum to 4/2 and λs / λd = 1: half of 1 + 3 + 2 + 2, for the second moment its square; the rest stays."""
    record = PartialParameter('kernel', (2,), 'element', static='static_kernel', sums_to_one=False)
    params = {'conv': {'kernel': jnp.zeros((4, 2)), 'static_kernel': jnp.zeros(2)}}
    factors = jnp.array([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0], [2.0, 5.0]])
    moments = {'conv': {'kernel': factors**2 if moment == 'nu' else factors, 'static_kernel': jnp.array([7.0, 7.0])}}
    optimizer = make_optimizer(**PLAIN | {'name': name, 'clip_norm': 1.0})
    state = optax.tree.set(optimizer.init(params), **{moment: moments})
    masks = ({'conv': {'kernel': jnp.array(mask)}} for mask in ([True, True], [False, True]))
    found = optax.tree.get(hand_off_moments(state, Layout.of({'conv': {'kernel': record}}), params, *masks), moment)
    assert found['conv']['static_kernel'].tolist() == [16 if moment == 'nu' else 4, 7]
    np.testing.assert_array_equal(found['conv']['kernel'], moments['conv']['kernel'])


@pytest.mark.slow
def test_steps_right_after_a_late_round_are_not_larger_than_the_learning_rate():
    """AdamW, a round after 300 of 600 steps. If the moments started at zero, the largest would be 2.9 times that."""
    config = small_config(partition__handoff='mean', partition__start_step=300, train__steps=600)
    source, rate = open_source(config), 1e-3
    optimizer = make_optimizer('adamw', make_rate_schedule(rate, 'constant', 0, 600), 0.0, 0.0)
    one = {'task': IMAGES, 'model': NormFree(), 'temperature': make_temperature_schedule(30.0, 10)}
    batches = jax.tree.map(lambda *found: jnp.stack(found), *map(source.train_batch, range(60)))

    @functools.partial(jax.jit, static_argnames='count')
    def run(state, count):
        def body(state, number):
            batch = jax.tree.map(lambda leaf: leaf[number % 60], batches)
            after, _ = train_step(state, batch, optimizer=optimizer, **one)
            return after, after.params['conv']['static_kernel'] - state.params['conv']['static_kernel']

        return jax.lax.scan(body, state, jnp.arange(count))

    before, _ = run(init_state(NormFree(), optimizer, image_inputs((8, 8, 1)), 0), 300)
    after, _ = rounds.Rounds(config, source, **one).run(before, 0.3)
    turned = np.asarray(before.masks['conv']['kernel_mask'] & ~after.masks['conv']['kernel_mask'])
    largest = np.abs(run(after, 20)[1]).max(0)[turned].max() / rate
    assert turned.any() and 0.2 < largest < 1.1, largest
