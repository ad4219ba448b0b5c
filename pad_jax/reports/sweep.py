"""Sweeps: train every variant of an ablation file over seeds, each run in a process of its own.

An ablation file, as in configs/ablations/, is Python with `get_ablation() -> ml_collections.ConfigDict`:

    base: name of a config file in the folder above
    variants: pairs (name, {'section.key': value}); a dict would swallow one of two equal names

The folder of a sweep:

    sweep.json                 the base, the variants and the number of seeds
    VARIANT/seed_N/            workdir of a run
    VARIANT/seed_N.log         output of that run
    report/                    written by `python -m pad_jax report DIR`

The process `python -m pad_jax.reports.sweep [MODULE ...] WORKDIR LABEL` trains one run, so a crash ends that run only.
It imports the modules of `--import`. The first line of its stdin is the config as JSON. The end of stdin stops the run
with a checkpoint. The sweep closes stdin to stop a run, and the system does so if the sweep is killed.
"""

import collections
import contextlib
import dataclasses
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from pad_jax.config_files import call_file, find_config_file, import_modules
from pad_jax.errors import BadInput, Stopped, check_together
from pad_jax.files import read_own_object, read_plain
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.cli import StopSignals, check_count, exit_status, make_line
from pad_jax.training.config import differing_keys, flatten, is_partial, load_config
from pad_jax.training.lock import LOCK, WorkdirInUse, WorkdirLock
from pad_jax.training.progress import Progress
from pad_jax.training.setup import measure_lengths, open_source, plan_layers
from pad_jax.training.trainer import train
from pad_jax.training.workdir import check_data, check_workdir, compare_data, disk_faults_stop, write_json
from pad_jax.version import __version__

SWEEP, REPORT, BASE = 'sweep.json', 'report', 'base'  # BASE: the variant that changes nothing
COMMAND = (sys.executable, '-m', 'pad_jax.reports.sweep')
_MAX_KEYS = 3  # of a variant: a larger change is another experiment
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_OF_ORPHANS = 600  # runs of a killed sweep stop after their step, which may have to be compiled


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep: a variant with a seed, in the folder of the sweep."""

    folder: Path
    variant: str
    seed: int

    def __str__(self) -> str:
        return f'{self.variant} seed {self.seed}'

    @property
    def workdir(self) -> Path:
        return self.folder / self.variant / f'seed_{self.seed}'

    @property
    def log(self) -> Path:
        return self.workdir.with_suffix('.log')

    @property
    def has_begun(self) -> bool:
        return (self.workdir / 'config.json').is_file()  # written last before the first step

    @property
    def is_finished(self) -> bool:
        """True if the run wrote timing.json after its last step, and still has a checkpoint."""
        is_done = self.has_begun and (self.workdir / 'timing.json').is_file()
        return is_done and bool(Checkpoints(self.workdir / 'checkpoints').steps_here())

    def read_last_line(self) -> str:
        """Return the last line of the log, fit to be printed; '' without a log."""
        try:
            lines = read_plain(self.log).decode(errors='replace').split('\n')
        except OSError:
            return ''
        return make_line(next((line for line in reversed(lines) if line.strip()), ''))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Content of sweep.json.

    Attributes:
      version: version of pad_jax.
      base: name of the base's config file.
      config: keys of the base after the flags, nested.
      variants: {name: {'section.key': value}} without the base.
      seeds: the largest number of seeds asked for so far.
    """

    version: str
    base: str
    config: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    seeds: int

    @property
    def names(self) -> list[str]:
        """All variants, the base first."""
        return [BASE, *self.variants]

    def flatten(self) -> dict[str, Any]:
        """Return everything that a later call must repeat, as a flat dict."""
        changes = {f'variant {name}': dict(change) for name, change in self.variants.items()}
        return {'version': self.version, 'base': self.base, **flatten(self.config), **changes}


def read_sweep(folder: Path) -> Sweep:
    """Read sweep.json.

    Raises:
      BadInput: if the folder is not a sweep's, or its sweep.json is damaged.
    """
    content = read_own_object(folder / SWEEP, 'the folder of a sweep')
    kinds = {'version': str, 'base': str, 'config': Mapping, 'variants': Mapping, 'seeds': int}
    is_sound = all(isinstance(content.get(name), kind) for name, kind in kinds.items())
    changes = content['variants'].items() if is_sound else ()
    if not is_sound or not all(_is_name(name) and isinstance(change, Mapping) for name, change in changes):
        raise BadInput(f'{folder / SWEEP} is damaged: use another folder')
    return Sweep(**{name: content[name] for name in kinds})


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Write sweep.json atomically."""
    write_json(folder / SWEEP, dataclasses.asdict(sweep))


def _is_name(name: str) -> bool:
    plain = re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}', name)
    return plain is not None and name not in (REPORT, SWEEP, LOCK, BASE)


def find_runs(folder: Path, variant: str) -> list[SweepRun]:
    """List the runs of a variant that have a workdir, by seed."""
    found = [re.fullmatch(r'seed_(0|[1-9]\d{0,9})', path.name) for path in (folder / variant).glob('seed_*')]
    return [SweepRun(folder, variant, seed) for seed in sorted(int(match[1]) for match in found if match)]


class Ablation(NamedTuple):
    """Content of an ablation file: its path, the path of the base's config, {name: {'section.key': value}}."""

    path: Path
    base: Path
    variants: dict[str, dict[str, Any]]


def read_ablation(path: Path) -> Ablation:
    """Read an ablation file and check it, except for the values of its keys.

    Raises:
      BadInput: lists all problems.
    """
    path = find_config_file(path, 'ablations')
    content = call_file(path, 'get_ablation')
    if content.keys() != {'base', 'variants'} or type(content['base']) is not str:
        raise BadInput(f'get_ablation() of {path} must return base, the name of a config file, and variants')
    try:
        pairs = [(name, dict(change)) for name, change in content['variants']]
        names = collections.Counter(name for name, _ in pairs)
    except (TypeError, ValueError):
        pairs, names = [], {}
    if not pairs or not all(type(name) is str for name in (*names, *(key for _, change in pairs for key in change))):
        raise BadInput(f"variants of {path} must be pairs (name, {{'section.key': value}}), at least one")
    problems = [f'{count} variants are called {name}: rename them' for name, count in names.items() if count > 1]
    for name, change in pairs:
        if not _is_name(name):
            problems.append(
                f'{name!r} must be letters, digits and _.+=-, and none of {BASE}, {REPORT}, {SWEEP}, {LOCK}'
            )
        if not 1 <= len(change) <= _MAX_KEYS:
            problems.append(f'variant {name} must change 1 to {_MAX_KEYS} keys, got {len(change)}')
        shared = sorted({'train.seed', 'data.path'} & change.keys())
        problems += [f'variant {name} cannot change {key}, which all variants share' for key in shared]
    if problems:
        raise BadInput(f'{path}: {"; ".join(problems)}')
    above = path.absolute().parent.parent / content['base']
    return Ablation(path, above if above.exists() else find_config_file(content['base']), dict(pairs))


def load_variants(ablation: Ablation, overrides: Sequence[str] = ()) -> dict[str, ml_collections.ConfigDict]:
    """Load the configs of the base and of every variant, by name, the base first.

    Args:
      ablation: the base and the variants.
      overrides: 'section.key=value' of the base. A variant that changes the same key overrides them.

    Raises:
      BadInput: lists all problems of all configs, and variants with equal configs.
    """

    def load(name):
        changes = [f'{key}={value}' for key, value in ablation.variants[name].items()]
        try:
            return load_config(str(ablation.base), [*overrides, *changes])
        except BadInput as problem:
            raise BadInput(f'variant {name} of {ablation.path}: {problem}') from problem

    base = load_config(str(ablation.base), overrides)
    found = check_together(*(lambda name=name: load(name) for name in ablation.variants))
    configs = {BASE: base, **dict(zip(ablation.variants, found, strict=True))}
    first, problems = {}, []
    for name, config in configs.items():
        if (twin := first.setdefault(repr(sorted(flatten(config).items())), name)) != name:
            problems.append(f'variant {name} changes nothing: it is the same as {twin}')
    if problems:
        raise BadInput(f'{ablation.path}: {"; ".join(problems)}')
    return configs


def run_sweep(
    path: Path, folder: Path, seeds: int, jobs: int = 1, overrides: Sequence[str] = (), command: Sequence[str] = COMMAND
) -> None:
    """Train the missing runs of a sweep seed by seed, so that variants can be compared at any time.

    Finished runs are kept, and interrupted ones resume from their newest checkpoint. A later call may add seeds and
    variants to the folder. It must repeat the variants that are already there.

    Args:
      path: an ablation file.
      folder: folder of the sweep; created.
      seeds: runs of each variant, 1 to 1,000, with train.seed 0, 1, ...
      jobs: runs at the same time, 1 to 1,000.
      overrides: 'section.key=value' of the base.
      command: trains one run when called with WORKDIR and LABEL.

    Raises:
      BadInput: before anything is written; lists all problems of the file, its configs, their data and the folder.
      Stopped: after all other runs have ended, if some have failed.
      SystemExit: 143 after SIGTERM and 130 after SIGINT, when every running run has written its checkpoint.
    """
    check_count('--seeds', seeds)
    check_count('--jobs', jobs)
    if any(override.partition('=')[0] == 'train.seed' for override in overrides):
        raise BadInput('train.seed cannot be changed: --seeds=N trains with the seeds 0 to N - 1')
    ablation = read_ablation(path)
    configs = load_variants(ablation, overrides)
    # Record values as configs hold them: a file may give '0.5' or 1 for a float.
    flat = {name: flatten(config) for name, config in configs.items()}
    changes = {name: {key: flat[name][key] for key in change} for name, change in ablation.variants.items()}
    with WorkdirLock(folder) as lock:
        lock.take()
        sweep = Sweep(__version__, ablation.base.name, configs[BASE].to_dict(), changes, seeds)
        sweep = _join_earlier(folder, sweep)
        _check_data_and_runs(folder, configs)
        with disk_faults_stop(f'{folder / SWEEP} cannot be written'):
            write_sweep(folder, sweep)
        runs = [SweepRun(folder, name, seed) for seed in range(seeds) for name in configs]
        _Runner(folder, {run: _with_seed(configs[run.variant], run.seed) for run in runs}, jobs, command).run()


def _with_seed(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.train.seed = seed
    return config


def _join_earlier(folder: Path, sweep: Sweep) -> Sweep:
    """Join a sweep with the one that the folder holds; BadInput if they differ or the folder holds other files."""
    if not (folder / SWEEP).exists():
        if folder.exists() and not folder.is_dir():
            raise BadInput(f'{folder} is not a folder')
        others = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK) if folder.exists() else []
        if others:
            raise BadInput(f'{folder} holds {make_line(others[0])} but not {SWEEP}: use another folder')
        return sweep
    earlier = read_sweep(folder)
    old, new = earlier.flatten(), sweep.flatten()
    problems = differing_keys(old, {key: value for key, value in new.items() if key in old})  # variants may be added
    if problems:
        raise BadInput(f'{folder} holds another sweep ({"; ".join(problems)}): use another folder')
    return dataclasses.replace(sweep, seeds=max(earlier.seeds, sweep.seeds))


def _check_data_and_runs(folder: Path, configs: Mapping[str, ml_collections.ConfigDict]) -> None:
    """Check that every config fits its data, that all have the same data, and that existing runs have those configs."""
    specs = {}

    def check(name, config):
        data = config.data.to_json(), *(config.model.get(key) for key in ('num_classes', 'pretrained', 'vocab_size'))
        if data not in specs:
            specs[data] = open_source(config).spec  # a problem of the data is reported once for all variants
        spec = specs[data]
        if not config.model.get('num_classes', 1):
            config.model.num_classes = spec.num_classes
        first, *_ = specs.values()
        if differing := compare_data(first, spec):
            raise BadInput(f'variant {name} has other data than {BASE} ({"; ".join(differing)}): use one data set')
        try:
            if is_partial(config):
                plan_layers(config)  # checks that keep_static and keep_dynamic match layers
            measure_lengths(config, spec.num_train)
        except BadInput as problem:
            raise BadInput(f'variant {name}: {problem}') from problem
        for run in find_runs(folder, name):
            check_workdir(run.workdir, _with_seed(config, run.seed))
            check_data(run.workdir, spec)

    check_together(*(lambda name=name, config=config: check(name, config) for name, config in configs.items()))


class _Runner(Progress):
    """Train the unfinished runs, `jobs` processes at a time, and report progress on stderr."""

    def __init__(
        self, folder: Path, runs: Mapping[SweepRun, ml_collections.ConfigDict], jobs: int, command: Sequence[str]
    ):
        self.folder, self.runs, self.jobs, self.command = folder, runs, jobs, command
        self.waiting = [run for run in runs if not run.is_finished]
        self.kept = len(runs) - len(self.waiting)
        super().__init__('sweep', len(runs), self.kept)
        self.running: dict[SweepRun, tuple[subprocess.Popen, float]] = {}  # with the time of their start
        self.seconds: list[float] = []  # duration of each run that has finished here
        self.failed: dict[SweepRun, str] = {}
        # By default JAX reserves three quarters of an accelerator's memory for the first process.
        shared = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'} if jobs > 1 else {}
        self.environment = {**shared, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5', **os.environ}

    def run(self) -> None:
        self.say(f'{len(self.runs)} runs in {self.folder}, {self.kept} of them already finished')
        with StopSignals() as signals, self:
            try:
                while (self.waiting or self.running) and signals.received is None:
                    while self.waiting and len(self.running) < self.jobs:
                        self._start(self.waiting.pop(0))
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
                    for run in [run for run, (process, _) in self.running.items() if process.poll() is not None]:
                        self._collect(run)
                    self.show(
                        self.kept + len(self.seconds), f'{len(self.failed)} failed: {", ".join(map(str, self.running))}'
                    )
            finally:
                for process, _ in self.running.values():
                    _close(process)
                for process, _ in self.running.values():
                    process.wait()
        if signals.received is not None:
            left = sum(not run.is_finished for run in self.runs)
            self.say(f'{signals.received.name}: {left} runs are left; the same command resumes them')
            raise SystemExit(128 + signals.received)
        for run, problem in self.failed.items():
            self.say(f'failed: {run}: {problem}')
        if self.failed:
            said = f'{self._count()}, see {self.folder}/VARIANT/seed_N.log'
            raise Stopped(f'{said}; the same command tries the failed ones again')
        self.say(f'{self._count()}: python -m pad_jax report {self.folder}')

    def _start(self, run: SweepRun) -> None:
        """Start the process of a run. A run that cannot start has failed."""
        command = [*self.command, str(run.workdir), str(run)]
        # A terminal or a scheduler signals all processes at once. Only the sweep reacts, and then stops its runs.
        try:
            with WorkdirLock(run.workdir) as lock:
                lock.take()
        except WorkdirInUse as problem:
            self.say(f'{run} waits up to {_SECONDS_OF_ORPHANS} s for a run that is stopping: {problem}')
        except BadInput:
            pass  # the run will report it
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            run.log.parent.mkdir(exist_ok=True)
            with run.log.open('ab') as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=self.environment
                )
        except OSError as error:
            self._note(run, f'cannot start: {error.strerror}: {make_line(str(error.filename))}')
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        self.running[run] = process, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it has crashed already, which `_collect` will see
            process.stdin.write(json.dumps(self.runs[run].to_dict()).encode() + b'\n')
            process.stdin.flush()

    def _collect(self, run: SweepRun) -> None:
        """Note a run that has ended."""
        process, start = self.running.pop(run)
        _close(process)
        if status := process.returncode:
            how = f'exit {status}' if status > 0 else f'killed by {signal.Signals(-status).name}'
            self._note(run, f'{how}: {run.read_last_line() or "without output"}')
        else:
            self.seconds.append(time.monotonic() - start)
            self.say(f'{self._count()}; {run} done in {_format_duration(self.seconds[-1])}')

    def _note(self, run: SweepRun, problem: str) -> None:
        self.failed[run] = problem
        self.say(f'{self._count()}; {run} failed: {problem}')

    def _count(self) -> str:
        done = self.kept + len(self.seconds)
        said = f'{done}/{len(self.runs)} runs, {len(self.failed)} failed'
        if not self.seconds:
            return said
        left = len(self.runs) - done - len(self.failed)
        mean = sum(self.seconds) / len(self.seconds)
        return f'{said}, {_format_duration(mean * left / min(self.jobs, max(left, 1)))} left'


def _format_duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _close(process: subprocess.Popen) -> None:
    """Ask a run to write its checkpoint and exit."""
    with contextlib.suppress(OSError):  # it has exited
        process.stdin.close()


def train_one() -> None:
    """Train one run of a sweep: the process of a run, see the module docstring."""
    *modules, workdir, label = sys.argv[1:]
    import_modules(modules)
    config = ml_collections.ConfigDict(json.loads(sys.stdin.readline()))
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    train(config, workdir, label, wait_seconds=_SECONDS_OF_ORPHANS)


def _stop_at_end_of_input() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    # The sweep blocked SIGTERM, and a second one would end the run without a checkpoint: add none to a pending one.
    if signal.SIGTERM not in signal.sigpending():
        os.kill(os.getpid(), signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


if __name__ == '__main__':
    sys.exit(exit_status(train_one))
