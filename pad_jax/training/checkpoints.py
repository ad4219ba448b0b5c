"""Checkpoints of a run: the whole TrainState in the masked storage, independent of devices and processes.

Orbax writes the arrays into STEP.writing. A manifest with the size and sha256 of every file comes last, and then the
folder is renamed to STEP. So a folder whose name is a number is complete, and later damage is noticed. A damaged
checkpoint is kept as STEP.damaged, and the latest sound one replaces it.

If there are several processes, all of them call every method.
"""

import contextlib
import errno
import gc
import hashlib
import itertools
import json
import logging
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pad_jax.errors import BadInput
from pad_jax.files import read_json
from pad_jax.training.devices import as_global
from pad_jax.training.processes import ask_first, is_first
from pad_jax.training.state import Faults, TrainState
from pad_jax.training.workdir import check_access, disk_faults_stop, sync, write_json

# Seconds to wait for each other writer thread after one of them has failed.
SECONDS_FOR_OTHERS = 5.0
FORMAT = 3
"""Version of the contents of a checkpoint; other versions are refused."""

MANIFEST = 'manifest.json'
_STEP = re.compile('0|[1-9][0-9]*')  # not "07", which would be looked for under another name
_LEFTOVER = re.compile(r'\d+\.(writing|removing)(\..*)?|\d+\.orbax-checkpoint-tmp.*')
# Errors of a file that differs from the written one; other errors are trouble of the machine.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EIO)


class Checkpoints:
    """Checkpoints in a folder, numbered by step.

    Args:
      folder: created with the first checkpoint.
      keep: number of the latest checkpoints to keep; None: only read, which changes nothing in the folder.

    Raises:
      BadInput: the path is not a folder, or cannot be read or written.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        check_access(folder, 'folder', to_write=keep is not None)
        self.folder = folder
        self._keep = keep
        self._damaged: dict[int, str] = {}
        self._restored: int | None = None
        self._checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler(state=ocp.StandardCheckpointHandler()))

    def steps_here(self) -> list[int]:
        """Steps of all checkpoints that this process sees, sound or not, ascending."""
        found = self.folder.iterdir() if self.folder.exists() else ()
        return sorted(int(path.name) for path in found if _STEP.fullmatch(path.name) and path.is_dir())

    def latest_step(self) -> int | None:
        """Step of the latest checkpoint, None without any."""
        return max(ask_first(self.steps_here), default=None)

    def save(self, state: TrainState) -> None:
        """Write a masked state that lives on one device of each process; return when it is complete.

        Raises:
          Stopped: the disk is full or fails; earlier checkpoints stay unchanged.
        """
        step = int(state.step)
        if step in ask_first(self.steps_here):
            return
        where, begun = self._path(step), self._path(step, '.writing')
        counts = {name: int(getattr(state.faults, name)) for name in ('skipped', 'in_a_row')}
        try:
            with disk_faults_stop(f'checkpoint {where} cannot be written'), _quiet_when_failing():
                if is_first():
                    self.folder.mkdir(parents=True, exist_ok=True)
                    sync(self.folder.parent)
                    shutil.rmtree(begun, ignore_errors=True)
                stored = ocp.args.StandardSave(as_global(_stored_fields(state)))
                self._checkpointer.save(begun.absolute(), args=ocp.args.Composite(state=stored))
                if is_first():
                    content = {'format': FORMAT, **counts, 'files': _describe_files(begun)}
                    write_json(begun / MANIFEST, {**content, 'sha256': _digest(content)})
                    sync(begun)
                    begun.rename(where)
                    sync(self.folder)
        except BaseException:
            if is_first():
                self._clear_leftovers()  # they would take the space that is missing
            raise
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f'checkpoint {step}')
        if is_first():
            for old in self.steps_here()[: -self._keep]:
                with contextlib.suppress(OSError):  # it stays, which does no harm
                    # Renamed first, so that half a checkpoint never has a number.
                    self._path(old).rename(self._path(old, '.removing'))
            self._clear_leftovers()

    def restore_newest(self, like: TrainState) -> TrainState:
        """Restore the latest sound checkpoint, in the shapes of `like`, on the default device.

        `describe_damage` then lists the damaged ones after it.

        Raises:
          BadInput: no checkpoint exists, or it cannot be read, has another format, or does not fit the model.
        """
        self._damaged = {}
        # Listed again each time, because a run may meanwhile remove old ones and add new ones.
        while steps := set(ask_first(self.steps_here)) - self._damaged.keys():
            self._restored = step = max(steps)
            reason = ask_first(lambda step=step: self._find_damage(step))
            if not reason:
                return self._restore(like, step)
            self._damaged[step] = reason
        if not self._damaged:
            raise BadInput(f'{self.folder} holds no checkpoint')
        reasons = '; '.join(f'{step}: {reason}' for step, reason in list(self._damaged.items())[:3])
        raise BadInput(f'{self.folder} holds no sound checkpoint ({reasons}): remove them to begin again')

    def describe_damage(self) -> list[str]:
        """One line for each checkpoint that `restore_newest` found damaged."""
        return [
            f'checkpoint {self._path(step)} is damaged ({reason}): that of step {self._restored} replaces it'
            for step, reason in self._damaged.items()
            if step in self.steps_here()  # not removed meanwhile by a run
        ]

    def prepare_to_write(self) -> list[str]:
        """Rename damaged checkpoints, and remove files that killed runs left half written.

        Only the first process calls it, once it is certain that the run continues.

        Returns:
          One line for each damaged checkpoint, with its new name.
        """
        lines = self.describe_damage()
        for index, step in enumerate(self._damaged):
            names = (self._path(step, f'.damaged{number if number > 1 else ""}') for number in itertools.count(1))
            kept = self._path(step).rename(next(path for path in names if not path.exists()))
            lines[index] += f'; it is kept as {kept.name}'
        self._clear_leftovers()
        return lines

    def _clear_leftovers(self) -> None:
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, step: int, suffix: str = '') -> Path:
        return self.folder / f'{step}{suffix}'

    def _find_damage(self, step: int) -> str:
        """Describe damage of a checkpoint's files; '' without any.

        Raises:
          BadInput: they may not be read, or have another format.
        """
        where = self._path(step)
        try:
            for path in where.rglob('*'):
                # Orbax would wait for a pipe, and read a device without end.
                if path.exists() and not (path.is_file() or path.is_dir()):
                    return f'{path.relative_to(where)} is not a plain file'
            manifest = read_json(where / MANIFEST)
            is_old = 'files' in manifest and 'sha256' not in manifest  # as before format 3
            if not is_old and manifest.pop('sha256') != _digest(manifest):
                return f'{MANIFEST} has changed: its sha256 differs'
            version = FORMAT - 1 if is_old else manifest['format']
            if version == FORMAT:
                return _compare_files(where, manifest['files'])
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise BadInput(f'checkpoint {where} cannot be read: {error.strerror}') from error
            return f'{error.strerror}: {Path(error.filename or MANIFEST).name}'
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            return f'{MANIFEST} is not as written: {_first_words(error)}'
        advice = 'update pad_jax' if version > FORMAT else 'use the version that wrote it, or another workdir'
        raise BadInput(f'checkpoint {where} has format {version}, this version reads {FORMAT}: {advice}')

    def _restore(self, like: TrainState, step: int) -> TrainState:
        where = self._path(step)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), _stored_fields(like)
        )
        try:
            manifest = read_json(where / MANIFEST)
            stored = self._checkpointer.metadata(where.absolute()).item_metadata.state
            _check_fits(where, _describe_leaves(stored), _describe_leaves(wanted))
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
            found = self._checkpointer.restore(where.absolute(), args=arguments).state
        except (BadInput, MemoryError, jax.errors.JaxRuntimeError):  # the last two come from the machine
            raise
        except Exception as error:  # orbax raises almost anything for files that change while it reads
            raise BadInput(f'checkpoint {where} cannot be read: {_first_words(error)}') from error
        return like.replace(**found, faults=Faults.none(manifest['skipped'], manifest['in_a_row']))

    def close(self) -> None:
        self._checkpointer.close()


def _stored_fields(state: TrainState) -> dict[str, Any]:
    """Fields that a checkpoint stores as arrays: not those that follow from the masks, and no empty average."""
    left_out = {'index', 'records', 'faults'} | (set() if state.average else {'average'})
    return {name: value for name, value in vars(state).items() if name not in left_out}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below a folder, by relative path; also sync each to the disk."""
    found = {}
    for path in sorted(folder.rglob('*')):
        sync(path)
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = {'bytes': path.stat().st_size, 'sha256': _hash_file(path)}
    return found


def _hash_file(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _compare_files(folder: Path, listed: dict[str, dict[str, Any]]) -> str:
    """Describe the first difference from a manifest; '' without any. Sizes first: most damaged files end early."""
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            return f'{name} is missing'
        if path.stat().st_size != expected['bytes']:
            return f'{name} has {path.stat().st_size} bytes instead of {expected["bytes"]}'
    changed = (name for name, expected in listed.items() if _hash_file(folder / name) != expected['sha256'])
    return next((f'{name} has changed: its sha256 differs' for name in changed), '')


def _check_fits(where: Path, stored: dict[str, str], wanted: dict[str, str]) -> None:
    differing = sorted(
        f'{name}: {stored.get(name, "missing")} in the checkpoint, {wanted.get(name, "missing")} in the model'
        for name in stored.keys() | wanted.keys()
        if stored.get(name) != wanted.get(name)
    )
    if differing:
        more = f' (and {len(differing) - 3} more)' if len(differing) > 3 else ''
        raise BadInput(f'checkpoint {where} does not fit the model: {"; ".join(differing[:3])}{more}')


@contextlib.contextmanager
def _quiet_when_failing() -> Iterator[None]:
    """Silence the other writer threads of orbax when one fails: it raises one error, and each prints a traceback."""
    before, in_threads, elsewhere = set(threading.enumerate()), threading.excepthook, sys.unraisablehook
    loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
    threading.excepthook = lambda arguments: None
    sys.unraisablehook = lambda found: None if 'Event loop is closed' in str(found.exc_value) else elsewhere(found)
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    except Exception as error:
        for thread in set(threading.enumerate()) - before:
            thread.join(SECONDS_FOR_OTHERS)
        # Results that are never asked for complain when they are freed, so free them here. Writes that end later still
        # find the loggers and sys.unraisablehook silent.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        raise
    else:
        sys.unraisablehook = elsewhere
        for logger in loggers:
            logger.disabled = False
    finally:
        threading.excepthook = in_threads


def _first_words(error: Exception) -> str:
    """Message of an error on one line, without the specification that tensorstore adds."""
    text = ' '.join(str(error).split()).split(' [tensorstore_spec')[0]
    return f'{type(error).__name__}: {text[:197] + "..." if len(text) > 200 else text}'


def _describe_leaves(tree) -> dict[str, str]:
    """Type and shape by path; orbax returns dicts and lists where the state has dataclasses and tuples."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)  # stored as its words
        found[jax.tree_util.keystr(path, simple=True, separator='/')] = f'{leaf.dtype}{list(leaf.shape)}'
    return found
