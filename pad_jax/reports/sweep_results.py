"""What the cells of a sweep have come to: those that are finished, and what is missing."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pad_jax.errors import BadInput
from pad_jax.models import sum_multiply_adds
from pad_jax.reports.inspection import count_partition
from pad_jax.reports.intervals import Interval, estimate_difference, estimate_interval
from pad_jax.reports.runs import Network, Run, read_run
from pad_jax.reports.sweep_layout import (
    BASE,
    SWEEP,
    Sweep,
    cell_folder,
    cell_log,
    find_seeds,
    find_strangers,
    read_last_line,
    read_sweep,
)
from pad_jax.training.checkpoints import Checkpoints
from pad_jax.training.config import differing_keys, flatten, read_workdir_config
from pad_jax.training.setup import account_network, measure_lengths
from pad_jax.training.workdir import UNKNOWN_VERSION, read_data, read_versions

COSTS = ('parameters', 'dynamic_fraction', 'dynamic_share', 'multiply_adds', 'seconds_per_step')
"""What a network of a sweep costs, next to what it reaches."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A variant with a seed.

    Attributes:
      variant, seed, workdir: what and where it is.
      step: steps done, those of its newest checkpoint.
      total: steps of the whole run; None for one that has not begun.
      run: of a finished cell; else None.
      values: of a finished cell, what it reaches and costs; None for what nobody has measured. Else {}.
      knows_version: of a finished cell, whether it says which version of pad_jax trained it.
      data_path: where a run found its data; '' for one that has not begun.
      problem: why one that is not finished stopped by itself, as its log says; '' for others.
    """

    variant: str
    seed: int
    workdir: Path
    step: int = 0
    total: int | None = None
    run: Run | None = None
    values: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    knows_version: bool = True
    data_path: str = ''
    problem: str = ''

    @property
    def state(self) -> str:
        """
        >>> Cell('base', 0, Path(), step=3, total=9, problem='error: the loss is not finite').state
        'unfinished at step 3 of 9 (error: the loss is not finite)'
        """
        if self.run:
            return 'finished'
        state = 'not begun' if self.total is None else f'unfinished at step {self.step} of {self.total}'
        return f'{state} ({self.problem})' if self.problem else state


@dataclasses.dataclass(frozen=True)
class Variant:
    """The cells of one variant, and what it changes of the base.

    Numbers are those of its finished cells.
    """

    name: str
    changes: Mapping[str, Any]
    cells: tuple[Cell, ...]

    @property
    def finished(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.run]

    @property
    def network(self) -> Network:
        """Its finished runs, at least one."""
        return Network(self.name, tuple(cell.run for cell in self.finished))

    @property
    def described(self) -> str:
        """What it changes, in words."""
        return ', '.join(f'{key} = {value}' for key, value in self.changes.items()) or 'nothing: the base'

    def by_seed(self, name: str) -> dict[int, float]:
        """A value of each seed that has it."""
        return {cell.seed: cell.values[name] for cell in self.finished if cell.values[name] is not None}

    def estimate(self, name: str) -> Interval | None:
        """A value over seeds; None where no seed has it."""
        values = self.by_seed(name)
        return estimate_interval(list(values.values())) if values else None

    def difference(self, base: 'Variant', name: str) -> Interval | None:
        """To the base, paired by seed; None where no seed has both."""
        return estimate_difference(self.by_seed(name), base.by_seed(name))


@dataclasses.dataclass(frozen=True)
class Results:
    """Of a sweep in which at least one cell is finished.

    Attributes:
      folder: of the sweep.
      sweep: what it compares.
      variants: all of them, the one that changes nothing first.
      base: the one of them that the others are compared with.
      measures: what finished cells reach, the one that counts first, the loss last.
    """

    folder: Path
    sweep: Sweep
    variants: tuple[Variant, ...]
    base: Variant
    measures: tuple[str, ...]

    @property
    def score(self) -> str:
        """The measure that counts: the metric of the data, or the mean of its metrics."""
        return self.measures[0]

    @property
    def title(self) -> str:
        """That, as the beginning of a heading."""
        return self.score[:1].upper() + self.score[1:]

    @property
    def shown(self) -> list[Variant]:
        """Those of which a cell is finished."""
        return [variant for variant in self.variants if variant.finished]

    @property
    def cells(self) -> list[Cell]:
        return [cell for variant in self.variants for cell in variant.cells]


def read_results(folder: Path, base: str = BASE) -> Results:
    """Reads the cells of a sweep.

    Args:
      base: the variant that others are compared with.

    Raises:
      BadInput: if folder is no sweep, or has no such variant; a cell in it is damaged, of no variant, or of another
        config, version or data than the others; or none is finished.
    """
    sweep = read_sweep(folder)
    if base not in sweep.names:
        raise BadInput(f'--base must be a variant of {folder}, one of {", ".join(sweep.names)}, got {base}')
    if strangers := find_strangers(folder, sweep):
        raise BadInput(
            f'{strangers[0]} is a run, but of no variant that {folder / SWEEP} names ({", ".join(sweep.names)}): move '
            'it elsewhere'
        )
    seeds = sorted(set(range(sweep.seeds)).union(*(find_seeds(folder, name) for name in sweep.names)))
    places = [(name, seed, cell_folder(folder, name, seed)) for name in sweep.names for seed in seeds]
    _check_one_kind(folder / SWEEP, sweep, [place for place in places if _has_begun(place[2])])
    cells = [_read_cell(folder, *place) for place in places]
    finished = [cell for cell in cells if cell.run]
    if not finished:
        raise BadInput(f'{folder} has no finished cell, so there is nothing to report: go on with its sweep')
    first = finished[0]
    for cell in finished:
        if cell.values.keys() != first.values.keys():
            names = [', '.join(one.run.metric_names) for one in (first, cell)]
            raise BadInput(f'{first.workdir} is evaluated by {names[0]}, {cell.workdir} by {names[1]}')
    variants = {
        name: Variant(name, sweep.variants.get(name, {}), tuple(cell for cell in cells if cell.variant == name))
        for name in sweep.names
    }
    measures = tuple(name for name in first.values if name not in COSTS)
    return Results(folder, sweep, tuple(variants.values()), variants[base], measures)


def _has_begun(workdir: Path) -> bool:
    return (workdir / 'config.json').exists()  # the last thing that a run writes before its first step


def _check_one_kind(path: Path, sweep: Sweep, begun: Sequence[tuple[str, int, Path]]) -> None:
    """BadInput where a cell is not what sweep.json says, or not trained on what the first one is."""
    first = None
    for name, seed, workdir in begun:
        versions = read_versions(workdir)
        if {*versions} - {UNKNOWN_VERSION, sweep.version}:
            raise BadInput(
                f'{workdir} was trained by pad_jax {" and ".join(versions)}, {path} is of {sweep.version}: cells of '
                'one report must be of one version'
            )
        asked = flatten(sweep.config) | sweep.variants.get(name, {}) | {'train.seed': seed}
        differing = differing_keys(asked, flatten(read_workdir_config(workdir)))
        if differing:
            raise BadInput(f'{workdir} was made by another config than {path} asks for ({"; ".join(differing)})')
        data = read_data(workdir)
        first = first or (workdir, data)
        if differing := first[1].differences(data):
            raise BadInput(
                f'{first[0]} and {workdir} were trained on different data ({"; ".join(differing)}): cells of one '
                'report must be of one data set'
            )


def _read_cell(folder: Path, variant: str, seed: int, workdir: Path) -> Cell:
    last = read_last_line(cell_log(folder, variant, seed))
    problem = last if last.startswith('error: ') else ''
    if not _has_begun(workdir):
        return Cell(variant, seed, workdir, problem=problem)
    config = read_workdir_config(workdir)
    total = measure_lengths(config, read_data(workdir).num_train).total
    step = max(Checkpoints(workdir / 'checkpoints').steps_here(), default=0)
    if step < total:
        return Cell(variant, seed, workdir, step, total, data_path=config.data.get('path', ''), problem=problem)
    run = read_run(workdir, timed=False)
    if run.evaluated['step'] != total:
        raise BadInput(f'{workdir} holds a finished run, but its metrics.jsonl has lost the last evaluation')
    known = UNKNOWN_VERSION not in read_versions(workdir)
    return Cell(variant, seed, workdir, step, total, run, _measure(config, run), known, config.data.get('path', ''))


def _measure(config, run: Run) -> dict[str, float | None]:
    found = {name: float(run.evaluated[name]) for name in run.metric_names}
    if len(found) > 1:  # as GLUE does: a task with several metrics counts with their mean
        found = {f'mean of {", ".join(found)}': sum(found.values()) / len(found)} | found
    layers = count_partition(config, run.partition)
    if layers is None:
        raise BadInput(f'{run.workdir / "partition.json"} is damaged: its layers are not those of the network')
    products = sum_multiply_adds(account.multiply_adds for account in account_network(config, layers))
    totals = {name: run.partition['totals'][name] for name in COSTS[:3]}
    costs = {**totals, 'multiply_adds': products.compact, 'seconds_per_step': run.seconds_per_step}
    return {**found, 'loss': float(run.evaluated['loss']), **costs}
