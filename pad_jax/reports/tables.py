"""Tables and lines on stdout, and the format of their numbers. rich is imported when a table is made or printed."""

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH_OF_FILES = 400


def make_table(title: str, texts: list[str], numbers: list[str]) -> 'Table':
    """Make an empty table with columns of text on the left and right-justified columns of numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify='left', title_style='bold', caption_justify='left')
    for name in texts:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify='right')
    return table


def print_table(table: 'Table') -> None:
    """Print a table without cutting a number.

    A file or a pipe gets the full width. On a terminal that is too narrow, column borders are dropped, and texts and
    headings are wrapped.
    """
    from rich.console import Console
    from rich.measure import Measurement

    wide = Console(width=_WIDTH_OF_FILES, markup=False)  # a layer may be called [/]
    console = Console(markup=False)
    if not console.is_terminal:
        console = wide
    elif Measurement.get(wide, wide.options, table).maximum > console.width:
        _narrow(table)
    console.print(table)


def _narrow(table: 'Table') -> None:
    from rich import box
    from rich.cells import cell_len

    table.box, table.show_edge, table.padding = box.SIMPLE_HEAD, False, (0, 0, 0, 0)
    for column in table.columns:
        column.no_wrap = False
        column.overflow = 'fold'
        if column.justify == 'right':
            # rich does not shrink a fixed width. Headings are wrapped into it.
            column.width = max(map(cell_len, [*str(column.header).split(), *column.cells]))


def print_line(text: str) -> None:
    """Print a line unchanged, at any width of the terminal."""
    print(text, flush=True)


def format_fraction(value: float) -> str:
    """Format κ or a share; only exactly 0 and 1 are shown as such.

    >>> [format_fraction(value) for value in (0, 0.3, 0.99996, 1.0)]
    ['0', '0.3000', '>0.9999', '1']
    """
    if value in (0, 1):
        return f'{value:.0f}'
    if 0.99995 <= value < 1:
        return '>0.9999'
    return f'{value:.4f}' if value >= 0.00005 else '<0.0001'


def format_count(value: float) -> str:
    """Format a number with four digits and a unit.

    >>> [format_count(value) for value in (0, 999, 36_864, 1_814_073_344, 999_990)]
    ['0', '999', '36.86 k', '1.814 G', '1 M']
    """
    for unit in ('', 'k', 'M', 'G', 'T'):
        rounded = float(f'{value:.4g}')
        if rounded < 1000 or unit == 'T':
            return f'{rounded:g} {unit}'.strip()
        value = rounded / 1000


class Measure(NamedTuple):
    """A value of evaluations and its look: a share in per cent by default.

    Attributes:
      name: its name in metrics.jsonl.
      unit: '' for a plain number.
      scale: factor of the shown value, 100 for per cent.
      digits: digits after the point.
      better: 'higher' or 'lower'.

    >>> Measure('accuracy').format(0.98, 0.0025), NATS.format(-0.01, signed=True)
    ('98.00 ± 0.25', '−0.0100')
    """

    name: str
    unit: str = '%'
    scale: int = 100
    digits: int = 2
    better: str = 'higher'

    @property
    def heading(self) -> str:
        return f'{self.name} in {self.unit}' if self.unit else self.name

    def format(self, mean: float, margin: float = math.nan, signed: bool = False) -> str:
        """Format mean ± margin; a margin of NaN is left out."""
        if math.isnan(mean):
            return 'n/a'
        text = f'{self.scale * mean:{"+" if signed else ""}.{self.digits}f}'.replace('-', '−')
        return text if math.isnan(margin) else f'{text} ± {self.scale * margin:.{self.digits}f}'


LOSS = Measure('loss', '', 1, 3, 'lower')
NATS = Measure('loss', 'nats a token', 1, 4, 'lower')
"""The loss of a network that classifies, and that of a language model."""
