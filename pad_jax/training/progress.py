"""Progress on stderr: a live line in a terminal, plain lines now and then elsewhere."""

import contextlib
import statistics
import sys
import time

import jax
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A label with lines that stay and, in a terminal, one live line, which subclasses draw. A context manager.

    Args:
      label: name in front of every line.
      quiet: show nothing.
    """

    def __init__(self, label: str, quiet: bool = False):
        self.label = label
        self._console = Console(stderr=True, quiet=quiet)

    def __enter__(self) -> 'Progress':
        self._live = Live(console=self._console, get_renderable=self.line)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        self._live.stop()

    def line(self) -> Text:
        """Draw the live line."""
        return Text(self.label)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(f'{self.label}: {text}', highlight=False, markup=False, soft_wrap=True)


class StepProgress(Progress):
    """Progress of a training run: step, rate, time left, latest values, and seconds per step.

    Args:
      label: name of the run.
      total: steps of the whole run.
      start: steps done by earlier processes; they do not count for the rate.
      quiet: show nothing, measure only.
    """

    def __init__(self, label: str, total: int, start: int = 0, quiet: bool = False):
        super().__init__(label, quiet)
        self.total = total
        self._values: dict[str, float] = {}
        self._start = self._step = start
        self._first: tuple[int, float] | None = None  # step and time after compilation
        self._last: tuple[int, float] | None = None  # step and time when results arrived
        self._seconds: list[float] = []  # per step, between two arrivals of results
        self._printed = 0.0

    def __enter__(self) -> 'StepProgress':
        if not self._console.is_terminal:
            self.say(f'{self.total - self._step} steps')
        return super().__enter__()

    @property
    def rate(self) -> float:
        """Steps per second of this process, including evaluation, checkpoints and partition rounds."""
        if self._first is None or self._step == self._first[0]:
            return 0.0
        return (self._step - self._first[0]) / (time.monotonic() - self._first[1])

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the stretches between two arrivals of results, without pauses. None for a short run."""
        return statistics.median(self._seconds) if self._seconds else None

    def update(self, step: int, **values: float) -> None:
        """Record that `step` steps are dispatched; with values, that their results have arrived.

        Values are shown until later ones of the same name replace them.
        """
        self._step = step
        self._first = self._first or (step, time.monotonic())
        self._values |= values
        if not values:
            return
        self._arrive(step)
        is_silent = self._console.is_terminal or self._console.quiet
        if not is_silent and time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            left = f'{(self.total - step) / self.rate:.0f} s left' if self.rate else 'compiled'
            shown = ' '.join(f'{name} {value:.4g}' for name, value in self._values.items())
            line = f'{self.label}: step {step}/{self.total}, {self.rate:.1f} steps/s, {left}, {shown}'
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def paused(self, step: int, state):
        """Exclude the `with` block from `seconds_per_step`; first wait for `state`, the result of `step`."""
        jax.block_until_ready(state)
        self._arrive(step)
        yield
        if self._last:
            self._last = self._last[0], time.monotonic()

    def _arrive(self, step: int) -> None:
        if step == self._start:  # the first step includes compilation
            return
        now = time.monotonic()
        if self._last and step > self._last[0]:
            self._seconds.append((now - self._last[1]) / (step - self._last[0]))
        self._last = step, now

    def line(self) -> Text:
        """Draw the live line: the most important numbers first; values that do not fit are left out."""
        pace = ' compiling' if self._first is None else ' compiled'
        if self.rate:
            pace = f' {format_duration((self.total - self._step) / self.rate)} left {self.rate:.1f}/s'
        done = f' {self._step:{len(str(self.total))}}/{self.total}'
        text = Text.assemble(self.label, (done, 'progress.download'), (pace, 'progress.remaining'), no_wrap=True)
        for name, value in self._values.items():
            for long, short in (('accuracy', 'acc'), ('eval_', 'eval '), ('validation_', '')):
                name = name.replace(long, short)
            shown = f' {name} {value:.3g}'
            if cell_len(text.plain + shown) > self._console.width:  # half a number would mislead
                text.append(' …')
                break
            text.append(shown)
        text.truncate(self._console.width, overflow='ellipsis')
        return text


def format_duration(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours if there are any.

    >>> format_duration(7.6), format_duration(83), format_duration(36_000)
    ('0:08', '1:23', '10:00:00')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
