import itertools

import numpy as np
import pytest

from pad_jax.errors import BadInput
from pad_jax.reports.mask_overlap import LayerMask, compare_masks, compare_variants, read_masks, same_shapes
from pad_jax.reports.runs import read_partition


def masks_of(**layers):
    """A layer called NAME of element masks, one called NAME_groups of gates that decide for three positions each."""
    return {name: LayerMask(np.array(gates, bool), 3 if 'groups' in name else 1) for name, gates in layers.items()}


def places(masks):
    """The dynamic positions as a set: the slow twin counts them one by one."""
    return {
        (name, gate, copy)
        for name, mask in masks.items()
        for gate, dynamic in enumerate(mask.gates.ravel())
        if dynamic
        for copy in range(mask.positions_per_gate)
    }


def draw_masks(random, counts, sizes=(40, 20)):
    """Layers a (elements) and b_groups with so many dynamic gates each."""
    drawn = [random.permutation(np.arange(size) < count) for size, count in zip(sizes, counts, strict=True)]
    return masks_of(a=drawn[0], b_groups=drawn[1])


@pytest.mark.parametrize('seed', range(5))
def test_overlap_counts_positions(seed):
    random = np.random.default_rng(seed)
    first, second = draw_masks(random, (10, 4)), draw_masks(random, (25, 7))
    ones, others = places(first), places(second)
    assert compare_masks(first, second).found == pytest.approx(len(ones & others) / len(ones | others))


def test_chance_within_layers_is_what_random_masks_have():
    random = np.random.default_rng(0)
    pairs = [(draw_masks(random, (10, 4)), draw_masks(random, (25, 7))) for _ in range(1500)]
    both = np.mean([len(places(one) & places(other)) for one, other in pairs])
    # 40 positions of which 10 and 25, 20 · 3 of which 12 and 21: 10 · 25 / 40 + 12 · 21 / 60 = 6.25 + 4.2
    assert both == pytest.approx(10.45, rel=0.03)
    assert compare_masks(*pairs[0]).by_chance_in_layers == pytest.approx(10.45 / (10 + 25 + 12 + 21 - 10.45))
    # Over all 100 positions: 22 · 46 / 100
    assert compare_masks(*pairs[0]).by_chance == pytest.approx(10.12 / (22 + 46 - 10.12))


def test_equal_and_disjoint_masks():
    one, other = masks_of(a=[1, 1, 0, 0]), masks_of(a=[0, 0, 1, 1])
    assert compare_masks(one, one).found == 1.0
    assert compare_masks(one, other).found == 0.0


def test_variants_are_compared_seed_by_seed():
    masks = {
        'one': {0: masks_of(a=[1, 1, 0, 0]), 1: masks_of(a=[0, 0, 1, 1]), 2: masks_of(a=[1, 0, 1, 0])},
        'two': {1: masks_of(a=[0, 0, 1, 1]), 9: masks_of(a=[1, 1, 1, 1])},
        'groups': {0: masks_of(a_groups=[1, 0])},
    }
    found = compare_variants(masks)
    assert list(found) == list(itertools.combinations_with_replacement(masks, 2))
    # seeds 0 and 1: none of 4; 0 and 2, 1 and 2: one of 3
    assert found['one', 'one'].found == pytest.approx((0 + 1 / 3 + 1 / 3) / 3)
    assert found['one', 'two'].found == 1.0  # seed 1 alone
    assert found['two', 'two'].found == 0.5
    assert found['groups', 'groups'] is None  # a single seed
    assert found['one', 'groups'] is None and found['two', 'groups'] is None  # other shapes


def test_shapes_are_those_of_gates_and_of_what_they_decide_for():
    assert same_shapes(masks_of(a=[1, 0]), masks_of(a=[0, 0]))
    assert not same_shapes(masks_of(a=[1, 0]), masks_of(a=[1, 0, 0]))
    assert not same_shapes(masks_of(a=[1, 0]), masks_of(b=[1, 0]))
    assert not same_shapes({'a': LayerMask(np.ones(2, bool), 1)}, {'a': LayerMask(np.ones(2, bool), 3)})


def test_masks_of_a_run_have_the_positions_that_it_reports(finished_run, one_block):
    masks = read_masks(finished_run)
    counted = {
        name.rpartition('/')[0]: (
            mask.gates.size * mask.positions_per_gate,
            int(mask.gates.sum()) * mask.positions_per_gate,
        )
        for name, mask in masks.items()
    }
    layers = read_partition(finished_run)['layers']
    assert counted == {layer['name']: (layer['positions'], layer['dynamic_positions']) for layer in layers}


def test_a_run_without_checkpoint(finished_run, one_block, tmp_path):
    for name in ('config.json', 'data.json'):
        (tmp_path / name).write_bytes((finished_run / name).read_bytes())
    with pytest.raises(BadInput, match='holds no checkpoint'):
        read_masks(tmp_path)
