"""What a partition refuses, and in which words: params that fit no layout, scores that say nothing, empty selections.

All of it runs on the host, on values; under a trace nobody can look at them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pad_jax.partition.masks import group_size, leaf_names
from pad_jax.partition.problem import Problem
from pad_jax.partition.selection import each_by_itself, find_competitions

LATER = "train some steps first (start_step > 0) with handoff 'mean', or take criterion 'magnitude' or 'random'"
NO_GRADIENT = (
    'dynamic factors that equal each other and the static parameters have no gradient through the mask; ' + LATER
)


class PartitionError(ValueError):
    """A partition that can't be made from what was given."""


class NothingSelected(PartitionError):
    """The best-scored group of positions is larger than what is to stay dynamic."""


class UninformativeScores(PartitionError):
    """The scores don't say which positions to keep dynamic."""


def check_problem(problem: Problem, params, masks, key=None) -> None:
    """Raises ValueError, naming the parameter, where params, masks and layout don't fit each other."""
    try:
        hash(problem)
    except TypeError as error:
        raise ValueError(f'the functions of a problem must be hashable, to be compiled once: {error}') from None
    if key is not None and not jnp.issubdtype(getattr(key, 'dtype', None), jax.dtypes.prng_key):
        raise ValueError(f'key must be a jax.random.key, got {key!r}')
    structure = jax.tree.structure(masks)
    parts = {}
    for part, read in (('dynamic', problem.layout.dynamic), ('static', problem.layout.static)):
        try:
            parts[part] = structure.flatten_up_to(read(params, masks))
        except KeyError as error:
            raise ValueError(f'params hold no {error}, where the layout looks for the {part} parameters') from None
        except ValueError as error:
            raise ValueError(f'the {part} parameters and the masks are trees of different structure: {error}') from None
    for name, mask, factors, static in zip(
        leaf_names(masks), jax.tree.leaves(masks), parts['dynamic'], parts['static'], strict=True
    ):
        if mask.dtype != bool:
            raise ValueError(f'masks are bool, that of {name} is {mask.dtype}')
        if factors.shape[1:] != static.shape:
            raise ValueError(
                f'the dynamic factors of {name} are [K, *shape] and its static parameters [*shape], got '
                f'{factors.shape} and {static.shape}'
            )
        try:
            group_size(mask, static)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from None


def check_informative(
    scores,
    masks,
    targets,
    positions,
    scope: str = 'global',
    criterion: str = 'the criterion',
    hint: str = NO_GRADIENT,
    layer_of: Callable[[str], str] = each_by_itself,
) -> None:
    """Raises `UninformativeScores` where the scores wouldn't decide a selection.

    That is so where all competing scores are equal (zero, above all), or so many are NaN that fewer positions than the
    target have one: under scope `global` in the whole tree, under scope `layer` in any one layer. A single score
    has nothing to be equal to.

    Args:
      scores, masks, targets, positions, scope, layer_of: as `select_positions` takes them.
      criterion: its name in the message.
      hint: what equal scores mean and what to do about them, in the message.
    """
    leaves, structure = jax.tree.flatten(masks)
    sizes = [group_size(mask, leaf) for mask, leaf in zip(leaves, structure.flatten_up_to(positions), strict=True)]
    found = jax.device_get(_summarize(tuple(structure.flatten_up_to(scores)), tuple(leaves)))
    rows = [
        (low, high, numbers, numbers * size, gates * size)
        for (low, high, gates, numbers), size in zip(found, sizes, strict=True)
    ]
    for name, members in find_competitions(leaf_names(masks), scope, layer_of).items():
        lows, highs, *counts = zip(*(rows[index] for index in members))
        low, high, (numbers, scored, candidates) = min(lows), max(highs), map(sum, counts)
        wanted = min(int(targets if scope == 'global' else targets[name]), int(candidates))
        if scored < wanted:
            raise UninformativeScores(
                f'{criterion} gave NaN for {candidates - scored} of the {candidates} positions of {name}, and {wanted} '
                'are to stay dynamic: look for NaN in the loss, lower the temperature or the learning rate, or take '
                "criterion 'magnitude'"
            )
        if numbers < 2 or low < high:
            continue
        if abs(low) == jnp.inf:
            raise UninformativeScores(
                f'{criterion} gave every position of {name} an infinite score: look for an overflow in the loss, lower '
                "the learning rate, or take criterion 'magnitude'"
            )
        raise UninformativeScores(
            f'{criterion} gave every position of {name} the same score ({low:g}), which says nothing about which to '
            f'keep dynamic: {hint}'
        )


@jax.jit
def _summarize(scores, masks):
    """(lowest, highest, candidates, candidates whose score is a number) of each leaf."""

    def one(score, mask):
        score = score.astype(jnp.float32)
        valid = mask & ~jnp.isnan(score)
        return (
            jnp.min(score, where=valid, initial=jnp.inf),
            jnp.max(score, where=valid, initial=-jnp.inf),
            jnp.sum(mask),
            jnp.sum(valid),
        )

    return [one(score, mask) for score, mask in zip(scores, masks, strict=True)]


def check_distinct(layout, params, masks, competing: list[int], scope: str) -> list[bool]:
    """Raises where the dynamic factors of the competing leaves are copies of the static parameters.

    Their scores are zero but for rounding, and so would pass as different from each other.

    That is so where all that compete with each other are copies: see `find_competitions`.

    Returns:
      For each leaf of masks, whether it is such copies; beside leaves that aren't, its scores count as zero.
    """
    copies, competes = jax.device_get(_are_copies(layout, params, masks))
    names = leaf_names(masks)
    names = [names[i] for i in competing if competes[i]]
    copied = dict(zip(names, [copies[i] for i in competing if competes[i]], strict=True))
    for members in find_competitions(names, scope, layout.layer_of).values():
        if all(copied[names[member]] for member in members):
            raise UninformativeScores(
                f'the dynamic factors of {names[members[0]]} all equal its static parameters, so the mask has no '
                f'effect on the loss and the scores would be rounding errors; {LATER}'
            )
    return [bool(copied) for copied in copies]


@functools.partial(jax.jit, static_argnames='layout')
def _are_copies(layout, params, masks):
    """Of each mask: do all factors equal the static parameter, scales included, where it is dynamic? Is it anywhere?"""
    structure = jax.tree.structure(masks)

    def are_copies(mask, dynamic, static, scales, copy_scale):
        dynamic_scale, static_scale = scales
        dynamic, copy = dynamic_scale * dynamic, (copy_scale * static_scale * static)[None]
        tolerance = 0 if copy_scale == 1 else 4 * jnp.finfo(static.dtype).eps  # whoever made the copies has rounded
        return jnp.all((jnp.abs(dynamic - copy) <= tolerance * jnp.abs(copy)) | ~mask[None])

    read = (layout.dynamic, layout.static, layout.scales, layout.copy_scales)
    trees = [function(params, masks) for function in read]
    competes = [jnp.any(mask) for mask in jax.tree.leaves(masks)]
    copies = [are_copies(*leaves) for leaves in zip(jax.tree.leaves(masks), *map(structure.flatten_up_to, trees))]
    return [copied & there for copied, there in zip(copies, competes)], competes


def check_not_empty(
    scores,
    candidates,
    selected,
    targets,
    positions,
    scope: str,
    layer_of: Callable[[str], str] = each_by_itself,
) -> None:
    """Raises `NothingSelected` where the best-scored group has more positions than may stay dynamic.

    Args:
      scores, candidates, targets, positions, scope, layer_of: as `select_positions` took them, dicts by name.
      selected: what it gave.
    """
    names = [name for name, mask in candidates.items() if mask.any()]
    for layer, members in find_competitions(names, scope, layer_of).items():
        competing = [names[member] for member in members]
        if any(selected[name].any() for name in competing):
            continue
        best = {name: jnp.max(scores[name], where=candidates[name], initial=-jnp.inf) for name in competing}
        first = max(competing, key=lambda name: best[name])
        target = targets if scope == 'global' else targets[layer]
        size = group_size(candidates[first], positions[first])
        raise NothingSelected(
            f'the best-scored group of positions, in {first or "the parameter"}, has {size} of them, and '
            f'{int(target)} are to stay dynamic: take a finer granularity or a larger dynamic_fraction'
        )
