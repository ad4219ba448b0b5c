"""Progress on stderr: a live line in a terminal, plain lines now and then elsewhere."""

import contextlib
import math
import statistics
import time

import jax
import rich.progress as columns
from rich.console import Console
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A label with lines that stay and, in a terminal, a live line: items done, time left, and a note.

    A context manager.

    Args:
      label: name in front of every line.
      total: number of items.
      start: items done before; they do not count for the speed.
      quiet: show nothing.
    """

    def __init__(self, label: str, total: int, start: int = 0, quiet: bool = False):
        self.label = label
        self._console = Console(stderr=True, quiet=quiet)
        self._live = columns.Progress(
            columns.TextColumn('{task.description}', markup=False),
            columns.MofNCompleteColumn(),
            columns.TimeRemainingColumn(compact=True),
            columns.TextColumn('left', style='progress.remaining'),
            _NoteColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            speed_estimate_period=math.inf,  # over the last 1000 updates, however long they took
        )
        self._live.add_task(label, total=total, completed=start, note='')
        (self._task,) = self._live.tasks

    def __enter__(self) -> 'Progress':
        self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        self._live.stop()

    def show(self, done: int, note: str) -> None:
        """Set the number of items done, and the note of the live line."""
        self._live.update(self._task.id, completed=done, note=note)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(f'{self.label}: {text}', highlight=False, markup=False, soft_wrap=True)


class _NoteColumn(columns.ProgressColumn):
    """The note of a task, the only column that a narrow terminal shortens."""

    def render(self, task: columns.Task) -> Text:
        return Text(task.fields['note'], no_wrap=True, overflow='ellipsis')


class StepProgress(Progress):
    """Progress of a training run: steps, rate, time left, latest values, and seconds per step."""

    def __init__(self, label: str, total: int, start: int = 0, quiet: bool = False):
        super().__init__(label, total, start, quiet)
        self._values: dict[str, float] = {}
        self._note, self._start = '', start
        self._last: tuple[int, float] | None = None  # step and time when results arrived
        self._seconds: list[float] = []  # per step, between two arrivals of results
        self._printed = 0.0
        self.show(start, 'compiling')

    def __enter__(self) -> 'StepProgress':
        if not self._console.is_terminal:
            self.say(f'{self._task.remaining:.0f} steps')
        return super().__enter__()

    @property
    def rate(self) -> float:
        """Latest steps per second, including evaluation, checkpoints and partition rounds."""
        return self._task.speed or 0.0

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the stretches between two arrivals of results, without pauses. None for a short run."""
        return statistics.median(self._seconds) if self._seconds else None

    def update(self, step: int, **values: float) -> None:
        """Record that `step` steps are dispatched; with values, that their results have arrived.

        Values are shown until later ones of the same name replace them.
        """
        self.show(step, self._note)
        if not values:
            return
        self._arrive(step)
        self._values |= values
        shown = (f'{name.replace("accuracy", "acc")} {value:.3g}' for name, value in self._values.items())
        self._note = ' '.join([f'{self.rate:.3g}/s' if self.rate else 'compiled', *shown])
        if not self._console.is_terminal and time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            left = f'{self._task.time_remaining:.0f} s left, ' if self.rate else ''
            self.say(f'step {step}/{self._task.total}, {left}{self._note}')

    def note(self, text: str) -> None:
        """Show what takes time: in the live line, elsewhere as a line unless one came a moment ago."""
        self.show(self._task.completed, text)
        now = time.monotonic()
        if not self._console.is_terminal and (
            not text.startswith('scoring') or now - self._printed > _SECONDS_BETWEEN_LINES
        ):
            self._printed = now
            self.say(text)

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
