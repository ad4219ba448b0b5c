"""Kill runs, start them again, and compare their files with those of a run that was never killed.

Metrics and partition must be equal to the byte; parameters, masks and the optimizer's state to the bit.
Runs are whole processes of train.py, with a network of one block or one layer. Compiled programs are cached, so most of
a run is training.
"""

import collections
import dataclasses
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests.training.tiny import DIGITS, GLUE, ROOT, SMALL
from tests.training.tiny_texts import small_text_flags, write_texts

ROUNDS = {
    'partition.granularity': 'output',
    'partition.rounds': 2,
    'partition.start_step': 5,
    'partition.every_steps': 5,
    'partition.compact': True,
    'train.steps': 24,
    'train.eval_every_steps': 6,
    'train.checkpoint_every_steps': 3,
    'train.keep_checkpoints': 2,
}
# Of which kinds a kill was, by what lay in the workdir then.
PHASES = ('before its first write', 'before its first row', 'training', 'writing a checkpoint', 'all but finished')


def resnet(root: Path) -> list[str]:
    """Flags of a small ResNet: dynamic convolutions, two rounds, compact after them."""
    return [f'--config={DIGITS}', *(f'--config.{name}={value}' for name, value in {**SMALL, **ROUNDS}.items())]


def mixture(root: Path) -> list[str]:
    """Flags of a small encoder with mixtures of experts."""
    if not (root / 'own').exists():
        write_texts(root)
    changes = {name.replace('.', '__'): value for name, value in ROUNDS.items()}
    return [f'--config={GLUE}', *(f'--config.{flag}' for flag in small_text_flags(root, **changes))]


NETWORKS: Mapping[str, Callable[[Path], list[str]]] = {'resnet': resnet, 'mixture': mixture}


@dataclasses.dataclass
class Runs:
    """Starts one kind of run in folders below `root`."""

    root: Path
    flags: list[str]
    script: Path = ROOT / 'tests' / 'training' / 'small_train.py'

    def start(self, workdir: Path, *more: str, **environment: str) -> subprocess.Popen:
        cache = self.root / 'compiled'
        environment = {
            **os.environ,
            'PYTHONPATH': str(ROOT),
            'JAX_PLATFORMS': 'cpu',
            'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
            'JAX_COMPILATION_CACHE_DIR': str(cache),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
            'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
            **environment,
        }
        command = [sys.executable, self.script, *self.flags, f'--workdir={workdir}', *more]
        return subprocess.Popen(list(map(str, command)), env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def finish(self, workdir: Path, *more: str, **environment: str) -> tuple[int, str, float]:
        """Return (exit status, stderr, seconds) of a run that is not disturbed."""
        begun = time.monotonic()
        process = self.start(workdir, *more, **environment)
        errors = process.communicate()[1]
        return process.returncode, errors, time.monotonic() - begun

    def kill_after(self, workdir: Path, seconds: float) -> str | None:
        """Kill a run after some seconds and return its phase; None if it had ended before."""
        process = self.start(workdir)
        try:
            errors = process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return describe_phase(workdir)
        if process.returncode:
            raise AssertionError(f'a start by itself ended with {process.returncode}: {errors}')
        return None


def describe_phase(workdir: Path) -> str:
    """One of `PHASES`."""
    names = [path.name for path in (workdir / 'checkpoints').glob('*')]
    if any('.' in name for name in names):
        return 'writing a checkpoint'
    if not (workdir / 'metrics.jsonl').exists():
        return 'before its first write'
    rows = (workdir / 'metrics.jsonl').read_text().splitlines()
    if not rows:
        return 'before its first row'
    return 'all but finished' if str(ROUNDS['train.steps']) in names else 'training'


def compare(workdir: Path, other: Path) -> None:
    """Raise AssertionError if two finished runs differ, to the bit."""
    for name in ('metrics.jsonl', 'partition.json', 'config.json', 'data.json'):
        assert (workdir / name).read_bytes() == (other / name).read_bytes(), f'{name} differs: {workdir}, {other}'
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    steps = [row['step'] for row in rows if row['split'] == 'train']
    assert steps == list(range(1, ROUNDS['train.steps'] + 1)), f'steps of metrics.jsonl: {steps}'
    found, expected = (read_newest(folder) for folder in (workdir, other))
    assert found.keys() == expected.keys(), f'{found.keys() ^ expected.keys()}'
    for name, values in expected.items():
        assert found[name].dtype == values.dtype and np.array_equal(found[name], values), f'{name} differs: {workdir}'
    leftover = {path.name for path in workdir.iterdir()} - {path.name for path in other.iterdir()}
    assert not leftover, f'{workdir} holds {leftover} besides'


def read_newest(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint by its path, read without any code of this project."""
    newest = max((workdir / 'checkpoints').iterdir(), key=lambda path: int(path.name))
    tree = ocp.StandardCheckpointer().restore((newest / 'state').absolute())
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(_as_words(leaf)) for path, leaf in leaves}


def _as_words(leaf):
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def kill_again_and_again(name: str, root: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill runs of a network at random moments, start each until it ends, and compare them with an undisturbed run.

    The undisturbed run is repeated. The repetition must be equal, and its duration, with all programs compiled, is
    that of the other runs.

    Returns:
      Numbers of kills in each of `PHASES`.
    """
    runs, draw = Runs(root / name, NETWORKS[name](root)), random.Random(seed)
    straight = root / name / 'straight'
    for workdir in (straight, root / name / 'again'):
        status, errors, seconds = runs.finish(workdir)
        assert not status, errors
        compare(workdir, straight)
    phases = collections.Counter(dict.fromkeys(PHASES, 0))
    for number in itertools.count():
        workdir, before = root / name / f'killed{number}', phases.total()
        # Kills come after the first third of a run: earlier ones would only test the start.
        while phases.total() < kills:
            start = time.monotonic()
            phase = runs.kill_after(workdir, draw.uniform(0.3, 1.05) * seconds)
            if phase is None:
                seconds = min(seconds, time.monotonic() - start)  # the machine was busier when it was measured
                break
            phases[phase] += 1
        status, errors, _ = runs.finish(workdir)
        assert not status, errors
        compare(workdir, straight)
        print(f'{name}: run {number}, killed {phases.total() - before} times, equals the undisturbed run', flush=True)
        if phases.total() == kills:
            return dict(phases)


def kill_at_every_write(name: str, root: Path) -> int:
    """Kill a run before each file operation in its workdir, one later in each start; return their number.

    `killer.py` counts them: files opened to be written, renamed, removed, made. The same folder is used again, so
    resumes are killed before each of their writes too.
    """
    runs = Runs(root / name, NETWORKS[name](root), Path(__file__).with_name('killer.py'))
    straight, workdir = root / name / 'straight', root / name / 'at_writes'
    status, errors, _ = runs.finish(straight)
    assert not status, errors
    for at in itertools.count(1):
        status, errors, _ = runs.finish(workdir, KILL_AT=str(at), KILL_IN=str(workdir))
        if not status:
            compare(workdir, straight)
            return at - 1
        assert status == -signal.SIGKILL, f'exit {status}: {errors}'
        print(f'{name}: killed at write {at} of a start, {describe_phase(workdir)}', flush=True)
