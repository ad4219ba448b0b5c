"""The partition within a run: when its rounds come, one round on a TrainState, and what partition.json says."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pad_jax.data import ImageSource, TextSource
from pad_jax.partition import (
    Exclusions,
    Problem,
    as_gates,
    count_dynamic,
    count_layers,
    count_positions,
    partition_round,
    positions_of,
    report_counts,
    round_fractions,
    round_steps,
)
from pad_jax.training.optimizer import follow_handoff
from pad_jax.training.state import TrainState


def plan_rounds(
    *, dynamic_fraction: float, rounds: int, schedule: str, start_step: int, every_steps: int
) -> list[tuple[int, float]]:
    """(steps done before it, dynamic fraction after it) of every round.

    >>> plan_rounds(dynamic_fraction=0.25, rounds=2, schedule='exponential', start_step=10, every_steps=5)
    [(10, 0.5), (15, 0.25)]
    """
    fractions = round_fractions(dynamic_fraction, rounds, schedule)
    return list(zip(round_steps(start_step, every_steps, rounds), fractions, strict=True))


def partition_state(
    state: TrainState,
    dynamic_fraction: float,
    *,
    problem: Problem,
    source: ImageSource | TextSource,
    temperature: optax.Schedule | None,
    batches: int,
    batch_size: int,
    criterion: str,
    scope: str,
    handoff: str,
    exclusions: Exclusions,
) -> tuple[TrainState, dict[str, float]]:
    """The next round of a run, on a state that lives on one device.

    It runs on that device alone, over the same examples by the same program however many devices train. So the mask
    is the same on all of them, and doesn't depend on their number: sums over devices would round differently.

    Args:
      dynamic_fraction: κ to reach.
      problem: of `steps.make_problem`.
      source: gives the scoring batches, a pure function of its seed and the round.
      temperature: attention temperature over steps; None where the network takes none.
      batches, batch_size: how many scoring batches of how many examples.

    Returns:
      (new state, values to log): round, dynamic_fraction, and the mean loss over the scoring batches right before and
      right after the round.
    """
    done = int(state.round)
    heat = {} if temperature is None else {'temperature': jnp.asarray(temperature(state.step), jnp.float32)}
    scoring = [{**source.scoring_batch(done * batches + number, batch_size), **heat} for number in range(batches)]
    masks, params = partition_round(
        problem,
        state.params,
        state.masks,
        scoring,
        dynamic_fraction,
        criterion=criterion,
        scope=scope,
        handoff=handoff,
        exclusions=exclusions,
        key=jax.random.fold_in(state.key, done),
    )
    positions = positions_of(problem.layout, params, masks)
    values = {
        'round': done + 1,
        'dynamic_fraction': count_dynamic(masks, positions) / count_positions(positions),
        'loss_before': _mean_loss(problem, state.params, state.masks, scoring),
        'loss_after': _mean_loss(problem, params, masks, scoring),
    }
    average = state.average
    if average:
        average = {**average, 'params': follow_handoff(average['params'], state.params, params)}
    return state.replace(masks=masks, params=params, round=state.round + 1, average=average), values


def _mean_loss(problem: Problem, params, masks, batches) -> float:
    return sum(float(_loss(problem, params, masks, batch)) for batch in batches) / len(batches)


@jax.jit(static_argnums=0)
def _loss(problem, params, masks, batch):
    return problem.loss(params, as_gates(masks), batch)


def summarize_partition(
    shapes: Mapping[str, Any], masks, granularity: str, rounds_done: int, rounds: int
) -> dict[str, Any]:
    """What partition.json holds: every dynamic layer, the totals, and how far the partition is.

    Args:
      shapes: of `setup.abstract_variables`.
      masks: their values.
      granularity: of the masks; 'none' where no layer is partially dynamic.
    """
    layers = count_layers({**shapes, 'partition': jax.device_get(masks)})
    return {
        'layers': [
            {'name': layer.name, 'granularity': granularity, **report_counts([layer])}
            for layer in layers
            if layer.num_factors
        ],
        'totals': report_counts(layers),
        'rounds_done': rounds_done,
        'rounds': rounds,
    }
