"""A lock on a workdir, so that only one run at a time writes into it.

The kernel locks a file (flock) and frees it as soon as its process ends. The file names its holder for the others.
Commands that only read take no lock. With several processes, the first holds it.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from pad_jax.errors import BadInput
from pad_jax.files import read_json
from pad_jax.training.processes import all_or_none, ask_first
from pad_jax.training.workdir import check_access

LOCK = 'lock.json'
SECONDS_TO_APPEAR = 60
"""Seconds until a network file system must show a new file to other machines."""


class WorkdirInUse(BadInput):
    """Another run holds the lock."""


class WorkdirLock:
    """A context manager; `take` locks within its block. Its end removes the file, and new folders that are empty.

    Args:
      workdir: directory of a run, or of a sweep.
      wait_seconds: time to wait for the end of a run that holds the lock.
    """

    def __init__(self, workdir: Path, wait_seconds: float = 0):
        self._workdir, self._path, self._end = workdir, workdir / LOCK, time.monotonic() + wait_seconds
        self._file: int | None = None  # descriptor of the locked file
        self._made: list[Path] = []  # folders

    def take(self) -> dict[str, Any]:
        """Take the lock, write its holder and return it; make the workdir.

        Raises:
          WorkdirInUse: another run holds it, with its host, process and start.
          BadInput: it cannot be written.
        """
        try:
            folders = self._workdir, *self._workdir.parents
            check_access(next(path for path in folders if path.exists()))
            self._made = [path for path in folders if not path.exists()]
            while self._file is None:
                self._workdir.mkdir(parents=True, exist_ok=True)
                self._wait_and_lock()
            since = time.strftime('%Y-%m-%dT%H:%M:%S%z')
            holder = {'host': socket.gethostname(), 'pid': os.getpid(), 'since': since}
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(holder).encode(), 0)
            os.fsync(self._file)  # now network file systems show it to other machines
        except OSError as error:
            raise BadInput(f'workdir {self._workdir} cannot be written: {error.strerror}') from error
        return self._read_holder()

    def take_together(self) -> None:
        """Take the lock in the first process, and check that the others see it. All processes must call it.

        Raises:
          AgreedProblem: naming the processes whose workdir is another folder.
        """
        holder, end = ask_first(self.take), time.monotonic() + SECONDS_TO_APPEAR
        with all_or_none():
            while self._read_holder() != holder:
                if time.monotonic() > end:
                    raise BadInput(
                        f'workdir {self._workdir} on {socket.gethostname()} is not the folder that process 0 writes '
                        'into. It must be on storage that all processes share'
                    )
                time.sleep(0.5)

    def _wait_and_lock(self) -> None:
        is_told = False
        while True:
            try:
                return self._lock()
            except WorkdirInUse as error:
                if time.monotonic() >= self._end:
                    raise
                if not is_told:
                    print(f'waits for its end: {error}', file=sys.stderr, flush=True)
                is_told = True
                time.sleep(0.2)

    def _lock(self) -> None:
        """Open and lock the file; leave `_file` at None if it was removed meanwhile."""
        with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError):
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            stack.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = self._read_holder()
                who = f'a run on {holder.get("host")}, process {holder.get("pid")}, since {holder.get("since")}'
                raise WorkdirInUse(
                    f'{self._workdir} is in use by {who if holder else "another run"}: wait for its end, stop it, or '
                    'use another workdir'
                ) from None
            except OSError:
                print(f'{self._path}: without file locks here, a second run is not noticed', file=sys.stderr)
            if os.fstat(file).st_ino == self._path.stat().st_ino:
                self._file = file
                stack.pop_all()  # keep it open

    def _read_holder(self) -> dict[str, Any]:
        """Read the holder; {} if the file is missing, empty or damaged, as while it is being written."""
        try:
            os.listdir(self._workdir)  # file systems remember names that did not exist when they were asked for
            return dict(read_json(self._path))
        except (OSError, ValueError, TypeError):
            return {}

    def __enter__(self) -> 'WorkdirLock':
        return self

    def __exit__(self, *exception) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a file that stays on a failing disk blocks no later run
                self._path.unlink()
            os.close(self._file)
            self._file = None
        with contextlib.suppress(OSError):  # a folder that is not empty
            for folder in self._made:
                folder.rmdir()
