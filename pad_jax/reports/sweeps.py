"""Sweeps: every variant of an ablation file trained over seeds, each cell a process of its own."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from pad_jax.errors import BadInput, Stopped, check_together
from pad_jax.reports.ablations import Ablation, load_variants, read_ablation
from pad_jax.reports.sweep_layout import (
    BASE,
    SWEEP,
    Sweep,
    cell_folder,
    cell_log,
    find_seeds,
    is_finished,
    read_last_line,
    read_sweep,
    write_sweep,
)
from pad_jax.reports.sweep_progress import SweepProgress
from pad_jax.training.cli import StopSignals, make_line
from pad_jax.training.config import differing_keys, flatten, is_partial
from pad_jax.training.lock import LOCK, WorkdirLock
from pad_jax.training.setup import check_lengths, measure_lengths, open_source, plan_layers
from pad_jax.training.workdir import DataRecord, check_data, check_workdir, disk_faults_stop
from pad_jax.version import __version__

CELL = (sys.executable, '-m', 'pad_jax.reports.cell')
COMPILED = '.compiled'
"""Folder of what one cell compiled, so that those with an equal network need not."""
_SECONDS_BETWEEN_LOOKS = 0.1
_MOST_JOBS, _MOST_SEEDS = 1024, 10_000


@dataclasses.dataclass(frozen=True)
class Cell:
    """A variant with a seed."""

    name: str
    seed: int

    def __str__(self) -> str:
        return f'{self.name} seed {self.seed}'


def run_sweep(
    path: Path,
    folder: Path,
    seeds: int,
    jobs: int = 1,
    overrides: Sequence[str] = (),
    command: Sequence[str] = CELL,
) -> None:
    """Trains the cells that folder lacks, seed by seed, so that whatever has been done at any time compares fairly.

    Cells that are finished are kept, those that were interrupted go on from their newest checkpoint. Seeds and
    variants may be added to a folder; what is there has to be among what is asked for.

    Args:
      path: an ablation file.
      folder: laid out as `sweep_layout` says; created.
      seeds: cells of each variant, at least 1; their train.seed is 0, 1, ...
      jobs: cells at a time, at least 1.
      overrides: 'section.key=value' of the base.
      command: runs one cell, as `pad_jax.reports.cell` does.

    Raises:
      BadInput: before anything is written: with all that is wrong with the file, its configs, their data, the folder.
      Stopped: when all is done that can be, but some cells have failed.
      SystemExit: 143 after SIGTERM and 130 after SIGINT, once every cell that ran has written its checkpoint.
    """
    for flag, value, most in (('--seeds', seeds, _MOST_SEEDS), ('--jobs', jobs, _MOST_JOBS)):
        if not 1 <= value <= most:
            raise BadInput(f'{flag} must be from 1 to {most}, got {value}')
    if any(override.partition('=')[0] == 'train.seed' for override in overrides):
        raise BadInput('train.seed cannot be changed: --seeds=N trains with the seeds 0 to N - 1')
    ablation = read_ablation(path)
    configs = load_variants(ablation, overrides)
    base, *_ = configs.values()
    with WorkdirLock(folder) as lock:
        lock.find()
        changes = _read_back(ablation, configs)
        sweep = Sweep(__version__, ablation.base.name, base.to_dict(), changes, seeds=seeds)
        sweep = _join_earlier(folder, sweep, ablation)
        _check_data_and_cells(folder, configs)
        lock.take()
        with disk_faults_stop(f'{folder / SWEEP} cannot be written'):
            write_sweep(folder, sweep)
        cells = {Cell(name, seed): _with_seed(configs[name], seed) for seed in range(seeds) for name in configs}
        _Runner(folder, cells, jobs, command).run()


def _read_back(ablation: Ablation, configs: Mapping[str, ml_collections.ConfigDict]) -> dict[str, dict[str, Any]]:
    """What the variants change, as their configs hold it: a file may say '0.5' or 1 for a float."""
    flat = {name: flatten(configs[name]) for name in ablation.variants}
    return {name: {key: flat[name][key] for key in change} for name, change in ablation.variants.items()}


def _with_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.train.seed = seed
    return config


def _join_earlier(folder: Path, sweep: Sweep, ablation: Ablation) -> Sweep:
    """The sweep as sweep.json is to say it, with the seeds that were asked for before.

    Raises:
      BadInput: where the folder holds another sweep, or something else.
    """
    if not (folder / SWEEP).exists():
        if folder.exists() and not folder.is_dir():
            raise BadInput(f'{folder} is not a folder')
        others = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK) if folder.exists() else []
        if others:
            raise BadInput(
                f'{folder} is not the folder of a sweep: it holds {make_line(others[0])} but no {SWEEP}; use another'
            )
        return sweep
    earlier = read_sweep(folder)
    path = ablation.path
    if earlier.version != sweep.version:
        raise BadInput(
            f'{folder} was made by pad_jax {earlier.version}, this is {sweep.version}: go on with that version, or use '
            'another folder'
        )
    if earlier.base != sweep.base:
        raise BadInput(f'{folder} has the base {earlier.base}, {path} has {sweep.base}: use another folder')
    problems = differing_keys(flatten(earlier.config), flatten(sweep.config))
    for name, change in earlier.variants.items():
        if name not in sweep.variants:
            problems.append(f'variant {name} -> missing')
        elif dict(change) != sweep.variants[name]:
            problems.append(f'variant {name}: {dict(change)} -> {sweep.variants[name]}')
    if problems:
        raise BadInput(f'{folder} holds another sweep than {path} asks for ({"; ".join(problems)}): use another folder')
    return dataclasses.replace(sweep, seeds=max(earlier.seeds, sweep.seeds))


def _check_data_and_cells(folder: Path, configs: Mapping[str, ml_collections.ConfigDict]) -> None:
    """Whether every config can be trained on its data, the same for all, and whether the cells that are there were."""
    specs = {}

    def check(name, config):
        data = config.data.to_json(), *(config.model.get(key) for key in ('num_classes', 'pretrained', 'vocab_size'))
        if data not in specs:
            specs[data] = open_source(config).spec  # of no variant by itself: what is wrong is said once
        spec = specs[data]
        first, *_ = specs.values()
        if differing := DataRecord.of(first).differences(DataRecord.of(spec)):
            raise BadInput(
                f'variant {name} has other data than {BASE} ({"; ".join(differing)}): a sweep compares on one data set'
            )
        try:
            if is_partial(config):
                plan_layers(config)  # says whether the exclusions fit the network
            check_lengths(config, measure_lengths(config, spec.num_train), spec.num_train)
        except BadInput as problem:
            raise BadInput(f'variant {name}: {problem}') from problem
        for seed in find_seeds(folder, name):
            workdir = cell_folder(folder, name, seed)
            check_workdir(workdir, _with_seed(config, seed))
            check_data(workdir, spec)

    check_together(*(lambda name=name, config=config: check(name, config) for name, config in configs.items()))


@dataclasses.dataclass(frozen=True)
class _Process:
    cell: Cell
    process: subprocess.Popen
    start: float

    def stop(self) -> None:
        """Tells the cell to write its checkpoint and to end."""
        with contextlib.suppress(OSError):  # it has ended
            self.process.stdin.close()


class _Runner:
    """Runs the cells that are not finished, and says how far they are."""

    def __init__(
        self, folder: Path, cells: Mapping[Cell, ml_collections.ConfigDict], jobs: int, command: Sequence[str]
    ):
        self.folder, self.cells, self.jobs, self.command = folder, cells, jobs, command
        self.waiting = [cell for cell in cells if not is_finished(cell_folder(folder, cell.name, cell.seed))]
        self.running: list[_Process] = []
        self.failed: dict[Cell, str] = {}
        self.progress = SweepProgress(folder, len(cells), len(self.waiting), jobs)
        # Of one accelerator, JAX would give the first of several processes three quarters of the memory.
        shared = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'} if jobs > 1 else {}
        self.environment = {
            **shared,
            'JAX_COMPILATION_CACHE_DIR': str((folder / COMPILED).absolute()),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5',
            **os.environ,
        }

    def run(self) -> None:
        with StopSignals() as signals, self.progress:
            try:
                while (self.waiting or self.running) and signals.received is None:
                    while self.waiting and len(self.running) < self.jobs:
                        self._start(self.waiting.pop(0))
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                    self._collect()
                    self.progress.update({str(one.cell): one.start for one in self.running})
            finally:
                for one in self.running:
                    one.stop()
                for one in self.running:
                    one.process.wait()
        if signals.received is not None:
            left = sum(not is_finished(cell_folder(self.folder, cell.name, cell.seed)) for cell in self.cells)
            self.progress.say(f'{signals.received.name}: {left} cells are left; the same command goes on with them')
            raise SystemExit(128 + signals.received)
        for cell, why in self.failed.items():
            self.progress.say(f'failed: {cell}: {why}')
        if self.failed:
            raise Stopped(
                f'{len(self.failed)} of {len(self.cells)} cells failed, see {self.folder}/VARIANT/seed_N.log; the same '
                'command tries them again'
            )
        self.progress.say(f'all {len(self.cells)} cells are finished: python -m pad_jax report {self.folder}')

    def _start(self, cell: Cell) -> None:
        """Runs a cell; one that cannot even begin has failed."""
        try:
            self.running.append(self._open(cell))
        except OSError as error:
            self.failed[cell] = f'cannot begin: {error.strerror}: {make_line(str(error.filename))}'
            self.progress.ended(str(cell), 0.0, self.failed[cell])

    def _open(self, cell: Cell) -> _Process:
        log = cell_log(self.folder, cell.name, cell.seed)
        log.parent.mkdir(exist_ok=True)
        workdir = cell_folder(self.folder, cell.name, cell.seed)
        # What a terminal or a scheduler tells all processes at once is for the sweep alone, which tells its cells.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            with log.open('ab') as file:
                process = subprocess.Popen(
                    [*self.command, str(workdir), str(cell)],
                    stdin=subprocess.PIPE,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        with contextlib.suppress(BrokenPipeError):  # it has crashed already, which is seen soon
            process.stdin.write(json.dumps(self.cells[cell].to_dict()).encode() + b'\n')
            process.stdin.flush()
        return _Process(cell, process, time.monotonic())

    def _collect(self) -> None:
        """Notes the cells that have ended."""
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            one.stop()
            cell, status = one.cell, one.process.returncode
            if status:
                self.failed[cell] = _explain(status, cell_log(self.folder, cell.name, cell.seed))
            self.progress.ended(str(cell), time.monotonic() - one.start, self.failed.get(cell))


def _explain(status: int, log: Path) -> str:
    """How a process ended, and the last line that it left."""
    how = f'exit {status}' if status > 0 else f'killed by {signal.Signals(-status).name}'
    return f'{how}: {read_last_line(log) or "it said nothing"}'
