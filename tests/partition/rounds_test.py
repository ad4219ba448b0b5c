"""The step, the round and all rounds, on plain pytrees, on Flax variables, and on eight devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec

from pad_jax.partition import (
    CRITERIA,
    SCALES,
    Layout,
    PartialParameter,
    Problem,
    Recipe,
    UninformativeScores,
    count_dynamic,
    hand_off_means,
    init_masks,
    iterative_mode_partition,
    merge,
    partition_round,
    partition_step,
    round_fractions,
    scale_factors,
    score_positions,
)
from tests.partition import problems

PARAMS = problems.make_params()
BATCHES = [problems.make_batch(seed) for seed in (1, 2)]
POSITIONS = PARAMS['static']  # 30 and 10 positions


def partition(dynamic_fraction=0.3, batches=BATCHES, loss_fn=problems.loss_fn, params=PARAMS, **options):
    problem = dataclasses.replace(problems.PROBLEM, loss=loss_fn)
    return iterative_mode_partition(problem, params, batches, dynamic_fraction=dynamic_fraction, **options)


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('fraction', [1e-6, 0.1, 0.3, 0.325, 0.5, 0.99, 1.0])
def test_the_number_is_exact(fraction):
    masks = partition(fraction).masks
    assert count_dynamic(masks, POSITIONS) == max(1, round(40 * fraction))
    masks = partition(fraction, scope='layer').masks
    numbers = {name: int(leaf.sum()) for name, leaf in masks.items()}
    assert numbers == {'first': max(1, round(30 * fraction)), 'second': max(1, round(10 * fraction))}


@pytest.mark.parametrize('criterion', CRITERIA)
def test_every_criterion_takes_rounds_that_are_nested(criterion):
    masks, sizes = None, []
    for fraction in (0.6, 0.4, 0.2):
        new = partition(fraction, criterion=criterion, masks=masks).masks
        if masks is not None:
            assert not any((leaf & ~old).any() for leaf, old in zip(new.values(), masks.values()))
        masks = new
        sizes.append(count_dynamic(masks, POSITIONS))
    assert sizes == [24, 16, 8]


def test_rounds_are_rounds():
    by_hand = init_masks(POSITIONS)
    problem = problems.PROBLEM
    for index, fraction in enumerate((0.125 ** (1 / 3), 0.25, 0.125)):
        key = jax.random.fold_in(jax.random.key(0), index)
        by_hand = partition_round(problem, PARAMS, by_hand, BATCHES, fraction, key=key).masks
    assert_same(partition(0.125, rounds=3).masks, by_hand)
    assert count_dynamic(by_hand, POSITIONS) == 5
    linear = partition(0.125, rounds=3, schedule='linear').masks
    assert count_dynamic(linear, POSITIONS) == 5


def test_generators_serve_all_rounds_and_the_handoff():
    for options in ({'rounds': 3}, {'handoff': 'mean'}, {'rounds': 2, 'handoff': 'mean'}):
        listed, generated = (partition(0.2, batches=batches, **options) for batches in (BATCHES, iter(BATCHES)))
        assert_same(generated, listed)
    masks = init_masks(POSITIONS)
    listed, generated = (
        partition_round(problems.PROBLEM, PARAMS, masks, batches, 0.2, Recipe(handoff='mean'))
        for batches in (BATCHES, iter(BATCHES))
    )
    assert_same(generated, listed)


def test_handoff():
    independent, mean = (partition(0.3, handoff=handoff) for handoff in ('independent', 'mean'))
    assert_same(independent.masks, mean.masks)
    assert_same(independent.params, PARAMS)
    routing = [problems.routing_fn(PARAMS, init_masks(POSITIONS), batch) for batch in BATCHES]
    for name, (dynamic_scale, static_scale) in problems.SCALES.items():
        weights = np.concatenate([batch[name] for batch in routing]).mean(0)
        expected = dynamic_scale / static_scale * np.tensordot(weights, PARAMS['dynamic'][name], 1)
        turned = ~np.asarray(mean.masks[name])
        np.testing.assert_allclose(mean.params['static'][name][turned], expected[turned], rtol=1e-5)
        np.testing.assert_array_equal(mean.params['static'][name][~turned], POSITIONS[name][~turned])


def test_exclusions():
    masks = partition(0.3, keep_dynamic='^second$').masks
    assert {name: int(leaf.sum()) for name, leaf in masks.items()} == {'first': 9, 'second': 10}
    masks = partition(0.3, keep_static='sec').masks
    assert {name: int(leaf.sum()) for name, leaf in masks.items()} == {'first': 9, 'second': 0}
    masks = partition(0.3, keep_static='first', keep_dynamic='second').masks
    assert {name: int(leaf.sum()) for name, leaf in masks.items()} == {'first': 0, 'second': 10}
    masks = partition(1.0, keep_static='first').masks
    assert {name: int(leaf.sum()) for name, leaf in masks.items()} == {'first': 0, 'second': 10}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'keep_dynamic': 'conv('}, r"keep_dynamic is not a regular expression: 'conv\('"),
        ({'keep_static': 'third'}, "keep_static = 'third' matches none of the parameters first, second"),
        ({'keep_dynamic': 'f', 'keep_static': 'first'}, 'first is matched by keep_dynamic and by keep_static'),
        ({'scope': 'network'}, "scope must be one of global, layer, got 'network'"),
        ({'handoff': 'random'}, "handoff must be one of independent, mean, got 'random'"),
        ({'criterion': 'snip'}, "criterion must be one of sensitivity, .*, got 'snip'"),
        ({'granularity': 'row'}, "granularity must be one of element, .*, got 'row'"),
        ({'schedule': 'cosine'}, "schedule must be one of exponential, linear, one_shot, got 'cosine'"),
        ({'schedule': 'one_shot', 'rounds': 2}, "schedule 'one_shot' has a single round, got rounds = 2"),
        ({'dynamic_fraction': 0}, r'dynamic_fraction must be in \(0, 1\], got 0'),
        ({'rounds': 0}, 'rounds must be at least 1, got 0'),
        ({'batches': []}, 'batches must hold at least one scoring batch, got none'),
        ({'batches': [], 'criterion': 'magnitude', 'handoff': 'mean'}, 'batches must hold at least one scoring'),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        partition(**options)


def test_masks_that_are_given_are_where_it_starts():
    start = init_masks(POSITIONS, 'output') | {'first': jnp.zeros((1, 1, 5), bool).at[..., 2:].set(True)}
    masks = partition(0.5, masks=start).masks
    assert masks['first'].shape == (1, 1, 5)
    assert not masks['first'][..., :2].any()
    # Groups of 6 and 5 positions: never more than the target of 20, and within the largest group of it.
    assert 14 < count_dynamic(masks, POSITIONS) <= 20
    start = init_masks(POSITIONS) | {'first': jnp.zeros(problems.SHAPES['first'], bool)}
    for scope, expected in {'global': 4, 'layer': 1}.items():
        assert count_dynamic(partition(0.1, masks=start, scope=scope).masks, POSITIONS) == expected


def test_identical_copies_are_refused_with_advice():
    """Copies of the static parameters, as upcycling makes them; their scores are rounding errors, not zero."""
    copies = {**PARAMS, 'dynamic': {name: np.stack([leaf] * 3) for name, leaf in POSITIONS.items()}}

    def refuse(params, criterion, **options):
        with pytest.raises(UninformativeScores, match=r"train some steps first .*handoff 'mean'"):
            plain_partition(params, criterion, **options)

    def plain_partition(params, criterion='sensitivity', **options):
        return iterative_mode_partition(
            Problem(loss_fn, output=output_fn), params, BATCHES, dynamic_fraction=0.3, criterion=criterion, **options
        ).masks

    def output_fn(params, gates, batch):
        effective = merge(params['dynamic']['first'], params['static']['first'], gates['first'])
        return jnp.einsum('nsc,kscf->nf', batch['x'], effective) + 0.1 * jnp.sum(
            gates['second'] * params['static']['second']
        )

    def loss_fn(params, gates, batch):
        return jnp.mean(output_fn(params, gates, batch) ** 2)

    refuse(copies, 'sensitivity')
    for criterion in ('magnitude', 'grasp'):  # scores of the factors themselves
        assert count_dynamic(plain_partition(copies, criterion), POSITIONS) == 12
    # One layer of copies: under scope `layer` it is asked by itself, under `global` the other layer's scores tell.
    one_copied = {**PARAMS, 'dynamic': {**PARAMS['dynamic'], 'first': copies['dynamic']['first']}}
    refuse(one_copied, 'sensitivity', scope='layer')
    assert count_dynamic(plain_partition(one_copied), POSITIONS) == 12


@pytest.mark.parametrize('criterion', ['sensitivity', 'grasp'])
def test_rounds_fractions_batches_and_parameters_trace_the_loss_once(criterion):
    calls = []

    def loss_fn(*arguments):
        calls.append(1)
        return problems.loss_fn(*arguments)

    for rounds, fraction in ((1, 0.5), (3, 0.2), (2, 0.7)):
        params, batches = problems.make_params(rounds), BATCHES * rounds
        partition(fraction, batches, loss_fn, params, rounds=rounds, criterion=criterion)
    assert len(calls) == 1


# --- On devices. The mask is the same on any number of them only if sums of scores don't depend on their order. So
# these sums are exact. Every number is a small integer, or one divided by a power of two. No intermediate result
# needs more than the 24 bits of a float32.

NUM_DEVICES = 8


def exact_problem():
    """A loss without rounding: rows x of small integers, Σ_rows x·W·v / rows with integer parameters."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.integers(-4, 5, shape).astype(np.float32)

    params = {'dynamic': {'w': draw(2, 6, 7), 'b': draw(2, 7)}, 'static': {'w': draw(6, 7), 'b': draw(7)}}

    def effective(params, gates, batch):
        return {name: merge(params['dynamic'][name], params['static'][name], gates[name]) for name in gates}

    def loss(params, gates, batch):
        factors = effective(params, gates, batch)
        outputs = jnp.einsum('nk,nc,kcf->nf', batch['attention'], batch['x'], factors['w'])
        outputs += batch['attention'] @ factors['b']
        return jnp.mean(jnp.sum(outputs * outputs, axis=-1))

    def output(params, gates, batch):
        factors = effective(params, gates, batch)
        return jnp.einsum('nc,kcf->nf', batch['x'], factors['w']) + factors['b'].sum(0)[None]

    def routing(params, gates, batch):
        return dict.fromkeys(gates, batch['attention'])

    first = rng.integers(0, 5, 32).astype(np.float32) / 4
    batch = {'x': draw(32, 6), 'attention': np.stack([first, 1 - first], axis=1)}
    return Problem(loss, output=output, routing=routing), params, batch


def on_devices(function, num_arguments):
    """`function(*arguments, batch)` under pmap and under shard_map, batch split over eight devices, results shared."""
    axes = (*(None,) * num_arguments, 0)

    def with_pmap(*arguments):
        shards = jax.tree.map(lambda leaf: leaf.reshape(NUM_DEVICES, -1, *leaf.shape[1:]), arguments[-1])
        found = jax.pmap(function, axis_name='batch', in_axes=axes)(*arguments[:-1], shards)
        for leaf in jax.tree.leaves(found):
            assert_same(np.asarray(leaf), np.broadcast_to(leaf[0], leaf.shape))
        return jax.tree.map(lambda leaf: leaf[0], found)

    mesh = jax.make_mesh((NUM_DEVICES,), ('batch',), axis_types=(AxisType.Auto,))
    specs = tuple(PartitionSpec() if axis is None else PartitionSpec('batch') for axis in axes)
    return with_pmap, jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()))


def test_all_replicas_take_the_mask_and_the_scores_of_one_device():
    problem, params, batch = exact_problem()
    masks = init_masks(params['static'])

    def step(params, masks, target, batch, axis_name='batch'):
        return partition_step(problem, params, masks, batch, target, axis_name=axis_name)

    def score(params, masks, batch, axis_name='batch'):
        return {
            criterion: score_positions(problem, params, masks, [batch], criterion, axis_name=axis_name)
            for criterion in CRITERIA
        }

    alone = jax.jit(functools.partial(step, axis_name=None))(params, masks, 15, batch)
    assert count_dynamic(alone, params['static']) == 15
    for mapped in on_devices(step, 3):
        assert_same(mapped(params, masks, 15, batch), alone)
    alone = jax.jit(functools.partial(score, axis_name=None))(params, masks, batch)
    with_pmap, with_shard_map = (mapped(params, masks, batch) for mapped in on_devices(score, 2))
    assert_same(with_pmap, with_shard_map)
    # The sum of eight means is eight times the mean. GraSP is left out: its norm is that of one replica's gradient.
    # SynFlow sums outputs, over the rows of all devices.
    for criterion, factor in {'sensitivity': 8, 'magnitude': 1, 'random': 1, 'variance': 1, 'synflow': 1}.items():
        assert_same(with_pmap[criterion], jax.tree.map(lambda leaf, factor=factor: factor * leaf, alone[criterion]))


# --- On Flax variables.


def test_groups_of_different_size_compete_per_position():
    # Mean |W|: the second parameter's group has 3 a position (9 in all), the first one's 2 (20 in all). 10 of the 13
    # positions may stay dynamic: the second group comes first, and the first one doesn't fit any more.
    params = {'dynamic': {'first': jnp.full((2, 10), 2.0), 'second': jnp.full((2, 3), 3.0)}}
    params['static'] = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), params['dynamic'])
    found = partition(10 / 13, [], params=params, criterion='magnitude', granularity='layer')
    assert {name: bool(mask.all()) for name, mask in found.masks.items()} == {'first': False, 'second': True}


def test_means_that_are_handed_off_by_hand():
    params = {'dynamic': jnp.array([[1.0, 10, 100], [3, 30, 300]]), 'static': jnp.array([-1.0, -2, -3])}
    old, new = jnp.array([True, True, False]), jnp.array([False, True, False])
    # The first position turns static: (1 + 3) / 2 = 2, or 0.25 · 1 + 0.75 · 3 = 2.5.
    assert hand_off_means(params, old, new, Layout())['static'].tolist() == [2, -2, -3]
    assert hand_off_means(params, old, new, Layout(), jnp.array([0.25, 0.75]))['static'].tolist() == [2.5, -2, -3]
    params = {'dynamic': jnp.ones((2, 3), jnp.bfloat16), 'static': jnp.zeros(3, jnp.bfloat16)}
    handed = hand_off_means(params, jnp.ones(3, bool), jnp.zeros(3, bool), Layout())
    assert handed['static'].dtype == jnp.bfloat16
    assert handed['static'].tolist() == [1, 1, 1]
    # 2σ(ln 3) = 3/2 = λd and λs = 1/2, so that λd / λs = 3 where both are in use.
    phi = jnp.log(jnp.float32(3))
    kernel = jnp.stack([jnp.full((2, 2), 1.0), jnp.full((2, 2), 3.0)])
    conv = {'kernel': kernel, 'static_kernel': jnp.zeros((2, 2)), 'phi': phi, 'bias': jnp.ones(2)}
    params = {'block': {'conv': conv, 'norm': {'scale': jnp.ones(2)}}, 'head': {'kernel': jnp.ones((2, 3))}}
    old = {'block': {'conv': {'kernel': jnp.ones((1, 2), bool)}}}
    new = {'block': {'conv': {'kernel': jnp.array([[False, True]])}}}
    for scales in SCALES:
        record = PartialParameter('kernel', (2, 2), 'output', 'static_kernel', 'phi', scales)
        handed = hand_off_means(params, old, new, Layout.of({'block': {'conv': {'kernel': record}}}))
        dynamic_scale, static_scale = scale_factors(phi, scales)
        expected = {**params, 'block': {**params['block'], 'conv': {**conv, 'static_kernel': None}}}
        found = handed['block']['conv']['static_kernel']
        ratio = 2 * dynamic_scale / static_scale  # times the mean (1 + 3) / 2
        np.testing.assert_allclose(found, [[ratio, 0], [ratio, 0]], rtol=1e-6)
        without = {**handed, 'block': {**handed['block'], 'conv': {**handed['block']['conv'], 'static_kernel': None}}}
        jax.tree.map(np.testing.assert_array_equal, without, expected)


@pytest.mark.parametrize('fraction', [0.01, 0.3, 0.5, 1.0])
@pytest.mark.parametrize('rounds', [1, 3, 10])
def test_the_schedules_are_those_of_optax(fraction, rounds):
    passed = np.arange(1, rounds + 1)
    twins = {
        'exponential': optax.exponential_decay(1.0, rounds, fraction),
        'linear': optax.polynomial_schedule(1.0, fraction, 1, rounds),
    }
    for name, twin in twins.items():
        found = round_fractions(fraction, rounds, name)
        np.testing.assert_allclose(found, [twin(step) for step in passed], rtol=2e-6)
        assert found[-1] == fraction
        assert list(found) == sorted(found, reverse=True)


def test_golden_fractions():
    # 0.125^(1/3) = 0.5, 0.5² = 0.25; and 1 − 0.75·(1/3) = 0.75, 1 − 0.75·(2/3) = 0.5.
    np.testing.assert_allclose(round_fractions(0.125, 3), [0.5, 0.25, 0.125], rtol=1e-12)
    np.testing.assert_allclose(round_fractions(0.25, 3, 'linear'), [0.75, 0.5, 0.25], rtol=1e-12)
    assert round_fractions(0.3, 1, 'one_shot') == (0.3,)
