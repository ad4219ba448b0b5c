"""Tables of text: TSV, CSV and JSON lines files, read as labelled examples or for prediction, and written.

All files are UTF-8, with or without a byte order mark. In a TSV, the format of GLUE, a quotation mark is text like any
other. In a CSV (RFC 4180) a quoted field may span lines. If its quoting breaks, the next row cannot be found, so the
whole file is refused. JSON lines contain one object each.
"""

import csv
import dataclasses
import io
import itertools
import json
import logging
import math
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pad_jax.data.source import ON_BAD
from pad_jax.errors import BadInput, check_choice, list_first, quote
from pad_jax.files import reach, read_plain

SUFFIXES = ('.tsv', '.csv', '.jsonl')
ID_COLUMNS = ('index', 'id')
"""Possible names of the column that numbers the rows."""
NUM_CHARACTERS, NUM_LISTED = 40, 20
MOST_FLOAT = float(np.finfo(np.float32).max)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Table:
    """An open file."""

    path: pathlib.Path
    columns: tuple[str, ...]
    # (line, value by column) of all rows, to be iterated once; (line, problem) if a row cannot be read.
    records: Iterator[tuple[int, dict[str, object] | str]]

    def read_rows(
        self, names: Sequence[str], optional: Sequence[str] = ()
    ) -> Iterator[tuple[int, list[str] | None, str]]:
        """Iterate once over (line, fields of the named columns, problem); one of the last two is empty.

        In `optional` columns JSON null and missing keys read as ''. A column without a unique name raises `BadInput`.
        """
        names, optional = list(map(clean_name, names)), list(map(clean_name, optional))
        for name in names if self.columns else ():  # without any column, each row has a problem of its own
            if self.columns.count(name) != 1:
                found = 'more than one' if name in self.columns else 'no'
                listed = list_names(self.columns)
                raise BadInput(f'{quote(self.path)} has {found} column {name!r}: its columns are {listed}')
        return ((line, *_read_fields(record, names, optional)) for line, record in self.records)


def open_table(path: str | os.PathLike, columns: Sequence[str] | None = None) -> Table:
    """Open a .tsv, .csv or .jsonl file.

    Args:
      path: of the file.
      columns: names for a TSV or CSV without a header; None reads them from the first line. JSON lines have the keys of
        all objects as columns.

    Raises:
      BadInput: if the file cannot be read, is empty or is not UTF-8. A broken CSV raises while its rows are read.
    """
    path = reach(path)
    _check_suffix(path)
    # Empty lines at the end are not rows. Others are, so that each row keeps its number.
    text = read_text(path)
    if path.suffix == '.jsonl':
        # Not splitlines: it would also split at U+0085 and the like, which are part of a text.
        objects = list(map(_parse_object, text.split('\n')))
        keys = dict.fromkeys(key for found in objects if isinstance(found, dict) for key in found)
        return Table(path, tuple(keys), enumerate(objects, 1))
    if path.suffix == '.csv':
        rows = _parse_csv(path, text)
    else:
        rows = enumerate((line.removesuffix('\r').split('\t') for line in text.split('\n')), 1)
    if columns is None:
        _, columns = next(rows)
    columns = list(map(clean_name, columns))
    sizes = f'fields, but there are {len(columns)} columns'
    records = (
        (line, dict(zip(columns, row)) if len(row) == len(columns) else f'it has {len(row)} {sizes}')
        for line, row in rows
    )
    return Table(path, tuple(columns), records)


def parse_line(line: str, name: str) -> tuple[list[str] | None, str]:
    """Return ([field of the column], problem) for one of JSON lines; the problem is '' or the list None."""
    return _read_fields(_parse_object(line), [clean_name(name)], ())


def clean_name(name: str) -> str:
    """Return the name of a column as it is compared: without blanks around it, in Unicode's composed form.

    >>> clean_name(' cafe\u0301') == 'caf\u00e9'
    True
    """
    return unicodedata.normalize('NFC', name.strip())


def split_names(text: str) -> tuple[str, ...]:
    """Split names that are separated by commas, as in a CSV: a name with a comma stands in quotation marks.

    >>> split_names('title, "text, raw"')
    ('title', 'text, raw')
    """
    try:
        names = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error as error:
        raise BadInput(f'{shorten(text)!r} must be names with commas between them: {error}') from error
    return tuple(filter(None, map(clean_name, names)))


def write_table(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write text and numbers so that `open_table` reads the same text. A killed process leaves no partial file."""
    path = reach(path)
    check_output(path)
    text = io.StringIO()
    if path.suffix == '.jsonl':
        for row in rows:
            text.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + '\n')
    else:
        rows = [columns, *rows]
        check_fields(path, itertools.chain(*rows))
        options = {'delimiter': '\t', 'quoting': csv.QUOTE_NONE, 'quotechar': None} if path.suffix == '.tsv' else {}
        csv.writer(text, lineterminator='\n', **options).writerows(rows)
    temporary = path.with_name(path.name + '.tmp')
    try:
        temporary.write_text(text.getvalue(), encoding='utf-8', newline='')
        temporary.replace(path)
    except OSError as error:
        raise BadInput(f'cannot write {quote(path)}: {error.strerror}') from error


def check_output(path: pathlib.Path) -> None:
    """Raise `BadInput` if `write_table` cannot write to the path."""
    _check_suffix(path)
    if path.is_dir():
        raise BadInput(f'cannot write {quote(path)}: it is a folder')
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise BadInput(f'cannot write {quote(path)}: {quote(path.parent)} is not a folder that you may write into')


def check_fields(path: pathlib.Path, fields: Iterable[object]) -> None:
    """Raise `BadInput` if a field breaks a line of a TSV, or cannot be written as UTF-8."""
    for field in map(str, fields):
        try:
            field.encode()
        except UnicodeEncodeError as error:
            raise BadInput(f'{quote(path)}: {shorten(field)!r} is not UTF-8. Rename it') from error
        if path.suffix == '.tsv' and re.search(r'[\t\n\r]', field):
            raise BadInput(f'{quote(path)}: a TSV cannot hold {shorten(field)!r}. Name a .csv or .jsonl file')


def read_text(path: pathlib.Path) -> str:
    """Read a UTF-8 file without its byte order mark and without empty lines at its end; refuse an empty one."""
    try:
        text = read_plain(path).decode('utf-8-sig')
    except OSError as error:
        raise BadInput(f'cannot read {quote(path)}: {error.strerror}') from error
    except UnicodeDecodeError as error:
        # The codec counts positions without the byte order mark, in `error.object`.
        line, byte = error.object.count(b'\n', 0, error.start) + 1, error.object[error.start]
        raise BadInput(f'{quote(path)} line {line} is not UTF-8: byte 0x{byte:02x}') from error
    if not text.strip():
        raise BadInput(f'{quote(path)} is empty')
    return text.rstrip('\r\n')


def list_names(names: Sequence[str]) -> str:
    """List names for a message, with a limit for their number and lengths."""
    return list_first([repr(shorten(name)) for name in names], NUM_LISTED)


def shorten(text: str) -> str:
    """Cut a long text for a message to 40 characters."""
    return text if len(text) <= NUM_CHARACTERS else text[: NUM_CHARACTERS - 1] + '…'


class TextExamples(NamedTuple):
    """Labelled examples."""

    texts: tuple[list[str], ...]  # one list of N strings, or two for pairs
    labels: np.ndarray  # int32[N]; float32[N] for regression; or object[N] of strings


def read_examples(
    table: Table,
    text_columns: Sequence[str],
    label_column: str,
    parse_label: Callable[[str], str | int | float],
    on_bad: str = 'stop',
    skip_broken: bool = False,
) -> TextExamples:
    """Read all labelled examples of a table.

    Args:
      table: just opened.
      text_columns: one or two names; `label_column` is another one.
      parse_label: makes a label of the text in that column, or raises ValueError with the reason.
      on_bad: `stop` raises at a bad row, `skip` leaves it out and logs a warning.
      skip_broken: True leaves out rows with too few or too many fields in any case.

    Raises:
      BadInput: if a column is missing, a row is bad, no row is good, or all texts are empty.
    """
    check_choice('on_bad', on_bad, ON_BAD)
    texts: tuple[list[str], ...] = tuple([] for _ in text_columns)
    labels, skipped = [], []
    for line, fields, problem in table.read_rows([*text_columns, label_column]):
        try:
            label = None if fields is None else parse_label(fields[-1])
        except ValueError as error:
            problem = str(error)
        if problem:
            problem = f'{quote(table.path)} line {line}: {problem}'
            if on_bad == 'stop' and not (skip_broken and fields is None):
                raise BadInput(f"{problem} (on_bad='skip' leaves such rows out)")
            skipped.append(problem)
            continue
        for column, text in zip(texts, fields):
            column.append(text)
        labels.append(label)
    if not labels and skipped:
        raise BadInput(f'none of the {len(skipped)} rows of {quote(table.path)} is good, the first: {skipped[0]}')
    if not labels:
        raise BadInput(f'{quote(table.path)} holds no row below its header')
    for column, name in zip(texts, text_columns, strict=True):
        if not any(text.strip() for text in column):
            raise BadInput(f'all {len(column)} texts in column {name!r} of {quote(table.path)} are empty')
    if skipped:
        logger.warning('left out %d of %d rows, the first: %s', len(skipped), len(labels) + len(skipped), skipped[0])
    dtype = {int: np.int32, float: np.float32, str: object}[type(labels[0])]
    return TextExamples(texts, np.asarray(labels, dtype))


def read_unlabelled(table: Table, text_columns: Sequence[str]) -> tuple[tuple[list[str], ...], list[str]]:
    """Read all texts of a table for prediction. Each row needs a prediction, so a bad row raises.

    Returns:
      (one or two lists of N texts, N ids). An id is the entry of the column `index` or `id`. Without such a column, or
      if an entry is missing, rows are numbered from 0.
    """
    id_column = [name for name in ID_COLUMNS if table.columns.count(name) == 1][:1]
    names, rows = [*text_columns, *id_column], []
    for line, fields, problem in table.read_rows(names, optional=names):
        if fields is None:
            raise BadInput(f'{quote(table.path)} line {line}: {problem}')
        rows.append(fields)
    if not rows:
        raise BadInput(f'{quote(table.path)} holds no row below its header')
    columns = tuple(map(list, zip(*rows)))
    texts, ids = columns[: len(text_columns)], columns[-1] if id_column else []
    if not any(text.strip() for column in texts for text in column):
        listed = ' and '.join(map(repr, text_columns))
        raise BadInput(f'all {len(rows)} texts in column {listed} of {quote(table.path)} are empty')
    if not all(ids):
        logger.warning('%s has rows without %r: all rows are numbered from 0', quote(table.path), *id_column)
    return texts, ids if ids and all(ids) else [str(number) for number in range(len(rows))]


def parse_class(text: str, names: Sequence[str]) -> int:
    """Return the index of a label in `names`; raise ValueError if it is not there."""
    text = unicodedata.normalize('NFC', text)
    if text not in names:
        raise ValueError(f'label {shorten(text)!r} is not one of {list_names(names)}')
    return names.index(text)


def parse_number(text: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a label for regression; raise ValueError if it is not a finite number in [low, high]."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high or abs(number) > MOST_FLOAT:
        allowed = '' if math.isinf(high) else f' in [{low:g}, {high:g}]'
        raise ValueError(f'label {shorten(text)!r} is not a finite number{allowed}')
    return number


def _check_suffix(path: pathlib.Path) -> None:
    """Raise `BadInput` if the path does not end in one of `SUFFIXES`."""
    if path.suffix not in SUFFIXES:
        raise BadInput(f'{quote(path)} must end in one of {", ".join(SUFFIXES)}')


def _parse_csv(path: pathlib.Path, text: str) -> Iterator[tuple[int, list[str]]]:
    # All readers of a process share the limit. A field is at most as long as its file.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    line = 1
    try:
        header = next(csv.reader(io.StringIO(text, newline=''), strict=True))
        # Blanks before quotation marks in the header: the rows are written like that too.
        has_blanks = any(re.match(' +"', name) for name in header)
        reader = csv.reader(io.StringIO(text, newline=''), strict=True, skipinitialspace=has_blanks)
        for fields in reader:
            yield line, fields or ['']  # An empty line is one empty field, as in a TSV.
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f'{quote(path)} line {line} is not CSV: {error}') from error


def _parse_object(content: str) -> dict[str, object] | str:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        return f'it is not JSON: {error}'
    if not isinstance(record, dict) or not record:
        return 'it is not a JSON object with columns'
    cleaned = {clean_name(key): value for key, value in record.items()}
    return cleaned if len(cleaned) == len(record) else 'two of its keys differ in blanks or accents only'


def _read_fields(record: dict[str, object] | str, names, optional) -> tuple[list[str] | None, str]:
    if isinstance(record, str):
        return None, record
    fields = []
    for name in names:
        value = record.get(name)
        value = '' if value is None and name in optional else value
        value = json.dumps(value) if isinstance(value, bool | int | float) else value
        if not isinstance(value, str):
            return None, f'{name!r} is not text' if name in record else f'it has no {name!r}'
        if re.search('[\ud800-\udfff]', value):
            return None, f'{name!r} holds half a surrogate pair'  # No tokenizer and no file takes it.
        fields.append(value)
    return fields, ''
