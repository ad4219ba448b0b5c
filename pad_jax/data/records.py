"""Labelled files that are read one at a time, wherever they lie."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pad_jax.data.class_folders import LabelledFiles
from pad_jax.data.decoding import describe_failure
from pad_jax.errors import BadInput, quote
from pad_jax.files import read_plain


class BrokenSet(BadInput):
    """A set contradicts itself, so that nobody can tell how many of its examples are wrong: leaving one out is no help.

    >>> issubclass(BrokenSet, BadInput)
    True
    """


class Record(NamedTuple):
    """`data` is the file of an image, `place` names it in a message."""

    data: bytes
    label: int
    place: str


class Records(Protocol):
    """One split; `read` may be called from many threads.

    Raises:
        BadInput: when a record cannot be read, with its place.
        BrokenSet: when the record is whole, but cannot belong to this set.
    """

    def __len__(self) -> int: ...

    def read(self, index: int) -> Record: ...


class FileRecords:
    """The records of files in class folders."""

    def __init__(self, files: LabelledFiles):
        self._paths: Sequence[str] = files.paths
        self._labels = files.labels

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Record:
        path = self._paths[index]
        try:
            return Record(read_plain(path), int(self._labels[index]), quote(path))
        except OSError as error:
            raise BadInput(describe_failure(quote(path), error)) from error
