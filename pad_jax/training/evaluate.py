"""A stored run, opened to be evaluated or exported: its latest checkpoint, on one device. Its data may be gone."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from pad_jax.data import Source, score
from pad_jax.errors import BadInput
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.config import read_workdir_config
from pad_jax.training.devices import Replicas
from pad_jax.training.processes import AgreedProblem
from pad_jax.training.rounds import to_trained_storage
from pad_jax.training.setup import (
    Lengths,
    make_inputs,
    make_model,
    make_run_optimizer,
    make_task,
    make_temperature,
    measure_lengths,
    open_source,
)
from pad_jax.training.state import TrainState, abstract_state
from pad_jax.training.steps import eval_step
from pad_jax.training.workdir import DataRecord, describe_classes, read_data

logger = logging.getLogger(__name__)


class StoredRun(NamedTuple):
    """Contents of a workdir.

    Attributes:
      config: of the run.
      record: the data that it was trained on.
      lengths: of the run.
      state: of the latest sound checkpoint, in the masked storage.
    """

    config: ml_collections.ConfigDict
    record: DataRecord
    lengths: Lengths
    state: TrainState


class RestoredRun(NamedTuple):
    """A stored run whose network can be applied.

    Attributes:
      config, record: of `StoredRun`.
      state: of the latest sound checkpoint, placed on the replicas.
      eval_step: mapped over them.
      replicas: one device.
    """

    config: ml_collections.ConfigDict
    record: DataRecord
    state: TrainState
    eval_step: Callable
    replicas: Replicas


def restore_run(workdir: Path, overrides: Sequence[str] = ()) -> RestoredRun:
    """Read the run in workdir like `read_stored`, and compile its evaluation step."""
    config, record, lengths, state = read_stored(workdir, overrides)
    state = to_trained_storage(state, config.partition.rounds, config.partition.compact)
    replicas = Replicas(config.parallel, jax.local_devices()[:1])
    arguments = {'task': make_task(config), 'temperature': make_temperature(config, lengths)}
    step = replicas.map_step(eval_step, donate=False, model=make_model(config), **arguments)
    return RestoredRun(config, record, replicas.place_state(state), step, replicas)


def read_stored(workdir: Path, overrides: Sequence[str] = ()) -> StoredRun:
    """Read the run in workdir.

    Args:
      overrides: 'section.key=value' for keys that are free on resume.

    Raises:
      BadInput: workdir contains no run, or no checkpoint that fits it.
    """
    config = read_workdir_config(workdir, overrides)
    record, model = read_data(workdir), make_model(config)
    # From the data of training: the temperature at a step depends on the length of an epoch.
    lengths = measure_lengths(config, record.num_train)
    checkpoints = Checkpoints(workdir / 'checkpoints')
    averaged = config.optim.ema_decay > 0
    like = abstract_state(model, make_run_optimizer(config, lengths), make_inputs(config), averaged)
    state = checkpoints.restore_newest(like)
    for line in checkpoints.describe_damage():
        logger.warning(line)
    checkpoints.close()
    return StoredRun(config, record, lengths, state)


def evaluate_workdir(workdir: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate the latest checkpoint of a run on one device.

    Args:
      overrides: 'section.key=value' for keys that are free on resume, as data.path if the data has moved.

    Raises:
      BadInput: workdir contains no run or no checkpoint, its data is gone, or the data has other classes.
    """
    run = restore_run(workdir, overrides)
    source = open_source(run.config, workdir)
    differing = describe_classes(run.record.class_names, source.spec.class_names)
    if differing:
        raise BadInput(f'the run in {workdir} was trained on other classes than this data has ({differing[0]})')
    with jax.debug_nans(run.config.debug):
        values = evaluate_state(run.eval_step, run.state, source, run.replicas, run.config.data.on_bad)
    return {'step': int(run.replicas.fetch(run.state).step), **values}


def evaluate_state(
    step: Callable, state: TrainState, source: Source, replicas: Replicas, on_bad: str = 'stop'
) -> dict[str, float]:
    """Evaluate a state: mean loss, and accuracy in [0, 1] or the metrics that the source names.

    Every example counts once, however the last batch is padded. A source of several splits has its metrics as
    `SPLIT/METRIC`. `examples` comes first: the number that counted, over all processes. With on_bad='skip', images
    also have `skipped`, the number that could not be read.

    Args:
      step: `eval_step` mapped over the replicas.
      state: placed on them.

    Raises:
      BadInput: no example can be read, or one cannot that must be.
    """
    if source.spec.metrics:
        return _evaluate_splits(step, state, source, replicas)
    batches = source.eval_batches(rows=replicas.rows(source.batch_size))
    totals = _sum_up([replicas.fetch(step(state, replicas.place_batch(batch))) for batch in batches])
    weight = totals.pop('weight')
    if not weight:
        raise AgreedProblem(f'not one of the {source.num_eval_listed} examples to evaluate on can be read')
    counts = {'examples': int(weight)}
    if on_bad == 'skip':
        counts['skipped'] = source.num_eval_listed - int(weight)
    return counts | {name: total / weight for name, total in totals.items()}


def _evaluate_splits(step, state, source, replicas):
    splits, sums, values = source.spec.eval_splits, [], {}
    for split in splits:
        labels, outputs = source.eval_labels(split), []
        for batch in source.eval_batches(split, replicas.rows(source.batch_size)):
            found = replicas.fetch(step(state, replicas.place_batch(batch)))
            outputs.append(np.asarray(found.pop('outputs')))  # of all replicas, whichever rows this process placed
            sums.append(found)
        measured = score(source.spec.metrics, labels, np.concatenate(outputs)[: len(labels)])
        values |= {name if len(splits) == 1 else f'{split}/{name}': value for name, value in measured.items()}
    totals = _sum_up(sums)
    return {'examples': int(totals['weight']), 'loss': totals['loss'] / totals['weight'], **values}


def _sum_up(sums: list[dict[str, jax.Array]]) -> dict[str, float]:
    # float64 on the host: sums over whole batches are exact counts there.
    return jax.tree.map(lambda *found: float(np.sum(found, dtype=np.float64)), *sums)
