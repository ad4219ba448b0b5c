"""Iterative Mode Partition (paper, section 3.3): T rounds that score the positions, select the best, and hand off.

    partition_step             one round on one batch, as a pure function for your own loop and devices
    partition_round            one round on a stream of scoring batches, with checks and handoff
    iterative_mode_partition   all rounds

Scoring and selection compile once: parameters, masks and the number of positions to keep are traced.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.partition.advice import check_informative, check_layout, find_copies
from pad_jax.partition.criteria import (
    get_criterion,
    mean_routing,
    measure_batches,
    measure_routing,
    score_positions,
)
from pad_jax.partition.layout import Layout, Problem, positions_of
from pad_jax.partition.masks import init_masks, leaf_names
from pad_jax.partition.selection import (
    SCOPES,
    check_fraction,
    find_competitions,
    num_dynamic_positions,
    select_positions,
)

SCHEDULES = ('exponential', 'linear', 'one_shot')
HANDOFFS = ('independent', 'mean')


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a partition that all of its rounds share.

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
        for name, allowed in (('scope', SCOPES), ('handoff', HANDOFFS)):
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
                matched = [name for name in roles if pattern and re.search(pattern, name)]
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
"""The settings of the paper."""


class Partition(NamedTuple):
    """Result: the masks of the dynamic positions, and the params, which only the handoff `mean` changes."""

    masks: Any
    params: Any


def round_fractions(dynamic_fraction: float, rounds: int = 1, schedule: str = 'exponential') -> tuple[float, ...]:
    """Return the dynamic fraction after each of the T = `rounds` rounds; the last is exactly `dynamic_fraction`.

    `exponential` keeps κ^(t/T) after round t, `linear` 1 − (1 − κ)·t/T (the reference's dyconv/prune.py,
    optax.exponential_decay(1, T, κ) and optax.polynomial_schedule(1, κ, 1, T) in float64). `one_shot` takes κ in a
    single round.

    Args:
      dynamic_fraction: κ, float in (0, 1].
      rounds: T, at least 1.
      schedule: one of `SCHEDULES`.

    >>> round_fractions(0.25, rounds=2)
    (0.5, 0.25)
    >>> round_fractions(0.5, rounds=2, schedule='linear')
    (0.75, 0.5)
    """
    check_fraction(dynamic_fraction)
    if rounds < 1 or rounds != int(rounds):
        raise ValueError(f'rounds must be at least 1{"" if rounds < 1 else " and whole"}, got {rounds}')
    if schedule not in SCHEDULES:
        raise ValueError(f'schedule must be one of {", ".join(SCHEDULES)}, got {schedule!r}')
    if schedule == 'one_shot' and rounds > 1:
        raise ValueError(f"schedule 'one_shot' has a single round, got rounds = {rounds}")
    passed = [done / rounds for done in range(1, rounds)]
    if schedule == 'exponential':
        fractions = [dynamic_fraction**part for part in passed]
    else:
        fractions = [1 - (1 - dynamic_fraction) * part for part in passed]
    return (*fractions, float(dynamic_fraction))


def round_steps(start_step: int = 0, every_steps: int = 0, rounds: int = 1) -> tuple[int, ...]:
    """Return the training steps before which the rounds come: `start_step`, then every `every_steps` steps.

    With `every_steps = 0` all rounds come at `start_step`; with `start_step = 0` before training, as in the paper.

    >>> round_steps(start_step=100, every_steps=50, rounds=3)
    (100, 150, 200)
    """
    if start_step < 0 or every_steps < 0:
        raise ValueError(f'start_step and every_steps must be at least 0, got {start_step} and {every_steps}')
    return tuple(start_step + every_steps * index for index in range(rounds))


def selection_targets(sizes: dict[str, int], dynamic_fraction: float, scope: str, layer_of=str):
    """Return the targets of `select_positions`: one number, or under scope `layer` a dict of them by layer.

    Args:
      sizes: path -> number of positions of every parameter that competes.
    """
    names = list(sizes)
    targets = {
        layer: num_dynamic_positions(sum(sizes[names[index]] for index in members), dynamic_fraction)
        for layer, members in find_competitions(names, scope, layer_of).items()
    }
    return targets if scope == 'layer' else next(iter(targets.values()), 0)


def partition_step(
    problem: Problem,
    params,
    masks,
    batch,
    targets,
    *,
    criterion='sensitivity',
    scope='global',
    key=None,
    axis_name=None,
):
    """Compute one round on one batch as a pure function: jit it, pmap it, or call it inside shard_map.

    With `axis_name` the scores are summed over that axis first, so every replica takes the same mask. Nothing checks
    the scores under a trace: see `check_informative`.

    Args:
      targets: as `select_positions` takes them, traced.

    Returns:
      The new masks.
    """
    scores = score_positions(problem, params, masks, [batch], criterion, key, axis_name)
    positions = positions_of(problem.layout, params, masks)
    return select_positions(scores, masks, targets, positions, scope, problem.layout.layer_of)


def partition_round(
    problem: Problem,
    params,
    masks,
    batches: Iterable,
    dynamic_fraction: float,
    recipe: Recipe = PAPER,
    key=None,
) -> Partition:
    """Compute one round on the host: scores over scoring batches, then selection, then the handoff.

    A static position stays static.

    Args:
      batches: scoring batches, kept in memory if they are a generator and the handoff is `mean`.
      dynamic_fraction: κ to reach with this round, float in (0, 1].
      key: jax.random.key.

    Raises:
      UninformativeScores: if the scores cannot tell which positions to keep.
      NothingSelected: if the best-scored group is larger than the dynamic fraction.
      ValueError: on a dynamic fraction out of range, params and masks that don't fit each other, or no batches.
    """
    check_layout(problem.layout, params, masks)
    batches = _keep(batches) if recipe.handoff == 'mean' else batches
    layout, scope, structure = problem.layout, recipe.scope, jax.tree.structure(masks)
    roles = recipe.find_roles(masks)

    def by_path(tree):
        """Return path -> leaf for the parameters that compete."""
        leaves = zip(roles.items(), structure.flatten_up_to(tree), strict=True)
        return {path: leaf for (path, role), leaf in leaves if role is None}

    found = zip(roles.items(), jax.tree.leaves(masks), strict=True)
    new = {path: mask if role is None else mask & role for (path, role), mask in found}
    candidates, positions = by_path(masks), by_path(positions_of(layout, params, masks))
    sizes = {path: leaf.size for path, leaf in positions.items()}
    targets = selection_targets(sizes, dynamic_fraction, scope, layout.layer_of)
    if dynamic_fraction < 1 and candidates:
        row, name = get_criterion(recipe.criterion, problem), f'criterion {recipe.criterion!r}'
        scores = by_path(score_positions(problem, params, masks, batches, recipe.criterion, key))
        copies = candidates.keys() & find_copies(layout, params, masks) if row.reads_data else ()
        scores |= {path: jnp.zeros_like(scores[path]) for path in copies}
        competition = (candidates, targets, positions, scope)
        check_informative(scores, *competition, name, row.hint, layout.layer_of, copies)
        new |= select_positions(scores, *competition, layout.layer_of)
    new_masks = structure.unflatten(new.values())
    if recipe.handoff == 'mean':
        params = hand_off_means(params, masks, new_masks, layout, _measure_means(problem, params, masks, batches))
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

    Returns:
      Partition(masks, params).

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
    if rounds > 1 and (recipe.handoff == 'mean' or get_criterion(recipe.criterion, problem).reads_data):
        batches = _keep(batches)
    key = jax.random.key(0) if key is None else key
    found = Partition(masks, params)
    for index, fraction in enumerate(fractions):
        round_key = jax.random.fold_in(key, index)
        found = partition_round(problem, found.params, found.masks, batches, fraction, recipe, round_key)
    return found


def _keep(batches):
    """Return the batches in a form that can be read twice."""
    return list(batches) if batches is not None and iter(batches) is batches else batches


def _measure_means(problem, params, masks, batches):
    """Return the mean mixing weights or values over the batches; None if the problem has no routing."""
    if problem.routing is None:
        return None
    total = measure_batches(measure_routing, problem, params, masks, batches, jax.random.key(0))
    if total is None:
        raise ValueError("handoff 'mean' needs at least one batch to measure the routing with, got none")
    return mean_routing(problem, params, masks, total)


def hand_off_means(params, old_masks, new_masks, layout: Layout, routing=None):
    """Give every position that turned static the mean of its dynamic factors:

        λs · static = λd · Σ_k ᾱ_k W_k

    So the layer computes the same as before for an input with mean mixing weights. A generated parameter takes its mean
    value: `λs · static = λd · mean value`. The value at the mean factors would differ.

    Args:
      params: as `layout` reads it.
      old_masks, new_masks: pytrees of bool; only positions that are True in the first and False in the second change.
      routing: pytree like the masks of mean weights float[K], or mean values float[*shape] of generated parameters;
        uniform weights if None.

    Raises:
      ValueError: for a generated parameter without routing, because its mean does not follow from the factors.
    """
    structure = jax.tree.structure(new_masks)

    def take_over(path, part, old, new, weights):
        if weights is None and part.generated:
            raise ValueError(f'the mean of {path} needs the values of scoring batches: give the routing')
        num_factors, dtype = part.dynamic.shape[0], part.dynamic.dtype
        weights = jnp.full(num_factors, 1 / num_factors, dtype) if weights is None else weights.astype(dtype)
        mean = weights if part.generated else jnp.tensordot(weights, part.dynamic, axes=1)
        mean = (part.dynamic_scale / part.static_scale * mean).astype(part.static.dtype)
        return jnp.where(old & ~new, mean, part.static)

    weights = [None] * structure.num_leaves if routing is None else structure.flatten_up_to(routing)
    parts = structure.flatten_up_to(layout.read(params, new_masks))
    rows = zip(leaf_names(new_masks), parts, jax.tree.leaves(old_masks), jax.tree.leaves(new_masks), weights)
    return layout.write(params, new_masks, structure.unflatten([take_over(*row) for row in rows]))
