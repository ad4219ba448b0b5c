"""What a sweep has come to, written to its folder's report/: a page, its pictures, tables."""

import io
import shlex
from pathlib import Path

from pad_jax.errors import BadInput
from pad_jax.reports.plots import save_figure
from pad_jax.reports.sweep_figures import Drawing, draw_figures
from pad_jax.reports.sweep_layout import BASE, REPORT
from pad_jax.reports.sweep_page import explain_table, list_missing, summarize, write_page
from pad_jax.reports.sweep_results import Results, read_results
from pad_jax.reports.sweep_tables import list_columns, list_rows, write_cells, write_markdown, write_summary
from pad_jax.reports.tables import print_line


def report_sweep(folder: Path, base: str = BASE) -> Path:
    """Writes report.html, its figures as PNG, cells.csv, summary.csv and report.md; an earlier report is replaced.

    Only finished cells count. Everything is made before anything is written.

    Args:
      base: the variant that others are compared with.

    Returns:
      The page.

    Raises:
      BadInput: if folder is no sweep, or has no such variant; its cells are not of one kind, none is finished, or
        report/ can't be written.
    """
    results = read_results(folder, base)
    drawings = draw_figures(results)
    pictures = {drawing.name: _encode(drawing) for drawing in drawings if drawing.figure is not None}
    command = f'python -m pad_jax report {shlex.quote(str(folder))}' + (f' --base={base}' if base != BASE else '')
    texts = {
        'cells.csv': write_cells(results),
        'summary.csv': write_summary(results),
        'report.md': _write_report(results, drawings, command),
        'report.html': write_page(results, drawings, pictures, command),
    }
    files = {name: text.encode() for name, text in texts.items()}
    files |= {f'{name}.png': picture for name, picture in pictures.items()}
    target = folder / REPORT
    try:
        target.mkdir(exist_ok=True)
        for drawing in drawings:
            if drawing.figure is None:
                (target / f'{drawing.name}.png').unlink(missing_ok=True)  # of an earlier report
        for name, content in files.items():
            (target / name).write_bytes(content)
    except OSError as error:
        raise BadInput(f'{target} cannot be written: {error.strerror}') from error
    for line in [*summarize(results), *(f'missing: {line}' for line in list_missing(results))]:
        print_line(line)
    return target / 'report.html'


def _encode(drawing: Drawing) -> bytes:
    file = io.BytesIO()
    save_figure(drawing.figure, file)
    return file.getvalue()


def _write_report(results: Results, drawings: list[Drawing], command: str) -> str:
    """Markdown to paste into a document: the command, the table, what is missing, and links to the figures."""
    missing = [f'Missing: {line}.' for line in list_missing(results)]
    links = [
        f'![{drawing.title}]({drawing.name}.png)' if drawing.figure else f'{drawing.title}: left out. {drawing.caption}'
        for drawing in drawings
    ]
    table = write_markdown(list_columns(results), list_rows(results))
    parts = [f'    {command}', *summarize(results), table, explain_table(results), *missing, *links]
    return '\n\n'.join(parts) + '\n'
