"""Checkpoints of a run: the whole TrainState, independent of the devices and processes it came from.

Orbax writes the arrays; when a checkpoint counts, and whether it is sound, is decided here. It is written into
STEP.writing, with a manifest of every file's size and sha256 as its last, and then renamed to STEP. So a folder whose
name is a number is complete, and what has changed in it since is noticed. One that is damaged is passed over for the
newest sound one, said, and kept as STEP.damaged.

Where several processes train, all of them call everything here.
"""

import contextlib
import errno
import hashlib
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import tensorstore
from jax.experimental import multihost_utils

from pad_jax.errors import BadInput
from pad_jax.files import read_json
from pad_jax.training.devices import as_global
from pad_jax.training.processes import ask_first, is_first
from pad_jax.training.state import Faults, TrainState
from pad_jax.training.workdir import check_folder, disk_faults_stop, sync_folder, write_json

# That a write which fails waits for each of the others.
SECONDS_FOR_OTHERS = 5.0
FORMAT = 2
"""Version of what a checkpoint holds. A reader refuses newer ones. The first had no manifest."""

MANIFEST = 'manifest.json'
_STEP = re.compile('0|[1-9][0-9]*')  # "07" is no step: it would be looked for under another name
_LEFTOVER = re.compile(r'\d+\.(writing|removing)(\..*)?|\d+\.orbax-checkpoint-tmp.*')
# What a system answers about a file that is not what was written; anything else is trouble of the machine.
_DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EIO)


class Checkpoints:
    """Numbered by step, in `folder`.

    Args:
      folder: made with the first checkpoint.
      keep: the newest that stay; None to read alone, which changes nothing in the folder, whoever else uses it.

    Raises:
      BadInput: when the folder is none, or is to be written and can't be.
    """

    def __init__(self, folder: Path, keep: int | None = None):
        check_folder(folder, to_write=keep is not None)
        self.folder = folder
        self._keep = keep
        self._damaged: dict[int, str] = {}
        self._restored: int | None = None
        handlers = {'state': ocp.StandardCheckpointHandler(), 'about': ocp.JsonCheckpointHandler()}
        self._checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))

    def steps(self) -> list[int]:
        """Those that there are checkpoints of, ascending, sound or not."""
        return ask_first(self.steps_here)

    def steps_here(self) -> list[int]:
        """`steps` as this process sees them."""
        found = self.folder.iterdir() if self.folder.exists() else ()
        return sorted(int(path.name) for path in found if _STEP.fullmatch(path.name) and path.is_dir())

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return max(self.steps(), default=None)

    def save(self, state: TrainState) -> None:
        """Writes a state that lives on one device, of each process; returns when it is complete.

        Raises:
          Stopped: when the disk is full or fails; what was there before stays as it was.
        """
        step = int(state.step)
        if step in self.steps():
            return
        where, begun = self._path(step), self._path(step, '.writing')
        about = {'format': FORMAT, 'skipped': int(state.faults.skipped), 'in_a_row': int(state.faults.in_a_row)}
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(as_global(_stored_fields(state))), about=ocp.args.JsonSave(about)
        )
        try:
            with disk_faults_stop(f'checkpoint {where} cannot be written'), _quiet_when_failing():
                if is_first():
                    self.folder.mkdir(parents=True, exist_ok=True)
                    sync_folder(self.folder.parent)
                    shutil.rmtree(begun, ignore_errors=True)
                self._checkpointer.save(begun.absolute(), args=arguments)
                if is_first():
                    write_json(begun / MANIFEST, {'files': _describe_files(begun)})
                    sync_folder(begun)
                    begun.rename(where)
                    sync_folder(self.folder)
        except BaseException:
            if is_first():
                self._clear_leftovers()  # they would take the room that is missing
            raise
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f'checkpoint {step}')
        if is_first():
            for old in self.steps_here()[: -self._keep]:
                self._remove(old)

    def _remove(self, step: int) -> None:
        """Renamed first: half of a checkpoint is never found under a number."""
        removed = self._path(step, '.removing')
        with contextlib.suppress(OSError):  # it stays, which does no harm
            shutil.rmtree(removed, ignore_errors=True)
            self._path(step).rename(removed)
            shutil.rmtree(removed, ignore_errors=True)

    def restore_newest(self, like: TrainState) -> TrainState:
        """`restore` of the newest sound checkpoint; `describe_damage` says what was passed over.

        Raises:
          BadInput: when there is none, or it can't be read, comes from a newer version, or doesn't fit the model.
        """
        self._damaged = {}
        # Listed anew each time: a run that writes meanwhile removes old ones and brings new ones.
        while (step := max(set(self.steps()) - self._damaged.keys(), default=None)) is not None:
            reason = ask_first(lambda step=step: self._find_damage(step))
            if not reason:
                self._restored = step
                return self._restore(like, step)
            self._damaged[step] = reason
        if not self._damaged:
            raise BadInput(f'{self.folder} holds no checkpoint')
        reasons = '; '.join(f'{step}: {reason}' for step, reason in list(self._damaged.items())[:3])
        raise BadInput(f'{self.folder} holds no sound checkpoint ({reasons}): remove them to begin again')

    def restore(self, like: TrainState, step: int) -> TrainState:
        """The state of a step, in the shapes of `like`, on the default device.

        Raises:
          BadInput: when it is damaged, can't be read, comes from a newer version, or doesn't fit the model.
        """
        reason = ask_first(lambda: self._find_damage(step))
        if reason:
            raise BadInput(f'checkpoint {self._path(step)} is damaged: {reason}')
        return self._restore(like, step)

    def describe_damage(self) -> list[str]:
        """A line for each checkpoint that `restore_newest` passed over."""
        there = self.steps_here()
        return [
            f'checkpoint {self._path(step)} is damaged ({reason}): that of step {self._restored} takes its place'
            for step, reason in self._damaged.items()
            if step in there
        ]

    def prepare_to_write(self) -> list[str]:
        """Puts out of the way what `restore_newest` passed over and what killed runs left half written.

        For the first process, once it is known that the run goes on.

        Returns:
          A line for each damaged checkpoint, with the name that it keeps.
        """
        lines = []
        for line, step in zip(self.describe_damage(), self._damaged, strict=False):
            kept = self._path(step, '.damaged')
            number = 1
            while kept.exists():
                number += 1
                kept = self._path(step, f'.damaged{number}')
            self._path(step).rename(kept)
            lines.append(f'{line}; it is kept as {kept.name}')
        self._clear_leftovers()
        return lines

    def _clear_leftovers(self) -> None:
        for path in self.folder.iterdir() if self.folder.exists() else ():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, step: int, suffix: str = '') -> Path:
        return self.folder / f'{step}{suffix}'

    def _find_damage(self, step: int) -> str:
        """What is wrong with the files of a checkpoint, '' for nothing.

        Raises:
          BadInput: when they may not be read, or come from a newer version.
        """
        where = self._path(step)
        try:
            # Orbax would wait for a pipe, and read a device without end.
            odd = next(
                (path for path in where.rglob('*') if path.exists() and not (path.is_file() or path.is_dir())), None
            )
            if odd:
                return f'{odd.relative_to(where)} is no plain file'
            listed = read_json(where / MANIFEST)['files'] if (where / MANIFEST).exists() else None
            if listed is not None:
                problem = _compare_files(where, listed)
                if problem:
                    return problem
            about = read_json(where / 'about' / 'metadata')
            if not isinstance(about, dict) or type(about.get('format')) is not int:
                return f'about/metadata says no format, but {str(about)[:80]}'
            if about['format'] > FORMAT:
                raise BadInput(
                    f'checkpoint {where} has format {about["format"]}, this version reads up to {FORMAT}: update '
                    'pad_jax'
                )
            if listed is not None:
                return ''
            if about['format'] > 1:
                return f'it has no {MANIFEST}'
            _check_arrays(where / 'state')
            if not self._describe_state(step):
                return 'its state/_METADATA lists no array'
        except (BadInput, MemoryError, jax.errors.JaxRuntimeError):  # the last two are the machine's fault
            raise
        except Exception as error:  # damaged files make orbax raise almost anything: KeyError, JSONDecodeError, ...
            reason = _first_words(error)
            if (isinstance(error, OSError) and error.errno not in _DAMAGE) or 'PERMISSION_DENIED' in reason:
                raise BadInput(f'checkpoint {where} cannot be read: {reason}') from error
            return reason
        return ''

    def _describe_state(self, step: int) -> dict[str, str]:
        return _describe_leaves(self._checkpointer.metadata(self._path(step).absolute()).item_metadata.state)

    def _restore(self, like: TrainState, step: int) -> TrainState:
        where = self._path(step)
        with self._as_bad_input(where):
            about = read_json(where / 'about' / 'metadata')
            faults = Faults.none(**{name: about[name] for name in ('skipped', 'in_a_row') if about['format'] > 1})
            stored = self._describe_state(step)
        self._check_fits(where, stored, like)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), _stored_fields(like)
        )
        with self._as_bad_input(where):
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            found = self._checkpointer.restore(where.absolute(), args=arguments).state
        return like.replace(**found, faults=faults)

    def _check_fits(self, where: Path, stored: dict[str, str], like: TrainState) -> None:
        wanted = _describe_leaves(_stored_fields(like))
        differing = sorted(
            f'{name}: {stored.get(name, "missing")} in the checkpoint, {wanted.get(name, "missing")} in the model'
            for name in stored.keys() | wanted.keys()
            if stored.get(name) != wanted.get(name)
        )
        if differing:
            more = f' (and {len(differing) - 3} more)' if len(differing) > 3 else ''
            raise BadInput(f'checkpoint {where} does not fit the model: {"; ".join(differing[:3])}{more}')

    @contextlib.contextmanager
    def _as_bad_input(self, where: Path) -> Iterator[None]:
        """What is raised while a checkpoint is read that was sound a moment before."""
        try:
            yield
        except (MemoryError, jax.errors.JaxRuntimeError):  # the machine's fault, not the checkpoint's
            raise
        except Exception as error:
            raise BadInput(f'checkpoint {where} cannot be read: {_first_words(error)}') from error

    def close(self) -> None:
        self._checkpointer.close()


def _stored_fields(state: TrainState) -> dict[str, Any]:
    """What a checkpoint holds as arrays: not what follows from the masks, and an average where one is kept."""
    left_out = {'columns', 'packed', 'faults'} | (set() if state.average else {'average'})
    return {name: value for name, value in vars(state).items() if name not in left_out}


def _describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below a folder, by its path in there; each is on the disk before it returns."""
    found = {}
    for path in sorted(folder.rglob('*')):
        if path.is_file():
            with path.open('rb') as file:
                digest = hashlib.file_digest(file, 'sha256').hexdigest()
                os.fsync(file.fileno())
                found[path.relative_to(folder).as_posix()] = {'bytes': file.tell(), 'sha256': digest}
        else:
            sync_folder(path)
    return found


def _compare_files(folder: Path, listed: dict[str, dict[str, Any]]) -> str:
    """What of a manifest doesn't hold, '' for nothing. Sizes first: most damage is a file that ends early."""
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            return f'{name} is missing'
        if path.stat().st_size != expected['bytes']:
            return f'{name} has {path.stat().st_size} bytes instead of {expected["bytes"]}'
    for name, expected in listed.items():
        with (folder / name).open('rb') as file:
            if hashlib.file_digest(file, 'sha256').hexdigest() != expected['sha256']:
                return f'{name} is not what was written: its sha256 differs'
    return ''


@contextlib.contextmanager
def _quiet_when_failing() -> Iterator[None]:
    """Orbax starts all its writes at once, in threads: when one fails it raises that, and each leaves a traceback too.

    The others are waited for. Some speak later still, when a write that nobody waits for ends after its event loop, or
    when a result that nobody has asked for is collected: so after a failure they are silenced for good.
    """
    before, in_threads, elsewhere = set(threading.enumerate()), threading.excepthook, sys.unraisablehook
    words = logging.getLogger('absl')
    was_disabled, words.disabled = words.disabled, True
    threading.excepthook = lambda arguments: None
    sys.unraisablehook = lambda found: None if 'Event loop is closed' in str(found.exc_value) else elsewhere(found)
    try:
        yield
    except Exception:
        logging.getLogger('asyncio').disabled = True
        for thread in set(threading.enumerate()) - before:
            thread.join(SECONDS_FOR_OTHERS)
        raise
    else:
        sys.unraisablehook = elsewhere
    finally:
        threading.excepthook, words.disabled = in_threads, was_disabled


def _check_arrays(folder: Path) -> None:
    """Reads what is stored of each array once; raises what tensorstore raises, or LookupError if there is none.

    Orbax starts all its reads at once: when one fails, each of the others leaves a traceback of its own on stderr,
    about an event loop that is closed.
    """
    files = {'driver': 'file', 'path': f'{folder.absolute()}/'}
    store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': files}).result()
    keys = store.list().result()
    if not keys:
        raise LookupError(f'{folder.name} holds no array')
    for key in keys:
        store.read(key).result()


def _first_words(error: Exception) -> str:
    """What an error says, on one line and without the specification that tensorstore adds."""
    text = ' '.join(str(error).split()).split(' [tensorstore_spec')[0]
    return f'{type(error).__name__}: {text[:197] + "..." if len(text) > 200 else text}'


def _describe_leaves(tree) -> dict[str, str]:
    """Type and shape by path; orbax gives back dicts and lists where the state has dataclasses and tuples."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)  # a typed key is stored as its words
        found['/'.join(_name(part) for part in path)] = f'{leaf.dtype}{list(leaf.shape)}'
    return found


def _name(part) -> str:
    return str(next(getattr(part, kind) for kind in ('key', 'name', 'idx') if hasattr(part, kind)))
