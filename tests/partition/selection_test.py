"""Selection against a sorted list, on contents made to hurt: ties, NaN, infinities, both zeros, subnormals."""

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pad_jax.partition import selection
from pad_jax.partition.selection import select_positions

# Few trees, so that compilation doesn't dominate; leaves in the order of jax.tree.leaves. One leaf is longer than a
# block of rows (128 · 128). It is a multiple of nothing, so it crosses every edge of the counting.
POSITIONS = {
    'elements': {'a': (3, 5), 'b': (129,), 'c': (127, 131)},
    'groups': {'a': (5, 6), 'b': (4, 9), 'c': (3, 7), 'd': (2, 2, 3, 4)},
}
MASKS = {
    'elements': POSITIONS['elements'],
    'groups': {'a': (1, 6), 'b': (4, 1), 'c': (3, 7), 'd': (2, 2, 1, 1)},  # groups of 5, 9, 1 and 12 positions
}
ODD_NUMBERS = [0.0, -0.0, float('inf'), -float('inf'), float('nan'), 1e-45, -1e-45, 3e-45, 1.1754944e-38, 3.4028235e38]
NUMBERS = st.one_of(st.sampled_from(ODD_NUMBERS), st.integers(-3, 3).map(float), st.floats(width=32))


def is_shape(node):
    return isinstance(node, tuple)


def structs(kind):
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), POSITIONS[kind], is_leaf=is_shape)


@st.composite
def contents(draw, kind):
    """Scores from a pool of few numbers (ties abound), candidates, and a target from 0 to beyond what there is."""
    pool = np.array(draw(st.lists(NUMBERS, min_size=1, max_size=12)), np.float32)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    scores = jax.tree.map(lambda shape: rng.choice(pool, shape), MASKS[kind], is_leaf=is_shape)
    if draw(st.booleans()):  # few ties in the largest leaf
        scores['c'] = rng.normal(size=scores['c'].shape).astype(np.float32)
    masks = jax.tree.map(lambda leaf: rng.random(leaf.shape) < density, scores)
    total = sum(leaf.size for leaf in jax.tree.leaves(structs(kind)))
    target = draw(st.one_of(st.integers(0, total + 5), st.sampled_from([0, 1, total - 1, total])))
    return scores, masks, target


def select_by_sorting(scores, masks, target, positions):
    """The definition: sort the candidates, take the longest prefix whose positions fit the target."""
    kept = [np.zeros_like(mask) for mask in masks]
    order = sorted(
        (-score, leaf, place)
        for leaf, (values, mask) in enumerate(zip(scores, masks, strict=True))
        for place, (score, candidate) in enumerate(zip(values.ravel().tolist(), mask.ravel().tolist(), strict=True))
        if candidate and score == score
    )
    for _, leaf, place in order:
        size = positions[leaf].size // masks[leaf].size
        if size > target:
            break
        target -= size
        kept[leaf].flat[place] = True
    return kept


def assert_same_masks(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(found), list(expected))


@pytest.mark.parametrize('kind', POSITIONS)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=40)
def test_the_whole_tree_equals_a_sorted_list(kind, data):
    scores, masks, target = data.draw(contents(kind))
    found = select_positions(scores, masks, target, structs(kind))
    leaves = [jax.tree.leaves(tree) for tree in (scores, masks, structs(kind))]
    assert_same_masks(found, select_by_sorting(leaves[0], leaves[1], target, leaves[2]))
    if kind == 'elements':  # the number is exact
        there = sum((mask & ~np.isnan(score)).sum() for score, mask in zip(*leaves[:2], strict=True))
        assert sum(leaf.sum() for leaf in jax.tree.leaves(found)) == min(target, there)


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=30)
def test_each_layer_equals_a_sorted_list(data):
    scores, masks, _ = data.draw(contents('groups'))
    targets = {name: data.draw(st.integers(0, leaf.size + 2)) for name, leaf in structs('groups').items()}
    found = select_positions(scores, masks, targets, structs('groups'), scope='layer')
    for name, position in structs('groups').items():
        expected = select_by_sorting([scores[name]], [masks[name]], targets[name], [position])
        assert_same_masks([found[name]], expected)


GOLDEN = [
    # scores, candidates, target, kept
    ([3, 1, 3, 2], [1, 1, 1, 1], 2, [1, 0, 1, 0]),
    ([1, 1, 1, 1], [1, 1, 1, 1], 3, [1, 1, 1, 0]),
    ([1, 2, 2, 2], [1, 0, 1, 1], 1, [0, 0, 1, 0]),
    ([np.nan, 1, np.nan, 0], [1, 1, 1, 1], 3, [0, 1, 0, 1]),
    ([-0.0, 0.0, -0.0, 0.0], [1, 1, 1, 1], 2, [1, 1, 0, 0]),
    ([1e-45, 3e-45, -1e-45, 0], [1, 1, 1, 1], 3, [1, 1, 0, 1]),
    ([-np.inf, np.inf, 0, -3e38], [1, 1, 1, 1], 3, [0, 1, 1, 1]),
    ([-np.inf, -np.inf, 0, 1], [1, 1, 1, 1], 3, [1, 0, 1, 1]),
    ([1, 2, 3, 4], [1, 1, 1, 1], 0, [0, 0, 0, 0]),
    ([1, 2, 3, 4], [0, 0, 0, 1], 3, [0, 0, 0, 1]),
    ([1, 2, 3, 4], [0, 0, 0, 0], 3, [0, 0, 0, 0]),
]


@pytest.mark.parametrize(('scores', 'masks', 'target', 'kept'), GOLDEN)
def test_golden_selections(scores, masks, target, kept):
    found = select_positions(jnp.array(scores, jnp.float32), jnp.array(masks, bool), target, jnp.zeros(4))
    assert found.tolist() == [bool(value) for value in kept]


def test_a_group_that_does_not_fit_ends_the_prefix():
    positions, masks = jnp.zeros((3, 4)), jnp.ones((1, 4), bool)
    # Outputs of 3 positions each: 7 positions hold two of them, the best and, of the tied ones, the first.
    assert select_positions(jnp.array([[1.0, 5, 1, 0]]), masks, 7, positions).tolist() == [[True, True, False, False]]
    # The best group of 12 doesn't fit 4; the next one, of a single position, doesn't slip in behind it.
    found = select_positions(
        [jnp.full((1, 1), 2.0), jnp.array([1.0])],
        [jnp.ones((1, 1), bool), jnp.ones(1, bool)],
        4,
        [positions, jnp.zeros(1)],
    )
    assert [leaf.any() for leaf in found] == [False, False]


def test_parameters_of_one_layer_compete_with_each_other():
    positions = {'a/kernel': jnp.zeros((2, 3)), 'a/vector': jnp.zeros(2), 'b/kernel': jnp.zeros(2)}
    masks = {'a/kernel': jnp.ones((1, 3), bool), 'a/vector': jnp.ones(2, bool), 'b/kernel': jnp.ones(2, bool)}
    scores = {'a/kernel': jnp.array([[5.0, 1, 3]]), 'a/vector': jnp.array([4.0, 2]), 'b/kernel': jnp.array([9.0, 8])}
    # In `a` the columns of 2 positions that score 5 and 3, and between them the entry that scores 4: five positions.
    targets = {'a': 5, 'b': 1}
    found = select_positions(scores, masks, targets, positions, 'layer', lambda path: path[0])
    assert {name: leaf.ravel().tolist() for name, leaf in found.items()} == {
        'a/kernel': [True, False, True],
        'a/vector': [True, False],
        'b/kernel': [True, False],
    }


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_scores_of_other_dtypes(dtype):
    scores = jnp.array([0.5, -2, 3, 0.25], dtype)
    assert select_positions(scores, jnp.ones(4, bool), 2, jnp.zeros(4)).tolist() == [True, False, True, False]


def test_one_compilation_serves_all_targets():
    traces = chex.assert_max_traces(lambda *arguments: select_positions(*arguments, jnp.zeros(300)), n=1)
    select = jax.jit(traces)
    scores = jnp.arange(300.0)
    for target in (0, 1, 7, 299, 400):
        assert int(select(scores, jnp.ones(300, bool), target).sum()) == min(target, 300)
    before = selection._select._cache_size()
    for target in (1, 2, 3):
        select_positions(scores, jnp.ones(300, bool), target, jnp.zeros(300))
    assert selection._select._cache_size() <= before + 1


def test_what_is_refused():
    with pytest.raises(ValueError, match='does not broadcast against positions'):
        select_positions(jnp.ones(3), jnp.ones(3, bool), 1, jnp.ones((3, 2)))
    assert [selection.num_dynamic_positions(10, kappa) for kappa in (1e-9, 0.04, 0.26, 0.99, 1.0)] == [1, 1, 3, 10, 10]
    assert selection.num_dynamic_positions(100_000_000, 0.3) == 30_000_000
    for kappa in (0, -0.5, 1.5, float('nan')):
        with pytest.raises(ValueError, match=r'dynamic_fraction must be in \(0, 1\], got'):
            selection.num_dynamic_positions(10, kappa)


@jax.numpy_dtype_promotion('strict')
@pytest.mark.parametrize('is_wide', [False, True])
def test_scores_of_two_dtypes_under_strict_promotion(is_wide):
    with jax.enable_x64(is_wide):
        scores, masks = [jnp.float32([3, 1]), jnp.bfloat16([2, 4])], [jnp.ones(2, bool)] * 2
        assert [kept.tolist() for kept in select_positions(scores, masks, 2, scores)] == [[True, False], [False, True]]
