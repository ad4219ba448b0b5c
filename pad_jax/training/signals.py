"""Lets a run end when the machine, or who started it, wants it to."""

import contextlib
import os
import signal
import socket
import sys
import threading

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Python runs a handler between two of its own instructions. A compilation is a single one, of minutes.
_SECONDS_TO_REACT = 1.0


class StopSignals:
    """While the `with` block runs, SIGTERM and SIGINT end the process at once, or are noted after `note`.

    Before `note` they raise SystemExit, and the block says so in a line when it is left; where Python can't react, the
    process ends without. After it they are noted in `received`, None until then; a second signal does what it did
    before the block. Exit statuses are 128 + the signal's number: 143 and 130.

    Args:
      label: what the line calls the run.
    """

    def __init__(self, label: str):
        self.received: signal.Signals | None = None
        self._label = label
        self._notes = False
        self._reacted = threading.Event()
        self._previous = {}
        self._watch = contextlib.ExitStack()

    def __enter__(self) -> 'StopSignals':
        with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
            # In an interactive session the process is more than this run.
            if not hasattr(sys, 'ps1'):
                self._start_watch()
        return self

    def note(self) -> None:
        """From now on signals are noted: the run has something to lose."""
        if self._notes:
            return
        self._notes = True
        self._watch.close()
        if self.received:  # where an exception can't be raised, as in a destructor
            raise SystemExit(128 + self.received)

    def _handle(self, number, frame) -> None:
        self._reacted.set()
        self.received = signal.Signals(number)
        self._restore()
        if not self._notes:
            raise SystemExit(128 + number)

    def _start_watch(self) -> None:
        """A thread that ends the process where the main thread is too long in a function that isn't Python's."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        other = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if other != -1:  # somebody waits for signals already
            signal.set_wakeup_fd(other)
            reader.close()
            writer.close()
            return
        self._watch.callback(writer.close)  # which ends the thread
        self._watch.callback(signal.set_wakeup_fd, -1)
        threading.Thread(target=self._end_if_stuck, args=(reader,), daemon=True).start()

    def _end_if_stuck(self, reader: socket.socket) -> None:
        with reader:
            while number := reader.recv(1):
                if number[0] in _SIGNALS and not self._reacted.wait(_SECONDS_TO_REACT):
                    show_cursor = '\x1b[?25h' if os.isatty(2) else ''  # hidden by the progress bar
                    os.write(2, f'{show_cursor}{self._line(signal.Signals(number[0]))}\n'.encode())
                    os._exit(128 + number[0])

    def _line(self, received: signal.Signals) -> str:
        return f'{self._label}: {received.name} before the first step, nothing is lost'

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, kind, error, trace) -> None:
        self._watch.close()
        self._restore()
        if self.received and not self._notes and isinstance(error, SystemExit):
            print(self._line(self.received), file=sys.stderr, flush=True)
