"""Asks a run to end after its step, when the machine wants it to."""

import signal


class StopSignals:
    """While the `with` block runs, SIGTERM and SIGINT are noted in `received`; a second one ends the process at once.

    `received` is None until then. Exit statuses are 128 + the signal's number: 143 and 130.
    """

    def __init__(self):
        self.received: signal.Signals | None = None

    def __enter__(self) -> 'StopSignals':
        try:
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:
            self._previous = {}  # not the main thread: signals are somebody else's
        return self

    def _note(self, number, frame) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, *exception) -> None:
        self._restore()
