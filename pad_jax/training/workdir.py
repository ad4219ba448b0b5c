"""Files of a run in its workdir, except checkpoints: identity, versions, metrics.jsonl, TensorBoard, JSON files.

Identity means config.json, data.json and, for texts, tokenizer.json. Only `write_identity`, `add_version`, `write_json`
and `MetricWriter` write, so that a refused run changes nothing.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pad_jax.data import DataSpec, Source, shorten
from pad_jax.errors import BadInput, Stopped
from pad_jax.files import parse_json, read_json, read_plain
from pad_jax.training.config import differing_keys, flatten, read_workdir_config
from pad_jax.version import __version__

TOKENIZER = 'tokenizer.json'
VERSIONS = 'versions.json'
# Files that a run writes after its config.json.
_WRITTEN = ('checkpoints', 'metrics.jsonl', 'partition.json', 'tensorboard')
# Errors of a disk that is full, read-only or gone. C++ libraries report them by their texts only.
_DISK_FAULTS = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ENODEV, errno.ESTALE)
_DISK_FAULT_TEXT = re.compile('|'.join(re.escape(os.strerror(number)) for number in _DISK_FAULTS))


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """Contents of data.json: the data that a run is trained on, independent of its folder.

    Attributes:
      class_names: by label.
      num_train, num_eval: examples in use.
    """

    class_names: tuple[str, ...]
    num_train: int
    num_eval: int

    @classmethod
    def of(cls, spec: DataSpec) -> 'DataRecord':
        return cls(tuple(spec.class_names), spec.num_train, spec.num_eval)

    def differences(self, other: 'DataRecord') -> list[str]:
        """List the differences as 'name: this -> other'."""
        counts = [
            f'{name}: {getattr(self, name)} -> {getattr(other, name)}'
            for name in ('num_train', 'num_eval')
            if getattr(self, name) != getattr(other, name)
        ]
        return describe_classes(self.class_names, other.class_names) + counts


def describe_classes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Describe how two lists of classes differ; [] if they are equal.

    >>> describe_classes(['ant', 'bee'], ['ant', 'cow'])
    ['classes: without bee, with cow']
    """
    if tuple(old) == tuple(new):
        return []
    words = [
        f'{word} {", ".join(map(shorten, names[:3]))}{f" and {len(names) - 3} more" if len(names) > 3 else ""}'
        for word, names in (
            ('without', [name for name in old if name not in new]),
            ('with', [name for name in new if name not in old]),
        )
        if names
    ]
    return [f'classes: {", ".join(words) or "in another order"}']


def check_workdir(workdir: Path, config) -> None:
    """Check that a run of this config may write into workdir, without looking at its data.

    Raises:
      BadInput: the directory contains files of another config or of unknown origin, a damaged file, or cannot be
        written.
    """
    try:
        _check_is_ours(workdir, config)
        present = workdir
        while not present.exists():
            present = present.parent
        if not present.is_dir():
            raise BadInput(f'workdir {workdir} cannot be made: {present} is not a folder')
        if not os.access(present, os.W_OK | os.X_OK):
            raise BadInput(f'workdir {workdir} cannot be written: no permission to write into {present}')
        check_writable(workdir)
        read_metrics(workdir)
    except OSError as error:
        raise BadInput(f'workdir {workdir} cannot be used: {error.strerror}') from error


def _check_is_ours(workdir: Path, config) -> None:
    if (workdir / 'config.json').exists():
        differing = differing_keys(flatten(read_workdir_config(workdir)), flatten(config))
        if differing:
            raise BadInput(f'{workdir} was made by another config ({"; ".join(differing)}): use another workdir')
        read_versions(workdir)
    elif workdir.exists() and not workdir.is_dir():
        raise BadInput(f'workdir {workdir} is not a folder')
    else:
        others = [name for name in _WRITTEN if (workdir / name).exists()]
        if others:
            raise BadInput(f'{workdir} contains {others[0]} but no config.json: use another workdir')


def check_writable(workdir: Path) -> None:
    """Check the existing files and folders that a run appends to.

    JSON files are replaced, which only needs permission to write into the workdir.

    Raises:
      BadInput: naming the file or folder that cannot be written.
    """
    for name in ('checkpoints', 'tensorboard'):
        check_folder(workdir / name, to_write=True)
    metrics = workdir / 'metrics.jsonl'
    if metrics.exists() and not metrics.is_file():
        raise BadInput(f'{metrics} is not a file')
    if metrics.exists() and not os.access(metrics, os.R_OK | os.W_OK):
        raise BadInput(f'{metrics} cannot be written: no permission')


def check_folder(folder: Path, to_write: bool) -> None:
    """Raise BadInput if the path exists and is not a folder that can be used."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BadInput(f'{folder} is not a folder')
    if not os.access(folder, os.R_OK | os.X_OK | (os.W_OK if to_write else 0)):
        raise BadInput(f'{folder} cannot be {"written" if to_write else "read"}: no permission')


def check_data(workdir: Path, spec: DataSpec) -> None:
    """Refuse to resume the run in workdir on other data. Its folder may have moved.

    Raises:
      BadInput: naming the differences.
    """
    if not (workdir / 'config.json').exists():
        return  # no run yet
    differing = read_data(workdir).differences(DataRecord.of(spec))
    if differing:
        raise BadInput(f'{workdir} was trained on other data ({"; ".join(differing)}): use another workdir')


def read_data(workdir: Path) -> DataRecord:
    """Read the record of the data that the run in workdir is trained on.

    Raises:
      BadInput: data.json is missing or damaged.
    """
    path = workdir / 'data.json'
    content = _read_object(path)
    if content is None:
        raise BadInput(f'{workdir} contains no data.json, so its data is unknown: use another workdir')
    names = content.get('class_names')
    counts = [content.get(name) for name in ('num_train', 'num_eval')]
    names_are_text = type(names) is list and all(type(name) is str for name in names)
    if not names_are_text or any(type(count) is not int for count in counts):
        raise BadInput(f'{path} is damaged: class_names must be texts, num_train and num_eval integers')
    return DataRecord(tuple(names), *counts)


def read_versions(workdir: Path) -> list[str]:
    """Versions of pad_jax that have trained the run in workdir, in order; [] before it has begun.

    Raises:
      BadInput: versions.json is damaged.
    """
    path = workdir / VERSIONS
    content = _read_object(path)
    versions = [] if content is None else content.get('pad_jax')
    if type(versions) is not list or (content and not versions) or not all(type(one) is str for one in versions):
        raise BadInput(f'{path} is damaged: it must hold pad_jax, a list of versions')
    return versions


def _read_object(path: Path) -> dict[str, Any] | None:
    """Contents of a JSON file, {} if they are not an object, None without the file."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from error
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def add_version(workdir: Path) -> None:
    """Add this version to versions.json."""
    versions = read_versions(workdir)
    if __version__ not in versions:
        write_json(workdir / VERSIONS, {'pad_jax': [*versions, __version__]})


def find_tokenizer(workdir: Path) -> Path | None:
    """Path of the tokenizer that the run of texts in workdir began with; None before it has begun.

    Raises:
      BadInput: it has been lost.
    """
    if not (workdir / 'config.json').exists():
        return None
    path = workdir / TOKENIZER
    if not path.is_file():
        raise BadInput(f'{workdir} contains no {TOKENIZER}, so its tokens are unknown: use another workdir')
    return path


def write_identity(workdir: Path, config, source: Source) -> None:
    """Write data.json, for texts tokenizer.json, and last config.json: where it exists, the others do too."""
    write_json(workdir / 'data.json', dataclasses.asdict(DataRecord.of(source.spec)))
    for name, content in source.run_files.items():
        write_json(workdir / name, content)
    write_json(workdir / 'config.json', config.to_dict())


@contextlib.contextmanager
def disk_faults_stop(what: str) -> Iterator[None]:
    """Raise `Stopped` with the line '`what`: reason' for a disk that is full, read-only or gone."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (*_DISK_FAULTS, errno.EACCES, errno.EPERM):
            reason = error.strerror
        elif found := _DISK_FAULT_TEXT.search(str(error)):
            reason = found[0]
        else:
            raise
        raise Stopped(
            f'{what}: {reason}; once that is mended, start again: the run resumes from its latest checkpoint'
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step: readers find the old or the new one, never half of it."""
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
    """Return once the names in a folder are on the disk, so that they survive a crash of the machine."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # file systems that cannot sync folders
            raise
    finally:
        os.close(number)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, NaN for null, without a torn last line that a killed run has left.

    Raises:
      BadInput: another line is not a row.
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
        rows.append({name: math.nan if value is None else value for name, value in row.items()})
    return rows


class MetricWriter:
    """Appends rows to metrics.jsonl and to TensorBoard.

    metrics.jsonl holds computed values and no durations, so that a resumed run leaves the same bytes as an
    uninterrupted one.

    Args:
      workdir: exists.
      resumed_step: step of the checkpoint that the run resumes from, 0 at the start. Later rows are dropped, because
        the run writes them again.

    Raises:
      BadInput: an existing file cannot be written; raised before anything is changed.
    """

    def __init__(self, workdir: Path, resumed_step: int = 0):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        check_writable(workdir)
        self._path, self._board_folder = workdir / 'metrics.jsonl', workdir / 'tensorboard'
        kept = [row for row in read_metrics(workdir) if _is_kept(row, resumed_step)]
        # Synced now: if the machine crashes before the next checkpoint, the rows before the last one survive.
        _replace(self._path, ''.join(map(encode_row, kept)))
        # Unbuffered: a failed write is known at once, and nothing is written later.
        self._file = self._path.open('ab', buffering=0)
        self._board_folder.mkdir(parents=True, exist_ok=True)
        # Not tensorboardX's own writer: it has a thread; if a full disk kills that, the run waits forever.
        self._board = EventsWriter(str(self._board_folder / 'events'))
        if resumed_step:  # TensorBoard then hides later steps in other files
            log = SessionLog(status=SessionLog.START)
            self._board.write_event(Event(wall_time=time.time(), step=resumed_step + 1, session_log=log))
        self._board.flush()

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Write one row: `step` (steps done), `split` (train, eval or partition), then values.

        Raises:
          Stopped: the disk is full or fails; no half of a row is left.
        """
        row = encode_row({'step': step, 'split': split, **values}).encode()
        with disk_faults_stop(f'{self._path} cannot be written'):
            end = self._file.seek(0, os.SEEK_END)
            try:
                while row:  # an almost full disk takes a part and fails at the rest
                    row = row[self._file.write(row) :]
            except OSError:
                self._file.truncate(end)
                raise
        for name, value in values.items():
            self.write_board(step, f'{split}/{name}', value)

    def write_board(self, step: int, name: str, value: float) -> None:
        """Write a value for TensorBoard only."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with disk_faults_stop(f'{self._board_folder} cannot be written'):
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self._board.flush()

    def write_file(self, name: str, content: Any) -> None:
        """Write a JSON file into the workdir.

        Raises:
          Stopped: the disk is full or fails.
        """
        path = self._path.with_name(name)
        with disk_faults_stop(f'{path} cannot be written'):
            write_json(path, content)

    def sync(self) -> None:
        """Return once the rows are on the disk: a checkpoint never outlives the rows before it."""
        with disk_faults_stop(f'{self._path} cannot be written'):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        with contextlib.suppress(OSError):  # a full disk, which an earlier write has reported
            self._board.close()


class NoWriter:
    """Stands in for a MetricWriter in processes that do not write."""

    def _ignore(self, *arguments) -> None:
        pass

    write = write_board = write_file = sync = close = _ignore


def encode_row(row: Mapping[str, Any]) -> str:
    """Encode a row as one line of JSON, with null for numbers that are not finite."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(finite) + '\n'


def _is_kept(row: Mapping[str, Any], resumed_step: int) -> bool:
    # A round due after s steps runs when the checkpoint of s steps is already written.
    return row['step'] < resumed_step or (row['step'] == resumed_step and row['split'] != 'partition')
