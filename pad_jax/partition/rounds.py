"""Iterative Mode Partition (paper, section 3.3): T rounds that score the positions, select the best, and hand off.

    partition_step             one round on one batch, as a pure function for your own loop and devices
    partition_round            one round on a stream of scoring batches, with checks and handoff
    iterative_mode_partition   all rounds

Scoring and selection compile once: parameters, masks and the number of positions to keep are traced.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pad_jax.partition.criteria import CRITERIA, NO_GRADIENT, mean_routing, score_positions
from pad_jax.partition.layout import Layout, Problem, check_layout, positions_of
from pad_jax.partition.masks import group_size, init_masks, leaf_names
from pad_jax.partition.selection import SCOPES, find_competitions, num_dynamic_positions, select_positions

SCHEDULES = ('exponential', 'linear', 'one_shot')
HANDOFFS = ('independent', 'mean')


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a partition that all of its rounds share; the defaults are those of the paper.

    Attributes:
      criterion: a row of `CRITERIA`.
      scope: one of `SCOPES`: positions compete over the whole network, or within their layer.
      handoff: initial value of a static parameter, one of `HANDOFFS`: 'independent' keeps its own initial draw, as in
        the paper; 'mean' takes the mean of the factors.
      keep_dynamic, keep_static: regular expressions, searched in the paths of the parameters. A parameter that matches
        does not compete, and κ holds for the others. '' matches none.
    """

    criterion: str = 'sensitivity'
    scope: str = 'global'
    handoff: str = 'independent'
    keep_dynamic: str = ''
    keep_static: str = ''

    def __post_init__(self):
        for name, allowed in (('criterion', CRITERIA), ('scope', SCOPES), ('handoff', HANDOFFS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f'{name} must be one of {", ".join(allowed)}, got {getattr(self, name)!r}')

    def find_roles(self, tree) -> dict[str, bool | None]:
        """Return for each path of a tree: True if it stays dynamic, False if it becomes static, None if it competes.

        Raises:
          ValueError: if a pattern is not a regular expression or matches no parameter, or if both match one.
        """
        roles = dict.fromkeys(leaf_names(tree))
        for key, role in (('keep_dynamic', True), ('keep_static', False)):
            pattern = getattr(self, key)
            try:
                # The mask of a parameter in Flax is named after it.
                matched = [name for name in roles if pattern and re.search(pattern, name.removesuffix('_mask'))]
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f'{key} is not a regular expression: {pattern!r} ({error})') from None
            if pattern and not matched:
                raise ValueError(f'{key} = {pattern!r} matches none of the parameters {", ".join(roles)}')
            for name in matched:
                if roles[name] is not None:
                    raise ValueError(f'{name} is matched by keep_dynamic and by keep_static')
                roles[name] = role
        return roles


PAPER = Recipe()


class Partition(NamedTuple):
    """Result: the masks of the dynamic positions, and the params, which only the handoff `mean` changes."""

    masks: Any
    params: Any


def round_fractions(dynamic_fraction: float, rounds: int = 1, schedule: str = 'exponential') -> tuple[float, ...]:
    """Return the dynamic fraction after each of the T = `rounds` rounds; the last is κ = `dynamic_fraction` in (0, 1].

    `exponential` keeps κ^(t/T) after round t, `linear` 1 − (1 − κ)·t/T (the reference's dyconv/prune.py,
    optax.exponential_decay(1, T, κ) and optax.polynomial_schedule(1, κ, 1, T) in float64). `one_shot` takes κ in a
    single round. `SCHEDULES` lists them.

    >>> round_fractions(0.25, rounds=2)
    (0.5, 0.25)
    >>> round_fractions(0.5, rounds=2, schedule='linear')
    (0.75, 0.5)
    """
    num_dynamic_positions(1, dynamic_fraction)  # refuses other numbers
    if rounds < 1 or rounds != int(rounds):
        raise ValueError(f'rounds must be at least 1{"" if rounds < 1 else " and whole"}, got {rounds}')
    if schedule not in SCHEDULES:
        raise ValueError(f'schedule must be one of {", ".join(SCHEDULES)}, got {schedule!r}')
    if schedule == 'one_shot' and rounds > 1:
        raise ValueError(f"schedule 'one_shot' has a single round, got rounds = {rounds}")
    passed = [done / rounds for done in range(1, rounds)]
    if schedule == 'exponential':
        return (*(dynamic_fraction**part for part in passed), float(dynamic_fraction))
    return (*(1 - (1 - dynamic_fraction) * part for part in passed), float(dynamic_fraction))


class PartitionError(ValueError):
    """A partition is not possible: the best-scored group is too large, or the scores are uninformative."""


class UninformativeScores(PartitionError):
    """The scores cannot tell which positions to keep dynamic."""


def partition_step(
    problem, params, masks, batch, targets, *, criterion='sensitivity', scope='global', key=None, axis_name=None
):
    """Compute one round on one batch as a pure function: jit it, pmap it, or call it inside shard_map.

    With `axis_name` the scores are summed over that axis first, so every replica takes the same mask. Nothing checks
    the scores under a trace: see `check_informative`.

    Args:
      problem: a `Problem`.
      targets: as `select_positions` takes them, traced.

    Returns:
      The new masks.
    """
    scores = score_positions(problem, params, masks, [batch], criterion, key, axis_name)
    positions = positions_of(problem.layout, params, masks)
    return select_positions(scores, masks, targets, positions, scope, problem.layout.layer_of)


def partition_round(
    problem: Problem, params, masks, batches: Iterable, dynamic_fraction: float, recipe: Recipe = PAPER, key=None
) -> Partition:
    """Compute one round on the host: scores over scoring batches, then selection, then the handoff.

    A static position stays static.

    Args:
      batches: scoring batches, kept in memory if they are a generator and the handoff is `mean`.
      dynamic_fraction: κ to reach with this round, float in (0, 1].
      key: jax.random.key.

    Raises:
      UninformativeScores: if the scores cannot tell which positions to keep.
      PartitionError: if the best-scored group is larger than the dynamic fraction.
      ValueError: on a dynamic fraction out of range, params and masks that don't fit each other, or no batches.
    """
    layout, roles, structure = problem.layout, recipe.find_roles(masks), jax.tree.structure(masks)
    check_layout(layout, params, masks)
    if recipe.handoff == 'mean' and isinstance(batches, Iterator):
        batches = list(batches)

    def by_path(tree):
        """Return path -> leaf for the parameters that compete."""
        leaves = zip(roles, structure.flatten_up_to(tree), strict=True)
        return {path: leaf for path, leaf in leaves if roles[path] is None}

    leaves = zip(roles.items(), jax.tree.leaves(masks), strict=True)
    new = {path: mask if role is None else mask & role for (path, role), mask in leaves}
    candidates, positions = by_path(masks), by_path(positions_of(layout, params, masks))
    competitions = find_competitions(candidates, recipe.scope, layout.layer_of)
    sizes = {layer: sum(positions[path].size for path in paths) for layer, paths in competitions.items()}
    targets = {layer: num_dynamic_positions(size, dynamic_fraction) for layer, size in sizes.items()}
    if dynamic_fraction < 1 and candidates:
        row = CRITERIA[recipe.criterion]
        scores = score_positions(problem, params, masks, batches, recipe.criterion, key)
        scores = by_path(silence_copies(scores, params, masks, layout) if row.needs and not row.of_factors else scores)
        targets = targets if recipe.scope == 'layer' else targets.popitem()[1]
        competition = scores, candidates, targets, positions, recipe.scope, layout.layer_of
        check_informative(*competition, f'criterion {recipe.criterion!r}', row.hint)
        new |= select_positions(*competition)
    new_masks = structure.unflatten(new.values())
    if recipe.handoff == 'mean':
        routing = mean_routing(problem, params, masks, batches) if problem.routing else None
        params = hand_off_means(params, masks, new_masks, layout, routing)
    return Partition(new_masks, params)


def iterative_mode_partition(
    loss_fn: Callable | Problem,
    params,
    batches: Iterable,
    *,
    dynamic_fraction: float,
    rounds: int = 1,
    schedule: str = 'exponential',
    granularity: str = 'element',
    masks=None,
    key=None,
    **recipe,
) -> Partition:
    """Decide which positions of any JAX network stay dynamic (paper, section 3.3 and algorithm 1).

    Args:
      loss_fn: `(params, gates, batch) -> scalar`. It builds the effective parameters from gates, with `merge` or
        `split`, and is differentiated with respect to gates. A `Problem` adds a layout, an output and a routing.
      params: pytree; by default a dict with the factors `float[K, *shape]` under 'dynamic' and the static parameters
        `float[*shape]` under 'static'. A `Problem` with another layout reads others.
      batches: the scoring batches; a generator is kept in memory if it is needed more than once. None is allowed if
        neither criterion nor handoff reads data.
      dynamic_fraction: κ to end with, float in (0, 1].
      rounds, schedule: see `round_fractions`.
      granularity: one of `GRANULARITIES`; ignored if `masks` is given.
      masks: masks to start from, in any shapes that broadcast against the positions; all dynamic if None.
      key: jax.random.key.
      recipe: fields of `Recipe`: criterion, scope, handoff, keep_dynamic, keep_static.

    Raises:
      UninformativeScores, ValueError: see `partition_round` and `round_fractions`.

    >>> params = {'dynamic': jnp.array([[1., 2., 4.], [1., 2., 4.]]), 'static': jnp.zeros(3)}
    >>> def loss_fn(params, gates, batch):
    ...     return jnp.sum(batch * gates * params['dynamic'].mean(0))
    >>> iterative_mode_partition(loss_fn, params, [jnp.ones(3)], dynamic_fraction=1/3).masks.tolist()
    [False, False, True]
    """
    problem = loss_fn if isinstance(loss_fn, Problem) else Problem(loss_fn)
    recipe, fractions = Recipe(**recipe), round_fractions(dynamic_fraction, rounds, schedule)
    if masks is None:
        masks = init_masks(positions_of(problem.layout, params, None), granularity)
    reads_data = recipe.handoff == 'mean' or CRITERIA[recipe.criterion].needs
    if rounds > 1 and reads_data and isinstance(batches, Iterator):
        batches = list(batches)
    key = jax.random.key(0) if key is None else key
    for index, fraction in enumerate(fractions):
        round_key = jax.random.fold_in(key, index)
        masks, params = partition_round(problem, params, masks, batches, fraction, recipe, round_key)
    return Partition(masks, params)


@functools.partial(jax.jit, static_argnames='layout')
def silence_copies(scores, params, masks, layout: Layout):
    """Set the scores of a parameter to zero if its factors are copies of the static one.

    They are rounding errors, which would pass as different scores. Only dynamic positions are compared.
    """

    def silence(mask, part, score):
        dynamic = part.dynamic_scale * part.dynamic
        copy = (part.copies_at * part.static_scale * part.static)[None]
        # A copy at another scale than 1 has been rounded.
        tolerance = 0 if part.copies_at == 1 else 4 * jnp.finfo(part.static.dtype).eps
        is_copy = (jnp.abs(dynamic - copy) <= tolerance * jnp.abs(copy)) | ~mask[None]
        return jnp.where(jnp.all(is_copy), 0, score)

    return jax.tree.map(silence, masks, layout.read(params, masks), scores)


def check_informative(
    scores,
    masks,
    targets,
    positions,
    scope: str = 'global',
    layer_of: Callable[[str], str] = str,
    criterion: str = 'the criterion',
    hint: str = NO_GRADIENT,
) -> None:
    """Raise an error with advice if the scores would not decide a selection, or if it would keep nothing.

    Under scope `layer` each layer is checked. A single score passes. Values are read, so call it outside of jit.

    Args:
      scores, masks, targets, positions, scope, layer_of: as `select_positions` takes them.
      criterion: its name in the message.
      hint: the cause of equal scores and its remedy, in the message.

    Raises:
      UninformativeScores: if all competing scores are equal (zero, above all). Also if NaN leaves fewer than the
        target, or more than the target are infinite.
      PartitionError: if the best-scored group has more positions than the target.
    """
    paths, structure = leaf_names(masks), jax.tree.structure(masks)
    sizes = dict(zip(paths, jax.tree.leaves(jax.tree.map(group_size, masks, positions)), strict=True))
    leaves = zip(structure.flatten_up_to(scores), jax.tree.leaves(masks), strict=True)
    competing = [np.asarray(score, np.float32)[np.asarray(mask, bool)] for score, mask in leaves]
    competing = {path: values for path, values in zip(paths, competing, strict=True) if values.size}
    for layer, members in find_competitions(competing, scope, layer_of).items():
        gates = [(leaf.size, np.isnan(leaf).sum(), np.isposinf(leaf).sum()) for leaf in map(competing.get, members)]
        total, nan, infinite = np.dot([sizes[path] for path in members], gates)
        target = int(targets if scope == 'global' else targets[layer])
        wanted = max(1, min(target, total))
        if total - nan < wanted or infinite > wanted:
            raise UninformativeScores(
                f'{criterion} gave NaN for {nan} and infinity for {infinite} of the {total} positions of {layer}, and '
                f'{wanted} must stay dynamic. Look for NaN or an overflow in the loss, lower the temperature or the '
                "learning rate, or take criterion 'magnitude'"
            )
        values = np.concatenate([competing[path] for path in members])
        low, high = np.nanmin(values), np.nanmax(values)
        if low == high and np.count_nonzero(values == high) > 1:
            raise UninformativeScores(
                f'{criterion} gave every position of {layer} the same score ({low:g}), so it cannot tell which to keep '
                f'dynamic: {hint}'
            )
        first = next(path for path in members if np.any(competing[path] == high))
        if sizes[first] > target:
            name = first.removesuffix('_mask')
            raise PartitionError(
                f'the best-scored group of positions, in {name or "the parameter"}, has {sizes[first]} of them, and '
                f'{target} are to stay dynamic: take a finer granularity or a larger dynamic_fraction'
            )


def hand_off_means(params, old_masks, new_masks, layout: Layout, routing=None):
    """Give every position that turned static the mean of its dynamic factors:

        λs · static = λd · Σ_k ᾱ_k W_k

    So the layer computes the same as before for an input with mean mixing weights. Those of experts are divided by
    their sum, because a mixture multiplies the static part by that too. A generated parameter takes its mean value:
    `λs · static = λd · mean value`. The value at the mean factors would differ.

    Args:
      params: as `layout` reads it.
      old_masks, new_masks: pytrees of bool; only positions that are True in the first and False in the second change.
      routing: pytree like the masks of mean weights float[K], or mean values float[*shape] of generated parameters;
        uniform weights if None.

    Raises:
      ValueError: for a generated parameter without routing, because its mean does not follow from the factors.
    """

    def take_over(old, new, part, mean):
        if mean is None and part.generated:
            raise ValueError('the mean of a generated parameter needs the values of scoring batches: give the routing')
        if mean is None:
            mean = part.dynamic.mean(0)
        elif not part.generated:
            mean = mean / mean.sum() if part.experts else mean
            mean = jnp.tensordot(mean.astype(part.dynamic.dtype), part.dynamic, axes=1)
        mean = (part.dynamic_scale / part.static_scale * mean).astype(part.static.dtype)
        return jnp.where(old & ~new, mean, part.static)

    routing = jax.tree.map(lambda mask: None, new_masks) if routing is None else routing
    static = jax.tree.map(take_over, old_masks, new_masks, layout.read(params, new_masks), routing)
    return layout.write(params, new_masks, static)
