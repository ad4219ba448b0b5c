"""Reading files made by others, and writing folders that are complete or absent."""

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pad_jax.errors import BadInput, describe, quote

_MOST_LEVELS = 100  # of JSON: versions of Python differ in the depth that ends in a RecursionError


def reach(path: str | os.PathLike) -> Path:
    """Return a path, which need not exist, with ~ and ~user replaced by their folders.

    Raises:
        BadInput: the system cannot look at it: no permission, too long, a loop of links, or an unknown user.
    """
    try:
        found = Path(path).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            is_folder = stat.S_ISDIR(found.stat().st_mode)
            if is_folder and not os.access(found, os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home; ValueError: a null byte
        raise BadInput(f'{quote(path)} cannot be reached: {describe(error)}') from error
    return found


def open_plain(path: str | os.PathLike) -> BinaryIO:
    """Open a plain file to read its bytes; raise OSError for a pipe or a device, which could block for ever."""
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    file = open(path, 'rb', opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, 'it is not a plain file')
    return file


def read_plain(path: str | os.PathLike) -> bytes:
    """Return all bytes of a plain file; raise OSError if it is not one, cannot be read, or is too large."""
    with open_plain(path) as file:
        try:
            return file.read()
        except (MemoryError, OverflowError) as error:
            raise OSError(errno.ENOMEM, 'memory is too small for it') from error


def measure_file(path: str | os.PathLike) -> int:
    """Return the size of a file in bytes, −1 if the system cannot tell."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def parse_json(data: bytes) -> Any:
    """Return the value of UTF-8 encoded JSON; raise ValueError if it is damaged or nests too deeply.

    >>> parse_json(b'{"a": [1, null]}')
    {'a': [1, None]}
    """
    try:
        value = json.loads(data.decode('utf-8'))
        level, depth = [value], 0
        while lists := [part for part in level if isinstance(part, (dict, list))]:
            level = [part for found in lists for part in (found.values() if isinstance(found, dict) else found)]
            depth += 1
            if depth > _MOST_LEVELS:
                raise RecursionError
    except RecursionError as error:
        raise ValueError('it nests too deeply') from error
    return value


def read_json(path: Path) -> Any:
    """Return the value in a JSON file; raise OSError as `read_plain`, ValueError as `parse_json`."""
    return parse_json(read_plain(path))


def read_own_object(path: Path, folder_is: str) -> dict[str, Any]:
    """Return the JSON object that this package wrote into a folder.

    Args:
        folder_is: name of such a folder, as in 'the workdir of a run'.

    Raises:
        BadInput: the file is missing or damaged.
    """
    try:
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f'{path.parent} is not {folder_is}: it holds no {path.name}') from None
    except OSError as error:
        raise BadInput(f'{path} cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise BadInput(f'{path} is damaged: {error}') from error
    if not isinstance(content, dict):
        raise BadInput(f'{path} is damaged: it holds no object')
    return content


@contextlib.contextmanager
def fill_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which replaces `folder` at the end of the block.

    If the block raises, the former folder stays. The new one is removed, with the parents made for it that are empty.

    Raises:
        BadInput: the files cannot be written.
    """
    incomplete = folder.with_name(f'{folder.name}.incomplete')
    made = [parent for parent in incomplete.parents if not parent.exists()]
    try:
        shutil.rmtree(incomplete, ignore_errors=True)
        incomplete.mkdir(parents=True)
        yield incomplete
        shutil.rmtree(folder, ignore_errors=True)
        incomplete.rename(folder)
    except BaseException as error:
        shutil.rmtree(incomplete, ignore_errors=True)
        with contextlib.suppress(OSError):  # others may have written into a parent meanwhile
            for parent in made:
                parent.rmdir()
        if isinstance(error, OSError):
            raise BadInput(f'{quote(incomplete)} cannot be written: {error.strerror or error}') from error
        raise
