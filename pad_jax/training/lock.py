"""A lock on a workdir, so that only one run at a time writes into it.

The kernel locks a file (flock) and frees it as soon as its process ends. Some network file systems keep such locks
within each machine or have none. So the file also names its holder, and the holder renews its time. A lock of another
machine is watched before it is taken over. So is every lock where the kernel has none. Commands that only read take no
lock. With several processes, the first holds it.
"""

import contextlib
import datetime
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
"""Seconds between two renewals of the file's time."""
WATCH_SECONDS = 45.0
"""Seconds without a renewal after which a lock counts as abandoned."""


class WorkdirLock:
    """A context manager; `find` and `take` lock within its block. The workdir need not exist."""

    def __init__(self, workdir: Path):
        self._workdir, self._path = workdir, workdir / LOCK
        self._file: int | None = None  # descriptor of the locked file
        self._is_ours, self._ended = False, threading.Event()

    def find(self) -> None:
        """Take over the lock of an earlier run, if there is one. Write nothing.

        Raises:
          BadInput: that run is alive; names its host, process and start.
        """
        with self._explain_faults():
            if self._file is None and self._path.exists():
                self._lock(os.O_RDWR)

    def take(self) -> None:
        """Take the lock and write it; make the workdir. From here on the run may write.

        Raises:
          BadInput: another run holds it, or it cannot be written.
        """
        with self._explain_faults():
            self._workdir.mkdir(parents=True, exist_ok=True)
            while self._file is None:
                self._lock(os.O_RDWR | os.O_CREAT)
            since = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
            self._path.write_text(json.dumps({'host': socket.gethostname(), 'pid': os.getpid(), 'since': since}) + '\n')
        self._is_ours = True
        threading.Thread(target=self._beat, daemon=True).start()

    @contextlib.contextmanager
    def _explain_faults(self):
        try:
            yield
        except OSError as error:
            raise BadInput(f'workdir {self._workdir} cannot be written: {error.strerror}') from error

    def _lock(self, flags: int) -> None:
        """Open and lock the file; leave `_file` at None if it does not exist or was removed meanwhile."""
        with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
            file = os.open(self._path, flags, 0o644)
            stack.callback(os.close, file)
            is_alive, has_locks, holder = False, True, _read_holder(file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                is_alive = True
            except OSError:
                has_locks = False
            if os.fstat(file).st_ino != self._path.stat().st_ino:
                return
            if holder and not (has_locks and holder.get('host') == socket.gethostname()):
                is_alive = is_alive or self._is_renewed(holder)
            if is_alive:
                who = f'a run on {holder.get("host")}, process {holder.get("pid")}, since {holder.get("since")}'
                raise BadInput(
                    f'{self._workdir} is in use by {who if holder else "another run"}: wait for its end, stop it, or '
                    'use another workdir'
                )
            self._file = file
            stack.pop_all()  # keep it open

    def _is_renewed(self, holder: dict) -> bool:
        """Watch the time of the file."""
        before, end = self._modified(), time.monotonic() + WATCH_SECONDS
        host, seconds = holder.get('host'), f'{WATCH_SECONDS:.0f} s'
        print(f'{self._path}: held by a run on {host!r}; watching it for {seconds}', file=sys.stderr, flush=True)
        while time.monotonic() < end and self._modified() == before:
            time.sleep(BEAT_SECONDS / 10)
        return self._modified() != before

    def _modified(self) -> int:
        with self._path.open() as file:  # opened each time, because network file systems cache the time
            return os.fstat(file.fileno()).st_mtime_ns

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def __enter__(self) -> 'WorkdirLock':
        return self

    def __exit__(self, *exception) -> None:
        self._ended.set()
        if self._is_ours:
            with contextlib.suppress(OSError):  # a file that stays on a failing disk blocks no later run
                self._path.unlink()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _read_holder(file: int) -> dict:
    """Read the holder from a lock; {} if the file is empty or damaged, as while it is being written."""
    try:
        holder = json.loads(os.pread(file, 4096, 0))
    except (ValueError, OSError):
        return {}
    return holder if isinstance(holder, dict) else {}
