"""The folder of a sweep: sweep.json says what it compares, every cell (a variant with a seed) is a workdir of train.py.

DIR/sweep.json
DIR/VARIANT/seed_N/        a cell
DIR/VARIANT/seed_N.log     what it said
DIR/report/                what `python -m pad_jax report DIR` writes
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pad_jax.errors import BadInput
from pad_jax.files import read_own_object, read_plain
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.cli import make_line
from pad_jax.training.lock import LOCK
from pad_jax.training.workdir import write_json

SWEEP = 'sweep.json'
REPORT = 'report'
BASE = 'base'
"""The variant that changes nothing."""
FORMAT = 1
_TYPES = {'version': str, 'base': str, 'config': Mapping, 'variants': Mapping}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What sweep.json holds.

    Attributes:
      version: of pad_jax.
      base: name of the base's config file.
      config: the base's keys after the flags, nested.
      variants: {name: {'section.key': value}}, what each changes; without the base.
      seeds: so many were asked for: 0, 1, ...; 0 where nothing says so.
    """

    version: str
    base: str
    config: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]]
    seeds: int = 0

    @property
    def names(self) -> list[str]:
        """All that is compared, the base first.

        >>> Sweep('1', 'file.py', {}, {'late': {'partition.start_step': 9}}).names
        ['base', 'late']
        """
        return [BASE, *self.variants]


def read_sweep(folder: Path) -> Sweep:
    """What a folder compares.

    Raises:
      BadInput: if it is no sweep, or its sweep.json cannot be used.
    """
    path = folder / SWEEP
    content = read_own_object(path, 'the folder of a sweep')
    if content.get('format') != FORMAT:
        raise BadInput(f'{path} has format {content.get("format")!r}, this version of pad_jax reads {FORMAT}')
    lacking = [name for name, kind in _TYPES.items() if not isinstance(content.get(name), kind)]
    if lacking:
        raise BadInput(f'{path} is damaged: it lacks {", ".join(lacking)}')
    seeds = content.get('seeds', 0)
    if type(seeds) is not int or seeds < 0:
        raise BadInput(f'{path} is damaged: seeds must be a count, got {seeds!r}')
    wrong = [name for name in content['variants'] if not is_plain_name(name) or name == BASE]
    wrong += [name for name, change in content['variants'].items() if not isinstance(change, Mapping)]
    if wrong:
        raise BadInput(f'{path} is damaged: {wrong[0]!r} is no name of a variant with what it changes')
    return Sweep(**{name: content[name] for name in _TYPES}, seeds=seeds)


def write_sweep(folder: Path, sweep: Sweep) -> None:
    """Writes sweep.json, in one step."""
    write_json(folder / SWEEP, {'format': FORMAT, **dataclasses.asdict(sweep)})


def is_plain_name(name: str) -> bool:
    """Whether a folder of a sweep may be called so.

    >>> [is_plain_name(name) for name in ('kappa_0.1', 'a/b', '..', '.hidden', 'report', 'lock.json', '')]
    [True, False, False, False, False, False, False]
    """
    return re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,99}', name) is not None and name not in (REPORT, SWEEP, LOCK)


def cell_folder(folder: Path, name: str, seed: int) -> Path:
    """The workdir of a cell."""
    return folder / name / f'seed_{seed}'


def cell_log(folder: Path, name: str, seed: int) -> Path:
    """The file with what a cell said."""
    return folder / name / f'seed_{seed}.log'


def read_last_line(log: Path) -> str:
    """The last line that a cell left, fit to be shown; '' where there is none, or no log any more."""
    try:
        lines = read_plain(log).decode(errors='replace').split('\n')
    except OSError:
        return ''
    return make_line(next((line for line in reversed(lines) if line.strip()), ''))


def find_seeds(folder: Path, name: str) -> list[int]:
    """The seeds that a variant has begun with, in order."""
    found = [re.fullmatch(r'seed_(0|[1-9]\d{0,9})', path.name) for path in (folder / name).glob('seed_*')]
    return sorted(int(match[1]) for match in found if match)


def find_strangers(folder: Path, sweep: Sweep) -> list[Path]:
    """Workdirs of runs that lie where cells do, but are of no variant of the sweep, in order."""
    configs = folder.glob('*/seed_*/config.json')
    return sorted(path.parent for path in configs if path.parent.parent.name not in sweep.names)


def is_finished(workdir: Path) -> bool:
    """Whether the run in a workdir has reached its last step: what it writes last is there, and a checkpoint."""
    last = (workdir / 'timing.json').is_file() and (workdir / 'config.json').is_file()
    return last and bool(Checkpoints(workdir / 'checkpoints').steps_here())
