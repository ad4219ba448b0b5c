"""How far a sweep is, on stderr: a live line in a terminal, a plain line for each cell elsewhere."""

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pad_jax.training.progress import format_duration


class SweepProgress:
    """Shows the cells that are done, those that failed, the time left, and what runs. A context manager.

    Args:
      folder: of the sweep.
      total: its cells.
      missing: those of them that are to be run.
      jobs: cells at a time.
    """

    def __init__(self, folder: Path, total: int, missing: int, jobs: int):
        self._folder, self._total, self._missing, self._jobs = folder, total, missing, jobs
        self._seconds: list[float] = []  # that each of the cells which are done took
        self._failed = 0
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._bar = None
        if self._console.is_terminal:
            columns = BarColumn(20), MofNCompleteColumn(), TextColumn('{task.description}', markup=False)
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task('cells', total=total, completed=total - missing)

    def __enter__(self) -> 'SweepProgress':
        kept = self._total - self._missing
        self.say(f'{self._total} cells in {self._folder}' + (f', {kept} are finished already' if kept else ''))
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, running: Mapping[str, float]) -> None:
        """What runs, and since when by the monotonic clock."""
        if self._bar:
            spent = [time.monotonic() - start for start in running.values()]
            left = ', '.join([f'cells{self._say_left(spent)}', *running])
            self._bar.update(self._task, completed=self._done, description=left)

    def ended(self, cell: str, seconds: float, problem: str | None = None) -> None:
        """One more cell has ended, well or with a problem."""
        if problem:
            self._failed += 1  # in whatever time: it says nothing of the others
        else:
            self._seconds.append(seconds)
        how = f'failed: {problem}' if problem else f'done in {format_duration(seconds)}'
        self.say(f'{self._done}/{self._total} cells{self._say_left()}; {cell} {how}')

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f'sweep: {text}')

    @property
    def _done(self) -> int:
        """Cells that are finished."""
        return self._total - self._missing + len(self._seconds)

    def _say_left(self, spent: list[float] = ()) -> str:
        failed = f', {self._failed} failed' if self._failed else ''
        left = self._missing - len(self._seconds) - self._failed
        seconds = estimate_left(self._seconds, left, self._jobs, spent)
        return failed if seconds is None else f'{failed}, {format_duration(seconds)} left'


def estimate_left(ended: list[float], left: int, jobs: int, spent: list[float] = ()) -> float | None:
    """Seconds that the cells which are left will take; None before one is done.

    Args:
      ended: seconds that each of those which are done took.
      left: cells that have not ended, among them those that run.
      jobs: cells at a time.
      spent: seconds that those which run have taken so far.

    >>> estimate_left([10, 30], left=3, jobs=2), estimate_left([10, 30], 3, 2, [5, 35]), estimate_left([], 3, 2)
    (30.0, 17.5, None)
    """
    if not ended:
        return None
    mean = sum(ended) / len(ended)
    return (mean * left - sum(min(one, mean) for one in spent)) / min(jobs, max(left, 1))
