"""Tokens on the disk: streams of parts of files, and a cache of encoded texts.

Texts as bytes are read where they lie. Tokens of a tokenizer and texts of JSON lines are written once, to the folder
pad_jax/corpora in $XDG_CACHE_HOME or ~/.cache. It may be deleted while no run reads it.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np

from pad_jax.data.source import make_digest
from pad_jax.data.tables import parse_line
from pad_jax.data.tokenization import Tokens
from pad_jax.errors import BadInput, describe, quote
from pad_jax.files import open_plain, reach, read_json

JSON_SUFFIXES = ('.jsonl', '.json')
# Texts are encoded in whole lines of about so many bytes, and so many texts at once.
NUM_BYTES, NUM_TEXTS = 2**16, 64

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Part:
    """The tokens of a text, or some of them: `count` numbers in a file, from number `start`."""

    name: str  # of the text
    path: pathlib.Path
    start: int
    count: int
    bytes_per_token: float = 1.0  # mean over the text
    dtype: str = 'uint8'


class Stream:
    """The tokens of parts, one part after another.

    A read opens its files. Memory maps would need a file descriptor for each file, and there are few.
    """

    def __init__(self, parts: Sequence[Part]):
        self.parts = tuple(parts)
        self._ends = np.cumsum([part.count for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read the tokens [start, stop), int32[stop - start]."""
        found, number = [np.empty(0, np.int32)], int(np.searchsorted(self._ends, start, 'right'))
        while start < stop:
            part, end = self.parts[number], int(self._ends[number])
            count, place = min(end, stop) - start, part.start + part.count - (end - start)
            try:
                tokens = np.fromfile(part.path, part.dtype, count, offset=place * np.dtype(part.dtype).itemsize)
            except OSError as error:
                raise BadInput(f'{quote(part.path)} cannot be read any more: {describe(error)}') from error
            if len(tokens) < count:
                raise BadInput(f'{quote(part.path)} has become shorter: files must stay as they are during a run')
            found.append(tokens)
            start, number = start + count, number + 1
        return np.concatenate(found, dtype=np.int32)

    @property
    def bytes_per_token(self) -> float:
        """Mean number of bytes of text in a token."""
        return sum(part.count * part.bytes_per_token for part in self.parts) / len(self)


def open_parts(
    files: Mapping[str, pathlib.Path], tokens: Tokens, text_column: str, report: Callable[[str], None]
) -> list[Part]:
    """Open files, given by name, and encode those that are not bytes; empty ones have no part.

    `report` receives a line about each bad file or line, which is left out. It may raise.
    """
    parts, encoded, states = {}, {}, []
    for name, path in files.items():
        try:
            with open_plain(path) as file:
                state = os.fstat(file.fileno())
        except OSError as error:
            report(f'{quote(path)} cannot be read: {describe(error)}')
            continue
        if tokens.tokenizer is None and path.suffix not in JSON_SUFFIXES:
            parts[name] = Part(name, path, 0, state.st_size)
        else:
            encoded[name] = path
            states.append([str(path.absolute()), state.st_size, state.st_mtime_ns])
    if encoded:
        key = make_digest([json.dumps([states, tokens.run_files, text_column]).encode()])
        parts |= {part.name: part for part in _encode_files(key, encoded, tokens, text_column, report)}
    return [parts[name] for name in files if name in parts and parts[name].count]


def _encode_files(key: str, files, tokens: Tokens, text_column: str, report) -> Iterator[Part]:
    """Find the tokens of the files in the cache: one array of all, and an index. Make them if they aren't sound."""
    folder = reach(os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'pad_jax' / 'corpora'
    array, index = folder / f'{key}.tokens', folder / f'{key}.json'
    dtype = 'uint8' if tokens.vocab_size <= 2**8 else 'uint16' if tokens.vocab_size <= 2**16 else 'int32'
    try:
        content = read_json(index)
        is_sound = content.pop('digest') == _digest(content, array)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        is_sound = False
    if is_sound:
        for problem in content['problems']:
            report(problem)
    else:
        logger.info('encoding %d files', len(files))
        content = {'sizes': [], 'problems': []}

        def note(problem: str) -> None:
            report(problem)
            content['problems'].append(problem)

        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Several processes may make the same array: each moves complete files over those of the others.
            with tempfile.TemporaryDirectory(dir=folder) as made:
                new_array, new_index = pathlib.Path(made, array.name), pathlib.Path(made, index.name)
                with open(new_array, 'wb') as file:
                    for path in files.values():
                        content['sizes'].append(_encode_file(path, file, dtype, tokens, text_column, note))
                new_index.write_text(json.dumps({**content, 'digest': _digest(content, new_array)}))
                new_array.replace(array)
                new_index.replace(index)
        except OSError as error:
            advice = 'XDG_CACHE_HOME may name another folder for the tokens'
            raise BadInput(f'texts cannot be encoded into {quote(folder)}: {error}. {advice}') from error
    start = 0
    for name, (count, num_bytes) in zip(files, content['sizes'], strict=True):
        yield Part(name, array, start, count, num_bytes / max(count, 1), dtype)
        start += count


def _digest(content: dict, array: pathlib.Path) -> str:
    with open_plain(array) as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(json.dumps(content).encode())).hexdigest()


def _encode_file(path: pathlib.Path, array: BinaryIO, dtype, tokens, text_column, report) -> tuple[int, int]:
    """Append the tokens of a file to an array; return their number and the bytes of their text."""
    start, num_bytes = array.tell(), 0
    try:
        with open_plain(path) as file:
            texts = _parse_lines(file, text_column, report) if path.suffix in JSON_SUFFIXES else _decode(file)
            while some := list(itertools.islice(texts, NUM_TEXTS)):
                array.write(tokens.encode(*some).astype(dtype).tobytes())
                num_bytes += sum(len(text.encode()) for text in some)
    except (UnicodeError, MemoryError) as reason:
        report(f'{quote(path)} {str(reason) or "has a line that is larger than the memory"}')
        array.seek(start)
        array.truncate()
    return (array.tell() - start) // np.dtype(dtype).itemsize, num_bytes


def _decode(file: BinaryIO) -> Iterator[str]:
    place = 0  # in bytes
    while lines := b''.join(file.readlines(NUM_BYTES)):
        try:
            yield lines.decode().removeprefix('' if place else '\ufeff')
        except UnicodeDecodeError as error:
            byte = f'byte 0x{lines[error.start]:02x} at place {place + error.start}'
            raise UnicodeError(f'is not UTF-8: {byte}') from error
        place += len(lines)


def _parse_lines(file: BinaryIO, text_column: str, report: Callable[[str], None]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            fields, problem = parse_line(line.decode('utf-8' if number > 1 else 'utf-8-sig'), text_column)
        except UnicodeDecodeError:
            fields, problem = None, 'it is not UTF-8'
        if fields is not None:
            yield fields[0] + '\n'
        elif line.strip():
            report(f'{quote(file.name)} line {number}: {problem}')
