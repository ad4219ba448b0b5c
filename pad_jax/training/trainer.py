"""The training loop: it calls pure steps from the host and writes all files of a run."""

import functools
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from pad_jax.data import METRICS, Source
from pad_jax.errors import BadInput, check_together
from pad_jax.training import processes, setup
from pad_jax.training import workdir as files
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.cli import StopSignals
from pad_jax.training.config import flatten, is_partial
from pad_jax.training.devices import AXIS, Replicas, share
from pad_jax.training.evaluate import evaluate_state
from pad_jax.training.lock import WorkdirLock
from pad_jax.training.progress import StepProgress
from pad_jax.training.rounds import Rounds, compare_experts, to_masked_storage, to_trained_storage
from pad_jax.training.state import Faults, TrainState, abstract_state, init_state
from pad_jax.training.steps import eval_step, find_nonfinite, name_checked, train_step

_NO_MEASURES = ('step', 'split', 'examples', 'skipped')


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    label: str = 'train',
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Train the network of a checked config; resume from the latest checkpoint if workdir contains any.

    The workdir then contains config.json, data.json, versions.json, for texts tokenizer.json, metrics.jsonl,
    tensorboard/, partition.json, timing.json and checkpoints/. All processes must call it; the first one writes.

    Args:
      config: as `load_config` returns it.
      workdir: folder of the run; created.
      label: name of the run in progress lines.
      devices: devices to train on; None: all devices.

    Returns:
      The last evaluated row of metrics.

    Raises:
      BadInput: before anything is written; or later, at a damaged image that had not been decoded until then.
      Stopped: the disk is full or fails, or the loss or a gradient is not finite. Checkpoints stay sound.
      SystemExit: 143 after SIGTERM and 130 after SIGINT, once the step is done and its checkpoint written.
    """
    if not str(workdir):
        raise BadInput('workdir must name a folder, got an empty text')
    workdir = Path(workdir)
    replicas = Replicas(config.parallel, devices)
    processes.check_same('config', flatten(config))
    processes.check_same('machine', {'devices': len(replicas.local_devices), 'jax': jax.__version__})
    with WorkdirLock(workdir) as lock:
        with processes.all_or_none():
            if processes.is_first():
                lock.find()
            source, lengths = _prepare(config, workdir, replicas)
        processes.check_same('data', files.describe_data(source.spec))
        lock.check_shared()
        source = source.with_threads(processes.count_own_processors())
        with jax.debug_nans(config.debug), StopSignals() as signals:
            run = Run(config, workdir, source, lengths, replicas, label)
            try:
                run.open(lock)
                return run.finish(signals)
            finally:
                run.close()


def _prepare(config, workdir: Path, replicas: Replicas) -> tuple[Source, setup.Lengths]:
    """Open the data and measure the run, after all checks that read nothing but the input."""
    *_, source = check_together(
        lambda: files.check_workdir(workdir, config),
        lambda: _check_devices(config, replicas),
        lambda: is_partial(config) and setup.plan_layers(config),  # refuses exclusions that do not fit the network
        lambda: setup.open_source(config, workdir),
    )
    files.check_data(workdir, source.spec)
    return source, setup.measure_lengths(config, source.spec.num_train)


def _check_devices(config, replicas: Replicas) -> None:
    size, devices = config.data.batch_size, f'{len(replicas.local_devices)} devices'
    if replicas.num_processes > 1:
        devices = f'{replicas.num_processes} processes × {devices}'
    parts = config.optim.accumulate_steps
    rules = [(parts, f'optim.accumulate_steps = {parts})')]
    if config.train.get('mixup'):
        rules.append((2, '2), because train.mixup mixes neighbouring examples of a device'))
    for factor, why in rules:
        multiple = factor * len(replicas.devices)
        if size % multiple:
            raise BadInput(f'data.batch_size must be a multiple of {multiple} ({devices} × {why}, got {size}')


class Run:
    """One process' part of a run: `open` it, `finish` it, and `close` it in any case."""

    def __init__(self, config, workdir: Path, source: Source, lengths, replicas: Replicas, label: str):
        self.config, self.workdir, self.source, self.replicas = config, workdir, source, replicas
        self.last_step, self.label = lengths.total, label
        self.step_arguments = setup.make_step_arguments(config, lengths, AXIS)
        # Rounds and evaluation run the network on single devices too, so it has no axis there.
        alone = {name: self.step_arguments[name] for name in ('task', 'temperature')}
        alone['model'] = setup.make_model(config)
        self.train_step = replicas.map_step(train_step, donate=True, **self.step_arguments)
        self.eval_step = replicas.map_step(eval_step, donate=False, **alone)
        self.rounds = Rounds(config, source, **alone)
        self.rate = setup.make_rate(config, lengths)
        self.writer, self.checkpoints = files.NoWriter(), None

    def open(self, lock: WorkdirLock) -> None:
        """Restore or make the state, take the lock, and begin to write."""
        with processes.all_or_none():
            self.checkpoints = Checkpoints(self.workdir / 'checkpoints', self.config.train.keep_checkpoints)
            steps_found = self.checkpoints.steps_here()
            state, notes = self._begin()
            self.start, self.skipped = int(state.step), int(state.faults.skipped)
            if int(state.faults.in_a_row) >= self.step_arguments['most_nonfinite']:  # it skipped before, and now stops
                state = state.replace(faults=Faults.none(self.skipped))
            self.evaluated = self._read_last_evaluation() if self.start >= self.last_step else None
            if processes.is_first():
                notes += self._open_workdir(lock, steps_found)
        self.progress = StepProgress(self.label, self.last_step, self.start, quiet=not processes.is_first())
        for line in notes:
            self.progress.say(line)
        self._place(share(state))

    def _begin(self) -> tuple[TrainState, list[str]]:
        """Return the state of the latest checkpoint or before the first step, and notes for the user."""
        model, optimizer, inputs = self.rounds.model, self.step_arguments['optimizer'], self.rounds.inputs
        averaged = self.config.optim.ema_decay > 0
        if self.checkpoints.latest_step() is not None:
            return self.checkpoints.restore_newest(abstract_state(model, optimizer, inputs, averaged)), []
        state = init_state(model, optimizer, inputs, self.config.train.seed, averaged)
        return setup.start_from_pretrained(self.config, model, state)

    def _open_workdir(self, lock: WorkdirLock, steps_found: list[int]) -> list[str]:
        try:
            # Take the lock only after validation, because a refused run must not write anything. Then check again that
            # nothing has changed since.
            lock.take()
            files.check_workdir(self.workdir, self.config)
            if self.checkpoints.steps_here() != steps_found:
                raise BadInput(f'another run has written into {self.workdir} meanwhile: start again')
            if self.start < self.last_step:
                files.add_version(self.workdir)
            files.write_identity(self.workdir, self.config, self.source)
            notes = self.checkpoints.prepare_to_write()
            self.writer = files.MetricWriter(self.workdir, self.start)
        except OSError as error:
            raise BadInput(f'workdir {self.workdir} cannot be written: {error.strerror}') from error
        return notes

    def _read_last_evaluation(self) -> dict[str, Any]:
        rows = [row for row in files.read_metrics(self.workdir) if (row['step'], row['split']) == (self.start, 'eval')]
        for row in rows[-1:]:
            values = [value for name, value in row.items() if name not in _NO_MEASURES]
            if 'loss' in row and all(type(value) is float for value in values):
                return row
        raise BadInput(f'{self.workdir} contains a finished run, but its metrics.jsonl has lost the last evaluation')

    def finish(self, signals: StopSignals) -> dict[str, Any]:
        """Run the remaining steps, or those until a signal comes; return the last evaluated row."""
        if self.evaluated is not None:
            if not (self.workdir / 'timing.json').exists():  # killed right after its last checkpoint
                self.writer.write_file('timing.json', {'seconds_per_step': None})
            self._say_result('is finished already')
            return self.evaluated
        rows = self.replicas.rows(self.config.data.batch_size)
        with self.progress, self.source.train_batches(self.start, self.last_step, rows) as batches:
            if self.start:
                self.progress.say(f'resumes from the checkpoint of step {self.start}')
            for step, batch in batches:
                self.partition(step)
                self.train(step + 1, batch)
                if signals.stop_after(step + 1):
                    self._check_finite()
                    self.save(step + 1)
                    self.progress.say(f'{signals.received.name}: checkpoint of step {step + 1} is written')
                    raise SystemExit(128 + signals.received)
        self.writer.write_file('timing.json', {'seconds_per_step': self.progress.seconds_per_step})
        self._say_result('done')
        if self.skipped:
            self.progress.say(f'{self.skipped} steps were not finite and were skipped')
        # Metrics do not count images: those met in training depend on the start and on the prefetching.
        skipped = set().union(*processes.gather(self.source.skipped))
        if skipped:
            since = f' since step {self.start}' if self.start else ''
            self.progress.say(f'{len(skipped)} images could not be read and were skipped{since}')
        return self.evaluated

    def partition(self, step: int) -> None:
        """Run the rounds due after `step` steps. The host decides, so the train step contains no condition."""
        due = self.rounds.due(step)
        if not due:
            return
        self._check_finite()
        with self.progress.paused(step, self.state):
            state = to_masked_storage(self.replicas.fetch(self.state))
            for fraction in due:
                state, values = self.rounds.run(state, fraction)
                self.writer.write(step, 'partition', values)
                self.progress.say(
                    f'partition round {values["round"]} of {len(self.rounds.plan)}: '
                    f'κ {values["dynamic_fraction"]:.4g}, '
                    f'loss {values["loss_before"]:.4f} before, {values["loss_after"]:.4f} after'
                )
            self._place(share(state))

    def _place(self, state: TrainState) -> None:
        """Put a masked state on the devices, and write partition.json."""
        self.summary = self.rounds.summarize(state)
        self.writer.write_file('partition.json', self.summary)
        state = to_trained_storage(state, len(self.rounds.plan), self.config.partition.compact)
        self.state = self.replicas.place_state(state)

    def train(self, step: int, batch) -> None:
        """Take the step of this number, counted from 1, and log, evaluate and save where they are due."""
        every, is_last = self.config.train, step == self.last_step
        try:
            self.state, metrics = self.train_step(self.state, self.replicas.place_batch(batch))
        except FloatingPointError as error:  # with config.debug, under which jax does not donate the state
            arguments = self.step_arguments | {'model': self.rounds.model, 'accumulate_steps': 1}
            found = find_nan(functools.partial(train_step, **arguments), self.replicas.fetch(self.state), batch)
            raise FloatingPointError(f'step {step} makes a NaN: {found}') from error
        counts = (every.log_every_steps, every.eval_every_steps, every.checkpoint_every_steps)
        logs, evaluates, saves = (step % count == 0 or is_last for count in counts)
        if logs or evaluates or saves:
            self._check_finite()
        if logs:
            self._log(step, metrics)
        else:
            self.progress.update(step)
        if evaluates:
            self.evaluate(step)
        if saves:
            self.save(step)

    def _log(self, step: int, metrics) -> None:
        values = {name: float(value) for name, value in self.replicas.fetch(metrics).items()}
        values['learning_rate'] = float(self.rate(step - 1 - self.skipped))  # schedules count updates
        if self.config.train.on_nonfinite == 'skip':
            values['nonfinite_steps'] = self.skipped
        values['dynamic_fraction'] = self.summary['totals']['dynamic_fraction']
        self.writer.write(step, 'train', values)
        self.writer.write_board(step, 'train/steps_per_second', self.progress.rate)
        shown = {name: values[name] for name in ('loss', 'accuracy') if name in values}
        self.progress.update(step, **shown, κ=values['dynamic_fraction'])

    def evaluate(self, step: int) -> None:
        """Evaluate the state after `step` steps and write the row."""
        with self.progress.paused(step, self.state):
            values = evaluate_state(self.eval_step, self.state, self.source, self.replicas, self.config.data.on_bad)
            # Not the whole state: its largest part belongs to the optimizer.
            state = self.state.replace(optimizer_state=(), average={}, **self.state.average)
            values |= compare_experts(self.replicas.fetch(state))
        self.writer.write(step, 'eval', values)
        self.evaluated = {'step': step, 'split': 'eval', **values}
        measured = {name: value for name, value in values.items() if name.rpartition('/')[2] in METRICS}
        self.progress.update(step, **{f'eval_{name}': value for name, value in measured.items()})

    def save(self, step: int) -> None:
        """Write the checkpoint of `step`."""
        with self.progress.paused(step, self.state):
            self._store(self.replicas.fetch(self.state))

    def _store(self, state: TrainState) -> None:
        if broken := find_nonfinite(state):
            raise processes.AgreedStop(f'after step {int(state.step)} {broken} is not finite; {self._describe_kept()}')
        self.writer.sync()
        self.checkpoints.save(to_masked_storage(state))

    def _check_finite(self) -> None:
        """Read the faults of the steps since the last call, before anything reports these steps.

        Raises:
          AgreedStop: on all processes, because all have the same faults.
        """
        faults = self.replicas.fetch(self.state.faults)
        if int(faults.in_a_row) >= self.step_arguments['most_nonfinite']:
            raise processes.AgreedStop(self._keep_last_finite())
        skipped, self.skipped = self.skipped, int(faults.skipped)
        if self.skipped > skipped:
            self.progress.say(f'{self.skipped} steps so far were not finite and were skipped')

    def _keep_last_finite(self) -> str:
        """Write the checkpoint of the last finite step, and describe the steps after it."""
        state = self.replicas.fetch(self.state)
        faults = jax.tree.map(int, state.faults)
        failed, finite = int(state.step), int(state.step) - faults.in_a_row
        text = f'{name_checked(state.params)[faults.first]} is not finite'
        if faults.in_a_row > 1:
            text += f', the last of {faults.in_a_row} such steps in a row'
        # A round after that step has changed the state since: it runs again from an earlier checkpoint.
        has_round = any(self.rounds.due(step) for step in range(finite, failed))
        if (self.checkpoints.latest_step() or 0) < finite and not has_round:
            self._store(state.replace(step=jnp.int32(finite), faults=Faults.none(faults.skipped - faults.in_a_row)))
        return f'step {failed}: {text}; {self._describe_kept()}, train.on_nonfinite=skip leaves such steps out'

    def _describe_kept(self) -> str:
        newest = self.checkpoints.latest_step()
        kept = f'the checkpoint of step {newest} is kept' if newest else 'no checkpoint exists yet'
        return f'{kept}; debug=True names the operation, a smaller optim.learning_rate or optim.clip_norm may help'

    def _say_result(self, how: str) -> None:
        values = ', '.join(f'{name} {value:.4f}' for name, value in self.evaluated.items() if name not in _NO_MEASURES)
        self.progress.say(f'{how}: {self.evaluated["step"]} steps, {values}, in {self.workdir}')

    def close(self) -> None:
        self.writer.close()
        if self.checkpoints:
            self.checkpoints.close()


def find_nan(function: Callable, *arguments) -> str:
    """Name the first operation of `function(*arguments)` that makes a NaN, and its line."""
    try:
        with jax.debug_nans(True):
            function(*arguments)
    except FloatingPointError as error:
        # In a backward pass, the cause has the line of the forward pass. Libraries and Python lie in lib/python*.
        frames = traceback.extract_tb(getattr(error.__cause__, '__traceback__', None) or error.__traceback__)
        frame = ([frame for frame in frames if '/lib/python' not in frame.filename] or frames)[-1]
        return f'{error}, in {frame.name} ({frame.filename}, line {frame.lineno})'
    return 'but not on one device, operation by operation'
