"""The files of a run (see `pad_jax.training.trainer.train`), read back, and runs gathered by network."""

import dataclasses
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pad_jax.data import METRICS
from pad_jax.errors import BadInput
from pad_jax.files import read_json
from pad_jax.partition import report_counts
from pad_jax.reports.estimates import Estimate, estimate_mean
from pad_jax.training.config import is_partial, is_text, read_workdir_config
from pad_jax.training.workdir import read_metrics

Partition = dict[str, Any]
"""What partition.json holds: `layers`, `totals`, `rounds_done`, `rounds`."""

_COUNTS = tuple(report_counts([]))  # of every layer, and of the totals
_MOST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      workdir: its folder.
      kind: what its convolutions or feed-forward networks are, in words.
      metrics: the rows of metrics.jsonl.
      partition: of partition.json.
      seconds_per_step: of timing.json; None for a run too short to tell.
    """

    workdir: Path
    kind: str
    metrics: list[dict[str, Any]]
    partition: Partition
    seconds_per_step: float | None

    @property
    def accuracy(self) -> float:
        """At the last evaluation, in [0, 1]."""
        return self.evaluated['accuracy']

    @property
    def evaluated(self) -> dict[str, Any]:
        """The row of the last evaluation."""
        return next(row for row in reversed(self.metrics) if row['split'] == 'eval')

    @property
    def metric_names(self) -> list[str]:
        """Of `METRICS`, those that the run is evaluated by, for several splits as SPLIT/METRIC."""
        return _metric_names(self.evaluated)

    def curve(self, split: str, *names: str) -> dict[int, float]:
        """A metric by step, or the mean of several."""
        rows = [row for row in self.metrics if row['split'] == split]
        return {row['step']: sum(row[name] for name in names) / len(names) for row in rows}


@dataclasses.dataclass(frozen=True)
class Network:
    """Runs that differ in their seed only."""

    name: str
    runs: tuple[Run, ...]

    @property
    def kind(self) -> str:
        return self.runs[0].kind

    def total(self, name: str) -> float:
        """A total of partition.json, mean over seeds."""
        return estimate_mean([run.partition['totals'][name] for run in self.runs]).mean

    @property
    def accuracy(self) -> Estimate:
        return estimate_mean([run.accuracy for run in self.runs])

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the seeds that could tell; None if none could."""
        known = [run.seconds_per_step for run in self.runs if run.seconds_per_step is not None]
        return estimate_mean(known).mean if known else None

    def curve(self, split: str, *names: str) -> tuple[np.ndarray, Estimate]:
        """Steps int[N] that all seeds logged, and the metric float64[N] at each, or the mean of several."""
        curves = [run.curve(split, *names) for run in self.runs]
        steps = sorted(set.intersection(*map(set, curves)))
        return np.array(steps, int), estimate_mean([[curve[step] for step in steps] for curve in curves])

    @property
    def has_partition(self) -> bool:
        """Whether some positions are static and others dynamic."""
        return any(layer['granularity'] != 'none' for layer in self.runs[0].partition['layers'])

    @property
    def layer_names(self) -> list[str]:
        """Its dynamic layers, in their order in the network."""
        return [layer['name'] for layer in self.runs[0].partition['layers']]

    @property
    def layer_fractions(self) -> Estimate:
        """κ of every dynamic layer, float64[layers]."""
        return estimate_mean([[layer['dynamic_fraction'] for layer in run.partition['layers']] for run in self.runs])


def read_network(name: str, workdirs: Iterable[Path]) -> Network:
    """The runs of one network, one folder for each seed.

    Raises:
      BadInput: on a folder that holds no finished run.
    """
    return Network(name, tuple(map(read_run, workdirs)))


def read_run(workdir: Path, timed: bool = True) -> Run:
    """A run that has been evaluated at its end.

    Args:
      timed: whether timing.json must be there; a run that was killed and went on may have nothing to tell.

    Raises:
      BadInput: naming the file that is missing or damaged.
    """
    config = read_workdir_config(workdir)
    partition = read_partition(workdir)
    if timed or (workdir / 'timing.json').exists():
        timing = _read_json(workdir / 'timing.json')
    else:
        timing = {'seconds_per_step': None}
    if not isinstance(timing, Mapping) or not _is_number(timing.get('seconds_per_step', ''), or_none=True):
        raise BadInput(f'{workdir / "timing.json"} is damaged: it lacks seconds_per_step')
    metrics = read_metrics(workdir)
    evaluations = [row for row in metrics if row['split'] == 'eval']
    if not evaluations:
        raise BadInput(f'{workdir} was never evaluated: {workdir / "metrics.jsonl"} has no eval row')
    needed = {'train': ['loss'], 'eval': [*(_metric_names(evaluations[-1]) or ['accuracy']), 'loss']}
    for row in metrics:
        for name in needed.get(row['split'], ()):
            # A loss may have become NaN.
            if type(row.get(name)) is not float and not _is_number(row.get(name)):
                raise BadInput(f'{workdir / "metrics.jsonl"} is damaged: step {row["step"]} has no number for {name}')
    return Run(workdir, _describe(config), metrics, partition, timing['seconds_per_step'])


def read_partition(workdir: Path) -> Partition:
    """partition.json of a run, its layers in their order in the network.

    Raises:
      BadInput: if there is none, or it can't be read.
    """
    path = workdir / 'partition.json'
    if not path.is_file():
        raise BadInput(f'{workdir} is not the workdir of a run: it holds no partition.json')
    partition = _read_json(path)
    if not isinstance(partition, Mapping) or not {'layers', 'totals', 'rounds_done', 'rounds'} <= partition.keys():
        raise BadInput(f'{path} is damaged: it lacks layers, totals, rounds_done or rounds')
    if not isinstance(partition['layers'], list):
        raise BadInput(f'{path} is damaged: its layers are no list')
    for number, layer in enumerate(partition['layers'], start=1):
        _check_counts(path, f'layer {number}', layer)
        if not all(isinstance(layer.get(name), str) and layer[name].isprintable() for name in ('name', 'granularity')):
            raise BadInput(f'{path} is damaged: layer {number} lacks name or granularity')
    _check_counts(path, 'totals', partition['totals'])
    if not all(_is_number(partition[name]) for name in ('rounds_done', 'rounds')):
        raise BadInput(f'{path} is damaged: rounds_done or rounds is no number')
    return {**partition, 'layers': sorted(partition['layers'], key=_by_number)}


def _check_counts(path: Path, what: str, counts: Any) -> None:
    lacking = [name for name in _COUNTS if not isinstance(counts, Mapping) or not _is_count(name, counts.get(name))]
    if lacking:
        raise BadInput(f'{path} is damaged: {what} has no number for {", ".join(lacking)}')


def _is_count(name: str, value: Any) -> bool:
    return _is_number(value) and 0 <= value <= (1 if name in ('dynamic_fraction', 'dynamic_share') else _MOST)


def _is_number(value: Any, or_none: bool = False) -> bool:
    # Compared, not converted: JSON holds integers that no float does.
    return (value is None and or_none) or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def _by_number(layer: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Sorts block10 behind block9; pytrees sort their keys as text."""
    parts = re.split(r'(\d+)', layer['name'])
    return [(int(part), '') if part.isdigit() else (-1, part) for part in parts]


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise BadInput(f'{path.parent} holds no finished run: {path.name} is missing')
    try:
        return read_json(path)
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise BadInput(f'{path} is damaged: {error}') from error


def _metric_names(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if name.rpartition('/')[2] in METRICS]


def _describe(config) -> str:
    if is_text(config) and config.model.ffn == 'dense':
        return 'dense'
    if not is_text(config) and config.model.conv == 'static':
        return 'static'
    if not is_partial(config):
        return 'fully dynamic'
    return f'partially dynamic, {config.partition.criterion}'
