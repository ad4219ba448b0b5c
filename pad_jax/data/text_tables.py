"""Tables of text as files, row by row and with the number of each line: TSV, CSV and JSON lines.

TSV is what GLUE is distributed as: tabs divide, nothing is quoted, a quotation mark is text like any other.
CSV is quoted (RFC 4180), and a field may span lines; where the quoting breaks nobody can tell where the next row
begins, so such a file is refused as a whole, whatever is to be done with wrong rows. JSON lines hold one object each.
All are UTF-8, with or without a byte order mark; the last line need not end.
"""

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from pad_jax.errors import BadInput, quote
from pad_jax.files import read_plain

SUFFIXES = ('.tsv', '.csv', '.jsonl')
NUM_CHARACTERS, NUM_LISTED = 40, 20

Record = dict[str, object] | str


class Row(NamedTuple):
    """`line` counts from 1; `fields` are the columns asked for, or None where `problem` says why not."""

    line: int
    fields: list[str] | None
    problem: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
    """A file that is open: its columns, and what `read_rows` has not read yet."""

    path: pathlib.Path
    columns: tuple[str, ...]
    records: Iterator[tuple[int, Record]]

    def read_rows(self, names: Sequence[str], optional: Collection[str] = ()) -> Iterator[Row]:
        """The named columns of every row, once. In the `optional` ones JSON may say null, or nothing: that reads as ''.

        Raises:
            BadInput: there is no such column, or more than one.
        """
        for name in names:
            if self.columns.count(name) != 1:
                found = 'more than one' if name in self.columns else 'no'
                raise BadInput(f'{quote(self.path)} has {found} column {name!r}: its columns are {self.list_columns()}')
        return (_pick(line, record, names, optional) for line, record in self.records)

    def list_columns(self) -> str:
        """Their names, for a message."""
        more = f' and {len(self.columns) - NUM_LISTED} more' if len(self.columns) > NUM_LISTED else ''
        return ', '.join(repr(shorten(column)) for column in self.columns[:NUM_LISTED]) + more


def open_table(path: str | os.PathLike, columns: Sequence[str] | None = None) -> Table:
    """Opens a file whose suffix says what it is.

    Args:
        path: ends in .tsv, .csv or .jsonl.
        columns: of a TSV or CSV file that has no header; None reads them from its first line. Those of JSON
            lines are the keys of the first object.

    Raises:
        BadInput: it cannot be read, is empty, is not UTF-8 (with the line), or has another suffix. While its rows
            are read: it is not CSV (with the line).
    """
    path = pathlib.Path(path).expanduser()
    check_suffix(path)
    # It ends without empty lines: those are no rows. Elsewhere they are, so that no row changes its number.
    text = read_text(path)
    if path.suffix == '.jsonl':
        records = _parse_json_lines(text)
        line, first = next(records)
        if isinstance(first, str):
            raise BadInput(f'{quote(path)} line {line}: {first}')
        return Table(path, tuple(first), _put_back((line, first), records))
    rows = _split_tsv(text) if path.suffix == '.tsv' else _parse_csv(path, text)
    if columns is None:
        _, columns = next(rows)
    return Table(path, tuple(columns), _name_fields(rows, tuple(columns)))


def write_table(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes text and numbers so that `open_table` reads the same text back. A kill leaves no half of a file.

    Raises:
        BadInput: as `check_output` and `check_fields` do, or the disk is full or the like.
    """
    path = pathlib.Path(path).expanduser()
    check_output(path)
    text = io.StringIO()
    if path.suffix == '.jsonl':
        for row in rows:
            text.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + '\n')
    elif path.suffix == '.csv':
        csv.writer(text, lineterminator='\n').writerows([columns, *rows])
    else:
        for row in [columns, *rows]:
            check_fields(path, row)
            text.write('\t'.join(map(str, row)) + '\n')
    temporary = path.with_name(path.name + '.tmp')
    try:
        temporary.write_text(text.getvalue(), encoding='utf-8', newline='')
        temporary.replace(path)
    except OSError as error:
        raise BadInput(f'cannot write {quote(path)}: {error.strerror}') from error


def check_output(path: pathlib.Path) -> None:
    """`BadInput` unless `write_table` can write there: another suffix, a folder, or no folder to write into."""
    check_suffix(path)
    if path.is_dir():
        raise BadInput(f'cannot write {quote(path)}: it is a folder')
    if not path.parent.is_dir():
        raise BadInput(f'cannot write {quote(path)}: {quote(path.parent)} is not a folder')
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadInput(f'cannot write {quote(path)}: no permission to write into {quote(path.parent)}')


def check_fields(path: pathlib.Path, fields: Iterable[object]) -> None:
    """`BadInput` for what a TSV cannot hold, a tab or the end of a line within a field; other files hold any text."""
    if path.suffix != '.tsv':
        return
    for field in map(str, fields):
        if any(mark in field for mark in '\t\n\r'):
            raise BadInput(f'{quote(path)}: a TSV cannot hold {shorten(field)!r}: name a .csv or .jsonl file')


def read_text(path: pathlib.Path) -> str:
    """A whole file of UTF-8, without byte order mark and without the empty lines at its end.

    Raises:
        BadInput: it cannot be read, is empty, or is not UTF-8 (with the line).
    """
    try:
        data = read_plain(path)
    except OSError as error:
        raise BadInput(f'cannot read {quote(path)}: {error.strerror}') from error
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        # Counted in what the decoder was given: the codec passes positions without the byte order mark.
        line = error.object.count(b'\n', 0, error.start) + 1
        byte = error.object[error.start]
        raise BadInput(f'{quote(path)} line {line} is not UTF-8: byte 0x{byte:02x}') from error
    if not text.strip():
        raise BadInput(f'{quote(path)} is empty')
    return text.rstrip('\r\n')


def check_suffix(path: pathlib.Path) -> None:
    """`BadInput` unless the path ends as one of `SUFFIXES`."""
    if path.suffix not in SUFFIXES:
        raise BadInput(f'{quote(path)} must end in one of {", ".join(SUFFIXES)}')


def shorten(text: str) -> str:
    """What fits into a message of a text that may be long.

    >>> shorten('abc'), len(shorten('abc' * 100))
    ('abc', 40)
    """
    return text if len(text) <= NUM_CHARACTERS else text[: NUM_CHARACTERS - 1] + '…'


def _split_tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    # Not splitlines: it would also split at U+0085 and the like, which are part of a text.
    for line, content in enumerate(text.split('\n'), 1):
        yield line, content.removesuffix('\r').split('\t')


def _parse_csv(path: pathlib.Path, text: str) -> Iterator[tuple[int, list[str]]]:
    # The limit is one for all readers of a process; no field is longer than its file.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    line = 1
    try:
        for fields in reader:
            yield line, fields or ['']  # An empty line is one empty field, as it is in TSV.
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f'{quote(path)} line {line} is not CSV: {error}') from error


def _name_fields(rows: Iterator[tuple[int, list[str]]], columns: tuple[str, ...]) -> Iterator[tuple[int, Record]]:
    for line, fields in rows:
        if len(fields) == len(columns):
            yield line, dict(zip(columns, fields))
        else:
            yield line, f'it has {len(fields)} fields, but there are {len(columns)} columns'


def _parse_json_lines(text: str) -> Iterator[tuple[int, Record]]:
    for line, content in enumerate(text.split('\n'), 1):
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield line, f'it is not JSON: {error}'
            continue
        yield line, record if isinstance(record, dict) and record else 'it is not a JSON object with columns'


def _put_back(first: tuple[int, Record], rest: Iterator[tuple[int, Record]]) -> Iterator[tuple[int, Record]]:
    yield first
    yield from rest


def _pick(line: int, record: Record, names: Sequence[str], optional: Collection[str]) -> Row:
    if isinstance(record, str):
        return Row(line, None, record)
    fields = []
    for name in names:
        value = record.get(name)
        if value is None and name in optional:
            value = ''
        if isinstance(value, bool | int | float):
            value = json.dumps(value)
        if not isinstance(value, str):
            return Row(line, None, f'{name!r} is no text' if name in record else f'it has no {name!r}')
        if not (value.isascii() or _is_unicode(value)):
            return Row(line, None, f'{name!r} holds half a surrogate pair')
        fields.append(value)
    return Row(line, fields)


def _is_unicode(text: str) -> bool:
    # JSON may escape half of a surrogate pair, which no tokenizer takes and no file can hold.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
