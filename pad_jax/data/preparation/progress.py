"""How many of how many files, examples or bytes are done, on stderr."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class CountProgress:
    """A bar with the time left in a terminal; elsewhere a plain line at first, now and then, and at the end.

    Use as a context manager.

    Args:
      label: what is being done.
      total: how many there are.
      unit: of what, in the plural.
    """

    def __init__(self, label: str, total: int, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self._done = 0
        self._start = self._said = time.monotonic()
        console = Console(stderr=True)
        self._bar = None
        if console.is_terminal:
            columns = (
                TextColumn('{task.description}'),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> 'CountProgress':
        if self._bar:
            self._bar.start()
        else:
            self._say(f'{self.total} {self.unit}')
        return self

    def __exit__(self, *exception) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Says that `count` more are done."""
        self._done += count
        if self._bar:
            self._bar.update(self._task, advance=count)
            return
        now = time.monotonic()
        if self._done >= self.total:
            self._say(f'{self._done}/{self.total} {self.unit} in {now - self._start:.1f} s')
        elif now - self._said > _SECONDS_BETWEEN_LINES:
            self._said = now
            left = (self.total - self._done) * (now - self._start) / self._done
            self._say(f'{self._done}/{self.total} {self.unit}, {left:.0f} s left')

    def _say(self, text: str) -> None:
        print(f'{self.label}: {text}', file=sys.stderr, flush=True)
