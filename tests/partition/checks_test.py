"""Refusals of a partition: problems that don't fit, scores without information, groups that are too large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pad_jax.partition import (
    Layout,
    Part,
    PartitionError,
    Problem,
    Recipe,
    UninformativeScores,
    check_informative,
    init_masks,
    iterative_mode_partition,
    merge,
    partition_round,
)
from tests.partition import problems

PARAMS = problems.make_params()
POSITIONS = PARAMS['static']
MASKS = init_masks(POSITIONS)
BATCHES = [problems.make_batch()]
NAN = jnp.nan


def check(scores, masks=None, targets=1, scope='global', **options):
    scores = {name: jnp.array(leaf, jnp.float32) for name, leaf in scores.items()}
    masks = masks or jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), scores)
    if scope == 'layer' and isinstance(targets, int):
        targets = dict.fromkeys(scores, targets)
    check_informative(scores, masks, targets, scores, scope, **options)


@pytest.mark.parametrize('scope', ['global', 'layer'])
def test_scores_that_say_something_pass(scope):
    check({'a': [0, 1], 'b': [NAN, 2, 1], 'one gate': [0]}, scope=scope)
    check({'a': [0, jnp.inf], 'b': [-jnp.inf, NAN, 3]}, scope=scope)


def test_equal_scores_are_refused_with_advice():
    scores = {'a': [0.0] * 3, 'b': [0.0, 1, 2]}
    check(scores)
    with pytest.raises(UninformativeScores, match=r"every position of a the same score \(0\).*handoff 'mean'"):
        check(scores, scope='layer')
    # What is static already doesn't compete, so that its score can't save the others.
    masks = {'a': jnp.ones(3, bool), 'b': jnp.array([False, True, False])}
    with pytest.raises(UninformativeScores, match=r'snip gave every position of all parameters the same .*: why'):
        check({'a': [0.0] * 3, 'b': [5.0, 0, 7]}, masks, criterion='snip', hint='why')


def test_scores_that_are_not_finite_are_refused_as_such():
    for values, count in (([jnp.inf] * 3, 3), ([jnp.inf, 1.0, jnp.inf], 2)):
        with pytest.raises(UninformativeScores, match=f'infinity for {count} of the 3 positions .* or an overflow'):
            check({'a': values})
    says = r'NaN for 3 .* of the 3 positions of all parameters, and 1 must stay'
    with pytest.raises(UninformativeScores, match=says):
        check({'a': [NAN] * 3})
    scores = {'a': [NAN, NAN, 1.0], 'b': [1.0, 2, 3]}
    check(scores, targets=4)
    with pytest.raises(UninformativeScores, match=r'snip gave NaN for 2 .* of the 6 positions of all .*, and 5 must'):
        check(scores, targets=5, criterion='snip')
    check(scores, targets={'a': 1, 'b': 3}, scope='layer')
    with pytest.raises(UninformativeScores, match=r'NaN for 2 .* of the 3 positions of a, and 2 must stay dynamic'):
        check(scores, targets={'a': 2, 'b': 3}, scope='layer')
    # Never more than there are: the two candidates of `a` are all that can be asked for.
    check(scores, {'a': jnp.array([0, 0, 1], bool), 'b': jnp.ones(3, bool)}, targets=6)
    scores, masks, positions = jnp.array([[NAN, 1.0, 2.0]]), jnp.ones((1, 3), bool), jnp.zeros((4, 3))
    check_informative(scores, masks, 8, positions)
    with pytest.raises(UninformativeScores, match=r'NaN for 4 .* of the 12 positions'):
        check_informative(scores, masks, 9, positions)


def variance(routing, dynamic=PARAMS['dynamic'], **options):
    def routing_fn(params, gates, batch):
        return dict.fromkeys(gates, batch)

    problem = Problem(problems.loss_fn, problems.SCALED, routing=routing_fn)
    params = {**PARAMS, 'dynamic': dynamic}
    return partition_round(problem, params, MASKS, [routing], 0.3, Recipe('variance'), **options).masks


def test_a_variance_of_nothing_but_rounding_is_refused():
    rng = np.random.default_rng(0)
    routing = np.asarray(jax.nn.softmax(rng.normal(size=(64, 3)).astype(np.float32)))
    copies = {name: np.stack([leaf[0]] * 3) for name, leaf in PARAMS['dynamic'].items()}
    message = 'do not vary; train some steps first'
    with pytest.raises(UninformativeScores, match=message):
        variance(routing, copies)
    with pytest.raises(UninformativeScores, match=message):
        variance(np.repeat(routing[:1], 64, axis=0))
    with pytest.raises(UninformativeScores, match=message):
        variance(routing[:1])
    # A routing that hardly varies still does.
    nearly_constant = routing[:1] + 3e-3 * (routing - routing.mean(0))
    expected = variance(routing)
    found = variance(nearly_constant)
    agreement = sum(int((found[name] == expected[name]).sum()) for name in found) / 40
    assert agreement >= 0.9


@pytest.mark.parametrize('granularity', ['layer', 'output'])
def test_a_group_larger_than_what_may_stay_is_named(granularity):
    params = {
        'dynamic': {'small': jnp.ones((2, 2, 5)), 'wide': 9 * jnp.ones((2, 20, 2)) + jnp.arange(2.0).reshape(1, 1, 2)},
        'static': {'small': jnp.zeros((2, 5)), 'wide': jnp.zeros((20, 2))},
    }
    size = {'layer': 40, 'output': 20}[granularity]
    with pytest.raises(PartitionError, match=f'group of positions, in wide, has {size} of them, and 15 are to stay'):
        iterative_mode_partition(
            problems.loss_fn, params, None, dynamic_fraction=0.3, criterion='magnitude', granularity=granularity
        )


def refuse(message, params=PARAMS, masks=MASKS, **options):
    with pytest.raises(ValueError, match=message):
        partition_round(problems.PROBLEM, params, masks, BATCHES, options.pop('dynamic_fraction', 0.3), **options)


def test_arguments_that_do_not_fit():
    refuse(
        "params hold no 'static', which the layout reads",
        {key: value for key, value in PARAMS.items() if key != 'static'},
    )
    refuse('the parameters and the masks are trees of different structure', masks={'first': MASKS['first']})
    refuse('first: masks must be bool, got float32', masks=MASKS | {'first': jnp.ones((2, 3, 5))})
    refuse(
        r'second: factors must be .*, static parameters \[\*shape\], got \(3, 1, 5, 2\) and \(1, 5, 3\)',
        {**PARAMS, 'static': {**POSITIONS, 'second': jnp.zeros((1, 5, 3))}},
    )
    refuse(r'first: a mask of shape \(2, 3, 4\) does not', masks=MASKS | {'first': jnp.ones((2, 3, 4), bool)})
    with pytest.raises(ValueError, match="bias: granularity 'input' needs a parameter of at least 2 axes"):
        init_masks({'bias': jnp.zeros(3), 'kernel': jnp.zeros((3, 3))}, 'input')

    class Loss:
        def __eq__(self, other):
            return True

        def __call__(self, params, gates, batch):
            return 0.0

    with pytest.raises(ValueError, match='hash'):
        iterative_mode_partition(Loss(), PARAMS, BATCHES, dynamic_fraction=0.5)
    with pytest.raises(ValueError, match=r'rounds must be at least 1 and whole, got 2\.5'):
        iterative_mode_partition(problems.loss_fn, PARAMS, BATCHES, dynamic_fraction=0.5, rounds=2.5)
    with pytest.raises(ValueError, match=r"are needed: give masks=variables\['partition'\]"):
        iterative_mode_partition(Problem(problems.loss_fn, Layout.of({})), {}, BATCHES, dynamic_fraction=0.5)


def test_the_layout_says_at_which_scale_factors_are_copies():
    static = jnp.arange(1.0, 5)
    params = {'dynamic': jnp.stack([static * 2 / 3] * 3), 'static': static}

    def partition(layout):
        def loss_fn(params, gates, batch):
            return jnp.sum(batch * gates * params['dynamic'].sum(0))

        problem = Problem(loss_fn, layout)
        return iterative_mode_partition(problem, params, [jnp.ones(4)], dynamic_fraction=0.5).masks

    class Copied(Layout):
        def read(self, params, masks):
            return Part(**params, copies_at=2 / 3)

    assert partition(Layout()).tolist() == [False, False, True, True]
    with pytest.raises(UninformativeScores, match='equal each other and the static parameters'):
        partition(Copied())


def test_batches_are_left_alone_where_nothing_reads_them():
    def endless():
        while True:
            yield problems.make_batch()

    def partition(batches, **options):
        return iterative_mode_partition(
            lambda params, gates, batch: jnp.sum(merge(params['dynamic'], params['static'], gates)),
            {'dynamic': jnp.arange(8.0).reshape(2, 4), 'static': jnp.zeros(4)},
            batches,
            dynamic_fraction=0.25,
            criterion='magnitude',
            **options,
        ).masks.tolist()

    for batches in (endless(), None):
        for rounds in (1, 2):
            assert partition(batches, rounds=rounds) == [False, False, False, True]
