"""Examples of text from any table: one or two texts, a label and an id each.

Legend: N examples.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence

import numpy as np

from pad_jax.data.text_tables import Table, quote
from pad_jax.errors import BadInput

ID_COLUMNS = ('index', 'id')
"""Names of the column that numbers the rows; GLUE's files have either, or none."""
NUM_LISTED = 20

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """`texts` holds one list[N] for single texts and two for pairs.

    `labels` are int32[N], float32[N] for regression, or None where there are none. `ids` are the numbers of
    the rows from 0, or, where there are no labels but predictions to be made, what the file calls its rows.
    `skipped` lists what was left out under `on_bad='skip'`, one line each.
    """

    texts: tuple[list[str], ...]
    labels: np.ndarray | None
    ids: list[str]
    skipped: list[str] = dataclasses.field(default_factory=list)


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

    Args:
        table: just opened.
        text_columns: one or two names.
        label_column: None reads no labels.
        parse_label: makes a label of the text in that column; raises ValueError with the reason.
        on_bad: what a row without text or with a wrong label does: `stop` raises, `skip` leaves it out and
            says so.
        on_broken: the same for rows that lack a field, where that is not `on_bad`.

    Raises:
        BadInput: a column is missing; a row is bad (`on_bad='stop'`, with file and line); there are no rows,
            or not one of a column's texts is anything but space.
    """
    label_columns = [] if label_column is None else [label_column]
    id_columns = [name for name in ID_COLUMNS if not label_columns and table.columns.count(name) == 1][:1]
    texts: tuple[list[str], ...] = tuple([] for _ in text_columns)
    labels, ids, skipped, number = [], [], [], -1
    for number, row in enumerate(table.read_rows([*text_columns, *label_columns, *id_columns])):
        problem, label = row.problem, None
        if row.fields is not None and label_columns:
            try:
                label = parse_label(row.fields[len(text_columns)])
            except ValueError as error:
                problem = str(error)
        if problem:
            problem = f'{quote(table.path)} line {row.line}: {problem}'
            if (on_bad if row.fields is not None or on_broken is None else on_broken) == 'stop':
                raise BadInput(f"{problem} (on_bad='skip' leaves such rows out)")
            skipped.append(problem)
            continue
        for column, text in zip(texts, row.fields):
            column.append(text)
        labels.append(label)
        ids.append(row.fields[-1] if id_columns else str(number))
    if number < 0:
        raise BadInput(f'{quote(table.path)} holds no row below its header')
    if skipped:
        logger.warning('left out %d of %d rows, the first: %s', len(skipped), number + 1, skipped[0])
    if not ids:
        raise BadInput(f'not one of the {number + 1} rows of {quote(table.path)} is good, the first: {skipped[0]}')
    check_texts(texts, text_columns, quote(table.path))
    return TextExamples(texts, pack_labels(labels) if label_columns else None, ids, skipped)


def check_texts(texts: Sequence[list[str]], names: Sequence[str], place: str) -> None:
    """`BadInput` where a whole column is empty: that is a wrong column, not a text that happens to be short."""
    for column, name in zip(texts, names, strict=True):
        if not any(text.strip() for text in column):
            raise BadInput(f'all {len(column)} texts in column {name!r} of {place} are empty')


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
            listed = ', '.join(names[:NUM_LISTED]) + (f', ... ({len(names)} labels)' if len(names) > NUM_LISTED else '')
            raise ValueError(f'label {text!r} is not one of {listed}')
        return places[text]

    return parse


def parse_number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """A parser of labels for regression: finite numbers in [low, high].

    >>> parse_number(0, 5)('4.750')
    4.75
    """
    limit = float(np.finfo(np.float32).max)

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f'label {text!r} is not a number') from None
        if not max(low, -limit) <= number <= min(high, limit):
            raise ValueError(f'label {text!r} is not a finite number in [{low:g}, {high:g}]')
        return number

    return parse
