"""What a run leaves in its workdir besides checkpoints: metrics.jsonl, TensorBoard events, JSON files."""

import contextlib
import errno
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from pad_jax.errors import BadInput, Stopped
from pad_jax.files import parse_json, read_plain

# What a system says of a disk that is full, read-only or gone. What is written in C++ comes as their texts alone.
_DISK_FAULTS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ENODEV, errno.ESTALE)
_SAYS_DISK_FAULT = re.compile('|'.join(re.escape(os.strerror(number)) for number in _DISK_FAULTS))


@contextlib.contextmanager
def disk_faults_stop(what: str) -> Iterator[None]:
    """Within the `with` block a disk that is full, read-only or gone raises `Stopped` with one line, `what` first."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (*_DISK_FAULTS, errno.EACCES, errno.EPERM):
            reason = error.strerror
        elif found := _SAYS_DISK_FAULT.search(str(error)):
            reason = found[0]
        else:
            raise
        raise Stopped(
            f'{what}: {reason}; once that is mended, start again: it goes on from its newest checkpoint'
        ) from error


def check_writable(workdir: Path) -> None:
    """Checks what a run goes on writing into, as far as it is there already.

    JSON files are replaced, for which permission to write into the workdir is enough.

    Raises:
      BadInput: naming the file or folder that can't be written.
    """
    for name in ('checkpoints', 'tensorboard'):
        check_folder(workdir / name, to_write=True)
    metrics = workdir / 'metrics.jsonl'
    if metrics.exists() and not metrics.is_file():
        raise BadInput(f'{metrics} is not a file')
    if metrics.exists() and not os.access(metrics, os.R_OK | os.W_OK):
        raise BadInput(f'{metrics} cannot be written: no permission')


def check_folder(folder: Path, to_write: bool) -> None:
    """Raises BadInput for something that is there and is no folder, or none that can be used; nothing there is fine."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BadInput(f'{folder} is not a folder')
    if not os.access(folder, os.R_OK | os.X_OK | (os.W_OK if to_write else 0)):
        raise BadInput(f'{folder} cannot be {"written" if to_write else "read"}: no permission')


def write_json(path: Path, content: Any) -> None:
    """Replaces a JSON file in one step: a reader finds the old one or the new one, never half of it."""
    _replace(path, json.dumps(content, indent=2) + '\n')


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + '.tmp')
    with temporary.open('w') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Returns once the names in a folder are on the disk, so that a machine that fails doesn't forget them."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # file systems that know no such thing
            raise
    finally:
        os.close(number)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a torn last line, left by a run that was killed, is not one.

    Raises:
      BadInput: for any other line that is no row.
    """
    path = workdir / 'metrics.jsonl'
    try:
        lines = read_plain(path).split(b'\n')[:-1] if path.exists() else []
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or type(row.get('step')) is not int or type(row.get('split')) is not str:
            start = line[:80].decode('utf-8', 'replace')
            raise BadInput(f'{path}, line {number}: not a row of metrics: {start!r}')
        rows.append(row)
    return rows


class MetricWriter:
    """Appends rows to metrics.jsonl and to TensorBoard.

    metrics.jsonl holds what a run computes, not how long it took, so that an interrupted and resumed run leaves the
    same bytes as one that was never interrupted.

    Args:
      workdir: exists.
      resumed_step: the step whose checkpoint the run goes on from, 0 at the start; later rows are dropped, as the run
        is about to write them again.

    Raises:
      BadInput: before anything is changed, when what is there can't be written.
    """

    def __init__(self, workdir: Path, resumed_step: int = 0):
        check_writable(workdir)
        path = workdir / 'metrics.jsonl'
        kept = [row for row in read_metrics(workdir) if _belongs(row, resumed_step)]
        # On the disk at once: should the machine fail before the next checkpoint, the rows before the last are there.
        _replace(path, ''.join(json.dumps(row) + '\n' for row in kept))
        # Without a buffer: what can't be written is known at once, and nothing is written later.
        self._file = path.open('ab', buffering=0)
        self._name = path
        self._board = _Board(workdir / 'tensorboard', resumed_step)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One row: `step` (steps done), `split` (train, eval or partition), then values.

        Raises:
          Stopped: when the disk is full or fails; no half of a row is left.
        """
        row = (json.dumps({'step': step, 'split': split, **values}) + '\n').encode()
        with disk_faults_stop(f'{self._name} cannot be written'):
            end = self._file.seek(0, os.SEEK_END)
            try:
                while row:  # a disk that is almost full takes a part, and fails at the rest
                    row = row[self._file.write(row) :]
            except OSError:
                self._file.truncate(end)
                raise
        for name, value in values.items():
            self.write_board(step, f'{split}/{name}', value)

    def write_board(self, step: int, name: str, value: float) -> None:
        """A value for TensorBoard alone."""
        with disk_faults_stop(f'{self._board.folder} cannot be written'):
            self._board.write(step, name, value)

    def sync(self) -> None:
        """Returns once the rows are on the disk: a checkpoint never outlives the rows before it."""
        with disk_faults_stop(f'{self._name} cannot be written'):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        self._board.close()


class _Board:
    """Events for TensorBoard, written by the thread that asks for it.

    tensorboardX's own writer has a thread: when that dies of a full disk, the run waits for it forever.

    Args:
      folder: made.
      resumed_step: see `MetricWriter`; TensorBoard hides what other files say of later steps.
    """

    def __init__(self, folder: Path, resumed_step: int):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / 'events'))
        if resumed_step:
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=resumed_step + 1, session_log=start))
        self._writer.flush()

    def write(self, step: int, name: str, value: float) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._writer.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk; what matters has said so
            self._writer.close()


class NoWriter:
    """In the place of a MetricWriter, for a process that is not the one that writes."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        pass

    def write_board(self, step: int, name: str, value: float) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def _belongs(row: Mapping[str, Any], resumed_step: int) -> bool:
    # A round due after s steps comes when the checkpoint of s steps is already written.
    return row['step'] < resumed_step or (row['step'] == resumed_step and row['split'] != 'partition')
