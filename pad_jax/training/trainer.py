"""The training loop: on the host, over pure steps, with everything that a run writes."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from pad_jax.data import METRICS, ImageSource, StreamedSource, TextSource
from pad_jax.errors import BadInput, check_together
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.configuration import find_late_round, flatten, is_partial
from pad_jax.training.debugging import find_nan
from pad_jax.training.evaluation import evaluate_state
from pad_jax.training.mixtures import compare_experts, forget_columns, index_columns
from pad_jax.training.optimizer import make_rate_schedule, make_temperature_schedule
from pad_jax.training.parallel import AXIS, Replicas
from pad_jax.training.partitioning import partition_state, plan_rounds, summarize_partition
from pad_jax.training.processes import (
    all_or_none,
    check_same,
    check_shared,
    count_own_processors,
    gather_lines,
    is_first,
)
from pad_jax.training.progress import StepClock, StepProgress
from pad_jax.training.setup import (
    Lengths,
    abstract_variables,
    make_exclusions,
    make_heat,
    make_inputs,
    make_model,
    make_step_arguments,
    make_task,
    measure_lengths,
    open_source,
    plan_layers,
    start_from_pretrained,
)
from pad_jax.training.signals import StopSignals
from pad_jax.training.state import TrainState, abstract_state, init_state
from pad_jax.training.steps import eval_step, make_problem, train_step
from pad_jax.training.workdir import DataRecord, check_data, check_workdir, write_identity
from pad_jax.training.writers import MetricWriter, NoWriter, read_metrics, write_json

_NO_MEASURES = ('step', 'split', 'examples', 'skipped')


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    label: str = 'train',
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Trains what a checked config describes; goes on where the checkpoints of workdir end.

    Leaves in workdir: config.json, data.json, for texts tokenizer.json, metrics.jsonl, tensorboard/, partition.json,
    timing.json, checkpoints/.

    Of several processes all have to call it. The first writes; what is bad input to one is refused by all.

    Args:
      config: as `load_config` returns it.
      workdir: folder of the run; created.
      label: what progress calls the run.
      devices: those to train on; all of the run if None.

    Returns:
      The last row of metrics that was evaluated.

    Raises:
      BadInput: before anything is written; or later, at an image that was not decoded until then and is damaged.
      SystemExit: 143 after SIGTERM and 130 after SIGINT, once the step is done and its checkpoint written.
    """
    if not str(workdir):
        raise BadInput('workdir must name a folder, got an empty text')
    workdir = Path(workdir)
    replicas = Replicas(config.parallel, devices)
    check_same('config', flatten(config))
    check_same('machine', {'devices': len(replicas.local_devices), 'jax': jax.__version__})
    with all_or_none():
        source, lengths = _prepare(config, workdir, replicas)
    check_same('data', dataclasses.asdict(DataRecord.of(source.spec)))
    check_shared(workdir)
    if isinstance(source, StreamedSource):
        source = dataclasses.replace(source, num_threads=count_own_processors())
    with jax.debug_nans(config.debug), StopSignals() as signals:
        run = _Run(config, workdir, source, lengths, replicas, label)
        try:
            return run.finish(signals)
        finally:
            run.close()


def _prepare(config, workdir: Path, replicas: Replicas) -> tuple[ImageSource | TextSource, Lengths]:
    """Data and lengths of a run, once nothing is known to be wrong with it."""
    *_, source = check_together(
        lambda: check_workdir(workdir, config),
        lambda: _check_devices(config, replicas),
        lambda: is_partial(config) and plan_layers(config),  # says whether the exclusions fit the network
        lambda: open_source(config, workdir),
    )
    check_data(workdir, source.spec)
    lengths = measure_lengths(config, source.spec.num_train)
    _check_lengths(config, lengths, source)
    return source, lengths


def _check_devices(config, replicas: Replicas) -> None:
    share = len(replicas.devices) * config.optim.accumulate_steps
    devices = f'{len(replicas.local_devices)} devices'
    if replicas.num_processes > 1:
        devices = f'{replicas.num_processes} processes × {devices}'
    if config.data.batch_size % share:
        raise BadInput(
            f'data.batch_size must be a multiple of {share} ({devices} × optim.accumulate_steps = '
            f'{config.optim.accumulate_steps}), got {config.data.batch_size}'
        )
    if config.train.get('mixup') and config.data.batch_size % (2 * len(replicas.devices)):
        raise BadInput(
            f'data.batch_size must be a multiple of {2 * len(replicas.devices)} ({devices} × 2): train.mixup mixes '
            f'neighbouring examples of a device, got {config.data.batch_size}'
        )


def _check_lengths(config, lengths: Lengths, source: ImageSource | TextSource) -> None:
    problems = []
    if lengths.total <= config.optim.warmup_steps:
        problems.append(f'optim.warmup_steps must be below the {lengths.total} steps of the run')
    partition = config.partition
    if is_partial(config):
        problems += find_late_round(config, lengths.total)
        if partition.batch_size > source.spec.num_train:
            problems.append(
                f'partition.batch_size must be at most the {source.spec.num_train} training examples, got '
                f'{partition.batch_size}'
            )
    if problems:
        raise BadInput('; '.join(problems))


class _Run:
    """One process' part of a run: from the start or the newest checkpoint to the end."""

    def __init__(self, config, workdir: Path, source: ImageSource | TextSource, lengths: Lengths, replicas, label: str):
        self.config, self.workdir, self.source = config, workdir, source
        self.lengths, self.replicas, self.label = lengths, replicas, label
        self.model = make_model(config)
        self.task = make_task(config)
        self.step_arguments = make_step_arguments(config, lengths, AXIS)
        self.train_step = replicas.map_step(train_step, donate=True, **self.step_arguments)
        heat = make_heat(config, lengths)
        self.eval_step = replicas.map_step(eval_step, donate=False, task=self.task, model=self.model, **heat)
        self.temperature = make_temperature_schedule(*heat.values()) if self.task.heated else None
        optim = config.optim
        self.rate = make_rate_schedule(optim.learning_rate, optim.schedule, optim.warmup_steps, lengths.total)
        self.rounds = _plan_rounds(config)
        self.inputs = make_inputs(config)
        with all_or_none():
            self.checkpoints = Checkpoints(workdir / 'checkpoints', config.train.keep_checkpoints)
            state, said = self._begin(self.step_arguments['optimizer'])
            self.start = int(state.step)
            self.evaluated = self._read_last_evaluation() if self.start >= lengths.total else None
            self._open_workdir()
        state = index_columns(replicas.share(state))
        self.progress = StepProgress(label, lengths.total, self.start, quiet=not is_first())
        for line in said:
            self.progress.say(line)
        self.partition = self._summarize_partition(state)
        self.state = replicas.place_state(state)

    def _begin(self, optimizer) -> tuple[TrainState, list[str]]:
        """The state of the newest checkpoint or before the first step, and what to say of it."""
        averaged = self.config.optim.ema_decay > 0
        if self.checkpoints.latest_step() is not None:
            return self.checkpoints.restore(abstract_state(self.model, optimizer, self.inputs, averaged)), []
        state = init_state(self.model, optimizer, self.inputs, self.config.train.seed, averaged)
        return start_from_pretrained(self.config, self.model, state)

    def _open_workdir(self) -> None:
        self.writer = NoWriter()
        if not is_first():
            return
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            write_identity(self.workdir, self.config, self.source)
            self.writer = MetricWriter(self.workdir, self.start)
        except OSError as error:
            raise BadInput(f'workdir {self.workdir} cannot be written: {error.strerror}') from error

    def finish(self, signals: StopSignals) -> dict[str, Any]:
        """Runs the steps that are left, or those until a signal comes."""
        if self.evaluated is not None:
            self._say_result('is finished already')
            return self.evaluated
        rows = self.replicas.rows(self.config.data.batch_size)
        with (
            self.progress,
            self.source.train_batches(self.start, self.lengths.total, rows) as batches,
        ):
            if self.start:
                self.progress.say(f'resumes from the checkpoint of step {self.start}')
            self.clock = StepClock(self.start)
            for step, batch in batches:
                self._partition_if_due(step)
                self._train(step + 1, batch)
                if signals.stop_after(step + 1):
                    self._save(step + 1)
                    self.progress.say(f'{signals.received.name}: checkpoint of step {step + 1} is written')
                    raise SystemExit(128 + signals.received)
        self._write('timing.json', {'seconds_per_step': self.clock.seconds_per_step})
        self._say_result('done')
        if self.config.data.on_bad == 'skip' and not isinstance(self.source, TextSource):
            self._say_skipped()
        return self.evaluated

    def _say_skipped(self) -> None:
        """How many images no process could read; all have to call it.

        No row of metrics says it: which images training has met depends on where it began and how far ahead it read.
        """
        skipped = gather_lines(self.source.skipped)
        if skipped:
            since = f' since step {self.start}' if self.start else ''
            self.progress.say(f'{len(skipped)} images could not be read and were skipped{since}')

    def _say_result(self, how: str) -> None:
        values = ', '.join(f'{name} {value:.4f}' for name, value in self.evaluated.items() if name not in _NO_MEASURES)
        self.progress.say(f'{how}: {self.evaluated["step"]} steps, {values}, in {self.workdir}')

    def _read_last_evaluation(self) -> dict[str, Any]:
        for row in reversed(read_metrics(self.workdir)):
            values = [value for name, value in row.items() if name not in _NO_MEASURES]
            is_last = (row['step'], row['split']) == (self.start, 'eval')
            if is_last and 'loss' in row and all(type(value) is float for value in values):
                return row
        raise BadInput(f'{self.workdir} holds a finished run, but its metrics.jsonl has lost the last evaluation')

    def _train(self, step: int, batch) -> None:
        every, last = self.config.train, step == self.lengths.total
        try:
            self.state, metrics = self.train_step(self.state, self.replicas.place_batch(batch))
        except FloatingPointError as error:  # with config.debug, under which jax doesn't donate the state
            raise FloatingPointError(self._explain_nan(step, batch)) from error
        if step % every.log_every_steps == 0 or last:
            self._log(step, metrics)
        else:
            self.progress.update(step)
        if step % every.eval_every_steps == 0 or last:
            self._evaluate(step)
        if step % every.checkpoint_every_steps == 0 or last:
            self._save(step)

    def _explain_nan(self, step: int, batch) -> str:
        alone = functools.partial(train_step, **self.step_arguments | {'model': self.model, 'accumulate_steps': 1})
        found = find_nan(alone, self.replicas.fetch(self.state), batch)
        return f'step {step} makes a NaN: {found or "but not when it is run operation by operation on one device"}'

    def _log(self, step: int, metrics) -> None:
        values = {name: float(value) for name, value in self.replicas.fetch(metrics).items()}
        self.clock.passed(step)
        values['learning_rate'] = float(self.rate(step - 1))
        values['dynamic_fraction'] = self.partition['totals']['dynamic_fraction']
        self.writer.write(step, 'train', values)
        self.writer.write_board(step, 'train/steps_per_second', self.progress.rate)
        shown = {name: values[name] for name in ('loss', 'accuracy') if name in values}
        self.progress.update(step, **shown, κ=values['dynamic_fraction'])

    def _evaluate(self, step: int) -> None:
        with self.clock.paused(step, self.state):
            values = evaluate_state(self.eval_step, self.state, self.source, self.replicas, self.config.data.on_bad)
            # Not the whole state: the optimizer's part of it is the largest.
            params, masks = self.replicas.fetch((self.state.averaged_variables['params'], self.state.masks))
            values |= compare_experts(params, masks, self.config.partition.scales)
        self.writer.write(step, 'eval', values)
        self.evaluated = {'step': step, 'split': 'eval', **values}
        measured = {name: value for name, value in values.items() if name.rpartition('/')[2] in METRICS}
        self.progress.update(step, **{f'eval_{name}': value for name, value in measured.items()})

    def _save(self, step: int) -> None:
        with self.clock.paused(step, self.state):
            self.checkpoints.save(self.replicas.fetch(self.state))

    def _partition_if_due(self, step: int) -> None:
        """The rounds that come after `step` steps: the host decides, so the train step holds no condition."""
        due = [fraction for at, fraction in self.rounds if at == step]
        if not due:
            return
        partition = self.config.partition
        with self.clock.paused(step, self.state):
            state = forget_columns(self.replicas.fetch(self.state))
            for fraction in due:
                state, values = partition_state(
                    state,
                    fraction,
                    problem=make_problem(self.task, self.model, partition.scales),
                    source=self.source,
                    temperature=self.temperature,
                    batches=partition.batches,
                    batch_size=partition.batch_size,
                    criterion=partition.criterion,
                    scope=partition.scope,
                    handoff=partition.handoff,
                    exclusions=make_exclusions(self.config),
                )
                self.writer.write(step, 'partition', values)
                self.progress.say(
                    f'partition round {values["round"]} of {len(self.rounds)}: κ {values["dynamic_fraction"]:.4g}, '
                    f'loss {values["loss_before"]:.4f} before, {values["loss_after"]:.4f} after'
                )
            state = self.replicas.share(state)
            self.partition = self._summarize_partition(state)
            self.state = self.replicas.place_state(index_columns(state))

    def _summarize_partition(self, state: TrainState) -> dict[str, Any]:
        shapes = abstract_variables(self.model, self.inputs)
        granularity = self.config.partition.granularity if is_partial(self.config) else 'none'
        summary = summarize_partition(shapes, state.masks, granularity, int(state.round), len(self.rounds))
        self._write('partition.json', summary)
        return summary

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if is_first():
            write_json(self.workdir / name, content)

    def close(self) -> None:
        self.writer.close()
        self.checkpoints.close()


def _plan_rounds(config) -> list[tuple[int, float]]:
    if not is_partial(config):
        return []
    names = ('dynamic_fraction', 'rounds', 'schedule', 'start_step', 'every_steps')
    return plan_rounds(**{name: config.partition[name] for name in names})
