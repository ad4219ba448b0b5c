"""Files of a run in its workdir, except checkpoints: identity, versions, metrics.jsonl, TensorBoard, JSON files.

Identity means config.json, data.json and, for texts, tokenizer.json. Only `write_identity`, `add_version`, `write_json`
and `MetricWriter` write, so that a refused run changes nothing.
"""

import contextlib
import errno
import importlib.metadata
import json
import math
import os
import platform
import re
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from pad_jax.data import DataSpec, Source, list_names
from pad_jax.errors import BadInput, Stopped
from pad_jax.files import parse_json, read_own_object, read_plain
from pad_jax.training.config import differing_keys, flatten, read_workdir_config
from pad_jax.version import __version__

TOKENIZER = 'tokenizer.json'
VERSIONS = 'versions.json'
# What a run appends to, after it has written config.json. It replaces all other files.
_APPENDED = ('checkpoints', 'tensorboard', 'metrics.jsonl')
# Texts of errors of a disk that is full, read-only, closed or gone: C++ libraries report no numbers.
_DISK_FAULTS = ['ENOSPC', 'EROFS', 'EDQUOT', 'EIO', 'EFBIG', 'ENODEV', 'ESTALE', 'EACCES', 'EPERM']
_DISK_FAULT_TEXT = re.compile('|'.join(re.escape(os.strerror(getattr(errno, name))) for name in _DISK_FAULTS))


def describe_data(spec: DataSpec) -> dict[str, Any]:
    """Contents of data.json: the data that a run is trained on, independent of its folder."""
    counts = {'num_train': spec.num_train, 'num_eval': spec.num_eval}
    return {'class_names': list(spec.class_names), **counts, 'digests': dict(spec.digests)}


def compare_data(old: DataSpec, new: DataSpec) -> list[str]:
    """List the differences of two data sets as 'name: old -> new'."""
    counts = [(name, getattr(old, name), getattr(new, name)) for name in ('num_train', 'num_eval')]
    changed = [f'{name}: {one} -> {other}' for name, one, other in counts if one != other]
    return describe_classes(old.class_names, new.class_names) + changed or compare_digests(old, new)


def compare_digests(old: DataSpec, new: DataSpec) -> list[str]:
    """List the digests that differ. Names and sizes of files do not count where the contents of both are known."""
    shared, found = old.digests.keys() & new.digests.keys(), []
    for name in sorted(shared):
        what, _, split = name.partition(' of ')
        if old.digests[name] != new.digests[name] and (what != 'files' or f'contents of {split}' not in shared):
            found.append(f'{"names or sizes of " * (what == "files")}{name} differ')
    return found


def describe_classes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Describe how two lists of classes differ; [] if they are equal.

    >>> describe_classes(['ant', 'bee'], ['ant', 'cow'])
    ["classes: without 'bee', with 'cow'"]
    """
    if tuple(old) == tuple(new):
        return []
    missing, added = ([name for name in one if name not in other] for one, other in ((old, new), (new, old)))
    words = [f'{word} {list_names(names)}' for word, names in (('without', missing), ('with', added)) if names]
    return [f'classes: {", ".join(words) or "in another order"}']


def check_workdir(workdir: Path, config) -> None:
    """Check that a run of this config may write into workdir, without looking at its data.

    Raises:
      BadInput: it contains files of another config or of unknown origin, a damaged file, or cannot be written.
    """
    try:
        for name in _APPENDED:
            check_access(workdir / name, is_folder=name != 'metrics.jsonl')
        if (workdir / 'config.json').exists():
            differing = differing_keys(flatten(read_workdir_config(workdir)), flatten(config))
            if differing:
                raise BadInput(f'{workdir} was made by another config ({"; ".join(differing)}): use another workdir')
            read_versions(workdir)
        elif others := [name for name in _APPENDED if (workdir / name).exists()]:
            raise BadInput(f'{workdir} contains {others[0]} but no config.json: use another workdir')
        read_metrics(workdir)
    except OSError as error:
        raise BadInput(f'workdir {workdir} cannot be used: {error.strerror}') from error


def check_access(path: Path, is_folder: bool = True, to_write: bool = True) -> None:
    """Raise BadInput if a path exists but cannot be used."""
    if not path.exists():
        return
    if not (path.is_dir() if is_folder else path.is_file()):
        raise BadInput(f'{path} is not a {"folder" if is_folder else "file"}')
    if not os.access(path, os.R_OK | is_folder * os.X_OK | to_write * os.W_OK):
        raise BadInput(f'{path} cannot be {"written" if to_write else "read"}: no permission')


def check_data(workdir: Path, spec: DataSpec) -> None:
    """Raise BadInput if the run in workdir was trained on other data. The folder of the data may have moved."""
    if (workdir / 'config.json').exists():  # the run has begun
        differing = compare_data(read_data(workdir), spec)
        if differing:
            raise BadInput(f'{workdir} was trained on other data ({"; ".join(differing)}): use another workdir')


def read_data(workdir: Path) -> DataSpec:
    """Read data.json; raise BadInput if it is missing or damaged. It does not record splits and metrics."""
    content = read_own_object(workdir / 'data.json', 'the workdir of a run')
    names, counts = content.get('class_names'), {name: content.get(name) for name in ('num_train', 'num_eval')}
    digests = content.get('digests', {})  # runs of earlier versions have none
    is_sound = type(digests) is dict and _are_texts([*digests.values()])
    if not is_sound or not _are_texts(names) or any(type(count) is not int for count in counts.values()):
        said = 'class_names and digests must be texts, num_train and num_eval integers'
        raise BadInput(f'{workdir}/data.json is damaged: {said}')
    return DataSpec(num_classes=max(len(names), 1), class_names=tuple(names), digests=digests, **counts)


def read_versions(workdir: Path) -> list[str]:
    """Versions of pad_jax that have trained the run in workdir, in order; [] before it has begun."""
    path = workdir / VERSIONS
    if not path.exists():
        return []
    versions = read_own_object(path, 'the workdir of a run').get('pad_jax')
    if not versions or not _are_texts(versions):
        raise BadInput(f'{path} is damaged: it must hold pad_jax, a list of versions')
    return versions


def _are_texts(values: Any) -> bool:
    return type(values) is list and all(type(value) is str for value in values)


def find_tokenizer(workdir: Path) -> Path | None:
    """Path of the tokenizer that the run of texts in workdir began with; None before it has begun."""
    path = workdir / TOKENIZER
    if not (workdir / 'config.json').exists():
        return None
    if not path.is_file():
        raise BadInput(f'{workdir} contains no {TOKENIZER}, so its tokens are unknown: use another workdir')
    return path


def add_version(workdir: Path) -> None:
    """Add this version and environment to versions.json."""
    versions, path = read_versions(workdir), workdir / VERSIONS
    known = read_own_object(path, 'the workdir of a run').get('environments', []) if versions else []
    here = {'pad_jax': __version__, 'python': platform.python_version()}
    here |= {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib', 'flax', 'optax')}
    here |= {'backend': jax.default_backend(), 'device': jax.local_devices()[0].device_kind}
    if __version__ not in versions or here not in known:
        versions = [*dict.fromkeys([*versions, __version__])]
        write_json(path, {'pad_jax': versions, 'environments': [*known, here]})


def write_identity(workdir: Path, config, source: Source) -> None:
    """Write data.json, for texts tokenizer.json, and last config.json: where it exists, the others do too."""
    data = describe_data(source.spec)
    for name, content in {'data.json': data, **source.run_files, 'config.json': config.to_dict()}.items():
        write_json(workdir / name, content)


@contextlib.contextmanager
def disk_faults_stop(what: str) -> Iterator[None]:
    """Raise `Stopped` with the line '`what`: reason' for a disk that is full, read-only or gone."""
    try:
        yield
    except Exception as error:
        found = _DISK_FAULT_TEXT.search(str(error))
        if not found:
            raise
        advice = 'once that is mended, start again: the run resumes from its latest checkpoint'
        raise Stopped(f'{what}: {found[0]}; {advice}') from error


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step."""
    replace_text(path, json.dumps(content, indent=2) + '\n')


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step: readers find the old or the new one, never half of it."""
    temporary = path.with_name(path.name + '.tmp')
    temporary.write_text(text)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # file systems that cannot sync folders
            raise
    finally:
        os.close(number)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, NaN for null. A damaged line is refused, except a torn last one of a killed run."""
    path, rows = workdir / 'metrics.jsonl', []
    try:
        lines = read_plain(path).split(b'\n')[:-1] if path.exists() else []
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from error
    for number, line in enumerate(lines, start=1):
        try:
            rows.append({name: math.nan if value is None else value for name, value in parse_json(line).items()})
            is_row = (type(rows[-1]['step']), type(rows[-1]['split'])) == (int, str)
        except (ValueError, AttributeError, KeyError):
            is_row = False
        if not is_row:
            start = line[:80].decode('utf-8', 'replace')
            raise BadInput(f'{path}, line {number}: not a row of metrics: {start!r}')
    return rows


class MetricWriter:
    """Appends rows to metrics.jsonl, without durations so that resumed runs leave the same bytes, and to TensorBoard.

    Args:
      workdir: exists.
      resumed_step: step of the checkpoint that the run resumes from, 0 at the start. Later rows are dropped.

    Each method raises Stopped if the disk is full or fails.
    """

    def __init__(self, workdir: Path, resumed_step: int = 0):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._path, self._board_folder = workdir / 'metrics.jsonl', workdir / 'tensorboard'
        # A round due after s steps runs when the checkpoint of s steps is already written. Its row comes again.
        kept = [row for row in read_metrics(workdir) if row['step'] < resumed_step + (row['split'] != 'partition')]
        # Synced now: if the machine crashes before the next checkpoint, the rows before the last one survive.
        replace_text(self._path, ''.join(map(encode_row, kept)))
        # Unbuffered: a failed write is known at once, and nothing is written later.
        self._file = self._path.open('ab', buffering=0)
        self._board_folder.mkdir(parents=True, exist_ok=True)
        # Not tensorboardX's own writer: it has a thread; if a full disk kills that, the run waits forever.
        self._board = EventsWriter(str(self._board_folder / 'events'))
        if resumed_step:  # TensorBoard then hides later steps in other files
            log = SessionLog(status=SessionLog.START)
            self._board.write_event(Event(wall_time=time.time(), step=resumed_step + 1, session_log=log))
        self._board.flush()

    def write(self, step: int, split: str, values: Mapping[str, float], **board_only: float) -> None:
        """Write one row: `step` (steps done), `split` (train, eval or partition), then values."""
        row = encode_row({'step': step, 'split': split, **values}).encode()
        with disk_faults_stop(f'{self._path} cannot be written'):
            while row:  # an almost full disk takes a part, which the next start drops, and fails at the rest
                row = row[self._file.write(row) :]
        self.write_board(step, {f'{split}/{name}': value for name, value in {**values, **board_only}.items()})

    def write_board(self, step: int, values: Mapping[str, float], texts: Mapping[str, str] | None = None) -> None:
        """Write numbers and texts to TensorBoard only."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar, text

        summaries = [scalar(name, value) for name, value in values.items()]
        # Four blanks: a block of code in Markdown.
        summaries += [text(name, textwrap.indent(content, '    ')) for name, content in (texts or {}).items()]
        with disk_faults_stop(f'{self._board_folder} cannot be written'):
            for summary in summaries:
                self._board.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._board.flush()

    def write_file(self, name: str, content: Any) -> None:
        """Write a JSON file into the workdir."""
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

    write = write_board = write_file = sync = close = lambda self, *arguments, **named: None


def encode_row(row: Mapping[str, Any]) -> str:
    """Encode a row as one line of JSON, with null for numbers that are not finite."""
    is_lost = {name: isinstance(value, float) and not math.isfinite(value) for name, value in row.items()}
    return json.dumps({name: None if is_lost[name] else value for name, value in row.items()}) + '\n'
