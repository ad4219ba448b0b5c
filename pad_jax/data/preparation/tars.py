"""What lies where in a tar, so that its files can be read in any order and nothing is ever unpacked."""

import os
import pathlib
import posixpath
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pad_jax.errors import BadInput, quote
from pad_jax.files import open_plain

_BLOCK = 512
_MOST_HEADER = 2**16
"""Of one member: a long name takes a block or two."""


class Member(NamedTuple):
    """A file in a tar: `size` bytes from `offset` of the whole tar."""

    name: str
    offset: int
    size: int


def check_name(name: str, place: str) -> str:
    """The name without `./`; `BadInput` where it leads out of the folder that it would be unpacked into."""
    normal = posixpath.normpath(name.replace('\\', '/'))
    if normal.startswith('/') or normal.split('/')[0] == '..':
        raise BadInput(f'{place} holds {name!r}, which leads out of its folder: nothing of it is taken')
    return normal


def list_members(path: pathlib.Path, inside: Member | None = None) -> Iterator[Member]:
    """The files of a tar, or of a tar that is a member of it, in their order.

    Raises:
        BadInput: it cannot be read, is cut short or damaged; it holds links, or names that lead out.
    """
    place = f'{inside.name!r} in {quote(path)}' if inside else quote(path)
    try:
        with open_plain(path) as file:
            whole = Member(path.name, 0, os.fstat(file.fileno()).st_size)
            yield from _list_open(file, inside or whole, place)
    except OSError as error:
        raise BadInput(f'{place} cannot be read: {error.strerror or error}') from error
    except BadInput:
        raise
    except Exception as error:  # Of what tarfile raises at damaged headers, TarError is a part.
        raise BadInput(f'{place} is no tar, or cut short: {error}') from error


def _list_open(file: BinaryIO, whole: Member, place: str) -> Iterator[Member]:
    file.seek(whole.offset)
    end = whole.offset + whole.size
    archive = tarfile.TarFile(fileobj=_Forward(file))
    for entry in archive:
        name = check_name(entry.name, place)
        if entry.offset_data + entry.size > end:
            raise BadInput(f'{place} is cut short: {name!r} is not all there')
        if entry.isdir():
            continue
        if not entry.isreg() or entry.issparse():
            raise BadInput(f'{place} holds {name!r}, which is no file')
        yield Member(name, entry.offset_data, entry.size)
    # tarfile takes a header that it cannot read for the end. The real one is a block of zeros.
    file.seek(archive.offset)
    if archive.offset + _BLOCK > end or file.read(_BLOCK).strip(b'\0'):
        raise BadInput(f'{place} is damaged or cut short: it ends without the mark of an end')


class _Forward:
    """A file for tarfile, which a header could send back, again and again, or after all of the memory.

    Raises:
        tarfile.ReadError: at either.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._furthest = file, file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int) -> int:
        # One byte before a header it looks whether the file goes on.
        if place < self._furthest - 1:
            raise tarfile.ReadError('a header leads back')
        return self._file.seek(place)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f'a header claims {size} bytes')
        content = self._file.read(size)
        self._furthest = self._file.tell()
        return content


class MemberReader:
    """Reads members of one tar, from any thread. Use as a context manager."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def __enter__(self) -> 'MemberReader':
        self._file = os.open(self._path, os.O_RDONLY)
        return self

    def __exit__(self, *exception) -> None:
        os.close(self._file)

    def read(self, member: Member) -> bytes:
        """All of the member's bytes.

        Raises:
            BadInput: the tar has become shorter, or cannot be read.
        """
        try:
            content = os.pread(self._file, member.size, member.offset)
        except OSError as error:
            raise BadInput(f'{member.name!r} in {quote(self._path)} cannot be read: {error.strerror}') from error
        if len(content) != member.size:
            raise BadInput(f'{quote(self._path)} is cut short: {member.name!r} is not all there')
        return content
