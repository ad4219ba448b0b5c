"""Checkpoints of a run: the whole TrainState in the masked storage, independent of devices and processes.

Orbax writes the arrays into STEP.writing. A manifest with the size and sha256 of every file comes last, and then the
folder is renamed to STEP. So a folder whose name is a number is complete, and later damage is noticed. A damaged
checkpoint is kept as STEP.damaged, and the latest sound one replaces it.

A run may remove a checkpoint while another command reads it. The reader then takes a newer one.

If there are several processes, all of them call every method.
"""

import contextlib
import errno
import hashlib
import json
import logging
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pad_jax.errors import BadInput, describe
from pad_jax.files import read_json
from pad_jax.training.devices import as_global
from pad_jax.training.processes import ask_first, is_first
from pad_jax.training.state import Faults, TrainState
from pad_jax.training.workdir import check_access, disk_faults_stop, sync, write_json

FORMAT = 4
"""Version of the contents of a checkpoint; other versions are refused."""
MANIFEST = 'manifest.json'
_STEP = re.compile('0|[1-9][0-9]*')  # not "07", which would be looked for under another name
_LEFTOVER = re.compile(r'\d+\.(writing|removing)(\..*)?|\d+\.orbax-checkpoint-tmp.*')
# Errors of a file that differs from the written one; other errors are trouble of the machine.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EIO)


class Checkpoints:
    """Checkpoints in a folder, numbered by step.

    Args:
      folder: created with the first checkpoint; BadInput if it is not a folder, or cannot be read or written.
      keep: number of the latest checkpoints to keep; None: only read, which changes nothing in the folder.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        check_access(folder, to_write=keep is not None)
        self.folder, self._keep = folder, keep
        _hide_repeated_errors()
        self._damaged: dict[int, str] = {}  # reasons by step, all after the restored one
        self._checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler(state=ocp.StandardCheckpointHandler()))

    def steps_here(self) -> list[int]:
        """Steps of all checkpoints that this process sees, sound or not, ascending."""
        found = self.folder.iterdir() if self.folder.exists() else ()
        return sorted(int(path.name) for path in found if _STEP.fullmatch(path.name) and path.is_dir())

    def latest_step(self) -> int | None:
        """Step of the latest checkpoint, None without any."""
        return max(ask_first(self.steps_here), default=None)

    def save(self, state: TrainState, best: int | None = None) -> None:
        """Write a masked state that lives on one device of each process; return when it is complete.

        Older checkpoints are removed, except the one of step `best`.
        If the disk is full or fails, raise Stopped; earlier checkpoints stay unchanged.
        """
        step = int(state.step)
        if step in ask_first(self.steps_here):
            return
        where, begun = self._path(step), self._path(step, '.writing')
        counts = {name: int(getattr(state.faults, name)) for name in ('skipped', 'in_a_row')}
        counts['sums'] = jax.tree.map(float, state.sums)
        try:
            with disk_faults_stop(f'checkpoint {where} cannot be written'), _join_threads():
                if is_first():
                    self.folder.mkdir(parents=True, exist_ok=True)
                    sync(self.folder.parent)
                    shutil.rmtree(begun, ignore_errors=True)
                stored = ocp.args.StandardSave(as_global(_stored_fields(state)))
                self._checkpointer.save(begun.absolute(), args=ocp.args.Composite(state=stored))
                if is_first():
                    _write_manifest(begun, counts)
                    begun.rename(where)
                    sync(self.folder)
        except BaseException:
            if is_first():
                self._clear_leftovers()  # they would take the space that is missing
            raise
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f'checkpoint {step}')
        if is_first():
            for old in set(self.steps_here()[: -self._keep]) - {best}:
                with contextlib.suppress(OSError):  # a later call tries again
                    # Renamed first, so that half a checkpoint never has a number.
                    self._path(old).rename(self._path(old, '.removing'))
            self._clear_leftovers()

    def restore_newest(self, like: TrainState, choose: Callable[[set[int]], int] = max) -> TrainState:
        """Restore the latest sound checkpoint, or another that `choose` prefers, in the shapes of `like`.

        `describe_damage` then lists the damaged ones after it.

        Raises:
          BadInput: no checkpoint exists, or it cannot be read, has another format, or does not fit the model.
        """
        self._damaged = {}
        # Listed again each time, because a run may meanwhile remove old ones and add new ones. A list that was made
        # during such a change may be empty.
        while steps := set(ask_first(lambda: self.steps_here() or self.steps_here())) - self._damaged.keys():
            step = choose(steps)
            try:
                reason = ask_first(lambda step=step: self._find_damage(step))
                if not reason:
                    return self._restore(like, step)
            except BadInput as error:
                # Several processes read as a training, which no other one changes.
                if jax.process_count() > 1 or self._path(step).is_dir():
                    raise
                reason = str(error)
            self._damaged[step] = reason
        if not self._damaged:
            raise BadInput(f'{self.folder} holds no checkpoint')
        reasons = '; '.join(f'{step}: {reason}' for step, reason in list(self._damaged.items())[:3])
        raise BadInput(f'{self.folder} holds no sound checkpoint ({reasons}): remove them to begin again')

    def describe_damage(self) -> list[str]:
        """One line for each checkpoint that `restore_newest` found damaged."""
        kept = 'the latest sound one replaces it, and training keeps it as'
        return [
            f'checkpoint {self._path(step)} is damaged ({reason}): {kept} {step}.damaged'
            for step, reason in self._damaged.items()
            if step in self.steps_here()  # not removed meanwhile by a run
        ]

    def prepare_to_write(self) -> None:
        """Rename damaged checkpoints, and remove half written ones. Only the first process of a run calls it."""
        for step in self._damaged:
            kept = self._path(step, '.damaged')
            shutil.rmtree(kept, ignore_errors=True)
            self._path(step).rename(kept)
        self._clear_leftovers()

    def _clear_leftovers(self) -> None:
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, step: int, suffix: str = '') -> Path:
        return self.folder / f'{step}{suffix}'

    def _find_damage(self, step: int) -> str:
        """Describe damage; '' without any. Raise BadInput if files may not be read, or have another format."""
        where = self._path(step)
        try:
            manifest = read_json(where / MANIFEST)
            if manifest.pop('sha256') != _digest(manifest):
                return f'{MANIFEST} has changed: its sha256 differs'
            if manifest['format'] == FORMAT:
                return _compare_files(where, manifest['files'])
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise BadInput(f'checkpoint {where} cannot be read: {error.strerror}') from error
            return f'{error.strerror}: {Path(error.filename or MANIFEST).name}'
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            return f'{MANIFEST} is not as written: {describe(error)[:200]}'
        raise BadInput(
            f'checkpoint {where} has format {manifest["format"]}, this version reads {FORMAT}: use the version that '
            'wrote it, or another workdir'
        )

    def _restore(self, like: TrainState, step: int) -> TrainState:
        where, device = self._path(step), jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), _stored_fields(like)
        )
        try:
            manifest = read_json(where / MANIFEST)
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            found = self._checkpointer.restore(where.absolute(), args=arguments).state
        except (MemoryError, jax.errors.JaxRuntimeError):  # troubles of the machine
            raise
        except Exception as error:  # orbax raises almost anything
            raise BadInput(
                f'checkpoint {where} does not fit the model or has changed: {describe(error)[:200]}'
            ) from error
        sums = {name: tuple(map(np.float32, pair)) for name, pair in manifest['sums'].items()}
        return like.replace(**found, faults=Faults.none(manifest['skipped'], manifest['in_a_row']), sums=sums)

    def close(self) -> None:
        self._checkpointer.close()


def _stored_fields(state: TrainState) -> dict[str, Any]:
    """Fields that a checkpoint stores as arrays: not those that follow from the masks, and no empty average."""
    left_out = {'index', 'records', 'faults', 'sums'} | (set() if state.average else {'average'})
    return {name: value for name, value in vars(state).items() if name not in left_out}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write_manifest(folder: Path, counts: dict[str, Any]) -> None:
    """Put all files of a folder on the disk, and then the manifest that lists them."""
    paths = sorted(folder.rglob('*'))
    for path in paths:
        sync(path)
    files = {path.relative_to(folder).as_posix(): _measure(path) for path in paths if path.is_file()}
    content = {'format': FORMAT, **counts, 'files': files}
    write_json(folder / MANIFEST, {**content, 'sha256': _digest(content)})
    sync(folder)


def _measure(path: Path) -> dict[str, Any]:
    with path.open('rb') as file:
        return {'bytes': path.stat().st_size, 'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}


def _compare_files(folder: Path, listed: dict[str, dict[str, Any]]) -> str:
    """Describe the first difference from a manifest; '' without any."""
    for name, written in listed.items():
        if not (folder / name).is_file():  # orbax would wait for a pipe
            return f'{name} is missing'
        if (found := _measure(folder / name)) != written:
            return f'{name} has changed: {found["bytes"]} bytes of {written["bytes"]}, or its sha256 differs'
    return ''


@contextlib.contextmanager
def _join_threads() -> Iterator[None]:
    """After an error, wait for the threads that the block has started: they may still write."""
    before = set(threading.enumerate())
    try:
        yield
    except Exception:
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=5)
        raise


def _hide_repeated_errors() -> None:
    """Hide errors that threads of orbax and tensorstore print, for as long as they run. Orbax raises them as well."""
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).addFilter(_is_of_others)
    # After an error, orbax does not wait for the reads of other arrays.
    warnings.filterwarnings('ignore', "coroutine '_read_array.* was never awaited", RuntimeWarning)
    show = sys.unraisablehook

    def show_others(unraisable) -> None:
        # One for each array of tensorstore.
        if not str(unraisable.exc_value).startswith(('Event loop is closed', 'Encountered error while reading array')):
            show(unraisable)

    if getattr(show, '__module__', '') != __name__:
        sys.unraisablehook = show_others


def _is_of_others(record: logging.LogRecord) -> bool:
    text = record.pathname + logging.Formatter().format(record)  # with its traceback
    return 'orbax' not in text and 'tensorstore' not in text
