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
    runs = [read_run(workdir, timed=False) for workdir in workdirs]
    networks = [Network(str(run.workdir), (run,)) for run in runs]
    measures = [one for one in runs[0].measures if all(one in run.measures for run in runs)] or [LOSS]
    print_table(compare_networks(networks, 'Runs', measures, step=True))
    save_figure(plot_training_curves(networks, measures[0], as_error=False), picture)
    print_line(f'Picture: {picture}')


def compare_networks(
    networks: Sequence[Network],
    title: str = 'Networks over seeds',
    measures: Sequence[Measure] = (),
    step: bool = False,
) -> 'Table':
    """Tabulate networks: measures (mean ± standard error over seeds), parameters, κ, dynamic share, seconds a step.

    Args:
      measures: of all runs; empty for the score.
      step: show the step of the last evaluation instead of the number of seeds.
    """
    measures = measures or [networks[0].measure]
    numbers = ['step' if step else 'seeds', *(measure.heading for measure in measures), 'parameters', 'κ']
    table = make_table(title, ['network', 'layers'], [*numbers, 'dynamic share', 'seconds a step'])
    for network in networks:
        table.add_row(
            network.name,
            network.runs[0].kind,
            f'{network.runs[0].evaluated["step"] if step else len(network.runs)}',
            *(measure.format(*network.estimate(measure)) for measure in measures),
            f'{network.total("parameters"):,.0f}',
            format_fraction(network.total('dynamic_fraction')),
            format_fraction(network.total('dynamic_share')),
            '–' if network.seconds_per_step is None else f'{network.seconds_per_step:.4f}',
        )
    if not step:
        said = f'{measures[0].name}: mean ± standard error over seeds'
        table.caption = f'{said} · κ: dynamic positions / positions'
    return table
