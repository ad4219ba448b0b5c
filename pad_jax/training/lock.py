"""One run at a time writes into a workdir.

The lock is the kernel's (flock) on a file in the workdir, which so is free again as soon as its run has ended, however
that was. Some network file systems keep such locks within each machine, or know none. So the file also says who holds
it, and its time moves while the run lives: a lock of another machine, and any where there are no locks of the kernel,
is watched before it is taken over.

Reading (evaluate, inspect, ...) asks nobody. Of several processes that train one network the first holds the lock.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

from pad_jax.errors import BadInput

LOCK = 'lock.json'
BEAT_SECONDS = 10.0
"""How often the file's time moves."""
WATCH_SECONDS = 45.0
"""A lock whose time stands still for so long is nobody's."""


class WorkdirLock:
    """Use as a context manager, within which `find` and `take` may be called: what they hold ends with it.

    Args:
      workdir: need not exist.
    """

    def __init__(self, workdir: Path):
        self._workdir, self._path = workdir, workdir / LOCK
        self._number: int | None = None  # of the open file that is locked
        self._is_ours = False
        self._ended = threading.Event()

    def find(self) -> None:
        """Takes the lock of an earlier run, if there is one; writes nothing.

        Raises:
          BadInput: when that run goes on, with its host, process and start.
        """
        try:
            if self._number is None and self._path.exists():
                self._lock(os.O_RDWR)
        except OSError as error:
            raise BadInput(f'workdir {self._workdir} cannot be used: {error.strerror}') from error

    def take(self) -> None:
        """Takes the lock, which is written; makes the workdir. The run may begin to write.

        Raises:
          BadInput: when another run has it, or it can't be written.
        """
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            while self._number is None:
                self._lock(os.O_RDWR | os.O_CREAT)
            since = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
            self._path.write_text(json.dumps({'host': socket.gethostname(), 'pid': os.getpid(), 'since': since}) + '\n')
        except OSError as error:
            raise BadInput(f'workdir {self._workdir} cannot be written: {error.strerror}') from error
        self._is_ours = True
        threading.Thread(target=self._beat, daemon=True).start()

    def _lock(self, flags: int) -> None:
        """Opens and locks the file; leaves `_number` at None when that was removed meanwhile."""
        try:
            number = os.open(self._path, flags, 0o644)
        except FileNotFoundError:
            return
        try:
            is_known = self._ask_kernel(number)
            if os.fstat(number).st_ino != self._path.stat().st_ino:
                raise FileNotFoundError
            holder = _read_holder(number)
            if (not is_known or holder.get('host') not in (None, socket.gethostname())) and self._beats(holder):
                raise self._refuse(holder)
        except FileNotFoundError:
            os.close(number)
        except BaseException:
            os.close(number)
            raise
        else:
            self._number = number

    def _ask_kernel(self, number: int) -> bool:
        """Whether it has locks here, and gives this one to us."""
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refuse(_read_holder(number)) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF):
                raise
            return False
        return True

    def _refuse(self, holder: dict) -> BadInput:
        who = 'another run'
        if holder:
            who = f'a run on {holder.get("host")}, process {holder.get("pid")}, since {holder.get("since")}'
        return BadInput(f'{self._workdir} is in use by {who}: wait for its end, stop it, or use another workdir')

    def _beats(self, holder: dict) -> bool:
        """Whether the file's time moves, by whatever clock. Opened each time, as network file systems remember."""
        before, end = self._modified(), time.monotonic() + WATCH_SECONDS
        if not before:  # an empty file: nobody ever wrote into it
            return False
        print(
            f'{self._path}: of a run on {holder.get("host")!r}; watching for {WATCH_SECONDS:.0f} s whether it lives',
            file=sys.stderr,
            flush=True,
        )
        while time.monotonic() < end:
            time.sleep(BEAT_SECONDS / 10)
            if self._modified() != before:
                return True
        return False

    def _modified(self) -> int:
        with self._path.open() as file:
            found = os.fstat(file.fileno())
            return found.st_mtime_ns if found.st_size else 0

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def __enter__(self) -> 'WorkdirLock':
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        if self._is_ours:
            with contextlib.suppress(OSError):  # on a disk that fails it stays, and holds nobody up
                self._path.unlink()
        if self._number is not None:
            os.close(self._number)
            self._number = None


def _read_holder(number: int) -> dict:
    """What a lock says of its run; {} when that is nothing, as in the moment in which it is taken."""
    try:
        holder = json.loads(os.pread(number, 4096, 0))
    except (ValueError, OSError):
        return {}
    return holder if isinstance(holder, dict) else {}
