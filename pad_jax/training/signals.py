"""Lets a run end when the machine, or who started it, wants it to."""

import contextlib
import os
import signal
import sys
import threading
import traceback

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Python prints what is raised in these, and goes on. jax adds the second to every garbage collection.
_SWALLOWING = ('__del__', '_xla_gc_callback')


class StopSignals:
    """While the `with` block runs, SIGTERM and SIGINT end the run at once, or are noted after `note`.

    Before `note` they raise SystemExit, and the block says so in a line when it is left. After it they are noted in
    `received`, None until then; a second signal does what it did before the block. Exit statuses are 128 + the
    signal's number: 143 and 130.

    Args:
      label: what the line calls the run.
    """

    def __init__(self, label: str):
        self.received: signal.Signals | None = None
        self._label = label
        self._notes = False
        self._previous = {}

    def __enter__(self) -> 'StopSignals':
        with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def note(self) -> None:
        """From now on signals are noted: the run has something to lose."""
        if self.received and not self._notes:  # what was raised has been swallowed
            raise SystemExit(128 + self.received)
        self._notes = True

    def _handle(self, number, frame) -> None:
        if not self._notes and any(above.f_code.co_name in _SWALLOWING for above, _ in traceback.walk_stack(frame)):
            threading.Timer(0.01, os.kill, (os.getpid(), number)).start()  # again, a little later
            return
        self.received = signal.Signals(number)
        self._restore()
        if not self._notes:
            raise SystemExit(128 + number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, kind, error, trace) -> None:
        self._restore()
        if self.received and not self._notes and isinstance(error, SystemExit):
            line = f'{self._label}: {self.received.name} before the first step, nothing is lost'
            print(line, file=sys.stderr, flush=True)
