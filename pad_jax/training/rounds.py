"""Rounds of the partition within a run, and the two storages of a state.

A checkpoint holds the masked storage: full parameters plus masks, with dead entries zero, which compress away. It does
not depend on settings, and rounds need it, because they score the gates of all positions. After a round the host turns
it into the storage that is trained. That is compact if the config asks for it and no round is left. Otherwise it is
full parameters, masks, and the index of whole dynamic outputs, inputs or taps.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict

from pad_jax.data import Source
from pad_jax.layers.compact import compact_params, expand_params, index_masks, read_masks
from pad_jax.layers.factors import read_records
from pad_jax.models.accounting import count_layers, report_counts
from pad_jax.partition import (
    Layout,
    count_dynamic,
    count_positions,
    merge,
    partition_round,
    positions_of,
    round_fractions,
    walk_records,
)
from pad_jax.partition.layout import PartialParameter, read_part
from pad_jax.training.config import is_partial
from pad_jax.training.optimizer import follow_handoff, hand_off_moments
from pad_jax.training.setup import abstract_variables, make_inputs, make_recipe
from pad_jax.training.state import TrainState
from pad_jax.training.steps import find_constant_layers, make_problem, observe_batch
from pad_jax.training.tasks import Task

PyTree = Any


class Rounds:
    """Rounds of the partition of one run.

    Attributes:
      plan: (steps done before it, dynamic fraction after it) of each round; [] without a partition.

    Args:
      config: of the run.
      source: its scoring batches are a pure function of its seed and the round.
      task, temperature: see `steps.train_step`.
      model: the network without a mapped axis.
    """

    def __init__(self, config, source: Source, *, task: Task, model: nn.Module, temperature: optax.Schedule | None):
        partition, self.plan = config.partition, []
        if is_partial(config):
            fractions = round_fractions(partition.dynamic_fraction, partition.rounds, partition.schedule)
            self.plan = [(partition.start_step + i * partition.every_steps, part) for i, part in enumerate(fractions)]
        records = read_records(abstract_variables(model, make_inputs(config)).get('intermediates', {}))
        self._network, self._problem = (task, model), make_problem(task, model, Layout.of(records))
        self._recipe, self._scoring = make_recipe(config), (partition.batches, partition.batch_size)
        self._source, self._temperature, self._prunes = source, temperature, partition.prune

    def due(self, step: int) -> list[float]:
        """Dynamic fractions of the rounds due after `step` steps, in order."""
        return [fraction for at, fraction in self.plan if at == step]

    def run(
        self, state: TrainState, dynamic_fraction: float, note: Callable[[str], None] = str
    ) -> tuple[TrainState, dict[str, float]]:
        """Run the next round on a masked state that lives on one device, to reach a dynamic fraction.

        Only that device computes, over the same examples by the same program however many devices train. So the masks
        do not depend on the number of devices: sums over devices would round differently.

        Args:
          note: called with a line before each scoring batch.

        Returns:
          (new state, values to log): round, dynamic_fraction, and the mean loss over the scoring batches right before
          and right after the round.
        """
        done, (count, size) = int(state.round), self._scoring
        batches = [self._source.scoring_batch(done * count + number, size) for number in range(count)]
        current = jnp.float32(self._temperature(state.step)) if self._temperature else None
        scoring = batches if current is None else [{**batch, 'temperature': current} for batch in batches]
        problem, key = self._problem, jax.random.fold_in(state.key, done)
        masks, params = partition_round(
            problem, state.params, state.masks, _Noted(scoring, note), dynamic_fraction, self._recipe, key
        )
        positions = positions_of(problem.layout, params, masks)
        values = {'round': done + 1, 'dynamic_fraction': count_dynamic(masks, positions) / count_positions(positions)}
        after = state.replace(masks=masks, params=params, round=state.round + 1)
        for name, one in (('loss_before', state), ('loss_after', after)):
            losses = (observe_batch(*self._network, _variables(one), batch, current)[0] for batch in batches)
            values[name] = sum(map(float, losses)) / count
        if average := state.average:
            average = {**average, 'params': follow_handoff(average['params'], state.params, params)}
            after = after.replace(average=average)
        if not self._prunes:
            moments = hand_off_moments(state.optimizer_state, problem.layout, params, state.masks, masks)
            after = after.replace(optimizer_state=moments)
        return after, values

    def find_constant(self, state: TrainState) -> list[str]:
        """Find the layers of a masked state that give every input of the first scoring batch the same parameters."""
        size = max(self._scoring[1], 2)  # a single input does not vary
        batch = self._source.scoring_batch(0, min(size, self._source.spec.num_train))
        temperature = jnp.float32(1) if self._temperature else None  # above it, rounding could hide a difference
        return find_constant_layers(*self._network, _variables(state.replace(**state.average)), batch, temperature)


@dataclasses.dataclass(frozen=True)
class _Noted:
    """Scoring batches that are announced when they are read."""

    batches: list
    note: Callable[[str], None]

    def __iter__(self):
        for number, batch in enumerate(self.batches, 1):
            self.note(f'scoring batch {number} of {len(self.batches)}')
            yield batch


def _variables(state: TrainState) -> dict[str, Any]:
    return {'params': state.params, 'partition': state.masks}


def summarize_partition(
    config: ml_collections.ConfigDict, shapes: Mapping[str, Any], masks: PyTree, rounds_done: int
) -> dict[str, Any]:
    """Contents of partition.json: every dynamic layer, the totals, and the rounds done.

    Args:
      shapes: of `setup.abstract_variables`.
      masks: their values.
    """
    partition = config.partition
    granularity, rounds = (partition.granularity, partition.rounds) if is_partial(config) else ('none', 0)
    layers = count_layers({**shapes, 'partition': jax.device_get(masks)})
    dynamic = [layer for layer in layers if layer.num_factors]
    rows = [{'name': layer.name, 'granularity': granularity, **report_counts([layer])} for layer in dynamic]
    return {'layers': rows, 'totals': report_counts(layers), 'rounds_done': rounds_done, 'rounds': rounds}


def walk_factors(state: TrainState) -> Iterator[tuple[str, PartialParameter, jax.Array]]:
    """Iterate over (path of the factors, record, factors [K, ...] with the static part merged in) of a masked state."""
    masks = flatten_dict(state.masks, sep='/')
    for path, record in walk_records(state.records):
        *module, _ = path.split('/')
        part = read_part(record, functools.reduce(operator.getitem, module, state.params))
        factors = part.dynamic
        if path in masks:
            factors = merge(factors, part.static, masks[path], part.dynamic_scale, part.static_scale)
        yield '/'.join([*module, record.factors]), record, factors


@jax.jit
def compare_experts(state: TrainState) -> dict[str, jax.Array]:
    """Measure `expert_similarity`: the mean over pairs of experts of the cosine of their effective parameters.

    It is 1 for copies or a single expert, near 0 for independent draws, and a mean over all mixtures.

    Returns:
      {} without mixtures.
    """
    found = []
    for _, record, experts in walk_factors(to_masked_storage(state)):
        if record.experts:
            num_pairs = len(experts) * (len(experts) - 1)
            flat = experts.reshape(len(experts), -1).astype(jnp.float32)
            unit = flat / jnp.maximum(jnp.linalg.norm(flat, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
            cosines = jnp.sum(jnp.square(unit.sum(0))) - jnp.sum(jnp.square(unit))
            found.append(cosines / num_pairs if num_pairs else 1.0)
    return {'expert_similarity': sum(found) / len(found)} if found else {}


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
