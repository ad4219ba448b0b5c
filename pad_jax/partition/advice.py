"""Checks of a partition, with advice. They run on the host, because values are unknown under a trace."""

import functools
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np

from pad_jax.partition.criteria import LATER, NO_GRADIENT
from pad_jax.partition.layout import Layout, is_part
from pad_jax.partition.masks import group_size, leaf_names
from pad_jax.partition.selection import find_competitions

_OVERFLOW = "look for an overflow in the loss, lower the learning rate, or take criterion 'magnitude'"


class PartitionError(ValueError):
    """A partition is not possible with these scores or groups."""


class NothingSelected(PartitionError):
    """The best-scored group of positions is larger than the number of positions that stay dynamic."""


class UninformativeScores(PartitionError):
    """The scores cannot tell which positions to keep dynamic."""


def check_layout(layout: Layout, params, masks) -> None:
    """Raise ValueError, with the name of the parameter, if params, masks and layout don't fit each other."""
    try:
        parts = jax.tree.structure(masks).flatten_up_to(layout.read(params, masks))
    except KeyError as error:
        raise ValueError(f'params hold no {error}, which the layout reads') from None
    except ValueError as error:
        raise ValueError(f'the parameters and the masks are trees of different structure: {error}') from None
    for name, mask, part in zip(leaf_names(masks), jax.tree.leaves(masks), parts, strict=True):
        if mask.dtype != bool:
            raise ValueError(f'masks must be bool, that of {name} is {mask.dtype}')
        if part.dynamic.shape[1:] != part.static.shape:
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
    layer_of: Callable[[str], str] = str,
    copies: Collection[str] = (),
) -> None:
    """Raise an error if the scores would not decide a selection, or if it would keep nothing.

    Under scope `layer` each layer is checked. A single score passes.

    Args:
      scores, masks, targets, positions, scope, layer_of: as `select_positions` takes them.
      criterion: its name in the message.
      hint: the cause of equal scores and its remedy, in the message.
      copies: paths of the parameters whose factors are copies, see `find_copies`.

    Raises:
      UninformativeScores: if all competing scores are equal (zero, above all). Also if NaN leaves fewer scores than
        the target, or if all parameters that compete are copies.
      NothingSelected: if the best-scored group has more positions than the target.
    """
    names, structure = leaf_names(masks), jax.tree.structure(masks)
    positions = structure.flatten_up_to(positions)
    sizes = [group_size(mask, leaf) for mask, leaf in zip(jax.tree.leaves(masks), positions, strict=True)]
    candidates = [np.asarray(mask, bool) for mask in jax.tree.leaves(masks)]
    scores = [
        np.asarray(score, np.float32)[mask]
        for score, mask in zip(structure.flatten_up_to(scores), candidates, strict=True)
    ]
    numbers = [score[~np.isnan(score)] for score in scores]
    for layer, members in find_competitions(names, scope, layer_of).items():
        members = [index for index in members if scores[index].size]
        if not members:
            continue
        if all(names[index] in copies for index in members):
            raise UninformativeScores(
                f'the dynamic factors of {names[members[0]]} all equal its static parameters: the mask has no effect '
                f'on the loss, and the scores would be rounding errors; {LATER}'
            )
        competing, scored = (sum(sizes[index] * found[index].size for index in members) for found in (scores, numbers))
        target = int(targets if scope == 'global' else targets[layer])
        wanted = max(1, min(target, competing))
        if scored < wanted:
            raise UninformativeScores(
                f'{criterion} gave NaN for {competing - scored} of the {competing} positions of {layer}, and {wanted} '
                'are to stay dynamic: look for NaN in the loss, lower the temperature or the learning rate, or take '
                "criterion 'magnitude'"
            )
        best = [index for index in members if numbers[index].size]
        low, high = min(numbers[index].min() for index in best), max(numbers[index].max() for index in best)
        if low == high and sum(numbers[index].size for index in best) > 1:
            advice = _OVERFLOW if np.isinf(low) else hint
            raise UninformativeScores(
                f'{criterion} gave every position of {layer} the same score ({low:g}), so it cannot tell which to keep '
                f'dynamic: {advice}'
            )
        first = next(index for index in best if numbers[index].max() == high)
        if sizes[first] > target:
            raise NothingSelected(
                f'the best-scored group of positions, in {names[first] or "the parameter"}, has {sizes[first]} of '
                f'them, and {target} are to stay dynamic: take a finer granularity or a larger dynamic_fraction'
            )


def find_copies(layout: Layout, params, masks) -> list[str]:
    """Find the parameters whose dynamic factors are copies of their static parameter, at every dynamic position.

    Their scores are zero except for rounding errors, which would pass as different scores.
    """
    copied = jax.tree.leaves(jax.device_get(_are_copies(layout, params, masks)))
    return [name for name, found in zip(leaf_names(masks), copied, strict=True) if found]


@functools.partial(jax.jit, static_argnames='layout')
def _are_copies(layout, params, masks):
    def compare(part, mask):
        dynamic = part.dynamic_scale * part.dynamic
        copy = (part.copies_at * part.static_scale * part.static)[None]
        # A copy at another scale than 1 has been rounded.
        tolerance = 0 if part.copies_at == 1 else 4 * jnp.finfo(part.static.dtype).eps
        return jnp.all((jnp.abs(dynamic - copy) <= tolerance * jnp.abs(copy)) | ~mask[None])

    return jax.tree.map(compare, layout.read(params, masks), masks, is_leaf=is_part)
