"""The numbers of a sweep: cells.csv, summary.csv, and the rows that people read."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from pad_jax.reports.intervals import Interval
from pad_jax.reports.sweep_results import COSTS, Results, Variant
from pad_jax.reports.tables import format_count, format_fraction

NOTHING = 'n/a'


def write_cells(results: Results) -> str:
    """CSV, one row a cell; what is not finished has no numbers. Floats as they were measured."""
    columns = [*results.measures, *COSTS]
    rows = [
        [cell.variant, cell.seed, cell.state, *(cell.values.get(name) for name in columns)] for cell in results.cells
    ]
    return _write_csv(['variant', 'seed', 'state', *columns], rows)


def write_summary(results: Results) -> str:
    """CSV, one row a variant: of each measure the mean over seeds, its interval, and the difference to the base."""
    heads = [name for measure in results.measures for name in _heads(measure)]
    rows = []
    for variant in results.variants:
        row = [variant.name, variant.described, len(variant.finished), len(variant.cells)]
        for measure in results.measures:
            row += _numbers(variant.estimate(measure))
            difference = _difference(results, variant, measure)
            row += [*_numbers(difference), difference and difference.count]
        row += [_mean(variant, name) for name in COSTS]
        rows.append(row)
    return _write_csv(['variant', 'changes', 'finished', 'planned', *heads, *COSTS], rows)


def _heads(measure: str) -> list[str]:
    ends = ('', '_low', '_high', '_difference', '_difference_low', '_difference_high', '_difference_seeds')
    return [f'{measure}{end}' for end in ends]


def _numbers(interval: Interval | None) -> list[float | None]:
    if interval is None:
        return [None] * 3
    return [interval.mean, *(None if interval.count == 1 else end for end in (interval.low, interval.high))]


def _write_csv(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Nothing for None: `read_csv` of a library takes that for a number that is missing."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([heads, *rows])
    return text.getvalue()


def list_columns(results: Results) -> list[str]:
    """The headings of `list_rows`."""
    metrics = [f'{name} in %' for name in results.measures[:-1]]
    differences = [f'{results.score}: difference to {results.base.name}']
    costs = ['parameters', 'κ', 'dynamic share', 'multiply-adds', 'seconds a step']
    return ['variant', 'changes', 'seeds', *metrics[:1], *differences, *metrics[1:], 'loss', *costs]


def list_rows(results: Results) -> list[list[str]]:
    """One row a variant, as text: means over its finished seeds, with 95 % intervals where there are several."""
    return [_list_row(results, variant) for variant in results.variants]


def _list_row(results: Results, variant: Variant) -> list[str]:
    first, *others = [format_percent(variant.estimate(name)) for name in results.measures[:-1]]
    difference = _format_difference(_difference(results, variant, results.score), len(variant.finished))
    return [
        variant.name,
        variant.described,
        f'{len(variant.finished)} of {len(variant.cells)}',
        first,
        '–' if variant is results.base else difference,
        *others,
        _format_interval(variant.estimate('loss'), 1, 3),
        _format_mean(variant, 'parameters', '{:,.0f}'.format),
        _format_mean(variant, 'dynamic_fraction', format_fraction),
        _format_mean(variant, 'dynamic_share', format_fraction),
        _format_mean(variant, 'multiply_adds', format_count),
        _format_mean(variant, 'seconds_per_step', '{:.4f}'.format),
    ]


def write_markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""A table of GitHub's Markdown.

    >>> print(write_markdown(['a', 'b'], [['1', 'x|y']]))
    | a | b |
    | --- | --- |
    | 1 | x\|y |
    """
    lines = [heads, ['---'] * len(heads), *rows]
    escaped = [[cell.replace('|', r'\|') for cell in line] for line in lines]
    return '\n'.join(f'| {" | ".join(line)} |' for line in escaped)


def format_percent(interval: Interval | None, signed: bool = False) -> str:
    """A mean with its interval, both times 100; of a single seed the mean alone.

    >>> format_percent(Interval(0.98, 0.0025, 3)), format_percent(Interval(0.01, math.nan, 1), signed=True)
    ('98.00 ± 0.25', '+1.00')
    """
    return _format_interval(interval, 100, 2, signed)


def _format_difference(difference: Interval | None, finished: int) -> str:
    """In percent; with the number of pairs where it is of fewer seeds than are finished."""
    said = format_percent(difference, signed=True)
    return said if difference is None or difference.count == finished else f'{said} (of {difference.count})'


def _format_interval(interval: Interval | None, scale: float, digits: int, signed: bool = False) -> str:
    if interval is None or math.isnan(interval.mean):
        return NOTHING
    mean = f'{scale * interval.mean:{"+" if signed else ""}.{digits}f}'.replace('-', '−')
    return mean if math.isnan(interval.margin) else f'{mean} ± {scale * interval.margin:.{digits}f}'


def _difference(results: Results, variant: Variant, measure: str) -> Interval | None:
    return None if variant is results.base else variant.difference(results.base, measure)


def _mean(variant: Variant, name: str) -> float | None:
    found = variant.estimate(name)
    return found and found.mean


def _format_mean(variant: Variant, name: str, format_one) -> str:
    found = _mean(variant, name)
    return NOTHING if found is None else format_one(found)
