"""Standard output and error that never end a command: odd characters are escaped, lost output is dropped."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator


class _Raw(io.FileIO):
    """A file descriptor whose output is dropped from the first error on; `problem` keeps that error."""

    problem: OSError | None = None

    def write(self, content) -> int:
        if self.problem is None:
            try:
                return super().write(content)
            except OSError as error:
                self.problem = error
        return memoryview(content).nbytes


@contextlib.contextmanager
def lasting_streams() -> Iterator[Callable[[], OSError | None]]:
    """Replace stdout and stderr in the `with` block; yield a function that returns the error of a lost stdout.

    Characters that the encoding lacks become escapes. If the reader is gone or the disk is full, further output is
    dropped, and the command continues. Streams without a file, as in notebooks, stay.
    """
    raws, before = {}, {1: sys.stdout, 2: sys.stderr}
    for number, stream in before.items():
        if stream is None:  # closed; without this, the next file that is opened gets the number
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        elif type(stream) is io.TextIOWrapper:
            with contextlib.suppress(OSError):
                stream.flush()
            raws[number] = _Raw(stream.fileno(), 'wb', closefd=False)
            by_line = stream.line_buffering or stream.write_through
            raws[number].text = io.TextIOWrapper(
                io.BufferedWriter(raws[number]), stream.encoding, 'backslashreplace', line_buffering=by_line
            )

    def flush(number: int) -> OSError | None:
        if number not in raws:
            return None
        raws[number].text.flush()
        return raws[number].problem

    try:
        sys.stdout, sys.stderr = (raws[number].text if number in raws else before[number] for number in (1, 2))
        yield lambda: flush(1)
    finally:
        flush(1), flush(2)
        sys.stdout, sys.stderr = before.values()
