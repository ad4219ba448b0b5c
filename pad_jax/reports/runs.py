"""Files of finished runs (see `pad_jax.training.trainer.train`), and runs grouped by network."""

import dataclasses
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pad_jax.data import METRICS
from pad_jax.errors import BadInput
from pad_jax.files import read_own_object
from pad_jax.models.accounting import report_counts
from pad_jax.reports.stats import Estimate, estimate_mean
from pad_jax.reports.tables import LOSS, NATS, Measure
from pad_jax.training.config import is_language, is_partial, is_text, read_workdir_config
from pad_jax.training.workdir import read_metrics

Partition = dict[str, Any]
"""Content of partition.json: `layers`, `totals`, `rounds_done`, `rounds`."""

_COUNTS = tuple(report_counts([]))  # keys of every layer and of the totals
_MAX_COUNT = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
      workdir: its folder.
      kind: the kind of its convolutions or feed-forward networks, in words.
      metrics: the rows of metrics.jsonl. Evaluations by several metrics also have their mean.
      measures: values of each evaluation. The first is the score: a metric, the mean of several, or a loss.
      partition: the content of partition.json.
      seconds_per_step: from timing.json; None if the run was too short to measure it.
    """

    workdir: Path
    kind: str
    metrics: list[dict[str, Any]]
    measures: tuple[Measure, ...]
    partition: Partition
    seconds_per_step: float | None

    @property
    def evaluated(self) -> dict[str, Any]:
        """The row of the last evaluation."""
        return next(row for row in reversed(self.metrics) if row['split'] == 'eval')

    def curve(self, split: str, name: str) -> dict[int, float]:
        """Return a metric by step."""
        return {row['step']: row[name] for row in self.metrics if row['split'] == split}


@dataclasses.dataclass(frozen=True)
class Network:
    """Runs that differ in their seed only."""

    name: str
    runs: tuple[Run, ...]

    def total(self, name: str) -> float:
        """Return a total of partition.json, averaged over seeds."""
        return estimate_mean([run.partition['totals'][name] for run in self.runs]).mean

    @property
    def measure(self) -> Measure:
        """The score of the runs."""
        return self.runs[0].measures[0]

    def estimate(self, measure: Measure) -> Estimate:
        return estimate_mean([run.evaluated[measure.name] for run in self.runs])

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the seeds that measured it; None if no seed did."""
        known = [run.seconds_per_step for run in self.runs if run.seconds_per_step is not None]
        return estimate_mean(known).mean if known else None

    def curve(self, split: str, name: str) -> tuple[np.ndarray, Estimate]:
        """Return int[logged] steps that all seeds logged, and the mean of a metric at each, float64[logged]."""
        curves = [run.curve(split, name) for run in self.runs]
        steps = sorted(set.intersection(*map(set, curves)))
        return np.array(steps, int), estimate_mean([[curve[step] for step in steps] for curve in curves])

    @property
    def has_partition(self) -> bool:
        """True if some positions are static and others dynamic."""
        return any(layer['granularity'] != 'none' for layer in self.runs[0].partition['layers'])


def read_network(name: str, workdirs: Iterable[Path]) -> Network:
    """Read the runs of one network, one folder for each seed.

    Raises:
      BadInput: if a folder holds no finished run.
    """
    return Network(name, tuple(map(read_run, workdirs)))


def read_run(workdir: Path, timed: bool = True) -> Run:
    """Read a run that was evaluated at its end.

    Args:
      workdir: its folder.
      timed: require timing.json. A run that was killed and resumed after its last step may lack it.

    Raises:
      BadInput: names the file that is missing or damaged.
    """
    config = read_workdir_config(workdir)
    partition = read_partition(workdir)
    seconds, path = None, workdir / 'timing.json'
    if timed or path.exists():
        seconds = read_own_object(path, 'the workdir of a finished run').get('seconds_per_step', '')
        if seconds is not None and not _is_number(seconds):
            raise BadInput(f'{path} is damaged: it lacks seconds_per_step')
    metrics = read_metrics(workdir)
    evaluations = [row for row in metrics if row['split'] == 'eval']
    if not evaluations:
        raise BadInput(f'{workdir} was never evaluated: {workdir / "metrics.jsonl"} has no eval row')
    measures = _find_measures(config, evaluations[-1])
    needed = {'train': ['loss'], 'eval': [measure.name for measure in measures]}
    for row in metrics:
        for name in needed.get(row['split'], ()):
            # A loss may have become NaN.
            if type(row.get(name)) is not float and not _is_number(row.get(name)):
                raise BadInput(f'{workdir / "metrics.jsonl"} is damaged: step {row["step"]} has no number for {name}')
    shares = [measure.name for measure in measures if measure.unit == '%']
    if len(shares) > 1:  # as in GLUE, a task with several metrics counts with their mean
        mean = Measure(f'mean of {", ".join(shares)}')
        measures.insert(0, mean)
        for row in evaluations:
            row[mean.name] = sum(row[name] for name in shares) / len(shares)
    return Run(workdir, _describe(config), metrics, tuple(measures), partition, seconds)


def read_partition(workdir: Path) -> Partition:
    """Read partition.json of a run, with layers in their order in the network.

    Raises:
      BadInput: if it is missing or damaged.
    """
    path = workdir / 'partition.json'
    partition = read_own_object(path, 'the workdir of a run')
    try:
        for counts in (*partition['layers'], partition['totals']):
            wrong = [name for name in _COUNTS if not _is_count(name, counts[name])]
            if wrong:
                raise ValueError(f'{", ".join(wrong)} must be numbers')
        for layer in partition['layers']:
            if not (layer['name'].isprintable() and layer['granularity'].isprintable()):
                raise ValueError('name and granularity must be printable')
        if not (_is_number(partition['rounds_done']) and _is_number(partition['rounds'])):
            raise ValueError('rounds_done and rounds must be numbers')
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f'it lacks {error}' if isinstance(error, KeyError) else ' '.join(str(error).split())
        raise BadInput(f'{path} is damaged: {problem}') from error
    return {**partition, 'layers': sorted(partition['layers'], key=_by_number)}


def _is_count(name: str, value: Any) -> bool:
    return _is_number(value) and 0 <= value <= (1 if name in ('dynamic_fraction', 'dynamic_share') else _MAX_COUNT)


def _is_number(value: Any) -> bool:
    # Compare instead of converting: JSON holds integers that are too large for a float.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _by_number(layer: Mapping[str, Any]) -> list[tuple[int, str]]:
    """Sort block10 after block9; pytrees sort their keys as text."""
    parts = re.split(r'(\d+)', layer['name'])
    return [(int(part), '') if part.isdigit() else (-1, part) for part in parts]


def _find_measures(config, row: Mapping[str, Any]) -> list[Measure]:
    """Find the measures of an evaluation; SPLIT/NAME if it has several splits."""
    if is_language(config):
        return [NATS, *(NATS._replace(name=name) for name in row if name.endswith('/loss'))]
    shares = [Measure(name) for name in row if name.rpartition('/')[2] in METRICS]
    return [*(shares or [Measure('accuracy')]), LOSS]


def _describe(config) -> str:
    if is_text(config) and config.model.ffn == 'dense':
        return 'dense'
    if not is_text(config) and config.model.conv == 'static':
        return 'static'
    if not is_partial(config):
        return 'fully dynamic'
    return f'partially dynamic, {config.partition.criterion}'
