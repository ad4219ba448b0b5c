"""How much of what one run keeps dynamic another keeps dynamic too, beside what chance would give.

Overlap is Jaccard's: positions dynamic in both / positions dynamic in either.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from pad_jax.partition import FLAX, group_size, leaf_names, positions_of
from pad_jax.training.evaluate import read_stored


class LayerMask(NamedTuple):
    """bool[gates], which of them stay dynamic, and how many positions each decides for."""

    gates: np.ndarray
    positions_per_gate: int


Masks = Mapping[str, LayerMask]
"""By the path of the parameter; {} where no layer is partially dynamic."""


class Overlap(NamedTuple):
    """Jaccard indices in [0, 1].

    Attributes:
      found: of two masks.
      by_chance: of random masks that have the same κ each.
      by_chance_in_layers: of random masks that have the same κ in each layer. What is found beyond that is agreement
        on places within layers; what this is beyond `by_chance` is agreement on layers.
    """

    found: float
    by_chance: float
    by_chance_in_layers: float


def read_masks(workdir: Path) -> dict[str, LayerMask]:
    """The masks of the newest checkpoint of a run.

    Raises:
      BadInput: if there is none that is sound.
    """
    config, _, _, state = read_stored(workdir)
    if not state.masks:
        return {}
    positions = positions_of(FLAX[config.partition.scales], state.params, state.masks)
    leaves = zip(leaf_names(state.masks), jax.tree.leaves(state.masks), jax.tree.leaves(positions), strict=True)
    return {name: LayerMask(np.asarray(mask), group_size(mask, position)) for name, mask, position in leaves}


def same_shapes(first: Masks, second: Masks) -> bool:
    """Whether two networks can be compared gate by gate."""

    def shapes(masks):
        return {name: (mask.gates.shape, mask.positions_per_gate) for name, mask in masks.items()}

    return shapes(first) == shapes(second)


def compare_masks(first: Masks, second: Masks) -> Overlap:
    """Counted in positions.

    By chance, of n positions of which one mask keeps a fraction κ₁ and the other κ₂, κ₁κ₂n are dynamic in both and
    (κ₁ + κ₂ − κ₁κ₂)n in either: their ratio, which for the many positions of a network is the mean of Jaccard's index.

    Args:
      first, second: of `same_shapes`, some position of either dynamic.

    >>> a, b = ({'conv': LayerMask(np.array(gates), 1)} for gates in ([True, True, False, False], [True, False] * 2))
    >>> compare_masks(a, b)  # 1 of 3; half · half of 4 = 1 of 2 + 2 − 1
    Overlap(found=0.3333333333333333, by_chance=0.3333333333333333, by_chance_in_layers=0.3333333333333333)
    """
    names = list(first)
    sizes = np.array([first[name].gates.size * first[name].positions_per_gate for name in names], np.float64)
    weights = [first[name].positions_per_gate for name in names]
    both = np.array([np.sum(first[name].gates & second[name].gates) for name in names]) * weights
    ones, others = (np.array([np.sum(masks[name].gates) for name in names]) * weights for masks in (first, second))
    expected = ones * others / sizes
    expected_overall = ones.sum() * others.sum() / sizes.sum()
    kept = ones.sum() + others.sum()
    return Overlap(*(float(shared / (kept - shared)) for shared in (both.sum(), expected_overall, expected.sum())))


def compare_variants(masks: Mapping[str, Mapping[int, Masks]]) -> dict[tuple[str, str], Overlap | None]:
    """Overlaps of every pair of variants, (earlier, later) and (name, name), mean over pairs of runs.

    A variant with itself: every two of its seeds. Two variants: the runs that share a seed, and so where they begin.
    None where no two runs can be compared: their masks have other shapes, or there is a single seed.

    Args:
      masks: by variant and seed.
    """
    found = {}
    for first, second in itertools.combinations_with_replacement(masks, 2):
        runs, others = masks[first], masks[second]
        if first == second:
            pairs = list(itertools.combinations(runs.values(), 2))
        else:
            pairs = [(runs[seed], others[seed]) for seed in sorted(runs.keys() & others.keys())]
        found[first, second] = average_overlaps([compare_masks(*pair) for pair in pairs if same_shapes(*pair)])
    return found


def average_overlaps(overlaps: Sequence[Overlap]) -> Overlap | None:
    """The mean of each number; None of none."""
    return Overlap(*(float(np.mean(values)) for values in zip(*overlaps, strict=True))) if overlaps else None
