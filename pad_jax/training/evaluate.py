"""A stored run, opened to be evaluated or exported: its latest checkpoint, on one device. Its data may be gone."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from pad_jax.data import DataSpec, Source, score, score_language
from pad_jax.data.tables import check_output, write_table
from pad_jax.errors import BadInput
from pad_jax.training import setup
from pad_jax.training.best import choose_best
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.config import read_workdir_config
from pad_jax.training.devices import Replicas
from pad_jax.training.processes import AgreedProblem
from pad_jax.training.rounds import to_trained_storage
from pad_jax.training.state import TrainState, abstract_state
from pad_jax.training.steps import eval_step
from pad_jax.training.workdir import compare_digests, describe_classes, read_data

logger = logging.getLogger(__name__)


class RestoredRun(NamedTuple):
    """A run that was read from its workdir: config, data and lengths of its training, and its latest state, masked."""

    config: ml_collections.ConfigDict
    record: DataSpec
    lengths: setup.Lengths
    state: TrainState

    @property
    def temperature(self) -> float | None:
        """Attention temperature of the checkpoint's step; None for texts."""
        schedule = setup.make_temperature(self.config, self.lengths)
        return float(schedule(self.state.step)) if schedule else None

    def place(self, collects: bool = False) -> tuple[Callable, TrainState, Replicas]:
        """Map the evaluation step over one device, and place the state on it.

        Args:
          collects: the step also returns the outputs of a network of images.
        """
        config, replicas = self.config, Replicas(self.config.parallel, jax.local_devices()[:1])
        task = setup.make_task(config)
        task = dataclasses.replace(task, collects=task.collects or collects)
        arguments = {'task': task, 'temperature': setup.make_temperature(config, self.lengths)}
        step = replicas.map_step(eval_step, donate=False, model=setup.make_model(config), **arguments)
        state = to_trained_storage(self.state, config.partition.rounds, config.partition.compact)
        return step, replicas.place_state(state), replicas


def restore_run(workdir: Path, overrides: Sequence[str] = (), best: bool = False) -> RestoredRun:
    """Read the run in workdir, with the latest sound checkpoint.

    Args:
      best: with the checkpoint of the best evaluation instead; the run has train.keep_best=True.
      overrides: 'section.key=value' for keys that are free on resume.

    Raises:
      BadInput: workdir contains no run, or no checkpoint that fits it.
    """
    config, record = read_workdir_config(workdir, overrides), read_data(workdir)
    lengths = setup.measure_lengths(config, record.num_train)
    optimizer, averaged = setup.make_run_optimizer(config, lengths), config.optim.ema_decay > 0
    like = abstract_state(setup.make_model(config), optimizer, setup.make_inputs(config), averaged)
    with contextlib.closing(Checkpoints(workdir / 'checkpoints')) as checkpoints:
        state = checkpoints.restore_newest(like, functools.partial(choose_best, workdir, config) if best else max)
        for line in checkpoints.describe_damage():
            logger.warning(line)
    run = RestoredRun(config, record, lengths, state)
    if (run.temperature or 0) > 1:
        logger.warning(
            f'step {int(state.step)} of {lengths.total}: the temperature of the attention is still '
            f'{run.temperature:.3g}, so the network is nearly static. It is 1 after step {lengths.temperature}'
        )
    return run


def evaluate_workdir(
    workdir: Path, overrides: Sequence[str] = (), confusion: Path | None = None, best: bool = False
) -> dict[str, Any]:
    """Evaluate the latest checkpoint of a run on one device.

    Args:
      overrides: as in `restore_run`; data.path if the data has moved.
      confusion: file to write the confusion matrix to; the result then has `class_accuracy`, None without examples.
      best: as in `restore_run`.

    Raises:
      BadInput: workdir contains no run or no checkpoint, its data is gone, or the data has other classes.
    """
    run = restore_run(workdir, overrides, best)
    source = setup.open_source(run.config, workdir)
    differing = describe_classes(run.record.class_names, source.spec.class_names)
    if differing:
        raise BadInput(f'the run in {workdir} was trained on other classes than this data has ({differing[0]})')
    for difference in compare_digests(run.record, source.spec):
        logger.warning('this data is not that of the training: %s', difference)
    names = source.spec.class_names
    if confusion and not names:
        raise BadInput('--confusion needs classes, and the labels of this run are numbers')
    if confusion:
        check_output(confusion)
    counts = np.zeros((len(names), len(names)), np.int64) if confusion else None
    step, state, replicas = run.place(collects=confusion is not None)
    with jax.debug_nans(run.config.debug):
        values = evaluate_state(step, state, source, replicas, run.config.data.on_bad, counts)
    if confusion:
        write_table(confusion, ['class', *names], ([name, *row] for name, row in zip(names, counts.tolist())))
        rows = zip(names, counts.diagonal().tolist(), counts.sum(axis=1).tolist())
        values['class_accuracy'] = {name: hits / total if total else None for name, hits, total in rows}
    temperature = {} if run.temperature is None else {'temperature': run.temperature}
    return {'step': int(run.state.step), **temperature, **values}


def evaluate_state(
    step: Callable,
    state: TrainState,
    source: Source,
    replicas: Replicas,
    on_bad: str = 'stop',
    confusion: np.ndarray | None = None,
) -> dict[str, float]:
    """Evaluate a state: mean loss, and accuracy in [0, 1] or the metrics that the source names.

    Every example counts once, however the last batch is padded. A source of several splits has its metrics as
    `SPLIT/METRIC`. `examples` comes first: the number that counted, over all processes. With on_bad='skip', images
    also have `skipped`, the number that could not be read. Language models have the measures of `score_language`.

    Args:
      step: `eval_step` mapped over the replicas.
      state: placed on them.
      confusion: int64[classes, classes], to which the examples of each (true class, predicted class) are added; needs a
        step that collects, and one process.

    Raises:
      BadInput: no example can be read, or one cannot that must be.
    """
    spec, by_split, measured = source.spec, {}, {}
    for split in spec.eval_splits:
        outputs, sums = [], []
        for batch in source.eval_batches(split, replicas.rows(source.batch_size)):
            sums.append(replicas.fetch(step(state, replicas.place_batch(batch))))
            found = np.asarray(sums[-1].pop('outputs', ()))  # of all replicas
            if spec.metrics:
                outputs.append(found)
            if confusion is not None:
                is_example = batch['weight'] > 0
                np.add.at(confusion, (batch['label'][is_example], found[is_example].argmax(axis=-1)), 1)
        if spec.metrics:
            labels, prefix = source.eval_labels(split), f'{split}/' if len(spec.eval_splits) > 1 else ''
            scores = score(spec.metrics, labels, np.concatenate(outputs)[: len(labels)])
            measured |= {f'{prefix}{name}': value for name, value in scores.items()}
        # float64 on the host: sums over whole batches are exact counts there.
        by_split[split] = jax.tree.map(lambda *found: float(np.sum(found, dtype=np.float64)), *sums)
    totals = jax.tree.map(lambda *found: sum(found), *by_split.values())
    weight = totals.pop('weight')
    if not weight:
        raise AgreedProblem(f'not one of the {source.num_eval_listed} examples to evaluate on can be read')
    if totals.pop('tokens', 0):
        losses = {split: (found['loss'] / found['weight'], found['tokens']) for split, found in by_split.items()}
        measured = score_language(losses, spec.bytes_per_token)
    counts, names = {'examples': int(weight)}, ['loss'] if spec.metrics else totals
    if on_bad == 'skip' and not spec.metrics:
        counts['skipped'] = source.num_eval_listed - int(weight)
    return counts | {name: totals[name] / weight for name in names} | measured
