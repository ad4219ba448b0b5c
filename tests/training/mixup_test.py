import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.errors import BadInput
from pad_jax.training.devices import Replicas
from pad_jax.training.optimizer import make_optimizer, make_temperature_schedule
from pad_jax.training.setup import open_source
from pad_jax.training.state import init_state
from pad_jax.training.steps import draw_share, eval_step, mix_neighbours, train_step
from pad_jax.training.tasks import IMAGES, Task, image_inputs
from pad_jax.training.trainer import train
from tests.layers.compiling import QUICK, jit_quickly
from tests.training.tiny import NormFree, one_device, small_config

STATIC = {'task': IMAGES, 'temperature': make_temperature_schedule(30.0, 4), 'mixup': 0.4, 'label_smoothing': 0.1}


def sgd():
    return make_optimizer('sgd', 0.1, 'constant', 0, 1e-4, 0.0, 10)


@pytest.fixture(scope='module')
def batch():
    return open_source(small_config()).train_batch(0)


def start():
    return init_state(NormFree(), sgd(), image_inputs((8, 8, 1)), 0)


@functools.partial(jit_quickly, static_argnames='accumulate_steps')
def step(state, batch, accumulate_steps=1):
    return train_step(state, batch, model=NormFree(), optimizer=sgd(), accumulate_steps=accumulate_steps, **STATIC)


def test_smoothing_golden_values():
    """Probabilities 1/4 and 3/4; a tenth of a label over two classes leaves it 0.95, and 0.05 to the other."""
    outputs = jnp.log(jnp.array([[1.0, 3.0], [1.0, 3.0]]))
    labels = jnp.array([1, 0])
    # 0.95 · ln(4/3) + 0.05 · ln 4 = 0.273298 + 0.069315; 0.95 · ln 4 + 0.05 · ln(4/3) = 1.316980 + 0.014384
    np.testing.assert_allclose(IMAGES.losses(outputs, labels, 0.1), [0.342613, 1.331364], rtol=1e-5)
    # ln(4/3) and ln 4
    np.testing.assert_allclose(IMAGES.losses(outputs, labels), [0.287682, 1.386294], rtol=1e-5)


def test_mixing_golden_values():
    """By 0.75: the first with the second, the third with the fourth, each mostly itself."""
    images = jnp.array([0.0, 8.0, 100.0, 20.0]).reshape(4, 1, 1, 1)
    mixed = mix_neighbours({'image': images, 'label': jnp.array([5, 6, 7, 8])}, 0.75)
    # 0.75 · 0 + 0.25 · 8, 0.75 · 8 + 0.25 · 0, 0.75 · 100 + 0.25 · 20, 0.75 · 20 + 0.25 · 100
    assert mixed['image'].ravel().tolist() == [2, 6, 80, 40]
    assert mixed['label'].tolist() == [5, 6, 7, 8] and mixed['partner_label'].tolist() == [6, 5, 8, 7]


def test_shares_follow_their_law():
    """Beta(α, α) has mean 1/2 and variance 1 / (4·(2α + 1))."""
    keys = jax.random.split(jax.random.key(0), 4000)
    for concentration in (0.2, 1.0, 1000.0):
        shares = np.asarray(jax.vmap(lambda key: draw_share(key, concentration))(keys))  # noqa: B023
        assert shares.min() >= 0 and shares.max() <= 1
        assert shares.mean() == pytest.approx(0.5, abs=0.03)
        assert shares.var() == pytest.approx(1 / (4 * (2 * concentration + 1)), rel=0.1)
    extreme = np.asarray(jax.vmap(lambda key: draw_share(key, 1e-6))(keys))
    assert np.isfinite(extreme).all() and extreme.mean() == pytest.approx(0.5, abs=0.05)


def test_a_step_is_the_loss_of_mixed_examples_written_out(batch):
    """One pair after the other, targets as whole distributions; loss, accuracy, and the gradient through SGD."""
    state = start()
    share = float(draw_share(jax.random.fold_in(state.key, 0), 0.4))
    assert 0.01 < share < 0.99
    images, targets = np.array(batch['image']), np.zeros((16, 10))
    for i in range(16):
        partner = i + 1 if i % 2 == 0 else i - 1
        images[i] = share * batch['image'][i] + (1 - share) * batch['image'][partner]
        targets[i] = 0.1 / 10
        targets[i, batch['label'][i]] += 0.9 * share
        targets[i, batch['label'][partner]] += 0.9 * (1 - share)

    def loss(params):
        logits, _ = NormFree().apply({'params': params, 'partition': state.masks}, images, 30.0)
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean(), logits

    (value, logits), gradients = jit_quickly(jax.value_and_grad(loss, has_aux=True))(state.params)
    after, metrics = step(state, batch)
    assert float(metrics['loss']) == pytest.approx(float(value), rel=1e-5)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(gradients)))
    assert float(metrics['gradient_norm']) == pytest.approx(norm, rel=1e-4)
    chosen = np.asarray(logits).argmax(-1)
    hits = share * (chosen == batch['label']) + (1 - share) * (chosen == batch['label'].reshape(-1, 2)[:, ::-1].ravel())
    assert float(metrics['accuracy']) == pytest.approx(hits.mean(), rel=1e-5)
    assert float(step(after, batch)[1]['loss']) != float(value)


def test_evaluation_is_plain_cross_entropy():
    """It has neither argument; and its loss is that of the very labels."""
    batch = next(iter(open_source(small_config()).eval_batches()))
    static = {'task': IMAGES, 'temperature': make_temperature_schedule(30.0, 4)}
    found = jit_quickly(functools.partial(eval_step, model=NormFree(), **static))(start(), batch)
    logits, _ = NormFree().apply(start().variables, batch['image'], 30.0)
    expected = -jax.nn.log_softmax(logits)[np.arange(16), batch['label']].sum()
    assert float(found['loss']) == pytest.approx(float(expected), rel=1e-5)


def test_microbatches_are_mixed_as_the_whole_batch(batch):
    whole, whole_metrics = step(start(), batch)
    parts, metrics = step(start(), batch, accumulate_steps=4)
    for one, other in zip(jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert float(metrics['loss']) == pytest.approx(float(whole_metrics['loss']), rel=1e-5)


@pytest.mark.slow
def test_eight_devices_equal_one(batch):
    found = []
    for num_devices in (1, 8):
        replicas = Replicas('shard_map', jax.local_devices()[:num_devices])
        mapped = replicas.map_step(
            train_step, donate=True, model=NormFree(), optimizer=sgd(), ema_decay=0.5, accumulate_steps=1, **STATIC
        )
        state = init_state(NormFree(), sgd(), image_inputs((8, 8, 1)), 0, averaged=True)
        state = replicas.place_state(state)
        placed = replicas.place_batch(batch)
        mapped = mapped.lower(state, placed).compile(QUICK)
        for _ in range(2):
            state, metrics = mapped(state, placed)
        state = replicas.fetch(state)
        found.append(jax.tree.leaves((state.params, state.average, replicas.fetch(metrics))))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_numbers_are_not_smoothed():
    squared = Task(('image',), regression=True).losses(jnp.array([[3.0]]), jnp.array([1.0]), 0.1)
    assert squared.tolist() == [4.0]


def test_pairs_must_not_lie_on_two_devices(tmp_path):
    config = small_config(train__mixup=0.2, data__batch_size=8)
    with pytest.raises(BadInput, match=r'multiple of 16 \(8 devices × 2\), because train.mixup mixes .* got 8$'):
        train(config, tmp_path / 'run')
    odd = small_config(train__mixup=0.2, data__batch_size=9)
    with pytest.raises(BadInput, match='multiple of 2 '):
        train(odd, tmp_path / 'run', devices=one_device())
    assert not (tmp_path / 'run').exists()
