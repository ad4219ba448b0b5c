"""The training loop: it calls pure steps from the host and writes all files of a run."""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from pad_jax.data import METRICS, Source
from pad_jax.errors import BadInput, check_together
from pad_jax.training import processes, setup
from pad_jax.training import workdir as files
from pad_jax.training.best import Scores
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.cli import StopSignals
from pad_jax.training.config import flatten, is_partial, is_text
from pad_jax.training.devices import AXIS, Replicas, share
from pad_jax.training.evaluate import evaluate_state
from pad_jax.training.lock import WorkdirLock
from pad_jax.training.progress import StepProgress
from pad_jax.training.rounds import Rounds, compare_experts, summarize_partition, to_masked_storage, to_trained_storage
from pad_jax.training.start import start_from_pretrained
from pad_jax.training.state import Faults, TrainState, abstract_state, init_state
from pad_jax.training.steps import (
    add_metrics,
    check_finite,
    describe_constant_layers,
    eval_step,
    find_nonfinite,
    train_step,
)


def train(
    config: ml_collections.ConfigDict,
    workdir: str | Path,
    label: str = 'train',
    devices: Sequence[jax.Device] | None = None,
    wait_seconds: float = 0,
) -> dict[str, Any]:
    """Train the network of a checked config; resume from the latest checkpoint if workdir contains any.

    The workdir then contains config.json, data.json, versions.json, for texts tokenizer.json, metrics.jsonl,
    tensorboard/, partition.json, timing.json and checkpoints/. All processes must call it; the first one writes.

    Args:
      config: as `load_config` returns it.
      workdir: folder of the run; created.
      label: name of the run in progress lines.
      devices: devices to train on; None: all devices.
      wait_seconds: time to wait for the end of another run in workdir.

    Returns:
      The last evaluated row of metrics.

    Raises:
      BadInput: before anything except the lock is written; or later, at a damaged image that was not decoded before.
      Stopped: the disk is full or fails, or the loss or a gradient is not finite. Checkpoints stay sound.
      SystemExit: 143 after SIGTERM and 130 after SIGINT, once the step is done and its checkpoint written.
    """
    if not str(workdir):
        raise BadInput('workdir must name a folder, got an empty text')
    workdir, config = Path(workdir), config.copy_and_resolve_references()
    replicas = Replicas(config.parallel, devices)
    processes.check_same('config', flatten(config))
    processes.check_same('machine', {'devices': len(replicas.local_devices), 'jax': jax.__version__})
    with WorkdirLock(workdir, wait_seconds) as lock:
        lock.take_together()
        with processes.all_or_none():
            source, lengths = _prepare(config, workdir, replicas)
        processes.check_same('data', files.describe_data(source.spec))
        source = source.with_threads(processes.count_own_processors())
        run = Run(config, workdir, source, lengths, replicas, label)
        with jax.debug_nans(config.debug), StopSignals() as signals, contextlib.closing(run):
            run.open()
            return run.finish(signals)


def _prepare(config, workdir: Path, replicas: Replicas) -> tuple[Source, setup.Lengths]:
    """Open the data and measure the run, after all checks that read nothing but the input."""
    is_counted = config.model.get('num_classes', 1) > 0  # otherwise the data has the number
    *_, source = check_together(
        lambda: files.check_workdir(workdir, config),
        lambda: _check_batch(config, replicas),
        lambda: is_counted and _check_network(config, replicas),
        lambda: setup.open_source(config, workdir),
    )
    if not is_counted:
        _check_network(config, replicas)
    files.check_data(workdir, source.spec)
    return source, setup.measure_lengths(config, source.spec.num_train)


def _check_network(config, replicas: Replicas) -> None:
    if is_partial(config):
        setup.plan_layers(config)  # refuses exclusions that do not fit the network
    setup.check_norms(config, len(replicas.devices))


def _check_batch(config, replicas: Replicas) -> None:
    """Raise BadInput unless all microbatches of all devices have as many examples, and pairs of them for mixup."""
    parts, pair = config.optim.accumulate_steps, 2 if config.train.get('mixup') else 1
    multiple = len(replicas.devices) * math.lcm(parts, pair)
    if config.data.batch_size % multiple:
        pairs = ', in pairs for train.mixup' if pair > 1 else ''
        raise BadInput(
            f'data.batch_size must be a multiple of {multiple} ({len(replicas.devices)} devices × '
            f'optim.accumulate_steps = {parts}{pairs}), got {config.data.batch_size}'
        )


class Run:
    """One process' part of a run: `open` it, `finish` it, and `close` it in any case."""

    def __init__(self, config, workdir: Path, source: Source, lengths, replicas: Replicas, label: str):
        self.config, self.workdir, self.source, self.replicas = config, workdir, source, replicas
        self.last_step, self.label = lengths.total, label
        arguments = setup.make_step_arguments(config, lengths, AXIS)
        self.optimizer, self.most_nonfinite = arguments['optimizer'], arguments['most_nonfinite']
        # Rounds and evaluation run the network on single devices too, so it has no axis there.
        self.model = setup.make_model(config)
        alone = {'task': arguments['task'], 'temperature': arguments['temperature'], 'model': self.model}
        self.train_step = replicas.map_step(train_step, donate=True, **arguments)
        self.eval_step = replicas.map_step(eval_step, donate=False, **alone)
        self.rounds = Rounds(config, source, **alone)
        self.temperature, self.rate = arguments['temperature'], setup.make_rate(config, lengths)
        self.writer, self.checkpoints = files.NoWriter(), None

    def open(self) -> None:
        """Restore or make the state, and begin to write."""
        with processes.all_or_none():
            self.checkpoints = Checkpoints(self.workdir / 'checkpoints', self.config.train.keep_checkpoints)
            state, notes = self._begin()
            self.start, self.skipped = int(state.step), int(state.faults.skipped)
            # A run that has skipped steps may now stop at the first one.
            in_a_row = min(int(state.faults.in_a_row), self.most_nonfinite - 1)
            self.sums, state = state.sums, state.replace(sums={}, faults=Faults.none(self.skipped, in_a_row))
            self.scores = Scores(self.config, self._read_evaluations())
            is_over = self.start >= self.last_step or self.scores.is_out_of_patience
            self.evaluated = self._read_last_evaluation() if is_over else None
            if processes.is_first():
                notes += self._open_workdir()
        self.progress = StepProgress(self.label, self.last_step, self.start, quiet=not processes.is_first())
        for line in notes:
            self.progress.say(line)
        self._place(share(state))

    def _begin(self) -> tuple[TrainState, list[str]]:
        """Return the state of the latest checkpoint or before the first step, and notes for the user."""
        arguments = self.model, self.optimizer, setup.make_inputs(self.config)
        averaged = self.config.optim.ema_decay > 0
        if self.checkpoints.latest_step() is not None:
            return self.checkpoints.restore_newest(abstract_state(*arguments, averaged)), []
        state = init_state(*arguments, self.config.train.seed, averaged)
        return start_from_pretrained(self.config, self.model, state, self.source.spec.class_names)

    def _open_workdir(self) -> list[str]:
        try:
            if self.evaluated is None:
                files.add_version(self.workdir)
            files.write_identity(self.workdir, self.config, self.source)
            notes = self.checkpoints.describe_damage()
            self.checkpoints.prepare_to_write()
            self.writer = files.MetricWriter(self.workdir, self.start)
            self.writer.write_board(self.start, {}, {'config': str(self.config)})
        except OSError as error:
            raise BadInput(f'workdir {self.workdir} cannot be written: {error.strerror}') from error
        return notes

    def _read_evaluations(self) -> list[dict[str, Any]]:
        rows = processes.ask_first(lambda: files.read_metrics(self.workdir)) if self.start else []
        return [row for row in rows if row['split'] == 'eval' and row['step'] <= self.start]

    def _read_last_evaluation(self) -> dict[str, Any]:
        rows = [row for row in self._read_evaluations() if row['step'] == self.start]
        measures = _select_measures(rows[-1]) if rows else {}
        if 'loss' in measures and all(type(value) is float for value in measures.values()):
            return rows[-1]
        raise BadInput(f'{self.workdir} contains a finished run, but its metrics.jsonl has lost the last evaluation')

    def finish(self, signals: StopSignals) -> dict[str, Any]:
        """Run the remaining steps, or those until a signal comes; return the last evaluated row."""
        is_finished = self.evaluated is not None
        if not is_finished:
            self._run_steps(signals)
            with contextlib.suppress(BadInput):  # a damaged image that no batch had asked for; the run is done
                self._warn_of_constant_layers(to_masked_storage(self._fetch_network()))
        if not is_finished or not (self.workdir / 'timing.json').exists():  # killed right after its last checkpoint
            self.writer.write_file('timing.json', {'seconds_per_step': self.progress.seconds_per_step})
        values = ', '.join(f'{name} {value:.4f}' for name, value in _select_measures(self.evaluated).items())
        how = 'is finished already' if is_finished else 'done'
        self.progress.say(f'{how}: {self.evaluated["step"]} steps, {values}, in {self.workdir}')
        temperature = self.temperature and float(self.temperature(self.evaluated['step']))
        if (temperature or 1) > 1:  # stopped early
            self.progress.say(
                f'the temperature of the attention is still {temperature:.3g}: the network is nearly static'
            )
        if self.skipped:
            self.progress.say(f'{self.skipped} steps were not finite and were skipped')
        # Metrics do not count images: those met in training depend on the start and on the prefetching.
        if skipped := set().union(*processes.gather(self.source.skipped)):
            since = f' since step {self.start}' if self.start else ''
            self.progress.say(f'{len(skipped)} images could not be read and were skipped{since}')
        return self.evaluated

    def _run_steps(self, signals: StopSignals) -> None:
        rows = self.replicas.rows(self.config.data.batch_size)
        with self.progress, self.source.train_batches(self.start, self.last_step, rows) as batches:
            if self.start:
                self.progress.say(f'resumes from the checkpoint of step {self.start}')
            for step, batch in batches:
                self.partition(step)
                self.train(step + 1, batch)
                if step + 1 < self.last_step and self.scores.is_out_of_patience:
                    hint = '. Commands read it with --best' if self.config.train.keep_best else ''
                    best = self.scores.best()
                    self.progress.say(f'stops early: no evaluation was better than that of step {best}{hint}')
                    return
                if signals.stop_after(step + 1):
                    self._check_finite()
                    self.save(step + 1)
                    self.progress.say(f'{signals.received.name}: checkpoint of step {step + 1} is written')
                    raise SystemExit(128 + signals.received)

    def partition(self, step: int) -> None:
        """Run the rounds due after `step` steps. The host decides, so the train step contains no condition."""
        due = self.rounds.due(step)
        if not due:
            return
        self._check_finite()
        with self.progress.paused(step, self.state):
            state = to_masked_storage(self.replicas.fetch(self.state))
            for fraction in due:
                state, values = self.rounds.run(state, fraction, self.progress.note)
                self.writer.write(step, 'partition', values)
                self.progress.say(
                    f'partition round {values["round"]} of {len(self.rounds.plan)}: '
                    f'κ {values["dynamic_fraction"]:.4g}, '
                    f'loss {values["loss_before"]:.4f} before, {values["loss_after"]:.4f} after'
                )
            self._place(share(state))
            if step or not is_text(self.config):  # routers begin at zero: all tokens have the same experts
                self._warn_of_constant_layers(state)

    def _warn_of_constant_layers(self, state: TrainState) -> None:
        layers = self.summary['layers']
        if said := layers and describe_constant_layers(self.rounds.find_constant(state), layers):
            self.progress.say(said)

    def _place(self, state: TrainState) -> None:
        """Put a masked state on the devices, and write partition.json."""
        shapes = setup.abstract_variables(self.model, setup.make_inputs(self.config))
        self.summary = summarize_partition(self.config, shapes, state.masks, int(state.round))
        self.writer.write_file('partition.json', self.summary)
        fractions = {f'κ/{layer["name"]}': layer['dynamic_fraction'] for layer in self.summary['layers']}
        self.writer.write_board(int(state.step), fractions)
        state = to_trained_storage(state, len(self.rounds.plan), self.config.partition.compact)
        self.state = self.replicas.place_state(state)

    def train(self, step: int, batch) -> None:
        """Take the step of this number, counted from 1, and log, evaluate and save where they are due."""
        every, is_last = self.config.train, step == self.last_step
        is_first, began = step == self.start + 1, time.monotonic()
        if is_first:
            self.progress.note('compiling the step; after two minutes XLA prints a warning and continues')
        self.state, metrics = self.train_step(self.state, self.replicas.place_batch(batch))
        self.sums = add_metrics(self.sums, metrics, self.state.faults.in_a_row)
        if is_first:
            jax.block_until_ready(metrics)
            self.progress.note(f'step {step} is done, compiled in {time.monotonic() - began:.0f} s')
        counts = every.log_every_steps, every.eval_every_steps, every.checkpoint_every_steps
        logs, evaluates, saves = (step % count == 0 or is_last for count in counts)
        if logs or evaluates or saves:
            self._check_finite()
        if logs:
            self._log(step, metrics)
        else:
            self.progress.update(step)
        if evaluates:
            self.evaluate(step)
            is_best = self.config.train.keep_best and self.scores.best() == step
            saves = saves or is_best or self.scores.is_out_of_patience
        if saves:
            self.save(step)

    def _log(self, step: int, metrics) -> None:
        last, sums = self.replicas.fetch((metrics, self.sums))
        means = {name: float(total / count) if count else math.nan for name, (total, count) in sums.items()}
        values, self.sums = {name: means.get(name, float(value)) for name, value in last.items()}, {}
        values['learning_rate'] = float(self.rate(step - 1 - self.skipped))  # schedules count updates
        if self.config.train.on_nonfinite == 'skip':
            values['nonfinite_steps'] = self.skipped
        values['dynamic_fraction'] = self.summary['totals']['dynamic_fraction']
        self.writer.write(step, 'train', values, steps_per_second=self.progress.rate)
        shown = {name: values[name] for name in ('loss', 'accuracy') if name in values}
        self.progress.update(step, **shown, κ=values['dynamic_fraction'])

    def evaluate(self, step: int) -> None:
        """Evaluate the state after `step` steps and write the row."""
        with self.progress.paused(step, self.state):
            values = evaluate_state(self.eval_step, self.state, self.source, self.replicas, self.config.data.on_bad)
            values |= {name: float(value) for name, value in compare_experts(self._fetch_network()).items()}
        self.writer.write(step, 'eval', values)
        self.evaluated = {'step': step, 'split': 'eval', **values}
        self.scores.add(self.evaluated)
        measured = {name: value for name, value in values.items() if name.rpartition('/')[2] in METRICS}
        self.progress.update(step, **{f'eval_{name}': value for name, value in measured.items()})

    def _fetch_network(self) -> TrainState:
        """Fetch what is evaluated, not the whole state: its largest part belongs to the optimizer."""
        return self.replicas.fetch(self.state.replace(optimizer_state=(), average={}, **self.state.average))

    def save(self, step: int) -> None:
        """Write the checkpoint of `step`."""
        with self.progress.paused(step, self.state):
            self._store(self.replicas.fetch(self.state))

    def _store(self, state: TrainState) -> None:
        if broken := find_nonfinite(state):
            raise self._stop_with(f'after step {int(state.step)} {broken} is not finite')
        self.writer.sync()
        state = to_masked_storage(state).replace(sums=self.replicas.fetch(self.sums))
        self.checkpoints.save(state, self.scores.best() if self.config.train.keep_best else None)

    def _check_finite(self) -> None:
        """Read the faults of the steps since the last call, before anything reports these steps.

        Raises:
          AgreedStop: on all processes, because all have the same faults. A checkpoint of the last finite step exists.
        """
        faults = jax.tree.map(int, self.replicas.fetch(self.state.faults))
        if faults.in_a_row < self.most_nonfinite:
            if faults.skipped > self.skipped:
                self.progress.say(f'{faults.skipped} steps so far were not finite and were skipped')
            self.skipped = faults.skipped
            return
        state = self.replicas.fetch(self.state)
        failed, finite = int(state.step), int(state.step) - faults.in_a_row
        # A round after that step has changed the state since: it runs again from an earlier checkpoint.
        has_round = any(self.rounds.due(step) for step in range(finite, failed))
        if (self.checkpoints.latest_step() or 0) < finite and not has_round:
            self._store(state.replace(step=jnp.int32(finite), faults=Faults.none(faults.skipped - faults.in_a_row)))
        before = f', the last of {faults.in_a_row} such steps in a row' if faults.in_a_row > 1 else ''
        broken = list(check_finite(0.0, state.params, {}))[faults.first]
        stop = self._stop_with(f'step {failed}: {broken} is not finite{before}')
        raise processes.AgreedStop(f'{stop}, train.on_nonfinite=skip leaves such steps out')

    def _stop_with(self, problem: str) -> processes.AgreedStop:
        newest = self.checkpoints.latest_step()
        kept = f'the checkpoint of step {newest} is kept' if newest else 'no checkpoint exists yet'
        advice = 'debug=True names the operation, a smaller optim.learning_rate or optim.clip_norm may help'
        return processes.AgreedStop(f'{problem}; {kept}; {advice}')

    def close(self) -> None:
        self.writer.close()
        if self.checkpoints:
            self.checkpoints.close()


def _select_measures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ('step', 'split', 'examples', 'skipped')}
