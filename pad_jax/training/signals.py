"""What the machine wants to end ends in order: a run after its step, with a checkpoint; other commands cleaned up."""

import contextlib
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class StopSignals:
    """While the `with` block runs, SIGTERM and SIGINT are noted in `received`; a second one ends the process at once.

    `received` is None until then. Exit statuses are 128 + the signal's number: 143 and 130.

    Of several processes one that is told to stop tells the others, and all stop after the same step: jax agrees on it,
    without a word between them until then. SIGINT counts as SIGTERM there, and a second signal changes nothing.
    """

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> 'StopSignals':
        # jax.distributed listens for SIGTERM by itself.
        handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note}
        if jax.process_count() > 1:
            handlers = {signal.SIGINT: lambda number, frame: signal.raise_signal(signal.SIGTERM)}
        try:
            self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        except ValueError:
            self._previous = {}  # not the main thread: signals are somebody else's
        return self

    def stop_after(self, step: int) -> bool:
        """Whether the run ends now that `step` steps are done. Asked after every step."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.received = signal.SIGTERM
        return self.received is not None

    def _note(self, number, frame) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, *exception) -> None:
        self._restore()


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While the `with` block runs, SIGTERM raises SystemExit(143) in it; a second one ends the process at once.

    What the block has begun to write is so cleaned up as after Ctrl-C. For the main thread.
    """

    def leave(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
