"""Progress of a run on stderr: a live line in a terminal, plain lines now and then elsewhere."""

import contextlib
import statistics
import sys
import time

import jax
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0
_SHORT_NAMES = {
    'accuracy': 'acc',
    'eval_accuracy': 'eval',
    'eval_validation_matched/accuracy': 'eval m',
    'eval_validation_mismatched/accuracy': 'mm',
}
_LEAST_BAR, _MOST_BAR = 8, 30


class StepProgress:
    """Shows how far a run is: step, rate, time left, and what it measures.

    Use as a context manager. Only steps of this process count for the rate.

    Args:
      label: what is running.
      total: steps of the whole run.
      start: steps that were done before.
      quiet: shows nothing, and keeps the rate alone.
    """

    def __init__(self, label: str, total: int, start: int = 0, quiet: bool = False):
        self.label, self.total = label, total
        self._values: dict[str, float] = {}
        self._step, self._said = start, 0.0
        self._first: tuple[int, float] | None = None  # the first step done here: before it everything compiled
        self._console = Console(stderr=True, quiet=quiet)
        self._bar = None
        if self._console.is_terminal:
            self._bar = Progress(_Line(self), console=self._console)
            self._task = self._bar.add_task(label, total=total, completed=start)

    def __enter__(self) -> 'StepProgress':
        if self._bar:
            self._bar.start()
        else:
            self.say(f'{self.total - self._step} steps')
        return self

    def __exit__(self, *exception) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def rate(self) -> float:
        """Steps a second since the first step that this process did, everything between them included."""
        if self._first is None or self._step == self._first[0]:
            return 0.0
        return (self._step - self._first[0]) / (time.monotonic() - self._first[1])

    def update(self, step: int, **values: float) -> None:
        """Says that `step` steps are done; values stay on show until replaced."""
        self._step = step
        self._first = self._first or (step, time.monotonic())
        self._values |= values
        if self._bar:
            self._bar.update(self._task, completed=step)
        elif values and not self._console.quiet and time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            left = f'{(self.total - step) / self.rate:.0f} s left' if self.rate else 'compiled'
            shown = ' '.join(f'{name} {value:.4g}' for name, value in self._values.items())
            print(
                f'{self.label}: step {step}/{self.total}, {self.rate:.1f} steps/s, {left}, {shown}',
                file=sys.stderr,
                flush=True,
            )

    def line(self) -> Text:
        """How far it is, in one line of the terminal: what matters most comes first, the last values go without."""
        width = self._console.width
        done = f' {self._step:{len(str(self.total))}}/{self.total}'
        if self.rate:
            pace = f' {format_duration((self.total - self._step) / self.rate)} left {self.rate:.1f}/s'
        else:
            pace = ' compiling' if self._first is None else ' compiled'
        values = ''
        for name, value in self._values.items():
            shown = f' {_SHORT_NAMES.get(name, name)} {value:.3g}'
            if cell_len(self.label + done + pace + values + shown) > width:  # half a number is worse than none
                values += ' …'
                break
            values += shown
        parts = [(done, 'progress.download'), (pace, 'progress.remaining'), values]
        room = min(width - cell_len(self.label + done + pace + values) - 1, _MOST_BAR)
        if room >= _LEAST_BAR:
            full = room * self._step // self.total
            parts[:0] = [' ', ('━' * full, 'bar.complete'), ('━' * (room - full), 'bar.back')]
        text = Text.assemble(self.label, *parts, no_wrap=True)
        text.truncate(width, overflow='ellipsis')
        return text

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(f'{self.label}: {text}', highlight=False, markup=False, soft_wrap=True)


class _Line(ProgressColumn):
    """The whole of a line: rich's own columns make room by squeezing the time left to nothing."""

    def __init__(self, progress: StepProgress):
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        return self._progress.line()


def format_duration(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any.

    >>> format_duration(7.6), format_duration(83), format_duration(36_000)
    ('0:08', '1:23', '10:00:00')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class StepClock:
    """Seconds a step, of steps alone: compilation, evaluation, checkpoints and rounds of the partition don't count."""

    def __init__(self, start: int):
        self._start = self._step = start
        self._time: float | None = None  # of the last arrival; None until the first step, with its compilation, is done
        self._segments: list[float] = []

    def passed(self, step: int) -> None:
        """Says that the results of `step` have arrived."""
        if step == self._start:
            return
        now = time.monotonic()
        if self._time is not None and step > self._step:
            self._segments.append((now - self._time) / (step - self._step))
        self._step, self._time = step, now

    @contextlib.contextmanager
    def paused(self, step: int, state):
        """For what is done between steps, once `state`, the result of `step`, is there."""
        jax.block_until_ready(state)
        self.passed(step)
        yield
        if self._time is not None:
            self._time = time.monotonic()

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the stretches between two arrivals; None for a run too short to tell."""
        return statistics.median(self._segments) if self._segments else None
