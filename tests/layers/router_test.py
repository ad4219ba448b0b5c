"""Routers, their statistics and losses: golden values, and a twin in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.kernels.dispatch import dense_gates
from pad_jax.layers.router import Router, count_load, cv_squared, route_top_k
from tests.layers.compiling import jit_quickly

VALID = np.array([True, False, True, True, False, True, True])


def test_top_k_by_hand():
    # Row 0: experts 2 and 0 with logits 3 and 1: e³/(e³ + e) = 1/(1 + e⁻²) = 0.8808. Row 1 is a tie: lower indices.
    logits = jnp.array([[1.0, 0, 3], [5, 5, 5], [1, 2, 3]])
    experts, weights = route_top_k(logits, 2, jnp.array([True, True, False]))
    assert experts.tolist() == [[2, 0], [0, 1], [3, 3]]
    np.testing.assert_allclose(weights, [[0.880797, 0.119203], [0.5, 0.5], [0, 0]], rtol=1e-5)
    gates = dense_gates(route_top_k(logits, 2, jnp.array([True, True, False])), 3)
    np.testing.assert_allclose(gates, [[0.119203, 0, 0.880797], [0.5, 0.5, 0], [0, 0, 0]], rtol=1e-5)
    # One expert has its share of all, as in Switch: e³/(e + 1 + e³) = 0.8438, and a third.
    experts, weights = route_top_k(logits[:2], 1)
    assert experts.tolist() == [[2], [0]]
    np.testing.assert_allclose(weights, [[0.843795], [1 / 3]], rtol=1e-5)
    # Importance is the sum of the columns; every expert that is chosen counts once in the load.
    np.testing.assert_allclose(gates.sum(0), [0.619203, 0.5, 0.880797], rtol=1e-5)
    assert count_load(route_top_k(logits, 2, jnp.array([True, True, False])), 3).tolist() == [2, 1, 1]


def test_losses_by_hand():
    # Mean 2, deviations −1, 1, 0: unbiased variance 2/2 = 1, over mean² = 4.
    assert float(cv_squared(jnp.array([1.0, 3, 2]))) == pytest.approx(0.25)
    assert float(cv_squared(jnp.zeros(3))) == 0  # not NaN: 0 / 1e-10
    assert float(cv_squared(jnp.array([7.0]))) == 0
    # log(e⁰ + e^log 3) = log 4, log(2·e¹) = 1 + log 2: the sum of their squares; the third row is padding.
    logits = jnp.array([[[0, math.log(3)], [1, 1], [50, 50]]])
    router = Router(2, 1, noisy=False, balance_coefficient=0.0, z_coefficient=1.0)
    _, aux = router.apply({'params': {'gate': jnp.eye(2)}}, logits, jnp.array([[True, True, False]]))
    assert float(aux['router_loss']) == pytest.approx((math.log(4) ** 2 + (1 + math.log(2)) ** 2) / 2)
    # Shares (1/4, 3/4): (log 4)/4 + 3/4·log(4/3); and log 2.
    first = math.log(4) / 4 + 0.75 * math.log(4 / 3)
    assert float(aux['router_entropy']) == pytest.approx((first + math.log(2)) / 2)


def softplus(values):
    return np.log1p(np.exp(values))


def standard_normal_cdf(values):
    return 0.5 * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))


@pytest.mark.parametrize(
    ('num_selected', 'routing', 'train'),
    [(1, 'token', True), (2, 'sentence', True), (2, 'token', False), (4, 'sentence', False), (4, 'token', True)],
)
def test_router_is_its_twin_in_numpy(num_selected, routing, train, monkeypatch):
    x = np.random.default_rng(0).normal(size=(3, 7, 5)).astype(np.float32)
    valid = np.stack([VALID, ~VALID, np.zeros(7, bool)])
    gate, noise = np.random.default_rng(1).normal(size=(2, 5, 4)).astype(np.float32)
    router = Router(4, num_selected, routing, z_coefficient=1e-3)
    if routing == 'token':
        units, used = x.reshape(-1, 5), valid.reshape(-1)
    else:
        units = np.stack([x[b][valid[b]].mean(0) if valid[b].any() else np.zeros(5) for b in range(3)])
        used = valid.any(1)
    drawn = np.random.default_rng(2).normal(size=(len(units), 4)).astype(np.float32)
    monkeypatch.setattr(jax.random, 'normal', lambda key, shape, dtype: jnp.asarray(drawn, dtype))

    padded = np.where(valid[..., None], x, 1e3)  # what padding holds is without effect
    rngs = {'routing': jax.random.key(0)}
    route = jit_quickly(lambda params: router.apply({'params': params}, padded, valid, train, rngs=rngs))
    routes, aux = route({'gate': gate, 'noise': noise})

    clean = logits = units @ gate
    if train:
        scale = softplus(units @ noise) + 1e-2
        logits = clean + scale * drawn
    gates, load = np.zeros((len(units), 4)), np.zeros(4)
    for n in np.flatnonzero(used):
        chosen = np.argsort(-logits[n])[:num_selected]
        sharing = chosen if num_selected > 1 else range(4)
        gates[n, chosen] = np.exp(logits[n, chosen]) / np.exp(logits[n, sharing]).sum()
        for e in range(4):
            if not train or num_selected == 4:
                load[e] += gates[n, e] > 0
            else:
                best_others = np.sort(np.delete(logits[n], e))[::-1]
                load[e] += standard_normal_cdf((clean[n, e] - best_others[num_selected - 1]) / scale[n, e])

    def cv2(values):
        return values.var(ddof=1) / values.mean() ** 2

    squares = np.log(np.exp(clean[used]).sum(1)) ** 2
    loss = 1e-2 * (cv2(gates.sum(0)) + cv2(load)) + 1e-3 * squares.mean()
    tokens = gates if routing == 'token' else np.repeat(gates, 7, axis=0) * valid.reshape(-1, 1)
    shares = (tokens > 0).sum(0) / (tokens > 0).sum()
    np.testing.assert_allclose(dense_gates(routes, 4), tokens, atol=1e-6)
    assert float(aux['router_loss']) == pytest.approx(loss, rel=1e-4)
    np.testing.assert_allclose(aux['load'], shares, rtol=1e-5)
    assert float(aux['load_cv']) == pytest.approx(math.sqrt(cv2(shares)), abs=1e-6)
    likely = np.exp(clean[used]) / np.exp(clean[used]).sum(1, keepdims=True)
    assert float(aux['router_entropy']) == pytest.approx(-(likely * np.log(likely)).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize('routing', ['token', pytest.param('sentence', marks=pytest.mark.slow)])
def test_statistics_and_gradients_over_replicas_are_those_of_all_tokens(routing):
    """Padding is spread unevenly, so that no mean of the replicas' own values would do."""
    x = jax.random.normal(jax.random.key(0), (4, 6, 5))
    valid = jnp.arange(6)[None] < jnp.array([6, 1, 3, 2])[:, None]
    gate = jax.random.normal(jax.random.key(1), (5, 4))
    losses = {'balance_coefficient': 1.0, 'z_coefficient': 1.0, 'switch_coefficient': 1.0}
    together = Router(4, 2, routing, noisy=False, param_dtype=gate.dtype, **losses)

    def differentiate(router, x, valid):
        def loss(gate):
            _, aux = router.apply({'params': {'gate': gate}}, x, valid, True)
            return aux['router_loss'], aux

        return jax.grad(loss, has_aux=True)(gate)

    @jit_quickly
    def differentiate_quickly(x, valid):
        return differentiate(together, x, valid)

    def replica(x, valid):
        slope, aux = differentiate(together.clone(axis_name='replicas'), x, valid)
        return jax.lax.pmean(slope, 'replicas'), aux

    expected, expected_aux = differentiate_quickly(x, valid)
    found, aux = jax.pmap(replica, 'replicas')(x[:, None], valid[:, None])
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-6)
    for name, value in expected_aux.items():
        np.testing.assert_allclose(aux[name], jnp.broadcast_to(value, aux[name].shape), rtol=1e-5)
    _, alone = differentiate_quickly(x, valid & (jnp.arange(4) == 0)[:, None])
    assert abs(alone['router_loss'] - expected_aux['router_loss']) > 1e-3


@pytest.mark.parametrize('routing', ['token', 'sentence'])
def test_nan_in_padding_reaches_neither_gradient_nor_statistic(routing):
    x = jax.random.normal(jax.random.key(0), (1, 6, 5)).at[0, 4:].set(jnp.nan)
    valid = (jnp.arange(6) < 4)[None]

    def loss(params):
        routes, aux = Router(4, 2, routing).apply(
            {'params': params}, x, valid, True, rngs={'routing': jax.random.key(1)}
        )
        return aux['router_loss'] + jnp.sum(routes.weights**2)

    params = {name: jax.random.normal(jax.random.key(2), (5, 4)) for name in ('gate', 'noise')}
    value, slopes = jit_quickly(jax.value_and_grad(loss))(params)
    assert np.isfinite(value) and all(np.isfinite(slope).all() for slope in slopes.values())


def test_router_loss_reaches_the_routers_parameters():
    router = Router(4, 2)
    x = jax.random.normal(jax.random.key(0), (2, 9, 5))

    def loss(params, train):
        return router.apply({'params': params}, x, train=train, rngs={'routing': jax.random.key(1)})[1]['router_loss']

    differentiate = jit_quickly(jax.grad(loss), static_argnums=1)
    params = {'gate': jax.random.normal(jax.random.key(2), (5, 4)), 'noise': jnp.zeros((5, 4))}
    slopes = differentiate(params, True)
    assert jnp.abs(slopes['gate']).max() > 1e-5 and jnp.abs(slopes['noise']).max() > 1e-5
    # From the start too, where both are zero and only noise chooses.
    slopes = differentiate(jax.tree.map(jnp.zeros_like, params), True)
    assert jnp.abs(slopes['gate']).max() > 1e-5 and jnp.abs(slopes['noise']).max() > 1e-5


def test_at_its_start_the_noise_spreads_tokens_in_training_alone():
    router = Router(4, 2)
    x = jax.random.normal(jax.random.key(0), (1, 400, 5))

    @jit_quickly
    def start():
        variables = router.init(jax.random.key(1), x)
        train = router.apply(variables, x, train=True, rngs={'routing': jax.random.key(2)})
        return variables, router.apply(variables, x)[0], train[1]

    variables, routes, aux = start()
    assert not any(leaf.any() for leaf in jax.tree.leaves(variables))
    assert (routes.experts == jnp.array([[0, 1]])).all()
    # 800 slots over 4 experts: 1/4 with a standard deviation of 0.015.
    np.testing.assert_allclose(aux['load'], 0.25, atol=0.06)
    assert 'noise' not in jax.eval_shape(Router(4, 2, noisy=False).init, jax.random.key(1), x)['params']
