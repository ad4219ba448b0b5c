"""Comparison of any runs, side by side: a table and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pad_jax.errors import BadInput
from pad_jax.reports.plots import plot_training_curves, save_figure
from pad_jax.reports.runs import Network, read_run
from pad_jax.reports.tables import LOSS, Measure, format_fraction, make_table, print_line, print_table

if TYPE_CHECKING:
    from rich.table import Table


def compare_runs(workdirs: Sequence[Path], picture: Path) -> None:
    """Print the last evaluation and the costs of runs, and draw their training curves.

    Args:
      workdirs: folders of the runs, finished or not; each was evaluated at least once.
      picture: PNG file to write.

    Raises:
      BadInput: if a folder holds no such run, or the picture cannot be written.
    """
    if len(set(workdirs)) < len(workdirs):
        raise BadInput('a run was named twice')
    networks = [Network(str(workdir), (read_run(workdir, timed=False),)) for workdir in workdirs]
    (first, *_), *others = (network.runs for network in networks)
    measures = [one for one in first.measures if all(one in run.measures for run, *_ in others)] or [LOSS]
    print_table(compare_networks(networks, 'Runs', measures, ('run', 'network', 'step')))
    save_figure(plot_training_curves(networks, measures[0], as_error=False), picture)
    print_line(f'Picture: {picture}')


def compare_networks(
    networks: Sequence[Network],
    title: str = 'Networks over seeds',
    measures: Sequence[Measure] = (),
    columns: Sequence[str] = ('network', 'convolutions', 'seeds'),
) -> 'Table':
    """Tabulate networks: measures (mean ± standard error over seeds), parameters, κ, dynamic share, seconds a step.

    Args:
      networks: a row each.
      title: of the table.
      measures: of all runs; empty for the score.
      columns: headings of the names and kinds of networks, and 'seeds' or 'step'.
    """
    (*texts, count), measures = columns, measures or [networks[0].measure]
    numbers = [count, *(measure.heading for measure in measures), 'parameters', 'κ', 'dynamic share']
    table = make_table(title, texts, [*numbers, 'seconds a step'])
    for network in networks:
        table.add_row(
            network.name,
            network.runs[0].kind,
            f'{len(network.runs) if count == "seeds" else network.runs[0].evaluated["step"]}',
            *(measure.format(*network.estimate(measure)) for measure in measures),
            f'{network.total("parameters"):,.0f}',
            format_fraction(network.total('dynamic_fraction')),
            format_fraction(network.total('dynamic_share')),
            '–' if network.seconds_per_step is None else f'{network.seconds_per_step:.4f}',
        )
    if count == 'seeds':
        said = f'{measures[0].name}: mean ± standard error over seeds'
        table.caption = f'{said} · κ: dynamic positions / positions'
    return table
