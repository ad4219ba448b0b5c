"""Iterative Mode Partition (paper, section 3.3): T rounds of score, then select.

    partition_step             one jittable step on one batch, for code that brings its own loop and devices
    partition_round            one round over a stream of scoring batches
    iterative_mode_partition   all rounds

Scoring and selection compile once: parameters, masks and the number of positions to keep are traced.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pad_jax.partition.checks import check_distinct, check_informative, check_not_empty, check_problem
from pad_jax.partition.handoff import HANDOFFS, hand_off_means
from pad_jax.partition.masks import group_size, init_masks, leaf_names
from pad_jax.partition.problem import PLAIN, Layout, Problem, PyTree, positions_of
from pad_jax.partition.schedules import round_fractions
from pad_jax.partition.scores import get_criterion, is_moments, mean_routing, measure_routing
from pad_jax.partition.selection import (
    SCOPES,
    each_by_itself,
    find_competitions,
    num_dynamic_positions,
    select_positions,
)


class Partition(NamedTuple):
    """Result: which positions are dynamic, and the params (changed by the handoff `mean` only)."""

    masks: PyTree
    params: PyTree


class Exclusions(NamedTuple):
    """Parameters that take no part in the competition, by regular expressions searched in their path.

    The dynamic fraction then holds for the parameters that do compete.
    """

    keep_dynamic: str = ''
    keep_static: str = ''

    def roles(self, masks) -> list[bool | None]:
        """For each leaf of masks: True = stays dynamic, False = becomes static, None = competes.

        Raises:
          ValueError: when a pattern is no regular expression or matches no parameter, or when both match one.
        """
        names = leaf_names(masks)
        matched = {}
        for role, pattern in self._asdict().items():
            try:
                matched[role] = {name for name in names if pattern and re.search(pattern, name)}
            except re.error as error:
                raise ValueError(f'{role} is not a regular expression: {pattern!r} ({error})') from None
            if pattern and not matched[role]:
                raise ValueError(f'{role} = {pattern!r} matches none of the parameters {", ".join(names)}')
        for name in names:
            if name in matched['keep_dynamic'] & matched['keep_static']:
                raise ValueError(f'{name} is matched by keep_dynamic and by keep_static')
        return [
            True if name in matched['keep_dynamic'] else (False if name in matched['keep_static'] else None)
            for name in names
        ]


NO_EXCLUSIONS = Exclusions()


def selection_targets(
    positions, dynamic_fraction: float, scope: str, roles, layer_of: Callable[[str], str] = each_by_itself
):
    """Targets of `select_positions` for the competing leaves: one number, or under scope `layer` a dict by layer."""
    leaves = zip(leaf_names(positions), jax.tree.leaves(positions), roles, strict=True)
    sizes = {name: leaf.size for name, leaf, role in leaves if role is None}
    if scope == 'global':
        return num_dynamic_positions(sum(sizes.values()), dynamic_fraction)
    names = list(sizes)
    return {
        layer: num_dynamic_positions(sum(sizes[names[index]] for index in members), dynamic_fraction)
        for layer, members in find_competitions(names, scope, layer_of).items()
    }


def as_gates(masks):
    """Float copies of the masks, to be differentiated."""
    return jax.tree.map(lambda mask: mask.astype(jnp.float32), masks)


@functools.partial(jax.jit, static_argnames=('measure', 'problem', 'axis_name'))
def _measure(measure, problem, params, masks, batch, key, axis_name=None):
    gates = as_gates(masks)
    if axis_name is not None:
        # Each replica by itself, then the sum: shard_map would otherwise sum the gradient of what all replicas share
        # where it stands, pmap would not, and what isn't linear in the gradient would differ between them.
        params, gates = jax.tree.map(functools.partial(_vary, axis_name=axis_name), (params, gates))
    found = measure(problem, params, gates, batch, key)
    return found if axis_name is None else jax.lax.psum(found, axis_name)


def _vary(leaf, axis_name):
    """The same values, typed as different on each replica."""
    return jnp.where(jax.lax.axis_index(axis_name) >= 0, leaf, leaf)


@jax.jit
def _add(total, found):
    return jax.tree.map(jnp.add, total, found)


def measure_batches(measure, problem, params, masks, batches, key, axis_name=None):
    """The sum over batches (and devices) of a measurement; None if there are no batches."""
    total = None
    for batch in batches:
        found = _measure(measure, problem, params, masks, batch, key, axis_name)
        total = found if total is None else _add(total, found)
    return total


@functools.partial(jax.jit, static_argnames=('criterion', 'problem'))
def _finish(criterion, problem, params, masks, total):
    scores = criterion.finish(problem, params, masks, total)
    if not criterion.adds_up:
        return scores
    sizes = jax.tree.map(group_size, masks, positions_of(problem.layout, params, masks))
    return jax.tree.map(jnp.divide, scores, sizes)


def score_positions(
    problem: Problem,
    params,
    masks,
    batches: Iterable,
    criterion: str = 'sensitivity',
    key=None,
    axis_name=None,
):
    """Scores float[*mask] of every gate under a criterion; higher stays dynamic. A group's score is per position.

    Args:
      problem: the network.
      params: its parameters.
      masks: the masks so far; scores are taken at their gates.
      batches: scoring batches, of whatever kind `problem.loss` takes; measurements are summed over them.
      criterion: a row of `CRITERIA`.
      key: jax.random.key, for `random`; key(0) if None.
      axis_name: inside pmap or shard_map, the axis to sum the measurements over. All replicas get the same scores; but
        for `grasp`, which is not linear in the gradient, they are those of one device on all of the batch.

    Raises:
      ValueError: on an unknown criterion, or no batches for one that reads data.
    """
    row = get_criterion(criterion, problem)
    key = jax.random.key(0) if key is None else key
    if row.reads_data:
        total = measure_batches(row.measure, problem, params, masks, batches, key, axis_name)
    else:
        total = measure_batches(row.measure, problem, params, masks, [None], key)
    if total is None:
        raise ValueError(f'criterion {criterion!r} needs at least one scoring batch, got none')
    return _finish(row, problem, params, masks, total)


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
    """One round on one batch as a pure function: jit it, pmap it, or call it inside shard_map.

    With `axis_name` the scores are summed over that axis first, so that every replica takes the same mask. What
    the scores are worth can't be checked under a trace: see `check_informative`.

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
    *,
    criterion: str = 'sensitivity',
    scope: str = 'global',
    handoff: str = 'independent',
    exclusions: Exclusions = NO_EXCLUSIONS,
    key=None,
) -> Partition:
    """One round: scores over a stream of batches, then selection, then the handoff.

    A position that is static stays static. Runs on the host, calling jitted functions.

    Args:
      dynamic_fraction: κ to reach with this round, float in (0, 1].
      batches: the scoring batches, an iterable; kept in memory if it is a generator and handoff is `mean`.

    Raises:
      UninformativeScores: when the scores say nothing about which positions to keep.
      NothingSelected: when the best-scored group is larger than the dynamic fraction.
      ValueError: on unknown names, a dynamic fraction out of range, params and masks that don't fit each other, or no
        batches.
    """
    check_problem(problem, params, masks, key)
    if scope not in SCOPES:
        raise ValueError(f'scope must be one of {", ".join(SCOPES)}, got {scope!r}')
    if handoff not in HANDOFFS:
        raise ValueError(f'handoff must be one of {", ".join(HANDOFFS)}, got {handoff!r}')
    if handoff == 'mean':
        batches = _keep(batches)
    roles = exclusions.roles(masks)
    positions = positions_of(problem.layout, params, masks)
    layer_of = problem.layout.layer_of
    targets = selection_targets(positions, dynamic_fraction, scope, roles, layer_of)
    leaves, structure = jax.tree.flatten(masks)
    new_leaves = [
        mask if role is None else jnp.full_like(mask, role) & mask for mask, role in zip(leaves, roles, strict=True)
    ]
    competing = [index for index, role in enumerate(roles) if role is None]
    if dynamic_fraction < 1 and competing:
        row = get_criterion(criterion, problem)
        copies = [False] * len(leaves)
        if row.reads_data:
            copies = check_distinct(problem.layout, params, masks, competing, scope)
        scores = structure.flatten_up_to(score_positions(problem, params, masks, batches, criterion, key))
        scores = [jnp.zeros_like(score) if copied else score for score, copied in zip(scores, copies, strict=True)]
        names, shapes = leaf_names(masks), jax.tree.leaves(positions)
        scored, candidates, shapes = ({names[i]: tree[i] for i in competing} for tree in (scores, leaves, shapes))
        check_informative(scored, candidates, targets, shapes, scope, f'criterion {criterion!r}', row.hint, layer_of)
        selected = select_positions(scored, candidates, targets, shapes, scope, layer_of)
        check_not_empty(scored, candidates, selected, targets, shapes, scope, layer_of)
        for index in competing:
            new_leaves[index] = selected[names[index]]
    new_masks = structure.unflatten(new_leaves)
    if handoff == 'mean':
        params = _hand_off(problem, params, masks, new_masks, batches)
    return Partition(new_masks, params)


def _keep(batches):
    """The batches as something that can be gone through again."""
    return list(batches) if batches is not None and iter(batches) is batches else batches


def _hand_off(problem, params, old_masks, new_masks, batches):
    routing = None
    if problem.routing is not None:
        total = measure_batches(measure_routing, problem, params, old_masks, batches, jax.random.key(0))
        if total is None:
            raise ValueError("handoff 'mean' needs at least one batch to measure the routing with, got none")
        routing = jax.tree.map(mean_routing, total, is_leaf=is_moments)
    return hand_off_means(params, old_masks, new_masks, problem.layout, routing)


def iterative_mode_partition(
    loss_fn,
    params,
    batches: Iterable,
    *,
    dynamic_fraction: float,
    rounds: int = 1,
    schedule: str = 'exponential',
    criterion: str = 'sensitivity',
    scope: str = 'global',
    granularity: str = 'element',
    handoff: str = 'independent',
    keep_dynamic: str = '',
    keep_static: str = '',
    masks=None,
    layout: Layout = PLAIN,
    output_fn=None,
    routing_fn=None,
    key=None,
) -> Partition:
    """Decides which positions of any JAX network stay dynamic (paper, section 3.3 and algorithm 1).

    Args:
      loss_fn: `(params, gates, batch) -> scalar`. It builds the effective parameters from gates, with `merge` or
        `split`, and is differentiated with respect to gates.
      params: pytree; by default a dict with the stacked factors float[K, *shape] under 'dynamic' and the static
        parameters float[*shape], of the same structure, under 'static'. Another `layout` reads another tree.
      batches: the scoring batches, an iterable; a generator is kept in memory where it is needed more than once. May
        be None where neither criterion nor handoff reads data.
      dynamic_fraction: κ to end with, float in (0, 1].
      rounds, schedule: see `round_fractions`.
      criterion: a row of `CRITERIA`; `synflow` needs output_fn, `variance` needs routing_fn.
      scope: 'global' or 'layer'.
      granularity: one of `GRANULARITIES`; ignored where `masks` is given.
      handoff: 'independent' (params unchanged, the paper) or 'mean'.
      keep_dynamic, keep_static: regular expressions of parameter paths that stay out of the competition.
      masks: masks to start from, in any shapes that broadcast against the positions; all dynamic if None.
      output_fn, routing_fn: see `Problem`.
      key: jax.random.key.

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
    fractions = round_fractions(dynamic_fraction, rounds, schedule)
    problem = Problem(loss_fn, layout, output_fn, routing_fn)
    if masks is None:
        masks = init_masks(jax.tree.map(lambda leaf: leaf[0], layout.dynamic(params, None)), granularity)
    if rounds > 1 and (get_criterion(criterion, problem).reads_data or handoff == 'mean'):
        batches = _keep(batches)
    key = jax.random.key(0) if key is None else key
    partition = Partition(masks, params)
    for index, fraction in enumerate(fractions):
        partition = partition_round(
            problem,
            partition.params,
            partition.masks,
            batches,
            fraction,
            criterion=criterion,
            scope=scope,
            handoff=handoff,
            exclusions=Exclusions(keep_dynamic, keep_static),
            key=jax.random.fold_in(key, index),
        )
    return partition
