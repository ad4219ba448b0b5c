"""Files that others made, read as data: only where reading ends, and nothing in them is ever run."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from pad_jax.errors import BadInput

MOST_DEPTH = 100
"""Of JSON: what nests deeper was made to exhaust a stack."""


def open_plain(path: str | os.PathLike) -> BinaryIO:
    """Opens a plain file to read its bytes.

    Raises:
        OSError: it cannot be opened; or it is a pipe or a device, which may never begin or never end.
    """
    # A pipe would wait for its other end; a plain file does not know the flag.
    file = open(path, 'rb', opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, 'it is no plain file')
    return file


def read_plain(path: str | os.PathLike) -> bytes:
    """All bytes of a plain file.

    Raises:
        OSError: as `open_plain`; it cannot be read; or the memory cannot hold it.
    """
    with open_plain(path) as file:
        try:
            return file.read()
        except (MemoryError, OverflowError) as error:
            raise OSError(errno.ENOMEM, 'the memory cannot hold it') from error


def parse_json(data: bytes) -> Any:
    """The value that UTF-8 encoded JSON stands for.

    Raises:
        ValueError: it is no JSON, no UTF-8, or nests deeper than `MOST_DEPTH`.

    >>> parse_json(b'{"a": [1, null]}')
    {'a': [1, None]}
    """
    try:
        value = json.loads(data.decode('utf-8'))
    except RecursionError as error:
        raise ValueError('it nests too deeply') from error
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [below for one in level for below in list_children(one)]
        if not level:
            return value
    raise ValueError(f'it nests more than {MOST_DEPTH} deep')


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: as `read_plain`.
        ValueError: as `parse_json`.
    """
    return parse_json(read_plain(path))


def read_own_object(path: Path, folder_is: str) -> dict[str, Any]:
    """The JSON object that this package wrote into a folder.

    Args:
        folder_is: what a folder that holds such a file is, 'the workdir of a run'.

    Raises:
        BadInput: there is none, or it is not what was written.
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


def list_children(value: Any) -> list:
    """What a value of JSON holds directly: the items of a list, the values of an object.

    >>> list_children({'a': 1, 'b': [2]}), list_children('text')
    ([1, [2]], [])
    """
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
