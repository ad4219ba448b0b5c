"""A run that is opened to be asked something: its newest checkpoint, on one device. Its data may be gone."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections

from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.config import read_workdir_config
from pad_jax.training.devices import Replicas
from pad_jax.training.forms import to_trained_form
from pad_jax.training.setup import (
    Lengths,
    make_inputs,
    make_model,
    make_run_optimizer,
    make_task,
    make_temperature,
    measure_lengths,
)
from pad_jax.training.state import TrainState, abstract_state
from pad_jax.training.steps import eval_step
from pad_jax.training.workdir import DataRecord, read_data

logger = logging.getLogger(__name__)


class StoredRun(NamedTuple):
    """What a workdir holds of a run.

    Attributes:
      config, record: of `RestoredRun`.
      lengths: of the run.
      state: of the newest sound checkpoint, in the masked form.
    """

    config: ml_collections.ConfigDict
    record: DataRecord
    lengths: Lengths
    state: TrainState


class RestoredRun(NamedTuple):
    """What can be asked.

    Attributes:
      config: of the run.
      record: what it was trained on.
      state: of the newest sound checkpoint, placed on the replicas.
      eval_step: mapped over them.
      replicas: one device.
    """

    config: ml_collections.ConfigDict
    record: DataRecord
    state: TrainState
    eval_step: Callable
    replicas: Replicas


def restore_run(workdir: Path, overrides: Sequence[str] = ()) -> RestoredRun:
    """Opens the run in workdir, as `read_stored`, to run its network."""
    config, record, lengths, state = read_stored(workdir, overrides)
    state = to_trained_form(state, config.partition.rounds, config.partition.compact)
    replicas = Replicas(config.parallel, jax.local_devices()[:1])
    static = {'task': make_task(config), 'model': make_model(config), 'temperature': make_temperature(config, lengths)}
    step = replicas.map_step(eval_step, donate=False, **static)
    return RestoredRun(config, record, replicas.place_state(state), step, replicas)


def read_stored(workdir: Path, overrides: Sequence[str] = ()) -> StoredRun:
    """Reads the run in workdir.

    Args:
      overrides: 'section.key=value' for keys that are free on resume.

    Raises:
      BadInput: when workdir holds no run or no checkpoint that fits it.
    """
    config = read_workdir_config(workdir, overrides)
    record, model = read_data(workdir), make_model(config)
    # Of the data that it was trained on: the temperature of a step depends on how long an epoch was.
    lengths = measure_lengths(config, record.num_train)
    checkpoints = Checkpoints(workdir / 'checkpoints')
    averaged = config.optim.ema_decay > 0
    like = abstract_state(model, make_run_optimizer(config, lengths), make_inputs(config), averaged)
    state = checkpoints.restore_newest(like)
    for line in checkpoints.describe_damage():
        logger.warning(line)
    checkpoints.close()
    return StoredRun(config, record, lengths, state)
