"""The training loop: on the host, over pure steps, with everything that a run writes."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from pad_jax.data import METRICS, ImageSource, TextSource
from pad_jax.errors import BadInput, check_together
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.cli import StopSignals
from pad_jax.training.config import flatten, is_partial
from pad_jax.training.devices import AXIS, Replicas
from pad_jax.training.evaluate import evaluate_state
from pad_jax.training.lock import WorkdirLock
from pad_jax.training.processes import (
    AgreedStop,
    all_or_none,
    check_same,
    check_shared,
    count_own_processors,
    gather,
    is_first,
)
from pad_jax.training.progress import StepProgress
from pad_jax.training.rounds import (
    compare_experts,
    partition_state,
    plan_rounds,
    summarize_partition,
    to_masked_storage,
    to_trained_storage,
)
from pad_jax.training.setup import (
    Lengths,
    abstract_variables,
    check_lengths,
    make_exclusions,
    make_inputs,
    make_model,
    make_rate,
    make_step_arguments,
    make_task,
    make_temperature,
    measure_lengths,
    open_source,
    plan_layers,
    start_from_pretrained,
)
from pad_jax.training.state import Faults, TrainState, abstract_state, init_state
from pad_jax.training.steps import eval_step, find_nan, find_nonfinite, make_problem, name_checked, train_step
from pad_jax.training.workdir import (
    DataRecord,
    MetricWriter,
    NoWriter,
    add_version,
    check_data,
    check_workdir,
    disk_faults_stop,
    read_metrics,
    write_identity,
    write_json,
)

_NO_MEASURES = ('step', 'split', 'examples', 'skipped')


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    label: str = 'train',
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Trains what a checked config describes; goes on where the checkpoints of workdir end.

    Leaves in workdir: config.json, data.json, versions.json, for texts tokenizer.json, metrics.jsonl, tensorboard/,
    partition.json, timing.json, checkpoints/.

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
      Stopped: when the disk is full or fails; when the loss or a gradient is not finite. Checkpoints stay sound.
      SystemExit: 143 after SIGTERM and 130 after SIGINT, once the step is done and its checkpoint written.
    """
    if not str(workdir):
        raise BadInput('workdir must name a folder, got an empty text')
    workdir = Path(workdir)
    replicas = Replicas(config.parallel, devices)
    check_same('config', flatten(config))
    check_same('machine', {'devices': len(replicas.local_devices), 'jax': jax.__version__})
    with WorkdirLock(workdir) as lock:
        with all_or_none():
            if is_first():
                lock.find()
            source, lengths = _prepare(config, workdir, replicas)
        check_same('data', dataclasses.asdict(DataRecord.of(source.spec)))
        check_shared(workdir)
        source = source.with_threads(count_own_processors())
        with jax.debug_nans(config.debug), StopSignals() as signals:
            run = _Run(config, workdir, source, lengths, replicas, lock, label)
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
    check_lengths(config, lengths, source.spec.num_train)
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


class _Run:
    """One process' part of a run: from the start or the newest checkpoint to the end."""

    def __init__(
        self,
        config,
        workdir: Path,
        source: ImageSource | TextSource,
        lengths: Lengths,
        replicas: Replicas,
        lock: WorkdirLock,
        label: str,
    ):
        self.config, self.workdir, self.source, self.lock = config, workdir, source, lock
        self.lengths, self.replicas, self.label = lengths, replicas, label
        self.model = make_model(config)
        self.task = make_task(config)
        self.step_arguments = make_step_arguments(config, lengths, AXIS)
        self.train_step = replicas.map_step(train_step, donate=True, **self.step_arguments)
        temperature = make_temperature(config, lengths)
        self.eval_step = replicas.map_step(
            eval_step, donate=False, task=self.task, model=self.model, temperature=temperature
        )
        self.temperature = temperature
        self.rate = make_rate(config, lengths)
        self.rounds = _plan_rounds(config)
        self.inputs = make_inputs(config)
        self.most_nonfinite = self.step_arguments['most_nonfinite']
        with all_or_none():
            self.checkpoints = Checkpoints(workdir / 'checkpoints', config.train.keep_checkpoints)
            self.steps_found = self.checkpoints.steps_here()
            state, said = self._begin(self.step_arguments['optimizer'])
            self.start, self.skipped = int(state.step), int(state.faults.skipped)
            if int(state.faults.in_a_row) >= self.most_nonfinite:  # a run that skipped is told to stop from now on
                state = state.replace(faults=Faults.none(self.skipped))
            self.evaluated = self._read_last_evaluation() if self.start >= lengths.total else None
            said += self._open_workdir()
        state = replicas.share(state)
        self.progress = StepProgress(label, lengths.total, self.start, quiet=not is_first())
        for line in said:
            self.progress.say(line)
        self.partition = self._summarize_partition(state)
        self.state = replicas.place_state(self._to_trained_storage(state))

    def _begin(self, optimizer) -> tuple[TrainState, list[str]]:
        """The state of the newest checkpoint or before the first step, and what to say of it."""
        averaged = self.config.optim.ema_decay > 0
        if self.checkpoints.latest_step() is not None:
            return self.checkpoints.restore_newest(abstract_state(self.model, optimizer, self.inputs, averaged)), []
        state = init_state(self.model, optimizer, self.inputs, self.config.train.seed, averaged)
        return start_from_pretrained(self.config, self.model, state)

    def _open_workdir(self) -> list[str]:
        """Begins to write; what to say of what was there."""
        self.writer = NoWriter()
        if not is_first():
            return []
        try:
            self._take_lock()
            if self.start < self.lengths.total:
                add_version(self.workdir)
            write_identity(self.workdir, self.config, self.source)
            said = self.checkpoints.prepare_to_write()
            self.writer = MetricWriter(self.workdir, self.start)
        except OSError as error:
            raise BadInput(f'workdir {self.workdir} cannot be written: {error.strerror}') from error
        return said

    def _take_lock(self) -> None:
        """Only now, as a run that is refused writes nothing: what was read so far has to be as it was."""
        self.lock.take()
        check_workdir(self.workdir, self.config)
        if self.checkpoints.steps_here() != self.steps_found:
            raise BadInput(f'another run has written into {self.workdir} meanwhile: start again')

    def finish(self, signals: StopSignals) -> dict[str, Any]:
        """Runs the steps that are left, or those until a signal comes."""
        if self.evaluated is not None:
            if not (self.workdir / 'timing.json').exists():  # killed right after its last checkpoint
                self._write('timing.json', {'seconds_per_step': None})
            self._say_result('is finished already')
            return self.evaluated
        rows = self.replicas.rows(self.config.data.batch_size)
        with (
            self.progress,
            self.source.train_batches(self.start, self.lengths.total, rows) as batches,
        ):
            if self.start:
                self.progress.say(f'resumes from the checkpoint of step {self.start}')
            for step, batch in batches:
                self._partition_if_due(step)
                self._train(step + 1, batch)
                if signals.stop_after(step + 1):
                    self._check_finite()
                    self._save(step + 1)
                    self.progress.say(f'{signals.received.name}: checkpoint of step {step + 1} is written')
                    raise SystemExit(128 + signals.received)
        self._write('timing.json', {'seconds_per_step': self.progress.seconds_per_step})
        self._say_result('done')
        if self.skipped:
            self.progress.say(f'{self.skipped} steps were not finite and were skipped')
        if self.config.data.on_bad == 'skip' and not isinstance(self.source, TextSource):
            self._say_skipped()
        return self.evaluated

    def _say_skipped(self) -> None:
        """How many images no process could read; all have to call it.

        No row of metrics says it: which images training has met depends on where it began and how far ahead it read.
        """
        skipped = set().union(*gather(self.source.skipped))
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
        counts = (every.log_every_steps, every.eval_every_steps, every.checkpoint_every_steps)
        logs, evaluates, saves = (step % count == 0 or last for count in counts)
        if logs or evaluates or saves:
            self._check_finite()
        if logs:
            self._log(step, metrics)
        else:
            self.progress.update(step)
        if evaluates:
            self._evaluate(step)
        if saves:
            self._save(step)

    def _check_finite(self) -> None:
        """Asks what the steps since the last time have found, before anything is told of them.

        Raises:
          AgreedStop: on all processes, as all have found the same.
        """
        faults = self.replicas.fetch(self.state.faults)
        if int(faults.in_a_row) >= self.most_nonfinite:
            raise AgreedStop(self._keep_last_finite())
        skipped, self.skipped = self.skipped, int(faults.skipped)
        if self.skipped > skipped:
            self.progress.say(f'{self.skipped} steps so far were not finite and were skipped')

    def _keep_last_finite(self) -> str:
        """Writes the checkpoint of the last finite step, and describes what came after it."""
        state = self.replicas.fetch(self.state)
        failed, in_a_row, skipped = int(state.step), int(state.faults.in_a_row), int(state.faults.skipped)
        finite = failed - in_a_row
        what = f'{name_checked(state.params)[int(state.faults.first)]} is not finite'
        if others := int(state.faults.others):
            what += f' (nor are {others} more numbers or tensors)'
        if in_a_row > 1:
            what += f', the last of {in_a_row} such steps in a row'
        # A round after that step has changed the state since: it is taken again after an earlier checkpoint.
        if (self.checkpoints.latest_step() or 0) < finite and not any(finite <= at < failed for at, _ in self.rounds):
            self._store(state.replace(step=jnp.int32(finite), faults=Faults.none(skipped - in_a_row)))
        return f'step {failed}: {what}; {self._describe_kept()}, train.on_nonfinite=skip leaves such steps out'

    def _describe_kept(self) -> str:
        newest = self.checkpoints.latest_step()
        kept = f'the checkpoint of step {newest} is kept' if newest else 'there is no checkpoint yet'
        return f'{kept}; debug=True says where it comes from, a smaller optim.learning_rate or optim.clip_norm may help'

    def _explain_nan(self, step: int, batch) -> str:
        alone = functools.partial(train_step, **self.step_arguments | {'model': self.model, 'accumulate_steps': 1})
        found = find_nan(alone, self.replicas.fetch(self.state), batch)
        return f'step {step} makes a NaN: {found or "but not when it is run operation by operation on one device"}'

    def _log(self, step: int, metrics) -> None:
        values = {name: float(value) for name, value in self.replicas.fetch(metrics).items()}
        values['learning_rate'] = float(self.rate(step - 1 - self.skipped))  # schedules count updates
        if self.config.train.on_nonfinite == 'skip':
            values['nonfinite_steps'] = self.skipped
        values['dynamic_fraction'] = self.partition['totals']['dynamic_fraction']
        self.writer.write(step, 'train', values)
        self.writer.write_board(step, 'train/steps_per_second', self.progress.rate)
        shown = {name: values[name] for name in ('loss', 'accuracy') if name in values}
        self.progress.update(step, **shown, κ=values['dynamic_fraction'])

    def _evaluate(self, step: int) -> None:
        with self.progress.paused(step, self.state):
            values = evaluate_state(self.eval_step, self.state, self.source, self.replicas, self.config.data.on_bad)
            # Not the whole state: the optimizer's part of it is the largest.
            state = self.state
            learned = self.replicas.fetch((state.averaged_variables['params'], state.masks, state.packed))
            values |= compare_experts(*learned, self.config.partition.scales)
        self.writer.write(step, 'eval', values)
        self.evaluated = {'step': step, 'split': 'eval', **values}
        measured = {name: value for name, value in values.items() if name.rpartition('/')[2] in METRICS}
        self.progress.update(step, **{f'eval_{name}': value for name, value in measured.items()})

    def _save(self, step: int) -> None:
        with self.progress.paused(step, self.state):
            self._store(self.replicas.fetch(self.state))

    def _store(self, state: TrainState) -> None:
        if broken := find_nonfinite(state):
            raise AgreedStop(f'after step {int(state.step)} {broken} is not finite; {self._describe_kept()}')
        self.writer.sync()
        self.checkpoints.save(to_masked_storage(state))

    def _partition_if_due(self, step: int) -> None:
        """The rounds that come after `step` steps: the host decides, so the train step holds no condition."""
        due = [fraction for at, fraction in self.rounds if at == step]
        if not due:
            return
        self._check_finite()
        partition = self.config.partition
        with self.progress.paused(step, self.state):
            state = to_masked_storage(self.replicas.fetch(self.state))
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
            self.state = self.replicas.place_state(self._to_trained_storage(state))

    def _to_trained_storage(self, state: TrainState) -> TrainState:
        return to_trained_storage(state, len(self.rounds), self.config.partition.compact)

    def _summarize_partition(self, state: TrainState) -> dict[str, Any]:
        shapes = abstract_variables(self.model, self.inputs)
        granularity = self.config.partition.granularity if is_partial(self.config) else 'none'
        summary = summarize_partition(shapes, state.masks, granularity, int(state.round), len(self.rounds))
        self._write('partition.json', summary)
        return summary

    def _write(self, name: str, content: dict[str, Any]) -> None:
        if is_first():
            path = self.workdir / name
            with disk_faults_stop(f'{path} cannot be written'):
                write_json(path, content)

    def close(self) -> None:
        self.writer.close()
        self.checkpoints.close()


def _plan_rounds(config) -> list[tuple[int, float]]:
    if not is_partial(config):
        return []
    names = ('dynamic_fraction', 'rounds', 'schedule', 'start_step', 'every_steps')
    return plan_rounds(**{name: config.partition[name] for name in names})
