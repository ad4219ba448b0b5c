"""Evaluation: every example counts once, however the last batch is padded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pad_jax.data import ImageSource, TextSource, score
from pad_jax.errors import BadInput
from pad_jax.training.devices import Replicas
from pad_jax.training.processes import AgreedProblem
from pad_jax.training.restoring import restore_run
from pad_jax.training.setup import open_source
from pad_jax.training.state import TrainState
from pad_jax.training.workdir import describe_classes


def evaluate_state(
    step: Callable, state: TrainState, source: ImageSource | TextSource, replicas: Replicas, on_bad: str = 'stop'
) -> dict[str, float]:
    """loss over the evaluation examples, and accuracy in [0, 1] or the metrics that the source names.

    A source of several splits has its metrics as `SPLIT/METRIC`. Before them come `examples`, how many counted, and of
    images under `on_bad='skip'` `skipped`, how many could not be read: by all processes together.

    Args:
      step: `eval_step` mapped over the replicas.
      state: placed on them.

    Raises:
      BadInput: no example can be read, or one cannot that has to be.
    """
    if isinstance(source, TextSource):
        return _evaluate_splits(step, state, source, replicas)
    batches = source.eval_batches(rows=replicas.rows(source.batch_size))
    totals = _sum_up([replicas.fetch(step(state, replicas.place_batch(batch))) for batch in batches])
    weight = totals.pop('weight')
    if not weight:
        raise AgreedProblem(f'not one of the {source.num_eval_listed} images to evaluate on can be read')
    counts = {'examples': int(weight)}
    if on_bad == 'skip':
        counts['skipped'] = source.num_eval_listed - int(weight)
    return counts | {name: total / weight for name, total in totals.items()}


def _evaluate_splits(step, state, source, replicas):
    splits, sums, values = source.spec.eval_splits, [], {}
    for split in splits:
        labels, outputs = source.eval[split].labels, []
        for batch in source.eval_batches(split, replicas.rows(source.batch_size)):
            found = replicas.fetch(step(state, replicas.place_batch(batch)))
            outputs.append(np.asarray(found.pop('outputs')))  # of all replicas, whoever asked for which rows
            sums.append(found)
        measured = score(source.spec.metrics, labels, np.concatenate(outputs)[: len(labels)])
        values |= {name if len(splits) == 1 else f'{split}/{name}': value for name, value in measured.items()}
    totals = _sum_up(sums)
    return {'examples': int(totals['weight']), 'loss': totals['loss'] / totals['weight'], **values}


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
    run = restore_run(workdir, overrides)
    source = open_source(run.config, workdir)
    differing = describe_classes(run.record.class_names, source.spec.class_names)
    if differing:
        raise BadInput(f'the run in {workdir} was trained on other classes than this data has ({differing[0]})')
    with jax.debug_nans(run.config.debug):
        values = evaluate_state(run.eval_step, run.state, source, run.replicas, run.config.data.on_bad)
    return {'step': int(run.replicas.fetch(run.state).step), **values}
