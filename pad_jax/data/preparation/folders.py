"""Where a set is written: beside its place until it is whole, so that nothing half-made looks like a set."""

import contextlib
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterator

from pad_jax.errors import BadInput, quote

SUFFIX = '.incomplete'
"""TFDS knows a set by a folder whose name is a version; with this behind it, it is none."""


def check_folder(path: str | os.PathLike, flag: str) -> pathlib.Path:
    """An input folder, `~` resolved; `BadInput` with the name of its flag if there is none."""
    folder = pathlib.Path(path).expanduser()
    if not _exists(folder):
        raise BadInput(f'{flag} {quote(folder)} does not exist')
    if not folder.is_dir():
        raise BadInput(f'{flag} {quote(folder)} is not a folder')
    return folder


def check_vacant(folder: pathlib.Path, overwrite: bool) -> None:
    """Raises `BadInput` if `folder` holds a set already, unless that may be overwritten."""
    if _exists(folder) and not overwrite:
        raise BadInput(f'{quote(folder)} is there already: --overwrite puts a new one in its place')


def check_room(folder: pathlib.Path, num_bytes: int) -> None:
    """Raises `BadInput` if there is less space than that where `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise BadInput(f'{quote(folder)} has {format_size(free)} of free space, {format_size(num_bytes)} are needed')


def format_size(num_bytes: int) -> str:
    """Three digits and a unit.

    >>> format_size(0), format_size(999_600), format_size(161_300_000_000)
    ('0 B', '1 MB', '161 GB')
    """
    size, units = float(num_bytes), ['B', 'kB', 'MB', 'GB', 'TB']
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        del units[0]
    return f'{size:.3g} {units[0]}'


@contextlib.contextmanager
def fill_folder(folder: pathlib.Path, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """An empty folder to write into, which takes the place of `folder` when the block ends.

    When the block raises, a former set stays.

    Raises:
        BadInput: `folder` exists and must stay; and as `stage_folder`.
    """
    check_vacant(folder, overwrite)
    with stage_folder(folder) as incomplete:
        yield incomplete
        _replace(folder, incomplete)


@contextlib.contextmanager
def stage_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder beside `folder`, which is gone when the block ends, with all that was not moved out of it.

    What an interrupted process left there is removed first.

    Raises:
        BadInput: nothing can be written; another process prepares the same.
    """
    incomplete = folder.with_name(folder.name + SUFFIX)
    # Where nothing comes of it the folders above go too, if they were made for it.
    made = next((parent for parent in reversed(incomplete.parents) if not parent.exists()), incomplete)
    try:
        incomplete.mkdir(parents=True, exist_ok=True)
        lock = os.open(incomplete, os.O_RDONLY)
    except OSError as error:
        raise BadInput(f'{quote(incomplete)} cannot be made: {error.strerror}') from error
    try:
        _lock(lock, incomplete)
        try:
            _empty(incomplete)
            yield incomplete
        except BaseException as error:
            shutil.rmtree(made, ignore_errors=True)
            if isinstance(error, OSError):
                raise BadInput(f'{quote(incomplete)} cannot be written: {error.strerror or error}') from error
            raise
        shutil.rmtree(incomplete, ignore_errors=True)
    finally:
        os.close(lock)


def _exists(path: pathlib.Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # no permission to look
        raise BadInput(f'{quote(path)} cannot be reached: {error.strerror}') from error


def _lock(descriptor: int, folder: pathlib.Path) -> None:
    """Holds the folder until it is closed or this process ends; some file systems can't, there nothing is held."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f'another process is writing {quote(folder)}: wait until it is done, or stop it') from None
    except OSError:
        pass


def _empty(folder: pathlib.Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()


def _replace(folder: pathlib.Path, incomplete: pathlib.Path) -> None:
    former = folder.with_name(folder.name + '.replaced')
    shutil.rmtree(former, ignore_errors=True)
    try:
        if folder.exists():
            folder.rename(former)
        incomplete.rename(folder)
    except BaseException:  # also where the process is told to stop between the two
        if former.exists() and not folder.exists():
            former.rename(folder)
        raise
    shutil.rmtree(former, ignore_errors=True)
