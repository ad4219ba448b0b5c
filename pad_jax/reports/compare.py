"""Comparison of any runs, side by side: a table and a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pad_jax.errors import BadInput
from pad_jax.reports.plots import plot_training_curves, save_figure
from pad_jax.reports.runs import Network, read_run
from pad_jax.reports.tables import format_fraction, make_table, print_line, print_table

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
    metrics = [name for name in networks[0].runs[0].metric_names if all(name in _measures(one) for one in networks)]
    print_table(tabulate_runs(networks, metrics))
    save_figure(plot_training_curves(networks, metrics or ['loss'], ', '.join(metrics) or 'loss', False), picture)
    print_line(f'Picture: {picture}')


def tabulate_runs(networks: Sequence[Network], metrics: Sequence[str]) -> 'Table':
    """Tabulate one run of each network: its last evaluation, and its costs.

    Args:
      networks: of one run each.
      metrics: the columns of measures beside the loss; all runs have them.
    """
    numbers = ['step', *(f'{name} in %' for name in metrics), 'loss', 'parameters', 'κ', 'dynamic share']
    table = make_table('Runs', ['run', 'network'], [*numbers, 'seconds a step'])
    for network in networks:
        (run,) = network.runs
        values = _measures(network)
        table.add_row(
            network.name,
            run.kind,
            f'{values["step"]}',
            *(f'{100 * values[name]:.2f}' for name in metrics),
            f'{values["loss"]:.4f}',
            f'{network.total("parameters"):,.0f}',
            format_fraction(network.total('dynamic_fraction')),
            format_fraction(network.total('dynamic_share')),
            '–' if run.seconds_per_step is None else f'{run.seconds_per_step:.4f}',
        )
    return table


def _measures(network: Network) -> dict[str, float]:
    return network.runs[0].evaluated
