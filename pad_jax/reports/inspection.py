"""The partition of one run, layer by layer."""

from pathlib import Path

from rich.table import Table

from pad_jax.reports.plots import plot_partition, save_figure
from pad_jax.reports.runs import Partition, read_partition
from pad_jax.reports.tables import format_fraction, make_table, print_line, print_table
from pad_jax.training.configuration import read_workdir_config


def inspect_workdir(workdir: Path) -> None:
    """Prints the partition of a run and writes it to WORKDIR/partition.png.

    Raises:
      BadInput: if workdir holds no run, or can't be written.
    """
    read_workdir_config(workdir)  # refuses what is not the workdir of a run
    partition = read_partition(workdir)
    print_table(tabulate_partition(partition, f'Partition of {workdir}'))
    if not partition['layers']:
        print_line('The network has no dynamic layers: there is nothing to draw.')
        return
    if partition['rounds_done'] < partition['rounds']:
        print_line(f'{partition["rounds_done"]} of {partition["rounds"]} rounds of the partition are done.')
    path = workdir / 'partition.png'
    save_figure(plot_partition(partition), path)
    print_line(f'Picture: {path}')


def tabulate_partition(partition: Partition, title: str) -> Table:
    """One row a dynamic layer, one for everything else, and the totals."""
    columns = ['positions', 'dynamic positions', 'κ', 'dynamic share', 'parameters']
    table = make_table(title, ['layer', 'granularity'], columns)
    for layer in partition['layers']:
        table.add_row(layer['name'], layer['granularity'], *_counts(layer))
    totals = partition['totals']
    rest = totals['parameters'] - sum(layer['parameters'] for layer in partition['layers'])
    table.add_row('other layers', '', '', '', '', '', f'{rest:,}')
    table.add_section()
    table.add_row('total', '', *_counts(totals), style='bold')
    return table


def _counts(counts: dict) -> list[str]:
    return [
        f'{counts["positions"]:,}',
        f'{counts["dynamic_positions"]:,}',
        format_fraction(counts['dynamic_fraction']),
        format_fraction(counts['dynamic_share']),
        f'{counts["parameters"]:,}',
    ]
