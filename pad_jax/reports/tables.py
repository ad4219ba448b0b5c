"""Tables and lines on stdout."""

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_WIDTH_OF_FILES = 400


def print_table(table: Table) -> None:
    """Prints a table, so that no number is cut.

    Where stdout is no terminal it is as wide as it needs to be. On a terminal that is too narrow for that, it goes
    without lines between its columns, and texts and headings are wrapped.
    """
    console = Console(markup=False)  # a layer may be called [/]
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_FILES, markup=False)
    elif _needed_width(table) > console.width:
        _narrow(table)
    console.print(table)


def _needed_width(table: Table) -> int:
    console = Console(width=_WIDTH_OF_FILES, markup=False)
    return Measurement.get(console, console.options, table).maximum


def _narrow(table: Table) -> None:
    table.box, table.show_edge, table.padding = box.SIMPLE_HEAD, False, (0, 0, 0, 0)
    for column in table.columns:
        column.no_wrap = False
        column.overflow = 'fold'
        if column.justify == 'right':
            # A fixed width, which rich doesn't shrink; the heading is wrapped into it.
            column.width = max(map(cell_len, [*str(column.header).split(), *column.cells]))


def print_line(text: str) -> None:
    """Prints a line as it is, whatever the width of the terminal."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


def make_table(title: str, texts: list[str], numbers: list[str]) -> Table:
    """An empty table: columns of text on the left, columns of numbers, right-justified, beside them."""
    table = Table(title=title, title_justify='left', title_style='bold', caption_justify='left')
    for name in texts:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify='right')
    return table


def format_fraction(value: float) -> str:
    """κ and shares; exact 0 and 1 show as such.

    >>> [format_fraction(value) for value in (0, 0.3, 0.99996, 1.0)]
    ['0', '0.3000', '>0.9999', '1']
    """
    if value in (0, 1):
        return f'{value:.0f}'
    if 0.99995 <= value < 1:
        return '>0.9999'
    return f'{value:.4f}' if value >= 0.00005 else '<0.0001'


def format_count(value: float) -> str:
    """Four digits of a number that may be large.

    >>> [format_count(value) for value in (0, 999, 36_864, 1_814_073_344, 999_990)]
    ['0', '999', '36.86 k', '1.814 G', '1 M']
    """
    for unit in ('', 'k', 'M', 'G', 'T'):
        rounded = float(f'{value:.4g}')
        if rounded < 1000 or unit == 'T':
            return f'{rounded:g} {unit}'.strip()
        value = rounded / 1000
