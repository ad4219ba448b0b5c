"""Kill runs, start them again, and compare their files with those of a run that was never killed.

Metrics and partition must be equal to the byte; parameters, masks and the optimizer's state to the bit.

    make chaos
    python -m tests.chaos.chaos --kills=100 --seed=0

Runs are whole processes of train.py, with a network of one block or one layer. Compiled programs are cached, so most of
a run is training.
"""

import argparse
import collections
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
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


def kill_again_and_again(
    name: str,
    root: Path,
    kills: int,
    seed: int,
    say: Callable[[str], None] = lambda line: None,
    twice: bool = True,
) -> dict[str, int]:
    """Kill runs of a network at random moments, start each until it ends, and compare them with an undisturbed run.

    Args:
      twice: repeat the undisturbed run, which must be the same and measures the duration with warm caches.

    Returns:
      Numbers of kills in each of `PHASES`, and of compared `runs`.
    """
    runs, draw = Runs(root / name, NETWORKS[name](root)), random.Random(seed)
    straight = root / name / 'straight'
    status, errors, seconds = runs.finish(straight)
    assert not status, errors
    if twice:  # with all that is compiled: so long are the others
        status, errors, seconds = runs.finish(root / name / 'again')
        assert not status, errors
        compare(root / name / 'again', straight)
    phases = collections.Counter(dict.fromkeys(PHASES, 0))
    number, begun = 0, time.monotonic()
    while (done := phases.total()) < kills:
        workdir = root / name / f'killed{number}'
        number += 1
        # Kills come after the first third of a run: earlier ones would only test the start.
        while phases.total() < kills:
            start = time.monotonic()
            phase = runs.kill_after(workdir, draw.uniform(0.3, 1.05) * seconds)
            if phase is None:
                seconds = min(seconds, time.monotonic() - start)  # the machine was busier when it was measured
                break
            phases[phase] += 1
            say(f'{name}: kill {phases.total()} of {kills}, {phase}, {time.monotonic() - begun:.0f} s')
        status, errors, _ = runs.finish(workdir)
        assert not status, errors
        compare(workdir, straight)
        say(f'{name}: run {number}, killed {phases.total() - done} times, ends like one that never was')
    return {**phases, 'runs': number}


def kill_at_every_write(name: str, root: Path, step: int = 1, say: Callable[[str], None] = lambda line: None) -> int:
    """Kill a run before each file operation in its workdir, one later in each start; return their number.

    `killer.py` counts them: files opened to be written, renamed, removed, made. The same folder is used again, so
    resumes are killed before each of their writes too.

    Args:
      step: 1 for each operation, n for every n-th.
    """
    killer = Path(__file__).with_name('killer.py')
    runs, straight = Runs(root / name, NETWORKS[name](root), killer), root / name / 'straight'
    if not straight.exists():
        status, errors, _ = runs.finish(straight)
        assert not status, errors
    workdir, kills, at = root / name / 'at_writes', 0, 1
    while True:
        status, errors, _ = runs.finish(workdir, KILL_AT=str(at), KILL_IN=str(workdir))
        if not status:
            break
        assert status == -signal.SIGKILL, f'exit {status}: {errors}'
        kills, at = kills + 1, at + step
        say(f'{name}: killed at write {at - step} of a start, {describe_phase(workdir)}')
    compare(workdir, straight)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
    parser.add_argument('--kills', type=int, default=100, help='at random moments, of all networks together')
    parser.add_argument('--seed', type=int, default=0)
    flags = parser.parse_args()
    print(f'seed {flags.seed}, {flags.kills} kills', flush=True)
    say = lambda line: print(line, flush=True)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(NETWORKS):
            share = (flags.kills + number) // len(NETWORKS)
            say(f'{name}: {kill_again_and_again(name, Path(folder), share, flags.seed + number, say)}')
        for name in NETWORKS:
            say(f'{name}: {kill_at_every_write(name, Path(folder), say=say)} kills, each at another write')


if __name__ == '__main__':
    main()
