"""Evaluation: every example counts once, however the last batch is padded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pad_jax.data import Source
from pad_jax.errors import BadInput
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.configuration import read_workdir_config
from pad_jax.training.parallel import Replicas
from pad_jax.training.setup import make_model, make_run_optimizer, measure_lengths, open_source
from pad_jax.training.state import TrainState, abstract_state
from pad_jax.training.steps import eval_step
from pad_jax.training.workdir import describe_classes, read_data


def evaluate_state(step: Callable, state: TrainState, source: Source, replicas: Replicas) -> dict[str, float]:
    """loss (nats per example) and accuracy in [0, 1] over the evaluation split.

    Args:
      step: `eval_step` mapped over the replicas.
      state: placed on them.
    """
    sums = [step(state, replicas.place_batch(batch)) for batch in source.eval_batches()]
    # float64 on the host: the sums of whole batches are exact counts there, whatever their number.
    totals = jax.tree.map(lambda *found: float(np.sum(found, dtype=np.float64)), *map(replicas.fetch, sums))
    return {'loss': totals['loss'] / totals['weight'], 'accuracy': totals['correct'] / totals['weight']}


def evaluate_workdir(workdir: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run, on one device.

    Args:
      overrides: 'section.key=value' for keys that are free on resume, as data.path where the data has moved.

    Raises:
      BadInput: when workdir holds no run, no checkpoint, its data is gone, or other data has other classes.
    """
    config = read_workdir_config(workdir, overrides)
    record = read_data(workdir)
    checkpoints = Checkpoints(workdir / 'checkpoints')
    source, model = open_source(config), make_model(config)
    differing = describe_classes(record.class_names, source.spec.class_names)
    if differing:
        raise BadInput(f'the run in {workdir} was trained on other classes than this data has ({differing[0]})')
    # Of the data that it was trained on: the temperature of a step depends on how long an epoch was.
    lengths = measure_lengths(config, record.num_train)
    like = abstract_state(model, make_run_optimizer(config, lengths), source.spec.image_shape)
    state = checkpoints.restore(like)
    checkpoints.close()
    replicas = Replicas(config.parallel, jax.local_devices()[:1])
    step = replicas.map_step(
        eval_step,
        donate=False,
        model=model,
        temperature=config.train.temperature,
        temperature_steps=lengths.temperature,
    )
    with jax.debug_nans(config.debug):
        values = evaluate_state(step, replicas.place_state(state), source, replicas)
    return {'step': int(state.step), 'examples': source.spec.num_eval, **values}
