"""Gatings of published models, row by row, against their rules written out for one token in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.kernels.dispatch import dense_gates
from pad_jax.layers import GATINGS, Gating, Router
from tests.layers.compiling import jit_quickly

E, K, C = 16, 3, 6


def softmax(values):
    powers = np.exp(values - np.max(values))
    return powers / powers.sum()


def choose(scores, number=K):
    return sorted(range(len(scores)), key=lambda e: (-scores[e], e))[:number]


def spread(experts, weights):
    gates = np.zeros(E)
    gates[experts] = weights
    return gates


def mixtral(logits, bias):
    shares = softmax(logits)
    experts = choose(shares)
    return spread(experts, shares[experts] / shares[experts].sum())


def olmoe(logits, bias):
    shares = softmax(logits)
    experts = choose(shares)
    return spread(experts, shares[experts])


def gpt_oss(logits, bias):
    logits = logits + bias
    experts = choose(logits)
    return spread(experts, softmax(logits[experts]))


def granite(logits, bias):
    experts = choose(logits)
    return spread(experts, softmax(logits[experts]))


def keep_groups(scores, group_score, num_groups, kept):
    groups = scores.reshape(num_groups, -1)
    best = choose([group_score(group) for group in groups], kept)
    return np.where(np.isin(np.arange(num_groups), best)[:, None], groups, -np.inf).reshape(-1)


def deepseek_v2(logits, bias):
    shares = softmax(logits)
    experts = choose(keep_groups(shares, max, 8, 3))
    return spread(experts, 16 * shares[experts])


def deepseek_v3(logits, bias):
    scores = 1 / (1 + np.exp(-logits))
    experts = choose(keep_groups(scores + bias, lambda group: sum(sorted(group)[-2:]), 8, 4))
    return spread(experts, 2.5 * scores[experts] / (scores[experts].sum() + 1e-20))


# Family -> (rule, sum of the weights of a token; None: it differs from token to token).
ROWS = {
    'mixtral': (mixtral, 1),
    'olmoe': (olmoe, None),
    'qwen2_moe': (olmoe, None),
    'qwen3_moe': (mixtral, 1),
    'granite_moe': (granite, 1),
    'gpt_oss': (gpt_oss, 1),
    'deepseek_v2': (deepseek_v2, None),
    'deepseek_v3': (deepseek_v3, 2.5),
}


def make_router(gating, num_selected=K, **fields):
    """(router, params): logits of moderate size, and a bias that changes choices."""
    router = Router(E, num_selected, noisy=False, gating=gating, param_dtype=jnp.float64, **fields)
    shapes = jax.eval_shape(router.init, jax.random.key(0), jnp.zeros((1, 1, C)))['params']
    generator = np.random.default_rng(0)
    return router, {name: generator.normal(size=leaf.shape) * 0.7 for name, leaf in shapes.items()}


def test_the_table_has_all_rows():
    assert GATINGS.keys() == ROWS.keys()


@pytest.mark.parametrize('family', ROWS)
def test_each_family_routes_by_its_own_rule(family):
    rule, total = ROWS[family]
    x = np.random.default_rng(1).normal(size=(1, 50, C))
    with jax.enable_x64(True):
        router, params = make_router(GATINGS[family])
        routing, _ = jit_quickly(router.apply)({'params': params}, x)
        found = dense_gates(routing, E)
    bias = params.get('bias', params.get('choice_bias', np.zeros(E)))
    expected = np.stack([rule(token @ params['gate'], bias) for token in x[0]])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert GATINGS[family].sums_to_one(K) == (total == 1)
    sums = expected.sum(1)
    if total is None:
        assert sums.std() > 0.01
    else:
        np.testing.assert_allclose(sums, total, rtol=1e-12)


def test_a_token_by_hand():
    # Shares of softmax: 0.1, 0.2, 0.3, 0.4. Sigmoids of the same logits: share / (1 + share).
    logits = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4]]))

    def gates(*bias, num_selected=2, **rules):
        bias = {'choice_bias': jnp.array(bias)} if bias else {}
        return dense_gates(Gating(**rules).route(logits, num_selected, **bias), 4)[0]

    np.testing.assert_allclose(gates(), [0, 0, 3 / 7, 4 / 7], rtol=1e-5)
    np.testing.assert_allclose(gates(renormalize=False, scaling=2.0), [0, 0, 0.6, 0.8], rtol=1e-5)
    np.testing.assert_allclose(gates(score='sigmoid', renormalize=False), [0, 0, 0.3 / 1.3, 0.4 / 1.4], rtol=1e-5)
    # 0.1 + 0.35 and 0.4 are chosen, and weighted as without a bias.
    biased = gates(0.35, 0.0, 0.0, 0.0, bias='choice', renormalize=False)
    np.testing.assert_allclose(biased, [0.1, 0, 0, 0.4], rtol=1e-5)
    # One of two groups; an expert of the other one has a higher score than the second chosen.
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.3, 0.2]]))
    by_max = gates(num_groups=2, kept_groups=1, renormalize=False)
    np.testing.assert_allclose(by_max, [0.1, 0.4, 0, 0], rtol=1e-5)
    logits = jnp.log(jnp.array([[0.05, 0.4, 0.35, 0.2]]))  # 0.45 against 0.55
    by_two = gates(num_groups=2, kept_groups=1, group_score='top2', renormalize=False)
    np.testing.assert_allclose(by_two, [0, 0, 0.35, 0.2], rtol=1e-5)
    # A single expert has its share of all, since 1 would tell the router nothing.
    np.testing.assert_allclose(gates(num_selected=1), [0, 0.4, 0, 0], rtol=1e-5)
    assert not Gating().sums_to_one(1) and Gating().sums_to_one(2) and not Gating(scaling=2.0).sums_to_one(2)


def test_switch_loss_by_hand():
    # Shares (3/4, 1/4) and (1/4, 3/4), padding is not counted; both choices are different: f = P = (1/2, 1/2).
    x = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 3.0], [1.0, 9.0]]]))
    router = Router(2, 1, noisy=False, balance_coefficient=0.0, switch_coefficient=0.1)
    apply = lambda x, valid: router.apply({'params': {'gate': jnp.eye(2)}}, x, valid)[1]['router_loss']  # noqa: E731
    assert float(apply(x, jnp.array([[True, True, False]]))) == pytest.approx(0.1)
    # Expert 0 gets both tokens with shares 3/4 and 3/4: 2 · 1 · 3/4.
    assert float(apply(x[:, :1].repeat(2, axis=1), None)) == pytest.approx(0.1 * 2 * 0.75)
    # All choices of k = 2 of 2 are equal: E · Σ 1/2 · P = 1 for any shares.
    both = router.clone(num_selected=2).apply({'params': {'gate': jnp.eye(2)}}, x)[1]['router_loss']
    assert float(both) == pytest.approx(0.1)


def test_the_choice_bias_has_no_gradient_and_the_bias_of_logits_has():
    x = np.random.default_rng(1).normal(size=(1, 50, C))
    with jax.enable_x64(True):
        for family, name in (('deepseek_v3', 'choice_bias'), ('gpt_oss', 'bias')):
            router, params = make_router(GATINGS[family], z_coefficient=1.0, switch_coefficient=1.0)

            def loss(params, router=router):
                routing, aux = router.apply({'params': params}, x)
                return aux['router_loss'] + jnp.sum(jnp.sin(dense_gates(routing, E)))

            slopes = jit_quickly(jax.grad(loss))(params)
            assert np.abs(slopes['gate']).max() > 1e-3
            assert (np.abs(slopes[name]).max() > 1e-3) == (name == 'bias')


def test_noise_with_a_bias_for_the_choice_stays_differentiable():
    router = Router(E, K, gating=GATINGS['deepseek_v3'], switch_coefficient=1.0)
    x = jax.random.normal(jax.random.key(0), (1, 50, C))

    def loss(params):
        return router.apply({'params': params}, x, train=True, rngs={'routing': jax.random.key(1)})[1]['router_loss']

    slopes = jit_quickly(jax.grad(loss))(router.init(jax.random.key(2), x)['params'])
    assert all(np.isfinite(slope).all() for slope in slopes.values()) and jnp.abs(slopes['gate']).max() > 0


@pytest.mark.parametrize(
    ('rules', 'message'),
    [
        ({'score': 'tanh'}, "score must be one of softmax, sigmoid, got 'tanh'"),
        ({'bias': 'both'}, "bias must be one of none, logits, choice, got 'both'"),
        ({'group_score': 'sum'}, "group_score must be one of max, top2, got 'sum'"),
        ({'num_groups': 2, 'kept_groups': 3}, r'kept_groups must be in \[1, num_groups = 2\], got 3'),
        ({'scaling': 0.0}, 'scaling must be above 0, got 0.0'),
        ({'scaling': math.inf}, 'scaling must be above 0, got inf'),
    ],
)
def test_refuses(rules, message):
    with pytest.raises(ValueError, match=message):
        Gating(**rules)


def test_refuses_groups_that_do_not_fit():
    with pytest.raises(ValueError, match="group_score 'top2' needs groups of at least 2 experts, got 8 groups of 1"):
        Router(8, 1, gating=Gating(num_groups=8, group_score='top2'))
