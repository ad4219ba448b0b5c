"""Checks of a partition, with advice. They run on the host, because values are unknown under a trace."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.partition.criteria import LATER, NO_GRADIENT
from pad_jax.partition.layout import Layout, Problem, is_part
from pad_jax.partition.masks import group_size, leaf_names
from pad_jax.partition.selection import each_by_itself, find_competitions


class PartitionError(ValueError):
    """A partition is not possible with these scores or groups."""


class NothingSelected(PartitionError):
    """The best-scored group of positions is larger than the number of positions that stay dynamic."""


class UninformativeScores(PartitionError):
    """The scores cannot tell which positions to keep dynamic."""


def check_problem(problem: Problem, params, masks, key=None) -> None:
    """Raise ValueError, with the name of the parameter, if params, masks and layout don't fit each other."""
    try:
        hash(problem)
    except TypeError as error:
        raise ValueError(f'the functions of a problem must be hashable, to be compiled once: {error}') from None
    if key is not None and not jnp.issubdtype(getattr(key, 'dtype', None), jax.dtypes.prng_key):
        raise ValueError(f'key must be a jax.random.key, got {key!r}')
    try:
        parts = jax.tree.structure(masks).flatten_up_to(problem.layout.read(params, masks))
    except KeyError as error:
        raise ValueError(f'params hold no {error}, which the layout reads') from None
    except ValueError as error:
        raise ValueError(f'the parameters and the masks are trees of different structure: {error}') from None
    for name, mask, part in zip(leaf_names(masks), jax.tree.leaves(masks), parts, strict=True):
        if mask.dtype != bool:
            raise ValueError(f'masks must be bool, that of {name} is {mask.dtype}')
        if not is_part(part) or part.dynamic.shape[1:] != part.static.shape:
            raise ValueError(
                f'the dynamic factors of {name} must be [K, *shape] and its static parameters [*shape], got '
                f'{part.dynamic.shape} and {part.static.shape}'
            )
        try:
            group_size(mask, part.static)
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
    """Raise `UninformativeScores` if the scores would not decide a selection.

    That happens if all competing scores are equal (zero, above all), or if NaN leaves fewer scores than the target.
    Under scope `layer` each layer is checked. A single score passes.

    Args:
      scores, masks, targets, positions, scope, layer_of: as `select_positions` takes them.
      criterion: its name in the message.
      hint: the cause of equal scores and its remedy, in the message.
    """
    leaves, structure = jax.tree.flatten(masks)
    sizes = [group_size(mask, leaf) for mask, leaf in zip(leaves, structure.flatten_up_to(positions), strict=True)]
    found = jax.device_get(_summarize(tuple(structure.flatten_up_to(scores)), tuple(leaves)))
    for name, members in find_competitions(leaf_names(masks), scope, layer_of).items():
        low, high = min(found[i][0] for i in members), max(found[i][1] for i in members)
        candidates, scored = (sum(found[i][field] * sizes[i] for i in members) for field in (2, 3))
        wanted = min(int(targets if scope == 'global' else targets[name]), int(candidates))
        if scored < wanted:
            raise UninformativeScores(
                f'{criterion} gave NaN for {candidates - scored} of the {candidates} positions of {name}, and {wanted} '
                'are to stay dynamic: look for NaN in the loss, lower the temperature or the learning rate, or take '
                "criterion 'magnitude'"
            )
        if sum(found[i][3] for i in members) < 2 or low < high:
            continue
        if abs(low) == jnp.inf:
            raise UninformativeScores(
                f'{criterion} gave every position of {name} an infinite score: look for an overflow in the loss, lower '
                "the learning rate, or take criterion 'magnitude'"
            )
        raise UninformativeScores(
            f'{criterion} gave every position of {name} the same score ({low:g}), so it cannot tell which to keep '
            f'dynamic: {hint}'
        )


@jax.jit
def _summarize(scores, masks):
    """Return (lowest score, highest, number of candidates, number of candidates without NaN) for each leaf."""

    def summarize(score, mask):
        score = score.astype(jnp.float32)
        valid = mask & ~jnp.isnan(score)
        return (
            jnp.min(score, where=valid, initial=jnp.inf),
            jnp.max(score, where=valid, initial=-jnp.inf),
            jnp.sum(mask),
            jnp.sum(valid),
        )

    return [summarize(score, mask) for score, mask in zip(scores, masks, strict=True)]


def find_copies(layout: Layout, params, masks, competing: list[str], scope: str) -> list[str]:
    """Find the competing parameters whose dynamic factors are copies of their static parameter.

    Their scores are zero except for rounding errors, which would pass as different scores.

    Raises:
      UninformativeScores: if all parameters that compete with each other are copies.
    """
    found = dict(zip(leaf_names(masks), jax.device_get(_are_copies(layout, params, masks)), strict=True))
    names = [name for name in competing if found[name].any_dynamic]
    for members in find_competitions(names, scope, layout.layer_of).values():
        if all(found[names[member]].copied for member in members):
            raise UninformativeScores(
                f'the dynamic factors of {names[members[0]]} all equal its static parameters: the mask has no '
                f'effect on the loss, and the scores would be rounding errors; {LATER}'
            )
    return [name for name in names if found[name].copied]


class _Copies(NamedTuple):
    copied: jax.Array  # all factors equal the static parameter, with its scales, at every dynamic position
    any_dynamic: jax.Array


@functools.partial(jax.jit, static_argnames='layout')
def _are_copies(layout, params, masks):
    def compare(mask, part):
        dynamic = part.dynamic_scale * part.dynamic
        copy = (part.copies_at * part.static_scale * part.static)[None]
        # A copy at another scale than 1 has been rounded.
        tolerance = 0 if part.copies_at == 1 else 4 * jnp.finfo(part.static.dtype).eps
        return _Copies(jnp.all((jnp.abs(dynamic - copy) <= tolerance * jnp.abs(copy)) | ~mask[None]), jnp.any(mask))

    leaves, structure = jax.tree.flatten(masks)
    return [compare(*row) for row in zip(leaves, structure.flatten_up_to(layout.read(params, masks)), strict=True)]


def check_not_empty(scores, selected, candidates, targets, positions, scope, layer_of) -> None:
    """Raise `NothingSelected` if the best-scored group has more positions than may stay dynamic."""
    names = [name for name, mask in candidates.items() if mask.any()]
    for layer, members in find_competitions(names, scope, layer_of).items():
        competing = [names[member] for member in members]
        if any(selected[name].any() for name in competing):
            continue
        first = max(competing, key=lambda name: jnp.max(scores[name], where=candidates[name], initial=-jnp.inf))
        target = targets if scope == 'global' else targets[layer]
        size = group_size(candidates[first], positions[first])
        raise NothingSelected(
            f'the best-scored group of positions, in {first or "the parameter"}, has {size} of them, and '
            f'{int(target)} are to stay dynamic: take a finer granularity or a larger dynamic_fraction'
        )
