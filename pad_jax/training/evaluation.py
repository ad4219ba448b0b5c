"""Evaluation: every example counts once, however the last batch is padded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pad_jax.data import Source, TextSource, score
from pad_jax.errors import BadInput
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.configuration import read_workdir_config
from pad_jax.training.mixtures import index_columns
from pad_jax.training.parallel import Replicas
from pad_jax.training.setup import make_heat, make_model, make_run_optimizer, measure_lengths, open_source
from pad_jax.training.state import TrainState, abstract_state
from pad_jax.training.steps import eval_step
from pad_jax.training.tasks import choose_task, example_inputs
from pad_jax.training.workdir import describe_classes, read_data


def evaluate_state(
    step: Callable, state: TrainState, source: Source | TextSource, replicas: Replicas
) -> dict[str, float]:
    """loss over the evaluation examples, and accuracy in [0, 1] or the metrics that the source names.

    A source of several splits has its metrics as `SPLIT/METRIC`.

    Args:
      step: `eval_step` mapped over the replicas.
      state: placed on them.
    """
    if isinstance(source, TextSource):
        return _evaluate_splits(step, state, source, replicas)
    totals = _sum_up([replicas.fetch(step(state, replicas.place_batch(batch))) for batch in source.eval_batches()])
    weight = totals.pop('weight')
    return {name: total / weight for name, total in totals.items()}


def _evaluate_splits(step, state, source, replicas):
    splits, sums, values = source.spec.eval_splits, [], {}
    for split in splits:
        outputs, labels = [], []
        for batch in source.eval_batches(split):
            found = replicas.fetch(step(state, replicas.place_batch(batch)))
            used = batch['weight'] > 0
            outputs.append(np.asarray(found.pop('outputs'))[used])
            labels.append(batch['label'][used])
            sums.append(found)
        measured = score(source.spec.metrics, np.concatenate(labels), np.concatenate(outputs))
        values |= {name if len(splits) == 1 else f'{split}/{name}': value for name, value in measured.items()}
    totals = _sum_up(sums)
    return {'loss': totals['loss'] / totals['weight'], **values}


def _sum_up(sums: list[dict[str, jax.Array]]) -> dict[str, float]:
    # float64 on the host: the sums of whole batches are exact counts there, whatever their number.
    return jax.tree.map(lambda *found: float(np.sum(found, dtype=np.float64)), *sums)


def evaluate_workdir(workdir: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run, on one device.

    Args:
      overrides: 'section.key=value' for keys that are free on resume, as data.path where the data has moved.

    Raises:
      BadInput: when workdir holds no run, no checkpoint, its data is gone, or other data has other classes.
    """
    config, source, state, step, replicas = _open_run(workdir, overrides)
    with jax.debug_nans(config.debug):
        values = evaluate_state(step, replicas.place_state(state), source, replicas)
    return {'step': int(state.step), 'examples': source.spec.num_eval, **values}


def _open_run(workdir: Path, overrides: Sequence[str]):
    config = read_workdir_config(workdir, overrides)
    record = read_data(workdir)
    checkpoints = Checkpoints(workdir / 'checkpoints')
    source, model = open_source(config), make_model(config)
    differing = describe_classes(record.class_names, source.spec.class_names)
    if differing:
        raise BadInput(f'the run in {workdir} was trained on other classes than this data has ({differing[0]})')
    # Of the data that it was trained on: the temperature of a step depends on how long an epoch was.
    lengths = measure_lengths(config, record.num_train)
    like = abstract_state(model, make_run_optimizer(config, lengths), example_inputs(source.spec))
    state = index_columns(checkpoints.restore(like))
    checkpoints.close()
    replicas = Replicas(config.parallel, jax.local_devices()[:1])
    task = choose_task(source.spec)
    step = replicas.map_step(eval_step, donate=False, task=task, model=model, **make_heat(config, lengths))
    return config, source, state, step, replicas
