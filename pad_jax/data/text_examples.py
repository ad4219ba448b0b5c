"""Examples of text from any table: one or two texts, a label and an id each.

Legend: N examples.
"""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from pad_jax.data.text_tables import Table, shorten
from pad_jax.errors import BadInput, quote

ID_COLUMNS = ('index', 'id')
"""Names of the column that numbers the rows; GLUE's files have either, or none."""
NUM_LISTED = 20

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """`texts` holds one list[N] for single texts and two for pairs.

    `labels` are int32[N], float32[N] for regression, or None where there are none. `ids` are the numbers of
    the rows from 0, or, where there are no labels but predictions to be made, what the file calls its rows.
    `lines` are those of the file that the examples begin in, where they were just read from one.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray | None
    ids: list[str]
    lines: list[int] = dataclasses.field(default_factory=list)


def read_examples(
    table: Table,
    *,
    text_columns: Sequence[str],
    label_column: str | None = None,
    parse_label: Callable[[str], int | float] | None = None,
    on_bad: str = 'stop',
    on_broken: str | None = None,
) -> TextExamples:
    """Reads what is left of a table.

    Without labels there is something to predict for every row: a wrong one raises, and one without text is an
    empty text.

    Args:
        table: just opened.
        text_columns: one or two names.
        label_column: None reads no labels.
        parse_label: makes a label of the text in that column; raises ValueError with the reason.
        on_bad: what a row that lacks a field, is no text or has a wrong label does: `stop` raises, `skip` leaves it
            out and says so. Of labelled tables only.
        on_broken: the same for rows that lack a field, where that is not `on_bad`.

    Raises:
        BadInput: a column is missing; a row is bad (`on_bad='stop'`, with file and line); there are no rows;
            not one of a column's texts is anything but space (without labels: not one of any column's).
    """
    labelled = label_column is not None
    label_columns = [label_column] if labelled else []
    id_columns = [name for name in ID_COLUMNS if not labelled and table.columns.count(name) == 1][:1]
    optional = () if labelled else (*text_columns, *id_columns)
    texts: tuple[list[str], ...] = tuple([] for _ in text_columns)
    labels, ids, lines, skipped, number = [], [], [], [], -1
    for number, row in enumerate(table.read_rows([*text_columns, *label_columns, *id_columns], optional)):
        problem, label = row.problem, None
        if row.fields is not None and labelled:
            try:
                label = parse_label(row.fields[len(text_columns)])
            except ValueError as error:
                problem = str(error)
        if problem:
            problem = f'{quote(table.path)} line {row.line}: {problem}'
            if (on_bad if row.fields is not None or on_broken is None else on_broken) == 'stop':
                raise BadInput(problem + (" (on_bad='skip' leaves such rows out)" if labelled else ''))
            skipped.append(problem)
            continue
        for column, text in zip(texts, row.fields):
            column.append(text)
        labels.append(label)
        ids.append(row.fields[-1] if id_columns else str(number))
        lines.append(row.line)
    if number < 0:
        raise BadInput(f'{quote(table.path)} holds no row below its header')
    if not ids:
        raise BadInput(f'not one of the {number + 1} rows of {quote(table.path)} is good, the first: {skipped[0]}')
    if labelled:
        check_texts(texts, text_columns, quote(table.path))
        if skipped:
            logger.warning('left out %d of %d rows, the first: %s', len(skipped), number + 1, skipped[0])
        return TextExamples(texts, pack_labels(labels), ids, lines)
    _check_any_text(texts, text_columns, table.path, lines)
    if not all(ids):
        # Numbers for those alone could be what the file calls other rows.
        where = lines[ids.index('')]
        logger.warning('%s line %d has no %r: all rows are numbered from 0', quote(table.path), where, id_columns[0])
        ids = [str(number) for number in range(len(ids))]
    return TextExamples(texts, None, ids, lines)


def check_texts(texts: Sequence[list[str]], names: Sequence[str], place: str) -> None:
    """`BadInput` where a whole column is empty: that is a wrong column, not a text that happens to be short."""
    for column, name in zip(texts, names, strict=True):
        if not any(text.strip() for text in column):
            raise BadInput(f'all {len(column)} texts in column {name!r} of {place} are empty')


def _check_any_text(texts: Sequence[list[str]], names: Sequence[str], path: pathlib.Path, lines: Sequence[int]) -> None:
    """`BadInput` where there is nothing to predict; a warning where that is so of single rows."""
    empty = [line for line, *row in zip(lines, *texts, strict=True) if not any(text.strip() for text in row)]
    if len(empty) == len(lines):
        columns = ' and '.join(map(repr, names))
        raise BadInput(f'all {len(lines)} texts in column {columns} of {quote(path)} are empty')
    if empty:
        logger.warning('%s has %d rows without text, the first in line %d', quote(path), len(empty), empty[0])


def pack_labels(labels: Sequence[int | float]) -> np.ndarray:
    """int32[N] of ints, float32[N] of floats.

    >>> pack_labels([0, 1]).dtype.name, pack_labels([0.5]).dtype.name
    ('int32', 'float32')
    """
    return np.asarray(labels, np.float32 if isinstance(labels[0], float) else np.int32)


def parse_class(names: Sequence[str]) -> Callable[[str], int]:
    """A parser of labels: the text's place in `names`.

    >>> parse_class(('no', 'yes'))('yes')
    1
    >>> parse_class(('no', 'yes'))('maybe')
    Traceback (most recent call last):
    ...
    ValueError: label 'maybe' is not one of no, yes
    """
    places = {name: place for place, name in enumerate(names)}

    def parse(text: str) -> int:
        if text not in places:
            listed = ', '.join(map(shorten, names[:NUM_LISTED]))
            more = f', ... ({len(names)} labels)' if len(names) > NUM_LISTED else ''
            raise ValueError(f'label {shorten(text)!r} is not one of {listed}{more}')
        return places[text]

    return parse


def parse_number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """A parser of labels for regression: finite numbers in [low, high], as people and programs write them.

    >>> parse_number(0, 5)('4.750')
    4.75
    """
    limit = float(np.finfo(np.float32).max)

    def parse(text: str) -> float:
        try:
            # Python would take 1_0 for ten, and digits of any script.
            number = float(text if text.isascii() and '_' not in text else '')
        except ValueError:
            raise ValueError(f'label {shorten(text)!r} is not a number') from None
        if not max(low, -limit) <= number <= min(high, limit):
            raise ValueError(f'label {shorten(text)!r} is not a finite number in [{low:g}, {high:g}]')
        return number

    return parse
