"""Gate, its statistics and losses: golden values, and a twin in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.layers import Router
from pad_jax.layers.gating import (
    assign_top_k,
    count_load,
    cv_squared,
    dense_gates,
    estimate_load,
    measure_importance,
    router_entropy,
    z_loss,
)
from tests.layers.compiling import jit_quickly

VALID = np.array([True, False, True, True, False, True, True])


def test_top_k_by_hand():
    # Row 0: experts 2 and 0 with logits 3 and 1: e³/(e³ + e) = 1/(1 + e⁻²) = 0.8808. Row 1 is a tie: lower indices.
    logits = jnp.array([[1.0, 0, 3], [5, 5, 5], [1, 2, 3]])
    experts, weights = assign_top_k(logits, 2, jnp.array([True, True, False]))
    assert experts.tolist() == [[2, 0], [0, 1], [3, 3]]
    np.testing.assert_allclose(weights, [[0.880797, 0.119203], [0.5, 0.5], [0, 0]], rtol=1e-5)
    gates = dense_gates(assign_top_k(logits, 2, jnp.array([True, True, False])), 3)
    np.testing.assert_allclose(gates, [[0.119203, 0, 0.880797], [0.5, 0.5, 0], [0, 0, 0]], rtol=1e-5)
    # Importance is the sum of the columns; every expert that is chosen counts once in the load.
    np.testing.assert_allclose(measure_importance(gates), [0.619203, 0.5, 0.880797], rtol=1e-5)
    assert count_load(assign_top_k(logits, 2, jnp.array([True, True, False])), 3).tolist() == [2, 1, 1]


@pytest.mark.parametrize('num_selected', [0, 4])
def test_k_outside_of_the_experts_is_refused(num_selected):
    with pytest.raises(ValueError, match=rf'num_selected must be in \[1, 3\], got {num_selected}'):
        assign_top_k(jnp.zeros((2, 3)), num_selected)


@pytest.mark.parametrize('num_selected', [1, 2, 4])
def test_load_is_the_chance_to_stay_selected_when_ones_own_noise_is_drawn_again(num_selected):
    rng = np.random.default_rng(0)
    clean, drawn = rng.normal(size=(7, 4)), rng.normal(size=(7, 4))
    scale = rng.uniform(0.3, 1.5, size=(7, 4))
    noisy = clean + scale * drawn
    expected = np.zeros(4)
    for n in np.flatnonzero(VALID):
        for e in range(4):
            others = sorted(np.delete(noisy[n], e), reverse=True)
            if num_selected == 4:
                expected[e] += 1
            else:
                z = (clean[n, e] - others[num_selected - 1]) / scale[n, e]
                expected[e] += 0.5 * (1 + math.erf(z / math.sqrt(2)))
    found = estimate_load(clean, noisy, scale, num_selected, VALID)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_losses_by_hand():
    # Mean 2, deviations −1, 1, 0: unbiased variance 2/2 = 1, over mean² = 4.
    assert float(cv_squared(jnp.array([1.0, 3, 2]))) == pytest.approx(0.25)
    assert float(cv_squared(jnp.zeros(3))) == 0  # not NaN: 0 / 1e-10
    assert float(cv_squared(jnp.array([7.0]))) == 0
    # log(e⁰ + e^log 3) = log 4, log(2·e¹) = 1 + log 2: the mean of their squares; the third row is padding.
    logits = jnp.array([[0, math.log(3)], [1, 1], [50, 50]])
    valid = jnp.array([True, True, False])
    assert float(z_loss(logits, valid)) == pytest.approx((math.log(4) ** 2 + (1 + math.log(2)) ** 2) / 2)
    # Shares (1/4, 3/4): (log 4)/4 + 3/4·log(4/3); and log 2.
    first = math.log(4) / 4 + 0.75 * math.log(4 / 3)
    assert float(router_entropy(logits, valid)) == pytest.approx((first + math.log(2)) / 2)
    assert float(router_entropy(logits[:1])) == pytest.approx(first)


@pytest.mark.parametrize('routing', ['token', 'sentence'])
@pytest.mark.parametrize('num_selected', [1, 2, 4])
def test_router_is_its_twin_in_numpy(num_selected, routing):
    x = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    valid = np.stack([VALID, ~VALID, np.zeros(7, bool)])
    gate, noise = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    router = Router(4, num_selected, routing, z_coefficient=1e-3)

    @jit_quickly
    def route(params, x, valid, key):
        quiet = router.apply({'params': params}, x, valid)
        drawn = router.apply({'params': params}, x, valid, True, rngs={'routing': key})
        return quiet, drawn

    params = {'gate': gate, 'noise': noise}
    (assignment, aux), (_, noisy_aux) = route(params, x, valid, jax.random.key(0))
    if routing == 'token':
        units, used = x.reshape(-1, 5), valid.reshape(-1)
    else:
        units = np.stack([x[b][valid[b]].mean(0) if valid[b].any() else np.zeros(5) for b in range(3)])
        used = valid.any(1)
    logits = units @ gate
    gates = np.zeros((len(units), 4))
    for n in np.flatnonzero(used):
        chosen = np.argsort(-logits[n])[:num_selected]
        gates[n, chosen] = np.exp(logits[n, chosen]) / np.exp(logits[n, chosen]).sum()

    def cv2(values):
        return values.var(ddof=1) / values.mean() ** 2

    squares = np.log(np.exp(logits[used]).sum(1)) ** 2
    loss = 1e-2 * (cv2(gates.sum(0)) + cv2((gates > 0).sum(0))) + 1e-3 * squares.mean()
    tokens = gates if routing == 'token' else np.repeat(gates, 7, axis=0) * valid.reshape(-1, 1)
    load = (tokens > 0).sum(0) / (tokens > 0).sum()
    np.testing.assert_allclose(dense_gates(assignment, 4), tokens, atol=1e-6)
    assert float(aux['router_loss']) == pytest.approx(loss, rel=1e-4)
    np.testing.assert_allclose(aux['load'], load, rtol=1e-5)
    assert float(aux['load_cv']) == pytest.approx(math.sqrt(cv2(load)), abs=1e-6)
    shares = np.exp(logits[used]) / np.exp(logits[used]).sum(1, keepdims=True)
    assert float(aux['router_entropy']) == pytest.approx(-(shares * np.log(shares)).sum(1).mean(), rel=1e-5)
    if num_selected < 4:
        assert float(noisy_aux['router_loss']) != pytest.approx(loss, rel=1e-4)


def test_router_loss_reaches_the_routers_parameters():
    router = Router(4, 2)
    x = jax.random.normal(jax.random.key(0), (2, 9, 5))

    def loss(params, train):
        return router.apply({'params': params}, x, train=train, rngs={'routing': jax.random.key(1)})[1]['router_loss']

    differentiate = jit_quickly(jax.grad(loss), static_argnums=1)
    params = {'gate': jax.random.normal(jax.random.key(2), (5, 4)), 'noise': jnp.zeros((5, 4))}
    slopes = differentiate(params, True)
    assert jnp.abs(slopes['gate']).max() > 1e-5 and jnp.abs(slopes['noise']).max() > 1e-5
    # From the start too, where both are zero and noise alone chooses.
    slopes = differentiate(jax.tree.map(jnp.zeros_like, params), True)
    assert jnp.abs(slopes['gate']).max() > 1e-5 and jnp.abs(slopes['noise']).max() > 1e-5


def test_at_its_start_the_noise_spreads_tokens_in_training_alone():
    router = Router(4, 2)
    x = jax.random.normal(jax.random.key(0), (1, 400, 5))
    variables = router.init(jax.random.key(1), x)
    assert not any(leaf.any() for leaf in jax.tree.leaves(variables))
    assignment, _ = router.apply(variables, x)
    assert (assignment.experts == jnp.array([[0, 1]])).all()
    _, aux = router.apply(variables, x, train=True, rngs={'routing': jax.random.key(2)})
    # 800 slots over 4 experts: 1/4 with a standard deviation of 0.015.
    np.testing.assert_allclose(aux['load'], 0.25, atol=0.06)
    assert 'noise' not in Router(4, 2, noisy=False).init(jax.random.key(1), x)['params']
