"""Rounds of the partition within a run, and the two storages of a state.

A checkpoint holds the masked storage: full parameters plus masks, with dead entries zero, which compress away. It does
not depend on settings, and rounds need it, because they score the gates of all positions. After a round the host turns
it into the storage that is trained. That is compact if the config asks for it and no round is left. Otherwise it is
full parameters, masks, and the index of whole dynamic outputs, inputs or taps.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn

from pad_jax.data import Source
from pad_jax.layers.compact import compact_params, expand_params, index_masks, read_masks
from pad_jax.layers.factors import read_records
from pad_jax.models.accounting import count_layers, report_counts
from pad_jax.partition import (
    Layout,
    Problem,
    as_gates,
    count_dynamic,
    count_positions,
    merge,
    partition_round,
    positions_of,
    round_fractions,
)
from pad_jax.partition.layout import Part, read_part
from pad_jax.training.config import is_partial
from pad_jax.training.optimizer import follow_handoff
from pad_jax.training.setup import abstract_variables, make_inputs, make_recipe
from pad_jax.training.state import TrainState
from pad_jax.training.steps import make_problem
from pad_jax.training.tasks import Task

PyTree = Any


class Rounds:
    """Rounds of the partition of one run.

    Attributes:
      plan: of `plan_rounds`.
      model, inputs: the network without a mapped axis, and the shapes it is initialised with.

    Args:
      config: of the run.
      source: its scoring batches are a pure function of its seed and the round.
      task, temperature: see `steps.train_step`.
    """

    def __init__(self, config, source: Source, *, task: Task, model: nn.Module, temperature: optax.Schedule | None):
        self.plan = plan_rounds(config)
        self.model, self.inputs = model, make_inputs(config)
        self._shapes = abstract_variables(model, self.inputs)
        self._problem = make_problem(task, model, Layout.of(read_records(self._shapes.get('intermediates', {}))))
        self._recipe = make_recipe(config)
        self._scoring = config.partition.batches, config.partition.batch_size
        self._granularity = config.partition.granularity if is_partial(config) else 'none'
        self._source, self._temperature = source, temperature

    def due(self, step: int) -> list[float]:
        """Dynamic fractions of the rounds due after `step` steps, in order."""
        return [fraction for at, fraction in self.plan if at == step]

    def run(self, state: TrainState, dynamic_fraction: float) -> tuple[TrainState, dict[str, float]]:
        """Run the next round on a masked state that lives on one device, to reach a dynamic fraction.

        Only that device computes, over the same examples by the same program however many devices train. So the masks
        do not depend on the number of devices: sums over devices would round differently.

        Returns:
          (new state, values to log): round, dynamic_fraction, and the mean loss over the scoring batches right before
          and right after the round.
        """
        done, (count, size) = int(state.round), self._scoring
        scoring = [self._source.scoring_batch(done * count + number, size) for number in range(count)]
        if self._temperature:
            current = jnp.asarray(self._temperature(state.step), jnp.float32)
            scoring = [{**batch, 'temperature': current} for batch in scoring]
        problem, key = self._problem, jax.random.fold_in(state.key, done)
        masks, params = partition_round(
            problem, state.params, state.masks, scoring, dynamic_fraction, self._recipe, key
        )
        positions = positions_of(problem.layout, params, masks)
        values = {'round': done + 1, 'dynamic_fraction': count_dynamic(masks, positions) / count_positions(positions)}
        for name, variables in (('loss_before', (state.params, state.masks)), ('loss_after', (params, masks))):
            values[name] = sum(float(_loss(problem, *variables, batch)) for batch in scoring) / count
        average = state.average
        if average:
            average = {**average, 'params': follow_handoff(average['params'], state.params, params)}
        return state.replace(masks=masks, params=params, round=state.round + 1, average=average), values

    def summarize(self, state: TrainState) -> dict[str, Any]:
        """Contents of partition.json for a masked state."""
        return summarize_partition(self._shapes, state.masks, self._granularity, int(state.round), len(self.plan))


def plan_rounds(config: ml_collections.ConfigDict) -> list[tuple[int, float]]:
    """Plan the rounds of a run: (steps done before it, dynamic fraction after it) of each; [] without a partition."""
    if not is_partial(config):
        return []
    partition = config.partition
    fractions = round_fractions(partition.dynamic_fraction, partition.rounds, partition.schedule)
    return [(partition.start_step + done * partition.every_steps, fraction) for done, fraction in enumerate(fractions)]


@jax.jit(static_argnums=0)
def _loss(problem: Problem, params, masks, batch):
    return problem.loss(params, as_gates(masks), batch)


def summarize_partition(
    shapes: Mapping[str, Any], masks, granularity: str, rounds_done: int, rounds: int
) -> dict[str, Any]:
    """Contents of partition.json: every dynamic layer, the totals, and the rounds done.

    Args:
      shapes: of `setup.abstract_variables`.
      masks: their values.
      granularity: of the masks; 'none' if no layer is partially dynamic.
    """
    layers = count_layers({**shapes, 'partition': jax.device_get(masks)})
    dynamic = [layer for layer in layers if layer.num_factors]
    rows = [{'name': layer.name, 'granularity': granularity, **report_counts([layer])} for layer in dynamic]
    return {'layers': rows, 'totals': report_counts(layers), 'rounds_done': rounds_done, 'rounds': rounds}


def compare_experts(state: TrainState) -> dict[str, float]:
    """Measure `expert_similarity` of a state, the mean over all mixtures; {} without mixtures."""
    state = to_masked_storage(state)
    found = _measure_similarity(state.params, state.masks, state.records)
    return {'expert_similarity': float(jnp.mean(jnp.stack(found)))} if found else {}


@jax.jit
def _measure_similarity(params, masks, records):
    found = []
    for name, record in records.items():
        if isinstance(record, Mapping):
            found += _measure_similarity(params[name], masks.get(name, {}), record)
        elif record.experts:
            found.append(expert_similarity(read_part(record, params), masks.get(name)))
    return found


def expert_similarity(part: Part, mask: jax.Array | None = None) -> jax.Array:
    """Compute the mean over pairs of experts of the cosine of their effective parameters, float32 in [−1, 1].

    It is 1 for copies or a single expert, and near 0 for independent draws.

    Args:
      part: experts float[E, *shape], static parameter and scale factors.
      mask: of the dynamic positions, or None for a fully dynamic layer.

    >>> experts = jnp.array([[1., 0.], [1., 0.], [0., 1.]])  # cosines of the pairs: 1, 0, 0
    >>> round(float(expert_similarity(Part(experts, jnp.zeros(2)))), 6)
    0.333333
    """
    factors, num_experts = part.dynamic, part.dynamic.shape[0]
    if num_experts == 1:
        return jnp.ones((), jnp.float32)
    if mask is not None:
        factors = merge(factors, part.static, mask, part.dynamic_scale, part.static_scale)
    flat = factors.reshape(num_experts, -1).astype(jnp.float32)
    products = jnp.dot(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
    lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(products), jnp.finfo(jnp.float32).tiny))
    cosines = products / lengths[:, None] / lengths[None, :]
    off_diagonal = 1 - jnp.eye(num_experts)
    return jnp.sum(cosines * off_diagonal) / (num_experts * (num_experts - 1))


def to_trained_storage(state: TrainState, rounds: int, compact: bool) -> TrainState:
    """Turn a masked state into the storage that steps run on; they compile again for its shapes.

    Args:
      rounds: of the whole run.
      compact: drop dead entries after the last round.
    """
    done = int(state.round)
    if not state.masks or not done:
        return state
    if not compact or done < rounds:
        return state.replace(index=index_masks(state.masks))
    masks = jax.device_get(state.masks)
    compacted = _map_params(state, lambda params: compact_params(params, masks, state.records))
    return compacted.replace(masks={}, index=index_masks(masks, with_elements=True))


def to_masked_storage(state: TrainState) -> TrainState:
    """Invert `to_trained_storage`; dropped entries come back as zeros."""
    if state.masks or not state.index:
        return state.replace(index={})
    expanded = _map_params(state, lambda params: expand_params(params, state.index, state.records))
    return expanded.replace(masks=read_masks(state.index, state.records), index={})


def _map_params(state: TrainState, change) -> TrainState:
    """Change everything with an entry for each parameter: momentum and averages too."""
    structure = jax.tree.structure(state.params)

    def is_like_params(tree):
        return jax.tree.structure(tree) == structure

    fields = {name: getattr(state, name) for name in ('params', 'optimizer_state', 'average')}
    changed = jax.tree.map(
        lambda found: change(found) if is_like_params(found) else found, fields, is_leaf=is_like_params
    )
    return state.replace(**jax.tree.map(jnp.asarray, changed))
