"""The best evaluation of a run and early stopping. Both follow from the rows of metrics.jsonl, also after a resume."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pad_jax.data import METRICS
from pad_jax.errors import BadInput
from pad_jax.training.config import is_partial
from pad_jax.training.workdir import read_metrics


class Scores:
    """Scores of the evaluations of a run by step.

    A score is the mean of the metrics, such as the accuracy, or −loss without metrics. Evaluations before the last
    round of the partition do not count, because the network is another one then.

    Args:
      config: of the run.
      rows: of metrics.jsonl.
    """

    def __init__(self, config, rows: Collection[Mapping[str, Any]] = ()):
        partition, self._patience, self._by_step = config.partition, config.train.patience, {}
        rounds = partition.rounds if is_partial(config) else 0
        self._first = partition.start_step + partition.every_steps * (rounds - 1) if rounds else -1
        for row in rows:
            if row['split'] == 'eval':
                self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of an evaluation."""
        values = {name: value for name, value in row.items() if type(value) in (int, float)}
        found = [value for name, value in values.items() if name.rpartition('/')[2] in METRICS]
        score = sum(found) / len(found) if found else -values.get('loss', math.nan)
        if row['step'] > self._first:
            self._by_step[row['step']] = -math.inf if math.isnan(score) else score

    def best(self, steps: Collection[int] | None = None) -> int | None:
        """Return the step of the best evaluation, of all or of those at `steps`. Of equal ones, the first counts."""
        known = [step for step in self._by_step if steps is None or step in steps]
        return max(known, key=self._by_step.get, default=None)

    @property
    def is_out_of_patience(self) -> bool:
        """True if `train.patience` evaluations after the best one were not better."""
        later = sum(step > self.best() for step in self._by_step)
        return 0 < self._patience <= later


def choose_best(workdir: Path, config, steps: Collection[int]) -> int:
    """Choose the step of the best evaluation among those of the checkpoints in workdir."""
    if not config.train.keep_best:
        raise BadInput(f'{workdir} keeps no best checkpoint: --best needs a run with train.keep_best=True')
    best = Scores(config, read_metrics(workdir)).best(steps)
    if best is None:
        raise BadInput(f'{workdir} has no checkpoint of an evaluation after the last round of its partition')
    return best
