"""Criteria: one table of contracts that every row joins, then each against a slow twin."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.partition import CRITERIA, GRANULARITIES, Problem, init_masks, merge, score_positions
from pad_jax.partition.criteria import mean_routing
from tests.partition import problems

PARAMS = problems.make_params()
BATCHES = [problems.make_batch(seed) for seed in (1, 2)]
POSITIONS = PARAMS['static']


def score(criterion, granularity='element', params=PARAMS, batches=BATCHES, problem=problems.PROBLEM, seed=0):
    masks = init_masks(POSITIONS, granularity)
    return score_positions(problem, params, masks, batches, criterion, jax.random.key(seed))


def assert_close(found, expected, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({'rtol': 1e-4, 'atol': 1e-5} | tolerance)), found, expected
    )


@pytest.mark.parametrize('criterion', CRITERIA)
def test_scores_have_the_structure_and_shapes_of_the_masks(criterion):
    for granularity in GRANULARITIES:
        scores = jax.eval_shape(lambda granularity=granularity: score(criterion, granularity))
        masks = init_masks(POSITIONS, granularity)
        assert jax.tree.map(lambda leaf: leaf.shape, scores) == jax.tree.map(lambda leaf: leaf.shape, masks)
        assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(scores))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(score(criterion, 'output')))


def test_random_depends_on_the_key_alone():
    first, again, other = score('random', seed=1), score('random', seed=1, batches=[]), score('random', seed=2)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first['first'], other['first'])
    assert not np.array_equal(np.ravel(first['first'])[:10], np.ravel(first['second'])[:10])
    assert all(((leaf >= 0) & (leaf < 1)).all() for leaf in jax.tree.leaves(first))


@pytest.mark.parametrize(('criterion', 'needed'), [('synflow', 'output'), ('variance', 'routing')])
def test_a_criterion_says_what_it_needs(criterion, needed):
    with pytest.raises(ValueError, match=f"criterion '{criterion}' needs the function '{needed}'"):
        score(criterion, problem=Problem(problems.loss_fn))


@pytest.mark.parametrize('criterion', ['sensitivity', 'grasp', 'synflow'])
def test_a_group_has_the_sum_of_its_elements_gradients(criterion):
    measure = jax.jit(CRITERIA[criterion].measure, static_argnums=0)
    measured = {
        granularity: measure(
            problems.PROBLEM, PARAMS, jax.tree.map(jnp.float32, init_masks(POSITIONS, granularity)), BATCHES[0], None
        )
        for granularity in ('element', 'input')
    }
    for granularity in measured:
        assert_close(
            measured[granularity],
            jax.tree.map(functools.partial(sum_to_shape), measured['element'], measured[granularity]),
        )


def sum_to_shape(values, like):
    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1)
    return np.sum(values, axis=axes, keepdims=True)


# --- Slow twins, in float64.


def double(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def soft_gates(seed=3):
    """Gates between 0 and 1: nothing hides behind a product with zero."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.uniform(0.2, 0.8, leaf.shape)) for name, leaf in POSITIONS.items()}


def differentiate(function, gates, width=1e-5):
    """Central differences of a scalar function at every gate."""
    function = jax.jit(function)
    slopes = {}
    for name, leaf in gates.items():
        slopes[name] = np.zeros(leaf.shape)
        for place in np.ndindex(*leaf.shape):
            ends = [function({**gates, name: leaf.at[place].add(step)}) for step in (width, -width)]
            slopes[name][place] = (ends[0] - ends[1]) / (2 * width)
    return slopes


def measure(criterion, gates, batch):
    row = CRITERIA[criterion]
    return jax.jit(lambda gates: row.measure(problems.PROBLEM, double(PARAMS), gates, batch, None))(gates)


def test_sensitivity_is_the_slope_of_the_loss():
    with jax.enable_x64(True):
        batch, gates = double(BATCHES[0]), soft_gates()
        slopes = differentiate(lambda gates: problems.loss_fn(double(PARAMS), gates, batch), gates)
        assert_close(measure('sensitivity', gates, batch), slopes, rtol=1e-6, atol=1e-8)


def test_sensitivity_is_the_formula_of_the_switch():
    """Σ_b dL/dŴ_b · (λd Σ_k α_bk W_k − λs W_s), with a kernel of its own for every row b."""
    with jax.enable_x64(True):
        params, batch, gates = double(PARAMS), double(BATCHES[0]), soft_gates()
        routing = problems.routing_fn(params, gates, batch)

        def own_kernels(name):
            factors = merge(params['dynamic'][name], params['static'][name], gates[name], *problems.SCALES[name])
            return jnp.einsum('nk,kscf->nscf', routing[name], factors)

        def loss(first):
            hidden = jnp.einsum('nsc,nscf->nf', batch['x'], first)
            outputs = problems.layer(params, gates, 'second', jnp.tanh(hidden)[:, None])[0]
            return jnp.mean((outputs - batch['y']) ** 2)

        slopes = jax.jit(jax.grad(loss))(own_kernels('first'))
        dynamic_scale, static_scale = problems.SCALES['first']
        mixed = jnp.einsum('nk,kscf->nscf', routing['first'], params['dynamic']['first'])
        switched = dynamic_scale * mixed - static_scale * params['static']['first'][None]
        assert_close(measure('sensitivity', gates, batch)['first'], (slopes * switched).sum(0), rtol=1e-9)


def test_grasp_is_the_slope_of_half_the_squared_gradient_as_the_factors_grow():
    with jax.enable_x64(True):
        batch, gates, params = double(BATCHES[0]), soft_gates(), double(PARAMS)

        def gradient_flow(growth):
            dynamic = {name: growth[name][None] * leaf for name, leaf in params['dynamic'].items()}
            gradients = jax.grad(problems.loss_fn)({**params, 'dynamic': dynamic}, gates, batch)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients)) / 2

        slopes = differentiate(gradient_flow, jax.tree.map(jnp.ones_like, gates))
        assert_close(measure('grasp', gates, batch), slopes, rtol=1e-5, atol=1e-7)


def test_magnitude_by_hand():
    params = {
        'dynamic': jnp.array([[[1.0, -2], [3, 0]], [[-3, 2], [1, 0]]]),
        'static': jnp.full((2, 2), 100.0),  # of no account
    }
    problem = Problem(lambda params, gates, batch: 0.0)
    for mask_shape, expected in {
        # (|1| + |−3|) / 2 = 2, (|−2| + |2|) / 2 = 2, (3 + 1) / 2 = 2, 0; groups: their means.
        (2, 2): [[2, 2], [2, 0]],
        (1, 2): [[2, 1]],
        (2, 1): [[2], [1]],
        (1, 1): [[1.5]],
    }.items():
        scores = score_positions(problem, params, jnp.ones(mask_shape, bool), [], 'magnitude')
        assert scores.tolist() == expected


@pytest.mark.parametrize('granularity', ['element', 'output', 'layer'])
def test_variance_is_that_of_the_dynamic_parameter_over_the_inputs(granularity):
    gates = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), POSITIONS)
    routing = [problems.routing_fn(PARAMS, gates, batch) for batch in BATCHES]
    scores = score('variance', granularity)
    for name, factors in PARAMS['dynamic'].items():
        attention = np.concatenate([batch[name] for batch in routing])
        mixed = np.einsum('nk,kscf->nscf', attention, factors)
        variances = np.var(mixed, axis=0)
        per_position = sum_to_shape(variances, scores[name]) * scores[name].size / variances.size
        np.testing.assert_allclose(scores[name], per_position, rtol=1e-4, atol=1e-6)


def test_rows_that_are_routed_nowhere_do_not_count():
    routing = np.random.default_rng(0).dirichlet([1, 1, 1], size=7).astype(np.float32)
    problem = Problem(lambda params, gates, batch: 0.0, routing=lambda params, gates, batch: batch)
    params = {'dynamic': jnp.ones((3, 1)), 'static': jnp.zeros(1)}
    for padding in (0, 5):
        padded = np.concatenate([routing, np.zeros((padding, 3), np.float32)])
        count, first, second = CRITERIA['variance'].measure(problem, params, jnp.ones(1), padded, None)
        assert count == 7
        means = mean_routing(problem, params, jnp.ones(1, bool), [padded])
        np.testing.assert_allclose(means, routing.mean(0), rtol=1e-6)
        covariance = second / 7 - np.outer(first, first) / 49
        np.testing.assert_allclose(covariance, np.cov(routing.T, ddof=0), atol=1e-6)


def test_synflow_by_hand():
    # y = x · a · b for one input, one hidden and one output feature, K = 1, both gates 1: R = |a|·|b| at x = 1. With
    # a = −2 and b = 3: |a|·∂R/∂|a| = |a|·|b| = 6 = |b|·∂R/∂|b|. The static parameters carry no flow at gates of 1.
    params = {
        'dynamic': {'a': jnp.array([[[-2.0]]]), 'b': jnp.array([[[3.0]]])},
        'static': {'a': jnp.array([[1.0]]), 'b': jnp.array([[-1.0]])},
    }

    def output(params, gates, x):
        for name in ('a', 'b'):
            x = x @ merge(params['dynamic'][name], params['static'][name], gates[name])[0]
        return x

    problem = Problem(lambda params, gates, batch: 0.0, output=output)
    masks = init_masks(params['static'])
    scores = score_positions(problem, params, masks, [jnp.array([[-7.0]])], 'synflow')
    assert (scores['a'].item(), scores['b'].item()) == (6, 6)
    params = {'dynamic': jnp.array([[1.0, -2, 4]]), 'static': jnp.zeros(3)}

    def output(params, gates, tokens):
        return jnp.take(merge(params['dynamic'], params['static'], gates)[0], tokens)

    problem = Problem(lambda params, gates, batch: 0.0, output=output)
    scores = score_positions(problem, params, jnp.ones(3, bool), [jnp.array([2, 1, 2])], 'synflow')
    assert scores.tolist() == [0, 2, 8]
    problem = Problem(
        lambda params, gates, batch: 0.0,
        output=lambda params, gates, batch: batch['temperature'] * batch['x'] @ (gates * params['dynamic'][0]),
    )
    params = {'dynamic': jnp.array([[1.0, -2, 3]]), 'static': jnp.zeros(3)}
    batch = {'x': jnp.full((2, 3), -5.0), 'temperature': jnp.float32(30)}
    # Two rows of ones: 2 · 30 · |w|.
    assert score_positions(problem, params, jnp.ones(3, bool), [batch], 'synflow').tolist() == [60, 120, 180]


def test_grasp_of_params_with_an_integer_among_them():
    def loss(params, gates, batch):
        return jnp.sum((gates * params['dynamic'][0] + (1 - gates) * params['static']) ** 2) * params['count']

    params = {'dynamic': jnp.array([[1.0, -2, 3]]), 'static': jnp.zeros(3), 'count': jnp.int32(1)}
    scores = score_positions(Problem(loss), params, jnp.ones(3, bool), [None], 'grasp')
    # L = w²: the gradient is 2 w, the Hessian 2, and w · H · gradient = 4 w².
    np.testing.assert_allclose(scores, [4, 16, 36], rtol=1e-6)
